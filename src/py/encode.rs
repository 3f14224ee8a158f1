//! From Python values to JSON text, refusing what JSON cannot say, with the path of the offending value.
//!
//! The exact built-in types are written straight from their objects. What is left (dataclasses, msgspec and
//! pydantic models, subclasses of built-ins) is turned into built-ins by `dejq._typed.to_builtins` first.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::error::{Error, ErrorKind};
use crate::job::{Body, JobType, MAX_BODY_DEPTH};

/// Encodes the body of a job of `job_type`. `buffer` is only scratch space, reused between calls.
///
/// # Errors
/// [`ErrorKind::Body`] as text with path, or whatever a property of a model raised.
pub fn encode(job_type: &JobType, body: &Bound<'_, PyAny>, buffer: &mut Vec<u8>) -> PyResult<Body> {
    buffer.clear();
    match write(body, buffer, 0) {
        Ok(()) => Ok(Body::from_encoder(buffer)),
        Err(Refused::Raised(error)) => Err(error),
        Err(Refused::Value { mut path, why }) => {
            path.reverse();
            let error = Error::new(
                ErrorKind::Body,
                format!("the body of a {job_type:?} job is not JSON: ${} {why}", path.concat()),
            );
            Err(super::errors::to_py(body.py(), &error))
        }
    }
}

enum Refused {
    Value {
        /// Steps to the value, innermost first.
        path: Vec<String>,
        why: String,
    },
    Raised(PyErr),
}

impl From<PyErr> for Refused {
    fn from(error: PyErr) -> Self {
        Self::Raised(error)
    }
}

impl Refused {
    fn value(why: impl Into<String>) -> Self {
        Self::Value { path: Vec::new(), why: why.into() }
    }

    fn inside(self, step: impl FnOnce() -> String) -> Self {
        match self {
            Self::Value { mut path, why } => {
                path.push(step());
                Self::Value { path, why }
            }
            raised @ Self::Raised(_) => raised,
        }
    }
}

fn write(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: usize) -> Result<(), Refused> {
    if let Ok(text) = value.cast_exact::<PyString>() {
        write_text(text, out)
    } else if let Ok(dict) = value.cast_exact::<PyDict>() {
        write_dict(dict, out, deeper(depth)?)
    } else if let Ok(int) = value.cast_exact::<PyInt>() {
        write_int(int, out)
    } else if value.is_none() {
        out.extend_from_slice(b"null");
        Ok(())
    } else if let Ok(bool) = value.cast_exact::<PyBool>() {
        out.extend_from_slice(if bool.is_true() { b"true" } else { b"false" });
        Ok(())
    } else if let Ok(float) = value.cast_exact::<PyFloat>() {
        write_float(float.value(), out)
    } else if let Ok(list) = value.cast_exact::<PyList>() {
        write_items(list.iter(), out, deeper(depth)?)
    } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        write_items(tuple.iter(), out, deeper(depth)?)
    } else {
        write(&to_exact_builtin(value)?, out, depth)
    }
}

fn deeper(depth: usize) -> Result<usize, Refused> {
    if depth < MAX_BODY_DEPTH {
        return Ok(depth + 1);
    }
    Err(Refused::value(format!("is nested deeper than {MAX_BODY_DEPTH} levels, or contains itself")))
}

fn write_text(text: &Bound<'_, PyString>, out: &mut Vec<u8>) -> Result<(), Refused> {
    let Ok(utf8) = text.to_str() else {
        return Err(Refused::value(
            "has a lone surrogate, which UTF-8 cannot hold; it often comes from os.fsdecode(), \
             so encode such names yourself, for example with base64",
        ));
    };
    write_json(utf8, out);
    Ok(())
}

fn write_float(float: f64, out: &mut Vec<u8>) -> Result<(), Refused> {
    if !float.is_finite() {
        return Err(Refused::value(format!(
            "is {float}, and JSON has only finite numbers; use None or a string"
        )));
    }
    write_json(&float, out);
    Ok(())
}

