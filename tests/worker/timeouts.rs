//! A handler's `timeout`: told to return, and the attempt counts as failed.

use std::num::NonZeroU32;
use std::time::Duration;

use dejq::job::State;
use dejq::worker::{Cancel, HandlerSpec};

use crate::faulty::{Call, Fault};
use crate::stage::{Stage, pass, slots, spec};

const LIMIT: Duration = Duration::from_secs(60);

fn timed(name: &str) -> HandlerSpec {
    HandlerSpec { timeout: Some(LIMIT), ..spec(name) }
}

#[tokio::test(start_paused = true)]
async fn a_handler_over_its_time_is_told_and_its_attempt_fails_even_if_it_returns() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([timed("a")], slots(1));
    let task = worker.take().await;
    pass(Duration::from_secs(59)).await;
    assert_eq!(task.cancelled(), Cancel::No);
    pass(Duration::from_secs(3)).await;
    assert_eq!(task.cancelled(), Cancel::TimedOut);
    worker.finish(task);
    stage.until(id, State::Failed).await;
    let failure = stage.info(id).await.failure.unwrap();
    assert_eq!(failure.to_string(), "timeout: ran for longer than its timeout of 60s");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_over_its_time_is_repeated_when_attempts_are_left() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let twice = HandlerSpec { max_attempts: NonZeroU32::new(2), ..timed("a") };
    let worker = stage.start([twice], slots(1));
    let first = worker.take().await;
    pass(LIMIT + Duration::from_secs(2)).await;
    worker.fail(first);
    let second = worker.take().await;
    assert_eq!((second.job.attempt, second.cancelled()), (2, Cancel::No));
    worker.finish(second);
    stage.until(id, State::Finished).await;
    assert_eq!((worker.counted().retried, worker.counted().finished), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_time_in_the_queue_does_not_count() {
    let stage = Stage::new();
    stage.enqueue("a", 2).await;
    let worker = stage.start([timed("a")], slots(2));
    let _first = worker.take().await;
    pass(LIMIT * 2).await;
    let second = worker.take().await;
    pass(LIMIT / 2).await;
    assert_eq!(second.cancelled(), Cancel::No);
}

#[tokio::test(start_paused = true)]
async fn only_the_handler_that_has_a_timeout_is_held_to_it() {
    let stage = Stage::new();
    stage.enqueue_one("patient").await;
    stage.enqueue_one("hasty").await;
    let worker = stage.start([timed("hasty"), spec("patient")], slots(2));
    let (patient, hasty) = (worker.take().await, worker.take().await);
    pass(LIMIT * 10).await;
    assert_eq!((patient.job.job_type.as_str(), patient.cancelled()), ("patient", Cancel::No));
    assert_eq!((hasty.job.job_type.as_str(), hasty.cancelled()), ("hasty", Cancel::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_returned_in_time_does_not_fail_because_the_store_is_late() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    let worker = stage.start([timed("a")], slots(2));
    let (first, second) = (worker.take().await, worker.take().await);
    // The first end is on its way for longer than the timeout; the second one waits behind it.
    stage.store.next(Call::Settle, 1, &Fault::Late(LIMIT * 2));
    worker.finish(first);
    pass(Duration::from_secs(1)).await;
    worker.finish(second);
    stage.until_all(&ids, State::Finished).await;
    assert_eq!((worker.counted().finished, worker.counted().failed), (2, 0));
}
