//! The heartbeat: one timer per worker, one call for every lease in hand, queued and running. Needs nothing
//! that a handler could hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::time::{MissedTickBehavior, interval_at};

use super::counters::count;
use super::task::{Cancel, Task};
use super::{Shared, WorkerConfig};
use crate::backend::{HandOff, Lease, Outcome, Revocation, Settled};
use crate::job::Failure;
use crate::log::{self, Verbosity};

/// A beat that failed is repeated after this share of the interval: several tries fit into a lease.
const RETRIES_PER_BEAT: u32 = 5;
/// Timeouts are seen this many times more often than the shortest of them.
const LOOKS_PER_TIMEOUT: u32 = 20;

pub(super) async fn run(shared: Arc<Shared>) {
    tokio::join!(keep(&shared), watch_timeouts(&shared));
}

async fn keep(shared: &Shared) {
    let every = shared.config.heartbeat;
    let mut next = tokio::time::Instant::now() + every;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = shared.ended.cancelled() => return,
        }
        let pause = if beat(shared).await { every } else { every / RETRIES_PER_BEAT };
        next = tokio::time::Instant::now() + pause;
    }
}

/// How the beats of this worker get through. A worker that missed one itself takes no other for dead: the store may have been
/// away for all of them, and each gets a lease to come back in.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// When the last beat that got through was sent.
    last: AtomicU64,
    /// Until then nobody is rescued.
    hold: AtomicU64,
}

