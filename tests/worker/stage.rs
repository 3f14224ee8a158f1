//! Where a test plays: one store, the jobs in it, and workers on it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use dejq::backend::{Backend, Claim, HandOff, Leased, Outcome, Settled, Stats, WorkerId};
use dejq::job::{Body, JobId, JobInfo, JobType, NewJob, OnFailure, State};
use dejq::worker::{Flavour, HandlerSpec, Handlers, Worker, WorkerConfig};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::executor::Executor;
use crate::faulty::FaultyBackend;

/// Waits no longer than this for anything. On the paused clock it costs nothing; with real threads it is only
/// reached when a test fails.
const DEADLINE: Duration = Duration::from_secs(3600);
const REAL_DEADLINE: Duration = Duration::from_secs(60);

/// Time between beats in these tests.
pub const BEAT: Duration = Duration::from_secs(5);
/// How long a lease lasts in these tests.
pub const LEASE: Duration = Duration::from_secs(15);

/// The result of `event`, which must come before the deadline.
pub async fn within<T>(what: &str, event: impl Future<Output = T>) -> T {
    let is_real = Handle::current().runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread;
    let deadline = if is_real { REAL_DEADLINE } else { DEADLINE };
    tokio::time::timeout(deadline, event).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Lets time pass on the paused clock, and a moment for what falls due just then; everybody else runs meanwhile.
pub async fn pass(time: Duration) {
    let is_real = Handle::current().runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread;
    assert!(!is_real, "tests on the real clock wait for events, not for time");
    tokio::time::sleep(time + Duration::from_millis(1)).await; // paused clock
}

/// Lets everybody run until they wait for something, without time to speak of.
pub async fn settle_down() {
    pass(Duration::from_millis(5)).await;
}

pub fn job_type(name: &str) -> JobType {
    JobType::new(name).unwrap()
}

pub fn job(name: &str) -> NewJob {
    NewJob::single(job_type(name), Body::from_encoder(b"{}"))
}

pub fn spec(name: &str) -> HandlerSpec {
    HandlerSpec {
        job_type: job_type(name),
        flavour: Flavour::Sync,
        max_attempts: None,
        backoff: None,
        timeout: None,
    }
}

pub fn async_spec(name: &str) -> HandlerSpec {
    HandlerSpec { flavour: Flavour::Async, ..spec(name) }
}

pub fn handlers(specs: impl IntoIterator<Item = HandlerSpec>) -> Handlers {
    let mut handlers = Handlers::default();
    for spec in specs {
        handlers.add(spec).unwrap();
    }
    handlers
}

/// Settings of a worker with so many slots of each flavour.
pub fn slots(count: usize) -> WorkerConfig {
    WorkerConfig { workers: count, async_workers: count, heartbeat: BEAT, ..WorkerConfig::default() }
}

/// See the file's comment.
#[derive(Debug)]
pub struct Stage {
    pub store: Arc<FaultyBackend>,
}

impl Stage {
    pub fn new() -> Self {
        Self { store: FaultyBackend::new(None) }
    }

    /// With a store that hands out these types whatever a worker asks for.
    pub fn that_hands_out(types: &[&str]) -> Self {
        Self { store: FaultyBackend::new(Some(types.iter().map(|name| job_type(name)).collect())) }
    }

    pub fn start(&self, specs: impl IntoIterator<Item = HandlerSpec>, config: WorkerConfig) -> Executor {
        let backend: Arc<dyn Backend> = Arc::clone(&self.store) as _;
        Executor::new(Worker::start(&Handle::current(), backend, handlers(specs), config).unwrap())
    }

    pub async fn add(&self, jobs: &[NewJob]) -> Vec<JobId> {
        self.store.enqueue(jobs).await.unwrap()
    }

    pub async fn enqueue(&self, name: &str, count: usize) -> Vec<JobId> {
        let jobs: Vec<NewJob> = (0..count).map(|_| job(name)).collect();
        self.add(&jobs).await
    }

    pub async fn enqueue_one(&self, name: &str) -> JobId {
        self.enqueue(name, 1).await[0]
    }

    pub async fn chain(&self, names: &[&str], on_failure: OnFailure) -> Vec<JobId> {
        let mut jobs: Vec<NewJob> = names.iter().map(|name| job(name)).collect();
        NewJob::link(&mut jobs, on_failure).unwrap();
        self.add(&jobs).await
    }

    pub async fn info(&self, id: JobId) -> JobInfo {
        self.store.get(id).await.unwrap()
    }

    pub async fn state(&self, id: JobId) -> State {
        self.info(id).await.state
    }

    pub async fn states(&self, ids: &[JobId]) -> Vec<State> {
        let mut states = Vec::with_capacity(ids.len());
        for id in ids {
            states.push(self.state(*id).await);
        }
        states
    }

    pub async fn until(&self, id: JobId, state: State) {
        within(state.as_str(), self.store.until(async || self.state(id).await == state)).await;
    }

    pub async fn until_all(&self, ids: &[JobId], state: State) {
        for id in ids {
            self.until(*id, state).await;
        }
    }

    pub async fn stats(&self) -> Stats {
        self.store.memory.stats().await.unwrap()
    }

    /// Another worker, played by hand: takes what is ready of this type.
    pub async fn claim_as(&self, other: WorkerId, name: &str, limit: usize) -> Vec<Leased> {
        let want = Claim {
            worker: other,
            types: &[job_type(name)],
            limit,
            lease: LEASE,
            wait: Duration::ZERO,
            stop: &CancellationToken::new(),
        };
        self.store.memory.claim(&want).await.unwrap()
    }

    /// Another worker, played by hand: finishes a job.
    pub async fn finish_as(&self, other: WorkerId, leased: &Leased) {
        let lease = dejq::backend::Lease { id: leased.job.id, token: leased.token };
        let done = [Settled { lease, outcome: Outcome::Finished }];
        let reply =
            self.store.memory.settle(&done, &HandOff { worker: other, types: &[], lease: LEASE }).await;
        assert!(reply.unwrap().lost.is_empty());
    }
}

/// A worker that is nowhere but in the store.
pub fn somebody() -> WorkerId {
    WorkerId(JobId::generate())
}
