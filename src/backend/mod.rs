//! Where jobs are kept: the contract that every store fulfils, and the words it is written in.
//!
//! [`Backend`] says what each operation does to a job as *state before → state after*, once for all stores;
//! `tests/conformance/` is the proof. The worker asks a backend for its [`Guarantees`], never for its name.

mod connect;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqs"))]
mod remote;
#[cfg(feature = "sqs")]
pub mod sqs;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
pub use connect::{Options, connect};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::job::{Failure, Job, JobId, JobInfo, JobType, NewJob, State};

/// Proof that a lease is the current one; a write with an older token changes nothing. Opaque outside the
/// backend that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// The right to run one job until the lease runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The job.
    pub id: JobId,
    /// What every write about it must show.
    pub token: Token,
}

/// A job handed to a worker, with the lease that proves it.
#[derive(Debug, Clone)]
pub struct Leased {
    /// What to run; `attempt` counts this run already.
    pub job: Job,
    /// Shown in `extend`, `settle` and `give_back`.
    pub token: Token,
    /// When the store was asked: the lease lasts from then at least, and an answer that was held up makes it no longer.
    pub since: Instant,
}

/// Names one start of one worker; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkerId(pub JobId);

/// What a worker asks for.
#[derive(Debug)]
pub struct Claim<'a> {
    /// Who asks.
    pub worker: WorkerId,
    /// The types it has handlers for.
    pub types: &'a [JobType],
    /// Most jobs to hand out, at least 1: the free slots, so that nothing is taken that cannot start.
    pub limit: usize,
    /// How long each lease lasts without a beat.
    pub lease: Duration,
    /// How long to wait for a first job when there is none.
    pub wait: Duration,
    /// Ends the waiting early. Jobs already taken are returned all the same.
    pub stop: &'a CancellationToken,
}

/// How one attempt ended. The worker decides, the backend carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The handler returned.
    Finished,
    /// The handler failed and has attempts left.
    Retry {
        /// How long until it is ready again.
        after: Duration,
        /// Why.
        failure: Failure,
    },
    /// The handler failed for good.
    Failed(Failure),
    /// `max_beats` or an operator ended it.
    Cancelled(Failure),
    /// A stop cut it short: no fault of the handler's, so the attempt does not count.
    Interrupted,
}

/// The end of one attempt, to be stored.
#[derive(Debug, Clone)]
pub struct Settled {
    /// The lease under which it ran.
    pub lease: Lease,
    /// How it ended.
    pub outcome: Outcome,
}

/// Who may be given, in the same round trip, the jobs that a settle makes ready.
#[derive(Debug, Clone, Copy)]
pub struct HandOff<'a> {
    /// Who settles.
    pub worker: WorkerId,
    /// The types it takes; empty while it stops.
    pub types: &'a [JobType],
    /// How long the new leases last.
    pub lease: Duration,
}

/// What a settle did.
#[derive(Debug, Default)]
pub struct SettleReply {
    /// Places in the batch whose lease was no longer ours; nothing was written for them.
    pub lost: Vec<usize>,
    /// Jobs that became ready by this call and are now leased to the caller.
    pub next: Vec<Leased>,
}

/// Why a lease must be let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revocation {
    /// Another worker has the job, or it is final: whatever this worker reports is refused.
    Lost,
    /// An operator asked to cancel the job; the lease goes on until the handler returns.
    Cancel,
}

/// What a rescue did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rescued {
    /// Given to other workers.
    pub requeued: u64,
    /// Failed as "worker lost", because they had been rescued too often.
    pub failed: u64,
}

