//! New jobs on their way into a store with a server.
//!
//! Calls that come while one is under way go together with the next one: nothing lingers, and the way to the server is
//! shared by all who wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::sent::Sent;
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobId, NewJob};

/// How long a call that meets a server in trouble goes on trying.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// What a caller is told: the ids under which its jobs are stored, or why they may not be what it asked for.
pub type Answer = Result<Vec<JobId>>;

/// How a store takes new jobs in.
pub trait Insert: Send + Sync + 'static {
    /// Most jobs that are merged into one call.
    const MOST_MERGED: usize;

    /// Must these jobs of one call not be merged with those of others?
    fn goes_alone(_jobs: &[NewJob], _is_new: bool) -> bool {
        false
    }

    /// Stores what is not stored yet, all or nothing. An error says that this try has failed, and is tried again if it may
    /// pass; an answer is the caller's.
    fn insert(&self, batch: &Batch<'_>) -> impl Future<Output = Result<Answer>> + Send;

    /// Is it no use to try again?
    fn is_hopeless(error: &Error) -> bool {
        !error.is_transient()
    }
}

/// Jobs that are stored together.
#[derive(Debug)]
pub struct Batch<'a> {
    pub jobs: &'a [&'a NewJob],
    /// Is it certain that none of these ids is stored?
    pub is_new: bool,
    /// Are they of more than one call?
    pub is_merged: bool,
    /// When the patience of the first one who waits is over.
    pub deadline: Instant,
}

/// Takes calls in and gives them to the store, on a task of its own.
#[derive(Debug)]
pub struct Enqueuer<S> {
    store: S,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Call>,
    /// Does a task see to those who wait?
    is_served: bool,
    sent: Sent,
}

#[derive(Debug)]
struct Call {
    jobs: Vec<NewJob>,
    is_new: bool,
    /// May an earlier try have stored it?
    was_unknown: bool,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

impl<S: Insert> Enqueuer<S> {
    pub fn new(store: S) -> Arc<Self> {
        Arc::new(Self { store, queue: Mutex::default() })
    }

    pub async fn enqueue(self: &Arc<Self>, jobs: &[NewJob]) -> Answer {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let cut_short =
            || Error::new(ErrorKind::OutcomeUnknown, "enqueueing was cut short by the end of the process");
        self.push(jobs).await.map_err(|_| cut_short())?
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(self: &Arc<Self>, jobs: &[NewJob]) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        let is_served = {
            let mut queue = self.lock();
            let is_new = queue.sent.note(jobs);
            let deadline = Instant::now() + PATIENCE;
            queue.waiting.push_back(Call {
                jobs: jobs.to_vec(),
                is_new,
                was_unknown: false,
                deadline,
                answer,
            });
            std::mem::replace(&mut queue.is_served, true)
        };
        if !is_served {
            // A task of its own: a caller who is interrupted must not take the others' jobs along.
            tokio::spawn(Arc::clone(self).serve());
        }
        answered
    }

    async fn serve(self: Arc<Self>) {
        while let Some(calls) = self.next_batch() {
            self.take_in(calls).await;
        }
    }

    /// Those who wait now and can go together.
    fn next_batch(&self) -> Option<Vec<Call>> {
        let mut queue = self.lock();
        let Some(first) = queue.waiting.pop_front() else {
            queue.is_served = false;
            return None;
        };
        let mut jobs = first.jobs.len();
        let mut calls = vec![first];
        let goes_alone = |call: &Call| S::goes_alone(&call.jobs, call.is_new);
        if goes_alone(&calls[0]) {
            return Some(calls);
        }
        let fits = |next: &Call, jobs: usize| jobs + next.jobs.len() <= S::MOST_MERGED && !goes_alone(next);
        while queue.waiting.front().is_some_and(|next| fits(next, jobs)) {
            calls.extend(queue.waiting.pop_front().inspect(|next| jobs += next.jobs.len()));
        }
        Some(calls)
    }

    async fn take_in(&self, mut calls: Vec<Call>) {
        let mut together = None;
        if calls.len() > 1 {
            match self.insert_merged(&calls).await {
                Ok(Ok(ids)) => {
                    let mut ids = ids.into_iter();
                    for call in calls {
                        let own = ids.by_ref().take(call.jobs.len()).collect();
                        // Who does not wait any more has no use for it.
                        let _ = call.answer.send(Ok(own));
                    }
                    return;
                }
                Ok(Err(error)) => {
                    for call in calls {
                        let _ = call.answer.send(Err(same(&error)));
                    }
                    return;
                }
                // The error of one must not be everybody's.
                Err(error) => {
                    for call in &mut calls {
                        call.failed(&error);
                    }
                    together = Some(error);
                }
            }
        }
        for mut call in calls {
            let result = match &together {
                // Whose patience is over does not wait for the tries of others.
                Some(error) if error.is_transient() && call.is_over() => Err(call.error(same(error))),
                _ => self.insert_alone(&mut call).await,
            };
            let _ = call.answer.send(result);
        }
    }

    async fn insert_merged(&self, calls: &[Call]) -> Result<Answer> {
        let jobs: Vec<&NewJob> = calls.iter().flat_map(|call| &call.jobs).collect();
        let is_new = calls.iter().all(|call| call.is_new);
        let batch = Batch { jobs: &jobs, is_new, is_merged: true, deadline: calls[0].deadline };
        self.store.insert(&batch).await
    }

    /// Tries until the server has answered or its patience is over. A try after one that had no answer finds what that
    /// one has stored.
    async fn insert_alone(&self, call: &mut Call) -> Answer {
        let jobs = std::mem::take(&mut call.jobs);
        let jobs: Vec<&NewJob> = jobs.iter().collect();
        loop {
            let batch = Batch { jobs: &jobs, is_new: call.is_new, is_merged: false, deadline: call.deadline };
            let error = match self.store.insert(&batch).await {
                Ok(answer) => return answer,
                Err(error) => error,
            };
            call.failed(&error);
            if S::is_hopeless(&error) || call.is_over() {
                return Err(call.error(error));
            }
            sleep(PAUSE).await;
        }
    }
}

impl Call {
    fn failed(&mut self, error: &Error) {
        if *error.kind() == ErrorKind::OutcomeUnknown {
            self.was_unknown = true;
            self.is_new = false;
        }
    }

    fn is_over(&self) -> bool {
        Instant::now() + PAUSE >= self.deadline
    }

    /// What the caller is told in the end.
    fn error(&self, last: Error) -> Error {
        if !self.was_unknown {
            return last;
        }
        Error::new(
            ErrorKind::OutcomeUnknown,
            format!(
                "enqueueing got no answer within {} s, and the jobs may or may not be stored ({}); look for the ids with \
                 get_job() before you enqueue them again",
                PATIENCE.as_secs(),
                last.text()
            ),
        )
    }
}

fn same(error: &Error) -> Error {
    Error::new(error.kind().clone(), error.text())
}
