//! From the crate's errors to Python's: one kind, one exception class. The classes are Python's own
//! (`dejq/errors.py`): documented, typed and picklable there.

use std::error::Error as _;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyModule};

use super::job::id_text;
use crate::error::{Error, ErrorKind};
use crate::job::JobId;

/// The class that stands for a kind.
fn class_of(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Config => "ConfigError",
        ErrorKind::Unavailable => "BackendUnavailable",
        ErrorKind::OutcomeUnknown => "OutcomeUnknown",
        ErrorKind::Body => "BodyError",
        ErrorKind::BodyTooLarge { .. } => "BodyTooLarge",
        ErrorKind::ChainBroken { .. } => "ChainBroken",
        ErrorKind::UnknownJob => "UnknownJob",
        ErrorKind::WrongState => "WrongState",
        ErrorKind::NotSupported => "NotSupported",
        ErrorKind::SchemaMissing => "SchemaMissing",
        ErrorKind::SchemaOutdated => "SchemaOutdated",
        ErrorKind::Stopped => "ClientStopped",
        ErrorKind::Forked => "ForkedProcess",
    }
}

/// A name of `dejq.errors`.
pub fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = ERRORS.get_or_try_init(py, || PyModule::import(py, "dejq.errors").map(Bound::unbind))?;
    module.bind(py).getattr(name)
}

/// The Python exception of an error, with its cause.
pub fn to_py(py: Python<'_>, error: &Error) -> PyErr {
    let made = class(py, class_of(error.kind())).and_then(|class| {
        let exception = class.call1((error.text(),))?;
        if let ErrorKind::BodyTooLarge { size, limit } = error.kind() {
            exception.setattr("size", size)?;
            exception.setattr("limit", limit)?;
        }
        if let ErrorKind::ChainBroken { sent, unsent } = error.kind() {
            let texts = |ids: &[JobId]| PyList::new(py, ids.iter().map(|id| id_text(py, *id)));
            exception.setattr("sent", texts(sent)?)?;
            exception.setattr("unsent", texts(unsent)?)?;
        }
        Ok(exception)
    });
    let exception = match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => return error,
    };
    if let Some(source) = error.source() {
        exception.set_cause(py, Some(PyRuntimeError::new_err(source.to_string())));
    }
    exception
}