/// What a store promises. Code asks here, and `docs/guarantees.md` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is one column of the table in docs/guarantees.md
pub struct Guarantees {
    /// A word for messages: "memory".
    pub store: &'static str,
    /// Jobs outlive this process.
    pub durable: bool,
    /// `claim` never returns a type that was not asked for.
    pub filters_types: bool,
    /// Every operation answers without waiting for a network.
    pub in_process: bool,
    /// `get` and `list` work, and with them what operators do by id.
    pub inspects: bool,
    /// Jobs can be stored in the caller's own transaction.
    pub transactions: bool,
    /// A call is stored whole or not at all, however many jobs it has; otherwise
    /// [`ErrorKind::ChainBroken`] says which are stored.
    pub stores_whole_calls: bool,
    /// Unique keys are kept; a store that cannot refuses such jobs.
    pub keeps_keys: bool,
    /// `attempt` counts runs alone; otherwise it grows with a give-back and a rescue too.
    pub counts_attempts: bool,
    /// `rescue` says what was rescued, and knows `max_rescues`; otherwise the store does it by itself and silently, and a
    /// lease that has run out is lost at once.
    pub tells_rescues: bool,
    /// Counts are exact and kept apart by state and type.
    pub counts_exactly: bool,
    /// A settle hands over the next job of a chain wherever it is; otherwise only what was claimed along with the one
    /// before.
    pub hands_over_always: bool,
    /// Ends that one call stores, where calls are what is paid for.
    pub entries_per_call: Option<usize>,
    /// Longest time one attempt may take, however many beats it gets.
    pub max_lease: Option<Duration>,
    /// Longest delay, and longest wait for a retry.
    pub max_delay: Option<Duration>,
    /// Most bytes of one body.
    pub max_body: usize,
}

/// Counts of one type, or of all. `None` where the store cannot tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting for the job before it.
    pub blocked: Option<u64>,
    /// Waiting for their time.
    pub scheduled: Option<u64>,
    /// Waiting for a worker.
    pub ready: Option<u64>,
    /// Held by a worker.
    pub running: Option<u64>,
    /// Ended well, since the store was made.
    pub finished: Option<u64>,
    /// Ended as failed and not run again since.
    pub failed: Option<u64>,
    /// Ended as cancelled and not run again since.
    pub cancelled: Option<u64>,
    /// Age, since its enqueue, of the oldest job that waits for a worker.
    pub oldest_ready: Option<Duration>,
}

impl Counts {
    /// How many jobs are in each state.
    pub const fn by_state(&self) -> [(State, Option<u64>); State::ALL.len()] {
        [
            (State::Blocked, self.blocked),
            (State::Scheduled, self.scheduled),
            (State::Ready, self.ready),
            (State::Running, self.running),
            (State::Finished, self.finished),
            (State::Failed, self.failed),
            (State::Cancelled, self.cancelled),
        ]
    }

    /// Those of all types together, from those of each.
    pub fn sum<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let zero = Some(0);
        let none = Self {
            blocked: zero,
            scheduled: zero,
            ready: zero,
            running: zero,
            finished: zero,
            failed: zero,
            cancelled: zero,
            oldest_ready: None,
        };
        let add = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| a + b);
        all.fold(none, |total, counts| Self {
            blocked: add(total.blocked, counts.blocked),
            scheduled: add(total.scheduled, counts.scheduled),
            ready: add(total.ready, counts.ready),
            running: add(total.running, counts.running),
            finished: add(total.finished, counts.finished),
            failed: add(total.failed, counts.failed),
            cancelled: add(total.cancelled, counts.cancelled),
            oldest_ready: total.oldest_ready.max(counts.oldest_ready),
        })
    }
}

/// What is in the store.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// All types together.
    pub total: Counts,
    /// Each type that the store has seen.
    pub by_type: BTreeMap<String, Counts>,
    /// Workers that are alive.
    pub workers: Option<u64>,
    /// Sums since the store was made, where it keeps them.
    pub totals: Option<Totals>,
    /// What this client has asked of a store that is paid by the call.
    pub bill: Option<Bill>,
}

/// Calls to a store that is paid by the call, since this client was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bill {
    /// How many of each kind.
    pub calls: BTreeMap<&'static str, u64>,
    /// Jobs that this client has enqueued.
    pub enqueued: u64,
    /// Jobs that have ended here.
    pub ended: u64,
}

impl Bill {
    /// All calls together.
    pub fn total(&self) -> u64 {
        self.calls.values().sum()
    }

