//! How attempts end, and how leases are kept.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::Duration;

use rustc_hash::FxHashSet;
use tokio::time::Instant;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::PostgresBackend;
use super::claim::new_token;
use super::enqueue::seconds;
use super::rows::{self, Json, unreadable};
use crate::backend::remote::{Doing, Types};
use crate::backend::{HandOff, Lease, Outcome, Rescued, Revocation, SettleReply, Settled, WorkerId};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{Failure, JobType};

/// How an attempt ends, as the functions of the schema count it.
mod code {
    pub const FINISHED: i16 = 0;
    pub const FAILED: i16 = 1;
    pub const CANCELLED: i16 = 2;
    pub const RETRY: i16 = 3;
    pub const INTERRUPTED: i16 = 4;
    pub const NEVER_STARTED: i16 = 5;
}

/// The ends of some attempts, as columns.
#[derive(Default)]
struct Ends {
    /// Where each stands in the batch of the caller.
    places: Vec<usize>,
    ids: Vec<Uuid>,
    tokens: Vec<i64>,
    codes: Vec<i16>,
    delays: Vec<f64>,
    failures: Vec<Option<Vec<u8>>>,
}

impl Ends {
    fn push(&mut self, place: usize, lease: Lease, code: i16, delay: Duration, failure: Option<&Failure>) {
        self.places.push(place);
        self.ids.push(*lease.id.as_uuid());
        self.tokens.push(lease.token.shared(lease.id) as i64);
        self.codes.push(code);
        self.delays.push(seconds(delay).unwrap_or_default());
        self.failures.push(failure.map(Failure::to_json));
    }

    fn failures(&self) -> Vec<Option<Json<'_>>> {
        self.failures.iter().map(|failure| failure.as_deref().map(Json)).collect()
    }

    /// Which attempt each is about.
    fn attempts(&self) -> impl Iterator<Item = (Uuid, i64)> {
        self.ids.iter().copied().zip(self.tokens.iter().copied())
    }

    /// Takes these out of the places of those that were lost.
    fn are_ours(&self, ours: impl IntoIterator<Item = Uuid>, lost: &mut Vec<usize>) {
        let ours: FxHashSet<Uuid> = ours.into_iter().collect();
        let places: FxHashSet<usize> = self
            .places
            .iter()
            .zip(&self.ids)
            .filter(|(_, id)| ours.contains(*id))
            .map(|(place, _)| *place)
            .collect();
        lost.retain(|place| !places.contains(place));
    }

    /// Places in the caller's batch, from places in this one, which count from 1.
    fn lost(&self, lost: Option<Vec<i32>>) -> Vec<usize> {
        lost.unwrap_or_default()
            .into_iter()
            .filter_map(|n| self.places.get(n as usize - 1).copied())
            .collect()
    }
}

impl PostgresBackend {
    pub(super) async fn settle_jobs(&self, done: &[Settled], next: &HandOff<'_>) -> Result<SettleReply> {
        let (mut ended, mut back) = (Ends::default(), Ends::default());
        let mut reply = SettleReply::default();
        let mut seen = FxHashSet::default();
        for (place, Settled { lease, outcome }) in done.iter().enumerate() {
            // The first one counts.
            if !seen.insert(*lease) {
                reply.lost.push(place);
                continue;
            }
            let now = Duration::ZERO;
            match outcome {
                Outcome::Finished => ended.push(place, *lease, code::FINISHED, now, None),
                Outcome::Failed(failure) => ended.push(place, *lease, code::FAILED, now, Some(failure)),
                Outcome::Cancelled(failure) => ended.push(place, *lease, code::CANCELLED, now, Some(failure)),
                Outcome::Retry { after, failure } => {
                    back.push(place, *lease, code::RETRY, *after, Some(failure));
                }
                Outcome::Interrupted => back.push(place, *lease, code::INTERRUPTED, now, None),
            }
        }
        if !ended.ids.is_empty() {
            self.end(&ended, next, &mut reply).await?;
        }
        if !back.ids.is_empty() {
            let lost = self.put_back(&back).await.inspect_err(|_| self.half_done(&ended, next, &reply))?;
            reply.lost.extend(lost);
        }
        reply.lost.sort_unstable();
        Ok(reply)
    }

