//! `Job`: what a handler receives. Nothing is built before the handler asks for it.

use std::sync::Arc;

use jiter::{PythonParse, StringCacheMode};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDateTime, PyDict, PyString, PyTzInfo};

use super::errors::{class, to_py};
use super::pending::headers_dict;
use crate::backend::Backend;
use crate::job::{self, JobId, unix_ms};
use crate::worker::{Cancel, Task};

/// A job as a handler sees it. Documented in `dejq/_native.pyi`.
#[pyclass(frozen, module = "dejq")]
pub struct Job {
    task: Arc<Task>,
    body: PyOnceLock<Py<PyAny>>,
    backend: Arc<dyn Backend>,
}

impl Job {
    pub fn new(task: Arc<Task>, backend: Arc<dyn Backend>) -> Self {
        Self { task, body: PyOnceLock::new(), backend }
    }

    fn job(&self) -> &job::Job {
        &self.task.job
    }
}

#[pymethods]
impl Job {
    #[getter]
    fn id<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        id_text(py, self.job().id)
    }

    #[getter]
    fn r#type(&self) -> &str {
        self.job().job_type.as_str()
    }

    #[getter]
    fn attempt(&self) -> u32 {
        self.job().attempt
    }

    #[getter]
    fn enqueued_at<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDateTime>> {
        utc(py, self.job().enqueued_at)
    }

    #[getter]
    fn chain_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        id_text(py, self.job().chain.id)
    }

    #[getter]
    fn position(&self) -> u32 {
        self.job().chain.position
    }

    #[getter]
    fn chain_length(&self) -> u32 {
        self.job().chain.length
    }

    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        headers_dict(py, self.job().headers.as_deref())
    }

    #[getter]
    fn cancelled(&self) -> bool {
        self.task.cancelled() != Cancel::No
    }

    #[getter]
    fn body(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.body
            .get_or_try_init(py, || parse(py, &self.task.job).map(Bound::unbind))
            .map(|body| body.clone_ref(py))
    }

    #[pyo3(signature = (to=None))]
    fn decode<'py>(&self, py: Python<'py>, to: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        static DECODE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let Some(to) = to else { return Ok(self.body(py)?.into_bound(py)) };
        let raw = PyBytes::new(py, self.job().body.as_bytes());
        DECODE.import(py, "dejq._typed", "decode")?.call1((self.r#type(), raw, to))
    }

    #[pyo3(signature = (*, connection))]
    fn finish(slf: &Bound<'_, Self>, connection: &Bound<'_, PyAny>) -> PyResult<()> {
        static FINISH: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        FINISH.import(slf.py(), "dejq._transactions", "finish")?.call1((slf, connection)).map(|_| ())
    }

    #[pyo3(signature = (*, connection))]
    fn afinish<'py>(slf: &Bound<'py, Self>, connection: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        static AFINISH: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        AFINISH.import(slf.py(), "dejq._transactions", "afinish")?.call1((slf, connection))
    }

    /// The statement that finishes the job, and its values.
    fn _finish_statement(&self, py: Python<'_>) -> PyResult<(String, Vec<String>)> {
        let statement = self.backend.finish_statement(self.task.lease).map_err(|error| to_py(py, &error))?;
        Ok((statement.sql, statement.values))
    }

    /// The statement has been run.
    fn _finishes_itself(&self) {
        self.task.finish_in_transaction();
    }

    /// Without the body, which may hold what must not be logged.
    fn __repr__(&self) -> String {
        let job = self.job();
        format!("<Job {:?} {} attempt {}>", job.job_type, job.id, job.attempt)
    }
}

/// The body as Python objects.
pub fn parse<'py>(py: Python<'py>, job: &job::Job) -> PyResult<Bound<'py, PyAny>> {
    static PARSE: PythonParse = PythonParse {
        allow_inf_nan: false,
        cache_mode: StringCacheMode::Keys,
        partial_mode: jiter::PartialMode::Off,
        catch_duplicate_keys: false,
        float_mode: jiter::FloatMode::Float,
    };
    PARSE.python_parse(py, job.body.as_bytes()).or_else(|error| {
        // Somebody else wrote it into the store. The text names a place, never the content.
        let text =
            format!("the stored body of {:?} job {} is not JSON: {}", job.job_type, job.id, error.error_type);
        Err(PyErr::from_value(class(py, "BodyError")?.call1((text,))?))
    })
}

/// An id as text.
pub fn id_text(py: Python<'_>, id: JobId) -> Bound<'_, PyString> {
    PyString::new(py, id.encode(&mut [0; 36]))
}

/// The last millisecond of the year 9999, after which Python has no dates.
const LAST_MS: u64 = 253_402_300_799_999;

/// A time as an aware datetime.
pub fn utc(py: Python<'_>, time: std::time::SystemTime) -> PyResult<Bound<'_, PyDateTime>> {
    let zone = PyTzInfo::utc(py)?.to_owned();
    PyDateTime::from_timestamp(py, unix_ms(time).min(LAST_MS) as f64 / 1000.0, Some(&zone))
}
