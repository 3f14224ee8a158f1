//! `max_beats`: a handler without end loses its job, keeps its slot, and holds nobody up.

use dejq::job::{OnFailure, State};
use dejq::worker::{Cancel, WorkerConfig};

use crate::faulty::{Call, Fault, Gate};
use crate::logbook;
use crate::stage::{BEAT, LEASE, Stage, pass, settle_down, slots, spec, within};

fn three_beats(count: usize) -> WorkerConfig {
    WorkerConfig { max_beats: Some(3), ..slots(count) }
}

#[tokio::test(start_paused = true)]
async fn a_handler_without_end_loses_its_job_and_its_dependants_run() {
    let stage = Stage::new();
    let ids = stage.chain(&["a", "a"], OnFailure::Continue).await;
    let worker = stage.start([spec("a")], three_beats(2));
    let stuck = worker.take().await;
    pass(BEAT * 3 + BEAT / 2).await;
    assert_eq!(stuck.cancelled(), Cancel::No, "three beats are allowed");
    pass(BEAT).await;
    assert_eq!(stuck.cancelled(), Cancel::Stuck);
    let info = stage.info(ids[0]).await;
    assert_eq!(info.state, State::Cancelled);
    assert_eq!(info.failure.unwrap().to_string(), "stuck: no end after 3 beats (max_beats)");
    let dependant = worker.take().await;
    assert_eq!(dependant.job.id, ids[1]);
    worker.finish(dependant);
    stage.until(ids[1], State::Finished).await;
    let counted = worker.counted();
    assert_eq!((counted.stuck, counted.cancelled, counted.finished), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_dependants_of_a_stuck_job_are_cancelled_when_its_chain_says_so() {
    let stage = Stage::new();
    let ids = stage.chain(&["a", "a", "a"], OnFailure::Cancel).await;
    let worker = stage.start([spec("a")], three_beats(2));
    let _stuck = worker.take().await;
    stage.until_all(&ids, State::Cancelled).await;
}

#[tokio::test(start_paused = true)]
async fn a_stuck_handler_keeps_its_slot_until_it_returns() {
    let stage = Stage::new();
    let stuck_id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], three_beats(1));
    let stuck = worker.take().await;
    stage.until(stuck_id, State::Cancelled).await;
    let waiting = stage.enqueue_one("a").await;
    pass(LEASE * 10).await;
    assert!(worker.take_now().is_none());
    assert_eq!((stage.state(waiting).await, worker.worker.in_hand()), (State::Ready, 0));
    worker.finish(stuck);
    let task = worker.take().await;
    assert_eq!(task.job.id, waiting);
}

#[tokio::test(start_paused = true)]
async fn the_late_end_of_a_stuck_handler_changes_nothing() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], three_beats(1));
    let stuck = worker.take().await;
    stage.until(id, State::Cancelled).await;
    let settles = stage.store.count(Call::Settle);
    worker.finish(stuck);
    settle_down().await;
    assert_eq!((stage.state(id).await, stage.store.count(Call::Settle)), (State::Cancelled, settles));
    assert_eq!((worker.counted().finished, worker.counted().lost), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn beats_of_a_queued_job_do_not_count() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    let worker = stage.start([spec("a")], three_beats(2));
    let _stuck = worker.take().await;
    stage.until(ids[0], State::Cancelled).await;
    pass(BEAT * 10).await;
    let task = worker.take().await;
    pass(BEAT * 2).await;
    assert_eq!(task.cancelled(), Cancel::No);
    worker.finish(task);
    stage.until(ids[1], State::Finished).await;
}

#[tokio::test(start_paused = true)]
async fn stop_does_not_wait_for_a_stuck_handler_and_counts_it_as_abandoned() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], three_beats(1));
    let _stuck = worker.take().await;
    stage.until(id, State::Cancelled).await;
    let report = worker.stop().await;
    assert_eq!((report.abandoned, report.forced), (1, false));
    assert_eq!(stage.store.count(Call::Leave), 0, "a handler still runs, so the worker has not left");
}

#[tokio::test(start_paused = true)]
async fn a_stuck_handler_that_has_returned_is_not_abandoned() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], three_beats(1));
    let stuck = worker.take().await;
    stage.until(id, State::Cancelled).await;
    worker.finish(stuck);
    settle_down().await;
    assert_eq!(worker.stop().await.abandoned, 0);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_ignored_its_timeout_is_stuck_in_the_end() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let timed = dejq::worker::HandlerSpec { timeout: Some(BEAT), ..spec("a") };
    let worker = stage.start([timed], three_beats(1));
    let task = worker.take().await;
    pass(BEAT * 2).await;
    assert_eq!(task.cancelled(), Cancel::TimedOut);
    pass(BEAT * 3).await;
    assert_eq!(task.cancelled(), Cancel::Stuck);
    assert_eq!((stage.state(id).await, worker.counted().stuck), (State::Cancelled, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stuck_job_is_cancelled_although_the_store_fails_at_first() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], three_beats(1));
    stage.store.next(Call::Settle, 2, &Fault::Fail);
    let stuck = worker.take().await;
    within("the store's answer", stage.store.arrived(Call::Settle, 3)).await;
    stage.until(id, State::Cancelled).await;
    pass(LEASE * 3).await;
    let info = stage.info(id).await;
    assert_eq!((info.state, info.rescues), (State::Cancelled, 0), "it did not run again");
    assert_eq!((stuck.cancelled(), worker.counted().stuck), (Cancel::Stuck, 1));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_returns_during_its_last_beat_is_not_stuck() {
    logbook::open();
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], three_beats(1));
    let task = worker.take().await;
    pass(BEAT * 3 + BEAT / 2).await;
    let gate = Gate::default();
    stage.store.next(Call::Extend, 1, &Fault::HoldReply(gate.clone()));
    within("the last beat", stage.store.arrived(Call::Extend, 4)).await;
    worker.finish(task);
    stage.until(id, State::Finished).await;
    gate.open();
    settle_down().await;
    assert_eq!((worker.counted().stuck, worker.counted().cancelled), (0, 0));
    assert_eq!(worker.stop().await.abandoned, 0);
    assert_eq!(logbook::about(id), [""; 0]);
}
