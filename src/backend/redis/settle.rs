//! How attempts end, and how leases are kept.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use redis::Value;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::time::Instant;

use super::RedisBackend;
use super::claim::leased;
use super::errors::unreadable;
use super::frame::micros;
use super::reply;
use super::script::{Call, EXTEND, LEAVE, RESCUE, SETTLE, UNSTRAND};
use crate::backend::remote::{Doing, Types};
use crate::backend::{
    HandOff, Lease, Leased, Outcome, Rescued, Revocation, SettleReply, Settled, Token, WorkerId,
};
use crate::error::{ErrorKind, Result};
use crate::job::{Failure, JobId, JobType};
use crate::log::{self, Verbosity};

/// Attempts whose end may have been stored, although no answer said so.
pub(super) type Unsure = FxHashMap<JobId, Token>;

/// Most leases of one beat: how long the server may be busy with it.
const MOST_AT_ONCE: usize = 5000;

/// A beat that has no answer for so long, or for the time between two beats, is sent again by a new connection: one that is
/// dead without a word must not cost the lease.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
const BEATS_PER_LEASE: u32 = 3;

impl RedisBackend {
    pub(super) async fn settle_jobs(&self, done: &[Settled], next: &HandOff<'_>) -> Result<SettleReply> {
        let token = self.tokens.draw(next.worker);
        let mut call = self.settle_call(next.worker, token, next.types);
        // Places in the batch of the caller, in the order in which the script is told of them.
        let mut told = Vec::with_capacity(done.len());
        let mut reply = SettleReply::default();
        let mut finished: BTreeMap<u64, Vec<(usize, JobId)>> = BTreeMap::new();
        let mut seen = FxHashSet::default();
        for (place, Settled { lease, outcome }) in done.iter().enumerate() {
            // The first one counts.
            if !seen.insert(*lease) {
                reply.lost.push(place);
                continue;
            }
            let (code, after, failure) = match outcome {
                Outcome::Finished => {
                    finished.entry(lease.token.shared(lease.id)).or_default().push((place, lease.id));
                    continue;
                }
                Outcome::Failed(failure) => ("failed", Duration::ZERO, Some(failure)),
                Outcome::Cancelled(failure) => ("cancelled", Duration::ZERO, Some(failure)),
                Outcome::Retry { after, failure } => ("retry", *after, Some(failure)),
                Outcome::Interrupted => ("interrupted", Duration::ZERO, None),
            };
            push_end(&mut call, *lease, code, after, failure);
            told.push(place);
        }
        for (token, ends) in &finished {
            call.push("f");
            call.push(token.to_string());
            call.push(ends.len());
            for (place, id) in ends {
                call.push(&id.as_bytes()[..]);
                told.push(*place);
            }
        }
        let since = Instant::now();
        let answer = self.settling.run(Doing::Write("storing how jobs ended"), &call).await;
        let answer = answer.inspect_err(|error| {
            if *error.kind() == ErrorKind::OutcomeUnknown {
                self.unsure().extend(done.iter().map(|end| (end.lease.id, end.lease.token)));
            }
            self.maybe_stranded(next.worker, token, error);
        })?;
        let place_of = |number: Value| -> Result<usize> {
            let number = reply::number(Some(number))? as usize;
            told.get(number.wrapping_sub(1)).copied().ok_or_else(|| unreadable("an answer"))
        };
        let mut parts = reply::list(answer)?.into_iter();
        for number in reply::list(parts.next().unwrap_or(Value::Nil))? {
            reply.lost.push(place_of(number)?);
        }
        self.set_right(done, &mut reply.lost);
        reply.lost.sort_unstable();
        let mut following: Vec<(usize, Leased)> = Vec::new();
        let mut names = Types::of(next.types);
        let mut values = reply::list(parts.next().unwrap_or(Value::Nil))?.into_iter();
        while let (Some(id), Some(before), Some(attempt), Some(job)) =
            (values.next(), values.next(), values.next(), values.next())
        {
            let attempt = reply::number(Some(attempt))?;
            following.push((place_of(before)?, leased(&id, attempt, &job, &mut names, token, since)?));
        }
        following.sort_by_key(|(place, _)| *place);
        reply.next = following.into_iter().map(|(_, leased)| leased).collect();
        Ok(reply)
    }

    fn settle_call(&self, worker: WorkerId, token: u64, types: &[JobType]) -> Call {
        let mut call = SETTLE
            .call(&self.keys)
            .arg(worker.0.to_string())
            .arg(self.settings.keep_finished)
            .arg(self.settings.keep_failed)
            .arg(token.to_string())
            .arg(types.len());
        for job_type in types {
            call.push(job_type.as_str());
        }
        call
    }

    /// After a settle that had no answer the next one finds its jobs gone. Those that had this token ended by us.
    fn set_right(&self, done: &[Settled], lost: &mut Vec<usize>) {
        let mut unsure = self.unsure();
        if !unsure.is_empty() {
            let ours: Vec<bool> =
                done.iter().map(|end| unsure.remove(&end.lease.id) == Some(end.lease.token)).collect();
            lost.retain(|place| !ours[*place]);
        }
    }

