//! Calling a registered handler: the only place where a job meets user code.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyTuple};

use super::call::{FreshContext, call_user_code};
use super::errors::class;
use super::job::{Job, parse};
use super::pending::seconds;
use crate::backend::Backend;
use crate::job::Failure;
use crate::worker::{Attempt, Task};

/// How a handler gets its body.
pub enum Decoder {
    /// As plain objects.
    Plain,
    /// By a Python callable from the JSON text.
    Typed(Py<PyAny>),
}

/// A registered handler.
pub struct PyHandler {
    pub callable: Py<PyAny>,
    /// What it takes, in order: the job (true) or the body (false).
    pub wants: Vec<bool>,
    pub decoder: Decoder,
    /// Where its jobs come from.
    pub backend: Arc<dyn Backend>,
}

impl PyHandler {
    /// Another handle on the same handler.
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        let decoder = match &self.decoder {
            Decoder::Plain => Decoder::Plain,
            Decoder::Typed(decode) => Decoder::Typed(decode.clone_ref(py)),
        };
        let backend = Arc::clone(&self.backend);
        Self { callable: self.callable.clone_ref(py), wants: self.wants.clone(), decoder, backend }
    }
}

/// How a call ended. Keeps the exception, for those who pass it on.
pub enum Called {
    Returned,
    Raised(PyErr),
    Panicked(String),
}

impl PyHandler {
    /// Calls the handler; a coroutine function only makes its coroutine here.
    pub fn call<'py>(&self, py: Python<'py>, task: &Arc<Task>) -> PyResult<Bound<'py, PyAny>> {
        let callable = self.callable.bind(py);
        let job =
            || Bound::new(py, Job::new(Arc::clone(task), Arc::clone(&self.backend))).map(Bound::into_any);
        match self.wants[..] {
            [true] => call_user_code(callable, &[job()?]),
            [false] => call_user_code(callable, &[self.body(py, task)?]),
            [true, false] => call_user_code(callable, &[job()?, self.body(py, task)?]),
            _ => call_user_code(callable, &[self.body(py, task)?, job()?]),
        }
    }

    /// For the garbage collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.callable)?;
        match &self.decoder {
            Decoder::Plain => Ok(()),
            Decoder::Typed(decode) => visit.call(decode),
        }
    }

    /// Runs a plain handler to its end, whatever that is.
    pub fn run(&self, py: Python<'_>, task: &Arc<Task>) -> Called {
        let _context = FreshContext::enter(py);
        match catch_unwind(AssertUnwindSafe(|| self.call(py, task))) {
            Ok(Ok(result)) if result.is_none() => Called::Returned,
            Ok(Ok(result)) => check_result(&result),
            Ok(Err(error)) => Called::Raised(error),
            Err(panic) => Called::Panicked(panic_text(panic.as_ref())),
        }
    }

    fn body<'py>(&self, py: Python<'py>, task: &Arc<Task>) -> PyResult<Bound<'py, PyAny>> {
        match &self.decoder {
            Decoder::Plain => parse(py, &task.job),
            Decoder::Typed(decode) => {
                call_user_code(decode.bind(py), &[PyBytes::new(py, task.job.body.as_bytes()).into_any()])
            }
        }
    }
}

/// A result is ignored, but a coroutine is work that nobody would do.
fn check_result(result: &Bound<'_, PyAny>) -> Called {
    if !result.hasattr("__await__").unwrap_or(false) {
        return Called::Returned;
    }
    // Closing it spares the user the warning about a coroutine that was never awaited.
    let _ = result.call_method0("close");
    Called::Raised(PyTypeError::new_err(
        "the handler returned an awaitable, which a plain handler must not; register the async def function itself",
    ))
}

impl Called {
    /// What the worker needs to know. Python objects end here.
    pub fn into_attempt(self, py: Python<'_>) -> Attempt {
        match self {
            Self::Returned => Attempt::Finished,
            Self::Panicked(text) => Attempt::Failed(Failure::new("panic", text)),
            Self::Raised(error) => catch_unwind(AssertUnwindSafe(|| raised(py, &error)))
                .unwrap_or_else(|panic| Attempt::Failed(Failure::new("panic", panic_text(panic.as_ref())))),
        }
    }
}

fn raised(py: Python<'_>, error: &PyErr) -> Attempt {
    let failure = describe(py, error).unwrap_or_else(|_| Failure::new("error", "its text could not be read"));
    let exception = error.value(py);
    let is = |name: &str| class(py, name).and_then(|class| exception.is_instance(&class)).unwrap_or(false);
    if is("Retry") {
        let after = exception.getattr("after").ok().filter(|after| !after.is_none());
        // A wait that cannot be read is the backoff's to choose.
        return Attempt::Retry { after: after.and_then(|after| seconds(&after, "after").ok()), failure };
    }
    if is("Discard") { Attempt::Discarded(failure) } else { Attempt::Failed(failure) }
}

/// Class, text and traceback, by the standard library's own rules (causes, notes, groups).
fn describe(py: Python<'_>, error: &PyErr) -> PyResult<Failure> {
    static DESCRIBE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    // `into_value` hangs the traceback on the exception; before Python 3.12 they are apart.
    let exception = error.clone_ref(py).into_value(py);
    let describe = DESCRIBE.import(py, "dejq._failure", "describe")?;
    let described = call_user_code(describe, &[exception.into_bound(py).into_any()])?;
    let (kind, message, traceback) = described.cast::<PyTuple>()?.extract()?;
    Ok(Failure { kind, message, traceback: Some(traceback) })
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a Rust panic: {}", text.unwrap_or("without a text"))
}
