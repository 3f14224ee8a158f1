//! How jobs are run. Knows only the [`Backend`] trait, and nothing of Python.
//!
//! ```text
//! fetcher ─claim→ ready queue ─next→ executor ─ended→ outbox ─settle→ settler ─hand-off→ ready queue
//! keeper: extends every lease in hand, queued and running      rescuer: jobs of lost workers
//! ```
//!
//! Executors are whoever calls [`Worker::next`] or [`Worker::try_next`] and then [`Worker::ended`]: Python
//! threads and an event loop in `py`, plain closures in tests. All else runs on the runtime.

mod config;
mod counters;
mod fetcher;
mod handlers;
mod histogram;
mod inline;
mod keeper;
mod lane;
mod orphans;
mod outbox;
mod pace;
pub mod ready;
mod rescuer;
mod retry;
mod settler;
mod stop;
mod supervise;
mod tally;
mod task;

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use config::{BEATS_PER_LEASE, WorkerConfig};
pub use counters::{Counted, Counters};
pub use handlers::{Flavour, HandlerSpec, Handlers};
pub use histogram::{BATCHES, Batches, DURATIONS, Durations, Histogram};
pub use inline::Inline;
pub use lane::Waker;
pub use retry::{Attempt, Backoff};
pub use stop::StopReport;
pub use tally::Ends;
pub use task::{Cancel, Task};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::counters::count;
use self::keeper::Pulse;
use self::lane::Lane;
use self::orphans::Orphans;
use self::outbox::{Ended, Outbox};
use self::supervise::supervise;
use self::tally::Tally;
use self::task::{Clock, InHand};
use crate::backend::{Backend, Leased, WorkerId};
use crate::error::{Error, Result};
use crate::job::JobType;
use crate::log::{self, Verbosity};

/// What all parts of one worker share.
pub(crate) struct Shared {
    id: WorkerId,
    backend: Arc<dyn Backend>,
    config: WorkerConfig,
    handlers: Handlers,
    lanes: Vec<Lane>,
    /// Types of all lanes, for hand-offs.
    types: Vec<JobType>,
    in_hand: InHand,
    orphans: Orphans,
    outbox: Outbox,
    counters: Counters,
    tally: Tally,
    /// Handler calls that are left, if `max_jobs` sets a limit.
    calls_left: Option<AtomicU64>,
    clock: Clock,
    pulse: Pulse,
    /// Fired whenever tasks leave the worker; stop waits for the last one.
    emptied: Notify,
    /// No more claims.
    stopping: CancellationToken,
    /// No more anything: beats and settles end.
    ended: CancellationToken,
}

/// A running worker.
pub struct Worker {
    shared: Arc<Shared>,
    fetchers: Mutex<Vec<JoinHandle<()>>>,
    others: Mutex<Vec<JoinHandle<()>>>,
    report: tokio::sync::OnceCell<StopReport>,
    /// The earliest deadline that any caller of `stop` has set.
    deadline: watch::Sender<Option<Instant>>,
}

impl Worker {
    /// Starts taking jobs. Executors for each flavour in `handlers` are the caller's to run.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) when there are no handlers.
    pub fn start(
        runtime: &Handle,
        backend: Arc<dyn Backend>,
        handlers: Handlers,
        config: WorkerConfig,
    ) -> Result<Self> {
        let lanes: Vec<Lane> = [(Flavour::Sync, config.workers), (Flavour::Async, config.async_workers)]
            .into_iter()
            .map(|(flavour, slots)| Lane::new(flavour, handlers.types(flavour), slots))
            .filter(|lane| !lane.types.is_empty())
            .collect();
        if lanes.is_empty() {
            return Err(Error::config(
                "no handlers are registered, so there is nothing that dequeue_loop() could run; register at least \
                 one with @client.handler(\"type\") or client.register_handler(\"type\", function) first",
            ));
        }
        let shared = Arc::new(Shared {
            id: WorkerId(crate::job::JobId::generate()),
            types: lanes.iter().flat_map(|lane| lane.types.clone()).collect(),
            calls_left: config.max_jobs.map(AtomicU64::new),
            config,
            tally: Tally::new(handlers.all().len()),
            handlers,
            lanes,
            in_hand: InHand::default(),
            orphans: Orphans::default(),
            outbox: Outbox::new(backend.guarantees().entries_per_call),
            backend,
            counters: Counters::default(),
            clock: Clock::start(),
            pulse: Pulse::default(),
            emptied: Notify::new(),
            stopping: CancellationToken::new(),
            ended: CancellationToken::new(),
        });
        let fetchers = (0..shared.lanes.len())
            .map(|lane| supervise(runtime, &shared, "fetcher", move |shared| fetcher::run(shared, lane)))
            .collect();
        let others = vec![
            supervise(runtime, &shared, "settler", settler::run),
            supervise(runtime, &shared, "keeper", keeper::run),
            supervise(runtime, &shared, "rescuer", rescuer::run),
            supervise(runtime, &shared, "part that gives jobs back", orphans::run),
        ];
        Ok(Self {
            shared,
            fetchers: Mutex::new(fetchers),
            others: Mutex::new(others),
            report: tokio::sync::OnceCell::new(),
            deadline: watch::Sender::new(None),
        })
    }

