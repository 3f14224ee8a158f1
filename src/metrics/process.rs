//! What one process has to tell.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;

use super::backlog::Backlog;
use super::enqueued::Enqueued;
use super::families as f;
use super::page::{MOST_TYPES, OTHER_TYPES, Page, type_label};
use super::{Source, Wanted};
use crate::backend::{Backend, Counts, Stats};
use crate::job::{JobId, NewJob};
use crate::worker::{Flavour, Worker};

const NANOSECONDS: f64 = 1e9;

/// The metrics of one client and its worker.
#[derive(Debug)]
pub struct Process {
    store: &'static str,
    enqueued: Enqueued,
    backlog: Backlog,
    worker: OnceLock<Arc<Worker>>,
}

impl Process {
    /// Of a client of this store.
    pub fn new(backend: &Arc<dyn Backend>) -> Self {
        Self {
            store: backend.guarantees().store,
            enqueued: Enqueued::default(),
            backlog: Backlog::new(Arc::clone(backend)),
            worker: OnceLock::new(),
        }
    }

    /// The worker has started. The first one counts.
    pub fn started(&self, worker: &Arc<Worker>) {
        let _ = self.worker.set(Arc::clone(worker));
    }

    /// Jobs have been stored; `ids` is the store's answer.
    pub fn enqueued(&self, jobs: &[NewJob], ids: &[JobId]) {
        self.enqueued.add(jobs, ids);
    }
}

#[async_trait]
impl Source for Process {
    async fn page(&self, wanted: Wanted) -> Page {
        let mut page = Page::default();
        let labels = format!("version=\"{}\",store=\"{}\"", env!("CARGO_PKG_VERSION"), self.store);
        page.add(&f::INFO, &labels, 1.0);
        for (name, count) in self.enqueued.read() {
            page.add(&f::ENQUEUED, &type_label(&name), count as f64);
        }
        match self.worker.get() {
            Some(worker) => add_worker(&mut page, worker),
            None => page.add(&f::READY, "", 0.0),
        }
        if wanted == Wanted::WithStore {
            let stats = self.backlog.look().await;
            page.add(&f::STORE_UP, "", f64::from(u8::from(stats.is_some())));
            if let Some(stats) = stats {
                add_store(&mut page, &stats);
            }
        }
        page
    }
}

fn add_worker(page: &mut Page, worker: &Worker) {
    page.add(&f::READY, "", f64::from(u8::from(!worker.is_stopping())));
    let counted = worker.counted();
    page.add(&f::GIVEN_BACK, "", counted.given_back as f64);
    page.add(&f::RESCUED, "", counted.rescued as f64);
    page.add(&f::STORE_ERRORS, "", counted.store_errors as f64);
    let observed = worker.observe();
    for (place, (job_type, started, ends)) in observed.types.iter().enumerate() {
        let label = type_label(if place < MOST_TYPES { job_type.as_str() } else { OTHER_TYPES });
        page.add(&f::STARTED, &label, *started as f64);
        page.add(&f::FINISHED, &label, ends.finished as f64);
        page.add(&f::FAILED, &label, ends.failed as f64);
        page.add(&f::RETRIED, &label, ends.retried as f64);
        page.add(&f::CANCELLED, &label, ends.cancelled as f64);
        page.add(&f::LOST, &label, ends.lost as f64);
        page.add_histogram(&f::DURATION, &label, &ends.ran, NANOSECONDS);
        page.add_histogram(&f::WAIT, &label, &ends.waited, NANOSECONDS);
    }
    page.add_histogram(&f::BATCH, "", &observed.batches, 1.0);
    for lane in &observed.lanes {
        let label = match lane.flavour {
            Flavour::Sync => "handler=\"def\"",
            Flavour::Async => "handler=\"async def\"",
        };
        page.add(&f::SLOTS, label, lane.slots as f64);
        page.add(&f::SLOTS_IN_USE, label, lane.in_use as f64);
    }
    page.add(&f::STUCK, "", observed.stuck as f64);
    page.add(&f::BEAT_LATENESS, "", observed.beat_lateness.as_secs_f64());
}

fn add_store(page: &mut Page, stats: &Stats) {
    if let Some(workers) = stats.workers {
        page.add(&f::WORKERS, "", workers as f64);
    }
    if stats.by_type.is_empty() {
        // Nothing there, or a store that tells no types apart.
        return add_counts(page, "", &stats.total);
    }
    for (job_type, counts) in stats.by_type.iter().take(MOST_TYPES) {
        add_counts(page, &format!("{},", type_label(job_type)), counts);
    }
    if stats.by_type.len() > MOST_TYPES {
        let others = Counts::sum(stats.by_type.values().skip(MOST_TYPES));
        add_counts(page, &format!("{},", type_label(OTHER_TYPES)), &others);
    }
}

/// `label` is that of the type, with a comma; empty for all together.
fn add_counts(page: &mut Page, label: &str, counts: &Counts) {
    for (state, count) in counts.by_state() {
        if let Some(count) = count {
            page.add(&f::JOBS, &format!("{label}state=\"{}\"", state.as_str()), count as f64);
        }
    }
    if let Some(age) = counts.oldest_ready {
        page.add(&f::OLDEST, label.trim_end_matches(','), age.as_secs_f64());
    }
}
