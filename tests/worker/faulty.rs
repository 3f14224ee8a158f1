//! The memory store with faults on demand, and a record of every call that reached it.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dejq::backend::memory::{MemoryBackend, MemoryOptions};
use dejq::backend::{
    Backend, Claim, Guarantees, HandOff, Lease, Leased, Rescued, Revocation, SettleReply, Settled, Stats,
    WorkerId,
};
use dejq::error::{Error, ErrorKind, Result};
use dejq::job::{JobId, JobInfo, JobType, NewJob};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The calls of a worker, and of its metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    Claim,
    Extend,
    Settle,
    GiveBack,
    Rescue,
    Leave,
    Stats,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The store cannot be reached; nothing was done.
    Fail,
    /// The store says no, and will say so again.
    Refuse,
    /// Done, but the answer is lost on its way.
    LoseReply,
    /// A bug in the backend.
    Panic,
    /// Done after this time.
    Late(Duration),
    /// Waits at the gate, then it is done.
    Hold(Gate),
    /// Done at once; the answer waits at the gate.
    HoldReply(Gate),
}

/// Closed until it is opened.
#[derive(Debug, Clone, Default)]
pub struct Gate(CancellationToken);

impl Gate {
    pub fn open(&self) {
        self.0.cancel();
    }

    pub async fn opened(&self) {
        self.0.cancelled().await;
    }
}

/// A call that arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub call: Call,
    pub at: Instant,
    /// Jobs it was about; of a claim: its limit.
    pub jobs: usize,
}

/// See the file's comment.
#[derive(Debug)]
pub struct FaultyBackend {
    pub memory: Arc<MemoryBackend>,
    planned: Mutex<HashMap<Call, VecDeque<Fault>>>,
    standing: Mutex<HashMap<Call, Fault>>,
    seen: Mutex<Vec<Seen>>,
    /// Jobs whose ends came in a call that panicked or was refused, once for each.
    unstored: Mutex<Vec<JobId>>,
    /// Grows whenever a call arrives or returns.
    moves: watch::Sender<u64>,
    /// Claims ask for these types, whatever the worker wants: a store that cannot filter.
    hands_out: Option<Vec<JobType>>,
}

impl FaultyBackend {
    pub fn new(hands_out: Option<Vec<JobType>>) -> Arc<Self> {
        Arc::new(Self {
            memory: MemoryBackend::new(MemoryOptions::default()),
            planned: Mutex::default(),
            standing: Mutex::default(),
            seen: Mutex::default(),
            unstored: Mutex::default(),
            moves: watch::Sender::new(0),
            hands_out,
        })
    }

    /// The next `times` calls of this kind that have no fault yet get this one.
    pub fn next(&self, call: Call, times: usize, fault: &Fault) {
        let mut planned = self.planned.lock().unwrap();
        planned.entry(call).or_default().extend((0..times).map(|_| fault.clone()));
    }

    /// Every call of this kind has this fault until `heal`.
    pub fn always(&self, call: Call, fault: Fault) {
        self.standing.lock().unwrap().insert(call, fault);
    }

    pub fn heal(&self, call: Call) {
        self.standing.lock().unwrap().remove(&call);
        self.planned.lock().unwrap().remove(&call);
    }

