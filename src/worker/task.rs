//! A job in the hands of this worker, queued or running, and the set of all of them.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::outbox::Run;
use crate::backend::{Lease, Leased};
use crate::job::Job;

/// Why a handler should return soon. The first reason wins and stays, with three exceptions: a beat that gets
/// through after all takes `Expired` back, and `Stuck` and `Lost`, with which the job is over, replace others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cancel {
    /// Go on.
    No = 0,
    /// No beat got through for a whole lease: another worker may have the job. Its end is still reported.
    Expired = 1,
    /// An operator asked for it.
    Operator = 2,
    /// `max_beats` are used up; the job is final already.
    Stuck = 3,
    /// The handler's `timeout` is over.
    TimedOut = 4,
    /// `stop()` has waited long enough.
    Stopping = 5,
    /// The store says that the lease is another worker's, or that the job is final.
    Lost = 6,
}

impl Cancel {
    const ALL: [Self; 7] =
        [Self::No, Self::Expired, Self::Operator, Self::Stuck, Self::TimedOut, Self::Stopping, Self::Lost];
}

/// Set beside the reason when the attempt has ended: from then on nothing is told to it.
const ENDED: u8 = 0x80;

/// Not started / no slot.
const NONE: u32 = u32::MAX;

/// A job in hand.
#[derive(Debug)]
pub struct Task {
    /// What to run.
    pub job: Job,
    /// The right to run it.
    pub lease: Lease,
    /// Index of its handler.
    pub handler: u32,
    /// Index of its lane.
    pub lane: usize,
    cancel: AtomicU8,
    beats: AtomicU32,
    slot: AtomicU32,
    /// Nanoseconds since the worker's epoch; 0 while queued.
    started: AtomicU64,
    /// Nanoseconds since the worker's epoch.
    lease_until: AtomicU64,
    /// The same, for what waits for nothing but a worker: first attempts of first jobs of chains. Earlier than the
    /// epoch if the worker is younger than the job.
    enqueued: i64,
    finishes_itself: AtomicBool,
}

impl Task {
    const WAITS_FOR_MORE: i64 = i64::MIN;

    /// A queued task whose lease ends at `lease_until`. The worker's clock began at `epoch`.
    pub(super) fn new(leased: Leased, handler: u32, lane: usize, lease_until: u64, epoch: u64) -> Self {
        let job = &leased.job;
        let enqueued = if job.attempt == 1 && job.chain.position == 1 {
            since_1970(job.enqueued_at) as i64 - epoch as i64
        } else {
            Self::WAITS_FOR_MORE
        };
        let lease = Lease { id: leased.job.id, token: leased.token };
        Self {
            job: leased.job,
            lease,
            handler,
            lane,
            cancel: AtomicU8::new(0),
            beats: AtomicU32::new(0),
            slot: AtomicU32::new(NONE),
            started: AtomicU64::new(0),
            lease_until: AtomicU64::new(lease_until),
            enqueued,
            finishes_itself: AtomicBool::new(false),
        }
    }

    /// Should the handler return soon, and why?
    pub fn cancelled(&self) -> Cancel {
        Cancel::ALL[(self.cancel.load(Ordering::Relaxed) & !ENDED) as usize]
    }

    /// Tells the handler to return soon. False when it has returned already, or was told something that counts
    /// as much.
    pub(super) fn cancel(&self, reason: Cancel) -> bool {
        let set = |old: u8| {
            let replaces = match reason {
                Cancel::Lost => old < Cancel::Lost as u8,
                Cancel::Stuck => old < Cancel::Lost as u8 && old != Cancel::Stuck as u8,
                _ => old == Cancel::No as u8,
            };
            replaces.then_some(reason as u8)
        };
        self.cancel.fetch_update(Ordering::Relaxed, Ordering::Relaxed, set).is_ok()
    }

    /// The handler has asked the store, in a transaction of its own, to finish the job.
    pub fn finish_in_transaction(&self) {
        self.finishes_itself.store(true, Ordering::Relaxed);
    }

    pub(super) fn finishes_itself(&self) -> bool {
        self.finishes_itself.load(Ordering::Relaxed)
    }

