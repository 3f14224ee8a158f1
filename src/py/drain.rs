//! Running jobs on the calling thread: `drain` of the tests, and the inline mode.

use std::sync::Arc;

use pyo3::prelude::*;

use super::client::Inner;
use super::handler::Called;
use crate::worker::{Attempt, Flavour, Inline, Task};

impl Inner {
    /// Runs ready jobs until there are none; returns how many ran. With `raise`, what a handler raised first comes out.
    pub(super) fn drain(
        &self,
        py: Python<'_>,
        run_coroutine: &Bound<'_, PyAny>,
        scheduled: bool,
        raise: bool,
    ) -> PyResult<u64> {
        let inline = Inline::new(
            Arc::clone(&self.backend),
            self.registry.lock().handlers.clone(),
            self.config.clone(),
        );
        let mut ran = 0;
        let mut first = None;
        loop {
            if scheduled {
                self.wait(py, self.backend.promote())?;
            }
            let Some(task) = self.wait(py, inline.next())? else { break };
            let called = self.call(py, &task, run_coroutine);
            // Cloned for the caller before it becomes plain text for the store.
            if let Called::Raised(error) = &called
                && raise
                && first.is_none()
            {
                first = Some(error.clone_ref(py));
            }
            let attempt = match called.into_attempt(py) {
                // Whoever gets the exception decides; no retry behind their back.
                Attempt::Failed(failure) | Attempt::Retry { failure, .. } if raise => {
                    Attempt::Discarded(failure)
                }
                attempt => attempt,
            };
            self.wait(py, inline.ended(&task, attempt))?;
            ran += 1;
        }
        self.wait(py, inline.leave())?;
        first.map_or(Ok(ran), Err)
    }

    fn call(&self, py: Python<'_>, task: &Arc<Task>, run_coroutine: &Bound<'_, PyAny>) -> Called {
        let (callable, is_async) = {
            let registered = self.registry.lock();
            let index = task.handler as usize;
            let callables =
                registered.started.as_ref().map_or(&registered.callables, |started| &*started.table);
            (callables[index].clone_ref(py), registered.handlers.get(task.handler).flavour == Flavour::Async)
        };
        if !is_async {
            return callable.run(py, task);
        }
        match callable.call(py, task).and_then(|coroutine| run_coroutine.call1((coroutine,))) {
            Ok(_) => Called::Returned,
            Err(error) => Called::Raised(error),
        }
    }
}
