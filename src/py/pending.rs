//! `PendingJob`: a job as the user describes it, before it is enqueued.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyDelta, PyDeltaAccess, PyDict, PyMapping, PyString, PyType};

use super::encode::encode;
use super::errors::to_py;
use crate::error::Error;
use crate::job::{Headers, JobType, MAX_HEADER_BYTES, MAX_UNIQUE_BYTES, NewJob};

/// The longest time that means something. Beyond it dates run out of years.
const LONGEST: Duration = Duration::from_secs(36_500 * 86_400);
/// Most characters of a bad value in a text.
const MAX_SHOWN: usize = 60;

/// A job that has been described but not enqueued. Documented in `dejq/_native.pyi`.
#[pyclass(frozen, subclass, module = "dejq")]
pub struct PendingJob {
    job_type: JobType,
    body: Py<PyAny>,
    /// What few pending jobs have.
    options: Option<Box<Options>>,
}

#[derive(Default)]
struct Options {
    delay: Duration,
    max_attempts: Option<NonZeroU32>,
    unique: Option<Arc<str>>,
    headers: Option<Arc<Headers>>,
}

#[pymethods]
impl PendingJob {
    #[new]
    #[pyo3(signature = (r#type, body=None, *, delay=None, max_attempts=None, unique=None, headers=None))]
    fn new(
        py: Python<'_>,
        r#type: &Bound<'_, PyString>,
        body: Option<Py<PyAny>>,
        delay: Option<&Bound<'_, PyAny>>,
        max_attempts: Option<&Bound<'_, PyAny>>,
        unique: Option<&Bound<'_, PyString>>,
        headers: Option<&Bound<'_, PyMapping>>,
    ) -> PyResult<Self> {
        let job_type = job_type(r#type)?;
        let is_plain = delay.is_none() && max_attempts.is_none() && unique.is_none() && headers.is_none();
        let options = if is_plain {
            None
        } else {
            Some(Box::new(Options {
                delay: delay.map_or(Ok(Duration::ZERO), |delay| seconds(delay, "delay"))?,
                max_attempts: max_attempts.map(|attempts| positive(attempts, "max_attempts")).transpose()?,
                unique: unique.map(unique_key).transpose()?,
                headers: headers.map(checked_headers).transpose()?,
            }))
        };
        Ok(Self { job_type, body: body.unwrap_or_else(|| py.None()), options })
    }

    #[getter]
    fn r#type(&self) -> &str {
        self.job_type.as_str()
    }

    #[getter]
    fn body(&self, py: Python<'_>) -> Py<PyAny> {
        self.body.clone_ref(py)
    }

    #[getter]
    fn delay(&self) -> Option<Duration> {
        self.options.as_ref().map(|options| options.delay).filter(|delay| !delay.is_zero())
    }

    #[getter]
    fn max_attempts(&self) -> Option<u32> {
        self.options.as_ref()?.max_attempts.map(NonZeroU32::get)
    }

    #[getter]
    fn unique(&self) -> Option<&str> {
        self.options.as_ref()?.unique.as_deref()
    }

    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        headers_dict(py, self.options.as_ref().and_then(|options| options.headers.as_deref()))
    }

    /// Without the body, which may hold what must not be logged.
    fn __repr__(&self) -> String {
        format!("PendingJob({:?})", self.job_type)
    }

    #[classmethod]
    fn __class_getitem__<'py>(
        cls: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Ok(pyo3::types::PyGenericAlias::new(cls.py(), cls.as_any(), item)?.into_any())
    }
}

impl PendingJob {
    /// The job for the store, its body encoded as it is now.
    pub fn to_new_job(&self, py: Python<'_>, buffer: &mut Vec<u8>) -> PyResult<NewJob> {
        let body = encode(&self.job_type, self.body.bind(py), buffer)?;
        let mut job = NewJob::single(self.job_type.clone(), body);
        if let Some(options) = &self.options {
            job.delay = options.delay;
            job.max_attempts = options.max_attempts;
            job.unique.clone_from(&options.unique);
            job.headers.clone_from(&options.headers);
        }
        Ok(job)
    }
}

/// A checked type.
pub fn job_type(name: &Bound<'_, PyString>) -> PyResult<JobType> {
    let py = name.py();
    // A lone surrogate has no UTF-8; the check below refuses the replacement character with its place.
    let checked = match name.to_str() {
        Ok(utf8) => JobType::new(utf8),
        Err(_) => JobType::new(&name.to_string_lossy()),
    };
    checked.map_err(|error| to_py(py, &error))
}

/// Seconds as a number or a `timedelta`.
pub fn seconds(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Duration> {
    let seconds = if let Ok(delta) = value.cast::<PyDelta>() {
        f64::from(delta.get_days()) * 86_400.0
            + f64::from(delta.get_seconds())
            + f64::from(delta.get_microseconds()) / 1e6
    } else {
        value.extract::<f64>().unwrap_or(f64::NAN)
    };
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| *duration <= LONGEST).ok_or_else(|| {
        let error = Error::config(format!(
            "{name}={} must be seconds (a number) or a timedelta, neither negative nor endless (100 years at most)",
            shown(value)
        ));
        to_py(value.py(), &error)
    })
}

/// A whole number of at least 1.
pub fn positive(value: &Bound<'_, PyAny>, name: &str) -> PyResult<NonZeroU32> {
    value.extract().ok().and_then(NonZeroU32::new).ok_or_else(|| {
        let error =
            Error::config(format!("{name}={} must be a whole number from 1 to {}", shown(value), u32::MAX));
        to_py(value.py(), &error)
    })
}

fn shown(value: &Bound<'_, PyAny>) -> String {
    let text = value.repr().map_or_else(|_| "?".into(), |text| text.to_string_lossy().into_owned());
    if text.chars().count() <= MAX_SHOWN {
        return text;
    }
    text.chars().take(MAX_SHOWN).chain(['…']).collect()
}

fn unique_key(key: &Bound<'_, PyString>) -> PyResult<Arc<str>> {
    let wrong = |why: String| to_py(key.py(), &Error::config(format!("unique= {why}")));
    let Ok(key) = key.to_str() else {
        return Err(wrong("has a lone surrogate, which UTF-8 cannot hold".into()));
    };
    match key.len() {
        0 => Err(wrong("is empty; leave it out, or use a key that tells jobs apart".into())),
        1..=MAX_UNIQUE_BYTES => Ok(key.into()),
        bytes => Err(wrong(format!("has {bytes} bytes, {MAX_UNIQUE_BYTES} is the most; use a hash of it"))),
    }
}

fn checked_headers(headers: &Bound<'_, PyMapping>) -> PyResult<Arc<Headers>> {
    let wrong = |why: String| to_py(headers.py(), &Error::config(format!("headers= {why}")));
    let mut checked = Headers::new();
    for item in headers.items()?.iter() {
        let Ok((name, value)) = item.extract::<(String, String)>() else {
            return Err(wrong(
                "must map strings to strings, without lone surrogates; put other data into the body".into(),
            ));
        };
        checked.insert(name, value);
    }
    let size: usize = checked.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > MAX_HEADER_BYTES {
        return Err(wrong(format!(
            "have {size} bytes, {MAX_HEADER_BYTES} is the most; put data into the body"
        )));
    }
    Ok(Arc::new(checked))
}

/// Headers as a dict of their own.
pub fn headers_dict<'py>(py: Python<'py>, headers: Option<&Headers>) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in headers.into_iter().flatten() {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}
