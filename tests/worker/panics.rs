//! Bugs of ours or of a backend: reported, survived, and never at the cost of a job.

use std::time::Duration;

use dejq::job::State;
use dejq::worker::Attempt;

use crate::faulty::{Call, Fault};
use crate::stage::{BEAT, LEASE, Stage, pass, settle_down, slots, spec, within};

#[tokio::test(start_paused = true)]
async fn work_goes_on_after_a_claim_that_panicked() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    stage.store.next(Call::Claim, 4, &Fault::Panic);
    let worker = stage.start([spec("a")], slots(1));
    worker.finish(worker.take().await);
    stage.until(id, State::Finished).await;
    assert!(!worker.worker.is_stopping());
}

#[tokio::test(start_paused = true)]
async fn work_goes_on_after_a_settle_that_panicked_and_its_job_goes_back() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    stage.store.next(Call::Settle, 1, &Fault::Panic);
    let worker = stage.start([spec("a")], slots(1));
    worker.finish(worker.take().await);
    let (second, third) = (worker.take().await, worker.take().await);
    let mut again = [second.job.id, third.job.id];
    again.sort();
    assert_eq!(again.to_vec(), ids, "the slot is free again");
    worker.finish(second);
    worker.finish(third);
    stage.until_all(&ids, State::Finished).await;
    assert_eq!((stage.info(ids[0]).await.rescues, worker.worker.in_hand()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn beats_go_on_after_one_that_panicked() {
    let stage = Stage::new();
    stage.enqueue_one("a").await;
    stage.store.next(Call::Extend, 1, &Fault::Panic);
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    let other = stage.start([spec("a")], slots(1));
    pass(LEASE * 10).await;
    assert!(other.take_now().is_none());
    assert_eq!(task.cancelled(), dejq::worker::Cancel::No);
    assert!(worker.counted().beats > 20);
}

#[tokio::test(start_paused = true)]
async fn lost_jobs_are_found_after_a_look_that_panicked() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    stage.claim_as(crate::stage::somebody(), "a", 1).await;
    stage.store.next(Call::Rescue, 2, &Fault::Panic);
    let worker = stage.start([spec("a")], slots(1));
    assert_eq!(worker.take().await.job.id, id);
}

#[tokio::test(start_paused = true)]
async fn after_five_panics_in_a_row_the_worker_takes_no_more_jobs() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    stage.store.next(Call::Claim, 5, &Fault::Panic);
    let worker = stage.start([spec("a")], slots(1));
    within("the fifth claim", stage.store.arrived(Call::Claim, 5)).await;
    pass(LEASE * 10).await;
    assert!(worker.worker.is_stopping() && worker.take_now().is_none());
    assert_eq!((stage.store.count(Call::Claim), stage.state(id).await), (5, State::Ready));
    let report = worker.stop().await;
    assert_eq!((report.abandoned, report.forced), (0, false));
}

#[tokio::test(start_paused = true)]
async fn panics_far_apart_are_not_in_a_row() {
    let stage = Stage::new();
    let worker = stage.start([spec("a")], slots(1));
    worker.serve(|_| async { Attempt::Finished });
    for _ in 0..20 {
        stage.store.next(Call::Claim, 1, &Fault::Panic);
        pass(Duration::from_secs(3_600)).await;
    }
    assert!(!worker.worker.is_stopping());
    let id = stage.enqueue_one("a").await;
    stage.until(id, State::Finished).await;
}

#[tokio::test(start_paused = true)]
async fn ends_that_always_panic_stop_the_worker_and_let_its_jobs_go_to_others() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 10).await;
    stage.store.always(Call::Settle, Fault::Panic);
    let worker = stage.start([spec("a")], slots(1));
    worker.serve(|_| async { Attempt::Finished });
    within("five ends", stage.store.arrived(Call::Settle, 5)).await;
    pass(LEASE).await;
    assert!(worker.worker.is_stopping());
    stage.store.heal(Call::Settle);
    let other = stage.start([spec("a")], slots(10));
    other.serve(|_| async { Attempt::Finished });
    stage.until_all(&ids, State::Finished).await;
    assert!(!worker.stop().await.forced);
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_panicked_while_giving_back_can_be_repeated() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 3).await;
    let worker = stage.start([spec("a")], slots(3));
    let running = worker.take().await;
    stage.store.next(Call::GiveBack, 1, &Fault::Panic);
    let first = tokio::spawn({
        let worker = worker.clone();
        async move { worker.stop().await }
    });
    assert!(within("the panic", first).await.unwrap_err().is_panic());
    worker.finish(running);
    assert_eq!(worker.stop().await.abandoned, 0);
    let other = stage.start([spec("a")], slots(2));
    assert_eq!(other.take().await.job.id, ids[1], "its lease has run out");
}

#[tokio::test(start_paused = true)]
async fn stop_ends_although_every_end_panics() {
    let stage = Stage::new();
    stage.enqueue("a", 10).await;
    stage.store.always(Call::Settle, Fault::Panic);
    let worker = stage.start([spec("a")], slots(10));
    let mut running = worker.take_all(10).await;
    for task in running.drain(..9) {
        worker.finish(task);
        settle_down().await;
        pass(BEAT).await;
    }
    assert!(worker.worker.is_stopping(), "nine panics in a row");
    let stopping = tokio::spawn({
        let worker = worker.clone();
        async move { worker.stop().await }
    });
    pass(BEAT).await;
    assert!(!stopping.is_finished(), "it waits for the last handler");
    worker.finish(running.remove(0));
    assert_eq!(within("the stop", stopping).await.unwrap().abandoned, 0);
}
