//! SQS in this process, on the runtime's clock: the rules of FIFO queues behind the SDK's own HTTP client.

mod rules;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{
    BehaviorVersion, Credentials, Region, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_types::date_time::{DateTime, Format};
use dejq::backend::Options;
use dejq::backend::sqs::SqsBackend;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use self::rules::Queue;

/// What goes wrong with one call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answered with this status and code instead of being done.
    Refuse(u16, &'static str),
    /// Done, and the answer lost.
    LoseReply,
    /// Lost on its way there.
    LoseRequest,
    /// Done so much later.
    HoldRequest(Duration),
    /// Done, and answered so much later.
    HoldReply(Duration),
    /// Done but for the entries at these places, which failed on the side of SQS.
    FailEntries(Vec<usize>),
}

/// An account with queues.
#[derive(Debug)]
pub struct Fake {
    queues: Mutex<BTreeMap<String, Queue>>,
    faults: Mutex<VecDeque<(String, Fault)>>,
    calls: Mutex<BTreeMap<String, u64>>,
    changed: Notify,
    /// By how many seconds the dates of its answers are wrong.
    clock: AtomicI64,
    start: Instant,
    epoch: SystemTime,
}

impl Fake {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            queues: Mutex::default(),
            faults: Mutex::default(),
            calls: Mutex::default(),
            changed: Notify::new(),
            clock: AtomicI64::new(0),
            start: Instant::now(),
            epoch: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        })
    }

    /// A client of dejq. Its clock is that of the queue.
    pub fn connect(self: &Arc<Self>, url: &str, options: &[(&str, &str)]) -> Arc<SqsBackend> {
        let given = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut options = Options::new(given);
        options.add_query(url);
        let backend = SqsBackend::over(self.client(), url, &mut options, self.now()).unwrap();
        options.finish().unwrap();
        backend
    }

    /// A client of the SDK.
    pub fn client(self: &Arc<Self>) -> Client {
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("key", "secret", None, None, "tests"))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(SharedHttpClient::new(wire::Wire(Arc::clone(self))))
            .build();
        Client::from_conf(config)
    }

    /// The time there.
    pub fn now(&self) -> SystemTime {
        self.epoch + self.start.elapsed()
    }

    /// Dates of answers are wrong by so many seconds from now on.
    pub fn set_clock(&self, seconds: i64) {
        self.clock.store(seconds, Ordering::Relaxed);
    }

    fn date(&self) -> String {
        let seconds = self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        let date = DateTime::from_secs(seconds + self.clock.load(Ordering::Relaxed));
        date.fmt(Format::HttpDate).unwrap()
    }

    pub fn queues(&self) -> MutexGuard<'_, BTreeMap<String, Queue>> {
        self.queues.lock().unwrap()
    }

    /// Bodies of what is in a queue, in order.
    pub fn bodies(&self, queue: &str) -> Vec<String> {
        self.queues()[queue].messages.iter().map(|message| message.body.clone()).collect()
    }

    /// The next call of this kind fails, and so on for each time this is said.
    pub fn fail(&self, call: &str, fault: Fault) {
        self.faults.lock().unwrap().push_back((call.to_owned(), fault));
    }

    /// Calls of this kind so far.
    pub fn calls(&self, call: &str) -> u64 {
        self.calls.lock().unwrap().get(call).copied().unwrap_or_default()
    }

    pub fn all_calls(&self) -> BTreeMap<String, u64> {
        self.calls.lock().unwrap().clone()
    }

    fn next_fault(&self, call: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let at = faults.iter().position(|(of, _)| of == call)?;
        faults.remove(at).map(|(_, fault)| fault)
    }
}
