//! How many jobs to hold beyond the slots, so that a fast handler never waits for the store and a slow one
//! never hides jobs from another worker.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Above this mean run time nothing is prefetched: a claim is short beside it.
const SLOW_HANDLER: Duration = Duration::from_millis(50);
/// Prefetch covers two claim round trips and this much: the time a busy machine may take to switch threads.
const SWITCHING: Duration = Duration::from_millis(2);
/// Never more than this, whatever the rate.
const MOST: f64 = 4096.0;
/// Weight of the newest measurement.
const WEIGHT: f64 = 0.3;

/// Measured rate, run time and claim time of a lane.
#[derive(Debug, Default)]
pub(super) struct Pace {
    measured: Mutex<Measured>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Measured {
    jobs_per_second: f64,
    run_seconds: f64,
    claim_seconds: f64,
}

impl Pace {
    /// A claim took this long, not counting the time it waited for a job.
    pub fn claimed(&self, took: Duration) {
        self.update(|measured| blend(&mut measured.claim_seconds, took.as_secs_f64()));
    }

    /// `jobs` ended within `elapsed`, having run for `ran` in total.
    pub fn ended(&self, jobs: usize, ran: Duration, elapsed: Duration) {
        let jobs = jobs as f64;
        self.update(|measured| {
            blend(&mut measured.jobs_per_second, jobs / elapsed.as_secs_f64().max(1e-6));
            blend(&mut measured.run_seconds, ran.as_secs_f64() / jobs);
        });
    }

    /// Jobs to hold beyond the slots.
    pub fn prefetch(&self) -> usize {
        let measured = *self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if measured.run_seconds > SLOW_HANDLER.as_secs_f64() {
            return 0;
        }
        let covered = 2.0 * measured.claim_seconds + SWITCHING.as_secs_f64();
        (measured.jobs_per_second * covered).min(MOST) as usize
    }

    fn update(&self, change: impl FnOnce(&mut Measured)) {
        change(&mut self.measured.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Moves a running mean; the first measurement stands for itself.
fn blend(mean: &mut f64, new: f64) {
    *mean = if *mean == 0.0 { new } else { *mean + WEIGHT * (new - *mean) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_handler_gets_work_for_two_round_trips_and_a_slow_one_nothing() {
        let pace = Pace::default();
        assert_eq!(pace.prefetch(), 0);
        pace.claimed(Duration::from_millis(1));
        pace.ended(100, Duration::from_millis(1), Duration::from_millis(1));
        assert_eq!(pace.prefetch(), 400); // 100,000/s for 2 × 1 ms + 2 ms
        for _ in 0..20 {
            pace.ended(1, Duration::from_millis(100), Duration::from_millis(100));
        }
        assert_eq!(pace.prefetch(), 0);
    }
}
