//! The client as the facade (`dejq/client.py`) drives it: convert, let go of the interpreter, call, convert back.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};

use super::answers::Answers;
use super::enqueue::{many_chains, one_chain, tell, with_ids};
use super::errors::to_py;
use super::executor::{AsyncLane, SyncLane};
use super::handler::{Decoder, PyHandler};
use super::info;
use super::job::id_text;
use super::metrics::{Reporter, serve};
use super::pending::{job_type, positive};
use super::registry::{Registry, Started};
use super::runtime::{Process, handle, wait, wait_aside, wait_for_server};
use crate::backend::{Backend, DeadLetters, Filter, Guarantees, NewQueue, Options, check_sizes, connect};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobId, JobType, NewJob};
use crate::metrics::{self, Source, Wanted};
use crate::worker::{Backoff, Flavour, HandlerSpec, Worker, WorkerConfig};

/// (initial seconds, factor, maximum seconds, jitter) of `dejq.Backoff`, which has checked them.
type BackoffParts = (f64, f64, f64, f64);

/// What `start` returns: the lanes that have handlers.
type Lanes<'py> = (Option<Bound<'py, SyncLane>>, Option<Bound<'py, AsyncLane>>);

/// One client of one store.
#[pyclass(frozen, module = "dejq._native")]
pub struct Client {
    /// `None` only while it is dropped.
    inner: Option<Inner>,
}

pub(super) struct Inner {
    pub(super) backend: Arc<dyn Backend>,
    guarantees: Guarantees,
    pub(super) config: WorkerConfig,
    is_inline: bool,
    process: Process,
    pub(super) registry: Registry,
    is_stopped: AtomicBool,
    metrics: Arc<metrics::Process>,
}

