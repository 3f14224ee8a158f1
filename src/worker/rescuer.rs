//! Jobs of lost workers become ready again. Every worker looks; the store makes sure that one wins.

use std::sync::Arc;

use super::counters::count;
use super::{Shared, StoreBackoff};
use crate::backend::Rescued;
use crate::log::{self, Verbosity};

pub(super) async fn run(shared: Arc<Shared>) {
    let mut backoff = StoreBackoff::default();
    // Half a lease, varied so that workers started together do not look together: a lost job waits for at most
    // one and a half leases and a little.
    let every = shared.config.lease() / 2;
    let mut pause = every.mul_f64(fastrand::f64());
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.stopping.cancelled() => return,
        }
        pause = every.mul_f64(0.8 + 0.4 * fastrand::f64());
        if !shared.pulse.is_steady(shared.clock.now(), &shared.config) {
            continue;
        }
        match shared.backend.rescue(shared.config.max_rescues).await {
            Ok(Rescued { requeued: 0, failed: 0 }) => backoff.reset(),
            Ok(rescued) => {
                backoff.reset();
                count(&shared.counters.rescued, rescued.requeued as usize);
                log::write(Verbosity::Errors, None, || {
                    format!(
                        "rescued jobs of lost workers: {} ready again, {} failed after {} rescues (max_rescues)",
                        rescued.requeued, rescued.failed, shared.config.max_rescues
                    )
                });
            }
            Err(error) => {
                pause = backoff.next().max(pause);
                shared.store_error("looking for jobs of lost workers", &error, pause);
            }
        }
    }
}
