//! From an executor's report to the store: at once when there is time, in batches when there is not.

use std::time::Duration;

use dejq::job::State;
use dejq::worker::{Attempt, Task};
use tokio::time::Instant;

use crate::executor::Executor;
use crate::faulty::{Call, Fault, Gate};
use crate::stage::{Stage, pass, settle_down, slots, spec, within};

/// When the calls arrived, and how many ends each brought.
fn settles(stage: &Stage) -> Vec<(Instant, usize)> {
    stage.store.seen(Call::Settle).iter().map(|seen| (seen.at, seen.jobs)).collect()
}

/// Reports ends and says nothing of being idle.
fn end_busily(worker: &Executor, tasks: impl IntoIterator<Item = std::sync::Arc<Task>>) {
    for task in tasks {
        worker.worker.ended(task, Attempt::Finished);
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_end_is_stored_at_once_although_its_executor_is_busy_again() {
    let stage = Stage::new();
    let id = stage.enqueue_one("a").await;
    let worker = stage.start([spec("a")], slots(1));
    let task = worker.take().await;
    pass(Duration::from_secs(1)).await;
    let ended = Instant::now();
    end_busily(&worker, [task]);
    stage.until(id, State::Finished).await;
    assert_eq!(settles(&stage), [(ended, 1)]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_executor_has_its_ends_stored_at_once() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    let worker = stage.start([spec("a")], slots(2));
    let mut tasks = worker.take_all(2).await;
    pass(Duration::from_secs(1)).await;
    let ended = Instant::now();
    for (task, id) in tasks.drain(..).zip(ids) {
        worker.finish(task);
        stage.until(id, State::Finished).await;
    }
    assert_eq!(settles(&stage), [(ended, 1), (ended, 1)]);
}

#[tokio::test(start_paused = true)]
async fn ends_of_a_busy_executor_are_stored_together_within_a_millisecond() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 101).await;
    let worker = stage.start([spec("a")], slots(101));
    let mut tasks = worker.take_all(101).await;
    pass(Duration::from_secs(1)).await;
    let ended = Instant::now();
    end_busily(&worker, tasks.pop());
    stage.until(ids[100], State::Finished).await;
    // The settler comes back from the store, finds nothing, and will look again by itself.
    tokio::task::yield_now().await;
    end_busily(&worker, tasks);
    stage.until_all(&ids, State::Finished).await;
    let settles = settles(&stage);
    assert_eq!(settles.iter().map(|settle| settle.1).collect::<Vec<_>>(), [1, 100]);
    let waited = settles[1].0 - ended;
    assert!((Duration::from_millis(1)..=Duration::from_millis(2)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn many_ends_do_not_wait_for_a_millisecond() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 301).await;
    let worker = stage.start([spec("a")], slots(301));
    let mut tasks = worker.take_all(301).await;
    pass(Duration::from_secs(1)).await;
    let ended = Instant::now();
    end_busily(&worker, tasks.pop());
    stage.until(ids[300], State::Finished).await;
    end_busily(&worker, tasks);
    stage.until_all(&ids, State::Finished).await;
    assert_eq!(settles(&stage), [(ended, 1), (ended, 300)]);
}

#[tokio::test(start_paused = true)]
async fn what_ends_during_a_settle_is_the_next_batch() {
    let stage = Stage::new();
    stage.enqueue("a", 2_001).await;
    let worker = stage.start([spec("a")], slots(2_001));
    let mut tasks = worker.take_all(2_001).await;
    let gate = Gate::default();
    stage.store.next(Call::Settle, 1, &Fault::Hold(gate.clone()));
    worker.finish(tasks.pop().unwrap());
    within("the first settle", stage.store.arrived(Call::Settle, 1)).await;
    for task in tasks {
        worker.finish(task);
    }
    settle_down().await;
    assert_eq!(stage.store.count(Call::Settle), 1, "one settle at a time");
    gate.open();
    within("three settles", stage.store.arrived(Call::Settle, 3)).await;
    settle_down().await;
    assert_eq!(stage.stats().await.total.finished, Some(2_001));
    let sizes: Vec<_> = settles(&stage).iter().map(|settle| settle.1).collect();
    assert_eq!(sizes, [1, 1_024, 976], "and none larger than a store should be asked to take");
}
