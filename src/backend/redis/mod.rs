//! Jobs in Redis (6.2 to 8) or Valkey (8, 9).
//!
//! What changes a job's state is a script (`lua/`), for a batch of jobs at a time; it runs on the server without
//! anything in between. `keys.rs` says what is kept where, `frame.rs` what a job looks like there.
//!
//! A worker is an entry in a sorted set, and a beat renews that entry; what it has is in a hash of its own, so that a
//! worker which was taken for lost finds nothing any more. A lease is proven by a token that all jobs of one claim share,
//! drawn by the client, so that the jobs of a claim whose answer was lost can be named and given back.

mod address;
mod audit;
mod check;
mod claim;
mod dial;
mod enqueue;
mod errors;
mod frame;
mod keys;
mod link;
mod operators;
mod portion;
mod reply;
mod script;
mod settle;

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use self::address::Address;
use self::claim::{Tokens, Turn, Waiters};
use self::dial::Dialer;
use self::enqueue::Entrance;
use self::keys::Keys;
use self::link::Link;
use self::settle::Unsure;
use crate::backend::remote::{Enqueuer, Stranded, host_and_process};
use crate::backend::{
    Backend, Claim, Filter, Finding, Guarantees, HandOff, Lease, Leased, Options, Rescued, Revocation,
    SettleReply, Settled, Stats, WorkerId,
};
use crate::error::Result;
use crate::job::{JobId, JobInfo, NewJob};

/// Most bytes that Redis takes for one value.
const MOST_BODY: usize = 512 * 1024 * 1024 - 64 * 1024;
/// The lease that is assumed before this client knows that of its worker, in microseconds.
const USUAL_LEASE: u64 = 15_000_000;

/// When `enqueue` takes jobs for stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// When the server has them.
    Memory,
    /// When they are in its append-only file, on disk.
    Aof,
    /// When so many replicas have them as well.
    Replicas(u32),
}

/// How a Redis queue is set up.
#[derive(Debug, Clone)]
struct Settings {
    durability: Durability,
    max_body: usize,
    keep_finished: usize,
    keep_failed: usize,
    allows_eviction: bool,
}

/// The store of one queue.
pub struct RedisBackend {
    dialer: Arc<Dialer>,
    keys: Keys,
    settings: Settings,
    /// What people see in the hash of workers: host and process.
    name: String,
    /// Claims, and what operators ask.
    work: Link,
    settling: Link,
    /// Of its own, so that nothing keeps a beat waiting.
    beats: Link,
    enqueuer: Arc<Enqueuer<Entrance>>,
    waiters: Waiters,
    tokens: Tokens,
    turn: Mutex<Turn>,
    /// The lease that workers of this client have, in microseconds.
    lease_micros: AtomicU64,
    stranded: Stranded,
    unsure: Mutex<Unsure>,
}

impl RedisBackend {
    /// A client of the queue that a URL and options name. Connects when it is first used.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for what is wrong with them.
    pub fn open(url: &str, options: &mut Options) -> Result<Arc<Self>> {
        let address = Address::parse(url, options)?;
        let queue = options.take("queue", "a name", |name| Some(name.to_owned()))?;
        let keys = Keys::new(queue.as_deref().unwrap_or("dejq"))?;
        let replicas = options.take_number("replicas", 1_u32)?.unwrap_or(1);
        let settings = Settings {
            durability: options
                .take("durability", "memory, aof or replicas", |text| match text {
                    "memory" => Some(Durability::Memory),
                    "aof" => Some(Durability::Aof),
                    "replicas" => Some(Durability::Replicas(replicas)),
                    _ => None,
                })?
                .unwrap_or(Durability::Memory),
            max_body: options
                .take("max_body", "a number of bytes from 1 to 536805376", |text| {
                    text.parse().ok().filter(|bytes| (1..=MOST_BODY).contains(bytes))
                })?
                .unwrap_or(1024 * 1024),
            keep_finished: options.take_number("keep_finished", 0)?.unwrap_or(1_000),
            keep_failed: options.take_number("keep_failed", 0)?.unwrap_or(10_000),
            allows_eviction: options.take_bool("allow_eviction")?.unwrap_or(false),
        };
        let dialer = Arc::new(Dialer::new(address, keys.clone(), settings.clone()));
        Ok(Arc::new(Self {
            work: Link::new(&dialer),
            settling: Link::new(&dialer),
            beats: Link::new(&dialer),
            enqueuer: Enqueuer::new(Entrance {
                link: Link::new(&dialer),
                keys: keys.clone(),
                durability: settings.durability,
            }),
            waiters: Waiters::default(),
            tokens: Tokens::default(),
            turn: Mutex::default(),
            lease_micros: AtomicU64::new(USUAL_LEASE),
            stranded: Stranded::default(),
            unsure: Mutex::default(),
            name: host_and_process(),
            dialer,
            keys,
            settings,
        }))
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("dialer", &self.dialer)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for RedisBackend {
    fn guarantees(&self) -> Guarantees {
        Guarantees {
            store: "redis",
            durable: true,
            filters_types: true,
            in_process: false,
            inspects: true,
            transactions: false,
            stores_whole_calls: true,
            keeps_keys: true,
            counts_attempts: true,
            tells_rescues: true,
            counts_exactly: true,
            hands_over_always: true,
            entries_per_call: None,
            max_lease: None,
            max_delay: None,
            max_body: self.settings.max_body,
        }
    }

    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<JobId>> {
        self.enqueuer.enqueue(jobs).await
    }

    async fn claim(&self, want: &Claim<'_>) -> Result<Vec<Leased>> {
        self.claim_jobs(want).await
    }

    async fn extend(
        &self,
        worker: WorkerId,
        leases: &[Lease],
        lease: Duration,
    ) -> Result<Vec<(Lease, Revocation)>> {
        self.beat(worker, leases, lease).await
    }

    async fn settle(&self, done: &[Settled], next: &HandOff<'_>) -> Result<SettleReply> {
        self.settle_jobs(done, next).await
    }

    async fn give_back(&self, leases: &[Lease]) -> Result<()> {
        self.give_back_jobs(leases).await
    }

    async fn rescue(&self, max_rescues: u32) -> Result<Rescued> {
        self.rescue_jobs(max_rescues).await
    }

    async fn stats(&self) -> Result<Stats> {
        self.count().await
    }

    async fn leave(&self, worker: WorkerId) -> Result<()> {
        self.goodbye(worker).await
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        self.findings().await
    }

    async fn audit(&self, repair: bool) -> Result<Vec<Finding>> {
        self.audit_queue(repair).await
    }

    async fn get(&self, id: JobId) -> Result<JobInfo> {
        self.get_job(id).await
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<JobInfo>> {
        self.list_jobs(filter).await
    }

    async fn unresponsive(&self, older_than: Duration) -> Result<Vec<JobInfo>> {
        self.unresponsive_jobs(older_than).await
    }

    async fn finish(&self, id: JobId) -> Result<()> {
        self.operate("finishing a job by hand", "finish", id).await
    }

    async fn requeue(&self, id: JobId) -> Result<()> {
        self.operate("requeueing a job", "requeue", id).await
    }

    async fn cancel(&self, id: JobId) -> Result<()> {
        self.operate("cancelling a job", "cancel", id).await
    }

    async fn delete_finished(&self, older_than: Duration, batch: usize) -> Result<u64> {
        self.delete_ended(older_than, batch).await
    }

    async fn promote(&self) -> Result<u64> {
        self.promote_all().await
    }
}
