//! Chains: in order, on one worker while it can, and never in its way.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dejq::job::{NewJob, OnFailure, State};
use dejq::worker::{Attempt, Flavour, HandlerSpec};
use tokio::time::Instant;

use crate::faulty::Call;
use crate::stage::{Stage, async_spec, job, pass, settle_down, slots, spec};

#[tokio::test(start_paused = true)]
async fn a_chain_runs_in_order_on_one_worker_by_hand_off() {
    let stage = Stage::new();
    let ids = stage.chain(&["a"; 100], OnFailure::Continue).await;
    let worker = stage.start([spec("a")], slots(4));
    let rival = stage.start([spec("a")], slots(4));
    let order = Arc::new(Mutex::new(Vec::new()));
    for executor in [&worker, &rival] {
        let order = Arc::clone(&order);
        executor.serve(move |task| {
            order.lock().unwrap().push(task.job.id);
            async { Attempt::Finished }
        });
    }
    stage.until_all(&ids, State::Finished).await;
    settle_down().await;
    assert_eq!(*order.lock().unwrap(), ids);
    let (mut at_work, idle) = (worker.counted(), rival.counted());
    if at_work.started == 0 {
        at_work = idle;
    }
    assert_eq!((at_work.started, at_work.claimed, at_work.handed_off, at_work.claims), (100, 100, 99, 1));
    assert_eq!(at_work.settles, 100, "one round trip per job");
}

