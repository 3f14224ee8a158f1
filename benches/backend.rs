//! What one call to a store costs, by batch size: enqueue, and claim with settle.
//!
//! `cargo bench --bench backend`. `DEJQ_BENCH_URLS="postgresql://… redis://…"` adds stores to `memory://`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dejq::backend::{Backend, Claim, HandOff, Lease, Leased, Options, Outcome, Settled, WorkerId, connect};
use dejq::job::{Body, JobId, JobType, NewJob};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const BATCHES: [usize; 4] = [1, 10, 100, 1_000];
const TYPES: usize = 1_000;
const LEASE: Duration = Duration::from_secs(60);
/// Jobs in the store at once while it is measured.
const BACKLOG: usize = 10_000;
/// About as long as the bodies of the comparison with other queues.
const BODY: &[u8] = br#"{"n": 123456, "s": "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"}"#;

fn fail<T>(error: impl std::fmt::Display) -> T {
    panic!("the store does not answer: {error}")
}

/// A store, and a worker on it that does nothing but claim and settle.
struct Bench {
    name: String,
    runtime: Runtime,
    store: Arc<dyn Backend>,
    types: Vec<JobType>,
    worker: WorkerId,
}

impl Bench {
    fn new(url: &str) -> Self {
        let runtime = Runtime::new().unwrap_or_else(fail);
        let store = runtime.block_on(async { connect(url, &mut Options::default()) }).unwrap_or_else(fail);
        let types = (0..TYPES).map(|n| JobType::new(&format!("bench:{n}")).unwrap_or_else(fail)).collect();
        let name = store.guarantees().store.to_owned();
        Self { name, runtime, store, types, worker: WorkerId(JobId::generate()) }
    }

    /// Jobs in batches, of the first `types` types in turn.
    fn jobs(&self, batches: usize, batch: usize, types: usize) -> Vec<Vec<NewJob>> {
        let body = Body::from_encoder(BODY);
        let mut types = self.types[..types].iter().cycle();
        let mut one = || types.next().map(|name| NewJob::single(name.clone(), body.clone()));
        (0..batches).map(|_| (0..batch).filter_map(|_| one()).collect()).collect()
    }

    async fn enqueue(&self, batches: &[Vec<NewJob>]) {
        for batch in batches {
            black_box(self.store.enqueue(batch).await.unwrap_or_else(fail));
        }
    }

    /// Claims and settles in batches until nothing of the first `types` types is left.
    async fn drain(&self, batch: usize, types: usize) {
        let stop = CancellationToken::new();
        let want = Claim {
            worker: self.worker,
            types: &self.types[..types],
            limit: batch,
            lease: LEASE,
            wait: Duration::ZERO,
            stop: &stop,
        };
        let next = HandOff { worker: self.worker, types: want.types, lease: LEASE };
        loop {
            let leased = self.store.claim(&want).await.unwrap_or_else(fail);
            if leased.is_empty() {
                return;
            }
            let done: Vec<Settled> = leased.iter().map(finished).collect();
            black_box(self.store.settle(&done, &next).await.unwrap_or_else(fail));
        }
    }

    /// How long `rounds` enqueue calls take; the store is emptied in between, outside the time.
    fn time_enqueue(&self, rounds: u64, batch: usize) -> Duration {
        in_portions(rounds, batch, |portion| {
            let batches = self.jobs(portion, batch, 1);
            let start = Instant::now();
            self.runtime.block_on(self.enqueue(&batches));
            let took = start.elapsed();
            self.runtime.block_on(self.drain(1_000, 1));
            took
        })
    }

    /// How long `rounds` pairs of claim and settle take; the store is filled in between, outside the time.
    fn time_drain(&self, rounds: u64, batch: usize, types: usize) -> Duration {
        in_portions(rounds, batch, |portion| {
            self.runtime.block_on(self.enqueue(&self.jobs(portion, batch, types)));
            let start = Instant::now();
            self.runtime.block_on(self.drain(batch, types));
            start.elapsed()
        })
    }
}

/// Times many rounds without a backlog that grows with their number.
fn in_portions(rounds: u64, batch: usize, time: impl Fn(usize) -> Duration) -> Duration {
    let (mut left, mut took) = (rounds as usize, Duration::ZERO);
    while left > 0 {
        let portion = left.min(BACKLOG / batch);
        took += time(portion);
        left -= portion;
    }
    took
}

fn finished(leased: &Leased) -> Settled {
    Settled { lease: Lease { id: leased.job.id, token: leased.token }, outcome: Outcome::Finished }
}

fn stores() -> Vec<Bench> {
    let more = std::env::var("DEJQ_BENCH_URLS").unwrap_or_default();
    ["memory://"].into_iter().chain(more.split_whitespace()).map(Bench::new).collect()
}

fn by_batch(c: &mut Criterion) {
    for bench in stores() {
        let mut group = c.benchmark_group(format!("{}/enqueue", bench.name));
        for batch in BATCHES {
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::from_parameter(batch), |b| {
                b.iter_custom(|rounds| bench.time_enqueue(rounds, batch));
            });
        }
        group.finish();

        let mut group = c.benchmark_group(format!("{}/claim+settle", bench.name));
        for batch in BATCHES {
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::from_parameter(batch), |b| {
                b.iter_custom(|rounds| bench.time_drain(rounds, batch, 1));
            });
        }
        group.finish();

        // Jobs of so many types are waiting, and the worker has a handler for each of them.
        let mut group = c.benchmark_group(format!("{}/claim+settle of {TYPES} types", bench.name));
        for batch in [10, 1_000] {
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::from_parameter(batch), |b| {
                b.iter_custom(|rounds| bench.time_drain(rounds, batch, TYPES));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = by_batch
}
criterion_main!(benches);
