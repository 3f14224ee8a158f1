//! What the engine costs for a job that does nothing: everything between `enqueue` and the stored end, with
//! threads in Rust where Python's would be. The memory store takes no time to speak of, so this is the engine.
//!
//! `cargo bench --bench worker`.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use dejq::backend::Backend;
use dejq::backend::memory::{MemoryBackend, MemoryOptions};
use dejq::job::{Body, JobType, NewJob, OnFailure};
use dejq::worker::{Attempt, Flavour, HandlerSpec, Handlers, Worker, WorkerConfig};
use tokio::runtime::{Builder, Runtime};

const JOBS: usize = 50_000;
const CHAIN: usize = 100;
/// Long enough for the worker to fall asleep in every part.
const PAUSE: Duration = Duration::from_millis(3);

fn fail<T>(error: impl std::fmt::Display) -> T {
    panic!("the bench itself failed: {error}")
}

/// The runtime as the Python client makes it: one thread for everything but the handlers.
fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap_or_else(fail)
}

fn job_type() -> JobType {
    JobType::new("bench").unwrap_or_else(fail)
}

fn start(runtime: &Runtime, store: &Arc<MemoryBackend>, slots: usize) -> Arc<Worker> {
    let spec = HandlerSpec {
        job_type: job_type(),
        flavour: Flavour::Sync,
        max_attempts: None,
        backoff: None,
        timeout: None,
    };
    let mut handlers = Handlers::default();
    handlers.add(spec).unwrap_or_else(fail);
    let config = WorkerConfig { workers: slots, ..WorkerConfig::default() };
    let store: Arc<dyn Backend> = Arc::clone(store) as _;
    Arc::new(Worker::start(runtime.handle(), store, handlers, config).unwrap_or_else(fail))
}

/// Threads that run `handler` on every task, in the way of the Python threads.
fn executors(worker: &Arc<Worker>, handler: impl Fn() + Send + Clone + 'static) -> Vec<JoinHandle<()>> {
    let run = |worker: Arc<Worker>, handler: &dyn Fn()| {
        while let Some(task) = worker.try_next(0).or_else(|| worker.next(0)) {
            black_box(&task);
            handler();
            worker.ended(task, Attempt::Finished);
        }
    };
    (0..worker.slots(0))
        .map(|_| {
            let (worker, handler) = (Arc::clone(worker), handler.clone());
            std::thread::spawn(move || run(worker, &handler))
        })
        .collect()
}

/// From the start of a worker on a full store to the end of its stop, when every end is stored.
fn time_drain(runtime: &Runtime, jobs: &[NewJob], slots: usize) -> Duration {
    let store = MemoryBackend::new(MemoryOptions::default());
    runtime.block_on(store.enqueue(jobs)).unwrap_or_else(fail);
    let (left, (all_done, is_done)) = (Arc::new(AtomicUsize::new(jobs.len())), channel());
    let begin = Instant::now();
    let worker = start(runtime, &store, slots);
    let threads = executors(&worker, move || {
        if left.fetch_sub(1, Ordering::Relaxed) == 1 {
            all_done.send(()).unwrap_or_else(fail);
        }
    });
    is_done.recv().unwrap_or_else(fail);
    runtime.block_on(worker.stop(None));
    let took = begin.elapsed();
    for thread in threads {
        thread.join().unwrap_or_else(|_| fail("a thread panicked"));
    }
    assert_eq!(worker.counted().finished, jobs.len() as u64);
    took
}

fn singles() -> Vec<NewJob> {
    let (name, body) = (job_type(), Body::from_encoder(b"{\"n\": 1}"));
    (0..JOBS).map(|_| NewJob::single(name.clone(), body.clone())).collect()
}

fn chains(count: usize) -> Vec<NewJob> {
    let mut jobs: Vec<NewJob> = singles().into_iter().take(count * CHAIN).collect();
    for chain in jobs.chunks_mut(CHAIN) {
        NewJob::link(chain, OnFailure::Continue).unwrap_or_else(fail);
    }
    jobs
}

fn drain(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("drain");
    group.sampling_mode(SamplingMode::Flat);
    for (name, jobs) in
        [("no-op jobs", singles()), ("chains of 100", chains(JOBS / CHAIN)), ("one chain of 100", chains(1))]
    {
        group.throughput(Throughput::Elements(jobs.len() as u64));
        for slots in [1, 4] {
            group.bench_function(BenchmarkId::new(name, format!("{slots} threads")), |b| {
                b.iter_custom(|rounds| (0..rounds).map(|_| time_drain(&runtime, &jobs, slots)).sum());
            });
        }
    }
    group.finish();
}

/// From the call of `enqueue` to the start of the handler, in a worker that was idle.
fn latency(c: &mut Criterion) {
    let runtime = runtime();
    let store = MemoryBackend::new(MemoryOptions::default());
    let worker = start(&runtime, &store, 1);
    let (started, starts): (Sender<Instant>, _) = channel();
    let threads = executors(&worker, move || started.send(Instant::now()).unwrap_or_else(fail));
    let (name, body) = (job_type(), Body::from_encoder(b"{}"));
    let time_one = || {
        std::thread::sleep(PAUSE);
        let job = [NewJob::single(name.clone(), body.clone())];
        let call = Instant::now();
        runtime.block_on(store.enqueue(&job)).unwrap_or_else(fail);
        starts.recv().unwrap_or_else(fail) - call
    };
    let mut group = c.benchmark_group("idle latency");
    // Each measured latency costs a pause a hundred times as long.
    group
        .sampling_mode(SamplingMode::Flat)
        .warm_up_time(Duration::from_millis(5))
        .measurement_time(Duration::from_millis(30));
    group.bench_function("enqueue call to handler start", |b| {
        b.iter_custom(|rounds| (0..rounds).map(|_| time_one()).sum());
    });
    group.finish();
    runtime.block_on(worker.stop(None));
    for thread in threads {
        thread.join().unwrap_or_else(|_| fail("a thread panicked"));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = drain, latency
}
criterion_main!(benches);
