//! Real threads that wait in `next`, as the Python executors do.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use dejq::job::{JobId, NewJob, OnFailure, State};
use dejq::worker::{Attempt, Worker};

use crate::executor::Executor;
use crate::stage::{Stage, job, slots, spec, within};

/// How often each job was started.
type Starts = Arc<Mutex<HashMap<JobId, usize>>>;

/// As many threads as there are slots; each ends when `next` says so.
fn run_threads(worker: &Executor, starts: &Starts) -> Vec<JoinHandle<usize>> {
    (0..worker.worker.slots(0))
        .map(|_| {
            let (worker, starts) = (Arc::clone(&worker.worker), Arc::clone(starts));
            std::thread::spawn(move || run_thread(&worker, &starts))
        })
        .collect()
}

fn run_thread(worker: &Worker, starts: &Starts) -> usize {
    let mut done = 0;
    // As the Python threads do: `next` only when there is nothing at once.
    while let Some(task) = worker.try_next(0).or_else(|| worker.next(0)) {
        *starts.lock().unwrap().entry(task.job.id).or_default() += 1;
        worker.ended(task, Attempt::Finished);
        done += 1;
    }
    done
}

/// Waits for the threads without holding up the runtime, and says what each has done.
async fn join(threads: Vec<JoinHandle<usize>>) -> Vec<usize> {
    let joined =
        tokio::task::spawn_blocking(move || threads.into_iter().map(|t| t.join().unwrap()).collect());
    within("the threads", joined).await.unwrap()
}

async fn all_finished(stage: &Stage, count: u64) {
    let is_done = async || stage.stats().await.total.finished == Some(count);
    within("all jobs", stage.store.until(is_done)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_run_every_job_once_and_all_end_with_the_worker() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 10_000).await;
    let starts = Starts::default();
    let worker = stage.start([spec("a")], slots(4));
    let threads = run_threads(&worker, &starts);
    all_finished(&stage, 10_000).await;
    let report = worker.stop().await;
    assert_eq!(report.abandoned, 0);
    assert_eq!(join(threads).await.iter().sum::<usize>(), 10_000);
    let starts = starts.lock().unwrap();
    assert!(ids.iter().all(|id| starts.get(id) == Some(&1)));
    let counted = worker.counted();
    assert_eq!((counted.started, counted.finished, counted.lost), (10_000, 10_000, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_run_chains_in_order() {
    let stage = Stage::new();
    let mut jobs: Vec<NewJob> = Vec::new();
    for _ in 0..100 {
        let mut chain: Vec<NewJob> = (0..20).map(|_| job("a")).collect();
        NewJob::link(&mut chain, OnFailure::Continue).unwrap();
        jobs.append(&mut chain);
    }
    stage.add(&jobs).await;
    let worker = stage.start([spec("a")], slots(4));
    // Position of the job of each chain that runs or ran last.
    let reached: Arc<Mutex<HashMap<JobId, u32>>> = Arc::default();
    let out_of_order = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (worker, reached) = (Arc::clone(&worker.worker), Arc::clone(&reached));
            let out_of_order = Arc::clone(&out_of_order);
            std::thread::spawn(move || {
                let mut done = 0;
                while let Some(task) = worker.next(0) {
                    let chain = task.job.chain;
                    let before = reached.lock().unwrap().insert(chain.id, chain.position).unwrap_or_default();
                    if before + 1 != chain.position {
                        out_of_order.fetch_add(1, Ordering::Relaxed);
                    }
                    worker.ended(task, Attempt::Finished);
                    done += 1;
                }
                done
            })
        })
        .collect();
    all_finished(&stage, 2_000).await;
    worker.stop().await;
    assert_eq!((join(threads).await.iter().sum::<usize>(), out_of_order.load(Ordering::Relaxed)), (2_000, 0));
    let handed_off = worker.counted().handed_off;
    assert!((1_800..=1_900).contains(&handed_off), "{handed_off} of 1,900 were handed on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_come_and_go_under_load_lose_and_double_nothing() {
    let stage = Stage::new();
    stage.enqueue("a", 30_000).await;
    let starts = Starts::default();
    let (mut done, mut given_back) = (0, 0);
    for round in 1..=30 {
        let worker = stage.start([spec("a")], slots(3));
        let threads = run_threads(&worker, &starts);
        let goal = round * 500;
        within("some jobs", stage.store.until(async || stage.stats().await.total.finished >= Some(goal)))
            .await;
        let report = worker.stop().await;
        assert_eq!((report.abandoned, report.forced, worker.worker.in_hand()), (0, false, 0));
        assert_eq!(worker.counted().lost, 0);
        given_back += report.given_back;
        done += join(threads).await.iter().sum::<usize>();
    }
    let total = stage.stats().await.total;
    assert_eq!((total.finished, total.running), (Some(done as u64), Some(0)));
    assert_eq!(total.ready, Some(30_000 - done as u64));
    assert!(given_back > 0, "no stop met a queued job");
    let starts = starts.lock().unwrap();
    assert!(starts.values().all(|&times| times == 1) && starts.len() == done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_stored_although_its_thread_is_busy_with_the_next_job() {
    let stage = Stage::new();
    let ids = stage.enqueue("a", 2).await;
    let worker = stage.start([spec("a")], slots(2));
    let may_return = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let (worker, may_return) = (Arc::clone(&worker.worker), Arc::clone(&may_return));
        move || {
            let first = worker.next(0).unwrap();
            let second = loop {
                if let Some(task) = worker.try_next(0) {
                    break task;
                }
                std::thread::yield_now();
            };
            worker.ended(first, Attempt::Finished);
            // From here on the thread says nothing to the worker.
            while !may_return.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            worker.ended(second, Attempt::Finished);
            usize::from(worker.next(0).is_none())
        }
    });
    stage.until(ids[0], State::Finished).await;
    assert_eq!(stage.state(ids[1]).await, State::Running);
    may_return.store(true, Ordering::Release);
    stage.until(ids[1], State::Finished).await;
    worker.stop().await;
    assert_eq!(join(vec![thread]).await, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_threads_are_woken_by_jobs_and_by_the_stop() {
    let stage = Stage::new();
    let starts = Starts::default();
    let worker = stage.start([spec("a")], slots(8));
    let threads = run_threads(&worker, &starts);
    for _ in 0..200 {
        let id = stage.enqueue_one("a").await;
        stage.until(id, State::Finished).await;
    }
    worker.stop().await;
    assert_eq!(join(threads).await.iter().sum::<usize>(), 200);
}
