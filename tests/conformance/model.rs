//! Random operations on a store and on a [`Reference`] of the contract: both must agree after every one.

mod reference;

use std::time::Duration;

use dejq::backend::{Lease, Leased, Outcome, Revocation, Settled};
use dejq::error::{ErrorKind, Result};
use dejq::job::{JobId, NewJob, OnFailure, State};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use self::reference::Reference;
use crate::support::{TestQueue, a_type, count, failure, job, lease, linked, unique};

const TYPES: [&str; 3] = ["a", "b", "c"];

/// One step. Jobs, calls and leases are named by a number that counts back from the latest, round and round.
#[derive(Debug, Clone)]
enum Op {
    /// One call: a single job or a chain, each with its type and its delay in ticks.
    Enqueue {
        jobs: Vec<(usize, u32)>,
        on_failure: OnFailure,
    },
    Unique {
        job_type: usize,
        key: u8,
        delay: u32,
    },
    RepeatEnqueue {
        call: usize,
    },
    Claim {
        types: Vec<usize>,
        limit: usize,
    },
    Settle {
        ends: Vec<(usize, End)>,
        hand_over: Vec<usize>,
    },
    Beat {
        leases: Vec<usize>,
    },
    GiveBack {
        leases: Vec<usize>,
    },
    Rescue {
        max_rescues: u32,
    },
    Pass {
        ticks: u32,
    },
    Finish {
        job: usize,
    },
    Cancel {
        job: usize,
    },
    Requeue {
        job: usize,
    },
    DeleteFinished {
        older_than: u32,
    },
}

#[derive(Debug, Clone, Copy)]
enum End {
    Finished,
    Retry { after: u32 },
    Failed,
    Cancelled,
    Interrupted,
}

fn an_op() -> impl Strategy<Value = Op> {
    let delay = || prop_oneof![4 => Just(0_u32), 1 => 1..5_u32];
    let types = || proptest::sample::subsequence(vec![0, 1, 2], 0..=3);
    let all_types = || prop_oneof![3 => Just(vec![0, 1, 2]), 1 => types()];
    let on_failure = prop_oneof![Just(OnFailure::Continue), Just(OnFailure::Cancel)];
    let end = prop_oneof![
        4 => Just(End::Finished),
        1 => delay().prop_map(|after| End::Retry { after }),
        2 => Just(End::Failed),
        1 => Just(End::Cancelled),
        1 => Just(End::Interrupted),
    ];
    prop_oneof![
        4 => (vec((0..3_usize, delay()), 1..5), on_failure)
            .prop_map(|(jobs, on_failure)| Op::Enqueue { jobs, on_failure }),
        1 => (0..2_usize, 0..2_u8, delay())
            .prop_map(|(job_type, key, delay)| Op::Unique { job_type, key, delay }),
        1 => (0..6_usize).prop_map(|call| Op::RepeatEnqueue { call }),
        6 => (all_types(), 1..4_usize).prop_map(|(types, limit)| Op::Claim { types, limit }),
        6 => (vec((0..6_usize, end), 1..4), all_types())
            .prop_map(|(ends, hand_over)| Op::Settle { ends, hand_over }),
        1 => vec(0..9_usize, 0..5).prop_map(|leases| Op::Beat { leases }),
        1 => vec(0..6_usize, 0..4).prop_map(|leases| Op::GiveBack { leases }),
        2 => (0..3_u32).prop_map(|max_rescues| Op::Rescue { max_rescues }),
        3 => prop_oneof![1..4_u32, Just(11)].prop_map(|ticks| Op::Pass { ticks }),
        1 => (0..12_usize).prop_map(|job| Op::Finish { job }),
        2 => (0..12_usize).prop_map(|job| Op::Cancel { job }),
        3 => (0..12_usize).prop_map(|job| Op::Requeue { job }),
        1 => (0..12_u32).prop_map(|older_than| Op::DeleteFinished { older_than }),
    ]
}

/// A store and its model, side by side.
struct Pair {
    queue: TestQueue,
    reference: Reference,
    calls: Vec<Vec<NewJob>>,
    leases: Vec<Lease>,
}

/// What the two do not agree on.
type Verdict = std::result::Result<(), String>;

#[allow(clippy::needless_pass_by_value)] // the callers are what is read
fn agree<T: PartialEq + std::fmt::Debug>(what: impl std::fmt::Display, store: T, model: T) -> Verdict {
    if store == model {
        Ok(())
    } else {
        Err(format!("{what}: the store says {store:?}, the contract {model:?}"))
    }
}

