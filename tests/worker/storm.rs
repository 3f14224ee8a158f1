//! Everything at once: several workers, chains, failures, slow handlers, stops, and a store that fails in
//! every way it can, from a seed. Afterwards the history is checked: nothing lost, nothing out of order, and
//! no start that the contract (P3) cannot explain.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dejq::job::{JobId, NewJob, OnFailure, State};
use dejq::worker::{Attempt, Cancel, HandlerSpec, Task};
use fastrand::Rng;
use tokio::time::Instant;

use crate::executor::{Executor, failed};
use crate::faulty::{Call, Fault};
use crate::stage::{BEAT, LEASE, Stage, job, pass, slots, spec, within};

const SEEDS: u64 = 40;
const CALLS: [Call; 5] = [Call::Claim, Call::Extend, Call::Settle, Call::GiveBack, Call::Rescue];

/// One run of a handler.
#[derive(Debug, Clone)]
struct Run {
    position: u32,
    attempt: u32,
    started: Instant,
    ended: Instant,
    /// Why it was told to return, if it was.
    told: Cancel,
}

type History = Arc<Mutex<HashMap<JobId, Vec<Run>>>>;

/// Fails on its first attempt if its type says so; takes up to 20 s; returns soon when it is told to.
async fn handle(task: Arc<Task>, length: Duration, history: History) -> Attempt {
    let started = Instant::now();
    while started.elapsed() < length && task.cancelled() == Cancel::No {
        pass(Duration::from_millis(500).min(length)).await;
    }
    let told = task.cancelled();
    let run = Run {
        position: task.job.chain.position,
        attempt: task.job.attempt,
        started,
        ended: Instant::now(),
        told,
    };
    history.lock().unwrap().entry(task.job.id).or_default().push(run);
    let is_flaky = task.job.job_type.as_str() == "flaky" && task.job.attempt == 1;
    if is_flaky || told != Cancel::No { failed() } else { Attempt::Finished }
}

fn start(stage: &Stage, history: &History, seed: u64) -> Executor {
    let flaky = HandlerSpec { max_attempts: NonZeroU32::new(3), ..spec("flaky") };
    let config = dejq::worker::WorkerConfig { max_rescues: 1_000, ..slots(3) };
    let worker = stage.start([spec("steady"), flaky], config);
    let (history, lengths) = (Arc::clone(history), Arc::new(Mutex::new(Rng::with_seed(seed))));
    worker.serve(move |task| {
        let length = match lengths.lock().unwrap().u64(0..10) {
            0 => Duration::from_secs(20),
            other => Duration::from_millis(other * 100),
        };
        handle(task, length, Arc::clone(&history))
    });
    worker
}

fn any_fault(random: &mut Rng, round: u64) -> Fault {
    match random.u8(0..5) {
        0 => Fault::LoseReply,
        1 => Fault::Late(Duration::from_millis(random.u64(1..20_000))),
        // Seldom, because five in a row would end a worker.
        2 if round % 15 == 7 => Fault::Panic,
        _ => Fault::Fail,
    }
}

async fn storm(seed: u64) {
    fastrand::seed(seed);
    let mut random = Rng::with_seed(seed);
    let stage = Stage::new();
    let history = History::default();
    let mut jobs: Vec<NewJob> = Vec::new();
    for _ in 0..40 {
        let names = (0..random.usize(1..6)).map(|_| if random.u8(0..4) == 0 { "flaky" } else { "steady" });
        let mut chain: Vec<NewJob> = names.map(job).collect();
        NewJob::link(&mut chain, OnFailure::Continue).unwrap();
        jobs.append(&mut chain);
    }
    let ids = stage.add(&jobs).await;
    let mut workers: Vec<Executor> = (0..3).map(|number| start(&stage, &history, seed + number)).collect();
    let mut unclear = 0;
    for round in 0..60 {
        let call = random.choice(CALLS).unwrap();
        let fault = any_fault(&mut random, round);
        let times = if matches!(fault, Fault::Panic) { 1 } else { random.usize(1..4) };
        unclear += times;
        stage.store.next(call, times, &fault);
        if round % 12 == 5 {
            // One worker goes, politely or by force, and another one comes.
            let leaves = workers.remove(random.usize(0..3));
            let timeout = if random.bool() { Duration::from_secs(600) } else { Duration::from_secs(2) };
            leaves.stop_by(timeout).await;
            workers.push(start(&stage, &history, seed + 100 + round));
        }
        pass(Duration::from_millis(random.u64(1..3_000))).await;
    }
    for call in CALLS {
        stage.store.heal(call);
    }
    let all = async || {
        let total = stage.stats().await.total;
        total.finished.unwrap() + total.failed.unwrap() == jobs.len() as u64
    };
    within("every job's end", stage.store.until(all)).await;
    pass(LEASE * 2).await;
    for worker in &workers {
        let report = worker.stop().await;
        assert_eq!((report.abandoned, worker.worker.in_hand()), (0, 0), "seed {seed}");
    }
    assert_eq!(stage.stats().await.total.running, Some(0), "seed {seed}");
    let history = history.lock().unwrap().clone();
    check(&stage, &ids, &history, unclear, seed).await;
}

async fn check(stage: &Stage, ids: &[JobId], history: &HashMap<JobId, Vec<Run>>, unclear: usize, seed: u64) {
    let mut unexplained = 0;
    for id in ids {
        let info = stage.info(*id).await;
        assert_eq!(info.state, State::Finished, "seed {seed}: {info:#?}");
        let runs = &history[id];
        assert!(runs.iter().all(|run| run.position == info.job.chain.position));
        // P3: one run, one more for each attempt that failed, each rescue, each attempt that was cut short, and each end that
        // the store did not take.
        let cut_short = runs.iter().filter(|run| run.told != Cancel::No).count();
        let attempts = info.job.attempt as usize + info.rescues as usize;
        let explained = attempts + cut_short + stage.store.unstored(*id);
        unexplained += runs.len().saturating_sub(explained);
        // A zombie ends late, so they are not in order of their starts.
        let mut runs: Vec<&Run> = runs.iter().collect();
        runs.sort_by_key(|run| run.started);
        for pair in runs.windows(2) {
            assert!(pair[0].attempt <= pair[1].attempt, "seed {seed}: {id} went back: {runs:#?}");
        }
    }
    assert_eq!(unexplained, 0, "seed {seed}: {unclear} faults");
    // P5: no job starts before the end of some run of the one before it, or again once the next one has started.
    for pair in ids.windows(2) {
        let (before, after) = (&history[&pair[0]], &history[&pair[1]]);
        if after[0].position != before[0].position + 1 || stage.info(pair[1]).await.job.chain.position == 1 {
            continue;
        }
        let first_start = after.iter().map(|run| run.started).min().unwrap();
        let first_end = before.iter().map(|run| run.ended).min().unwrap();
        assert!(first_end <= first_start, "seed {seed}: {} started before {} ended", pair[1], pair[0]);
        let late = before.iter().filter(|run| run.started > first_start).count();
        assert_eq!(late, 0, "seed {seed}: {} started again after {}", pair[0], pair[1]);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_doubled_or_out_of_order_whatever_the_store_does() {
    assert!(BEAT < LEASE);
    for seed in 0..SEEDS {
        storm(seed).await;
    }
}
