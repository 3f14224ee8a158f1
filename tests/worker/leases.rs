//! Leases that run out, and leases that another worker has.

use std::sync::Arc;
use std::time::Duration;

use dejq::backend::Backend;
use dejq::job::State;
use dejq::worker::{Cancel, Task, WorkerConfig};

use crate::executor::Executor;
use crate::faulty::{Call, Fault, Gate};
use crate::logbook;
use crate::stage::{BEAT, LEASE, Stage, pass, settle_down, slots, somebody, spec, within};

/// A running task of a worker whose beats have not got through for a whole lease, and whom nobody rescues.
async fn expired() -> (Stage, Executor, Arc<Task>) {
    let stage = Stage::new();
    stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    stage.store.always(Call::Extend, Fault::Fail);
    stage.store.always(Call::Rescue, Fault::Fail);
    pass(LEASE * 2).await;
    assert_eq!(task.cancelled(), Cancel::Expired);
    (stage, worker, task)
}

#[tokio::test(start_paused = true)]
async fn after_a_lease_without_a_beat_handlers_are_told_and_nothing_new_starts() {
    let stage = Stage::new();
    stage.enqueue("a", 2).await;
    let worker = stage.start([spec("a")], slots(2));
    let running = worker.take().await;
    stage.store.always(Call::Extend, Fault::Fail);
    pass(BEAT * 5 / 2).await;
    assert_eq!(running.cancelled(), Cancel::No);
    pass(BEAT).await;
    assert_eq!(running.cancelled(), Cancel::Expired);
    assert!(worker.take_now().is_none(), "the queued job may be another worker's by now");
    assert_eq!(worker.counted().started, 1);
}

#[tokio::test(start_paused = true)]
async fn an_executor_that_waited_for_something_else_does_not_start_a_job_whose_lease_ran_out() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    stage.store.always(Call::Extend, Fault::Fail);
    stage.store.always(Call::Rescue, Fault::Fail);
    let worker = stage.start([spec("a")], slots(1));
    stage.until(id, State::Running).await;
    settle_down().await;
    let task = worker.worker.wait(0).unwrap();
    stage.store.always(Call::Claim, Fault::Fail);
    pass(LEASE + BEAT).await;
    assert!(worker.worker.begin(task).is_none());
    worker.worker.idle();
    stage.until(id, State::Ready).await;
    assert_eq!((stage.info(id).await.job.attempt, worker.counted().started), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_queued_job_whose_lease_ran_out_is_given_back() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    let worker = stage.start([spec("a")], slots(2));
    let running = worker.take().await;
    stage.store.always(Call::Extend, Fault::Fail);
    stage.store.always(Call::Rescue, Fault::Fail);
    pass(LEASE + BEAT).await;
    stage.store.always(Call::Claim, Fault::Fail);
    assert!(worker.take_now().is_none());
    stage.until(ids[1], State::Ready).await;
    assert_eq!((stage.info(ids[1]).await.job.attempt, worker.counted().given_back), (0, 1));
    worker.finish(running);
    stage.until(ids[0], State::Finished).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_counts_as_over_while_the_store_hangs_too() {
    let stage = Stage::new();
    stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    let gate = Gate::default();
    stage.store.next(Call::Extend, 1, &Fault::Hold(gate.clone()));
    pass(LEASE * 2).await;
    assert_eq!(task.cancelled(), Cancel::Expired);
    gate.open();
}

/// SIGSTOP, a laptop's lid, a virtual machine that is moved: here the one thread that runs everything.
#[tokio::test]
async fn after_a_pause_of_the_whole_process_nothing_queued_starts() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    let config = WorkerConfig { heartbeat: Duration::from_millis(20), ..slots(2) };
    let worker = stage.start([spec("a")], config);
    let first = worker.take().await;
    std::thread::sleep(Duration::from_millis(100)); // the pause itself
    assert!(worker.take_now().is_none(), "others may have it by now");
    worker.finish(first);
    let second = worker.take().await;
    assert_eq!((second.job.id, second.job.attempt), (ids[1], 1));
}

