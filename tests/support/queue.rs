//! The queue under test. Time is counted in ticks. Those of the memory store are seconds of a paused clock; in a database
//! they are hours, and time passes by moving what is stored into the past. Only who watches somebody wait needs a tick
//! that really takes its time: [`TestQueue::in_real_time`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dejq::backend::memory::{MemoryBackend, MemoryOptions};
use dejq::backend::{
    Backend, Claim, Counts, DeadLetters, Guarantees, HandOff, Lease, Leased, NewQueue, Options, Outcome,
    Rescued, Revocation, SettleReply, Settled, WorkerId, connect,
};
use dejq::error::ErrorKind;
use dejq::job::{JobId, JobType, NewJob, OnFailure, State};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::sqs::Fake;
use super::{assert_refused, chain, count, failure, job, lease, unique};

/// Ticks that a lease lasts, and a half, so that no test depends on what happens at the very end of one.
pub const LEASE: u32 = 10;

/// A tick for those who watch somebody wait: long beside what a server takes for anything.
const REAL_TICK: Duration = Duration::from_millis(200);

/// Where the jobs of a test are kept.
#[derive(Debug, Clone, Copy)]
pub enum Store {
    Memory,
    Postgres,
    Redis,
    /// The virtual queue of `sqs/`: its rules are those of AWS, and no emulator keeps all of them.
    Sqs,
}

impl Store {
    /// A client of the queue of this name. The server ends with the tests, and the queues with it.
    fn connect(self, name: &str) -> Arc<dyn Backend> {
        match self {
            Self::Memory => MemoryBackend::named(name, MemoryOptions::default()),
            Self::Postgres => {
                let schema = [("schema".to_owned(), name.to_owned())];
                connect(&server("DEJQ_TEST_PG_URL"), &mut Options::new(schema)).unwrap()
            }
            Self::Redis => {
                let queue = [("queue".to_owned(), name.replace(' ', "-"))];
                connect(&server("DEJQ_TEST_REDIS_URL"), &mut Options::new(queue)).unwrap()
            }
            Self::Sqs => account(name).connect("sqs://us-east-1/test.fifo", &[]),
        }
    }

    fn tick(self) -> Duration {
        match self {
            Self::Memory => Duration::from_secs(1),
            // Visibility is counted in whole seconds.
            Self::Sqs => Duration::from_secs(10),
            Self::Postgres | Self::Redis => Duration::from_secs(3600),
        }
    }

    /// Makes everything in the queue of this name so much older.
    async fn age(self, name: &str, time: Duration) {
        match self {
            Self::Memory | Self::Sqs => sleep(time).await,
            Self::Postgres => {
                let statements = include_str!("age.sql")
                    .replace("dejq.", &format!("\"{name}\"."))
                    .replace("$1", &format!("'{} seconds'::interval", time.as_secs_f64()));
                let url = server("DEJQ_TEST_PG_URL");
                let (client, connection) =
                    tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
                let connection = tokio::spawn(connection);
                client.batch_execute(&statements).await.unwrap();
                drop(client);
                connection.await.unwrap().unwrap();
            }
            Self::Redis => {
                let client = redis::Client::open(server("DEJQ_TEST_REDIS_URL")).unwrap();
                let mut connection = client.get_multiplexed_async_connection().await.unwrap();
                redis::Script::new(include_str!("age.lua"))
                    .key(format!("dejq:{{{}}}:job", name.replace(' ', "-")))
                    .arg(time.as_micros() as u64)
                    .invoke_async::<()>(&mut connection)
                    .await
                    .unwrap();
            }
        }
    }
}

/// An empty queue, as one worker sees it.
#[derive(Debug, Clone)]
pub struct TestQueue {
    pub backend: Arc<dyn Backend>,
    pub worker: WorkerId,
    store: Store,
    name: String,
    tick: Duration,
}

/// A claim that waits in the background.
#[derive(Debug)]
pub struct Claiming {
    task: JoinHandle<Vec<Leased>>,
    pub stop: CancellationToken,
}

impl Claiming {
    /// What it brought.
    pub async fn end(self) -> Vec<Leased> {
        self.task.await.unwrap()
    }
}

impl TestQueue {
    /// A fresh queue that shares nothing with others.
    pub async fn open(store: Store) -> Self {
        let name = format!("test {}", JobId::generate());
        let backend = store.connect(&name);
        if matches!(store, Store::Sqs) {
            // Receives are not what these tests are about.
            let wanted = NewQueue { dead_letters: DeadLetters::None, ..NewQueue::default() };
            backend.create_queue(&wanted).await.unwrap();
        }
        backend.migrate().await.unwrap();
        let worker = WorkerId(JobId::generate());
        Self { backend, worker, store, name, tick: store.tick() }
    }

