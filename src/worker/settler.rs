//! From ended attempts to what the store keeps: many in one call, and chains handed on in the same call.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::counters::count;
use super::outbox::Ended;
use super::retry::outcome;
use super::task::{Cancel, Task};
use super::{Attempt, Shared, StoreBackoff};
use crate::backend::{HandOff, Lease, Outcome, SettleReply, Settled};
use crate::job::Failure;
use crate::log::{self, Verbosity};

pub(super) async fn run(shared: Arc<Shared>) {
    let mut last = Instant::now();
    loop {
        let batch = tokio::select! {
            batch = shared.outbox.take() => batch,
            () = shared.ended.cancelled() => return,
        };
        measure(&shared, &batch, &mut last);
        // Their handlers' own transactions may still be open, and hold what the store would write: nobody else waits for that.
        let (apart, batch): (Vec<Ended>, Vec<Ended>) =
            batch.into_iter().partition(|ended| ended.task.finishes_itself());
        if !apart.is_empty() {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { settle(&shared, apart).await });
        }
        if !batch.is_empty() {
            settle(&shared, batch).await;
        }
    }
}

/// What is to be done about an ended attempt.
enum Report {
    Settle(Outcome),
    /// It never started.
    GiveBack,
    /// The job is another worker's, or over already.
    Nothing,
}

/// Lets go of tasks however the call about them ends; without this a panic would keep leases alive for ever.
pub(super) struct LetGo<'a> {
    pub shared: &'a Shared,
    pub tasks: Vec<Arc<Task>>,
}

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        self.shared.let_go(self.tasks.iter());
    }
}

async fn settle(shared: &Shared, batch: Vec<Ended>) {
    let mut held = LetGo { shared, tasks: Vec::with_capacity(batch.len()) };
    let mut leaving = vec![0; shared.lanes.len()];
    let mut settled = Vec::with_capacity(batch.len());
    let mut given_back = Vec::new();
    // Place in `held.tasks` of each entry of `settled`.
    let mut places = Vec::with_capacity(batch.len());
    for ended in batch {
        let lease = ended.task.lease;
        match report(shared, &ended.task, ended.attempt) {
            Report::Settle(outcome) => {
                places.push(held.tasks.len());
                settled.push(Settled { lease, outcome });
            }
            Report::GiveBack => given_back.push(lease),
            Report::Nothing => count(&shared.counters.lost, 1),
        }
        leaving[ended.task.lane] += 1;
        held.tasks.push(ended.task);
    }
    if !given_back.is_empty() {
        give_back(shared, &given_back).await;
    }
    if settled.is_empty() {
        return;
    }
    let Some(reply) = settle_until_answered(shared, &settled, &leaving).await else { return };
    let mut lost = reply.lost.iter().copied().peekable();
    for (place, entry) in settled.iter().enumerate() {
        let task = &held.tasks[places[place]];
        let is_lost = lost.next_if_eq(&place).is_some();
        if is_lost && task.finishes_itself() {
            tell(shared, task, &Outcome::Finished);
        } else if is_lost {
            count(&shared.counters.lost, 1);
            log::write(Verbosity::Errors, Some(&task.job), || {
                format!(
                    "the lease of this {} job was lost before its end was stored; another worker has it",
                    task.job.job_type
                )
            });
        } else {
            tell(shared, task, &entry.outcome);
        }
    }
    // Before the places are freed: a job handed on takes the place of the one before it.
    count(&shared.counters.handed_off, reply.next.len());
    shared.accept(reply.next);
}

fn report(shared: &Shared, task: &Task, attempt: Attempt) -> Report {
    let by_operator =
        || Report::Settle(Outcome::Cancelled(Failure::new("cancelled", "cancelled by an operator")));
    if task.started().is_none() {
        return match task.cancelled() {
            Cancel::Lost | Cancel::Stuck => Report::Nothing,
            Cancel::Operator => by_operator(),
            _ => Report::GiveBack,
        };
    }
    let has_failed = !matches!(attempt, Attempt::Finished);
    let attempt = match task.cancelled() {
        // The store has told a beat that the job is over: its transaction has committed.
        Cancel::Lost if task.finishes_itself() => Attempt::Finished,
        Cancel::Lost => return Report::Nothing,
        Cancel::Stuck => {
            shared.stuck.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            return Report::Nothing;
        }
        Cancel::Stopping | Cancel::Expired if has_failed => return Report::Settle(Outcome::Interrupted),
        Cancel::Operator if has_failed => return by_operator(),
        Cancel::TimedOut => {
            let limit = shared.handlers.get(task.handler).timeout.unwrap_or_default();
            Attempt::Failed(Failure::new("timeout", format!("ran for longer than its timeout of {limit:?}")))
        }
        _ => attempt,
    };
    Report::Settle(outcome(attempt, task, shared.handlers.get(task.handler), &shared.config))
}

