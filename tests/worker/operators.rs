//! What an operator does to a job reaches its handler by the next beat.

use dejq::backend::Backend;
use dejq::job::{OnFailure, State};
use dejq::worker::{Cancel, Flavour};

use crate::faulty::{Call, Fault};
use crate::stage::{BEAT, LEASE, Stage, pass, settle_down, slots, spec};

#[tokio::test(start_paused = true)]
async fn a_cancelled_job_that_raises_is_cancelled_and_its_dependants_run() {
    let stage = Stage::new();
    let ids = stage.chain(&["a", "a"], OnFailure::Continue).await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    stage.store.memory.cancel(ids[0]).await.unwrap();
    assert_eq!(task.cancelled(), Cancel::No);
    pass(BEAT).await;
    assert_eq!(task.cancelled(), Cancel::Operator);
    pass(LEASE * 2).await;
    assert_eq!(stage.state(ids[0]).await, State::Running, "it keeps its lease until its handler returns");
    worker.fail(task);
    stage.until(ids[0], State::Cancelled).await;
    assert_eq!(worker.take().await.job.id, ids[1]);
    assert_eq!((worker.counted().cancelled, worker.counted().failed), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_job_whose_handler_returns_is_finished() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    stage.store.memory.cancel(id).await.unwrap();
    pass(BEAT).await;
    assert_eq!(task.cancelled(), Cancel::Operator);
    worker.finish(task);
    stage.until(id, State::Finished).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_cancelled_while_it_is_queued_never_starts() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    let worker = stage.start([spec("a")], slots(2));
    let running = worker.take().await;
    stage.store.memory.cancel(ids[1]).await.unwrap();
    pass(BEAT).await;
    assert!(worker.take_now().is_none());
    stage.until(ids[1], State::Cancelled).await;
    worker.finish(running);
    stage.until(ids[0], State::Finished).await;
    let counted = worker.counted();
    assert_eq!((counted.started, counted.cancelled, counted.claimed), (1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_cancelled_and_then_given_back_is_cancelled() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    let worker = stage.start([spec("a")], slots(2));
    let running = worker.take().await;
    stage.store.memory.cancel(ids[1]).await.unwrap();
    let stopping = tokio::spawn({
        let worker = worker.clone();
        async move { worker.stop().await }
    });
    settle_down().await;
    assert_eq!(stage.state(ids[1]).await, State::Cancelled);
    worker.finish(running);
    stopping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_finished_by_hand_is_lost_to_its_handler_and_its_dependant_runs_elsewhere() {
    let stage = Stage::new();
    let ids = stage.chain(&["a", "b"], OnFailure::Cancel).await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    stage.store.memory.finish(ids[0]).await.unwrap();
    let other = stage.start([spec("b")], slots(1));
    assert_eq!(other.take().await.job.id, ids[1]);
    pass(BEAT).await;
    assert_eq!(task.cancelled(), Cancel::Lost);
    worker.fail(task);
    settle_down().await;
    assert_eq!(stage.state(ids[0]).await, State::Finished);
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_wakes_an_executor_that_does_not_wait_in_next() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    stage.store.memory.cancel(id).await.unwrap();
    let woken = tokio::spawn({
        let worker = worker.clone();
        async move { worker.woken(Flavour::Sync).await }
    });
    settle_down().await;
    assert!(!woken.is_finished());
    pass(BEAT).await;
    assert!(woken.is_finished());
    assert_eq!(task.cancelled(), Cancel::Operator);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_runs_is_told_although_beats_failed_meanwhile() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    stage.store.memory.cancel(id).await.unwrap();
    stage.store.next(Call::Extend, 2, &Fault::LoseReply);
    pass(BEAT + BEAT / 2).await;
    assert_eq!(task.cancelled(), Cancel::Operator);
    assert_eq!(worker.counted().store_errors, 2);
}