    /// Calls for each job that was enqueued or has ended here, whichever are more.
    pub fn per_job(&self) -> Option<f64> {
        let jobs = self.enqueued.max(self.ended);
        (jobs > 0).then(|| self.total() as f64 / jobs as f64)
    }
}

/// A queue to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewQueue {
    /// Where jobs go that failed for good.
    pub dead_letters: DeadLetters,
    /// A job that was handed out so often goes there instead of being handed out again. Default 5.
    pub max_receives: NonZeroU32,
}

impl Default for NewQueue {
    fn default() -> Self {
        Self { dead_letters: DeadLetters::Usual, max_receives: NonZeroU32::MIN.saturating_add(4) }
    }
}

/// Where jobs go that failed for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeadLetters {
    /// Nowhere: they are deleted.
    None,
    /// Into a queue named after this one.
    Usual,
    /// Into the queue of this name.
    Named(String),
}

/// Sums since a store was made. An attempt is counted when its handler has ended, or its worker was lost for good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Jobs stored.
    pub jobs: u64,
    /// Chains stored; a single job is a chain of one.
    pub chains: u64,
    /// Attempts whose handler returned or failed.
    pub attempts: u64,
    /// Attempts that failed, and jobs that failed as "worker lost".
    pub failures: u64,
    /// Failed attempts after which another one was granted.
    pub retries: u64,
    /// Jobs given to another worker because theirs was lost.
    pub rescues: u64,
    /// How long these attempts took together, from claim to end.
    pub duration: Duration,
    /// How many of them took less than each of these times, but no less than the one before. The times grow.
    pub durations: Vec<(Duration, u64)>,
}

impl Totals {
    /// A time that this part of all attempts (0 to 1) took at most, estimated within the range in which it lies.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let all: u64 = self.durations.iter().map(|(_, count)| count).sum();
        let rank = part.clamp(0.0, 1.0) * all as f64;
        let (mut below, mut from) = (0.0, Duration::ZERO);
        for (to, count) in self.durations.iter().filter(|(_, count)| *count > 0) {
            let count = *count as f64;
            from = from.max(*to / 2);
            if below + count >= rank {
                let range = to.saturating_sub(from);
                return Some(from + range.mul_f64(((rank - below) / count).clamp(0.0, 1.0)));
            }
            below += count;
            from = *to;
        }
        None
    }
}

/// Which jobs to list. Conditions are joined by *and*; results are sorted by id, which is enqueue order.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this state.
    pub state: Option<State>,
    /// Only this type.
    pub job_type: Option<String>,
    /// Only jobs enqueued longer ago than this.
    pub older_than: Option<Duration>,
    /// Only ids after this one: the last id of the page before.
    pub after: Option<JobId>,
    /// Most results.
    pub limit: usize,
}

/// A statement for somebody else's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// With `{}` in the place of each value, because drivers write parameters differently.
    pub sql: String,
    /// Texts, in order.
    pub values: Vec<String>,
}

/// One line of `dejq doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub name: String,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub fix: Option<String>,
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with a risk or a cost.
    Warn,
    /// Will not work.
    Error,
}