    pub(super) async fn give_back_jobs(&self, leases: &[Lease]) -> Result<()> {
        let mut seen = FxHashSet::default();
        let mut calls: Vec<(WorkerId, Call)> = Vec::new();
        for lease in leases.iter().filter(|lease| seen.insert(**lease)) {
            // What no claim of this client brought is stale.
            let Some(worker) = self.tokens.worker(lease.token.shared(lease.id)) else { continue };
            let at = calls.iter().position(|(whose, _)| *whose == worker).unwrap_or_else(|| {
                calls.push((worker, self.settle_call(worker, 0, &[])));
                calls.len() - 1
            });
            push_end(&mut calls[at].1, *lease, "unstarted", Duration::ZERO, None);
        }
        for (_, call) in calls {
            self.settling.run(Doing::Write("giving jobs back"), &call).await?;
        }
        Ok(())
    }

    pub(super) async fn beat(
        &self,
        worker: WorkerId,
        leases: &[Lease],
        lease: Duration,
    ) -> Result<Vec<(Lease, Revocation)>> {
        self.lease_micros.store(micros(lease), Ordering::Relaxed);
        let mut revoked = Vec::new();
        let mut parts = leases.chunks(MOST_AT_ONCE);
        let mut part = parts.next().unwrap_or_default();
        loop {
            revoked.extend(self.beat_part(worker, part, lease).await?);
            match parts.next() {
                Some(more) => part = more,
                None => break,
            }
        }
        // The beat has got through, and that is what counts; the next one asks again.
        let _ = self.unstrand(worker, lease).await;
        Ok(revoked)
    }

    async fn beat_part(
        &self,
        worker: WorkerId,
        leases: &[Lease],
        lease: Duration,
    ) -> Result<Vec<(Lease, Revocation)>> {
        let mut call = EXTEND.call(&self.keys).arg(worker.0.to_string()).arg(&self.name).arg(micros(lease));
        let mut by_token: BTreeMap<u64, Vec<&Lease>> = BTreeMap::new();
        for held in leases {
            by_token.entry(held.token.shared(held.id)).or_default().push(held);
        }
        for (token, held) in &by_token {
            call.push(token.to_string());
            call.push(held.len());
            for lease in held {
                call.push(&lease.id.as_bytes()[..]);
            }
        }
        // A beat more or less does no harm.
        let patience = (lease / BEATS_PER_LEASE).max(LEAST_PATIENCE);
        let answer = self.beats.run_within(patience, Doing::Read("the heartbeat"), &call).await?;
        let mut parts = reply::list(answer)?.into_iter();
        if reply::number(parts.next())? == 1 && !leases.is_empty() {
            log::write(Verbosity::Errors, None, || self.emptied());
        }
        let told: Vec<&Lease> = by_token.into_values().flatten().collect();
        let mut revoked = FxHashMap::default();
        while let (Some(number), Some(why)) = (parts.next(), parts.next()) {
            let held = told.get((reply::number(Some(number))? as usize).wrapping_sub(1));
            let why = if reply::text(&why)? == "c" { Revocation::Cancel } else { Revocation::Lost };
            revoked.insert(**held.ok_or_else(|| unreadable("an answer"))?, why);
        }
        Ok(leases.iter().filter_map(|lease| Some((*lease, *revoked.get(lease)?))).collect())
    }

    fn emptied(&self) -> String {
        format!(
            "the queue {:?} in Redis was emptied by somebody else: what waited there is lost, and jobs that run here are \
             told to stop",
            self.keys.queue()
        )
    }

    /// Gives back what claims took whose answers never came. The server may still be at work on such a claim, so that it
    /// is asked about for a while.
    async fn unstrand(&self, worker: WorkerId, lease: Duration) -> Result<()> {
        let tokens = self.stranded.of(worker);
        if tokens.is_empty() {
            return Ok(());
        }
        let mut call = UNSTRAND.call(&self.keys).arg(worker.0.to_string());
        for token in tokens {
            call.push(token.to_string());
        }
        self.work.run(Doing::Write("giving back jobs that never arrived"), &call).await?;
        self.stranded.asked(worker, lease);
        Ok(())
    }

    pub(super) async fn rescue_jobs(&self, max_rescues: u32) -> Result<Rescued> {
        let call = RESCUE
            .call(&self.keys)
            .arg(self.lease_micros.load(Ordering::Relaxed))
            .arg(max_rescues)
            .arg(self.settings.keep_finished)
            .arg(self.settings.keep_failed);
        let answer = self.work.run(Doing::Write("rescuing jobs of lost workers"), &call).await?;
        let mut counts = reply::list(answer)?.into_iter();
        let mut count = || reply::number(counts.next()).map(|count| count.max(0) as u64);
        Ok(Rescued { requeued: count()?, failed: count()? })
    }

    pub(super) async fn goodbye(&self, worker: WorkerId) -> Result<()> {
        let call = LEAVE.call(&self.keys).arg(worker.0.to_string());
        self.beats.run(Doing::Write("leaving"), &call).await?;
        self.tokens.forget(worker);
        Ok(())
    }

    fn unsure(&self) -> MutexGuard<'_, Unsure> {
        self.unsure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push_end(call: &mut Call, lease: Lease, code: &str, delay: Duration, failure: Option<&Failure>) {
    call.push("e");
    call.push(lease.token.shared(lease.id).to_string());
    call.push(&lease.id.as_bytes()[..]);
    call.push(code);
    call.push(micros(delay));
    call.push(failure.map(Failure::to_json).unwrap_or_default());
}
