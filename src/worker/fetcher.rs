//! From free slots to claimed jobs. Never asks for a job that has no slot or prefetch place.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::counters::count;
use super::{Shared, StoreBackoff};
use crate::backend::{Claim, Lease, Leased};
use crate::job::JobType;
use crate::log::{self, Verbosity};

/// Longest wait inside one claim. A store that can wait ends it early when a job comes; `stop` does always.
const WAIT: Duration = Duration::from_secs(10);

pub(super) async fn run(shared: Arc<Shared>, lane: usize) {
    let lane = &shared.lanes[lane];
    let mut backoff = StoreBackoff::default();
    loop {
        let limit = tokio::select! {
            free = lane.free_places() => free,
            () = shared.stopping.cancelled() => return,
        };
        let asked = Instant::now();
        let claim = Claim {
            worker: shared.id,
            types: &lane.types,
            limit,
            lease: shared.config.lease(),
            wait: WAIT,
            stop: &shared.stopping,
        };
        match shared.backend.claim(&claim).await {
            Ok(leased) if leased.is_empty() => backoff.reset(),
            Ok(leased) => {
                backoff.reset();
                count(&shared.counters.claims, 1);
                // A full answer did not wait for jobs: it tells what a claim costs.
                if leased.len() == limit {
                    lane.pace.claimed(asked.elapsed());
                }
                let unknown = shared.accept(leased);
                give_back_unknown(&shared, unknown).await;
            }
            Err(error) => {
                let pause = backoff.next();
                shared.store_error("claiming jobs", &error, pause);
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shared.stopping.cancelled() => return,
                }
            }
        }
    }
}

/// A store that cannot filter by type hands out jobs that are not for this worker: never dropped, given back.
async fn give_back_unknown(shared: &Shared, unknown: Vec<Leased>) {
    let Some(first) = unknown.first() else { return };
    log::write(Verbosity::Errors, Some(&first.job), || {
        format!(
            "no handler for job type {:?} here; {} such jobs are given back and not lost. Import the module that \
             registers it, or let the producer use one of: {}",
            first.job.job_type,
            unknown.len(),
            shared.types.iter().map(JobType::as_str).collect::<Vec<_>>().join(", ")
        )
    });
    let leases: Vec<Lease> =
        unknown.iter().map(|leased| Lease { id: leased.job.id, token: leased.token }).collect();
    if let Err(error) = shared.backend.give_back(&leases).await {
        log::write(Verbosity::Errors, None, || {
            format!("giving back jobs failed, their leases will run out: {error}")
        });
    }
}
