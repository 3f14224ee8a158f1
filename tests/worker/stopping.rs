//! The end of a worker: nothing new starts, everything started ends, everything else goes to others.

use std::time::Duration;

use dejq::backend::Backend;
use dejq::job::{OnFailure, State};
use dejq::worker::{Attempt, Cancel, Flavour, HandlerSpec, StopReport};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::executor::Executor;
use crate::faulty::{Call, Fault, Gate};
use crate::stage::{BEAT, LEASE, Stage, async_spec, pass, settle_down, slots, spec, within};

/// Begins a stop and returns when it has done what it can do at once.
async fn begin_stop(worker: &Executor, timeout: Option<Duration>) -> JoinHandle<StopReport> {
    let worker = worker.worker.clone();
    let stopping = tokio::spawn(async move { worker.stop(timeout).await });
    settle_down().await;
    stopping
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_stops_at_once() {
    let stage = Stage::new();
    let worker = stage.start([spec("a"), async_spec("b")], slots(1));
    pass(LEASE).await;
    let begin = Instant::now();
    assert_eq!(worker.stop().await, StopReport::default());
    assert!(begin.elapsed() < Duration::from_millis(10), "{:?}", begin.elapsed());
    assert!(worker.worker.is_over(0) && worker.worker.is_over(1));
    assert_eq!(stage.stats().await.workers, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_worker_stops_before_it_has_done_anything() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 5).await;
    let worker = stage.start([spec("a")], slots(5));
    assert_eq!(worker.stop().await.abandoned, 0);
    assert_eq!(stage.states(&ids).await, [State::Ready; 5]);
}

#[tokio::test(start_paused = true)]
async fn stop_waits_for_running_handlers_with_beats_and_gives_the_rest_back() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 10).await;
    let worker = stage.start([spec("a")], slots(6));
    let running = worker.take_all(2).await;
    let stopping = begin_stop(&worker, None).await;
    assert_eq!(stage.states(&ids[2..]).await, [State::Ready; 8]);
    let other = stage.start([spec("a")], slots(8));
    let taken = other.take_all(8).await;
    assert_eq!(taken.iter().map(|task| task.job.id).collect::<Vec<_>>(), ids[2..], "at once and in order");
    assert!(taken.iter().all(|task| task.job.attempt == 1));
    pass(LEASE * 100).await;
    assert!(!stopping.is_finished());
    assert!(running.iter().all(|task| task.cancelled() == Cancel::No));
    for task in running {
        worker.finish(task);
    }
    let report = within("the stop", stopping).await.unwrap();
    assert_eq!(report, StopReport { finished: 2, given_back: 4, abandoned: 0, forced: false });
    assert_eq!(stage.states(&ids[..2]).await, [State::Finished; 2]);
}

#[tokio::test(start_paused = true)]
async fn stop_stores_what_ended_just_before_it() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 20).await;
    let worker = stage.start([spec("a")], slots(20));
    for task in worker.take_all(20).await {
        worker.worker.ended(task, Attempt::Finished);
    }
    worker.stop().await;
    assert_eq!(stage.states(&ids).await, [State::Finished; 20]);
}

#[tokio::test(start_paused = true)]
async fn a_second_stop_says_what_the_first_one_said() {
    let stage = Stage::new();
    stage.enqueue("a", 3).await;
    let worker = stage.start([spec("a")], slots(3));
    for task in worker.take_all(2).await {
        worker.finish(task);
    }
    let first = worker.stop().await;
    assert_eq!((worker.stop().await, worker.stop_by(Duration::ZERO).await), (first, first));
    assert_eq!(stage.store.count(Call::Leave), 1);
}

