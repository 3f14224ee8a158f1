//! What happens, in words, on its way to the user's logging.
//!
//! A bounded ring between those who write (any thread, never waiting) and one reader who may be slow. When the
//! reader does not keep up, the oldest records are dropped and counted. Bodies and secrets never come here.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::job::{Job, JobId, JobType};

/// Records kept for a reader that is late.
const CAPACITY: usize = 2048;

/// How loud a record is; the numbers are the verbosity at which it is first seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verbosity {
    /// What went wrong: always seen.
    Errors = 0,
    /// Each enqueue and dequeue, with id and type.
    Jobs = 1,
    /// What the worker does inside.
    Worker = 2,
    /// Each beat.
    Beats = 3,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Record {
    /// How loud.
    pub verbosity: Verbosity,
    /// The text.
    pub message: String,
    /// The job it is about.
    pub job: Option<(JobId, JobType)>,
    /// When it happened.
    pub at: SystemTime,
}

struct Ring {
    records: VecDeque<Record>,
    dropped: u64,
}

static VERBOSITY: AtomicU8 = AtomicU8::new(0);
static RING: Mutex<Ring> = Mutex::new(Ring { records: VecDeque::new(), dropped: 0 });
static WRITTEN: Condvar = Condvar::new();

/// Sets how much is written from now on, in the whole process.
pub fn set_verbosity(verbosity: u8) {
    VERBOSITY.store(verbosity, Ordering::Relaxed);
}

/// Is this loudness wanted? Asked before a text is made.
pub fn wants(verbosity: Verbosity) -> bool {
    verbosity as u8 <= VERBOSITY.load(Ordering::Relaxed)
}

/// Writes a line if its loudness is wanted. `message` is not called otherwise.
pub fn write(verbosity: Verbosity, job: Option<&Job>, message: impl FnOnce() -> String) {
    if wants(verbosity) {
        push(verbosity, job.map(|job| (job.id, job.job_type.clone())), message());
    }
}

/// [`write()`] about a job that is not at hand whole.
pub fn write_about(verbosity: Verbosity, id: JobId, job_type: &JobType, message: impl FnOnce() -> String) {
    if wants(verbosity) {
        push(verbosity, Some((id, job_type.clone())), message());
    }
}

fn push(verbosity: Verbosity, job: Option<(JobId, JobType)>, message: String) {
    let record = Record { verbosity, message, job, at: SystemTime::now() };
    let mut ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
    if ring.records.len() == CAPACITY {
        ring.records.pop_front();
        ring.dropped += 1;
    }
    ring.records.push_back(record);
    WRITTEN.notify_one();
}

/// Waits, at most for `wait`, until there is something to read. Takes nothing, so that readers can agree among
/// themselves on who emits what in which order.
pub fn wait(wait: Duration) {
    let ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = WRITTEN.wait_timeout_while(ring, wait, |ring| ring.records.is_empty());
    drop(waited.unwrap_or_else(PoisonError::into_inner));
}

/// Takes what was written, and how many records were dropped before it.
pub fn read() -> (Vec<Record>, u64) {
    let mut ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
    (ring.records.drain(..).collect(), std::mem::take(&mut ring.dropped))
}

thread_local! {
    /// The ring's lock, while this thread forks.
    static FORKING: RefCell<Option<MutexGuard<'static, Ring>>> = const { RefCell::new(None) };
}

/// Keeps other threads out of the ring while this one forks: in the child they do not exist, and a lock that one
/// of them held would be held for ever.
pub fn before_fork() {
    let ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
    FORKING.set(Some(ring));
}

/// Lets the others in again. In the child, what the parent was about to emit is forgotten first.
pub fn after_fork(is_child: bool) {
    if let Some(mut ring) = FORKING.take()
        && is_child
    {
        ring.records.clear();
        ring.dropped = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_reader_loses_the_oldest_and_is_told_how_many() {
        set_verbosity(0);
        write(Verbosity::Jobs, None, || unreachable!("not wanted"));
        for number in 0..CAPACITY + 5 {
            write(Verbosity::Errors, None, || number.to_string());
        }
        wait(Duration::from_secs(60)); // returns at once: there is something
        let (records, dropped) = read();
        assert_eq!((records.len(), dropped), (CAPACITY, 5));
        assert_eq!(records[0].message, "5");
        assert_eq!((read().0.len(), read().1), (0, 0));
    }
}
