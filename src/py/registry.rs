//! The handlers of a client: what it has registered, and what its worker runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::gc::{PyTraverseError, PyVisit};

use super::executor::Table;
use super::handler::PyHandler;
use crate::error::{Error, Result};
use crate::job::JobType;
use crate::worker::{HandlerSpec, Handlers, Worker};

/// Behind a lock that is held for moments, and never across Python code: so no function is dropped under it either, for
/// that may run anything.
#[derive(Default)]
pub(super) struct Registry(Mutex<Registered>);

/// Handlers grow until the worker starts.
#[derive(Default)]
pub(super) struct Registered {
    pub handlers: Handlers,
    pub callables: Vec<PyHandler>,
    pub started: Option<Started>,
}

/// The callables are the executors' from then on; the types stay, for messages.
#[derive(Clone)]
pub(super) struct Started {
    pub worker: Arc<Worker>,
    pub table: Table,
}

impl Registry {
    pub fn lock(&self) -> MutexGuard<'_, Registered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn worker(&self) -> Option<Arc<Worker>> {
        self.lock().started.as_ref().map(|started| Arc::clone(&started.worker))
    }

    pub fn types(&self) -> Vec<String> {
        self.lock().handlers.all().iter().map(|spec| spec.job_type.to_string()).collect()
    }

    pub fn add(&self, spec: HandlerSpec, handler: PyHandler) -> Result<()> {
        let mut registered = self.lock();
        if registered.started.is_some() {
            return Err(Error::config(format!(
                "the handler for {:?} comes too late: dequeue_loop() has started; register all handlers before it",
                spec.job_type
            )));
        }
        registered.handlers.add(spec)?;
        registered.callables.push(handler);
        Ok(())
    }

    /// Exchanges the callable of a registered type; returns the one that was there.
    pub fn enclose(&self, job_type: &JobType, handler: PyHandler) -> Result<PyHandler> {
        let mut registered = self.lock();
        let index = registered.handlers.find(job_type).map(|index| index as usize);
        let Some(place) = index.and_then(|index| registered.callables.get_mut(index)) else {
            return Err(Error::config(format!(
                "middleware comes too late for the handler of {job_type:?}: dequeue_loop() has started; register \
                 all middleware before it"
            )));
        };
        Ok(std::mem::replace(place, handler))
    }

    /// Forgets the handlers of all other types, and returns them.
    pub fn keep(&self, types: &[JobType]) -> Vec<PyHandler> {
        let mut registered = self.lock();
        let (handlers, places) = registered.handlers.only(types);
        registered.handlers = handlers;
        let all = std::mem::take(&mut registered.callables);
        let (kept, others): (Vec<_>, Vec<_>) =
            all.into_iter().enumerate().partition(|(place, _)| places.contains(place));
        registered.callables = kept.into_iter().map(|(_, handler)| handler).collect();
        others.into_iter().map(|(_, handler)| handler).collect()
    }

    /// For Python's garbage collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Somebody uses it, so it is no garbage.
        let Ok(registered) = self.0.try_lock() else { return Ok(()) };
        registered.callables.iter().try_for_each(|handler| handler.traverse(visit))?;
        match &registered.started {
            // Shared with the threads of a worker, the handlers are not ours alone.
            Some(started) if Arc::strong_count(&started.table) == 1 => {
                started.table.iter().try_for_each(|handler| handler.traverse(visit))
            }
            _ => Ok(()),
        }
    }

    /// Forgets all handlers, and returns them.
    pub fn clear(&self) -> (Vec<PyHandler>, Option<Table>) {
        let mut registered = self.lock();
        let table = registered.started.as_mut().map(|started| std::mem::take(&mut started.table));
        (std::mem::take(&mut registered.callables), table)
    }
}