    /// All calls of this kind so far.
    pub fn seen(&self, call: Call) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|seen| seen.call == call).cloned().collect()
    }

    /// How often an end of this job came in a call that panicked or was refused: so often it may run again.
    pub fn unstored(&self, id: JobId) -> usize {
        self.unstored.lock().unwrap().iter().filter(|unstored| **unstored == id).count()
    }

    pub fn count(&self, call: Call) -> usize {
        self.seen(call).len()
    }

    /// Waits until so many calls of this kind have arrived.
    pub async fn arrived(&self, call: Call, times: usize) {
        self.until(async || self.count(call) >= times).await;
    }

    /// Waits, looking whenever a call arrives or returns.
    pub async fn until(&self, is_so: impl AsyncFn() -> bool) {
        let mut moves = self.moves.subscribe();
        while !is_so().await {
            moves.changed().await.unwrap();
        }
    }

    fn fault(&self, call: Call) -> Option<Fault> {
        let planned = self.planned.lock().unwrap().get_mut(&call).and_then(VecDeque::pop_front);
        planned.or_else(|| self.standing.lock().unwrap().get(&call).cloned())
    }

    async fn strike<T>(
        &self,
        call: Call,
        jobs: usize,
        act: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.seen.lock().unwrap().push(Seen { call, at: Instant::now(), jobs });
        self.moves.send_modify(|moves| *moves += 1);
        let result = match self.fault(call) {
            None => act.await,
            Some(Fault::Fail) => Err(Error::new(ErrorKind::Unavailable, format!("{call:?}: no answer"))),
            Some(Fault::Refuse) => Err(Error::new(ErrorKind::SchemaMissing, format!("{call:?}: refused"))),
            Some(Fault::LoseReply) => {
                act.await?;
                Err(Error::new(ErrorKind::OutcomeUnknown, format!("{call:?}: the answer was lost")))
            }
            Some(Fault::Panic) => panic!("{call:?}: a fault of the test"),
            Some(Fault::Late(delay)) => {
                tokio::time::sleep(delay).await; // the fault itself, on the paused clock
                act.await
            }
            Some(Fault::Hold(gate)) => {
                gate.opened().await;
                act.await
            }
            Some(Fault::HoldReply(gate)) => {
                let result = act.await;
                gate.opened().await;
                result
            }
        };
        self.moves.send_modify(|moves| *moves += 1);
        result
    }
}

/// Notes ends whose call panics, or is refused for good.
struct Unstored<'a> {
    backend: &'a FaultyBackend,
    done: &'a [Settled],
}

impl Drop for Unstored<'_> {
    fn drop(&mut self) {
        self.backend.unstored.lock().unwrap().extend(self.done.iter().map(|settled| settled.lease.id));
    }
}

#[async_trait]
impl Backend for FaultyBackend {
    fn guarantees(&self) -> Guarantees {
        Guarantees { filters_types: self.hands_out.is_none(), ..self.memory.guarantees() }
    }

    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<JobId>> {
        self.memory.enqueue(jobs).await
    }

    async fn claim(&self, want: &Claim<'_>) -> Result<Vec<Leased>> {
        let want = Claim { types: self.hands_out.as_deref().unwrap_or(want.types), ..*want };
        self.strike(Call::Claim, want.limit, self.memory.claim(&want)).await
    }

    async fn extend(
        &self,
        worker: WorkerId,
        leases: &[Lease],
        lease: Duration,
    ) -> Result<Vec<(Lease, Revocation)>> {
        self.strike(Call::Extend, leases.len(), self.memory.extend(worker, leases, lease)).await
    }

    async fn settle(&self, done: &[Settled], next: &HandOff<'_>) -> Result<SettleReply> {
        let mut unstored = Unstored { backend: self, done };
        let reply = self.strike(Call::Settle, done.len(), self.memory.settle(done, next)).await;
        if reply.as_ref().map_or_else(Error::is_transient, |_| true) {
            unstored.done = &[];
        }
        reply
    }

    async fn give_back(&self, leases: &[Lease]) -> Result<()> {
        self.strike(Call::GiveBack, leases.len(), self.memory.give_back(leases)).await
    }

    async fn rescue(&self, max_rescues: u32) -> Result<Rescued> {
        self.strike(Call::Rescue, 0, self.memory.rescue(max_rescues)).await
    }

    async fn leave(&self, worker: WorkerId) -> Result<()> {
        self.strike(Call::Leave, 0, self.memory.leave(worker)).await
    }

    async fn stats(&self) -> Result<Stats> {
        self.strike(Call::Stats, 0, self.memory.stats()).await
    }

    async fn get(&self, id: JobId) -> Result<JobInfo> {
        self.memory.get(id).await
    }
}
