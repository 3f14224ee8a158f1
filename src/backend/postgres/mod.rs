//! Jobs in a PostgreSQL database (13 to 18).
//!
//! What changes a job's state is a function of the schema (`migrations/postgres/`), which worker, operators and other
//! languages share; this module asks for it, a batch at a time:
//!
//! ```text
//! enqueue → insert.sql, copy.sql      claim → claim.sql      settle, give_back → settle.sql, put_back.sql
//! extend → beat.sql                   rescue → rescue.sql    listen.rs, notify.rs: LISTEN and NOTIFY
//! ```
//!
//! A worker is a row, and a beat renews that row; its jobs name it. A lease is proven by a token that all jobs of one
//! claim share, drawn by the client, so that the jobs of a claim whose answer was lost can be named and given back.

mod address;
mod check;
mod claim;
mod dial;
mod enqueue;
mod errors;
mod link;
mod listen;
mod notify;
mod operators;
mod passfile;
mod rows;
mod schema;
mod settle;
mod sql;
mod tls;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use self::address::Address;
use self::claim::Marks;
use self::enqueue::Entrance;
use self::link::{Link, Server};
use self::listen::Wakes;
use self::notify::Notifier;
use self::schema::Schema;
use self::settle::Unsure;
use self::sql::Sql;
use crate::backend::remote::{Doing, Enqueuer, Stranded, host_and_process};
use crate::backend::{
    Backend, Claim, Filter, Finding, Guarantees, HandOff, Lease, Leased, Options, Rescued, Revocation,
    SettleReply, Settled, Statement, Stats, WorkerId,
};
use crate::error::Result;
use crate::job::{JobId, JobInfo, NewJob};

/// Most bytes that Postgres takes for one value, less what a row needs besides.
const MOST_BODY: usize = 1_000_000_000;

/// How a Postgres queue is set up.
#[derive(Debug, Clone)]
struct Settings {
    max_body: usize,
    keep_finished: bool,
    /// How long finished jobs are kept; `None`: for ever.
    retention: Option<Duration>,
    listen: bool,
}

/// The store of one schema in one database.
pub struct PostgresBackend {
    server: Arc<Server>,
    sql: Arc<Sql>,
    options: Settings,
    /// What people see in the table of workers: host and process.
    name: String,
    /// Claims, and what operators ask.
    work: Arc<Link>,
    settling: Link,
    /// Of its own, so that nothing keeps a beat waiting.
    beats: Link,
    enqueuer: Arc<Enqueuer<Entrance>>,
    /// Jobs with a unique key, which may have to wait for somebody's transaction, keep no others waiting.
    unique_enqueuer: Arc<Enqueuer<Entrance>>,
    /// Looks that take long; opened when there are any.
    sweeping: Arc<Link>,
    marks: Arc<Marks>,
    wakes: Arc<Wakes>,
    notifier: Arc<Notifier>,
    listener: AtomicBool,
    ended: CancellationToken,
    stranded: Stranded,
    unsure: Mutex<Unsure>,
    /// When finished jobs were last looked through for old ones.
    last_clean: Mutex<Option<Instant>>,
}

impl PostgresBackend {
    /// A client of the schema that a URL and options name. Connects when it is first used.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for what is wrong with them.
    pub fn open(url: &str, options: &mut Options) -> Result<Arc<Self>> {
        let address = Address::parse(url, options)?;
        let listen_url = options.take("listen_url", "a URL", |url| Some(url.to_owned()))?;
        let listener = listen_url.map(|url| address.listener(&url)).transpose()?;
        let schema = Schema::new(
            &options.take("schema", "a name", |name| Some(name.to_owned()))?.unwrap_or("dejq".to_owned()),
        )?;
        let settings = Settings {
            max_body: options
                .take("max_body", "a number of bytes from 1 to 1000000000", |text| {
                    text.parse().ok().filter(|bytes| (1..=MOST_BODY).contains(bytes))
                })?
                .unwrap_or(1024 * 1024),
            keep_finished: options.take_bool("keep_finished")?.unwrap_or(true),
            retention: options.take_seconds("retention", Duration::from_secs(1))?,
            listen: options.take_bool("listen")?.unwrap_or(true),
        };
        let server = Server::new(address, listener, schema);
        let sql = Arc::new(Sql::new(&server.schema));
        let work = Arc::new(Link::new(&server));
        let wakes = Arc::new(Wakes::default());
        let notifier = Notifier::new(&work, &sql, &wakes);
        let enqueuer = || {
            let (sql, notifier) = (Arc::clone(&sql), Arc::clone(&notifier));
            Enqueuer::new(Entrance { link: Link::new(&server), sql, notifier })
        };
        Ok(Arc::new(Self {
            settling: Link::new(&server),
            beats: Link::new(&server),
            enqueuer: enqueuer(),
            unique_enqueuer: enqueuer(),
            work,
            sql,
            options: settings,
            name: host_and_process(),
            sweeping: Arc::new(Link::new(&server)),
            marks: Arc::new(Marks::new()),
            wakes,
            notifier,
            listener: AtomicBool::new(false),
            ended: CancellationToken::new(),
            stranded: Stranded::default(),
            unsure: Mutex::default(),
            last_clean: Mutex::default(),
            server,
        }))
    }