#[tokio::test(start_paused = true)]
async fn many_chains_share_their_round_trips() {
    let stage = Stage::new();
    let mut jobs: Vec<NewJob> = Vec::new();
    for _ in 0..50 {
        let mut chain: Vec<NewJob> = (0..20).map(|_| job("a")).collect();
        NewJob::link(&mut chain, OnFailure::Continue).unwrap();
        jobs.append(&mut chain);
    }
    let ids = stage.add(&jobs).await;
    let worker = stage.start([spec("a")], slots(50));
    worker.serve(|_| async { Attempt::Finished });
    stage.until_all(&ids, State::Finished).await;
    let counted = worker.counted();
    assert_eq!((counted.claimed, counted.handed_off), (1000, 950));
    assert!(counted.claims + counted.settles <= 40, "{counted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_job_handed_on_takes_the_slot_of_the_one_before_it() {
    let stage = Stage::new();
    let chain = stage.chain(&["a"; 10], OnFailure::Continue).await;
    let worker = stage.start([spec("a")], slots(1));
    let mut task = worker.take().await;
    let others = stage.enqueue("a", 5).await;
    let rival = stage.start([spec("a")], slots(5));
    let taken = rival.take_all(5).await;
    assert_eq!(taken.iter().map(|task| task.job.id).collect::<Vec<_>>(), others);
    for id in &chain[1..] {
        pass(Duration::from_millis(100)).await;
        worker.finish(task);
        task = worker.take().await;
        assert_eq!((task.job.id, worker.worker.in_hand()), (*id, 1));
    }
    assert_eq!(worker.counted().claims, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_job_lets_its_dependants_run_or_cancels_them_as_the_chain_says() {
    let stage = Stage::new();
    let goes_on = stage.chain(&["a", "a"], OnFailure::Continue).await;
    let ends = stage.chain(&["a", "a"], OnFailure::Cancel).await;
    let worker = stage.start([spec("a")], slots(2));
    for task in worker.take_all(2).await {
        worker.fail(task);
    }
    let next = worker.take().await;
    assert_eq!(next.job.id, goes_on[1]);
    worker.finish(next);
    stage.until(goes_on[1], State::Finished).await;
    assert_eq!(stage.states(&ends).await, [State::Failed, State::Cancelled]);
}

#[tokio::test(start_paused = true)]
async fn a_dependant_waits_while_the_job_before_it_is_repeated() {
    let stage = Stage::new();
    let ids = stage.chain(&["a", "a"], OnFailure::Continue).await;
    let twice = HandlerSpec { max_attempts: std::num::NonZeroU32::new(2), ..spec("a") };
    let worker = stage.start([twice], slots(2));
    worker.fail(worker.take().await);
    stage.until(ids[0], State::Scheduled).await;
    assert_eq!(stage.state(ids[1]).await, State::Blocked);
    let again = worker.take().await;
    assert_eq!((again.job.id, again.job.attempt), (ids[0], 2));
    worker.finish(again);
    assert_eq!(worker.take().await.job.id, ids[1]);
}

#[tokio::test(start_paused = true)]
async fn a_dependant_with_a_delay_is_not_handed_on_before_its_time() {
    let stage = Stage::new();
    let mut jobs = [job("a"), NewJob { delay: Duration::from_secs(600), ..job("a") }];
    NewJob::link(&mut jobs, OnFailure::Continue).unwrap();
    let ids = stage.add(&jobs).await;
    let worker = stage.start([spec("a")], slots(1));
    worker.finish(worker.take().await);
    stage.until(ids[0], State::Finished).await;
    let end = Instant::now();
    let task = worker.take().await;
    assert_eq!((task.job.id, end.elapsed().as_secs()), (ids[1], 600));
    assert_eq!(worker.counted().handed_off, 0);
}

#[tokio::test(start_paused = true)]
async fn a_chain_goes_to_another_worker_for_a_type_that_is_unknown_here_and_comes_back() {
    let stage = Stage::new();
    let ids = stage.chain(&["here", "there", "here"], OnFailure::Continue).await;
    let here = stage.start([spec("here")], slots(1));
    let there = stage.start([spec("there")], slots(1));
    for (executor, id) in [(&here, ids[0]), (&there, ids[1]), (&here, ids[2])] {
        let task = executor.take().await;
        assert_eq!(task.job.id, id);
        executor.finish(task);
    }
    stage.until(ids[2], State::Finished).await;
    assert_eq!((here.counted().handed_off, there.counted().handed_off), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_chain_goes_on_from_a_plain_to_an_async_handler_without_a_claim() {
    let stage = Stage::new();
    let ids = stage.chain(&["plain", "coroutine", "plain"], OnFailure::Continue).await;
    let worker = stage.start([spec("plain"), async_spec("coroutine")], slots(1));
    let coroutines = worker.worker.lane(Flavour::Async).unwrap();
    worker.finish(worker.take().await);
    let second = worker.take_from(coroutines).await;
    assert_eq!(second.job.id, ids[1]);
    worker.finish(second);
    worker.finish(worker.take().await);
    stage.until(ids[2], State::Finished).await;
    assert_eq!((worker.counted().claims, worker.counted().handed_off), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn hand_offs_to_a_busy_lane_stay_where_others_can_take_them() {
    let stage = Stage::new();
    let mut jobs: Vec<NewJob> = Vec::new();
    for _ in 0..200 {
        let mut chain = [job("quick"), job("slow")];
        NewJob::link(&mut chain, OnFailure::Continue).unwrap();
        jobs.extend(chain);
    }
    let ids = stage.add(&jobs).await;
    let worker = stage.start([spec("quick"), async_spec("slow")], slots(2));
    worker.serve(|task| async move {
        let is_slow = task.job.job_type.as_str() == "slow";
        pass(if is_slow { Duration::from_secs(600) } else { Duration::from_millis(100) }).await;
        Attempt::Finished
    });
    let quick: Vec<_> = ids.iter().copied().step_by(2).collect();
    stage.until_all(&quick, State::Finished).await;
    assert!(worker.worker.in_hand() <= 4, "{} jobs are hidden from other workers", worker.worker.in_hand());
    let other = stage.start([spec("slow")], slots(150));
    other.take_all(150).await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_has_too_much_in_hand_is_handed_nothing_more() {
    let stage = Stage::new();
    // Very quick jobs first, so that much is prefetched …
    let quick = stage.enqueue("quick", 2_000).await;
    let worker = stage.start([spec("quick"), spec("slow")], slots(1));
    worker.serve(|task| async move {
        if task.job.job_type.as_str() == "slow" {
            pass(Duration::from_secs(1)).await;
        }
        Attempt::Finished
    });
    stage.until_all(&quick[..500], State::Finished).await;
    // … and then chains of slow ones.
    let mut jobs: Vec<NewJob> = Vec::new();
    for _ in 0..20 {
        let mut chain: Vec<NewJob> = (0..100).map(|_| job("slow")).collect();
        NewJob::link(&mut chain, OnFailure::Continue).unwrap();
        jobs.append(&mut chain);
    }
    let ids = stage.add(&jobs).await;
    let firsts: Vec<_> = ids.iter().copied().step_by(100).collect();
    stage.until_all(&firsts, State::Finished).await;
    assert_eq!(worker.worker.in_hand(), 1);
}

#[tokio::test(start_paused = true)]
async fn stop_hands_a_chain_on_to_others() {
    let stage = Stage::new();
    let ids = stage.chain(&["a", "a", "a"], OnFailure::Continue).await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    let other = stage.start([spec("a")], slots(1));
    let stopping = tokio::spawn({
        let worker = worker.clone();
        async move { worker.stop().await }
    });
    settle_down().await;
    worker.finish(task);
    assert_eq!(stopping.await.unwrap().finished, 1);
    for id in &ids[1..] {
        let task = other.take().await;
        assert_eq!(task.job.id, *id);
        other.finish(task);
    }
    stage.until(ids[2], State::Finished).await;
    assert_eq!((worker.counted().handed_off, stage.store.count(Call::GiveBack)), (0, 0));
}
