//! Ended attempts on their way from the executors to the settler.
//!
//! The first one wakes the settler at once. While it is at work nothing has to wake it: what piles up is its
//! next batch. For a moment after a batch it looks again by itself, so that a busy executor pays for a
//! wake-up (a system call and, on one core, a thread switch) once per batch and not once per job. Without this an
//! event loop on one core ended 114,000 jobs/s instead of 205,000; plain handlers did not care.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::retry::Attempt;
use super::task::Task;

/// Most jobs of one settle call.
const BATCH: usize = 1024;
/// This many waiting attempts wake a settler that is about to look by itself.
const WAKE_AT: usize = 256;
/// How long the settler goes on looking by itself: the longest that an ended attempt can lie unseen while its
/// executor is busy with the next one. The resolution of the runtime's timer.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Ended {
    pub task: Arc<Task>,
    pub attempt: Attempt,
    /// `None` when its handler was not called.
    pub run: Option<Run>,
}

/// A handler call, as its executor saw it while the task was at hand: whoever counts it need not touch the task again,
/// which is in no cache by then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub handler: u32,
    /// Nanoseconds.
    pub took: u64,
    /// Nanoseconds since the enqueue; [`NOT_WAITED`](Self::NOT_WAITED) where something else than a worker was waited for.
    pub waited: u64,
}

impl Run {
    pub const NOT_WAITED: u64 = u64::MAX;
}

#[derive(Debug)]
pub(super) struct Outbox {
    /// Of more than so many, a batch has a multiple, because the store is paid by the call.
    unit: usize,
    ended: Mutex<Vec<Ended>>,
    is_asleep: AtomicBool,
    wake: Notify,
}

impl Outbox {
    pub fn new(unit: Option<usize>) -> Self {
        let (ended, is_asleep, wake) = (Mutex::default(), AtomicBool::default(), Notify::new());
        Self { unit: unit.unwrap_or(1), ended, is_asleep, wake }
    }

    pub fn push(&self, ended: Ended) {
        let waiting = {
            let mut all = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(ended);
            all.len()
        };
        // SeqCst pairs with `take`: either this sees the sleeper, or the sleeper sees the push.
        if waiting == WAKE_AT || (waiting == 1 && self.is_asleep.load(Ordering::SeqCst)) {
            self.wake.notify_one();
        }
    }

    /// An executor has nothing left to do: no reason to let ended attempts lie.
    pub fn flush(&self) {
        if !self.ended.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            self.wake.notify_one();
        }
    }

    /// The next batch, at least one. Safe to drop while it waits.
    pub async fn take(&self) -> Vec<Ended> {
        let mut looked_again = false;
        loop {
            let batch = self.take_now();
            if !batch.is_empty() {
                return batch;
            }
            if looked_again {
                self.is_asleep.store(true, Ordering::SeqCst);
                let missed = self.take_now();
                if missed.is_empty() {
                    self.wake.notified().await;
                }
                self.is_asleep.store(false, Ordering::SeqCst);
                if !missed.is_empty() {
                    return missed;
                }
            } else {
                let _ = tokio::time::timeout(LOOK_AGAIN, self.wake.notified()).await;
                looked_again = true;
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn take_now(&self) -> Vec<Ended> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let most = ended.len().min(BATCH);
        let most = if most > self.unit { most - most % self.unit } else { most };
        // The rest is not late: it goes with what ends while this batch is stored.
        if most == ended.len() { std::mem::take(&mut *ended) } else { ended.drain(..most).collect() }
    }
}
