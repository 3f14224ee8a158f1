//! The heartbeat: one call for every lease in hand, as long as it takes.

use dejq::job::State;
use dejq::worker::Cancel;

use crate::faulty::{Call, Fault, Gate};
use crate::stage::{BEAT, LEASE, Stage, pass, settle_down, slots, spec, within};

#[tokio::test(start_paused = true)]
async fn one_beat_renews_running_and_queued_leases_in_one_call() {
    let stage = Stage::new();
    stage.enqueue("a", 8).await;
    let worker = stage.start([spec("a")], slots(8));
    let running = worker.take_all(3).await;
    pass(BEAT).await;
    let beats = stage.store.seen(Call::Extend);
    assert_eq!(beats.iter().map(|beat| beat.jobs).collect::<Vec<_>>(), [8], "3 running and 5 queued");
    assert_eq!((worker.counted().beats, worker.counted().extended), (1, 8));
    for task in running {
        worker.finish(task);
    }
    settle_down().await;
    pass(BEAT).await;
    assert_eq!(stage.store.seen(Call::Extend)[1].jobs, 5, "what has ended needs no beat");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_runs_for_a_hundred_leases_keeps_its_job() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    let rival = stage.start([spec("a")], slots(1));
    pass(LEASE * 100).await;
    assert!(stage.store.count(Call::Rescue) >= 200, "both workers looked for lost jobs all the time");
    assert!(rival.take_now().is_none());
    assert_eq!(task.cancelled(), Cancel::No);
    worker.finish(task);
    stage.until(id, State::Finished).await;
    let info = stage.info(id).await;
    assert_eq!((info.job.attempt, info.rescues), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_queued_job_waits_for_a_hundred_leases_and_then_starts() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    let worker = stage.start([spec("a")], slots(2));
    let first = worker.take().await;
    pass(LEASE * 100).await;
    let second = worker.take_now().unwrap();
    assert_eq!((second.job.id, second.job.attempt), (ids[1], 1));
    worker.finish(first);
    worker.finish(second);
    stage.until_all(&ids, State::Finished).await;
    assert_eq!(worker.counted().claims, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_beat_is_repeated_five_times_as_fast() {
    let stage = Stage::new();
    stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    stage.store.next(Call::Extend, 3, &Fault::Fail);
    within("beats", stage.store.arrived(Call::Extend, 5)).await;
    let beats = stage.store.seen(Call::Extend);
    let pauses: Vec<f64> =
        beats.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64().round()).collect();
    assert_eq!(pauses, [1.0, 1.0, 1.0, 5.0]);
    assert_eq!(task.cancelled(), Cancel::No, "three lost beats in a row fit into a lease");
    assert_eq!((worker.counted().beats, worker.counted().store_errors), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_beats_too_and_is_known_to_be_alive() {
    let stage = Stage::new();
    let worker = stage.start([spec("a")], slots(1));
    pass(LEASE * 10).await;
    assert_eq!(stage.stats().await.workers, Some(1));
    assert_eq!((worker.counted().beats, worker.counted().extended), (30, 0));
    worker.stop().await;
    assert_eq!(stage.stats().await.workers, Some(0));
}

#[tokio::test(start_paused = true)]
async fn beats_go_on_while_the_store_is_busy_with_something_else() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    let worker = stage.start([spec("a")], slots(2));
    let (first, second) = (worker.take().await, worker.take().await);
    let gate = Gate::default();
    stage.store.next(Call::Settle, 1, &Fault::Hold(gate.clone()));
    worker.finish(first);
    pass(LEASE * 10).await;
    assert_eq!(second.cancelled(), Cancel::No);
    assert_eq!(stage.states(&ids).await, [State::Running, State::Running]);
    gate.open();
    worker.finish(second);
    stage.until_all(&ids, State::Finished).await;
    assert_eq!(stage.info(ids[0]).await.rescues, 0);
}