impl Drop for Client {
    fn drop(&mut self) {
        // In a forked child the locks inside may be held for ever by threads that do not exist there.
        if let Some(inner) = self.inner.take()
            && !inner.process.is_current()
        {
            std::mem::forget(inner);
        }
    }
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (url, options, backoff=None))]
    fn new(
        py: Python<'_>,
        url: &str,
        options: HashMap<String, String>,
        backoff: Option<BackoffParts>,
    ) -> PyResult<Self> {
        Self::open(url, options, backoff).map_err(|error| to_py(py, &error))
    }

    /// The options the store and the worker were made with, for `repr`, banners and `check`.
    fn settings(&self, py: Python<'_>) -> PyResult<(String, usize, usize, f64, bool)> {
        let inner = self.inner(py)?;
        let config = &inner.config;
        Ok((
            inner.guarantees.store.to_owned(),
            config.workers,
            config.async_workers,
            config.heartbeat.as_secs_f64(),
            inner.guarantees.in_process,
        ))
    }

    /// One chain.
    fn enqueue<'py>(
        &self,
        py: Python<'py>,
        jobs: &Bound<'py, PyTuple>,
        cancel_rest: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let inner = self.open_inner(py)?;
        inner.store(py, &one_chain(py, jobs, cancel_rest)?)
    }

    /// One chain, for a coroutine that finds the ids among the `answers`; returns the number of its question.
    fn ask_enqueue(
        &self,
        py: Python<'_>,
        jobs: &Bound<'_, PyTuple>,
        cancel_rest: bool,
        answers: &Answers,
    ) -> PyResult<u64> {
        let inner = self.open_inner(py)?;
        let chain = one_chain(py, jobs, cancel_rest)?;
        check_sizes(&inner.guarantees, &chain).map_err(|error| to_py(py, &error))?;
        let (question, reply) = answers.ask();
        let (backend, metrics) = (Arc::clone(&inner.backend), Arc::clone(&inner.metrics));
        handle().map_err(|error| to_py(py, &error))?.spawn(async move {
            let ids = backend.enqueue(&chain).await;
            if let Ok(ids) = &ids {
                tell(&metrics, &chain, ids);
            }
            reply.send(chain, ids);
        });
        Ok(question)
    }

    /// One chain, for the caller to store in a transaction of their own: the statement and its values.
    fn enqueue_statement(
        &self,
        py: Python<'_>,
        jobs: &Bound<'_, PyTuple>,
        cancel_rest: bool,
    ) -> PyResult<(String, Vec<String>)> {
        let inner = self.open_inner(py)?;
        let chain = one_chain(py, jobs, cancel_rest)?;
        let statement = check_sizes(&inner.guarantees, &chain)
            .and_then(|()| inner.backend.enqueue_statement(&chain))
            .map_err(|error| to_py(py, &error))?;
        Ok((statement.sql, statement.values))
    }

    /// Many independent chains, all or none.
    fn enqueue_many<'py>(
        &self,
        py: Python<'py>,
        chains: &Bound<'py, PyAny>,
        cancel_rest: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let inner = self.open_inner(py)?;
        inner.store(py, &many_chains(py, chains, cancel_rest)?)
    }

    /// Registers a handler. `wants` says what it takes, in order: the job (true) or the body (false).
    #[pyo3(signature = (r#type, callable, wants, decoder, is_async, max_attempts, backoff, timeout))]
    #[allow(clippy::too_many_arguments)] // the facade passes what it has checked, by name
    fn register(
        &self,
        py: Python<'_>,
        r#type: &Bound<'_, PyString>,
        callable: Py<PyAny>,
        wants: Vec<bool>,
        decoder: Option<Py<PyAny>>,
        is_async: bool,
        max_attempts: Option<&Bound<'_, PyAny>>,
        backoff: Option<BackoffParts>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let inner = self.open_inner(py)?;
        let spec = HandlerSpec {
            job_type: job_type(r#type)?,
            flavour: if is_async { Flavour::Async } else { Flavour::Sync },
            max_attempts: max_attempts.map(|attempts| positive(attempts, "max_attempts")).transpose()?,
            backoff: backoff.map(backoff_from),
            timeout: timeout.map(duration),
        };
        let decoder = decoder.map_or(Decoder::Plain, Decoder::Typed);
        let handler = PyHandler { callable, wants, decoder, backend: Arc::clone(&inner.backend) };
        inner.registry.add(spec, handler).map_err(|error| to_py(py, &error))
    }

    /// Puts a callable that takes the job, and runs the handler within its middleware, in the handler's place.
    fn enclose(&self, py: Python<'_>, r#type: &Bound<'_, PyString>, callable: Py<PyAny>) -> PyResult<()> {
        let inner = self.open_inner(py)?;
        let backend = Arc::clone(&inner.backend);
        let enclosed = PyHandler { callable, wants: vec![true], decoder: Decoder::Plain, backend };
        // What was there is dropped after the lock: that may run anything.
        let replaced = inner.registry.enclose(&job_type(r#type)?, enclosed);
        replaced.map(drop).map_err(|error| to_py(py, &error))
    }

    /// The registered types.
    fn types(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        Ok(self.inner(py)?.registry.types())
    }

    /// Forgets the handlers of all other types.
    fn keep_handlers(&self, py: Python<'_>, types: Vec<Bound<'_, PyString>>) -> PyResult<()> {
        let types: Vec<JobType> = types.into_iter().map(|name| job_type(&name)).collect::<PyResult<_>>()?;
        let forgotten = self.open_inner(py)?.registry.keep(&types);
        // Without the lock: dropping a function may run anything.
        drop(forgotten);
        Ok(())
    }

    /// Starts the worker; returns its lanes, whose threads are the caller's to start.
    fn start<'py>(
        &self,
        py: Python<'py>,
        workers: Option<&Bound<'py, PyAny>>,
        max_jobs: Option<u64>,
    ) -> PyResult<Lanes<'py>> {
        let inner = self.open_inner(py)?;
        let workers = workers.map(|workers| positive(workers, "workers")).transpose()?;
        let Started { worker, table } = inner.start(workers, max_jobs).map_err(|error| to_py(py, &error))?;
        inner.metrics.started(&worker);
        let sync = worker.lane(Flavour::Sync).map(|lane| {
            Bound::new(py, SyncLane { worker: Arc::clone(&worker), table: Arc::clone(&table), lane })
        });
        let looped = worker.lane(Flavour::Async).map(|lane| {
            AsyncLane::new(py, Arc::clone(&worker), table, lane).and_then(|lane| Bound::new(py, lane))
        });
        match (sync.transpose(), looped.transpose()) {
            (Ok(sync), Ok(looped)) => Ok((sync, looped)),
            (Err(error), _) | (_, Err(error)) => {
                // Nobody would run what it takes.
                self.request_stop(py, Some(0.0))?;
                Err(error)
            }
        }
    }

    /// Runs ready jobs on the calling thread until there are none; returns how many ran. `run_coroutine` is
    /// called with what an `async def` handler returns.
    fn drain(&self, py: Python<'_>, run_coroutine: &Bound<'_, PyAny>, scheduled: bool) -> PyResult<u64> {
        self.inner(py)?.drain(py, run_coroutine, scheduled, false)
    }

    /// `drain` after an enqueue of the inline mode: what a handler raises comes out, once the rest has run.
    fn run_inline(&self, py: Python<'_>, run_coroutine: &Bound<'_, PyAny>) -> PyResult<u64> {
        self.inner(py)?.drain(py, run_coroutine, true, true)
    }

    #[getter]
    fn is_inline(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.inner(py)?.is_inline)
    }

    /// Has a worker been started, and is it not stopping?
    #[getter]
    fn is_running(&self, py: Python<'_>) -> PyResult<bool> {
        let inner = self.inner(py)?;
        Ok(inner.registry.worker().is_some_and(|worker| !worker.is_stopping()))
    }

    /// Has the worker nothing in hand?
    #[getter]
    fn is_idle(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.inner(py)?.registry.worker().is_none_or(|worker| worker.in_hand() == 0))
    }

    /// Waits until the worker takes no more jobs, or for so many seconds; has it come to that? Not for the main thread.
    #[pyo3(signature = (timeout))]
    fn wait_until_stopping(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let Some(worker) = self.inner(py)?.registry.worker() else { return Ok(false) };
        let timeout = timeout.map_or(Duration::MAX, duration);
        wait_aside(py, async move { tokio::time::timeout(timeout, worker.stopping()).await.is_ok() })
    }

    /// Has the worker made as many handler calls as it was to make?
    #[getter]
    fn is_spent(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.inner(py)?.registry.worker().is_some_and(|worker| worker.is_spent()))
    }

    /// Has somebody asked for the stop?
    #[getter]
    fn is_stopped(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.inner(py)?.is_stopped.load(Ordering::SeqCst))
    }

    /// All metrics, as text that Prometheus reads.
    fn metrics(&self, py: Python<'_>) -> PyResult<String> {
        let inner = self.inner(py)?;
        wait_for_server(py, async { Ok(inner.metrics.page(Wanted::WithStore).await.text()) })
    }

    /// Serves metrics and probes at `HOST:PORT` until the process ends; returns the address.
    fn serve(&self, py: Python<'_>, address: &str) -> PyResult<String> {
        serve(py, address, Arc::clone(&self.inner(py)?.metrics) as _)
    }

    /// Tells metrics to a supervisor, over a socket whose file descriptor is given away.
    fn report(&self, py: Python<'_>, socket: i32) -> PyResult<Reporter> {
        let source = Arc::clone(&self.inner(py)?.metrics) as _;
        Reporter::start(socket, source).map_err(|error| to_py(py, &error))
    }

    /// Begins the stop without waiting for its end: what a handler may do.
    #[pyo3(signature = (timeout))]
    fn request_stop(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let inner = self.inner(py)?;
        inner.is_stopped.store(true, Ordering::SeqCst);
        if let Some(worker) = inner.registry.worker() {
            // At once, for those who ask right after this call.
            worker.request_stop();
            let timeout = timeout.map(duration);
            let handle = handle().map_err(|error| to_py(py, &error))?;
            handle.spawn(async move { worker.stop(timeout).await });
        }
        Ok(())
    }

    /// Moves the deadline of a stop that is under way nearer.
    fn hurry(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        if let Some(worker) = self.inner(py)?.registry.worker() {
            worker.hurry(duration(timeout));
        }
        Ok(())
    }

    /// Stops the worker, if there is one, and closes the client.
    fn stop<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        let inner = self.inner(py)?;
        inner.is_stopped.store(true, Ordering::SeqCst);
        let report = match inner.registry.worker() {
            None => crate::worker::StopReport::default(),
            Some(worker) => {
                let timeout = timeout.map(duration);
                let handle = handle().map_err(|error| to_py(py, &error))?;
                // On the runtime, so that an impatient caller (Ctrl-C) leaves the stop itself going.
                let stopping = handle.spawn(async move { worker.stop(timeout).await });
                wait(py, async {
                    stopping.await.map_err(|error| {
                        Error::new(ErrorKind::WrongState, "the stop itself failed; this is a bug")
                            .with_source(error)
                    })
                })?
            }
        };
        info::stop_report(py, &report)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let inner = self.inner(py)?;
        info::stats(py, &inner.wait(py, inner.backend.stats())?)
    }

    /// Counters of the worker since it started.
    fn counted(&self, py: Python<'_>) -> PyResult<HashMap<&'static str, u64>> {
        let inner = self.inner(py)?;
        Ok(inner.registry.worker().map(|worker| worker.counted().iter().collect()).unwrap_or_default())
    }

    fn get_job<'py>(&self, py: Python<'py>, id: &str) -> PyResult<Bound<'py, PyAny>> {
        let inner = self.inner(py)?;
        info::job_info(py, &inner.wait(py, inner.backend.get(parse_id(py, id)?))?)
    }

    #[pyo3(signature = (state, r#type, older_than, limit, after))]
    fn list_jobs<'py>(
        &self,
        py: Python<'py>,
        state: Option<&str>,
        r#type: Option<String>,
        older_than: Option<&Bound<'py, PyAny>>,
        limit: &Bound<'py, PyAny>,
        after: Option<&str>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let inner = self.inner(py)?;
        let filter = Filter {
            state: state.map(str::parse).transpose().map_err(|error| to_py(py, &error))?,
            job_type: r#type,
            older_than: older_than.map(info::age).transpose()?,
            after: after.map(|id| parse_id(py, id)).transpose()?,
            limit: positive(limit, "limit")?.get() as usize,
        };
        let jobs = inner.wait(py, inner.backend.list(&filter))?;
        jobs.iter().map(|job| info::job_info(py, job)).collect()
    }

    fn unresponsive_jobs<'py>(
        &self,
        py: Python<'py>,
        older_than: &Bound<'py, PyAny>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let inner = self.inner(py)?;
        let jobs = inner.wait(py, inner.backend.unresponsive(info::age(older_than)?))?;
        jobs.iter().map(|job| info::job_info(py, job)).collect()
    }

    fn finish_job(&self, py: Python<'_>, id: &str) -> PyResult<()> {
        let inner = self.inner(py)?;
        inner.wait(py, inner.backend.finish(parse_id(py, id)?))
    }

    fn requeue_job(&self, py: Python<'_>, id: &str) -> PyResult<()> {
        let inner = self.inner(py)?;
        inner.wait(py, inner.backend.requeue(parse_id(py, id)?))
    }

    fn cancel_job(&self, py: Python<'_>, id: &str) -> PyResult<()> {
        let inner = self.inner(py)?;
        inner.wait(py, inner.backend.cancel(parse_id(py, id)?))
    }

    fn delete_finished(
        &self,
        py: Python<'_>,
        older_than: &Bound<'_, PyAny>,
        batch: &Bound<'_, PyAny>,
    ) -> PyResult<u64> {
        let inner = self.inner(py)?;
        let batch = positive(batch, "batch")?.get() as usize;
        inner.wait(py, inner.backend.delete_finished(info::age(older_than)?, batch))
    }

    fn vacuum(&self, py: Python<'_>) -> PyResult<()> {
        let inner = self.inner(py)?;
        inner.wait(py, inner.backend.vacuum())
    }

    fn migrate<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let inner = self.inner(py)?;
        info::migration(py, inner.wait(py, inner.backend.migrate())?)
    }

    #[pyo3(signature = (has_dlq, dlq, max_receives))]
    fn create_queue<'py>(
        &self,
        py: Python<'py>,
        has_dlq: bool,
        dlq: Option<String>,
        max_receives: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let inner = self.inner(py)?;
        let dead_letters = match dlq {
            _ if !has_dlq => DeadLetters::None,
            Some(name) => DeadLetters::Named(name),
            None => DeadLetters::Usual,
        };
        let wanted = NewQueue { dead_letters, max_receives: positive(max_receives, "max_receives")? };
        info::migration(py, inner.wait(py, inner.backend.create_queue(&wanted))?)
    }

    /// What `migrate` does, as SQL.
    fn migration_script(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.inner(py)?.backend.migration_script())
    }

    fn check<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let inner = self.inner(py)?;
        let findings = inner.wait(py, inner.backend.check())?;
        findings.iter().map(|finding| info::finding(py, finding)).collect()
    }

    fn audit<'py>(&self, py: Python<'py>, repair: bool) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let inner = self.inner(py)?;
        let findings = inner.wait(py, inner.backend.audit(repair))?;
        findings.iter().map(|finding| info::finding(py, finding)).collect()
    }

    /// Handlers often refer to their client; without this, the two would keep each other for ever.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(inner) = self.inner.as_ref().filter(|inner| inner.process.is_current()) else {
            return Ok(());
        };
        inner.registry.traverse(&visit)
    }

    fn __clear__(&self) {
        let Some(inner) = self.inner.as_ref().filter(|inner| inner.process.is_current()) else { return };
        drop(inner.registry.clear());
    }
}