/// Tries until the store has answered: the call is guarded by tokens and may be repeated. `None` when it never
/// will, or when the worker has ended; the leases then run out and other workers take over.
async fn settle_until_answered(
    shared: &Shared,
    settled: &[Settled],
    leaving: &[usize],
) -> Option<SettleReply> {
    let mut backoff = StoreBackoff::default();
    loop {
        let types = shared.takes(leaving);
        let next = HandOff { worker: shared.id, types: &types, lease: shared.config.lease() };
        count(&shared.counters.settles, 1);
        match shared.backend.settle(settled, &next).await {
            Ok(reply) => return Some(reply),
            Err(error) if error.is_transient() => {
                let pause = backoff.next();
                shared.store_error("storing how jobs ended", &error, pause);
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shared.ended.cancelled() => return None,
                }
            }
            Err(error) => {
                log::write(Verbosity::Errors, None, || {
                    format!(
                        "the end of {} jobs could not be stored; they will run again: {error}",
                        settled.len()
                    )
                });
                return None;
            }
        }
    }
}

pub(super) async fn give_back(shared: &Shared, leases: &[Lease]) {
    count(&shared.counters.given_back, leases.len());
    let mut backoff = StoreBackoff::default();
    loop {
        match shared.backend.give_back(leases).await {
            Ok(()) => return,
            Err(error) if error.is_transient() => {
                let pause = backoff.next();
                shared.store_error("giving jobs back", &error, pause);
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shared.ended.cancelled() => return,
                }
            }
            Err(error) => {
                log::write(Verbosity::Errors, None, || {
                    format!(
                        "{} jobs could not be given back; others get them when their leases run out: {error}",
                        leases.len()
                    )
                });
                return;
            }
        }
    }
}

fn tell(shared: &Shared, task: &Task, outcome: &Outcome) {
    let job = &task.job;
    match outcome {
        Outcome::Finished => count(&shared.counters.finished, 1),
        Outcome::Retry { after, failure } => {
            count(&shared.counters.retried, 1);
            log::write(Verbosity::Errors, Some(job), || {
                format!(
                    "{} failed on attempt {}, next try in {after:.1?}: {}",
                    job.job_type,
                    job.attempt,
                    full(failure)
                )
            });
        }
        Outcome::Failed(failure) => {
            count(&shared.counters.failed, 1);
            log::write(Verbosity::Errors, Some(job), || {
                format!("{} failed for good on attempt {}: {}", job.job_type, job.attempt, full(failure))
            });
        }
        Outcome::Interrupted => count(&shared.counters.given_back, 1),
        Outcome::Cancelled(failure) => {
            count(&shared.counters.cancelled, 1);
            log::write(Verbosity::Jobs, Some(job), || format!("{} was cancelled: {failure}", job.job_type));
        }
    }
}

fn full(failure: &Failure) -> String {
    match &failure.traceback {
        Some(traceback) => format!("{failure}\n{}", traceback.trim_end()),
        None => failure.to_string(),
    }
}

fn measure(shared: &Shared, batch: &[Ended], last: &mut Instant) {
    let now = Instant::now();
    let elapsed = now - std::mem::replace(last, now);
    for (index, lane) in shared.lanes.iter().enumerate() {
        let (mut jobs, mut ran) = (0, Duration::ZERO);
        for ended in batch.iter().filter(|ended| ended.task.lane == index) {
            jobs += 1;
            ran += ended.ran;
        }
        if jobs > 0 {
            lane.pace.ended(jobs, ran, elapsed);
        }
    }
}
