//! New jobs on their way into the database.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::PostgresBackend;
use super::errors;
use super::link::Link;
use super::notify::Notifier;
use super::rows::{Json, unreadable};
use super::sql::Sql;
use crate::backend::remote::{Answer, Batch, Doing, Insert};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobId, NewJob, OnFailure};

/// From so many jobs on, a call goes by COPY.
const COPY_FROM: usize = 200;
/// How long a statement may take, however late it is sent.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of COPY data sent at once.
const CHUNK: usize = 256 * 1024;
const DOING: Doing = Doing::Write("enqueueing");

/// The way in.
#[derive(Debug)]
pub(super) struct Entrance {
    pub link: Link,
    pub sql: Arc<Sql>,
    pub notifier: Arc<Notifier>,
}

impl PostgresBackend {
    pub(super) async fn enqueue_jobs(&self, jobs: &[NewJob]) -> Result<Vec<JobId>> {
        let enqueuer = if is_unique(jobs) { &self.unique_enqueuer } else { &self.enqueuer };
        enqueuer.enqueue(jobs).await
    }
}

fn is_unique<'a>(jobs: impl IntoIterator<Item = &'a NewJob>) -> bool {
    jobs.into_iter().any(|job| job.unique.is_some())
}

impl Insert for Entrance {
    const MOST_MERGED: usize = 2000;

    /// Those that are new and ask for no unique key find nothing in their way.
    fn goes_alone(jobs: &[NewJob], is_new: bool) -> bool {
        !is_new || is_unique(jobs)
    }

    async fn insert(&self, batch: &Batch<'_>) -> Result<Answer> {
        let jobs = batch.jobs;
        let is_plain = batch.is_new && !is_unique(jobs.iter().copied());
        let goes_by_copy =
            !batch.is_merged && jobs.len() >= COPY_FROM && jobs.iter().all(|job| job.delay.is_zero());
        let mut stored = match is_plain {
            // As large as it is, it may take its time.
            true if goes_by_copy => self.copy(jobs).await,
            true => self.answered(batch.deadline, self.insert_plain(jobs)).await,
            false => self.answered(batch.deadline, self.insert_new(jobs)).await,
        };
        if is_plain && stored.as_ref().is_err_and(errors::is_duplicate) {
            stored = self.answered(batch.deadline, self.insert_new(jobs)).await;
        }
        let ids = stored?;
        let open = jobs.iter().filter(|job| job.chain.position == 1);
        self.notifier.tell(open.map(|job| job.job_type.as_str()));
        Ok(Ok(ids))
    }
}

impl Entrance {
    /// An answer that is overdue will not come by this connection; the next statement goes by another one.
    async fn answered<T>(&self, deadline: Instant, asked: impl Future<Output = Result<T>>) -> Result<T> {
        let deadline = deadline.max(Instant::now() + LEAST_PATIENCE);
        if let Ok(result) = timeout_at(deadline, asked).await {
            return result;
        }
        self.link.abandon().await;
        Err(Error::new(
            ErrorKind::OutcomeUnknown,
            "enqueueing: no answer came, so it may or may not have happened",
        ))
    }

    /// One statement for new jobs.
    async fn insert_plain(&self, jobs: &[&NewJob]) -> Result<Vec<JobId>> {
        let rows: Vec<Columns<'_>> = jobs.iter().map(|job| Columns::of(job)).collect();
        let ids: Vec<&Uuid> = jobs.iter().map(|job| job.id.as_uuid()).collect();
        let chains: Vec<Option<&Uuid>> = rows.iter().map(|row| row.chain).collect();
        let positions: Vec<Option<i32>> = rows.iter().map(|row| row.position).collect();
        let lengths: Vec<Option<i32>> = rows.iter().map(|row| row.length).collect();
        let cancel_rest: Vec<bool> = rows.iter().map(|row| row.cancel_rest).collect();
        let max_attempts: Vec<Option<i32>> = rows.iter().map(|row| row.max_attempts).collect();
        let delays: Vec<Option<f64>> = rows.iter().map(|row| row.delay).collect();
        let types: Vec<&str> = jobs.iter().map(|job| job.job_type.as_str()).collect();
        let headers = headers(jobs);
        let headers: Vec<Option<Json<'_>>> =
            headers.iter().map(|headers| headers.as_deref().map(Json)).collect();
        let bodies: Vec<Json<'_>> = jobs.iter().map(|job| Json(job.body.as_bytes())).collect();
        self.link
            .query(
                DOING,
                &self.sql.insert,
                &[
                    (&ids, Type::UUID_ARRAY),
                    (&chains, Type::UUID_ARRAY),
                    (&positions, Type::INT4_ARRAY),
                    (&lengths, Type::INT4_ARRAY),
                    (&cancel_rest, Type::BOOL_ARRAY),
                    (&max_attempts, Type::INT4_ARRAY),
                    (&delays, Type::FLOAT8_ARRAY),
                    (&types, Type::TEXT_ARRAY),
                    (&headers, Type::JSON_ARRAY),
                    (&bodies, Type::JSON_ARRAY),
                ],
            )
            .await?;
        Ok(jobs.iter().map(|job| job.id).collect())
    }

