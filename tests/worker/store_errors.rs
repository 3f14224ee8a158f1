//! A store that fails for a while, refuses, or answers into the void: nothing is lost and nobody panics.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dejq::job::{OnFailure, State};
use dejq::worker::Attempt;

use crate::faulty::{Call, Fault};
use crate::stage::{BEAT, LEASE, Stage, pass, settle_down, slots, spec, within};

/// Seconds between the calls of one kind.
fn pauses(stage: &Stage, call: Call) -> Vec<f64> {
    stage.store.seen(call).windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect()
}

fn assert_growing(pauses: &[f64]) {
    let steady = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0];
    assert!(pauses.len() >= steady.len(), "{pauses:?}");
    for (pause, steady) in pauses.iter().zip(steady) {
        assert!(
            (0.74..1.27).contains(&(pause / steady)),
            "{pause} s instead of about {steady} s: {pauses:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn claims_that_fail_are_repeated_after_growing_pauses() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    stage.store.next(Call::Claim, 8, &Fault::Fail);
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    assert_growing(&pauses(&stage, Call::Claim));
    worker.finish(task);
    stage.until(id, State::Finished).await;
    assert_eq!(worker.counted().store_errors, 8);
}

#[tokio::test(start_paused = true)]
async fn after_a_success_the_pauses_are_short_again() {
    let stage = Stage::new();
    stage.store.next(Call::Claim, 6, &Fault::Fail);
    let worker = stage.start([spec("a")], slots(1));
    within("claims", stage.store.arrived(Call::Claim, 7)).await;
    // The seventh waits for a job; the eighth comes after it.
    stage.store.next(Call::Claim, 1, &Fault::Fail);
    let first = stage.enqueue_one("a").await;
    worker.finish(worker.take().await);
    stage.until(first, State::Finished).await;
    let second = stage.enqueue_one("a").await;
    assert_eq!(worker.take().await.job.id, second);
    let claims = stage.store.seen(Call::Claim);
    let pause = (claims[8].at - claims[7].at).as_secs_f64();
    assert!((0.07..0.13).contains(&pause), "{pause} s");
}

#[tokio::test(start_paused = true)]
async fn ends_that_cannot_be_stored_are_repeated_and_their_leases_kept() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    stage.store.next(Call::Settle, 20, &Fault::Fail);
    let worker = stage.start([spec("a")], slots(1));
    worker.finish(worker.take().await);
    stage.until(id, State::Finished).await;
    assert_growing(&pauses(&stage, Call::Settle));
    let info = stage.info(id).await;
    assert_eq!((info.job.attempt, info.rescues), (1, 0), "it took longer than a lease");
    settle_down().await;
    assert_eq!((worker.counted().finished, worker.counted().lost), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn handlers_go_on_while_ends_cannot_be_stored() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 4).await;
    stage.store.always(Call::Settle, Fault::Fail);
    let worker = stage.start([spec("a")], slots(4));
    for _ in 0..4 {
        worker.finish(worker.take().await);
        pass(BEAT).await;
    }
    stage.store.heal(Call::Settle);
    stage.until_all(&ids, State::Finished).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_the_store_refuses_for_good_lets_the_job_run_again() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    // The second one would say that it goes back.
    stage.store.next(Call::Settle, 2, &Fault::Refuse);
    let worker = stage.start([spec("a")], slots(1));
    worker.finish(worker.take().await);
    let again = worker.take().await;
    assert_eq!(
        (again.job.attempt, stage.info(id).await.rescues),
        (1, 0),
        "no beat keeps it, and no rescue is needed"
    );
    worker.finish(again);
    stage.until(id, State::Finished).await;
    assert_eq!(worker.counted().started, 2);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_an_end_is_asked_for_again_and_nothing_runs_twice() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 3).await;
    stage.store.next(Call::Settle, 2, &Fault::LoseReply);
    let worker = stage.start([spec("a")], slots(1));
    let runs = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&runs);
    worker.serve(move |_| {
        seen.fetch_add(1, Ordering::Relaxed);
        async { Attempt::Finished }
    });
    stage.until_all(&ids, State::Finished).await;
    pass(LEASE * 3).await;
    assert_eq!(runs.load(Ordering::Relaxed), 3);
    assert_eq!(worker.worker.in_hand(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_handed_on_in_a_lost_answer_runs_when_its_lease_is_over() {
    let stage = Stage::new();
    let ids = stage.chain(&["a"; 3], OnFailure::Continue).await;
    stage.store.next(Call::Settle, 1, &Fault::LoseReply);
    let worker = stage.start([spec("a")], slots(1));
    worker.finish(worker.take().await);
    let second = worker.take().await;
    assert_eq!((second.job.id, second.job.attempt), (ids[1], 1));
    worker.finish(second);
    let third = worker.take().await;
    assert_eq!(third.job.id, ids[2]);
    worker.finish(third);
    stage.until(ids[2], State::Finished).await;
    assert_eq!(worker.counted().started, 3);
}

#[tokio::test(start_paused = true)]
async fn jobs_of_a_claim_whose_answer_was_lost_come_back_after_a_lease() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 3).await;
    stage.store.next(Call::Claim, 1, &Fault::LoseReply);
    let worker = stage.start([spec("a")], slots(3));
    let tasks = worker.take_all(3).await;
    assert_eq!(tasks.iter().map(|task| task.job.id).collect::<Vec<_>>(), ids, "in their old order");
    assert!(tasks.iter().all(|task| task.job.attempt == 1), "an attempt that nobody made does not count");
    assert_eq!(worker.counted().rescued, 3);
}