fn latest<T>(all: &[T], back: usize) -> Option<usize> {
    (!all.is_empty()).then(|| all.len() - 1 - back % all.len())
}

fn names(types: &[usize]) -> Vec<&'static str> {
    types.iter().map(|index| TYPES[*index]).collect()
}

fn kind(result: Result<()>) -> std::result::Result<(), ErrorKind> {
    result.map_err(|error| error.kind().clone())
}

impl Pair {
    fn new(queue: TestQueue) -> Self {
        let reference = Reference { jobs: Vec::new(), now: Duration::ZERO, lease: queue.lease_time() };
        Self { queue, reference, calls: Vec::new(), leases: Vec::new() }
    }

    async fn run(mut self, ops: Vec<Op>) -> Verdict {
        for (step, op) in ops.iter().enumerate() {
            let verdict = match self.apply(op).await {
                Ok(()) => self.compare().await,
                wrong => wrong,
            };
            verdict.map_err(|wrong| format!("step {step}, {op:?}\n{wrong}"))?;
        }
        Ok(())
    }

    async fn apply(&mut self, op: &Op) -> Verdict {
        match op {
            Op::Enqueue { jobs, on_failure } => {
                let jobs = jobs
                    .iter()
                    .map(|(name, delay)| NewJob { delay: self.queue.ticks(*delay), ..job(TYPES[*name]) });
                self.calls.push(linked(jobs.collect(), *on_failure));
                self.enqueue(self.calls.len() - 1).await
            }
            Op::Unique { job_type, key, delay } => {
                let delay = self.queue.ticks(*delay);
                self.calls.push(vec![NewJob { delay, ..unique(TYPES[*job_type], &key.to_string()) }]);
                self.enqueue(self.calls.len() - 1).await
            }
            Op::RepeatEnqueue { call } => {
                let Some(call) = latest(&self.calls, *call) else { return Ok(()) };
                let is_deleted =
                    |id: JobId| self.reference.jobs.iter().any(|job| job.new.id == id && job.deleted);
                // A store need not remember what was deleted.
                if self.calls[call].iter().any(|new| is_deleted(new.id)) {
                    Ok(())
                } else {
                    self.enqueue(call).await
                }
            }
            Op::Claim { types, limit } => {
                let leased = self.queue.claim(&names(types), *limit).await;
                self.claimed(types, *limit, &leased)
            }
            Op::Settle { ends, hand_over } => self.settle(ends, hand_over).await,
            Op::Beat { leases } => {
                // All that the worker holds, and some that it has lost.
                let mut leases = self.some_leases(leases);
                leases.retain(|lease| self.reference.held(*lease).is_none());
                leases.extend(self.leases.iter().filter(|lease| self.reference.held(**lease).is_some()));
                let told = self.queue.beat(&leases).await;
                let mut expected = Vec::new();
                for lease in leases {
                    match self.reference.held(lease) {
                        None => expected.push((lease, Revocation::Lost)),
                        Some(job) => {
                            self.reference.beat(job);
                            if self.reference.jobs[job].cancel_asked {
                                expected.push((lease, Revocation::Cancel));
                            }
                        }
                    }
                }
                agree("revoked leases", told, expected)
            }
            Op::GiveBack { leases } => {
                let leases = self.some_leases(leases);
                self.queue.backend.give_back(&leases).await.unwrap();
                for lease in leases {
                    if let Some(job) = self.reference.held(lease) {
                        self.reference.give_back(job);
                    }
                }
                Ok(())
            }
            Op::Rescue { max_rescues } => {
                let rescued = self.queue.rescue(*max_rescues).await;
                agree("rescued jobs", rescued, self.reference.rescue(*max_rescues))
            }
            Op::Pass { ticks } => {
                self.queue.pass(*ticks).await;
                self.reference.pass(self.queue.ticks(*ticks));
                Ok(())
            }
            Op::Finish { job } => {
                let Some(job) = latest(&self.reference.jobs, *job) else { return Ok(()) };
                let done = self.queue.backend.finish(self.reference.jobs[job].new.id).await;
                agree(format!("finishing job {job}"), kind(done), self.reference.finish(job))
            }
            Op::Cancel { job } => {
                let Some(job) = latest(&self.reference.jobs, *job) else { return Ok(()) };
                let done = self.queue.backend.cancel(self.reference.jobs[job].new.id).await;
                agree(format!("cancelling job {job}"), kind(done), self.reference.cancel(job))
            }
            Op::Requeue { job } => {
                let Some(job) = latest(&self.reference.jobs, *job) else { return Ok(()) };
                let done = self.queue.backend.requeue(self.reference.jobs[job].new.id).await;
                agree(format!("requeueing job {job}"), kind(done), self.reference.requeue(job))
            }
            Op::DeleteFinished { older_than } => {
                let older_than = self.queue.ticks(*older_than);
                let deleted = self.queue.backend.delete_finished(older_than, 1_000).await.unwrap();
                agree("deleted jobs", deleted, self.reference.delete_finished(older_than))
            }
        }
    }