    /// One statement for jobs of which some may be there already, or meet the holder of their unique key.
    async fn insert_new(&self, jobs: &[&NewJob]) -> Result<Vec<JobId>> {
        let described = described(jobs.iter().copied());
        let params = [(&Json(described.as_bytes()) as _, Type::JSON)];
        let row = self.link.query_one(DOING, &self.sql.enqueue_jobs, &params).await?;
        let ids: Vec<Uuid> = row.try_get(0).map_err(unreadable)?;
        Ok(ids.into_iter().map(JobId::from_uuid).collect())
    }

    /// New jobs by COPY, which is as fast as it gets.
    async fn copy(&self, jobs: &[&NewJob]) -> Result<Vec<JobId>> {
        let session = self.link.session().await?;
        if !session.is_own {
            // The driver gives COPY a name in one session, and a pooler may run it in another, which waits for ever.
            return self.insert_plain(jobs).await;
        }
        let headers = headers(jobs);
        let copied = async {
            let mut sink = std::pin::pin!(session.client.copy_in::<_, Bytes>(&self.sql.copy).await?);
            let mut data = BytesMut::with_capacity(CHUNK + 4096);
            data.put_slice(b"PGCOPY\n\xff\r\n\0");
            data.put_u64(0); // no flags, no extension
            for (job, headers) in jobs.iter().zip(&headers) {
                Columns::of(job).write(job, headers.as_deref(), &mut data);
                if data.len() >= CHUNK {
                    sink.send(data.split().freeze()).await?;
                }
            }
            data.put_i16(-1);
            sink.send(data.freeze()).await?;
            sink.as_mut().finish().await
        };
        let result = copied.await;
        self.link.answer(DOING, result).await?;
        Ok(jobs.iter().map(|job| job.id).collect())
    }
}

/// What a job has besides its id, type, headers and body.
struct Columns<'a> {
    chain: Option<&'a Uuid>,
    position: Option<i32>,
    length: Option<i32>,
    cancel_rest: bool,
    max_attempts: Option<i32>,
    delay: Option<f64>,
}

impl<'a> Columns<'a> {
    fn of(job: &'a NewJob) -> Self {
        let is_chained = job.chain.length > 1;
        let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        Self {
            chain: is_chained.then(|| job.chain.id.as_uuid()),
            position: is_chained.then(|| number(job.chain.position)),
            length: is_chained.then(|| number(job.chain.length)),
            cancel_rest: job.on_failure == OnFailure::Cancel,
            max_attempts: job.max_attempts.map(|attempts| number(attempts.get())),
            delay: seconds(job.delay),
        }
    }

    /// A row of `copy.sql` in the binary format (PostgreSQL documentation, COPY, "Binary Format").
    fn write(&self, job: &NewJob, headers: Option<&[u8]>, data: &mut BytesMut) {
        fn field(data: &mut BytesMut, bytes: Option<&[u8]>) {
            match bytes {
                None => data.put_i32(-1),
                Some(bytes) => {
                    data.put_i32(bytes.len() as i32);
                    data.put_slice(bytes);
                }
            }
        }
        let hold = i16::from(self.position.is_some_and(|position| position > 1));
        data.put_i16(10);
        field(data, Some(job.id.as_bytes()));
        field(data, self.chain.map(|chain| &chain.as_bytes()[..]));
        field(data, self.position.map(i32::to_be_bytes).as_ref().map(|bytes| &bytes[..]));
        field(data, self.length.map(i32::to_be_bytes).as_ref().map(|bytes| &bytes[..]));
        field(data, Some(&hold.to_be_bytes()));
        field(data, Some(&[u8::from(self.cancel_rest)]));
        field(data, self.max_attempts.map(i32::to_be_bytes).as_ref().map(|bytes| &bytes[..]));
        field(data, Some(job.job_type.as_str().as_bytes()));
        field(data, headers);
        field(data, Some(job.body.as_bytes()));
    }
}

/// Jobs as the function `enqueue_jobs` reads them.
pub(super) fn described<'a>(jobs: impl Iterator<Item = &'a NewJob>) -> String {
    jobs.map(description).collect::<serde_json::Value>().to_string()
}

fn description(job: &NewJob) -> serde_json::Value {
    let row = Columns::of(job);
    let text = |json: &[u8]| String::from_utf8_lossy(json).into_owned();
    serde_json::json!({
        "body": text(job.body.as_bytes()),
        "headers": job.headers.as_ref().and_then(|headers| serde_json::to_string(&**headers).ok()),
        "id": job.id.as_uuid().to_string(),
        "type": job.job_type.as_str(),
        "chain": row.chain.map(Uuid::to_string),
        "position": row.position,
        "length": row.length,
        "cancel_rest": row.cancel_rest,
        "max_attempts": row.max_attempts,
        "delay": row.delay,
        "unique": job.unique.as_deref(),
    })
}

fn headers(jobs: &[&NewJob]) -> Vec<Option<Vec<u8>>> {
    let json = |job: &&NewJob| job.headers.as_ref().and_then(|headers| serde_json::to_vec(&**headers).ok());
    jobs.iter().map(json).collect()
}

/// As the database counts it; a delay beyond its calendar is as good as never.
pub(super) fn seconds(delay: Duration) -> Option<f64> {
    const NEVER: f64 = 1000.0 * 365.25 * 86_400.0;
    (!delay.is_zero()).then(|| delay.as_secs_f64().min(NEVER))
}
