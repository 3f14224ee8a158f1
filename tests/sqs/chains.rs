//! Chains on several clients that come and go.

use std::collections::{BTreeMap, HashMap};

use dejq::backend::{Leased, Outcome};
use dejq::job::{JobId, NewJob, OnFailure};

use crate::stage::{Client, Stage, chain, failure, job, pass, retry};

#[tokio::test(start_paused = true)]
async fn a_chain_of_fifty_runs_in_order() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    let enqueued = client.enqueue(&chain(50, OnFailure::Continue)).await;
    let mut ran = Vec::new();
    while ran.len() < 50 {
        let mut running = client.take_one(10).await;
        loop {
            ran.push(running.job.id);
            let mut reply = client.settle(&running, Outcome::Finished).await;
            let Some(next) = reply.next.pop() else { break };
            running = next;
        }
    }
    assert_eq!(ran, enqueued);
}

/// A worker of a history: what it runs.
struct Worker {
    client: Client,
    running: Vec<Leased>,
}

/// Clients die, lose time, fail, stop and retry at random. Then whoever is left finishes the rest.
async fn history(seed: u64, chains: usize, clients: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    // What receives are used up by is the business of `dead_letters.rs`.
    let stage = Stage::with_dead_letters(1000).await;
    let mut jobs: Vec<NewJob> = Vec::new();
    for _ in 0..chains {
        jobs.extend(chain(random.usize(1..14), OnFailure::Continue));
    }
    jobs.push(job("0"));
    stage.client().enqueue(&jobs).await;
    let place: HashMap<JobId, (JobId, u32)> =
        jobs.iter().map(|job| (job.id, (job.chain.id, job.chain.position))).collect();
    let mut started: BTreeMap<JobId, Vec<u32>> = BTreeMap::new();
    let mut workers: Vec<Worker> =
        (0..clients).map(|_| Worker { client: stage.client(), running: Vec::new() }).collect();
    let mut steps = 0;
    let note = |started: &mut BTreeMap<JobId, Vec<u32>>, leased: &[Leased]| {
        for leased in leased {
            let (chain, position) = place[&leased.job.id];
            started.entry(chain).or_default().push(position);
        }
    };
    while stage.counts().0 > 0 {
        steps += 1;
        assert!(steps < 50_000, "seed {seed}: the queue does not become empty");
        let calm = steps > 150;
        let at = random.usize(..workers.len());
        let worker = &mut workers[at];
        match random.u32(..if calm { 12 } else { 16 }) {
            0..=3 => {
                let limit = random.usize(1..12);
                let taken = worker.client.take(limit).await;
                note(&mut started, &taken);
                worker.running.extend(taken);
            }
            4..=8 if !worker.running.is_empty() => {
                let running = worker.running.swap_remove(random.usize(..worker.running.len()));
                let is_last = running.job.last_attempt.is_some_and(|last| running.job.attempt >= last.get());
                let outcome = match random.u32(..10) {
                    0 if !calm && !is_last => retry(random.u64(..20)),
                    0 | 1 if !calm && is_last => Outcome::Failed(failure()),
                    _ => Outcome::Finished,
                };
                let reply = worker.client.settle(&running, outcome).await;
                note(&mut started, &reply.next);
                worker.running.extend(reply.next);
            }
            9 | 10 => {
                let running: Vec<&Leased> = worker.running.iter().collect();
                let lost = worker.client.beat(&running).await;
                worker.running.retain(|leased| lost.iter().all(|(lease, _)| lease.id != leased.job.id));
            }
            11 => pass(random.u64(1..12)).await,
            // It dies.
            12 => *worker = Worker { client: stage.client(), running: Vec::new() },
            // It stops in good order.
            13 => {
                worker.client.leave().await;
                for running in std::mem::take(&mut worker.running) {
                    worker.client.settle(&running, Outcome::Interrupted).await;
                }
                *worker = Worker { client: stage.client(), running: Vec::new() };
            }
            14 => pass(40).await,
            _ => {}
        }
    }
    for (chain, positions) in &started {
        // No job starts again once one behind it has started.
        assert!(positions.is_sorted(), "seed {seed}: chain {chain} ran as {positions:?}");
    }
    for job in &jobs {
        let ran = started.get(&job.chain.id).is_some_and(|ran| ran.contains(&job.chain.position));
        assert!(ran, "seed {seed}: a job of a chain of {} never ran", job.chain.length);
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_to_workers_every_job_runs_and_every_chain_in_order() {
    for seed in 0..15 {
        history(seed, 8, 3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_chains_on_four_clients_that_are_killed_run_whole_and_in_order() {
    history(1, 100, 4).await;
}