    /// Another fresh queue of the same store.
    pub async fn another(&self) -> Self {
        Self::open(self.store).await
    }

    /// The same queue as a worker of another client sees it, which knows nothing of what this one does.
    pub fn other_client(&self) -> Self {
        Self { backend: self.store.connect(&self.name), ..self.other_worker() }
    }

    /// The same queue as another worker sees it.
    pub fn other_worker(&self) -> Self {
        Self { worker: WorkerId(JobId::generate()), ..self.clone() }
    }

    // ---- time --------------------------------------------------------------------------------------

    pub fn ticks(&self, ticks: u32) -> Duration {
        self.tick * ticks
    }

    /// Lets time go by, which takes none.
    pub async fn pass(&self, ticks: u32) {
        if self.tick == REAL_TICK {
            // The only sleep of the suite: what is tested is that time passes.
            sleep(self.ticks(ticks)).await;
        } else {
            self.store.age(&self.name, self.ticks(ticks)).await;
        }
    }

    /// The same queue with ticks short enough to wait for.
    pub fn in_real_time(self) -> Self {
        let is_virtual = matches!(self.store, Store::Memory | Store::Sqs);
        let tick = if is_virtual { self.tick } else { REAL_TICK };
        Self { tick, ..self }
    }

    /// The whole ticks since `start`.
    pub fn ticks_since(&self, start: Instant) -> u32 {
        (start.elapsed().as_millis() / self.tick.as_millis()) as u32
    }

    /// How long the leases of this worker last.
    pub fn lease_time(&self) -> Duration {
        self.ticks(LEASE) + self.tick / 2
    }

    // ---- clients -----------------------------------------------------------------------------------

    pub async fn enqueue(&self, job_type: &str) -> JobId {
        self.put(&[job(job_type)]).await[0]
    }

    /// A chain of these types that goes on after a failure.
    pub async fn enqueue_chain<const N: usize>(&self, types: [&str; N]) -> [JobId; N] {
        self.put(&chain(types, OnFailure::Continue)).await.try_into().unwrap()
    }

    pub async fn put(&self, jobs: &[NewJob]) -> Vec<JobId> {
        self.backend.enqueue(jobs).await.unwrap()
    }

    // ---- workers -----------------------------------------------------------------------------------

    /// What is ready now.
    pub async fn claim(&self, types: &[&str], limit: usize) -> Vec<Leased> {
        self.claim_until(types, limit, 0, &CancellationToken::new()).await
    }

    /// The oldest job of this type, which must be ready.
    pub async fn take(&self, job_type: &str) -> Leased {
        let mut leased = self.claim(&[job_type], 1).await;
        assert_eq!(leased.len(), 1, "{job_type} jobs that are ready");
        leased.remove(0)
    }

    /// No job of this type is ready.
    pub async fn assert_none_ready(&self, job_type: &str) {
        let leased = self.claim(&[job_type], 1).await;
        assert!(leased.is_empty(), "ready, but should not be: {leased:?}");
    }