    /// Index of the lane of this flavour, for [`next`](Self::next); `None` when no handler has it.
    pub fn lane(&self, flavour: Flavour) -> Option<usize> {
        self.shared.lanes.iter().position(|lane| lane.flavour == flavour)
    }

    /// Handlers that a lane runs at once.
    pub fn slots(&self, lane: usize) -> usize {
        self.shared.lanes[lane].slots
    }

    /// The next task of a lane, marked as started; waits for one. `None` when the worker has stopped.
    pub fn next(&self, lane: usize) -> Option<Arc<Task>> {
        loop {
            if let Some(task) = self.begin(self.wait(lane)?) {
                return Some(task);
            }
        }
    }

    /// The next task of a lane, which is not started; waits for one. `None` when the worker has stopped. For who has something
    /// else to wait for before it can [`begin`](Self::begin).
    pub fn wait(&self, lane: usize) -> Option<Arc<Task>> {
        self.shared.outbox.flush();
        self.shared.lanes[lane].ready.pop()
    }

    /// The next task of a lane, marked as started, if there is one. Never waits.
    pub fn try_next(&self, lane: usize) -> Option<Arc<Task>> {
        loop {
            if let Some(task) = self.begin(self.shared.lanes[lane].ready.try_pop()?) {
                return Some(task);
            }
        }
    }

    /// Has the lane run dry for good, because the worker has stopped?
    pub fn is_over(&self, lane: usize) -> bool {
        self.shared.lanes[lane].ready.is_over()
    }

    /// Reports how a task from `next` or `try_next` ended. Never waits.
    pub fn ended(&self, task: Arc<Task>, attempt: Attempt) {
        task.end();
        let run = task.run(self.shared.clock.now());
        self.shared.outbox.push(Ended { task, attempt, run });
    }

    /// An executor that does not wait in `next` has nothing left to do for now.
    pub fn idle(&self) {
        self.shared.outbox.flush();
    }

    /// Who to wake, besides threads in `next`, when a lane gets tasks, when one of its running tasks is
    /// cancelled, and when the worker has stopped.
    pub fn set_waker(&self, lane: usize, waker: Waker) {
        self.shared.lanes[lane].set_waker(waker);
    }

    /// What the worker has done so far.
    pub fn counted(&self) -> Counted {
        self.shared.counters.read(&self.shared.tally)
    }

    /// What it has done by type, and how it is now.
    pub fn observe(&self) -> Observed {
        let shared = &self.shared;
        let (ends, batches) = shared.tally.read();
        let types = shared.handlers.all().iter().zip(ends);
        let running = shared.in_hand.running(shared.lanes.len());
        let lanes = shared.lanes.iter().zip(running).map(|(lane, running)| ObservedLane {
            flavour: lane.flavour,
            slots: lane.slots,
            in_use: running + lane.stuck.load(Ordering::Relaxed),
        });
        Observed {
            types: types.map(|(spec, (started, ends))| (spec.job_type.clone(), started, ends)).collect(),
            batches,
            lanes: lanes.collect(),
            stuck: shared.stuck(),
            beat_lateness: shared.pulse.lateness(shared.clock.now(), &shared.config),
        }
    }

