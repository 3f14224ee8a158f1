//! Between jobs and columns.

use std::error::Error as StdError;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use uuid::Uuid;

use crate::backend::remote::Types;
use crate::backend::{Leased, Token};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{Body, ChainPlace, Failure, Headers, Job, JobId, JobInfo, JobType, State};

/// JSON text, as it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Json<'a>(pub &'a [u8]);

impl<'a> FromSql<'a> for Json<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::JSON
    }
}

impl ToSql for Json<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.extend_from_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::JSON
    }

    to_sql_checked!();
}

/// A job that was just leased: the columns of `claim.sql` and `settle.sql` from `first` on.
pub(super) fn leased(
    row: &Row,
    first: usize,
    id: Uuid,
    types: &mut Types<'_>,
    token: i64,
    since: Instant,
) -> Result<Leased> {
    let id = JobId::from_uuid(id);
    let job = Job {
        id,
        job_type: types.find(row.try_get(first).map_err(unreadable)?)?,
        body: Body::from_encoder(row.try_get::<_, Json<'_>>(first + 1).map_err(unreadable)?.0),
        headers: headers(row.try_get(first + 2).map_err(unreadable)?),
        attempt: number(row.try_get(first + 3).map_err(unreadable)?),
        max_attempts: attempts(row.try_get(first + 4).map_err(unreadable)?),
        last_attempt: None,
        enqueued_at: row.try_get(first + 5).map_err(unreadable)?,
        chain: chain(row, first + 6, id)?,
    };
    Ok(Leased { job, token: Token::bound(id, token as u64), since })
}

/// A row of the view `jobs`, in the order of `get.sql`.
pub(super) fn info(row: &Row) -> Result<JobInfo> {
    let id = JobId::from_uuid(row.try_get(0).map_err(unreadable)?);
    let at = |column| row.try_get::<_, Option<SystemTime>>(column).map_err(unreadable);
    let job = Job {
        id,
        job_type: JobType::new(row.try_get(1).map_err(unreadable)?)?,
        body: Body::from_encoder(row.try_get::<_, Json<'_>>(2).map_err(unreadable)?.0),
        headers: headers(row.try_get(3).map_err(unreadable)?),
        attempt: number(row.try_get(4).map_err(unreadable)?),
        max_attempts: attempts(row.try_get(5).map_err(unreadable)?),
        last_attempt: None,
        enqueued_at: row.try_get(6).map_err(unreadable)?,
        chain: chain(row, 7, id)?,
    };
    Ok(JobInfo {
        job,
        state: row.try_get::<_, &str>(10).map_err(unreadable)?.parse::<State>()?,
        due_at: at(11)?,
        started_at: at(12)?,
        last_beat_at: at(13)?,
        finished_at: at(14)?,
        rescues: number(row.try_get(15).map_err(unreadable)?),
        failure: row
            .try_get::<_, Option<Json<'_>>>(16)
            .map_err(unreadable)?
            .map(|json| Failure::from_json(json.0)),
    })
}

fn chain(row: &Row, first: usize, id: JobId) -> Result<ChainPlace> {
    let chain: Option<Uuid> = row.try_get(first).map_err(unreadable)?;
    let Some(chain) = chain else { return Ok(ChainPlace { id, position: 1, length: 1 }) };
    Ok(ChainPlace {
        id: JobId::from_uuid(chain),
        position: number(row.try_get(first + 1).map_err(unreadable)?),
        length: number(row.try_get(first + 2).map_err(unreadable)?),
    })
}

/// Somebody else may have put anything there, and a job is not to be lost for it: then it runs without headers.
fn headers(json: Option<Json<'_>>) -> Option<Arc<Headers>> {
    json.and_then(|json| serde_json::from_slice(json.0).ok()).map(Arc::new)
}

fn number(value: i32) -> u32 {
    value.max(0) as u32
}

fn attempts(value: Option<i32>) -> Option<NonZeroU32> {
    value.and_then(|value| NonZeroU32::new(number(value)))
}

pub(super) fn unreadable(error: tokio_postgres::Error) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("a row of the database is not what this version of dejq expects: {error}; is the schema changed by hand?"),
    )
    .with_source(error)
}