impl Client {
    fn open(url: &str, options: HashMap<String, String>, backoff: Option<BackoffParts>) -> Result<Self> {
        let mut options = Options::new(options);
        let backend = connect(url, &mut options)?;
        let mut config = WorkerConfig::from_options(&mut options)?;
        let guarantees = backend.guarantees();
        let is_inline =
            options.take("inline", "true or false", |text| text.parse::<bool>().ok())?.unwrap_or(false);
        options.finish()?;
        if is_inline && !guarantees.in_process {
            return Err(Error::config(format!(
                "inline=true works on memory:// only, and this is {}; it runs handlers inside enqueue(), for tests",
                guarantees.store
            )));
        }
        if let Some(parts) = backoff {
            config.backoff = backoff_from(parts);
        }
        Ok(Self {
            inner: Some(Inner {
                metrics: Arc::new(metrics::Process::new(&backend)),
                backend,
                guarantees,
                config,
                is_inline,
                process: Process::current(),
                registry: Registry::default(),
                is_stopped: AtomicBool::new(false),
            }),
        })
    }

    /// For what works on a stopped client too.
    fn inner(&self, py: Python<'_>) -> PyResult<&Inner> {
        let inner = self.inner.as_ref().ok_or_else(|| to_py(py, &stopped()))?;
        inner.process.check().map_err(|error| to_py(py, &error))?;
        Ok(inner)
    }

