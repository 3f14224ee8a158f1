//! How a worker works: every default and every check, in one place.

use std::num::NonZeroU32;
use std::thread::available_parallelism;
use std::time::Duration;

use super::retry::Backoff;
use crate::backend::Options;
use crate::error::{Error, Result};

/// A lease lasts this many beats, so that a lost beat, and the one after it, do no harm.
pub const BEATS_PER_LEASE: u32 = 3;
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(86_400);
/// More threads than this are a slip of the keyboard.
const MOST_WORKERS: usize = 10_000;

/// Settings of a worker, checked.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Plain handlers that run at the same time. Default: the CPUs this process may use.
    pub workers: usize,
    /// `async def` handlers that run at the same time, on one event loop. Default 100.
    pub async_workers: usize,
    /// Time between beats. Default 5 s. The lease lasts three beats.
    pub heartbeat: Duration,
    /// A job that runs for more beats than this is stuck. Default: no limit.
    pub max_beats: Option<u32>,
    /// Runs of a job whose handler fails. Default: one, no redelivery; only a handler that asks for another run
    /// gets it, and without a limit.
    pub max_attempts: Option<NonZeroU32>,
    /// Lost leases after which a job fails as "worker lost". Default 3.
    pub max_rescues: u32,
    /// How long to wait before a retry.
    pub backoff: Backoff,
    /// Handler calls after which the worker takes no more jobs. Default: no limit.
    pub max_jobs: Option<u64>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            workers: available_parallelism().map_or(1, usize::from),
            async_workers: 100,
            heartbeat: Duration::from_secs(5),
            max_beats: None,
            max_attempts: None,
            max_rescues: 3,
            backoff: Backoff::default(),
            max_jobs: None,
        }
    }
}

impl WorkerConfig {
    /// Takes the options a worker knows: `workers`, `async_workers`, `heartbeat` (seconds), `max_beats`,
    /// `max_attempts`, `max_rescues`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) naming the option and what it must be.
    pub fn from_options(options: &mut Options) -> Result<Self> {
        let mut config = Self::default();
        if let Some(workers) = options.take_number("workers", 1)? {
            config.set_workers(workers)?;
        }
        if let Some(workers) = options.take_number("async_workers", 1)? {
            config.async_workers = workers;
        }
        // Below 10 ms the beats themselves would be the load.
        if let Some(heartbeat) = options.take_seconds("heartbeat", Duration::from_millis(10))? {
            config.heartbeat = heartbeat;
        }
        // A lost worker is noticed after three beats, and much longer times run out of the clock's range.
        if config.heartbeat > LONGEST_HEARTBEAT {
            return Err(Error::config(format!(
                "heartbeat={} is too long: a job of a lost worker waits for three beats, so give a day (86400) or less",
                config.heartbeat.as_secs_f64()
            )));
        }
        config.max_beats = options.take_number("max_beats", 1)?;
        config.max_attempts = options.take_number("max_attempts", NonZeroU32::MIN)?;
        if let Some(rescues) = options.take_number("max_rescues", 0)? {
            config.max_rescues = rescues;
        }
        Ok(config)
    }

    /// Sets `workers`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for more than a process should have.
    pub fn set_workers(&mut self, workers: usize) -> Result<()> {
        if workers > MOST_WORKERS {
            return Err(Error::config(format!(
                "workers={workers} is more threads than a process should have; use async def handlers or more processes"
            )));
        }
        self.workers = workers;
        Ok(())
    }

    /// How long a lease lasts without a beat.
    pub fn lease(&self) -> Duration {
        self.heartbeat * BEATS_PER_LEASE
    }
}
