//! What happens, in words, on its way to the user's logging.
//!
//! A bounded ring between those who write (any thread, never waiting) and one reader who may be slow. When the
//! reader does not keep up, the oldest records are dropped and counted. Bodies and secrets never come here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
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
    pub job: Option<About>,
    /// When it happened.
    pub at: SystemTime,
}

/// What tells jobs apart in a log.
#[derive(Debug, Clone)]
pub struct About {
    /// The job.
    pub id: JobId,
    /// Its type.
    pub job_type: JobType,
    /// The chain it belongs to.
    pub chain: JobId,
    /// 0 before the first.
    pub attempt: u32,
}

impl From<&Job> for About {
    fn from(job: &Job) -> Self {
        Self { id: job.id, job_type: job.job_type.clone(), chain: job.chain.id, attempt: job.attempt }
    }
}

struct Ring {
    kept: Mutex<Kept>,
    written: Condvar,
    /// The ring of a forked child. In the parent's, another thread may have held the lock at the moment of the
    /// fork, and in the child it would be held for ever. Nor can the lock be held across the fork, which runs
    /// hooks in Python that wait for other threads, and these may want to write.
    next: OnceLock<Box<Ring>>,
}

struct Kept {
    records: VecDeque<Record>,
    dropped: u64,
}

impl Ring {
    const fn new() -> Self {
        let kept = Kept { records: VecDeque::new(), dropped: 0 };
        Self { kept: Mutex::new(kept), written: Condvar::new(), next: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

static VERBOSITY: AtomicU8 = AtomicU8::new(0);
static FIRST: Ring = Ring::new();
/// Forks from the process with the first ring down to this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

fn ring() -> &'static Ring {
    (0..FORKS.load(Ordering::Relaxed)).fold(&FIRST, |ring, _| ring.next.get_or_init(|| Box::new(Ring::new())))
}

/// In a forked child, before anything is written there. What the parent has written is the parent's to emit.
pub fn after_fork_in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    ring();
}

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
        push(verbosity, job.map(About::from), message());
    }
}

/// [`write()`] about a job that is not at hand whole; for those who have asked whether it is wanted.
pub fn write_about(verbosity: Verbosity, job: About, message: String) {
    push(verbosity, Some(job), message);
}

fn push(verbosity: Verbosity, job: Option<About>, message: String) {
    let record = Record { verbosity, message, job, at: SystemTime::now() };
    let ring = ring();
    let mut kept = ring.lock();
    if kept.records.len() == CAPACITY {
        kept.records.pop_front();
        kept.dropped += 1;
    }
    kept.records.push_back(record);
    ring.written.notify_one();
}

/// Waits, at most for `wait`, until there is something to read. Takes nothing, so that readers can agree among
/// themselves on who emits what in which order.
pub fn wait(wait: Duration) {
    let ring = ring();
    let waited = ring.written.wait_timeout_while(ring.lock(), wait, |kept| kept.records.is_empty());
    drop(waited.unwrap_or_else(PoisonError::into_inner));
}

/// Takes what was written, and how many records were dropped before it.
pub fn read() -> (Vec<Record>, u64) {
    let mut kept = ring().lock();
    (kept.records.drain(..).collect(), std::mem::take(&mut kept.dropped))
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