    /// For what needs a client that has not been stopped.
    fn open_inner(&self, py: Python<'_>) -> PyResult<&Inner> {
        let inner = self.inner(py)?;
        if inner.is_stopped.load(Ordering::Relaxed) {
            return Err(to_py(py, &stopped()));
        }
        Ok(inner)
    }
}

impl Inner {
    /// Runs an operation of the store to its end.
    pub(super) fn wait<T: Send>(
        &self,
        py: Python<'_>,
        operation: impl Future<Output = Result<T>> + Send,
    ) -> PyResult<T> {
        if self.guarantees.in_process { wait(py, operation) } else { wait_for_server(py, operation) }
    }

    fn store<'py>(&self, py: Python<'py>, jobs: &[NewJob]) -> PyResult<Bound<'py, PyList>> {
        check_sizes(&self.guarantees, jobs).map_err(|error| to_py(py, &error))?;
        let ids = self.wait(py, self.backend.enqueue(jobs)).map_err(|error| with_ids(py, error, jobs))?;
        tell(&self.metrics, jobs, &ids);
        PyList::new(py, ids.into_iter().map(|id| id_text(py, id)))
    }

    fn start(&self, workers: Option<NonZeroU32>, max_jobs: Option<u64>) -> Result<Started> {
        if self.is_inline {
            return Err(Error::config(
                "an inline client runs its jobs inside enqueue(), so there is nothing for dequeue_loop() to do; \
                 leave out inline=true to have real workers",
            ));
        }
        let mut registered = self.registry.lock();
        // Under the lock: a stop from another thread either is seen here, or sees the worker.
        if self.is_stopped.load(Ordering::SeqCst) {
            return Err(stopped());
        }
        if registered.started.is_some() {
            return Err(Error::new(
                ErrorKind::WrongState,
                "dequeue_loop() has been started already; one call runs all handlers of the client",
            ));
        }
        let mut config = self.config.clone();
        if let Some(workers) = workers {
            config.set_workers(workers.get() as usize)?;
        }
        config.max_jobs = max_jobs;
        let worker =
            Worker::start(&handle()?, Arc::clone(&self.backend), registered.handlers.clone(), config)?;
        // The table moves on to the executors; the slot keeps the handlers' types for messages.
        let table = Arc::new(std::mem::take(&mut registered.callables));
        let started = Started { worker: Arc::new(worker), table };
        registered.started = Some(started.clone());
        Ok(started)
    }
}

fn stopped() -> Error {
    Error::new(
        ErrorKind::Stopped,
        "this client was stopped and takes no jobs and no handlers any more; make a new client to go on",
    )
}

/// Seconds that the facade has checked.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn backoff_from((initial, factor, maximum, jitter): BackoffParts) -> Backoff {
    Backoff { initial: duration(initial), factor, maximum: duration(maximum), jitter }
}

fn parse_id(py: Python<'_>, id: &str) -> PyResult<JobId> {
    id.parse().map_err(|error| to_py(py, &error))
}
