//! What became of attempts, by type. Starts are counted one by one, where they happen; ends a batch at a time, under
//! one lock, by those that store them: a job pays for an addition and not for a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::histogram::{BATCHES, Batches, DURATIONS, Durations};
use super::outbox::Run;
use super::task::Task;

/// What became of the attempts of one type.
#[derive(Debug, Clone)]
pub struct Ends {
    /// Jobs that ended as finished.
    pub finished: u64,
    /// Jobs that ended as failed.
    pub failed: u64,
    /// Attempts that will be repeated.
    pub retried: u64,
    /// Jobs that ended as cancelled.
    pub cancelled: u64,
    /// Attempts whose lease was no longer ours when they ended.
    pub lost: u64,
    /// How long handlers ran, in nanoseconds.
    pub ran: Durations,
    /// Time from the enqueue to the start, in nanoseconds, where nothing but a worker was waited for: first attempts
    /// of first jobs of chains.
    pub waited: Durations,
}

impl Default for Ends {
    fn default() -> Self {
        Self {
            finished: 0,
            failed: 0,
            retried: 0,
            cancelled: 0,
            lost: 0,
            ran: Durations::new(&DURATIONS),
            waited: Durations::new(&DURATIONS),
        }
    }
}

/// What has ended.
#[derive(Debug)]
pub(super) struct Books {
    types: Vec<Ends>,
    /// Attempts that one look into the outbox brought.
    pub batches: Batches,
}

impl Books {
    /// The entry of the type of this handler.
    #[inline]
    pub fn of(&mut self, handler: u32) -> &mut Ends {
        &mut self.types[handler as usize]
    }

    /// A handler call has ended.
    #[inline]
    pub fn ran(&mut self, run: &Run) {
        let ends = self.of(run.handler);
        ends.ran.add(run.took);
        if run.waited != Run::NOT_WAITED {
            ends.waited.add(run.waited);
        }
    }
}

#[derive(Debug)]
pub(super) struct Tally {
    started: Box<[AtomicU64]>,
    books: Mutex<Books>,
}

impl Tally {
    /// For so many handlers.
    pub fn new(handlers: usize) -> Self {
        let books = Books { types: vec![Ends::default(); handlers], batches: Batches::new(&BATCHES) };
        Self { started: (0..handlers).map(|_| AtomicU64::new(0)).collect(), books: Mutex::new(books) }
    }

    /// A handler is about to be called.
    #[inline]
    pub fn start(&self, task: &Task) {
        self.started[task.handler as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// For the time of a batch. Never held across an await.
    pub fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handler calls and ends of each type, by the index of its handler, and the batches.
    pub fn read(&self) -> (Vec<(u64, Ends)>, Batches) {
        let books = self.books();
        let started = self.started.iter().map(|started| started.load(Ordering::Relaxed));
        (started.zip(books.types.iter().cloned()).collect(), books.batches.clone())
    }

    /// The sums over all types.
    pub fn sums(&self) -> Sums {
        let books = self.books();
        let mut sums = Sums {
            started: self.started.iter().map(|started| started.load(Ordering::Relaxed)).sum(),
            ..Sums::default()
        };
        for ends in &books.types {
            sums.finished += ends.finished;
            sums.failed += ends.failed;
            sums.retried += ends.retried;
            sums.cancelled += ends.cancelled;
            sums.lost += ends.lost;
        }
        sums
    }
}

/// Attempts of all types together; the fields of [`Ends`].
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub started: u64,
    pub finished: u64,
    pub failed: u64,
    pub retried: u64,
    pub cancelled: u64,
    pub lost: u64,
}
