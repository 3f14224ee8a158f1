//! Jobs that are this worker's for the store and for nobody here: the call that would have stored their end, or given them
//! back, has failed. Beats renew a worker and not its jobs, so as long as it lives nobody would rescue them: they go back,
//! however often that has to be tried.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::task::Task;
use super::{Shared, StoreBackoff};
use crate::backend::{HandOff, Lease, Outcome, Settled};
use crate::error::Result;

#[derive(Debug, Default)]
pub(super) struct Orphans {
    waiting: Mutex<Vec<Orphan>>,
    came: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Orphan {
    lease: Lease,
    has_run: bool,
}

impl Orphans {
    pub fn take_up<'a>(&self, tasks: impl IntoIterator<Item = &'a Arc<Task>>) {
        let orphans =
            tasks.into_iter().map(|task| Orphan { lease: task.lease, has_run: task.started().is_some() });
        self.lock().extend(orphans);
        self.came.notify_one();
    }

    /// Of jobs that have not run.
    pub fn take_up_leases(&self, leases: &[Lease]) {
        self.lock().extend(leases.iter().map(|lease| Orphan { lease: *lease, has_run: false }));
        self.came.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Orphan>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokens guard the calls: what somebody else has by now, or what has ended after all, is left alone. A stop does not wait
/// for it, because from a worker that has gone jobs are rescued.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut backoff = StoreBackoff::default();
    while !shared.ended.is_cancelled() {
        let orphans = shared.orphans.lock().clone();
        if orphans.is_empty() {
            tokio::select! {
                () = shared.orphans.came.notified() => {}
                () = shared.ended.cancelled() => {}
            }
            continue;
        }
        match give_back(&shared, &orphans).await {
            Ok(()) => {
                shared.orphans.lock().drain(..orphans.len());
                backoff.reset();
            }
            Err(error) => {
                let pause = backoff.next();
                shared.store_error("giving jobs back", &error, pause);
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shared.ended.cancelled() => {}
                }
            }
        }
    }
}

async fn give_back(shared: &Shared, orphans: &[Orphan]) -> Result<()> {
    let (run, unstarted): (Vec<Orphan>, Vec<Orphan>) = orphans.iter().partition(|orphan| orphan.has_run);
    if !run.is_empty() {
        let cut_short = |orphan: &Orphan| Settled { lease: orphan.lease, outcome: Outcome::Interrupted };
        let settled: Vec<Settled> = run.iter().map(cut_short).collect();
        let next = HandOff { worker: shared.id, types: &[], lease: shared.config.lease() };
        shared.backend.settle(&settled, &next).await?;
    }
    if !unstarted.is_empty() {
        let leases: Vec<Lease> = unstarted.iter().map(|orphan| orphan.lease).collect();
        shared.backend.give_back(&leases).await?;
    }
    Ok(())
}
