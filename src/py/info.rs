//! From what the core reports to the dataclasses of `dejq/info.py`.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyModule};

use super::job::{id_text, utc};
use super::pending::headers_dict;
use crate::backend::{Bill, Counts, Finding, Level, Stats, Totals};
use crate::job::JobInfo;
use crate::worker::StopReport;

fn make<'py>(py: Python<'py>, class: &str, fields: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyAny>> {
    static INFO: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = INFO.get_or_try_init(py, || PyModule::import(py, "dejq.info").map(Bound::unbind))?;
    module.bind(py).getattr(class)?.call((), Some(fields))
}

pub fn stats<'py>(py: Python<'py>, stats: &Stats) -> PyResult<Bound<'py, PyAny>> {
    let by_type = PyDict::new(py);
    for (name, counts) in &stats.by_type {
        by_type.set_item(name, make(py, "TypeStats", &counted(py, counts)?)?)?;
    }
    let fields = counted(py, &stats.total)?;
    let waiting = [stats.total.ready, stats.total.scheduled, stats.total.blocked];
    fields.set_item("enqueued_jobs", waiting.into_iter().flatten().sum::<u64>())?;
    fields.set_item("by_type", by_type)?;
    fields.set_item("workers", stats.workers)?;
    fields.set_item("totals", stats.totals.as_ref().map(|all| totals(py, all)).transpose()?)?;
    fields.set_item("bill", stats.bill.as_ref().map(|all| bill(py, all)).transpose()?)?;
    make(py, "Stats", &fields)
}

fn bill<'py>(py: Python<'py>, bill: &Bill) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("calls", &bill.calls)?;
    fields.set_item("total", bill.total())?;
    fields.set_item("enqueued", bill.enqueued)?;
    fields.set_item("ended", bill.ended)?;
    fields.set_item("per_job", bill.per_job())?;
    make(py, "Bill", &fields)
}

fn totals<'py>(py: Python<'py>, totals: &Totals) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("jobs", totals.jobs)?;
    fields.set_item("chains", totals.chains)?;
    fields.set_item("attempts", totals.attempts)?;
    fields.set_item("failures", totals.failures)?;
    fields.set_item("retries", totals.retries)?;
    fields.set_item("rescues", totals.rescues)?;
    fields.set_item("duration", totals.duration)?;
    fields
        .set_item("mean", (totals.attempts > 0).then(|| totals.duration.div_f64(totals.attempts as f64)))?;
    fields.set_item("p50", totals.quantile(0.5))?;
    fields.set_item("p95", totals.quantile(0.95))?;
    fields.set_item("p99", totals.quantile(0.99))?;
    make(py, "Totals", &fields)
}

fn counted<'py>(py: Python<'py>, counts: &Counts) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    for (state, count) in counts.by_state() {
        fields.set_item(state.as_str(), count)?;
    }
    fields.set_item("oldest_ready", counts.oldest_ready)?;
    Ok(fields)
}

pub fn stop_report<'py>(py: Python<'py>, report: &StopReport) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("finished", report.finished)?;
    fields.set_item("given_back", report.given_back)?;
    fields.set_item("abandoned", report.abandoned)?;
    fields.set_item("forced", report.forced)?;
    make(py, "StopReport", &fields)
}

pub fn job_info<'py>(py: Python<'py>, info: &JobInfo) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    let time = |time: Option<std::time::SystemTime>| time.map(|time| utc(py, time)).transpose();
    fields.set_item("id", id_text(py, info.job.id))?;
    fields.set_item("type", info.job.job_type.as_str())?;
    fields.set_item("state", info.state.as_str())?;
    fields.set_item("attempt", info.job.attempt)?;
    fields.set_item("max_attempts", info.job.max_attempts.map(std::num::NonZeroU32::get))?;
    fields.set_item("rescues", info.rescues)?;
    fields.set_item("chain_id", id_text(py, info.job.chain.id))?;
    fields.set_item("position", info.job.chain.position)?;
    fields.set_item("chain_length", info.job.chain.length)?;
    fields.set_item("headers", headers_dict(py, info.job.headers.as_deref())?)?;
    fields.set_item("raw_body", info.job.body.as_bytes())?;
    fields.set_item("enqueued_at", utc(py, info.job.enqueued_at)?)?;
    fields.set_item("due_at", time(info.due_at)?)?;
    fields.set_item("started_at", time(info.started_at)?)?;
    fields.set_item("last_beat_at", time(info.last_beat_at)?)?;
    fields.set_item("finished_at", time(info.finished_at)?)?;
    let failure = info.failure.as_ref();
    fields.set_item("error", failure.map(ToString::to_string))?;
    fields.set_item("traceback", failure.and_then(|failure| failure.traceback.as_deref()))?;
    make(py, "JobInfo", &fields)
}

pub fn finding<'py>(py: Python<'py>, finding: &Finding) -> PyResult<Bound<'py, PyAny>> {
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    let fields = PyDict::new(py);
    fields.set_item("level", level)?;
    fields.set_item("name", &finding.name)?;
    fields.set_item("text", &finding.text)?;
    fields.set_item("fix", &finding.fix)?;
    make(py, "Finding", &fields)
}

pub fn migration(py: Python<'_>, applied: Vec<String>) -> PyResult<Bound<'_, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("applied", pyo3::types::PyTuple::new(py, applied)?)?;
    make(py, "MigrationReport", &fields)
}

/// An age limit as Python gives it.
pub fn age(value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    super::pending::seconds(value, "older_than")
}
