//! What the store answers to coroutines: an event loop asks, the runtime answers, and no thread waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyList;

use super::bell::{Bell, Rope};
use super::enqueue::with_ids;
use super::errors::to_py;
use super::job::id_text;
use crate::error::Result;
use crate::job::{JobId, NewJob};

/// The answers for one event loop.
#[pyclass(frozen, module = "dejq._native")]
pub struct Answers {
    ready: Arc<Mutex<Vec<Answer>>>,
    bell: Bell,
    next: AtomicU64,
}

struct Answer {
    question: u64,
    jobs: Vec<NewJob>,
    ids: Result<Vec<JobId>>,
}

/// Puts an answer where the loop finds it.
pub struct Reply {
    ready: Arc<Mutex<Vec<Answer>>>,
    rope: Arc<Rope>,
    question: u64,
}

impl Reply {
    pub fn send(self, jobs: Vec<NewJob>, ids: Result<Vec<JobId>>) {
        let answer = Answer { question: self.question, jobs, ids };
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        self.rope.pull();
    }
}

impl Answers {
    /// The number of a new question, and the way back from it.
    pub fn ask(&self) -> (u64, Reply) {
        let question = self.next.fetch_add(1, Ordering::Relaxed);
        (question, Reply { ready: Arc::clone(&self.ready), rope: self.bell.rope(), question })
    }
}

#[pymethods]
impl Answers {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self { ready: Arc::default(), bell: Bell::new(py)?, next: AtomicU64::new(0) })
    }

    /// Becomes readable when there is something to `take`.
    fn fileno(&self) -> i32 {
        self.bell.fileno()
    }

    /// What has been answered: the question, and the ids or the exception.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Vec<(u64, Bound<'py, PyAny>)>> {
        self.bell.heard();
        let ready = std::mem::take(&mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner));
        let given = |answer: Answer| {
            let given = match answer.ids {
                Ok(ids) => PyList::new(py, ids.into_iter().map(|id| id_text(py, id)))?.into_any(),
                Err(error) => {
                    with_ids(py, to_py(py, &error), &answer.jobs).into_value(py).into_bound(py).into_any()
                }
            };
            Ok((answer.question, given))
        };
        ready.into_iter().map(given).collect()
    }
}