fn write_int(int: &Bound<'_, PyInt>, out: &mut Vec<u8>) -> Result<(), Refused> {
    if let Ok(small) = int.extract::<i64>() {
        write_json(&small, out);
        return Ok(());
    }
    // Beyond 64 bits Python's own digits pass through exactly; Python limits them to 4,300 by default.
    match int.str() {
        Ok(digits) => {
            out.extend_from_slice(digits.to_str()?.as_bytes());
            Ok(())
        }
        Err(_) => {
            Err(Refused::value("is an integer with more digits than Python turns into text; use a string"))
        }
    }
}

fn write_items<'py>(
    items: impl Iterator<Item = Bound<'py, PyAny>>,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), Refused> {
    out.push(b'[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(&item, out, depth).map_err(|refused| refused.inside(|| format!("[{index}]")))?;
    }
    out.push(b']');
    Ok(())
}

fn write_dict(dict: &Bound<'_, PyDict>, out: &mut Vec<u8>, depth: usize) -> Result<(), Refused> {
    let length = dict.len();
    // Code of a model, or another thread while that runs, may change the dict. PyO3's iterator would panic.
    let check = || {
        let why = "has changed while it was being encoded; enqueue a copy that nobody else changes";
        if dict.len() == length { Ok(()) } else { Err(Refused::value(why)) }
    };
    let mut entries = dict.iter();
    out.push(b'{');
    for index in 0..length {
        check()?;
        let Some((key, value)) = entries.next() else { break };
        if index > 0 {
            out.push(b',');
        }
        let Ok(name) = key.cast::<PyString>() else {
            return Err(Refused::value(format!(
                "has a key of type {}, and JSON keys are strings; use str(key)",
                type_name(&key)
            )));
        };
        write_text(name, out)?;
        out.push(b':');
        write(&value, out, depth)
            .map_err(|refused| refused.inside(|| format!(".{}", name.to_string_lossy())))?;
    }
    check()?;
    out.push(b'}');
    Ok(())
}

/// Numbers and text have no way to fail, and neither has writing to memory.
fn write_json(value: &(impl serde::Serialize + ?Sized), out: &mut Vec<u8>) {
    if let Err(error) = serde_json::to_writer(out, value) {
        unreachable!("a number or text could not be written as JSON: {error}");
    }
}

/// Turns a value into built-ins until it is one: the value of an enum member may be a model, for example.
fn to_exact_builtin<'py>(value: &Bound<'py, PyAny>) -> Result<Bound<'py, PyAny>, Refused> {
    let mut plain = to_builtins(value)?;
    for _ in 0..MAX_BODY_DEPTH {
        if is_exact_builtin(&plain) {
            return Ok(plain);
        }
        plain = to_builtins(&plain)?;
    }
    Err(Refused::value(format!(
        "is a {} that never turns into something that JSON can say",
        type_name(value)
    )))
}

fn is_exact_builtin(value: &Bound<'_, PyAny>) -> bool {
    value.is_none()
        || value.is_exact_instance_of::<PyDict>()
        || value.is_exact_instance_of::<PyList>()
        || value.is_exact_instance_of::<PyTuple>()
        || value.is_exact_instance_of::<PyString>()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyFloat>()
        || value.is_exact_instance_of::<PyBool>()
}

fn to_builtins<'py>(value: &Bound<'py, PyAny>) -> Result<Bound<'py, PyAny>, Refused> {
    static TO_BUILTINS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static UNSAYABLE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = value.py();
    let converted = match TO_BUILTINS.import(py, "dejq._typed", "to_builtins")?.call1((value,)) {
        Ok(converted) => converted,
        Err(error)
            if error.value(py).is_instance(UNSAYABLE.import(py, "dejq._typed", "UnsayableError")?)? =>
        {
            return Err(Refused::value(error.value(py).to_string()));
        }
        Err(error) => return Err(error.into()),
    };
    if converted.is(py.NotImplemented()) {
        return Err(Refused::value(format!(
            "is of type {}, which JSON cannot say; a body is made of None, bool, int, float, str, list, dict, \
             dataclasses, msgspec structs and pydantic models",
            type_name(value)
        )));
    }
    Ok(converted)
}

fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string())
}