#[tokio::test(start_paused = true)]
async fn a_beat_that_gets_through_after_all_revives_a_handler() {
    let (stage, worker, task) = expired().await;
    let id = task.job.id;
    stage.store.heal(Call::Extend);
    pass(BEAT).await;
    assert_eq!(task.cancelled(), Cancel::No);
    stage.store.heal(Call::Rescue);
    pass(LEASE * 2).await;
    worker.finish(task);
    stage.until(id, State::Finished).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_after_the_lease_is_stored_when_nobody_else_has_the_job() {
    let (stage, worker, task) = expired().await;
    let id = task.job.id;
    worker.finish(task);
    stage.until(id, State::Finished).await;
    assert_eq!(worker.counted().finished, 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_an_expired_lease_cut_short_does_not_count() {
    let (stage, worker, task) = expired().await;
    let id = task.job.id;
    worker.fail(task);
    stage.store.heal(Call::Extend);
    let again = worker.take().await;
    assert_eq!((again.job.id, again.job.attempt), (id, 1));
    assert_eq!((worker.counted().failed, worker.counted().given_back), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_lease_another_worker_took_is_told_and_its_end_changes_nothing() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let zombie = stage.start([spec("a")], slots(1));
    let task = zombie.take().await;
    stage.store.always(Call::Extend, Fault::Fail);
    pass(LEASE + BEAT).await;
    // Another worker's rescuer: that of the zombie judges nobody while its own beats fail.
    assert_eq!(stage.store.memory.rescue(3).await.unwrap().requeued, 1);
    let other = somebody();
    let taken = stage.claim_as(other, "a", 1).await;
    assert_eq!(taken[0].job.id, id);
    stage.store.heal(Call::Extend);
    pass(BEAT).await;
    assert_eq!(task.cancelled(), Cancel::Lost);
    let settles = stage.store.count(Call::Settle);
    zombie.fail(task);
    settle_down().await;
    assert_eq!((stage.state(id).await, stage.store.count(Call::Settle)), (State::Running, settles));
    assert_eq!((zombie.counted().lost, zombie.counted().failed), (1, 0));
    stage.finish_as(other, &taken[0]).await;
    assert_eq!(stage.state(id).await, State::Finished);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_comes_before_the_bad_news_is_refused_by_the_store() {
    logbook::open();
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let zombie = stage.start([spec("a")], slots(1));
    let task = zombie.take().await;
    stage.store.always(Call::Extend, Fault::Fail);
    pass(LEASE + BEAT).await;
    assert_eq!(stage.store.memory.rescue(3).await.unwrap().requeued, 1);
    let other = somebody();
    let taken = stage.claim_as(other, "a", 1).await;
    zombie.finish(task);
    settle_down().await;
    assert_eq!(stage.state(id).await, State::Running);
    assert_eq!((zombie.counted().lost, zombie.counted().finished), (1, 0));
    assert!(logbook::about(id).iter().any(|line| line.contains("was lost before its end was stored")));
    stage.finish_as(other, &taken[0]).await;
}

#[tokio::test(start_paused = true)]
async fn a_queued_job_that_another_worker_has_is_dropped_without_a_word_to_the_store() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    let zombie = stage.start([spec("a")], slots(2));
    let running = zombie.take().await;
    stage.store.memory.finish(ids[1]).await.unwrap();
    pass(BEAT + BEAT / 2).await;
    let given_back = stage.store.count(Call::GiveBack);
    assert!(zombie.take_now().is_none());
    settle_down().await;
    assert_eq!(stage.store.count(Call::GiveBack), given_back);
    assert_eq!((stage.state(ids[1]).await, zombie.counted().lost), (State::Finished, 1));
    zombie.finish(running);
    stage.until(ids[0], State::Finished).await;
    assert_eq!(zombie.worker.in_hand(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_gets_no_more_beats() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    stage.store.memory.finish(id).await.unwrap();
    pass(BEAT * 3 + BEAT / 2).await;
    assert_eq!(task.cancelled(), Cancel::Lost);
    assert_eq!(stage.store.seen(Call::Extend).iter().map(|beat| beat.jobs).collect::<Vec<_>>(), [1, 0, 0]);
}

/// Every beat of a busy worker meets jobs whose ends are stored while it is on its way.
#[tokio::test(start_paused = true)]
async fn a_beat_that_crosses_an_end_on_its_way_raises_no_alarm() {
    logbook::open();
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    pass(BEAT / 2).await;
    let (beat, end) = (Gate::default(), Gate::default());
    stage.store.next(Call::Extend, 1, &Fault::Hold(beat.clone()));
    stage.store.next(Call::Settle, 1, &Fault::HoldReply(end.clone()));
    within("the beat", stage.store.arrived(Call::Extend, 1)).await;
    worker.finish(task);
    stage.until(id, State::Finished).await;
    beat.open();
    settle_down().await;
    end.open();
    settle_down().await;
    assert_eq!((worker.counted().finished, worker.counted().lost), (1, 0));
    assert_eq!(logbook::about(id), [""; 0]);
}