    /// Somebody waits for jobs: from now on listens for them.
    fn start_listening(&self) {
        if self.options.listen && !self.listener.swap(true, Ordering::Relaxed) {
            let (server, link, wakes) =
                (Arc::clone(&self.server), Arc::clone(&self.work), Arc::clone(&self.wakes));
            tokio::spawn(listen::run(server, link, wakes, self.ended.clone()));
        }
    }

    /// Has a claim waited, and was nothing heard?
    fn listener_is_deaf(&self) -> bool {
        self.listener.load(Ordering::Relaxed) && !self.wakes.listens()
    }

    /// Jobs may have come in anywhere in line.
    fn changed(&self) {
        self.marks.forget();
        self.wakes.all();
    }
}

impl Drop for PostgresBackend {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl fmt::Debug for PostgresBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBackend")
            .field("server", &self.server)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for PostgresBackend {
    fn guarantees(&self) -> Guarantees {
        Guarantees {
            store: "postgres",
            durable: true,
            filters_types: true,
            in_process: false,
            inspects: true,
            transactions: true,
            stores_whole_calls: true,
            keeps_keys: true,
            counts_attempts: true,
            tells_rescues: true,
            counts_exactly: true,
            hands_over_always: true,
            entries_per_call: None,
            max_lease: None,
            max_delay: None,
            max_body: self.options.max_body,
        }
    }

    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<JobId>> {
        self.enqueue_jobs(jobs).await
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
        let rescued = self.rescue_jobs(max_rescues).await?;
        self.forget_old_jobs().await?;
        Ok(rescued)
    }

    async fn stats(&self) -> Result<Stats> {
        self.count().await
    }

    async fn leave(&self, worker: WorkerId) -> Result<()> {
        let doing = Doing::Write("leaving");
        self.beats.query(doing, &self.sql.leave, &[(worker.0.as_uuid(), Type::UUID)]).await?;
        Ok(())
    }

    async fn migrate(&self) -> Result<Vec<String>> {
        let session = self.server.open().await?;
        self.server.schema.migrate(&session.client).await
    }

    fn migration_script(&self) -> String {
        self.server.schema.script()
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        self.findings().await
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
        self.operate("finishing a job by hand", &self.sql.finish, id).await
    }

    async fn requeue(&self, id: JobId) -> Result<()> {
        self.operate("requeueing a job", &self.sql.requeue, id).await
    }

    async fn cancel(&self, id: JobId) -> Result<()> {
        self.operate("cancelling a job", &self.sql.cancel, id).await
    }

    async fn delete_finished(&self, older_than: Duration, batch: usize) -> Result<u64> {
        self.delete_ended(older_than, batch).await
    }

    fn enqueue_statement(&self, jobs: &[NewJob]) -> Result<Statement> {
        let values = vec![enqueue::described(jobs.iter())];
        Ok(Statement { sql: self.sql.enqueue_in_transaction.clone(), values })
    }

    fn finish_statement(&self, lease: Lease) -> Result<Statement> {
        let values = vec![lease.id.to_string(), (lease.token.shared(lease.id) as i64).to_string()];
        Ok(Statement { sql: self.sql.finish_in_transaction.clone(), values })
    }

    async fn promote(&self) -> Result<u64> {
        self.promote_all().await
    }

    async fn vacuum(&self) -> Result<()> {
        self.vacuum_tables().await
    }
}