impl Pulse {
    fn beat(&self, sent: u64, config: &WorkerConfig) {
        let last = self.last.swap(sent, Ordering::Relaxed);
        // Once per lease: a store that is always slow must not keep lost jobs for ever.
        if sent - last > Self::missed_one(config) && self.hold.load(Ordering::Relaxed) <= sent {
            self.hold.store(sent + config.lease().as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// For how long the next beat to get through has been overdue.
    pub fn lateness(&self, now: u64, config: &WorkerConfig) -> Duration {
        Duration::from_nanos(now.saturating_sub(self.last.load(Ordering::Relaxed)))
            .saturating_sub(config.heartbeat)
    }

    /// May this worker judge others?
    pub fn is_steady(&self, now: u64, config: &WorkerConfig) -> bool {
        let last = self.last.load(Ordering::Relaxed);
        now >= self.hold.load(Ordering::Relaxed) && now.saturating_sub(last) <= Self::missed_one(config)
    }

    fn missed_one(config: &WorkerConfig) -> u64 {
        2 * config.heartbeat.as_nanos() as u64
    }
}

/// One beat; false when the store did not answer.
async fn beat(shared: &Shared) -> bool {
    let tasks: Vec<Arc<Task>> =
        shared.in_hand.all().into_iter().filter(|task| task.cancelled() != Cancel::Lost).collect();
    let leases: Vec<Lease> = tasks.iter().map(|task| task.lease).collect();
    // The store counts from when it acts, which is later: our own idea of the end is the earlier one.
    let sent = shared.clock.now();
    let until = shared.clock.after(shared.config.lease());
    let again = shared.config.heartbeat / RETRIES_PER_BEAT;
    let mut extend = shared.backend.extend(shared.id, &leases, shared.config.lease());
    let answer = loop {
        tokio::select! {
            answer = &mut extend => break answer,
            () = tokio::time::sleep(again) => expire(shared),
        }
    };
    let revoked = match answer {
        Ok(revoked) => revoked,
        Err(error) => {
            shared.store_error("the heartbeat", &error, again);
            expire(shared);
            return false;
        }
    };
    shared.pulse.beat(sent, &shared.config);
    count(&shared.counters.beats, 1);
    count(&shared.counters.extended, leases.len() - revoked.len());
    log::write(Verbosity::Beats, None, || {
        format!("beat: {} leases, {} revoked", leases.len(), revoked.len())
    });
    let revoked: FxHashMap<Lease, Revocation> = revoked.into_iter().collect();
    let mut stuck = Vec::new();
    // What has ended meanwhile is left alone: its end may have been stored before the beat.
    for task in tasks.into_iter().filter(|task| !task.has_ended()) {
        match revoked.get(&task.lease) {
            // Ended by its own handler's transaction, it is lost as it should be, and its handler may go on in peace.
            Some(Revocation::Lost) if task.finishes_itself() => continue,
            Some(Revocation::Lost) => {
                if cancel(shared, &task, Cancel::Lost) {
                    log::write(Verbosity::Errors, Some(&task.job), || {
                        format!(
                            "the lease of this {} job is no longer ours; its handler is told to return",
                            task.job.job_type
                        )
                    });
                }
                continue;
            }
            Some(Revocation::Cancel) => {
                cancel(shared, &task, Cancel::Operator);
            }
            None => {}
        }
        task.revive(until);
        let beats = if task.started().is_some() { task.count_beat() } else { 0 };
        if shared.config.max_beats.is_some_and(|most| beats > most) {
            stuck.push(task);
        }
    }
    if !stuck.is_empty() {
        give_up(shared, stuck).await;
    }
    true
}

/// `max_beats` without an end: the job is cancelled, its lease given up; the handler keeps its slot until it
/// returns, because nothing can end it.
async fn give_up(shared: &Shared, mut stuck: Vec<Arc<Task>>) {
    let most = shared.config.max_beats.unwrap_or_default();
    let failure = Failure::new("stuck", format!("no end after {most} beats (max_beats)"));
    let settled: Vec<Settled> = stuck
        .iter()
        .map(|task| Settled { lease: task.lease, outcome: Outcome::Cancelled(failure.clone()) })
        .collect();
    // The places are still taken, so nothing is handed on to this worker.
    let next = HandOff { worker: shared.id, types: &[], lease: shared.config.lease() };
    match shared.backend.settle(&settled, &next).await {
        Ok(_) => {}
        Err(error) if error.is_transient() => {
            // They keep their leases, and the next beat finds them again.
            shared.store_error("cancelling stuck jobs", &error, shared.config.heartbeat);
            return;
        }
        Err(error) => {
            log::write(Verbosity::Errors, None, || {
                format!("stuck jobs could not be cancelled, they are given back instead: {error}")
            });
            shared.orphans.take_up(&stuck);
        }
    }
    stuck.retain(|task| {
        // Counted before the mark can be seen, because who sees it counts back.
        let lane = &shared.lanes[task.lane];
        lane.stuck.fetch_add(1, Ordering::Relaxed);
        let is_stuck = cancel(shared, task, Cancel::Stuck);
        if is_stuck {
            log::write(Verbosity::Errors, Some(&task.job), || {
                format!(
                    "{} is cancelled: {failure}; its slot stays taken until its handler returns",
                    task.job.job_type
                )
            });
        } else {
            lane.stuck.fetch_sub(1, Ordering::Relaxed);
        }
        is_stuck
    });
    count(&shared.counters.stuck, stuck.len());
    {
        let mut books = shared.tally.books();
        for task in &stuck {
            books.of(task.handler).cancelled += 1;
        }
    }
    shared.in_hand.remove(&stuck);
    shared.emptied.notify_waiters();
}

/// No beat for a whole lease: others may have the jobs by now.
fn expire(shared: &Shared) {
    let now = shared.clock.now();
    for task in shared.in_hand.all().iter().filter(|task| task.lease_until() <= now) {
        cancel(shared, task, Cancel::Expired);
    }
}

async fn watch_timeouts(shared: &Shared) {
    let Some(shortest) = shared.handlers.all().iter().filter_map(|spec| spec.timeout).min() else { return };
    let every = (shortest / LOOKS_PER_TIMEOUT).clamp(Duration::from_millis(10), Duration::from_secs(1));
    let mut ticks = interval_at(tokio::time::Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.ended.cancelled() => return,
        }
        let now = shared.clock.now();
        for task in shared.in_hand.all() {
            let limit = shared.handlers.get(task.handler).timeout;
            let ran = task.started().map(|started| Duration::from_nanos(now.saturating_sub(started)));
            if limit.is_some_and(|limit| ran.is_some_and(|ran| ran > limit))
                && cancel(shared, &task, Cancel::TimedOut)
            {
                log::write(Verbosity::Errors, Some(&task.job), || {
                    format!("{} runs for longer than its timeout; it is told to return", task.job.job_type)
                });
            }
        }
    }
}

/// Tells the handler to return; wakes the event loop so that a coroutine is cancelled now.
pub(super) fn cancel(shared: &Shared, task: &Task, reason: Cancel) -> bool {
    let is_first = task.cancel(reason);
    if is_first {
        let lane = &shared.lanes[task.lane];
        lane.cancels.fetch_add(1, Ordering::Relaxed);
        lane.wake();
    }
    is_first
}