    /// Returns when the worker takes no more jobs: it is being stopped, has made its last call, or has given up.
    pub async fn stopping(&self) {
        self.shared.stopping.cancelled().await;
    }

    /// Has it made as many handler calls as `max_jobs` allows?
    pub fn is_spent(&self) -> bool {
        self.shared.calls_left.as_ref().is_some_and(|left| left.load(Ordering::Relaxed) == 0)
    }

    /// Has `stop` begun, or has the worker given up?
    pub fn is_stopping(&self) -> bool {
        self.shared.stopping.is_cancelled()
    }

    /// Jobs in hand, queued and running.
    pub fn in_hand(&self) -> usize {
        self.shared.in_hand.len()
    }

    /// Asks for a stop without waiting for it: no more claims.
    pub fn request_stop(&self) {
        self.shared.stopping.cancel();
    }

    /// Moves the deadline of a stop, begun or to come, to `timeout` from now, if that is nearer.
    pub fn hurry(&self, timeout: Duration) {
        // A time that the clock cannot name never comes.
        if let Some(end) = Instant::now().checked_add(timeout) {
            self.deadline
                .send_modify(|deadline| *deadline = Some(deadline.map_or(end, |other| other.min(end))));
        }
    }

    /// How often a running task of this lane has been told to return.
    pub fn cancels(&self, lane: usize) -> u64 {
        self.shared.lanes[lane].cancels.load(Ordering::Relaxed)
    }

    /// Stops in phases (see `stop.rs`) and waits for the end of them: for ever, or for `timeout` and then a
    /// short time for cancelled handlers to return. Later callers wait for the same stop and may shorten it.
    pub async fn stop(&self, timeout: Option<Duration>) -> StopReport {
        if let Some(timeout) = timeout {
            self.hurry(timeout);
        }
        *self
            .report
            .get_or_init(async || {
                let take = |tasks: &Mutex<Vec<_>>| {
                    std::mem::take(&mut *tasks.lock().unwrap_or_else(PoisonError::into_inner))
                };
                stop::run(&self.shared, take(&self.fetchers), take(&self.others), self.deadline.subscribe())
                    .await
            })
            .await
    }

    /// Marks a task from [`wait`](Self::wait) as started, just before it is. `None` when it must not start any more: it needs
    /// nothing further then.
    pub fn begin(&self, task: Arc<Task>) -> Option<Arc<Task>> {
        let now = self.shared.clock.now();
        // After a pause of the whole process the lease may be another worker's: never start what may be theirs.
        if task.lease_until() <= now || task.cancelled() != Cancel::No || !self.shared.may_call() {
            self.shared.outbox.push(Ended { task, attempt: Attempt::Finished, run: None });
            return None;
        }
        task.start(now);
        self.shared.tally.start(&task);
        Some(task)
    }
}

/// What a worker shows of itself.
#[derive(Debug)]
pub struct Observed {
    /// Each type with a handler, how often it was called, and how its attempts ended.
    pub types: Vec<(JobType, u64, Ends)>,
    /// Attempts that were stored together.
    pub batches: Batches,
    /// The flavours that have handlers.
    pub lanes: Vec<ObservedLane>,
    /// Handlers whose job is over although they have not returned.
    pub stuck: usize,
    /// For how long the next beat has been overdue.
    pub beat_lateness: Duration,
}

/// How busy the handlers of one flavour are.
#[derive(Debug)]
pub struct ObservedLane {
    /// Which.
    pub flavour: Flavour,
    /// Handlers that may run at once.
    pub slots: usize,
    /// Handlers that run, stuck ones among them.
    pub in_use: usize,
}

impl Shared {
    /// Counts a handler call towards `max_jobs`. With the last one the claims end; what is in hand beyond it is given back.
    #[inline]
    fn may_call(&self) -> bool {
        let Some(left) = &self.calls_left else { return true };
        let one_less = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if one_less == Ok(1) {
            self.stopping.cancel();
        }
        one_less.is_ok()
    }

