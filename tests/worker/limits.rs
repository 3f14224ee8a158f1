//! `max_jobs`: so many handler calls and not one more; what is left is for others.

use dejq::job::State;
use dejq::worker::WorkerConfig;

use crate::stage::{Stage, settle_down, slots, spec, within};

fn at_most(jobs: u64, slots_: usize) -> WorkerConfig {
    WorkerConfig { max_jobs: Some(jobs), ..slots(slots_) }
}

#[tokio::test(start_paused = true)]
async fn a_worker_makes_no_more_handler_calls_than_it_may() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 10).await;
    let worker = stage.start([spec("a")], at_most(3, 5));
    let tasks = worker.take_all(2).await;
    assert!(!worker.worker.is_stopping() && !worker.worker.is_spent());
    let last = worker.take().await;
    within("the end of the claims", worker.worker.stopping()).await;
    assert!(worker.worker.is_spent());
    assert!(worker.take_now().is_none(), "two more were claimed, and are not for this worker");
    for task in tasks.into_iter().chain([last]) {
        worker.finish(task);
    }
    let report = worker.stop().await;
    assert!(!report.forced);
    let counted = worker.counted();
    assert_eq!((counted.started, counted.finished), (3, 3));
    let states = stage.states(&ids).await;
    assert_eq!(states.iter().filter(|state| **state == State::Ready).count(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_chain_goes_on_elsewhere() {
    let stage = Stage::new();
    let ids = stage.chain(&["a", "a", "a"], dejq::job::OnFailure::Continue).await;
    let worker = stage.start([spec("a")], at_most(2, 1));
    for _ in 0..2 {
        worker.finish(worker.take().await);
    }
    settle_down().await;
    worker.stop().await;
    assert_eq!(stage.states(&ids).await, [State::Finished, State::Finished, State::Ready]);
    let other = stage.start([spec("a")], slots(1));
    other.finish(other.take().await);
    stage.until(ids[2], State::Finished).await;
}
