//! The reader's side of the log ring. The thread that reads is Python's (`dejq/_logging.py`).

use std::time::{Duration, UNIX_EPOCH};

use pyo3::prelude::*;

use super::job::id_text;
use crate::log;

/// (id, type, id of the chain, attempt).
type AboutJob = (Py<PyAny>, String, Py<PyAny>, u32);
/// (verbosity, message, the job it is about, seconds since the epoch).
type Line = (u8, String, Option<AboutJob>, f64);

/// Sets how much is written.
#[pyfunction]
pub fn set_verbosity(verbosity: u8) {
    log::set_verbosity(verbosity);
}

/// Waits, at most so many seconds, for something to read, with the interpreter released.
#[pyfunction]
pub fn wait_log(py: Python<'_>, wait: f64) {
    let wait = Duration::try_from_secs_f64(wait).unwrap_or_default();
    py.detach(|| log::wait(wait));
}

/// What was written since the last call, and how many lines were dropped. Never waits.
#[pyfunction]
pub fn read_log(py: Python<'_>) -> (Vec<Line>, u64) {
    let (records, dropped) = log::read();
    let lines = records
        .into_iter()
        .map(|record| {
            let at = record.at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
            let text = |id| id_text(py, id).into_any().unbind();
            let about =
                record.job.map(|job| (text(job.id), job.job_type.to_string(), text(job.chain), job.attempt));
            (record.verbosity as u8, record.message, about, at)
        })
        .collect();
    (lines, dropped)
}
