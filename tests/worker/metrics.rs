//! Metrics: the store is asked rarely, several processes add up, and HTTP answers whatever else is stuck.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dejq::backend::Backend;
use dejq::metrics::{self, MOST_TYPES, OTHER_TYPES, Page, Process, Reporter, Source, Team, Wanted};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::executor::Executor;
use crate::faulty::{Call, Fault, Gate};
use crate::stage::{Stage, job, pass, settle_down, slots, spec, within};

fn process(stage: &Stage) -> Arc<Process> {
    let backend: Arc<dyn Backend> = Arc::clone(&stage.store) as _;
    Arc::new(Process::new(&backend))
}

fn at_work(stage: &Stage, names: &[&str]) -> (Arc<Process>, Executor) {
    let (process, worker) = (process(stage), stage.start(names.iter().map(|name| spec(name)), slots(4)));
    process.started(&worker.worker);
    (process, worker)
}

async fn text(source: &dyn Source) -> String {
    source.page(Wanted::WithStore).await.text()
}

/// The value of a sample; `None` when it is not there.
fn value(text: &str, sample: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

// ---- one process -------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn the_page_says_what_was_done_and_what_is_left() {
    let stage = Stage::new();
    let process = process(&stage);
    assert_eq!(value(&text(&*process).await, "dejq_ready_processes"), Some(0.0), "nothing has started");
    let worker = stage.start([spec("a")], slots(4));
    process.started(&worker.worker);
    let jobs: Vec<_> = (0..3).map(|_| job("a")).chain([job("b")]).collect();
    let ids = stage.add(&jobs).await;
    process.enqueued(&jobs, &ids);
    let mut tasks = worker.take_all(3).await;
    worker.finish(tasks.remove(0));
    worker.fail(tasks.remove(0));
    settle_down().await;
    pass(Duration::from_secs(5)).await;
    let text = text(&*process).await;
    for (sample, expected) in [
        ("dejq_ready_processes", 1.0),
        ("dejq_jobs_enqueued_total{type=\"a\"}", 3.0),
        ("dejq_jobs_enqueued_total{type=\"b\"}", 1.0),
        ("dejq_jobs_started_total{type=\"a\"}", 3.0),
        ("dejq_jobs_finished_total{type=\"a\"}", 1.0),
        ("dejq_jobs_failed_total{type=\"a\"}", 1.0),
        ("dejq_job_duration_seconds_count{type=\"a\"}", 2.0),
        ("dejq_settle_batch_jobs_sum", 2.0),
        ("dejq_slots{handler=\"def\"}", 4.0),
        ("dejq_slots_in_use{handler=\"def\"}", 1.0),
        ("dejq_store_up", 1.0),
        ("dejq_jobs{type=\"a\",state=\"running\"}", 1.0),
        ("dejq_jobs{type=\"b\",state=\"ready\"}", 1.0),
    ] {
        assert_eq!(value(&text, sample), Some(expected), "{sample} in\n{text}");
    }
    assert!(value(&text, "dejq_oldest_ready_seconds{type=\"b\"}").is_some());
    worker.finish(tasks.remove(0));
    worker.stop().await;
    let text = process.page(Wanted::Own).await.text();
    assert_eq!((value(&text, "dejq_ready_processes"), value(&text, "dejq_store_up")), (Some(0.0), None));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_types_have_values_of_their_own_and_the_others_share_theirs() {
    let stage = Stage::new();
    let names: Vec<String> = (0..MOST_TYPES + 5).map(|number| format!("t{number:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in &names {
        stage.enqueue(name, 2).await;
    }
    let (process, _worker) = at_work(&stage, &names);
    settle_down().await;
    let text = text(&*process).await;
    let types = text.lines().filter(|line| line.starts_with("dejq_jobs_started_total{")).count();
    assert_eq!(types, MOST_TYPES + 1);
    let waiting = |name: &str| value(&text, &format!("dejq_jobs{{type=\"{name}\",state=\"ready\"}}"));
    assert_eq!((waiting(names[50]), waiting(OTHER_TYPES)), (Some(2.0), Some(10.0)));
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_readers_asks_the_store_once_in_five_seconds() {
    let stage = Stage::new();
    let process = process(&stage);
    for round in 1..=3 {
        let readers: Vec<_> = (0..100)
            .map(|_| {
                let process = Arc::clone(&process);
                tokio::spawn(async move { text(&*process).await })
            })
            .collect();
        for reader in readers {
            assert!(reader.await.unwrap().contains("\ndejq_store_up 1\n"));
        }
        assert_eq!(stage.store.count(Call::Stats), round);
        pass(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_or_hangs_is_down_and_nobody_waits_for_it() {
    let stage = Stage::new();
    stage.enqueue("a", 1).await;
    let process = process(&stage);
    stage.store.next(Call::Stats, 1, &Fault::Fail);
    let failing = text(&*process).await;
    assert!(failing.contains("\ndejq_store_up 0\n") && !failing.contains("dejq_jobs{"), "{failing}");
    pass(Duration::from_secs(5)).await;
    stage.store.always(Call::Stats, Fault::Hold(Gate::default()));
    let began = Instant::now();
    assert!(text(&*process).await.contains("\ndejq_store_up 0\n"));
    assert!(began.elapsed() < Duration::from_secs(3));
    stage.store.heal(Call::Stats);
    assert!(
        text(&*process).await.contains("\ndejq_jobs{type=\"a\",state=\"ready\"} 1\n"),
        "what hung is asked again"
    );
}

// ---- several processes -------------------------------------------------------------------------------------

fn pair(team: &Team, number: u32, source: Arc<dyn Source>) -> Reporter {
    let (here, there) = UnixStream::pair().unwrap();
    team.add(&Handle::current(), number, here).unwrap();
    Reporter::start(&Handle::current(), there, source).unwrap()
}

#[tokio::test]
async fn processes_add_up_and_one_of_them_asks_the_store() {
    let stage = Stage::new();
    let team = Team::default();
    let mut members = Vec::new();
    for number in 1..=3 {
        let (process, worker) = at_work(&stage, &["a"]);
        let reporter = pair(&team, number, process);
        members.push((worker, reporter));
    }
    stage.enqueue("a", 12).await;
    for (worker, _) in &members {
        worker.finish(worker.take().await);
    }
    stage.store.until(async || stage.stats().await.total.finished == Some(3)).await;
    let sum = text(&team).await;
    assert_eq!(value(&sum, "dejq_ready_processes"), Some(3.0));
    assert_eq!(value(&sum, "dejq_slots{handler=\"def\"}"), Some(12.0));
    assert_eq!(value(&sum, "dejq_jobs_started_total{type=\"a\"}"), Some(3.0));
    assert_eq!(value(&sum, "dejq_store_up"), Some(1.0));
    assert_eq!(value(&sum, "dejq_process_restarts_total"), Some(0.0));
    text(&team).await;
    assert_eq!(stage.store.count(Call::Stats), 1, "not once for each process");
}

#[tokio::test]
async fn counters_of_a_process_that_ends_stay_and_its_last_words_are_heard() {
    let stage = Stage::new();
    let team = Team::default();
    let (process, worker) = at_work(&stage, &["a"]);
    let reporter = pair(&team, 1, process);
    stage.enqueue_one("a").await;
    assert_eq!(value(&text(&team).await, "dejq_jobs_finished_total{type=\"a\"}"), Some(0.0));
    worker.finish(worker.take().await);
    worker.stop().await;
    reporter.finish().await;
    team.remove(1).await;
    team.restarted();
    let sum = text(&team).await;
    assert_eq!(value(&sum, "dejq_jobs_finished_total{type=\"a\"}"), Some(1.0));
    assert_eq!(value(&sum, "dejq_job_duration_seconds_count{type=\"a\"}"), Some(1.0));
    assert_eq!((value(&sum, "dejq_slots{handler=\"def\"}"), value(&sum, "dejq_store_up")), (None, None));
    let (process, _other) = at_work(&stage, &["a"]);
    let _reporter = pair(&team, 1, process);
    let sum = text(&team).await;
    assert_eq!(value(&sum, "dejq_jobs_finished_total{type=\"a\"}"), Some(1.0));
    assert_eq!(value(&sum, "dejq_process_restarts_total"), Some(1.0));
}

/// A source that hangs when it is told to.
#[derive(Debug)]
struct Hanging {
    process: Arc<Process>,
    hangs: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl Source for Hanging {
    async fn page(&self, wanted: Wanted) -> Page {
        if self.hangs.load(std::sync::atomic::Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.process.page(wanted).await
    }
}

#[tokio::test]
async fn a_process_that_hangs_keeps_its_counters_and_another_one_asks_the_store() {
    let stage = Stage::new();
    let team = Team::default();
    let (process, worker) = at_work(&stage, &["a"]);
    let hanging = Arc::new(Hanging { process, hangs: false.into() });
    let _first = pair(&team, 1, Arc::clone(&hanging) as _);
    let (process, _other) = at_work(&stage, &["b"]);
    let _second = pair(&team, 2, process);
    stage.enqueue_one("a").await;
    worker.finish(worker.take().await);
    stage.store.until(async || stage.stats().await.total.finished == Some(1)).await;
    assert_eq!(value(&text(&team).await, "dejq_ready_processes"), Some(2.0));
    hanging.hangs.store(true, std::sync::atomic::Ordering::SeqCst);
    text(&team).await;
    let sum = text(&team).await;
    assert_eq!(value(&sum, "dejq_ready_processes"), Some(1.0));
    assert_eq!(value(&sum, "dejq_jobs_finished_total{type=\"a\"}"), Some(1.0));
    assert_eq!(value(&sum, "dejq_store_up"), Some(1.0));
}

// ---- HTTP --------------------------------------------------------------------------------------------------

async fn serve(source: Arc<dyn Source>) -> std::net::SocketAddr {
    let server = metrics::bind("127.0.0.1:0").await.unwrap();
    let address = server.address();
    tokio::spawn(server.serve(source));
    address
}

async fn ask(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

fn status(answer: &str) -> &str {
    answer.lines().next().unwrap()
}

#[tokio::test]
async fn probes_and_metrics_are_answered_and_nothing_else() {
    let stage = Stage::new();
    let (process, worker) = at_work(&stage, &["a"]);
    let address = serve(process).await;
    let metrics = ask(address, "GET /metrics").await;
    assert_eq!(status(&metrics), "HTTP/1.1 200 OK");
    assert!(metrics.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{metrics}");
    assert!(metrics.contains("\ndejq_ready_processes 1\n"), "{metrics}");
    assert!(ask(address, "GET /metrics?name=x").await.contains("dejq_info"));
    assert!(ask(address, "GET /healthz").await.ends_with("\r\n\r\nok\n"));
    assert!(ask(address, "GET /readyz").await.ends_with("\r\n\r\nready\n"));
    assert!(ask(address, "HEAD /healthz").await.ends_with("\r\n\r\n"));
    assert_eq!(status(&ask(address, "GET /").await), "HTTP/1.1 404 Not Found");
    let refused = ask(address, "POST /metrics").await;
    assert_eq!(status(&refused), "HTTP/1.1 405 Method Not Allowed");
    assert!(refused.contains("\r\nallow: GET, HEAD\r\n"), "{refused}");
    worker.stop().await;
    let stopped = ask(address, "GET /readyz").await;
    assert_eq!(status(&stopped), "HTTP/1.1 503 Service Unavailable");
    assert!(stopped.ends_with("no process takes jobs: it is starting or stopping\n"), "{stopped}");
    assert!(ask(address, "GET /healthz").await.ends_with("\r\n\r\nok\n"), "it stops, and is alive");
}

#[tokio::test]
async fn a_worker_whose_store_does_not_answer_is_not_ready() {
    let stage = Stage::new();
    stage.store.always(Call::Stats, Fault::Fail);
    let (process, _worker) = at_work(&stage, &["a"]);
    let answer = ask(serve(process).await, "GET /readyz").await;
    assert_eq!(status(&answer), "HTTP/1.1 503 Service Unavailable");
    assert!(answer.ends_with("the store does not answer\n"), "{answer}");
}

#[tokio::test]
async fn those_who_say_nothing_keep_nobody_out() {
    let stage = Stage::new();
    let (process, _worker) = at_work(&stage, &["a"]);
    let address = serve(process).await;
    let mut silent = Vec::new();
    for _ in 0..31 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    assert!(ask(address, "GET /healthz").await.ends_with("ok\n"));
    // No more at once than there is room for.
    silent.push(TcpStream::connect(address).await.unwrap());
    let waits = tokio::spawn(async move { ask(address, "GET /healthz").await });
    drop(silent);
    assert!(waits.await.unwrap().ends_with("ok\n"));
}

#[tokio::test]
async fn an_address_that_is_taken_is_refused_with_what_to_type() {
    let taken = metrics::bind("127.0.0.1:0").await.unwrap();
    let error = metrics::bind(&taken.address().to_string()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("DEJQ-E100 metrics cannot be served at 127.0.0.1:"), "{text}");
    assert!(text.contains("in use") && text.contains("or port 0 for any"), "{text}");
}
