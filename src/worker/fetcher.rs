//! From free slots to claimed jobs. Never asks for a job that has no slot or prefetch place.

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashSet;
use tokio::time::Instant;

use super::counters::count;
use super::settler::give_back;
use super::{Shared, StoreBackoff};
use crate::backend::{Claim, Lease, Leased};
use crate::job::JobType;
use crate::log::{self, Verbosity};

/// Longest wait inside one claim: the longest that any store can wait at once, and SQS is paid by the call. A store that can
/// wait ends it early when a job comes; `stop` does always.
const WAIT: Duration = Duration::from_secs(20);

pub(super) async fn run(shared: Arc<Shared>, lane: usize) {
    let lane = &shared.lanes[lane];
    let mut backoff = StoreBackoff::default();
    let mut told = FxHashSet::default();
    loop {
        let limit = tokio::select! {
            biased; // a stop comes before a free place
            () = shared.stopping.cancelled() => return,
            free = lane.free_places() => free,
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
                count(&shared.counters.claims, 1);
                let got = leased.len();
                // A full answer did not wait for jobs: it tells what a claim costs.
                if got == limit {
                    lane.pace.claimed(asked.elapsed());
                }
                let unknown = shared.accept(leased);
                let is_useless = unknown.len() == got;
                give_back_unknown(&shared, unknown, &mut told).await;
                if is_useless {
                    // The same jobs may come again at once.
                    pause(&shared, backoff.next()).await;
                } else {
                    backoff.reset();
                }
            }
            Err(error) => {
                let time = backoff.next();
                shared.store_error("claiming jobs", &error, time);
                pause(&shared, time).await;
            }
        }
    }
}

async fn pause(shared: &Shared, time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = shared.stopping.cancelled() => {}
    }
}

/// A store that cannot filter by type hands out jobs that are not for this worker: never dropped, given back.
async fn give_back_unknown(shared: &Shared, unknown: Vec<Leased>, told: &mut FxHashSet<JobType>) {
    if unknown.is_empty() {
        return;
    }
    for job in unknown.iter().map(|leased| &leased.job) {
        if told.insert(job.job_type.clone()) {
            log::write(Verbosity::Errors, Some(job), || {
                format!(
                    "no handler for job type {:?} here; such jobs are given back and not lost. Import the module \
                     that registers it, or let the producer use one of: {}",
                    job.job_type,
                    shared.types.iter().map(JobType::as_str).collect::<Vec<_>>().join(", ")
                )
            });
        }
    }
    let leases: Vec<Lease> =
        unknown.iter().map(|leased| Lease { id: leased.job.id, token: leased.token }).collect();
    give_back(shared, &leases).await;
}
