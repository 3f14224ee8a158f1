//! Calling a registered handler: the only place where a job meets user code.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::panic::PanicException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyTuple};
use pyo3::{PyTypeInfo, ffi};

use super::errors::class;
use super::job::{Job, parse};
use super::pending::seconds;
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
}

impl PyHandler {
    /// Another handle on the same handler.
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        let decoder = match &self.decoder {
            Decoder::Plain => Decoder::Plain,
            Decoder::Typed(decode) => Decoder::Typed(decode.clone_ref(py)),
        };
        Self { callable: self.callable.clone_ref(py), wants: self.wants.clone(), decoder }
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
        let job = || Bound::new(py, Job::new(Arc::clone(task))).map(Bound::into_any);
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

/// `call1` for code that may take long, and in which the end of the process may find a daemon thread.
///
/// Before Python 3.14 such a thread is ended when it next wants the interpreter: its stack is unwound through
/// the frames of this crate. They would abort the process, because the call is declared as one that never
/// unwinds, so this one is not, and `Hang` keeps the unwinding from reaching them. `PyO3` does the same where it
/// takes the interpreter itself.
#[allow(unsafe_code)] // PyO3's own calls are declared not to unwind, and turn a panic's exception into the panic
fn call_user_code<'py, const N: usize>(
    callable: &Bound<'py, PyAny>,
    arguments: &[Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyAny>> {
    type Call = unsafe extern "C-unwind" fn(
        *mut ffi::PyObject,
        *const *mut ffi::PyObject,
        usize,
        *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
    let py = callable.py();
    // SAFETY: the same function; only the promise not to unwind is dropped. The black box keeps the compiler,
    // which knows the promise, from making it again.
    let call: Call = std::hint::black_box(unsafe {
        std::mem::transmute::<*const (), Call>(ffi::PyObject_VectorcallDict as *const ())
    });
    // The callee may use the place in front, and a bound method puts its `self` there.
    let mut pointers = [std::ptr::null_mut(); 3];
    for (pointer, argument) in pointers[1..].iter_mut().zip(arguments) {
        *pointer = argument.as_ptr();
    }
    let count = N | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET;
    let hang = Hang;
    // SAFETY: attached; the arguments are borrowed for the time of the call.
    let result = unsafe { call(callable.as_ptr(), pointers[1..].as_ptr(), count, std::ptr::null_mut()) };
    std::mem::forget(hang);
    if result.is_null() {
        return Err(raised_by_call(py));
    }
    // SAFETY: a new reference, and not null.
    Ok(unsafe { Bound::from_owned_ptr(py, result) })
}

/// Dropped only by an unwinding. One that is no panic is the interpreter's, ending this thread: it stays here,
/// as Python 3.14 itself does it.
struct Hang;

impl Drop for Hang {
    fn drop(&mut self) {
        while !std::thread::panicking() {
            std::thread::park();
        }
    }
}

/// The exception of a failed call. `PyErr::fetch` would print one that stands for a Rust panic below the handler,
/// and panic again; here it is an exception like any other, with its traceback.
#[allow(unsafe_code, deprecated)] // as above; what replaced these functions is not in Python 3.10
fn raised_by_call(py: Python<'_>) -> PyErr {
    // SAFETY: attached; the argument is a class.
    let is_panic = unsafe { ffi::PyErr_ExceptionMatches(PanicException::type_object(py).as_ptr()) } != 0;
    if !is_panic {
        return PyErr::fetch(py);
    }
    let (mut class, mut exception, mut trace) =
        (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: attached; an exception is set, so class and exception are new references after normalizing, and
    // the traceback is one or null.
    unsafe {
        ffi::PyErr_Fetch(&raw mut class, &raw mut exception, &raw mut trace);
        ffi::PyErr_NormalizeException(&raw mut class, &raw mut exception, &raw mut trace);
        if !trace.is_null() {
            ffi::PyException_SetTraceback(exception, trace);
            ffi::Py_DECREF(trace);
        }
        ffi::Py_DECREF(class);
        PyErr::from_value(Bound::from_owned_ptr(py, exception))
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

/// An empty `contextvars` context for the time of a call, so that what one job sets does not reach the next.
struct FreshContext<'py> {
    context: Option<Bound<'py, PyAny>>,
}

#[allow(unsafe_code)] // PyO3 has no safe way into a context yet
impl<'py> FreshContext<'py> {
    fn enter(py: Python<'py>) -> Self {
        // SAFETY: attached; `PyContext_New` returns a new reference or null with an exception set, which
        // `from_owned_ptr_or_err` takes care of.
        let context = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_New()) };
        // SAFETY: attached, and a context just made has not been entered by anybody.
        let context = context.ok().filter(|context| unsafe { ffi::PyContext_Enter(context.as_ptr()) } == 0);
        Self { context }
    }
}

#[allow(unsafe_code)] // as above
impl Drop for FreshContext<'_> {
    fn drop(&mut self) {
        if let Some(context) = &self.context {
            // SAFETY: attached on the thread that entered it; contexts entered since have been left again by
            // the interpreter, which leaves them on every return from `Context.run`.
            if unsafe { ffi::PyContext_Exit(context.as_ptr()) } != 0 {
                // Left by the handler itself; the next job enters a context of its own anyway.
                drop(PyErr::take(context.py()));
            }
        }
    }
}
