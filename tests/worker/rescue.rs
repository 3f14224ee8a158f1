//! Jobs of workers that died.

use dejq::job::{OnFailure, State};
use dejq::worker::{Attempt, WorkerConfig};
use tokio::time::Instant;

use crate::stage::{LEASE, Stage, pass, slots, somebody, spec};

#[tokio::test(start_paused = true)]
async fn the_jobs_of_a_dead_worker_run_elsewhere_after_a_lease_and_a_half() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 3).await;
    stage.claim_as(somebody(), "a", 3).await;
    let death = Instant::now();
    let worker = stage.start([spec("a")], slots(3));
    let tasks = worker.take_all(3).await;
    assert!((LEASE..LEASE * 8 / 5).contains(&death.elapsed()), "{:?}", death.elapsed());
    assert_eq!(tasks.iter().map(|task| task.job.id).collect::<Vec<_>>(), ids, "in their old order");
    assert!(tasks.iter().all(|task| task.job.attempt == 1), "a lost lease is not a failed attempt");
    assert_eq!(worker.counted().rescued, 3);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_loses_every_worker_fails_in_the_end_and_its_dependant_runs() {
    let stage = Stage::new();
    let ids = stage.chain(&["killer", "a"], OnFailure::Continue).await;
    let worker = stage.start([spec("a")], WorkerConfig { max_rescues: 2, ..slots(1) });
    for _ in 0..3 {
        stage.until(ids[0], State::Ready).await;
        assert_eq!(stage.claim_as(somebody(), "killer", 1).await.len(), 1);
        pass(LEASE).await;
    }
    let task = worker.take().await;
    assert_eq!(task.job.id, ids[1]);
    let info = stage.info(ids[0]).await;
    assert_eq!((info.state, info.rescues), (State::Failed, 2));
    assert_eq!(info.failure.unwrap().kind, "worker lost");
    assert_eq!(worker.counted().rescued, 2);
}

#[tokio::test(start_paused = true)]
async fn a_chain_goes_on_where_its_dead_worker_left_it() {
    let stage = Stage::new();
    let ids = stage.chain(&["a"; 3], OnFailure::Continue).await;
    let dead = somebody();
    let taken = stage.claim_as(dead, "a", 1).await;
    stage.finish_as(dead, &taken[0]).await;
    let taken = stage.claim_as(dead, "a", 1).await;
    assert_eq!(taken[0].job.id, ids[1]);
    let worker = stage.start([spec("a")], slots(1));
    worker.serve(|_| async { Attempt::Finished });
    stage.until_all(&ids, State::Finished).await;
    assert_eq!(worker.counted().started, 2, "the first job is not run again");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_alive_loses_nothing_to_a_rescue() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 4).await;
    let workers: Vec<_> = (0..4).map(|_| stage.start([spec("a")], slots(1))).collect();
    let mut tasks = Vec::new();
    for worker in &workers {
        tasks.push(worker.take().await);
    }
    pass(LEASE * 50).await;
    for (worker, task) in workers.iter().zip(tasks) {
        worker.finish(task);
    }
    stage.until_all(&ids, State::Finished).await;
    assert!(workers.iter().all(|worker| worker.counted().rescued == 0 && worker.counted().lost == 0));
}
