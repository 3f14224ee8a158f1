//! Jobs run one after another on the calling thread: for tests and for the memory queue's inline mode.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::retry::{Attempt, outcome};
use super::task::{Clock, Task};
use super::{Handlers, WorkerConfig};
use crate::backend::{Backend, Claim, HandOff, Lease, Settled, WorkerId};
use crate::error::Result;
use crate::job::{JobId, JobType};

/// Nothing beats for an inline run, so its leases are long.
const LEASE: Duration = Duration::from_secs(3600);

/// Takes and settles one job at a time.
#[derive(Debug)]
pub struct Inline {
    id: WorkerId,
    backend: Arc<dyn Backend>,
    handlers: Handlers,
    types: Vec<JobType>,
    config: WorkerConfig,
    clock: Clock,
    stop: CancellationToken,
}

impl Inline {
    /// An inline worker over these handlers.
    pub fn new(backend: Arc<dyn Backend>, handlers: Handlers, config: WorkerConfig) -> Self {
        let types = handlers.all().iter().map(|spec| spec.job_type.clone()).collect();
        let id = WorkerId(JobId::generate());
        Self { id, backend, handlers, types, config, clock: Clock::start(), stop: CancellationToken::new() }
    }

    /// The next ready job, marked as started; never waits for one.
    pub async fn next(&self) -> Result<Option<Arc<Task>>> {
        let want = Claim {
            worker: self.id,
            types: &self.types,
            limit: 1,
            lease: LEASE,
            wait: Duration::ZERO,
            stop: &self.stop,
        };
        let mut given_back = None;
        let (leased, handler) = loop {
            let Some(leased) = self.backend.claim(&want).await?.pop() else { return Ok(None) };
            if let Some(handler) = self.handlers.find(&leased.job.job_type) {
                break (leased, handler);
            }
            let id = leased.job.id;
            self.backend.give_back(&[Lease { id, token: leased.token }]).await?;
            // A store that hides it for a while has other jobs; where it comes again at once, there is no way past it.
            if given_back.replace(id) == Some(id) {
                return Ok(None);
            }
        };
        let task = Arc::new(Task::new(leased, handler, 0, self.clock.after(LEASE), self.clock.epoch()));
        task.start(self.clock.now());
        Ok(Some(task))
    }

    /// Stores how a task ended, by the same rules as the worker.
    pub async fn ended(&self, task: &Task, attempt: Attempt) -> Result<()> {
        let outcome = outcome(attempt, task, self.handlers.get(task.handler), &self.config);
        let next = HandOff { worker: self.id, types: &[], lease: LEASE };
        self.backend.settle(&[Settled { lease: task.lease, outcome }], &next).await?;
        Ok(())
    }

    /// No more jobs are wanted.
    pub async fn leave(&self) -> Result<()> {
        self.backend.leave(self.id).await
    }
}
