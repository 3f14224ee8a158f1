//! Into user code and back: what a plain call of `PyO3` does not take care of.
//!
//! A handler may be on a thread's stack when the interpreter goes down, it may raise what stands for a Rust panic,
//! and it may leave context variables behind.

use pyo3::panic::PanicException;
use pyo3::prelude::*;
use pyo3::{PyTypeInfo, ffi};

/// `call1` for code that may take long, and in which the end of the process may find a daemon thread.
///
/// Before Python 3.14 such a thread is ended when it next wants the interpreter: its stack is unwound through
/// the frames of this crate. They would abort the process, because the call is declared as one that never
/// unwinds, so this one is not, and `Hang` keeps the unwinding from reaching them. `PyO3` does the same where it
/// takes the interpreter itself.
#[allow(unsafe_code)] // PyO3's own calls are declared not to unwind, and turn a panic's exception into the panic
pub fn call_user_code<'py, const N: usize>(
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

/// An empty `contextvars` context for the time of a call, so that what one job sets does not reach the next.
pub struct FreshContext<'py> {
    context: Option<Bound<'py, PyAny>>,
}

#[allow(unsafe_code)] // PyO3 has no safe way into a context yet
impl<'py> FreshContext<'py> {
    pub fn enter(py: Python<'py>) -> Self {
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
