//! How many jobs a worker holds: as many as it runs, and a little more when it is fast.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dejq::job::State;
use dejq::worker::{Attempt, Flavour, WorkerConfig};

use crate::faulty::Call;
use crate::stage::{Stage, async_spec, pass, settle_down, slots, spec, within};

#[tokio::test(start_paused = true)]
async fn a_worker_with_slow_handlers_never_holds_more_than_its_slots() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 60).await;
    let worker = stage.start([spec("a")], slots(3));
    let most = Arc::new(AtomicUsize::new(0));
    worker.serve({
        let (worker, most) = (Arc::clone(&worker.worker), Arc::clone(&most));
        move |_| {
            most.fetch_max(worker.in_hand(), Ordering::Relaxed);
            async {
                pass(Duration::from_millis(60)).await;
                Attempt::Finished
            }
        }
    });
    stage.until_all(&ids, State::Finished).await;
    assert_eq!(most.load(Ordering::Relaxed), 3);
    assert!(stage.store.seen(Call::Claim).iter().all(|claim| claim.jobs <= 3));
}

#[tokio::test(start_paused = true)]
async fn jobs_beyond_the_slots_are_there_for_other_workers() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 5).await;
    let worker = stage.start([spec("a")], slots(2));
    let _running = worker.take_all(2).await;
    settle_down().await;
    assert_eq!((worker.worker.in_hand(), stage.stats().await.total.ready), (2, Some(3)));
    let other = stage.start([spec("a")], slots(3));
    assert_eq!(other.take().await.job.id, ids[2]);
}

#[tokio::test(start_paused = true)]
async fn a_freed_slot_is_filled_at_once() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 3).await;
    let worker = stage.start([spec("a")], slots(2));
    let mut running = worker.take_all(2).await;
    pass(Duration::from_secs(1)).await;
    worker.finish(running.remove(0));
    assert_eq!(worker.take().await.job.id, ids[2]);
    let asked: Vec<_> = stage.store.seen(Call::Claim).iter().map(|claim| claim.jobs).collect();
    assert_eq!(asked, [2, 1]);
}

#[tokio::test(start_paused = true)]
async fn fast_handlers_get_their_jobs_in_few_claims() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 20_000).await;
    let worker = stage.start([spec("a")], slots(4));
    worker.serve(|_| async { Attempt::Finished });
    within("all jobs", stage.store.until(async || stage.stats().await.total.finished == Some(20_000))).await;
    settle_down().await;
    let counted = worker.counted();
    assert_eq!((counted.finished, counted.started), (20_000, ids.len() as u64));
    assert!(counted.claims < 100, "{counted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_handlers_become_slow_takes_no_more_than_its_slots() {
    let stage = Stage::new();
    stage.enqueue("a", 2_000).await;
    let worker = stage.start([spec("a")], slots(2));
    let so_far = Arc::new(AtomicUsize::new(0));
    worker.serve(move |_| {
        let is_fast = so_far.fetch_add(1, Ordering::Relaxed) < 1_000;
        async move {
            if !is_fast {
                pass(Duration::from_millis(100)).await;
            }
            Attempt::Finished
        }
    });
    within("all jobs", stage.store.until(async || stage.stats().await.total.finished == Some(2_000))).await;
    let more = stage.enqueue("a", 100).await;
    settle_down().await;
    assert_eq!((worker.worker.in_hand(), stage.state(more[2]).await), (2, State::Ready));
}

#[tokio::test(start_paused = true)]
async fn the_slots_of_plain_and_async_handlers_are_independent() {
    let stage = Stage::new();
    stage.enqueue("plain", 10).await;
    let coroutines = stage.enqueue("coroutine", 10).await;
    let config = WorkerConfig { async_workers: 3, ..slots(2) };
    let worker = stage.start([spec("plain"), async_spec("coroutine")], config);
    let (plain, coroutine) =
        (worker.worker.lane(Flavour::Sync).unwrap(), worker.worker.lane(Flavour::Async).unwrap());
    assert_eq!((worker.worker.slots(plain), worker.worker.slots(coroutine)), (2, 3));
    let _running = [worker.take_from(plain).await, worker.take_from(plain).await];
    for id in coroutines {
        let task = worker.take_from(coroutine).await;
        assert_eq!(task.job.id, id, "a full lane holds up the other one");
        worker.finish(task);
    }
    settle_down().await;
    assert_eq!((worker.worker.in_hand(), worker.worker.try_next(plain).is_none()), (2, true));
}

#[tokio::test(start_paused = true)]
async fn a_lane_without_handlers_does_not_exist() {
    let stage = Stage::new();
    stage.enqueue_one("a").await;
    let worker = stage.start([async_spec("a")], slots(1));
    assert_eq!((worker.worker.lane(Flavour::Sync), worker.worker.lane(Flavour::Async)), (None, Some(0)));
    worker.take().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_comes_while_the_worker_waits_starts_at_once() {
    let stage = Stage::new();
    let worker = stage.start([spec("a")], slots(1));
    pass(Duration::from_secs(3_601)).await;
    let begin = tokio::time::Instant::now();
    let id = stage.enqueue_one("a").await;
    assert_eq!(worker.take().await.job.id, id);
    assert!(begin.elapsed() < Duration::from_millis(5));
    assert!(stage.store.count(Call::Claim) < 400, "an idle worker asks every 10 s");
}
