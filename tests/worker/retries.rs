//! What follows a failed attempt: when, how often, and who decides.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dejq::job::{Failure, NewJob, State};
use dejq::worker::{Attempt, Backoff, HandlerSpec, WorkerConfig};
use tokio::time::Instant;

use crate::executor::failed;
use crate::stage::{Stage, job, slots, spec};

fn attempts(count: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(count)
}

/// 10 s, 30 s, 90 s …, up to 100 s, each ± 20 %.
fn slow_backoff() -> Backoff {
    Backoff { initial: Duration::from_secs(10), factor: 3.0, maximum: Duration::from_secs(100), jitter: 0.2 }
}

fn retry(after: Option<Duration>) -> Attempt {
    Attempt::Retry { after, failure: Failure::new("Retry", "not yet") }
}

#[tokio::test(start_paused = true)]
async fn a_failed_job_runs_again_after_growing_waits_until_its_attempts_are_used_up() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 40).await;
    let handler = HandlerSpec { max_attempts: attempts(5), backoff: Some(slow_backoff()), ..spec("a") };
    let worker = stage.start([handler], slots(40));
    let starts = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&starts);
    worker.serve(move |task| {
        seen.lock().unwrap().push((task.job.id, task.job.attempt, Instant::now()));
        async { failed() }
    });
    stage.until_all(&ids, State::Failed).await;
    let starts = starts.lock().unwrap().clone();
    let mut first_waits = Vec::new();
    for id in &ids {
        let of_job: Vec<_> = starts.iter().filter(|(job, ..)| job == id).collect();
        assert_eq!(of_job.iter().map(|(_, attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let waits: Vec<f64> = of_job.windows(2).map(|pair| (pair[1].2 - pair[0].2).as_secs_f64()).collect();
        for (wait, steady) in waits.iter().zip([10.0, 30.0, 90.0, 100.0]) {
            assert!((wait / steady - 1.0).abs() < 0.21, "waited {wait} s instead of about {steady} s");
        }
        first_waits.push(waits[0]);
    }
    let spread = first_waits.iter().copied().fold(f64::MIN, f64::max)
        - first_waits.iter().copied().fold(f64::MAX, f64::min);
    assert!(spread > 1.0, "40 jobs that failed together came back within {spread} s");
    let info = stage.info(ids[0]).await;
    assert_eq!(info.failure.unwrap().to_string(), "ValueError: a fault of the test");
    assert_eq!((worker.counted().retried, worker.counted().failed), (160, 40));
}

#[tokio::test(start_paused = true)]
async fn a_job_runs_once_unless_somebody_asked_for_more() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    worker.fail(worker.take().await);
    stage.until(id, State::Failed).await;
    assert_eq!(stage.info(id).await.job.attempt, 1);
}

#[tokio::test(start_paused = true)]
async fn the_jobs_own_limit_wins_over_the_handlers_and_that_over_the_workers() {
    let stage = Stage::new();
    let own = NewJob { max_attempts: attempts(2), ..job("limited") };
    let ids = stage.add(&[own, job("limited"), job("plain")]).await;
    let config = WorkerConfig { max_attempts: attempts(4), ..slots(3) };
    let worker =
        stage.start([HandlerSpec { max_attempts: attempts(3), ..spec("limited") }, spec("plain")], config);
    worker.serve(|_| async { failed() });
    stage.until_all(&ids, State::Failed).await;
    for (id, expected) in ids.into_iter().zip([2, 3, 4]) {
        assert_eq!(stage.info(id).await.job.attempt, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn the_handlers_own_backoff_wins_over_the_workers() {
    let stage = Stage::new();
    stage.enqueue_one("patient").await;
    stage.enqueue_one("plain").await;
    let exactly =
        |seconds| Backoff { initial: Duration::from_secs(seconds), jitter: 0.0, ..Backoff::default() };
    let config = WorkerConfig { max_attempts: attempts(2), backoff: exactly(7), ..slots(2) };
    let patient = HandlerSpec { backoff: Some(exactly(70)), ..spec("patient") };
    let worker = stage.start([patient, spec("plain")], config);
    let begin = Instant::now();
    for task in worker.take_all(2).await {
        worker.fail(task);
    }
    for (name, seconds) in [("plain", 7), ("patient", 70)] {
        let task = worker.take().await;
        assert_eq!((task.job.job_type.as_str(), begin.elapsed().as_secs()), (name, seconds));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_may_say_itself_when_it_wants_to_run_again() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let handler = HandlerSpec { max_attempts: attempts(3), ..spec("a") };
    let worker = stage.start([handler], slots(1));
    let begin = Instant::now();
    worker.end(worker.take().await, retry(Some(Duration::from_secs(1234))));
    let second = worker.take().await;
    assert_eq!((second.job.attempt, begin.elapsed().as_secs()), (2, 1234));
    worker.end(second, retry(None));
    let third = worker.take().await;
    let waited = begin.elapsed().as_secs_f64() - 1234.0;
    assert!((1.5..2.5).contains(&waited), "the backoff after attempt 2 is about 2 s, this was {waited} s");
    worker.end(third, retry(Some(Duration::ZERO)));
    stage.until(id, State::Failed).await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_asks_for_it_runs_again_although_failures_are_not_repeated() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    for attempt in 1..=20 {
        let task = worker.take().await;
        assert_eq!(task.job.attempt, attempt);
        worker.end(task, retry(Some(Duration::from_secs(1))));
    }
    worker.fail(worker.take().await);
    stage.until(id, State::Failed).await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_gives_up_fails_its_job_at_once() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([HandlerSpec { max_attempts: attempts(9), ..spec("a") }], slots(1));
    let task = worker.take().await;
    worker.end(task, Attempt::Discarded(Failure::new("Discard", "no such user")));
    stage.until(id, State::Failed).await;
    let info = stage.info(id).await;
    assert_eq!(
        (info.job.attempt, info.failure.unwrap().to_string()),
        (1, "Discard: no such user".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn a_waiting_retry_holds_no_slot() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([HandlerSpec { max_attempts: attempts(2), ..spec("a") }], slots(1));
    worker.end(worker.take().await, retry(Some(Duration::from_secs(600))));
    stage.until(id, State::Scheduled).await;
    let other = stage.enqueue_one("a").await;
    let task = worker.take().await;
    assert_eq!((task.job.id, worker.worker.in_hand()), (other, 1));
}
