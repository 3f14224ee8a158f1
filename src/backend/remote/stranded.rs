//! Claims whose answers were lost, and the jobs with them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::WorkerId;

/// For how many leases the store is asked about such a claim: the server may still be at work on it.
const LEASES: u32 = 4;

/// Nobody here knows the jobs of these claims; the beats of their workers give them back.
#[derive(Debug, Default)]
pub struct Stranded(Mutex<Vec<Claim>>);

#[derive(Debug)]
struct Claim {
    worker: WorkerId,
    token: u64,
    since: Instant,
}

impl Stranded {
    pub fn push(&self, worker: WorkerId, token: u64) {
        self.lock().push(Claim { worker, token, since: Instant::now() });
    }

    /// The tokens of those of this worker.
    pub fn of(&self, worker: WorkerId) -> Vec<u64> {
        self.lock().iter().filter(|claim| claim.worker == worker).map(|claim| claim.token).collect()
    }

    /// The store was asked about those of this worker.
    pub fn asked(&self, worker: WorkerId, lease: Duration) {
        self.lock().retain(|claim| claim.worker != worker || claim.since.elapsed() < lease * LEASES);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Claim>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