/// Where jobs are kept.
///
/// Jobs linked by [`NewJob::link`] form a chain: each is *blocked* until the one before it is final. At most
/// one lease per job is current. Time is the store's own where it has a clock. Unless said otherwise, an
/// operation may be repeated after a transient error and then does nothing twice.
///
/// Futures returned here must not be dropped half-way, except by ending the process; `claim` has `stop` for
/// that.
#[async_trait]
pub trait Backend: Debug + Send + Sync + 'static {
    /// What this store promises.
    fn guarantees(&self) -> Guarantees;

    /// Nothing → *ready*, *scheduled* (with a delay) or *blocked* (later in a chain). All jobs of the call or
    /// none; returns when the store has confirmed. Ids come back in the order given. A job whose id is stored
    /// already is left alone. A job with a unique key that a job of its type holds is not stored; the holder's
    /// id comes back in its place.
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<JobId>>;

    /// *ready* → *running*, attempt + 1, a new token. Types are served oldest job first; of
    /// very many types a store may serve some in turn. Empty when `wait`
    /// passed or `stop` fired first.
    async fn claim(&self, want: &Claim<'_>) -> Result<Vec<Leased>>;

    /// *running* → *running*, each lease renewed to last `lease` from now. One call for all leases of a worker: a store
    /// may renew those that it is not told about as well. Returns those that must be let go, and why.
    async fn extend(
        &self,
        worker: WorkerId,
        leases: &[Lease],
        lease: Duration,
    ) -> Result<Vec<(Lease, Revocation)>>;

    /// *running* → *finished*, *scheduled* or *ready* (retry), *failed*, *cancelled*, or (interrupted) *ready* at
    /// its old place with attempt − 1. When a job becomes final, the next one of its chain goes *blocked* →
    /// *ready* (or *scheduled*, by its own delay) at its place in enqueue order in the same step, or the rest goes
    /// *blocked* → *cancelled* (`OnFailure::Cancel`). A next job of a type in `next.types` that is ready at once
    /// is leased to the caller. Stale leases are reported and change nothing.
    async fn settle(&self, done: &[Settled], next: &HandOff<'_>) -> Result<SettleReply>;

    /// *running* → *ready* at its old place in line, attempt − 1: the job was never started. Stale leases are
    /// ignored.
    async fn give_back(&self, leases: &[Lease]) -> Result<()>;

    /// *running* with an expired lease → *ready* at its old place, attempt − 1; or → *failed* as "worker lost"
    /// when it has been rescued `max_rescues` times. A no-op where the store does it by itself.
    async fn rescue(&self, max_rescues: u32) -> Result<Rescued>;

    /// Counts what is there, at a cost that does not grow with the backlog.
    async fn stats(&self) -> Result<Stats>;

    /// The worker has stopped and holds nothing any more.
    async fn leave(&self, worker: WorkerId) -> Result<()> {
        let _ = worker;
        Ok(())
    }

    /// Creates or upgrades what the store needs; says what was done. Nothing to do by default.
    async fn migrate(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Creates the queue, if it is missing, as `wanted` says; says what was done.
    async fn create_queue(&self, wanted: &NewQueue) -> Result<Vec<String>> {
        let _ = wanted;
        let why = "it has no queues of its own that must be created; `dejq migrate` makes what it needs";
        Err(Error::not_supported("create_queue()", self.guarantees().store, why))
    }

    /// What [`migrate`](Self::migrate) does, as a script for those who do it by themselves. Empty by default.
    fn migration_script(&self) -> String {
        String::new()
    }

    /// Looks for what would go wrong later.
    async fn check(&self) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    /// Looks at each job for what contradicts the rest, while others go on; with `repair` it sets that right. Nothing to
    /// find where the store itself sees to it that nothing can, which is the default.
    async fn audit(&self, repair: bool) -> Result<Vec<Finding>> {
        let _ = repair;
        Ok(Vec::new())
    }

    /// One job, whatever its state.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownJob`].
    async fn get(&self, id: JobId) -> Result<JobInfo> {
        let _ = id;
        Err(self.cannot("looking up a job"))
    }

    /// Jobs by filter.
    async fn list(&self, filter: &Filter) -> Result<Vec<JobInfo>> {
        let _ = filter;
        Err(self.cannot("listing jobs"))
    }

    /// *running* jobs without a beat for that long.
    async fn unresponsive(&self, older_than: Duration) -> Result<Vec<JobInfo>> {
        let _ = older_than;
        Err(self.cannot("finding unresponsive jobs"))
    }

    /// Any state but final → *finished*; dependants run. A running handler is told by its next beat.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownJob`], [`ErrorKind::WrongState`] when it is final already.
    async fn finish(&self, id: JobId) -> Result<()> {
        let _ = id;
        Err(self.cannot("finishing a job by hand"))
    }

    /// *failed*, *cancelled*, *scheduled* or *running* → *ready* with attempts counted anew; jobs of its chain
    /// that were cancelled with it, or released by its end but not started, are *blocked* again.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownJob`]; [`ErrorKind::WrongState`] when it is finished or waiting already, when a
    /// later job of its chain has started, or when another job holds its unique key.
    async fn requeue(&self, id: JobId) -> Result<()> {
        let _ = id;
        Err(self.cannot("requeueing a job"))
    }

    /// Not running, not final → *cancelled*. *running*: asks its worker by the next beat
    /// ([`Revocation::Cancel`]); a retry, a give-back or a rescue then makes it *cancelled*. Dependants go on or
    /// are cancelled, by the chain's [`OnFailure`].
    ///
    /// [`OnFailure`]: crate::job::OnFailure
    ///
    /// # Errors
    /// [`ErrorKind::UnknownJob`], [`ErrorKind::WrongState`] when it is final already.
    async fn cancel(&self, id: JobId) -> Result<()> {
        let _ = id;
        Err(self.cannot("cancelling a job"))
    }

    /// What stores these jobs as `enqueue` does, for the caller to run in a transaction of their own. It answers with
    /// the ids, as an array of texts.
    fn enqueue_statement(&self, jobs: &[NewJob]) -> Result<Statement> {
        let _ = jobs;
        let fix =
            "it has no transactions to join; leave it out, and enqueue after your transaction has committed";
        Err(Error::not_supported("enqueue(connection=…)", self.guarantees().store, fix))
    }

    /// What ends an attempt as *finished*, for its handler to run in a transaction of its own: it is the end of the
    /// attempt once that has committed. It fails when the lease is stale.
    fn finish_statement(&self, lease: Lease) -> Result<Statement> {
        let _ = lease;
        let store = self.guarantees().store;
        Err(Error::not_supported("job.finish(connection=…)", store, "it has no transactions to join"))
    }

    /// Deletes jobs that became final longer ago than `older_than`, at most `batch` per call; returns how many.
    async fn delete_finished(&self, older_than: Duration, batch: usize) -> Result<u64> {
        let _ = (older_than, batch);
        Err(self.cannot("deleting finished jobs"))
    }

    /// *scheduled* → *ready*, whatever their time; returns how many. For tests, which need not wait for delays.
    async fn promote(&self) -> Result<u64> {
        Err(self.cannot("making scheduled jobs ready before their time"))
    }

    /// Gives back space that deleted jobs took.
    async fn vacuum(&self) -> Result<()> {
        Ok(())
    }

    /// The error of an operation that this store has no way to do.
    fn cannot(&self, operation: &str) -> Error {
        Error::not_supported(operation, self.guarantees().store, "this store offers no way to do it")
    }
}

/// Refuses what `guarantees` cannot hold, before anything is sent.
///
/// # Errors
/// [`ErrorKind::BodyTooLarge`].
pub fn check_sizes(guarantees: &Guarantees, jobs: &[NewJob]) -> Result<()> {
    let limit = guarantees.max_body;
    match jobs.iter().find(|job| job.body.as_bytes().len() > limit) {
        None => Ok(()),
        Some(job) => {
            let size = job.body.as_bytes().len();
            Err(Error::new(
                ErrorKind::BodyTooLarge { size, limit },
                format!(
                    "the body of a {:?} job has {size} bytes as JSON, {limit} is the most here; store large data \
                     elsewhere and enqueue a reference to it, or raise max_body",
                    job.job_type
                ),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_in_the_range_of_its_attempts() {
        let ms = Duration::from_millis;
        let totals = Totals { durations: vec![(ms(1), 90), (ms(2), 0), (ms(64), 10)], ..Totals::default() };
        assert_eq!(Totals::default().quantile(0.5), None);
        assert!(totals.quantile(0.5).is_some_and(|p50| (ms(0)..=ms(1)).contains(&p50)));
        assert!(totals.quantile(0.95).is_some_and(|p95| (ms(32)..=ms(64)).contains(&p95)));
        assert_eq!(totals.quantile(1.0), Some(ms(64)));
    }
}