    fn some_leases(&self, back: &[usize]) -> Vec<Lease> {
        let mut places: Vec<usize> = back.iter().filter_map(|back| latest(&self.leases, *back)).collect();
        places.sort_unstable();
        places.dedup();
        places.iter().map(|place| self.leases[*place]).collect()
    }

    async fn enqueue(&mut self, call: usize) -> Verdict {
        let ids = self.queue.put(&self.calls[call]).await;
        agree("ids", ids, self.reference.enqueue(&self.calls[call]))
    }

    /// Any job that is ready may be handed out, but of those that were never delayed or brought back only the
    /// oldest of its type.
    fn claimed(&mut self, types: &[usize], limit: usize, leased: &[Leased]) -> Verdict {
        let wanted: Vec<_> = names(types).into_iter().map(a_type).collect();
        let jobs = &self.reference.jobs;
        let ready = jobs.iter().filter(|job| job.state == State::Ready && wanted.contains(&job.new.job_type));
        agree("number of jobs claimed", leased.len(), ready.count().min(limit))?;
        for leased in leased {
            let job = self.started(leased)?;
            if !wanted.contains(&self.reference.jobs[job].new.job_type) {
                return Err(format!("job {job} was claimed, and nobody asked for its type"));
            }
            let claimed = &self.reference.jobs[job];
            let is_older = |other: &&reference::Job| {
                other.in_order && other.state == State::Ready && other.new.job_type == claimed.new.job_type
            };
            if claimed.in_order && self.reference.jobs[..job].iter().any(|other| is_older(&other)) {
                return Err(format!("job {job} was claimed before an older one of its type"));
            }
        }
        Ok(())
    }

    /// A job goes to a worker, by a claim or by a hand-over.
    fn started(&mut self, leased: &Leased) -> std::result::Result<usize, String> {
        let Some(job) = self.reference.jobs.iter().position(|job| job.new.id == leased.job.id) else {
            return Err(format!("job {} was never enqueued", leased.job.id));
        };
        agree(
            format!("job {job}, just before it was started"),
            State::Ready,
            self.reference.jobs[job].state,
        )?;
        if self.leases.contains(&lease(leased)) {
            return Err(format!("job {job} was started with a token that it had before"));
        }
        self.leases.push(lease(leased));
        self.reference.start(job, leased.token);
        agree(format!("attempt of job {job}"), leased.job.attempt, self.reference.jobs[job].attempt)?;
        Ok(job)
    }

    async fn settle(&mut self, ends: &[(usize, End)], hand_over: &[usize]) -> Verdict {
        let done: Vec<Settled> = ends
            .iter()
            .filter_map(|(back, end)| {
                let outcome = match *end {
                    End::Finished => Outcome::Finished,
                    End::Retry { after } => {
                        Outcome::Retry { after: self.queue.ticks(after), failure: failure() }
                    }
                    End::Failed => Outcome::Failed(failure()),
                    End::Cancelled => Outcome::Cancelled(failure()),
                    End::Interrupted => Outcome::Interrupted,
                };
                Some(Settled { lease: self.leases[latest(&self.leases, *back)?], outcome })
            })
            .collect();
        let reply = self.queue.settle_all(&done, &names(hand_over)).await;
        let (mut lost, mut next) = (Vec::new(), Vec::new());
        for (place, settled) in done.iter().enumerate() {
            let Some(job) = self.reference.held(settled.lease) else {
                lost.push(place);
                continue;
            };
            self.reference.settle(job, &settled.outcome);
            next.extend(
                self.reference.after(job).find(|later| self.reference.jobs[*later].state == State::Ready),
            );
        }
        agree("stale leases", reply.lost, lost)?;
        let wanted: Vec<_> = names(hand_over).into_iter().map(a_type).collect();
        next.retain(|job| wanted.contains(&self.reference.jobs[*job].new.job_type));
        let mut handed_over = Vec::new();
        for leased in &reply.next {
            handed_over.push(self.started(leased)?);
        }
        agree("jobs handed over", handed_over, next)
    }

