//! Jobs in this process: a real queue with leases, chains and delays, and the reference that the other
//! backends are tested against. Everything is lost when the process ends.

mod line;
mod store;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::store::Store;
use crate::backend::{
    Backend, Claim, Filter, Guarantees, HandOff, Lease, Leased, Rescued, Revocation, SettleReply, Settled,
    Stats, WorkerId,
};
use crate::error::Result;
use crate::job::{JobId, JobInfo, NewJob};

/// How a memory queue is set up.
#[derive(Debug, Clone, Copy)]
pub struct MemoryOptions {
    /// Most bytes of one body. As small as on the server backends, so that tests refuse what production would.
    pub max_body: usize,
    /// Finished jobs kept for inspection; the counts stay exact. Ten times as many failed and cancelled ones
    /// are kept.
    pub keep_finished: usize,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self { max_body: 1024 * 1024, keep_finished: 1_000 }
    }
}

/// The store of one `memory://` queue.
pub struct MemoryBackend {
    store: Mutex<Store>,
    /// Fired when a job becomes ready, or a due time comes nearer.
    wake: Notify,
    options: MemoryOptions,
}

/// Named queues, by process and name: those that a forked child finds are copies of its parent's. Weak: a queue
/// lives as long as one of its clients.
static NAMED: Mutex<Option<HashMap<ProcessAndName, Weak<MemoryBackend>>>> = Mutex::new(None);

type ProcessAndName = (u32, String);

impl MemoryBackend {
    /// A queue of its own.
    pub fn new(options: MemoryOptions) -> Arc<Self> {
        Arc::new(Self { store: Mutex::new(Store::new(options.keep_finished)), wake: Notify::new(), options })
    }

    /// The queue of this name, made by the first who asks; later options are ignored.
    pub fn named(name: &str, options: MemoryOptions) -> Arc<Self> {
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        let named = named.get_or_insert_default();
        let key = (std::process::id(), name.to_owned());
        if let Some(queue) = named.get(&key).and_then(Weak::upgrade) {
            return queue;
        }
        named.retain(|_, queue| queue.strong_count() > 0);
        let queue = Self::new(options);
        named.insert(key, Arc::downgrade(&queue));
        queue
    }

    /// No code panics while it holds the lock on purpose; if one does, the state is still consistent enough
    /// to serve: every transition checks what it finds.
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a change that may have made jobs ready.
    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let result = change(&mut self.lock());
        self.wake.notify_waiters();
        result
    }
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackend").field("options", &self.options).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn guarantees(&self) -> Guarantees {
        Guarantees {
            store: "memory",
            durable: false,
            filters_types: true,
            in_process: true,
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
            max_body: self.options.max_body,
        }
    }

    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<JobId>> {
        Ok(self.change(|store| store.enqueue(jobs)))
    }

    async fn claim(&self, want: &Claim<'_>) -> Result<Vec<Leased>> {
        let deadline = Instant::now() + want.wait;
        loop {
            // Registered before the look into the store, so that no enqueue in between is missed.
            let mut woken = std::pin::pin!(self.wake.notified());
            woken.as_mut().enable();
            let next_due = {
                let mut store = self.lock();
                let jobs = store.claim(want);
                if !jobs.is_empty() {
                    return Ok(jobs);
                }
                store.next_due()
            };
            if want.stop.is_cancelled() || Instant::now() >= deadline {
                return Ok(Vec::new());
            }
            let until = next_due.map_or(deadline, |due| due.min(deadline));
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(until) => {}
                () = want.stop.cancelled() => {}
            }
        }
    }

    async fn extend(
        &self,
        worker: WorkerId,
        leases: &[Lease],
        lease: Duration,
    ) -> Result<Vec<(Lease, Revocation)>> {
        Ok(self.lock().extend(worker, leases, lease))
    }

    async fn settle(&self, done: &[Settled], next: &HandOff<'_>) -> Result<SettleReply> {
        Ok(self.change(|store| store.settle(done, next)))
    }

    async fn give_back(&self, leases: &[Lease]) -> Result<()> {
        self.change(|store| store.give_back(leases));
        Ok(())
    }

    async fn rescue(&self, max_rescues: u32) -> Result<Rescued> {
        Ok(self.change(|store| store.rescue(max_rescues)))
    }

    async fn stats(&self) -> Result<Stats> {
        Ok(self.lock().stats())
    }

    async fn leave(&self, worker: WorkerId) -> Result<()> {
        self.lock().leave(worker);
        Ok(())
    }

    async fn get(&self, id: JobId) -> Result<JobInfo> {
        self.lock().get(id)
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<JobInfo>> {
        Ok(self.lock().list(filter))
    }

    async fn unresponsive(&self, older_than: Duration) -> Result<Vec<JobInfo>> {
        Ok(self.lock().unresponsive(older_than))
    }

    async fn finish(&self, id: JobId) -> Result<()> {
        self.change(|store| store.finish(id))
    }

    async fn requeue(&self, id: JobId) -> Result<()> {
        self.change(|store| store.requeue(id))
    }

    async fn cancel(&self, id: JobId) -> Result<()> {
        self.change(|store| store.cancel(id))
    }

    async fn delete_finished(&self, older_than: Duration, batch: usize) -> Result<u64> {
        Ok(self.lock().delete_finished(older_than, batch))
    }

    async fn promote(&self) -> Result<u64> {
        Ok(self.change(|store| store.make_due(None)))
    }

    async fn vacuum(&self) -> Result<()> {
        self.lock().shrink();
        Ok(())
    }
}
