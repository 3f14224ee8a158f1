//! A part of the worker that panics is a bug; it must cost neither the user's process nor the other parts.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Shared;
use crate::log::{self, Verbosity};

/// Panics in a row after which the worker takes no more jobs.
const MOST_PANICS: u32 = 5;
/// A part that ran for this long was well: its next panic is not in a row with the one before.
const WELL: Duration = Duration::from_secs(60);

/// Runs a part to its end. After a panic it is started anew, with growing pauses. After several in a row the
/// worker takes no more jobs, while the parts that bring its work to an end go on trying.
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
        let mut panics = 0;
        loop {
            let started = Instant::now();
            let Err(error) = tokio::spawn(part(Arc::clone(&shared))).await else { return };
            panics = if started.elapsed() < WELL { MOST_PANICS.min(panics + 1) } else { 1 };
            log::write(Verbosity::Errors, None, || {
                format!("the {name} panicked ({panics} of {MOST_PANICS}); this is a bug in dejq, please report it: {error}")
            });
            if panics == MOST_PANICS {
                log::write(Verbosity::Errors, None, || {
                    format!("the {name} keeps panicking; the worker takes no more jobs")
                });
                shared.stopping.cancel();
            }
            tokio::time::sleep(Duration::from_millis(100) * panics).await;
        }
    })
}
