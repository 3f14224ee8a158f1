//! Looking into the database, and stepping in.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::PostgresBackend;
use super::enqueue::seconds;
use super::rows::{self, unreadable};
use crate::backend::remote::Doing;
use crate::backend::{Counts, Filter, Stats};
use crate::error::{Error, Result};
use crate::job::{JobId, JobInfo, State};

/// Old jobs are deleted this many times within the time that they are kept, at least every so often.
const CLEANS_PER_RETENTION: u32 = 10;
const LONGEST_BETWEEN_CLEANS: Duration = Duration::from_secs(3600);
const CLEAN_BATCH: usize = 10_000;
/// Then the next rescue has its turn.
const MOST_BATCHES: usize = 10;

impl PostgresBackend {
    pub(super) async fn get_job(&self, id: JobId) -> Result<JobInfo> {
        let doing = Doing::Read("looking up a job");
        let rows = self.work.query(doing, &self.sql.get, &[(id.as_uuid(), Type::UUID)]).await?;
        rows.first().map_or_else(|| Err(Error::unknown_job(id)), rows::info)
    }

    pub(super) async fn list_jobs(&self, filter: &Filter) -> Result<Vec<JobInfo>> {
        let state = filter.state.map(State::as_str);
        let older_than = filter.older_than.and_then(seconds);
        let after = filter.after.as_ref().map(JobId::as_uuid);
        let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
        let rows = self
            .work
            .query(
                Doing::Read("listing jobs"),
                &self.sql.list,
                &[
                    (&state, Type::TEXT),
                    (&filter.job_type, Type::TEXT),
                    (&older_than, Type::FLOAT8),
                    (&after, Type::UUID),
                    (&limit, Type::INT8),
                ],
            )
            .await?;
        rows.iter().map(rows::info).collect()
    }

    pub(super) async fn unresponsive_jobs(&self, older_than: Duration) -> Result<Vec<JobInfo>> {
        let doing = Doing::Read("finding unresponsive jobs");
        let seconds = seconds(older_than).unwrap_or_default();
        let rows = self.work.query(doing, &self.sql.unresponsive, &[(&seconds, Type::FLOAT8)]).await?;
        rows.iter().map(rows::info).collect()
    }

    /// Runs one of the functions that an operator calls for one job.
    pub(super) async fn operate(&self, doing: &'static str, sql: &str, id: JobId) -> Result<()> {
        let result = self.work.query(Doing::Write(doing), sql, &[(id.as_uuid(), Type::UUID)]).await;
        self.changed();
        result.map(|_| ())
    }

    pub(super) async fn delete_ended(&self, older_than: Duration, batch: usize) -> Result<u64> {
        let doing = Doing::Write("deleting finished jobs");
        let (seconds, batch) =
            (seconds(older_than).unwrap_or_default(), i32::try_from(batch).unwrap_or(i32::MAX));
        let params = [(&seconds as _, Type::FLOAT8), (&batch as _, Type::INT4)];
        let row = self.work.query_one(doing, &self.sql.delete_finished, &params).await?;
        Ok(row.try_get::<_, i64>(0).map_err(unreadable)? as u64)
    }

    /// Deletes what is older than the retention, now and then. Every worker does; what one has deleted is no work for the
    /// next.
    pub(super) async fn forget_old_jobs(&self) -> Result<()> {
        let Some(retention) = self.options.retention else { return Ok(()) };
        {
            let mut last = self.last_clean.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| {
                last.elapsed() < (retention / CLEANS_PER_RETENTION).min(LONGEST_BETWEEN_CLEANS)
            }) {
                return Ok(());
            }
            *last = Some(Instant::now());
        }
        for _ in 0..MOST_BATCHES {
            if self.delete_ended(retention, CLEAN_BATCH).await? == 0 {
                return Ok(());
            }
        }
        // There is more: the next rescue goes on.
        *self.last_clean.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    pub(super) async fn promote_all(&self) -> Result<u64> {
        let row = self.work.query_one(Doing::Write("making jobs due"), &self.sql.promote, &[]).await?;
        self.changed();
        Ok(row.try_get::<_, i64>(0).map_err(unreadable)? as u64)
    }

    pub(super) async fn vacuum_tables(&self) -> Result<()> {
        let session = self.work.session().await?;
        let result = session.client.batch_execute(&self.sql.vacuum).await;
        self.work.answer(Doing::Write("vacuuming"), result).await
    }

    pub(super) async fn count(&self) -> Result<Stats> {
        let doing = Doing::Read("counting jobs");
        let rows = self.work.query(doing, &self.sql.stats, &[]).await?;
        let workers = self.work.query_one(doing, &self.sql.workers, &[]).await?;
        let mut by_type = BTreeMap::new();
        for row in &rows {
            let count = |column| {
                row.try_get::<_, i64>(column).map(|count| Some(count.max(0) as u64)).map_err(unreadable)
            };
            let oldest: Option<f64> = row.try_get(8).map_err(unreadable)?;
            let counts = Counts {
                blocked: count(1)?,
                scheduled: count(2)?,
                ready: count(3)?,
                running: count(4)?,
                finished: count(5)?,
                failed: count(6)?,
                cancelled: count(7)?,
                oldest_ready: oldest.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            };
            by_type.insert(row.try_get::<_, String>(0).map_err(unreadable)?, counts);
        }
        let workers: i64 = workers.try_get(0).map_err(unreadable)?;
        Ok(Stats {
            total: Counts::sum(by_type.values()),
            by_type,
            workers: Some(workers as u64),
            totals: None,
            bill: None,
        })
    }
}