    /// The handler has returned; only its report is still on its way.
    pub(super) fn end(&self) {
        self.cancel.fetch_or(ENDED, Ordering::Relaxed);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) & ENDED != 0
    }

    /// A beat got through after all.
    pub(super) fn revive(&self, lease_until: u64) {
        self.lease_until.store(lease_until, Ordering::Relaxed);
        let expired = Cancel::Expired as u8;
        let _ = self.cancel.compare_exchange(expired, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(super) fn start(&self, now: u64) {
        self.started.store(now.max(1), Ordering::Relaxed);
    }

    /// When it started; `None` while queued.
    pub(super) fn started(&self) -> Option<u64> {
        Some(self.started.load(Ordering::Relaxed)).filter(|&started| started > 0)
    }

    /// Its handler has returned; what is to be said about the call.
    #[inline]
    pub(super) fn run(&self, now: u64) -> Option<Run> {
        let started = self.started()?;
        let waited = match self.enqueued {
            Self::WAITS_FOR_MORE => Run::NOT_WAITED,
            // The store's clock may be ahead of ours.
            enqueued => (started as i64 - enqueued).max(0) as u64,
        };
        Some(Run { handler: self.handler, took: now.saturating_sub(started), waited })
    }

    pub(super) fn lease_until(&self) -> u64 {
        self.lease_until.load(Ordering::Relaxed)
    }

    /// Counts a beat of a running task.
    pub(super) fn count_beat(&self) -> u32 {
        self.beats.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Nanoseconds, which fit until 2554.
fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// The worker's own time: nanoseconds since it started, in one machine word.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    epoch: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { epoch: Instant::now() }
    }

    pub fn now(self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// When it began, in nanoseconds since 1970, by what the clock on the wall says now.
    pub fn epoch(self) -> u64 {
        since_1970(SystemTime::now()).saturating_sub(self.now())
    }

    pub fn at(self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.epoch).as_nanos() as u64
    }

    pub fn after(self, duration: Duration) -> u64 {
        self.now().saturating_add(duration.as_nanos() as u64)
    }
}

/// Every task in hand, for those who look at all of them: beats, timeouts, stop. One lock per batch.
#[derive(Debug, Default)]
pub(super) struct InHand {
    slab: Mutex<Slab>,
}

#[derive(Debug, Default)]
struct Slab {
    slots: Vec<Option<Arc<Task>>>,
    free: Vec<u32>,
}

impl InHand {
    pub fn insert(&self, tasks: &[Arc<Task>]) {
        let mut slab = self.slab.lock().unwrap_or_else(PoisonError::into_inner);
        for task in tasks {
            let slot = slab.free.pop().unwrap_or_else(|| {
                slab.slots.push(None);
                slab.slots.len() as u32 - 1
            });
            task.slot.store(slot, Ordering::Relaxed);
            slab.slots[slot as usize] = Some(Arc::clone(task));
        }
    }

    /// Takes tasks out; those that are out already are ignored.
    pub fn remove<'a>(&self, tasks: impl IntoIterator<Item = &'a Arc<Task>>) {
        let mut slab = self.slab.lock().unwrap_or_else(PoisonError::into_inner);
        for task in tasks {
            let slot = task.slot.swap(NONE, Ordering::Relaxed);
            if slot != NONE {
                slab.slots[slot as usize] = None;
                slab.free.push(slot);
            }
        }
    }

    pub fn all(&self) -> Vec<Arc<Task>> {
        let slab = self.slab.lock().unwrap_or_else(PoisonError::into_inner);
        slab.slots.iter().flatten().cloned().collect()
    }

    /// How many of them run, by lane.
    pub fn running(&self, lanes: usize) -> Vec<usize> {
        let mut running = vec![0; lanes];
        let slab = self.slab.lock().unwrap_or_else(PoisonError::into_inner);
        for task in slab.slots.iter().flatten().filter(|task| task.started().is_some() && !task.has_ended()) {
            running[task.lane] += 1;
        }
        running
    }

    pub fn len(&self) -> usize {
        let slab = self.slab.lock().unwrap_or_else(PoisonError::into_inner);
        slab.slots.len() - slab.free.len()
    }
}