    /// The caller repeats the whole batch and never hears of this half: what has ended is found to have ended by us, and
    /// what was handed on goes back in line with the next beat.
    fn half_done(&self, ended: &Ends, next: &HandOff<'_>, reply: &SettleReply) {
        self.unsure().extend(ended.attempts());
        if let Some(handed_on) = reply.next.first() {
            self.stranded.push(next.worker, handed_on.token.shared(handed_on.job.id));
        }
    }

    async fn end(&self, ends: &Ends, next: &HandOff<'_>, reply: &mut SettleReply) -> Result<()> {
        let heir = (!next.types.is_empty()).then(|| *next.worker.0.as_uuid());
        let types: Vec<&str> = next.types.iter().map(JobType::as_str).collect();
        let token = new_token();
        let since = Instant::now();
        let rows = self
            .settling
            .query(
                Doing::Write("storing how jobs ended"),
                &self.sql.settle,
                &[
                    (&ends.ids, Type::UUID_ARRAY),
                    (&ends.tokens, Type::INT8_ARRAY),
                    (&ends.codes, Type::INT2_ARRAY),
                    (&ends.failures(), Type::JSON_ARRAY),
                    (&self.options.keep_finished, Type::BOOL),
                    (&heir, Type::UUID),
                    (&types, Type::TEXT_ARRAY),
                    (&token, Type::INT8),
                ],
            )
            .await
            .inspect_err(|error| {
                self.maybe_unsure(ends, error);
                if heir.is_some() {
                    self.maybe_stranded(next.worker, token, error);
                }
            })?;
        let mut rows = rows.iter();
        let lost = rows.next().map(|row| row.try_get(0).map_err(unreadable)).transpose()?.flatten();
        let mut lost = ends.lost(lost);
        self.set_right(ends, &mut lost).await?;
        reply.lost.extend(lost);
        let mut released = Vec::new();
        let mut types = Types::of(next.types);
        for row in rows {
            let id: Uuid = row.try_get(1).map_err(unreadable)?;
            let job_type: &str = row.try_get(2).map_err(unreadable)?;
            if row.try_get::<_, Option<Json<'_>>>(3).map_err(unreadable)?.is_some() {
                reply.next.push(rows::leased(row, 2, id, &mut types, token, since)?);
            } else {
                self.marks.lower(job_type, row.try_get(11).map_err(unreadable)?);
                released.push(job_type);
            }
        }
        self.notifier.tell(released);
        Ok(())
    }

    /// After a settle that had no answer the next one finds its jobs gone. Those that ended with our token did so by us.
    async fn set_right(&self, ends: &Ends, lost: &mut Vec<usize>) -> Result<()> {
        if self.unsure().is_empty() {
            return Ok(());
        }
        let doubtful = self.doubtful(ends);
        if doubtful.is_empty() || lost.is_empty() {
            return Ok(());
        }
        let (ids, tokens): (Vec<Uuid>, Vec<i64>) = doubtful.into_iter().unzip();
        if !self.options.keep_finished {
            // Nothing is left that could tell, and what else would have ended them?
            ends.are_ours(ids, lost);
            return Ok(());
        }
        let doing = Doing::Read("looking for jobs that ended");
        let params = [(&ids as _, Type::UUID_ARRAY), (&tokens as _, Type::INT8_ARRAY)];
        let rows = self.settling.query(doing, &self.sql.stored, &params).await?;
        let stored = rows.iter().map(|row| row.try_get::<_, Uuid>(0).map_err(unreadable));
        ends.are_ours(stored.collect::<Result<Vec<_>>>()?, lost);
        Ok(())
    }

    /// Notes attempts whose end may have been stored, although no answer said so.
    fn maybe_unsure(&self, ends: &Ends, error: &Error) {
        if *error.kind() == ErrorKind::OutcomeUnknown {
            self.unsure().extend(ends.attempts());
        }
    }

    /// Those whose end may have been stored by a call that had no answer.
    fn doubtful(&self, ends: &Ends) -> Vec<(Uuid, i64)> {
        let mut unsure = self.unsure();
        ends.attempts().filter(|(id, token)| unsure.remove(id) == Some(*token)).collect()
    }

    async fn put_back(&self, ends: &Ends) -> Result<Vec<usize>> {
        let row = self
            .settling
            .query_one(
                Doing::Write("giving jobs back"),
                &self.sql.put_back,
                &[
                    (&ends.ids, Type::UUID_ARRAY),
                    (&ends.tokens, Type::INT8_ARRAY),
                    (&ends.codes, Type::INT2_ARRAY),
                    (&ends.delays, Type::FLOAT8_ARRAY),
                    (&ends.failures(), Type::JSON_ARRAY),
                ],
            )
            .await
            .inspect_err(|error| self.maybe_unsure(ends, error))?;
        if ends.codes.iter().all(|code| *code == code::RETRY) {
            // They are at the end of the line, where every claim looks.
            self.wakes.all();
        } else {
            self.changed();
        }
        let mut lost = ends.lost(row.try_get(0).map_err(unreadable)?);
        // A job that went back keeps no token that could tell by whom.
        ends.are_ours(self.doubtful(ends).into_iter().map(|(id, _)| id), &mut lost);
        Ok(lost)
    }

    pub(super) async fn give_back_jobs(&self, leases: &[Lease]) -> Result<()> {
        let mut ends = Ends::default();
        let mut seen = FxHashSet::default();
        for (place, lease) in leases.iter().enumerate().filter(|(_, lease)| seen.insert(**lease)) {
            ends.push(place, *lease, code::NEVER_STARTED, Duration::ZERO, None);
        }
        if !ends.ids.is_empty() {
            self.put_back(&ends).await?;
        }
        Ok(())
    }

    pub(super) async fn beat(
        &self,
        worker: WorkerId,
        leases: &[Lease],
        lease: Duration,
    ) -> Result<Vec<(Lease, Revocation)>> {
        let ids: Vec<&Uuid> = leases.iter().map(|lease| lease.id.as_uuid()).collect();
        let tokens: Vec<i64> = leases.iter().map(|lease| lease.token.shared(lease.id) as i64).collect();
        let rows = self
            .beats
            .query(
                // A beat more or less does no harm.
                Doing::Read("the heartbeat"),
                &self.sql.beat,
                &[
                    (worker.0.as_uuid(), Type::UUID),
                    (&self.name, Type::TEXT),
                    (&lease.as_secs_f64(), Type::FLOAT8),
                    (&ids, Type::UUID_ARRAY),
                    (&tokens, Type::INT8_ARRAY),
                ],
            )
            .await?;
        let mut revoked = Vec::with_capacity(rows.len());
        for row in &rows {
            let place: i32 = row.try_get(0).map_err(unreadable)?;
            let is_cancel: bool = row.try_get(1).map_err(unreadable)?;
            if let Some(lease) = leases.get(place as usize - 1) {
                revoked.push((*lease, if is_cancel { Revocation::Cancel } else { Revocation::Lost }));
            }
        }
        // The beat has got through, and that is what counts; the next one asks again.
        let _ = self.unstrand(worker, lease).await;
        Ok(revoked)
    }

    /// Gives back what claims took whose answers never came. The server may still be at work on such a claim, so that it
    /// is asked about for a while.
    async fn unstrand(&self, worker: WorkerId, lease: Duration) -> Result<()> {
        let tokens: Vec<i64> = self.stranded.of(worker).into_iter().map(|token| token as i64).collect();
        if tokens.is_empty() {
            return Ok(());
        }
        let doing = Doing::Write("giving back jobs that never arrived");
        let params = [(worker.0.as_uuid() as _, Type::UUID), (&tokens as _, Type::INT8_ARRAY)];
        self.work.query(doing, &self.sql.unstrand, &params).await?;
        self.stranded.asked(worker, lease);
        self.changed();
        Ok(())
    }

    pub(super) async fn rescue_jobs(&self, max_rescues: u32) -> Result<Rescued> {
        let most = i32::try_from(max_rescues).unwrap_or(i32::MAX);
        let doing = Doing::Write("rescuing jobs of lost workers");
        let row = self.work.query_one(doing, &self.sql.rescue, &[(&most, Type::INT4)]).await?;
        let count = |column| row.try_get::<_, i32>(column).map(|count| count as u64).map_err(unreadable);
        if count(2)? > 0 {
            self.changed();
        }
        Ok(Rescued { requeued: count(0)?, failed: count(1)? })
    }

    fn unsure(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, i64>> {
        self.unsure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends without an answer: which job, with which token.
pub(super) type Unsure = HashMap<Uuid, i64>;