#[tokio::test(start_paused = true)]
async fn jobs_that_could_not_be_given_back_are_given_back_later_although_their_worker_lives() {
    let stage = Stage::that_hands_out(&["known", "unknown"]);
    let id = stage.enqueue_one("unknown").await;
    stage.store.next(Call::GiveBack, 3, &Fault::Fail);
    let _worker = stage.start([spec("known")], slots(1));
    stage.until(id, State::Running).await;
    stage.until(id, State::Ready).await;
    assert_eq!(stage.info(id).await.rescues, 0);
    assert!(stage.store.count(Call::GiveBack) >= 4);
}

#[tokio::test(start_paused = true)]
async fn jobs_that_could_not_be_given_back_at_a_stop_come_back_after_a_lease() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 3).await;
    stage.store.always(Call::GiveBack, Fault::Fail);
    let worker = stage.start([spec("a")], slots(3));
    stage.until_all(&ids, State::Running).await;
    settle_down().await;
    worker.stop().await;
    let other = stage.start([spec("a")], slots(3));
    let begin = tokio::time::Instant::now();
    other.take_all(3).await;
    assert!((BEAT * 2..LEASE * 2).contains(&begin.elapsed()), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn looking_for_lost_jobs_goes_on_after_errors() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    stage.claim_as(crate::stage::somebody(), "a", 1).await;
    stage.store.next(Call::Rescue, 3, &Fault::Fail);
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    assert_eq!((task.job.id, worker.counted().rescued, worker.counted().store_errors), (id, 1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_an_hour_costs_nothing_but_time() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 50).await;
    let worker = stage.start([spec("a")], slots(5));
    worker.serve(|_| async {
        pass(Duration::from_secs(1)).await;
        Attempt::Finished
    });
    stage.until(ids[10], State::Finished).await;
    let calls = [Call::Claim, Call::Settle, Call::Extend, Call::Rescue, Call::GiveBack];
    for call in calls {
        stage.store.always(call, Fault::Fail);
    }
    pass(Duration::from_secs(3_000)).await;
    assert!(stage.store.count(Call::Claim) < 700, "a claim every 4 to 6 s, not a storm");
    for call in calls {
        stage.store.heal(call);
    }
    stage.until_all(&ids, State::Finished).await;
    assert_eq!(worker.worker.in_hand(), 0);
}
