//! A lane: the handlers of one flavour, their slots, and the tasks that wait for one.

use std::sync::atomic::{AtomicIsize, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use super::handlers::Flavour;
use super::pace::Pace;
use super::ready::ReadyQueue;
use super::task::Task;
use crate::job::JobType;

/// Called after tasks were added, for an executor that does not wait in `pop`. Must not block.
pub type Waker = Box<dyn Fn() + Send + Sync>;

pub(super) struct Lane {
    pub flavour: Flavour,
    /// What it claims.
    pub types: Vec<JobType>,
    /// Handlers at once.
    pub slots: usize,
    pub ready: ReadyQueue<Arc<Task>>,
    pub pace: Pace,
    /// Queued and running. One batch of hand-offs from another lane may lift it above the limit.
    in_hand: AtomicIsize,
    freed: Notify,
    /// Running tasks that were told to return, so far.
    pub cancels: AtomicU64,
    /// Handlers whose job is over although they have not returned.
    pub stuck: AtomicUsize,
    waker: OnceLock<Waker>,
}

impl Lane {
    pub fn new(flavour: Flavour, types: Vec<JobType>, slots: usize) -> Self {
        Self {
            flavour,
            types,
            slots,
            ready: ReadyQueue::default(),
            pace: Pace::default(),
            in_hand: AtomicIsize::new(0),
            freed: Notify::new(),
            cancels: AtomicU64::new(0),
            stuck: AtomicUsize::new(0),
            waker: OnceLock::new(),
        }
    }

    /// Who to wake when tasks come; the first call counts.
    pub fn set_waker(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    pub fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker();
        }
    }

    /// Queues tasks; each takes a slot or a prefetch place.
    pub fn accept(&self, tasks: Vec<Arc<Task>>) {
        self.in_hand.fetch_add(tasks.len() as isize, Ordering::Relaxed);
        self.ready.push(tasks);
        self.wake();
    }

    /// Frees the places of tasks that are settled or given back.
    pub fn release(&self, places: usize) {
        self.in_hand.fetch_sub(places as isize, Ordering::Relaxed);
        self.freed.notify_one();
    }

    /// May a job be handed on here once `leaving` tasks have left? Twice the prefetch, so that a rate that wavers
    /// does not move chains to other workers.
    pub fn has_room(&self, leaving: usize) -> bool {
        let limit = self.slots + 2 * self.pace.prefetch();
        self.in_hand.load(Ordering::Relaxed) < (limit + leaving) as isize
    }

    /// Waits until enough places are free and returns how many. With prefetch, half of it must be free, so
    /// that claims come in batches.
    pub async fn free_places(&self) -> usize {
        loop {
            let prefetch = self.pace.prefetch();
            let limit = (self.slots + prefetch) as isize;
            let free = limit - self.in_hand.load(Ordering::Relaxed);
            if free > prefetch as isize / 2 {
                return free as usize;
            }
            self.freed.notified().await;
        }
    }
}
