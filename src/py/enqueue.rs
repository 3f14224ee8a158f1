//! From pending jobs to new ones, and what is said about them afterwards.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::errors::{class, to_py};
use super::job::id_text;
use super::pending::PendingJob;
use crate::job::{JobId, NewJob, OnFailure};
use crate::log::{self, About, Verbosity};
use crate::metrics::Process;

/// Single jobs, and sequences of jobs, each of which is a chain.
pub fn many_chains(py: Python<'_>, chains: &Bound<'_, PyAny>, cancel_rest: bool) -> PyResult<Vec<NewJob>> {
    let mut buffer = Vec::with_capacity(256);
    let mut jobs = Vec::with_capacity(chains.len().unwrap_or(0));
    for chain in chains.try_iter()? {
        let chain = chain?;
        let first = jobs.len();
        if let Ok(single) = chain.cast::<PendingJob>() {
            jobs.push(single.get().to_new_job(py, &mut buffer)?);
        } else {
            for job in chain.try_iter().map_err(|_| not_pending(&chain))? {
                jobs.push(pending(&job?)?.to_new_job(py, &mut buffer)?);
            }
            link(py, &mut jobs[first..], cancel_rest)?;
        }
    }
    Ok(jobs)
}

fn link(py: Python<'_>, chain: &mut [NewJob], cancel_rest: bool) -> PyResult<()> {
    let on_failure = if cancel_rest { OnFailure::Cancel } else { OnFailure::Continue };
    NewJob::link(chain, on_failure).map_err(|error| to_py(py, &error))
}

/// The jobs of one call, as a chain.
pub fn one_chain(py: Python<'_>, jobs: &Bound<'_, PyTuple>, cancel_rest: bool) -> PyResult<Vec<NewJob>> {
    let mut buffer = Vec::with_capacity(256);
    let mut chain = Vec::with_capacity(jobs.len());
    for job in jobs.iter_borrowed() {
        chain.push(pending(&job)?.to_new_job(py, &mut buffer)?);
    }
    link(py, &mut chain, cancel_rest)?;
    Ok(chain)
}

fn pending<'a>(job: &'a Bound<'_, PyAny>) -> PyResult<&'a PendingJob> {
    job.cast::<PendingJob>().map(Bound::get).map_err(|_| not_pending(job))
}

fn not_pending(job: &Bound<'_, PyAny>) -> PyErr {
    let name = job.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string());
    PyTypeError::new_err(format!(
        "a PendingJob is expected, not {name}; write PendingJob(\"type\", body), or use the .job(body) of a handler"
    ))
}

/// Names the jobs of a call whose outcome is unknown, for the caller to look them up.
pub fn with_ids(py: Python<'_>, error: PyErr, jobs: &[NewJob]) -> PyErr {
    let is_unknown = class(py, "OutcomeUnknown").is_ok_and(|class| error.is_instance(py, &class));
    if is_unknown
        && let Ok(ids) = PyList::new(py, jobs.iter().map(|job| id_text(py, job.id)))
        && let Err(error) = error.value(py).setattr("ids", ids)
    {
        return error;
    }
    error
}

/// These jobs have been stored.
pub fn tell(metrics: &Process, jobs: &[NewJob], ids: &[JobId]) {
    metrics.enqueued(jobs, ids);
    if log::wants(Verbosity::Jobs) {
        for (job, id) in jobs.iter().zip(ids) {
            // Of a unique job that is there already, only the id is known.
            let chain = if *id == job.id { job.chain.id } else { *id };
            let about = About { id: *id, job_type: job.job_type.clone(), chain, attempt: 0 };
            log::write_about(Verbosity::Jobs, about, format!("enqueue {}", job.job_type));
        }
    }
}
