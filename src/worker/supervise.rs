//! A part of the worker that panics is a bug; it must cost neither the user's process nor the other parts.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::Shared;
use crate::log::{self, Verbosity};

/// Panics in a row after which the worker stops instead of trying once more.
const MOST_PANICS: u32 = 5;

/// Runs a part to its end; after a panic it is started anew, with growing pauses, and in the end the worker is
/// told to stop: its leases then run out or are given back, and other workers take over.
pub(super) fn supervise<F>(
    runtime: &Handle,
    shared: &Arc<Shared>,
    name: &'static str,
    part: impl Fn(Arc<Shared>) -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let shared = Arc::clone(shared);
    runtime.spawn(async move {
        for panics in 1..=MOST_PANICS {
            let Err(error) = tokio::spawn(part(Arc::clone(&shared))).await else { return };
            log::write(Verbosity::Errors, None, || {
                format!("the {name} panicked ({panics} of {MOST_PANICS}); this is a bug in dejq, please report it: {error}")
            });
            tokio::time::sleep(Duration::from_millis(100) * panics).await;
        }
        log::write(Verbosity::Errors, None, || format!("the {name} keeps panicking; the worker takes no more jobs"));
        shared.stopping.cancel();
    })
}