    /// Waits for a job in the background; it waits already when this returns.
    pub async fn start_claim(&self, job_type: &str, wait: u32) -> Claiming {
        let (queue, job_type, stop) = (self.clone(), job_type.to_owned(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move { queue.claim_until(&[&job_type], 10, wait, &stopped).await });
        self.pass(1).await;
        assert!(!task.is_finished(), "the claim did not wait");
        Claiming { task, stop }
    }

    /// As a worker does, gives back what is of no type that was asked for, and lets the time pass after which it comes again.
    pub async fn claim_until(
        &self,
        types: &[&str],
        limit: usize,
        wait: u32,
        stop: &CancellationToken,
    ) -> Vec<Leased> {
        let asked = Claim {
            worker: self.worker,
            types: &as_types(types),
            limit,
            lease: self.lease_time(),
            wait: self.ticks(wait),
            stop,
        };
        let mut hidden = 0;
        let taken = loop {
            let leased = self.backend.claim(&asked).await.unwrap();
            let is_asked = |leased: &Leased| types.contains(&leased.job.job_type.as_str());
            let (taken, others): (Vec<_>, Vec<_>) = leased.into_iter().partition(is_asked);
            assert!(
                others.is_empty() || !self.backend.guarantees().filters_types,
                "not asked for: {others:?}"
            );
            self.give_back(&others).await;
            hidden += others.len();
            if others.is_empty() || !taken.is_empty() {
                break taken;
            }
        };
        if hidden > 0 {
            self.pass(1).await;
        }
        taken
    }

    /// So many attempts have started, or, where nothing else is counted, so often was the job handed out.
    pub fn assert_attempt(&self, leased: &Leased, started: u32, handed_out: u32) {
        let counts_attempts = self.backend.guarantees().counts_attempts;
        assert_eq!(leased.job.attempt, if counts_attempts { started } else { handed_out });
    }

    pub async fn beat(&self, leases: &[Lease]) -> Vec<(Lease, Revocation)> {
        self.backend.extend(self.worker, leases, self.lease_time()).await.unwrap()
    }

    /// The leases are still ours, and nobody asked to let go of them.
    pub async fn assert_held(&self, leased: &Leased) {
        assert_eq!(self.beat(&[lease(leased)]).await, []);
    }

    pub async fn give_back(&self, leased: &[Leased]) {
        let held: Vec<Lease> = leased.iter().map(lease).collect();
        self.backend.give_back(&held).await.unwrap();
    }

    pub async fn rescue(&self, max_rescues: u32) -> Rescued {
        self.backend.rescue(max_rescues).await.unwrap()
    }

    /// So many jobs are rescued now, as far as that is told.
    pub async fn assert_rescued(&self, jobs: u64) {
        let requeued = if self.backend.guarantees().tells_rescues { jobs } else { 0 };
        assert_eq!(self.rescue(3).await, Rescued { requeued, failed: 0 });
    }

    /// The worker of these jobs dies, and others notice.
    pub async fn lose_worker(&self) {
        self.pass(LEASE + 1).await;
        let rescued = self.rescue(3).await;
        assert_eq!(rescued != Rescued::default(), self.backend.guarantees().tells_rescues, "{rescued:?}");
    }

    /// Rescues are told here, and `max_rescues` is known. Where they are not, proves that a lost job comes back by itself;
    /// nothing else is left to test then.
    pub async fn tells_rescues(&self) -> bool {
        if self.backend.guarantees().tells_rescues {
            return true;
        }
        let id = self.enqueue("lost").await;
        self.take("lost").await;
        self.pass(LEASE + 1).await;
        assert_eq!(self.rescue(0).await, Rescued::default());
        assert_eq!(self.other_client().take("lost").await.job.id, id);
        false
    }

    /// Unique keys are kept here. Where they are not, proves that they are refused clearly; nothing else is left to test then.
    pub async fn keeps_keys(&self) -> bool {
        let Guarantees { keeps_keys, store, .. } = self.backend.guarantees();
        if !keeps_keys {
            let refused = self.backend.enqueue(&[unique("a", "k")]).await;
            assert_refused(refused, &ErrorKind::NotSupported, format!("unique= is not possible on {store}"));
        }
        keeps_keys
    }

    // ---- how attempts end --------------------------------------------------------------------------

    pub async fn settle_all(&self, done: &[Settled], hand_over: &[&str]) -> SettleReply {
        let types = as_types(hand_over);
        let next = HandOff { worker: self.worker, types: &types, lease: self.lease_time() };
        self.backend.settle(done, &next).await.unwrap()
    }

    /// Ends an attempt whose lease is current.
    pub async fn settle(&self, leased: &Leased, outcome: Outcome, hand_over: &[&str]) -> SettleReply {
        let reply = self.settle_all(&[Settled { lease: lease(leased), outcome }], hand_over).await;
        assert_eq!(reply.lost, [] as [usize; 0], "the lease was lost");
        reply
    }

    pub async fn finish(&self, leased: &Leased) {
        self.settle(leased, Outcome::Finished, &[]).await;
    }

    /// Finishes the job and takes the next one of its chain in the same step.
    pub async fn finish_and_take(&self, leased: &Leased, next_type: &str) -> Leased {
        self.end_and_take(leased, Outcome::Finished, next_type).await
    }

    /// Ends the job for good and takes the next one of its chain; in the same step, if the store always hands it over.
    pub async fn end_and_take(&self, leased: &Leased, outcome: Outcome, next_type: &str) -> Leased {
        let reply = self.settle(leased, outcome, &[next_type]).await;
        if reply.next.is_empty() && !self.backend.guarantees().hands_over_always {
            return self.take(next_type).await;
        }
        super::handed_over(reply)
    }

    pub async fn fail(&self, leased: &Leased) {
        self.settle(leased, Outcome::Failed(failure()), &[]).await;
    }

    pub async fn retry(&self, leased: &Leased, after: u32) {
        let after = self.ticks(after);
        self.settle(leased, Outcome::Retry { after, failure: failure() }, &[]).await;
    }

    /// The end of the attempt is refused, because its lease is no longer current.
    pub async fn assert_lost(&self, leased: &Leased, outcome: Outcome) {
        let reply = self.settle_all(&[Settled { lease: lease(leased), outcome }], &[]).await;
        assert_eq!(reply.lost, [0], "a stale lease was not reported");
    }

    // ---- operators ---------------------------------------------------------------------------------

    /// The store, when operators can look into it. When they cannot, proves that each of their operations is
    /// refused clearly; nothing else is left to test then.
    pub async fn operator(&self) -> Option<&dyn Backend> {
        let guarantees = self.backend.guarantees();
        if guarantees.inspects {
            return Some(&*self.backend);
        }
        let (id, age) = (JobId::generate(), Duration::ZERO);
        let refused = &ErrorKind::NotSupported;
        assert_refused(self.backend.get(id).await, refused, guarantees.store);
        assert_refused(self.backend.list(&dejq::backend::Filter::default()).await, refused, guarantees.store);
        assert_refused(self.backend.unresponsive(age).await, refused, guarantees.store);
        assert_refused(self.backend.finish(id).await, refused, guarantees.store);
        assert_refused(self.backend.requeue(id).await, refused, guarantees.store);
        assert_refused(self.backend.cancel(id).await, refused, guarantees.store);
        assert_refused(self.backend.delete_finished(age, 1).await, refused, guarantees.store);
        None
    }

    /// The job is in this state, as far as operators can see jobs here.
    pub async fn assert_state(&self, id: JobId, state: State) {
        if let Some(operator) = self.operator().await {
            assert_eq!(operator.get(id).await.unwrap().state, state);
        }
    }

    /// So many jobs are in these states and none in others. A store that operators can look into tells every
    /// count, another one those that it can.
    pub async fn assert_counts(&self, expected: &[(State, u64)]) {
        let stats = self.backend.stats().await.unwrap();
        self.assert_these(&stats.total, expected);
    }

    /// The same for one type.
    pub async fn assert_counts_of(&self, job_type: &str, expected: &[(State, u64)]) {
        let stats = self.backend.stats().await.unwrap();
        if self.backend.guarantees().counts_exactly {
            self.assert_these(&stats.by_type[job_type], expected);
        } else {
            assert!(stats.by_type.is_empty(), "{:?}", stats.by_type);
        }
    }

    fn assert_these(&self, counts: &Counts, expected: &[(State, u64)]) {
        if !self.backend.guarantees().counts_exactly {
            // What is left to do is known, but not what it waits for.
            let left: u64 =
                expected.iter().filter(|(state, _)| !state.is_final()).map(|(_, count)| *count).sum();
            let told = [State::Blocked, State::Scheduled, State::Ready, State::Running]
                .map(|state| count(counts, state));
            return assert_eq!(told.into_iter().flatten().sum::<u64>(), left, "jobs that are left");
        }
        let must_tell = self.backend.guarantees().inspects;
        for state in State::ALL {
            let expected = expected.iter().find(|(of, _)| *of == state).map_or(0, |(_, count)| *count);
            match count(counts, state) {
                None => assert!(!must_tell, "the number of {} jobs is not told", state.as_str()),
                Some(count) => assert_eq!(count, expected, "number of {} jobs", state.as_str()),
            }
        }
    }

    // ---- concurrency -------------------------------------------------------------------------------

    /// Runs as many workers as asked for, each with a client and on a thread with a runtime of its own, until all have
    /// ended.
    pub async fn in_parallel<T, F>(&self, workers: usize, work: impl Fn(Self) -> F) -> Vec<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                let work = work(self.other_client());
                tokio::task::spawn_blocking(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(work)
                })
            })
            .collect();
        let mut results = Vec::with_capacity(workers);
        for thread in threads {
            results.push(thread.await.unwrap());
        }
        results
    }
}

/// The account of the queue of this name, for all clients of a test.
fn account(name: &str) -> Arc<Fake> {
    static ACCOUNTS: Mutex<BTreeMap<String, Arc<Fake>>> = Mutex::new(BTreeMap::new());
    Arc::clone(ACCOUNTS.lock().unwrap().entry(name.to_owned()).or_insert_with(Fake::new))
}

/// Where the server of this variable is; see tests/servers.py, which starts one.
fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} names no server; run the tests as `make test-rust`, or: python tests/servers.py -- cargo test")
    })
}

fn as_types(names: &[&str]) -> Vec<JobType> {
    names.iter().map(|name| super::a_type(name)).collect()
}
