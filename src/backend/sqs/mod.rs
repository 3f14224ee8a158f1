//! Jobs in an SQS FIFO queue.
//!
//! A job is a message, its chain a message group. A lease is a visibility timeout: `hand.rs` keeps the receipts, and the
//! rule that only the head of a group is ever started. What SQS cannot do (look into its queue, keep keys) is refused.
//!
//! Receives count, and nothing takes one back: an attempt is a receive, and the redrive policy says which is the last. So
//! whatever lets go of messages does it in a way that uses up no receives of jobs that were not run.

mod address;
mod beat;
mod bill;
mod check;
mod claim;
mod create;
mod dates;
mod enqueue;
mod errors;
mod hand;
mod link;
mod message;
mod queue;
mod settle;
mod stats;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
pub use aws_sdk_sqs::Client;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::{Notify, OnceCell};
use tokio::time::Instant;

use self::address::Address;
use self::claim::Here;
use self::enqueue::Entrance;
use self::hand::Hand;
use self::link::{Link, MOST_ENTRIES};
use self::message::{ATTRIBUTE_BYTES, MOST_BYTES};
use self::settle::MOST_HIDDEN;
use crate::backend::remote::Enqueuer;
use crate::backend::{
    Backend, Claim, Finding, Guarantees, HandOff, Lease, Leased, NewQueue, Options, Rescued, Revocation,
    SettleReply, Settled, Stats, WorkerId,
};
use crate::error::Result;
use crate::job::{JobId, NewJob};

/// Messages that cannot be read, of which it is remembered that they were told of.
const MOST_TOLD: usize = 10_000;

/// The store of one queue.
pub struct SqsBackend {
    core: Arc<Core>,
    enqueuer: Arc<Enqueuer<Entrance>>,
}

/// What claims, polls, beats and settles share.
#[derive(Debug)]
struct Core {
    link: Arc<Link>,
    clock: Clock,
    hand: Mutex<Hand>,
    /// Something in hand may be of use to a claim now, or a poll has ended.
    changed: Notify,
    /// Held by whoever changes visibility.
    visibility: tokio::sync::Mutex<()>,
    workers: Mutex<FxHashMap<WorkerId, Here>>,
    /// Polls under way.
    polling: AtomicUsize,
    /// Ends that are stored, of settles that failed for others and will be repeated.
    answered: Mutex<FxHashSet<Lease>>,
    told: Mutex<Told>,
    singly_until: Mutex<Option<Instant>>,
    /// Messages that came for each one that could start, lately.
    per_start: Mutex<f64>,
    checked: OnceCell<()>,
}

#[derive(Debug, Default)]
struct Told {
    ids: FxHashSet<String>,
    in_order: VecDeque<String>,
}

/// What dates of messages are compared with.
#[derive(Debug, Clone, Copy)]
enum Clock {
    System,
    /// The runtime's, which may be paused.
    Runtime(Instant, SystemTime),
}

impl Clock {
    fn now(self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            Self::Runtime(then, at) => at + then.elapsed(),
        }
    }
}

impl SqsBackend {
    /// A client of the queue that a URL and options name. Connects when it is first used.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for what is wrong with them.
    pub fn open(url: &str, options: &mut Options) -> Result<Arc<Self>> {
        Ok(Self::make(Address::parse(url, options)?, None, Clock::System))
    }

    /// The same over a client of the SDK that is there already. Dates go by the runtime's clock, beginning at `now`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn over(client: Client, url: &str, options: &mut Options, now: SystemTime) -> Result<Arc<Self>> {
        let clock = Clock::Runtime(Instant::now(), now);
        Ok(Self::make(Address::parse(url, options)?, Some(client), clock))
    }

    fn make(address: Address, client: Option<Client>, clock: Clock) -> Arc<Self> {
        let link = Arc::new(Link::new(address, client));
        let core = Arc::new(Core {
            link: Arc::clone(&link),
            clock,
            hand: Mutex::default(),
            changed: Notify::new(),
            visibility: tokio::sync::Mutex::default(),
            workers: Mutex::default(),
            polling: AtomicUsize::new(0),
            answered: Mutex::default(),
            told: Mutex::default(),
            singly_until: Mutex::default(),
            per_start: Mutex::new(1.0),
            checked: OnceCell::new(),
        });
        Arc::new(Self { core, enqueuer: Enqueuer::new(Entrance { link }) })
    }
}

impl Core {
    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn workers(&self) -> MutexGuard<'_, FxHashMap<WorkerId, Here>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self) -> MutexGuard<'_, FxHashSet<Lease>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn singly_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.singly_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn per_start(&self) -> MutexGuard<'_, f64> {
        self.per_start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is this message told of for the first time?
    fn told(&self, message_id: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = told.ids.insert(message_id.to_owned());
        if is_new {
            told.in_order.push_back(message_id.to_owned());
        }
        if told.in_order.len() > MOST_TOLD
            && let Some(oldest) = told.in_order.pop_front()
        {
            told.ids.remove(&oldest);
        }
        is_new
    }
}

impl fmt::Debug for SqsBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsBackend").field("address", &self.core.link.address).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for SqsBackend {
    fn guarantees(&self) -> Guarantees {
        Guarantees {
            store: "sqs",
            durable: true,
            filters_types: false,
            in_process: false,
            inspects: false,
            transactions: false,
            stores_whole_calls: false,
            keeps_keys: false,
            counts_attempts: false,
            tells_rescues: false,
            counts_exactly: false,
            hands_over_always: false,
            entries_per_call: Some(MOST_ENTRIES),
            max_lease: Some(MOST_HIDDEN),
            max_delay: Some(MOST_HIDDEN),
            max_body: MOST_BYTES - ATTRIBUTE_BYTES,
        }
    }

    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<JobId>> {
        enqueue::check(jobs)?;
        self.enqueuer.enqueue(jobs).await
    }

    async fn claim(&self, want: &Claim<'_>) -> Result<Vec<Leased>> {
        self.core.claim_jobs(want).await
    }

    async fn extend(
        &self,
        worker: WorkerId,
        leases: &[Lease],
        lease: Duration,
    ) -> Result<Vec<(Lease, Revocation)>> {
        self.core.beat(worker, leases, lease).await
    }

    async fn settle(&self, done: &[Settled], next: &HandOff<'_>) -> Result<SettleReply> {
        self.core.settle_jobs(done, next).await
    }

    async fn give_back(&self, leases: &[Lease]) -> Result<()> {
        self.core.give_back_jobs(leases).await
    }

    /// SQS hands out again by itself what nobody has beaten for.
    async fn rescue(&self, _max_rescues: u32) -> Result<Rescued> {
        Ok(Rescued::default())
    }

    async fn stats(&self) -> Result<Stats> {
        self.core.count().await
    }

    async fn leave(&self, worker: WorkerId) -> Result<()> {
        self.core.goodbye(worker).await
    }

    async fn migrate(&self) -> Result<Vec<String>> {
        self.core.create(&NewQueue::default()).await
    }

    async fn create_queue(&self, wanted: &NewQueue) -> Result<Vec<String>> {
        self.core.create(wanted).await
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        self.core.findings().await
    }
}
