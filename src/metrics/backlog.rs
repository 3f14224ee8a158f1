//! What is in the store, asked for rarely however often it is wanted.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::backend::{Backend, Stats};

/// The store is asked at most this often.
const EVERY: Duration = Duration::from_secs(5);
/// The same for one that is paid by the call: about 1,400 calls a day and process.
const EVERY_WHEN_PAID: Duration = Duration::from_secs(60);
/// Who reads metrics does not wait longer for a store; Prometheus gives up after 10 s by default.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Backlog {
    backend: Arc<dyn Backend>,
    every: Duration,
    seen: Mutex<Option<Seen>>,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    stats: Option<Arc<Stats>>,
}

impl Backlog {
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        let is_paid = backend.guarantees().entries_per_call.is_some();
        let every = if is_paid { EVERY_WHEN_PAID } else { EVERY };
        Self { backend, every, seen: Mutex::new(None) }
    }

    /// The counts, some seconds old at most; `None` when the store does not answer.
    pub async fn look(&self) -> Option<Arc<Stats>> {
        // One asks; who comes meanwhile waits for the same answer.
        let look = async {
            let mut seen = self.seen.lock().await;
            match &*seen {
                Some(seen) if seen.at.elapsed() < self.every => seen.stats.clone(),
                _ => {
                    let stats = self.backend.stats().await.ok().map(Arc::new);
                    *seen = Some(Seen { at: Instant::now(), stats: stats.clone() });
                    stats
                }
            }
        };
        timeout(PATIENCE, look).await.ok().flatten()
    }
}