    /// Handlers whose job is over although they have not returned.
    fn stuck(&self) -> usize {
        self.lanes.iter().map(|lane| lane.stuck.load(Ordering::Relaxed)).sum()
    }

    /// Takes leased jobs in hand. Returns those that no handler here takes. What comes after a stop has begun is
    /// not started any more, but given back.
    fn accept(&self, leased: Vec<Leased>) -> Vec<Leased> {
        let is_stopping = self.stopping.is_cancelled();
        let epoch = self.clock.epoch();
        let mut unknown = Vec::new();
        let mut tasks: Vec<Vec<Arc<Task>>> = self.lanes.iter().map(|_| Vec::new()).collect();
        let mut last: Option<(JobType, u32, usize)> = None;
        for job in leased {
            let is_last = last.as_ref().is_some_and(|(job_type, ..)| job_type.same(&job.job.job_type));
            if !is_last {
                last = self.handlers.find(&job.job.job_type).map(|handler| {
                    let flavour = self.handlers.get(handler).flavour;
                    let lane = self.lanes.iter().position(|lane| lane.flavour == flavour);
                    (job.job.job_type.clone(), handler, lane.unwrap_or_default())
                });
            }
            match &last {
                None => unknown.push(job),
                Some((_, handler, lane)) => {
                    log::write(Verbosity::Jobs, Some(&job.job), || format!("dequeue {}", job.job.job_type));
                    let lease_until = self.clock.at(job.since + self.config.lease());
                    let task = Task::new(job, *handler, *lane, lease_until, epoch);
                    if is_stopping {
                        task.cancel(Cancel::Stopping);
                    }
                    tasks[*lane].push(Arc::new(task));
                }
            }
        }
        for (lane, tasks) in self.lanes.iter().zip(tasks) {
            if !tasks.is_empty() {
                count(&self.counters.claimed, tasks.len());
                self.in_hand.insert(&tasks);
                lane.accept(tasks);
            }
        }
        unknown
    }

    /// Types of the jobs that may be handed on here when `leaving` tasks of each lane make place: those of lanes
    /// that do not hold too much already, so that nothing is hidden from other workers.
    fn takes(&self, leaving: &[usize]) -> Cow<'_, [JobType]> {
        let has_room = |(lane, leaving): &(&Lane, &usize)| lane.has_room(**leaving);
        let open: Vec<&Lane> =
            self.lanes.iter().zip(leaving).filter(has_room).map(|(lane, _)| lane).collect();
        if self.stopping.is_cancelled() {
            Cow::Borrowed(&[])
        } else if open.len() == self.lanes.len() {
            Cow::Borrowed(&self.types)
        } else {
            Cow::Owned(open.into_iter().flat_map(|lane| lane.types.clone()).collect())
        }
    }

    /// Lets tasks go: they need no beats and no places any more.
    fn let_go<'a>(&self, tasks: impl Iterator<Item = &'a Arc<Task>> + Clone) {
        self.in_hand.remove(tasks.clone());
        let mut places = vec![0; self.lanes.len()];
        for task in tasks {
            places[task.lane] += 1;
        }
        for (lane, places) in self.lanes.iter().zip(places) {
            if places > 0 {
                lane.release(places);
            }
        }
        self.emptied.notify_waiters();
    }

    /// Counts and reports an error of the store that will be tried again.
    fn store_error(&self, doing: &str, error: &Error, again_in: Duration) {
        count(&self.counters.store_errors, 1);
        log::write(Verbosity::Errors, None, || {
            format!("{doing} failed, next try in {again_in:.1?}: {error}")
        });
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

/// Waits between tries of a store that fails: 0.1 s, doubled up to 5 s, varied by half so that workers do not
/// come back together.
#[derive(Debug, Default)]
struct StoreBackoff {
    failures: u32,
}

impl StoreBackoff {
    fn next(&mut self) -> Duration {
        let steady = Duration::from_millis(100 << self.failures.min(6)).min(Duration::from_secs(5));
        self.failures += 1;
        steady.mul_f64(0.75 + 0.5 * fastrand::f64())
    }

    fn reset(&mut self) {
        self.failures = 0;
    }
}
