//! What a worker shows of itself: ends and lengths of time by type, slots, and how late its beats are.

use std::num::NonZeroU32;
use std::time::Duration;

use dejq::backend::Backend;
use dejq::job::{OnFailure, State};
use dejq::worker::{Ends, Flavour, HandlerSpec, WorkerConfig};

use crate::executor::Executor;
use crate::faulty::{Call, Fault};
use crate::stage::{BEAT, LEASE, Stage, async_spec, pass, settle_down, slots, somebody, spec};

fn of(worker: &Executor, name: &str) -> (u64, Ends) {
    let observed = worker.worker.observe();
    let of = observed.types.into_iter().find(|(job_type, ..)| job_type.as_str() == name);
    let (_, started, ends) = of.unwrap();
    (started, ends)
}

#[tokio::test(start_paused = true)]
async fn ends_and_run_times_are_kept_apart_by_type() {
    let stage = Stage::new();
    stage.enqueue("quick", 2).await;
    stage.enqueue("slow", 1).await;
    let twice = HandlerSpec { max_attempts: NonZeroU32::new(2), ..spec("slow") };
    let worker = stage.start([spec("quick"), twice], slots(3));
    let tasks = worker.take_all(3).await;
    for task in tasks {
        if task.job.job_type.as_str() == "slow" {
            pass(Duration::from_secs(2)).await;
            worker.fail(task);
        } else {
            worker.finish(task);
        }
    }
    settle_down().await;
    let (started, quick) = of(&worker, "quick");
    assert_eq!((started, quick.finished, quick.failed, quick.ran.count()), (2, 2, 0, 2));
    let (started, slow) = of(&worker, "slow");
    assert_eq!((started, slow.finished, slow.retried, slow.ran.count()), (1, 0, 1, 1));
    assert!(quick.ran.sum() < Duration::from_millis(1).as_nanos() as u64);
    assert_eq!(slow.ran.cumulative().find(|(_, count)| *count > 0).unwrap().0, 2_500_000_000);
    let batches = worker.worker.observe().batches;
    assert_eq!((batches.count(), batches.sum()), (2, 3), "two ended together");
    worker.fail(worker.take().await);
    settle_down().await;
    assert_eq!((of(&worker, "slow").1.failed, worker.counted().failed), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn only_what_waits_for_a_worker_alone_counts_as_waiting() {
    let stage = Stage::new();
    stage.chain(&["a", "a"], OnFailure::Continue).await;
    let twice = HandlerSpec { max_attempts: NonZeroU32::new(2), ..spec("a") };
    let worker = stage.start([twice], slots(1));
    worker.fail(worker.take().await);
    for _ in 0..2 {
        worker.finish(worker.take().await);
    }
    settle_down().await;
    let (started, ends) = of(&worker, "a");
    assert_eq!((started, ends.ran.count()), (3, 3));
    assert_eq!(ends.waited.count(), 1, "neither the second attempt nor the second job of the chain");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_lost_is_counted_for_its_type() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("b"), spec("a")], slots(1));
    let task = worker.take().await;
    stage.store.always(Call::Extend, Fault::Fail);
    pass(LEASE * 2).await;
    stage.store.memory.rescue(9).await.unwrap();
    let leased = stage.claim_as(somebody(), "a", 1).await;
    assert_eq!(leased[0].job.id, id);
    worker.finish(task);
    settle_down().await;
    assert_eq!((of(&worker, "a").1.lost, of(&worker, "b").1.lost, worker.counted().lost), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn slots_in_use_are_those_of_handlers_that_run_or_are_stuck() {
    let stage = Stage::new();
    stage.enqueue("plain", 3).await;
    let stuck = stage.enqueue_one("async").await;
    let config = WorkerConfig { max_beats: Some(1), ..slots(4) };
    let worker = stage.start([spec("plain"), async_spec("async")], config);
    let (sync, looped) =
        (worker.worker.lane(Flavour::Sync).unwrap(), worker.worker.lane(Flavour::Async).unwrap());
    let in_use = || worker.worker.observe().lanes.iter().map(|lane| lane.in_use).collect::<Vec<_>>();
    assert_eq!(in_use(), [0, 0]);
    let first = worker.take_from(sync).await;
    let second = worker.take_from(sync).await;
    let never = worker.take_from(looped).await;
    assert_eq!((in_use(), worker.worker.observe().lanes[0].slots), (vec![2, 1], 4));
    worker.finish(first);
    worker.finish(second);
    settle_down().await;
    assert_eq!(in_use(), [0, 1]);
    stage.until(stuck, State::Cancelled).await;
    settle_down().await;
    assert_eq!((in_use(), worker.worker.observe().stuck), (vec![0, 1], 1));
    worker.finish(never);
    settle_down().await;
    assert_eq!((in_use(), worker.worker.observe().stuck), (vec![0, 0], 0));
}

#[tokio::test(start_paused = true)]
async fn a_beat_that_does_not_get_through_becomes_late() {
    let stage = Stage::new();
    let worker = stage.start([spec("a")], slots(1));
    pass(BEAT / 2).await;
    assert_eq!(worker.worker.observe().beat_lateness, Duration::ZERO);
    stage.store.always(Call::Extend, Fault::Fail);
    pass(BEAT * 3).await;
    assert!(worker.worker.observe().beat_lateness >= BEAT * 2);
    stage.store.heal(Call::Extend);
    pass(BEAT).await;
    assert_eq!(worker.worker.observe().beat_lateness, Duration::ZERO);
}
