//! The seam: the only place that knows Python. `dejq._native` as the facade in `python/dejq/` uses it.
//!
//! Three rules keep it free of deadlocks. Only Python's own threads attach to the interpreter. It is released
//! before anything that can wait. No Python code runs, and no Python object is dropped, under a Rust lock.

mod answers;
mod bell;
mod call;
mod client;
mod drain;
mod encode;
mod enqueue;
mod errors;
mod executor;
mod handler;
mod info;
mod job;
mod logging;
mod metrics;
mod pending;
mod registry;
mod runtime;

use pyo3::prelude::*;

/// The extension module.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::answers::Answers;
    #[pymodule_export]
    use super::client::Client;
    #[pymodule_export]
    use super::executor::{AsyncLane, AsyncTask, SyncLane};
    #[pymodule_export]
    use super::job::Job;
    #[pymodule_export]
    use super::logging::{read_log, set_verbosity, wait_log};
    #[pymodule_export]
    use super::metrics::{Reporter, Team};
    #[pymodule_export]
    use super::pending::PendingJob;
    #[pymodule_export]
    use super::runtime::{after_fork_in_child, shutdown};

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
