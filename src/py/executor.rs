//! What runs handlers: threads for plain ones, an event loop for `async def`. Both are Python's own threads
//! (`dejq/_threads.py`), attached once for life; the runtime's threads never call Python.

use std::sync::Arc;

use pyo3::prelude::*;

use super::bell::Bell;
use super::handler::{Called, PyHandler};
use super::runtime::Process;
use crate::worker::{Cancel, Task, Worker};

/// After this many jobs in a row a thread offers the interpreter to the others: a handler that is no Python
/// code never does.
const JOBS_PER_TURN: u32 = 64;

/// The handlers by index.
pub type Table = Arc<Vec<PyHandler>>;

/// The lane of plain handlers, as its threads see it.
#[pyclass(frozen, module = "dejq._native")]
pub struct SyncLane {
    pub worker: Arc<Worker>,
    pub table: Table,
    pub lane: usize,
}

#[pymethods]
impl SyncLane {
    /// Threads to run.
    #[getter]
    fn slots(&self) -> usize {
        self.worker.slots(self.lane)
    }

    /// Runs jobs until the worker has stopped: the body of each of its threads.
    fn run(&self, py: Python<'_>) {
        let process = Process::current();
        let mut turn = 0;
        loop {
            let task = if let Some(task) = self.worker.try_next(self.lane) {
                task
            } else {
                let Some(task) = py.detach(|| self.worker.wait(self.lane)) else { return };
                // After the wait for the interpreter, which may have been longer than the lease.
                let Some(task) = self.worker.begin(task) else { continue };
                task
            };
            let attempt = self.table[task.handler as usize].run(py, &task).into_attempt(py);
            if !process.is_current() {
                // The handler has forked, and this is the child: with this thread, its last one, it ends.
                return;
            }
            self.worker.ended(task, attempt);
            turn += 1;
            if turn == JOBS_PER_TURN {
                turn = 0;
                py.detach(|| ());
            }
        }
    }
}

/// The lane of `async def` handlers, as its event loop sees it.
#[pyclass(frozen, module = "dejq._native")]
pub struct AsyncLane {
    worker: Arc<Worker>,
    table: Table,
    lane: usize,
    bell: Bell,
}

impl AsyncLane {
    pub fn new(py: Python<'_>, worker: Arc<Worker>, table: Table, lane: usize) -> PyResult<Self> {
        let bell = Bell::new(py)?;
        let rope = bell.rope();
        worker.set_waker(lane, Box::new(move || rope.pull()));
        Ok(Self { worker, table, lane, bell })
    }
}

#[pymethods]
impl AsyncLane {
    /// Becomes readable when there is something to `take`, something to cancel, or the worker has stopped.
    fn fileno(&self) -> i32 {
        self.bell.fileno()
    }

    /// Handlers to run at once.
    #[getter]
    fn slots(&self) -> usize {
        self.worker.slots(self.lane)
    }

    /// The loop is awake. Called before it looks at anything, so that what comes in between wakes it again.
    fn woken(&self) {
        self.bell.heard();
    }

    /// The next tasks, at most so many.
    fn take(&self, most: usize) -> Vec<AsyncTask> {
        std::iter::from_fn(|| self.worker.try_next(self.lane))
            .take(most)
            .map(|task| AsyncTask { worker: Arc::clone(&self.worker), table: Arc::clone(&self.table), task })
            .collect()
    }

    /// Nothing runs at the moment: what has ended need not wait for company.
    fn idle(&self) {
        self.worker.idle();
    }

    /// Grows when a running task is to be cancelled.
    #[getter]
    fn cancels(&self) -> u64 {
        self.worker.cancels(self.lane)
    }

    /// Has the worker stopped?
    #[getter]
    fn is_over(&self) -> bool {
        self.worker.is_over(self.lane)
    }
}

/// One run of an `async def` handler.
#[pyclass(frozen, module = "dejq._native")]
pub struct AsyncTask {
    worker: Arc<Worker>,
    table: Table,
    task: Arc<Task>,
}

#[pymethods]
impl AsyncTask {
    /// Makes the coroutine.
    fn start<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.table[self.task.handler as usize].call(py, &self.task)
    }

    /// Reports the end: `None`, or what the coroutine raised.
    #[pyo3(signature = (error=None))]
    fn ended(&self, py: Python<'_>, error: Option<Bound<'_, PyAny>>) {
        let called = error.map_or(Called::Returned, |error| Called::Raised(PyErr::from_value(error)));
        self.worker.ended(Arc::clone(&self.task), called.into_attempt(py));
    }

    /// Is the coroutine to be cancelled?
    #[getter]
    fn cancelled(&self) -> bool {
        self.task.cancelled() != Cancel::No
    }
}