#[tokio::test(start_paused = true)]
async fn two_stops_at_once_are_one_stop() {
    let stage = Stage::new();
    stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    let first = begin_stop(&worker, None).await;
    let second = begin_stop(&worker, None).await;
    pass(LEASE).await;
    assert!(!first.is_finished() && !second.is_finished());
    worker.finish(task);
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!((first.finished, first), (1, second));
    assert_eq!(stage.store.count(Call::Leave), 1);
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_handlers_are_told_and_those_that_do_not_return_are_abandoned() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 3).await;
    let worker = stage.start([spec("a")], slots(3));
    let tasks = worker.take_all(3).await;
    let begin = Instant::now();
    let stopping = begin_stop(&worker, Some(Duration::from_secs(60))).await;
    pass(Duration::from_secs(59)).await;
    assert!(tasks.iter().all(|task| task.cancelled() == Cancel::No));
    pass(Duration::from_millis(1_100)).await;
    assert!(tasks.iter().all(|task| task.cancelled() == Cancel::Stopping));
    let [finishes, raises, ignores]: [_; 3] = tasks.try_into().unwrap();
    worker.finish(finishes);
    worker.fail(raises);
    let report = within("the stop", stopping).await.unwrap();
    assert_eq!(report, StopReport { finished: 1, given_back: 1, abandoned: 1, forced: true });
    assert!(begin.elapsed() < Duration::from_secs(61), "{:?}", begin.elapsed());
    assert_eq!(stage.states(&ids).await, [State::Finished, State::Ready, State::Running]);
    assert_eq!(stage.info(ids[1]).await.job.attempt, 0, "an attempt that we cut short does not count");
    let other = stage.start([spec("a")], slots(3));
    let again = other.take_all(2).await;
    assert_eq!(again[1].job.id, ids[2], "the abandoned one when its lease has run out");
    worker.finish(ignores);
    settle_down().await;
    assert_eq!(stage.state(ids[2]).await, State::Running, "too late: it is the other worker's");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_is_forced_wakes_the_event_loop_to_cancel_its_coroutines() {
    let stage = Stage::new();
    stage.enqueue_one("a").await;
    let worker = stage.start([async_spec("a")], slots(1));
    let task = worker.take().await;
    let stopping = begin_stop(&worker, Some(Duration::from_secs(1))).await;
    assert_eq!(worker.worker.cancels(0), 0);
    within("the wake-up", worker.woken(Flavour::Async)).await;
    assert_eq!((task.cancelled(), worker.worker.cancels(0)), (Cancel::Stopping, 1));
    worker.fail(task);
    assert_eq!(stopping.await.unwrap().given_back, 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_caller_may_shorten_the_deadline_and_never_lengthen_it() {
    let stage = Stage::new();
    stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let _task = worker.take().await;
    let begin = Instant::now();
    let first = begin_stop(&worker, None).await;
    pass(Duration::from_secs(100)).await;
    let second = begin_stop(&worker, Some(Duration::from_secs(100))).await;
    let third = begin_stop(&worker, Some(Duration::from_secs(1_000))).await;
    let fourth = begin_stop(&worker, Some(Duration::from_secs(10))).await;
    let report = within("the stop", first).await.unwrap();
    assert_eq!((report.forced, report.abandoned), (true, 1));
    assert!((110..112).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    for other in [second, third, fourth] {
        assert_eq!(other.await.unwrap(), report);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_was_set_before_the_stop_holds_for_it() {
    let stage = Stage::new();
    stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let _task = worker.take().await;
    worker.worker.hurry(Duration::MAX);
    worker.worker.hurry(Duration::from_secs(30));
    worker.worker.hurry(Duration::from_secs(300));
    let begin = Instant::now();
    assert_eq!((worker.stop().await.forced, begin.elapsed().as_secs()), (true, 30));
}

#[tokio::test(start_paused = true)]
async fn a_stop_with_no_time_at_all_gives_everything_back() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 4).await;
    let worker = stage.start([spec("a")], slots(4));
    let tasks = worker.take_all(2).await;
    let stopping = begin_stop(&worker, Some(Duration::ZERO)).await;
    for task in tasks {
        worker.fail(task);
    }
    let report = within("the stop", stopping).await.unwrap();
    assert_eq!(report, StopReport { finished: 0, given_back: 4, abandoned: 0, forced: true });
    assert_eq!(stage.states(&ids).await, [State::Ready; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_claim_under_way_brings_its_jobs_back_and_none_of_them_starts() {
    let stage = Stage::new();
    let gate = Gate::default();
    let ids = stage.enqueue("a", 3).await;
    stage.store.next(Call::Claim, 1, &Fault::HoldReply(gate.clone()));
    let worker = stage.start([spec("a")], slots(5));
    worker.serve(|_| async { Attempt::Finished });
    stage.until_all(&ids, State::Running).await;
    let stopping = begin_stop(&worker, None).await;
    assert!(!stopping.is_finished());
    gate.open();
    let report = within("the stop", stopping).await.unwrap();
    assert_eq!(report, StopReport { finished: 0, given_back: 3, abandoned: 0, forced: false });
    assert_eq!((stage.states(&ids).await, worker.counted().started), (vec![State::Ready; 3], 0));
}

#[tokio::test(start_paused = true)]
async fn a_chain_handed_on_just_before_the_stop_is_given_back_and_does_not_start() {
    let stage = Stage::new();
    let ids = stage.chain(&["a"; 3], OnFailure::Continue).await;
    let gate = Gate::default();
    stage.store.next(Call::Settle, 1, &Fault::HoldReply(gate.clone()));
    let worker = stage.start([spec("a")], slots(1));
    worker.serve(|_| async { Attempt::Finished });
    stage.until(ids[1], State::Running).await;
    let stopping = begin_stop(&worker, None).await;
    gate.open();
    let report = within("the stop", stopping).await.unwrap();
    assert_eq!(report, StopReport { finished: 1, given_back: 1, abandoned: 0, forced: false });
    assert_eq!(stage.states(&ids).await, [State::Finished, State::Ready, State::Blocked]);
}

/// Whichever of two things that are ready is looked at first: a stop comes before a free slot.
#[tokio::test(start_paused = true)]
async fn nothing_is_claimed_once_a_stop_was_asked_for() {
    for _ in 0..50 {
        let stage = Stage::new();
        let gate = Gate::default();
        stage.store.next(Call::Claim, 1, &Fault::Hold(gate.clone()));
        let worker = stage.start([spec("a")], slots(9));
        within("the claim", stage.store.arrived(Call::Claim, 1)).await;
        worker.worker.request_stop();
        stage.enqueue("a", 5).await;
        gate.open();
        settle_down().await;
        assert_eq!(stage.store.count(Call::Claim), 1);
        assert!(worker.take_now().is_none());
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_was_only_asked_for_lets_everything_else_go_on() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    worker.worker.request_stop();
    pass(LEASE * 10).await;
    assert!(worker.worker.is_stopping() && !worker.worker.is_over(0));
    worker.finish(task);
    stage.until(ids[0], State::Finished).await;
    pass(LEASE).await;
    assert_eq!((stage.state(ids[1]).await, stage.store.count(Call::Claim)), (State::Ready, 1));
    assert_eq!(worker.stop().await, StopReport::default());
}

#[tokio::test(start_paused = true)]
async fn stop_without_a_deadline_waits_for_a_store_that_is_away() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    stage.store.always(Call::Settle, Fault::Fail);
    worker.finish(worker.take().await);
    let stopping = begin_stop(&worker, None).await;
    pass(Duration::from_secs(600)).await;
    assert!(!stopping.is_finished());
    stage.store.heal(Call::Settle);
    let report = within("the stop", stopping).await.unwrap();
    assert_eq!((report.finished, stage.state(id).await), (1, State::Finished));
    assert_eq!(stage.info(id).await.rescues, 0);
}

#[tokio::test(start_paused = true)]
async fn stop_with_a_deadline_does_not_wait_for_a_store_that_is_away() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    for call in [Call::Settle, Call::Extend, Call::Claim, Call::Rescue, Call::GiveBack, Call::Leave] {
        stage.store.always(call, Fault::Fail);
    }
    worker.finish(task);
    let begin = Instant::now();
    let report = worker.stop_by(Duration::from_secs(20)).await;
    assert!((20..22).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    assert_eq!((report.forced, report.finished, report.abandoned), (true, 0, 1));
    assert_eq!(stage.state(id).await, State::Running, "for another worker when its lease has run out");
}

#[tokio::test(start_paused = true)]
async fn failed_attempts_are_repeated_elsewhere_after_a_stop() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let twice = HandlerSpec { max_attempts: std::num::NonZeroU32::new(2), ..spec("a") };
    let worker = stage.start([twice.clone()], slots(1));
    let task = worker.take().await;
    let stopping = begin_stop(&worker, None).await;
    worker.fail(task);
    assert_eq!(stopping.await.unwrap().finished, 1);
    let other = stage.start([twice], slots(1));
    let again = other.take().await;
    assert_eq!((again.job.id, again.job.attempt), (id, 2));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_left_is_missed_by_nobody() {
    let stage = Stage::new();
    let worker = stage.start([spec("a")], slots(1));
    let other = stage.start([spec("a")], slots(1));
    pass(BEAT).await;
    assert_eq!(stage.stats().await.workers, Some(2));
    stage.store.next(Call::Leave, 1, &Fault::Fail);
    worker.stop().await;
    assert_eq!(stage.stats().await.workers, Some(2), "the store was not told");
    pass(LEASE).await;
    assert_eq!(stage.stats().await.workers, Some(1), "and found out by itself");
    other.stop().await;
    assert_eq!(stage.stats().await.workers, Some(0));
}

#[tokio::test(start_paused = true)]
async fn five_hundred_workers_leave_no_task_behind() {
    let stage = Stage::new();
    let metrics = Handle::current().metrics();
    let baseline = metrics.num_alive_tasks();
    for round in 0..500_u64 {
        stage.enqueue_one("a").await;
        stage.enqueue("b", 2).await;
        let worker = stage.start([spec("a"), async_spec("b")], slots(2));
        // Every way to meet a stop: before the first claim, with queued jobs, with a running one, idle.
        match round % 4 {
            0 => {}
            1 => {
                within("a claim", stage.store.until(async || stage.stats().await.total.running > Some(0)))
                    .await;
            }
            2 => {
                let task = worker.take().await;
                worker.finish(task);
            }
            _ => {
                pass(Duration::from_secs(round)).await;
            }
        }
        let report = worker.stop().await;
        assert_eq!((report.abandoned, report.forced), (0, false), "round {round}");
        assert_eq!(metrics.num_alive_tasks(), baseline, "round {round}");
        assert_eq!(worker.worker.in_hand(), 0, "round {round}");
    }
    let total = stage.stats().await.total;
    assert_eq!((total.running, total.finished), (Some(0), Some(125)));
    assert_eq!(total.ready, Some(1_375), "nothing is lost");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_stopped_by_force_leaves_no_task_behind() {
    let stage = Stage::new();
    let metrics = Handle::current().metrics();
    let baseline = metrics.num_alive_tasks();
    for _ in 0..50 {
        stage.enqueue("a", 3).await;
        let worker = stage.start([spec("a")], slots(2));
        let tasks = worker.take_all(2).await;
        let report = worker.stop_by(Duration::from_millis(100)).await;
        assert_eq!((report.abandoned, report.forced), (2, true));
        assert_eq!(metrics.num_alive_tasks(), baseline);
        for task in tasks {
            worker.finish(task);
        }
    }
    assert!(stage.store.memory.stats().await.unwrap().workers.unwrap() > 0, "they have not left");
}
