//! What a failed attempt leads to. Pure functions: the worker decides, the backends carry it out.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{HandlerSpec, Task, WorkerConfig};
use crate::backend::Outcome;
use crate::job::Failure;

/// How one call of a handler ended, as its executor saw it.
#[derive(Debug)]
pub enum Attempt {
    /// It returned.
    Finished,
    /// It raised.
    Failed(Failure),
    /// It asked to be run again, after a time of its choice or of the backoff's.
    Retry {
        /// `None`: as the backoff says.
        after: Option<Duration>,
        /// Why.
        failure: Failure,
    },
    /// It gave up for good.
    Discarded(Failure),
}

/// Waits between attempts: `initial`, then `factor` times as long each time, up to `maximum`; each varied at
/// random by ± `jitter` (a share of it), so that jobs that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// Before the second attempt.
    pub initial: Duration,
    /// At least 1.
    pub factor: f64,
    /// The longest wait, before jitter.
    pub maximum: Duration,
    /// 0 to 1.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), factor: 2.0, maximum: Duration::from_secs(3600), jitter: 0.2 }
    }
}

impl Backoff {
    /// The wait after attempt number `attempt` (from 1) failed. `random` is in 0..1.
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let exponent = attempt.saturating_sub(1).min(1_000) as i32;
        let steady =
            (self.initial.as_secs_f64() * self.factor.powi(exponent)).min(self.maximum.as_secs_f64());
        let varied = steady * (1.0 + self.jitter * (2.0 * random - 1.0));
        Duration::try_from_secs_f64(varied).unwrap_or(self.maximum)
    }
}

/// The outcome to store after an attempt of a task: the nearest limit counts, of the job, its handler, the worker.
pub fn outcome(ended: Attempt, task: &Task, handler: &HandlerSpec, config: &WorkerConfig) -> Outcome {
    let job = &task.job;
    let ended = match ended {
        // Stored only when the job is still there, which shows that the transaction has come to nothing.
        Attempt::Finished if task.finishes_itself() => Attempt::Failed(Failure::new(
            "not committed",
            "job.finish(connection=…) was called, and its transaction was not committed when the handler returned",
        )),
        ended => ended,
    };
    let chosen = job.max_attempts.or(handler.max_attempts).or(config.max_attempts);
    let limit = match (chosen, job.last_attempt) {
        // A store that grants only so many attempts is the limit where none was set, and where it grants fewer.
        (Some(chosen), Some(granted)) => Some(chosen.min(granted)),
        (chosen, granted) => chosen.or(granted),
    };
    let backoff = handler.backoff.as_ref().unwrap_or(&config.backoff);
    decide(ended, job.attempt, limit, backoff, fastrand::f64())
}

/// Without a limit a failure is final, as if it were 1, but a handler that asks for another run gets it. A limit
/// that was set holds for the handler's own wish too, so that it ends some day.
fn decide(
    ended: Attempt,
    attempt: u32,
    limit: Option<NonZeroU32>,
    backoff: &Backoff,
    random: f64,
) -> Outcome {
    let is_allowed = |unlimited| limit.map_or(unlimited, |most| attempt < most.get());
    match ended {
        Attempt::Finished => Outcome::Finished,
        Attempt::Retry { after, failure } if is_allowed(true) => {
            Outcome::Retry { after: after.unwrap_or_else(|| backoff.delay(attempt, random)), failure }
        }
        Attempt::Failed(failure) if is_allowed(false) => {
            Outcome::Retry { after: backoff.delay(attempt, random), failure }
        }
        Attempt::Failed(failure) | Attempt::Discarded(failure) | Attempt::Retry { failure, .. } => {
            Outcome::Failed(failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Failure {
        Failure::new("ValueError", "no")
    }

    #[test]
    fn waits_double_up_to_the_maximum_and_vary_by_the_jitter() {
        let backoff = Backoff { maximum: Duration::from_secs(10), ..Backoff::default() };
        let seconds = |attempt, random| backoff.delay(attempt, random).as_secs_f64();
        assert!((seconds(1, 0.5) - 1.0).abs() < 1e-9);
        assert!((seconds(3, 0.5) - 4.0).abs() < 1e-9);
        assert!((seconds(30, 0.5) - 10.0).abs() < 1e-9);
        assert!((seconds(u32::MAX, 0.0) - 8.0).abs() < 1e-9);
        assert!((seconds(1, 1.0) - 1.2).abs() < 1e-9);
    }

    #[test]
    fn a_failure_is_retried_until_the_attempts_are_used_up() {
        let three = NonZeroU32::new(3);
        let backoff = Backoff::default();
        let after = |attempt| decide(Attempt::Failed(failure()), attempt, three, &backoff, 0.5);
        assert!(matches!(after(2), Outcome::Retry { .. }));
        assert_eq!(after(3), Outcome::Failed(failure()));
        let unlimited = decide(Attempt::Failed(failure()), 1, None, &backoff, 0.5);
        assert_eq!(unlimited, Outcome::Failed(failure()));
    }

    #[test]
    fn a_handler_may_choose_its_wait_or_give_up() {
        let three = NonZeroU32::new(3);
        let backoff = Backoff::default();
        let wait = Some(Duration::from_secs(30));
        let retry = || Attempt::Retry { after: wait, failure: failure() };
        let asked = decide(retry(), 1, three, &backoff, 0.5);
        assert!(matches!(asked, Outcome::Retry { after, .. } if Some(after) == wait));
        assert_eq!(decide(retry(), 3, three, &backoff, 0.5), Outcome::Failed(failure()));
        assert_eq!(decide(retry(), 1, NonZeroU32::new(1), &backoff, 0.5), Outcome::Failed(failure()));
        assert!(matches!(decide(retry(), 1_000, None, &backoff, 0.5), Outcome::Retry { .. }));
        assert_eq!(
            decide(Attempt::Discarded(failure()), 1, three, &backoff, 0.5),
            Outcome::Failed(failure())
        );
    }
}
