//! One tokio runtime per process, and the only way to block on it.
//!
//! It starts when the first worker does and lives until the interpreter goes down. Its threads never touch
//! Python. A child made by `fork` has none of these threads, so everything made before is refused there, and
//! what is made there gets a runtime of its own.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::available_parallelism;
use std::time::Duration;

use pyo3::prelude::*;
use tokio::runtime::{Builder, Handle, Runtime};

use super::errors::to_py;
use crate::error::{Error, ErrorKind, Result};
use crate::log;

/// How often a blocked call lets Python's signal handlers run.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);
/// What tokio tasks get to end in when the interpreter goes down.
const SHUTDOWN: Duration = Duration::from_millis(200);

static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);
/// Grows in every forked child.
static PROCESS: AtomicU64 = AtomicU64::new(0);

/// The process in which something was made.
#[derive(Debug, Clone, Copy)]
pub struct Process(u64);

impl Process {
    pub fn current() -> Self {
        Self(PROCESS.load(Ordering::Relaxed))
    }

    pub fn is_current(self) -> bool {
        self.0 == PROCESS.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`ErrorKind::Forked`].
    pub fn check(self) -> Result<()> {
        if self.is_current() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Forked,
            "this client was made before a fork and is used in the child, where its threads and connections do \
             not exist; make the client in the child (gunicorn: in post_fork, multiprocessing: in the target \
             function, or use the start method \"spawn\")",
        ))
    }
}

/// Called by Python in every forked child.
#[pyfunction]
pub fn after_fork_in_child() {
    PROCESS.fetch_add(1, Ordering::Relaxed);
    log::after_fork_in_child();
    // The generator that ids are made with would make the parent's once more. It is this thread's own; other
    // threads of the child start with new ones. Should the system have no randomness, nothing here helps.
    let _ = rand::rng().reseed();
    // The parent's runtime has no threads here, and its end would wait for them. Nobody holds the lock: it is
    // only taken by threads that hold the interpreter, and so does who forks.
    if let Ok(mut runtime) = RUNTIME.try_lock() {
        std::mem::forget(runtime.take());
    }
}

/// The runtime's handle; starts it if need be.
///
/// # Errors
/// [`ErrorKind::Unavailable`] when the system gives no threads.
pub fn handle() -> Result<Handle> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = &*runtime {
        return Ok(runtime.handle().clone());
    }
    let cores = available_parallelism().map_or(1, usize::from);
    let started = Builder::new_multi_thread()
        .worker_threads(if cores >= 4 { 2 } else { 1 })
        .thread_name("dejq-io")
        .enable_all()
        .build()
        .map_err(|error| {
            Error::new(ErrorKind::Unavailable, "the runtime could not be started: no more threads")
                .with_source(error)
        })?;
    Ok(runtime.insert(started).handle().clone())
}

/// Runs `future` to its end from a Python thread.
///
/// The first poll keeps the interpreter attached: a store in this process answers at once, behind a lock that
/// is never held across Python, and letting go would cost more than the call. Only then is the interpreter
/// released, and signal handlers get their turn.
pub fn wait<T: Send>(py: Python<'_>, future: impl Future<Output = Result<T>> + Send) -> PyResult<T> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
        return result.map_err(|error| to_py(py, &error));
    }
    go_on(py, future)
}

/// [`wait`] for a store that answers over a network: there is no hope for the first poll, and the runtime must be
/// around it.
pub fn wait_for_server<T: Send>(
    py: Python<'_>,
    future: impl Future<Output = Result<T>> + Send,
) -> PyResult<T> {
    go_on(py, pin!(future))
}

fn go_on<T: Send>(
    py: Python<'_>,
    mut future: Pin<&mut (impl Future<Output = Result<T>> + Send)>,
) -> PyResult<T> {
    let handle = handle().map_err(|error| to_py(py, &error))?;
    loop {
        let answer =
            py.detach(|| handle.block_on(async { tokio::time::timeout(SIGNAL_CHECK, &mut future).await }));
        match answer {
            Ok(result) => return result.map_err(|error| to_py(py, &error)),
            Err(_) => py.check_signals()?,
        }
    }
}

/// Runs `future` to its end from a thread that is no main one: no signal handlers have their turn there, so nothing is
/// done until it has ended.
pub fn wait_aside<T: Send>(py: Python<'_>, future: impl Future<Output = T> + Send) -> PyResult<T> {
    let handle = handle().map_err(|error| to_py(py, &error))?;
    Ok(py.detach(|| handle.block_on(future)))
}

/// Ends the runtime's threads, with the interpreter released. Called once all workers have stopped.
#[pyfunction]
pub fn shutdown(py: Python<'_>) {
    let runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(runtime) = runtime {
        py.detach(|| runtime.shutdown_timeout(SHUTDOWN));
    }
}