    /// Every job and every count, and what must be true of the store whatever the model says.
    async fn compare(&self) -> Verdict {
        let mut states = Vec::new();
        for (place, job) in self.reference.jobs.iter().enumerate() {
            let info = self.queue.backend.get(job.new.id).await;
            if job.deleted {
                agree(format!("job {place}"), kind(info.map(|_| ())), Err(ErrorKind::UnknownJob))?;
                states.push(job.state);
                continue;
            }
            let info = info.map_err(|error| format!("job {place} is lost: {error}"))?;
            let store = (info.state, info.job.attempt, info.rescues);
            agree(format!("job {place}"), store, (job.state, job.attempt, job.rescues))?;
            agree(format!("type of job {place}"), &info.job.job_type, &job.new.job_type)?;
            agree(
                format!("a beat of job {place}"),
                info.last_beat_at.is_some(),
                info.state == State::Running,
            )?;
            agree(format!("an end of job {place}"), info.finished_at.is_some(), info.state.is_final())?;
            agree(format!("a time of job {place}"), info.due_at.is_some(), info.state == State::Scheduled)?;
            states.push(info.state);
        }
        for (place, state) in states.iter().enumerate() {
            let chain = self.reference.jobs[place].new.chain.id;
            let is_open = |before: &usize| {
                self.reference.jobs[*before].new.chain.id == chain && !states[*before].is_final()
            };
            let is_blocked = (0..place).any(|before| is_open(&before));
            if !state.is_final() {
                agree(format!("job {place} waits for another"), *state == State::Blocked, is_blocked)?;
            }
        }
        let told = self.queue.backend.stats().await.unwrap();
        for state in State::ALL {
            let expected = states.iter().filter(|one| **one == state).count() as u64;
            agree(format!("{} jobs", state.as_str()), count(&told.total, state), Some(expected))?;
            let by_type: u64 = told.by_type.values().filter_map(|counts| count(counts, state)).sum();
            agree(format!("{} jobs over all types", state.as_str()), by_type, expected)?;
        }
        Ok(())
    }
}

/// A panic in the store is a verdict like any other.
async fn verdict(queue: &TestQueue, ops: Vec<Op>) -> Verdict {
    let pair = Pair::new(queue.another().await);
    tokio::spawn(pair.run(ops)).await.unwrap_or_else(|panic| Err(format!("panic: {panic}")))
}

/// The shortest and simplest sequence that still fails, from one that does.
async fn shrink(
    queue: &TestQueue,
    tree: &mut impl ValueTree<Value = Vec<Op>>,
    mut wrong: String,
) -> (Vec<Op>, String) {
    let mut shortest = tree.current();
    let mut has_simpler = tree.simplify();
    while has_simpler {
        let ops = tree.current();
        has_simpler = match verdict(queue, ops.clone()).await {
            Ok(()) => tree.complicate(),
            Err(still) => {
                (shortest, wrong) = (ops, still);
                tree.simplify()
            }
        };
    }
    (shortest, wrong)
}

for_every_backend! {
    /// Few sequences, always the same; with `DEJQ_MODEL=slow` many, and others each time.
    async fn a_store_does_what_the_contract_says_whatever_the_order_of_operations(queue: TestQueue) {
        if queue.operator().await.is_none() {
            return;
        }
        let is_slow = std::env::var("DEJQ_MODEL").is_ok_and(|value| value == "slow");
        let mut runner = TestRunner::deterministic();
        let mut cases = if queue.backend.guarantees().in_process { 500 } else { 25 };
        if is_slow {
            runner = TestRunner::new(Config::default());
            cases *= 100;
        }
        let sequences = vec(an_op(), 1..60);
        for case in 0..cases {
            let mut tree = sequences.new_tree(&mut runner).unwrap();
            if let Err(wrong) = verdict(&queue, tree.current()).await {
                let (ops, wrong) = shrink(&queue, &mut tree, wrong).await;
                panic!("case {case}: {wrong}\nafter {ops:#?}");
            }
        }
    }
}
