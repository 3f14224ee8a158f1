//! What a job is: a type, a JSON body, and its place in a chain.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::IgnoredAny;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};

/// Most bytes of a job type.
pub const MAX_TYPE_BYTES: usize = 128;
/// Deepest nesting of a body. `serde_json` stops at the same depth, Python's parser near 1,000.
pub const MAX_BODY_DEPTH: usize = 128;
/// Most bytes of a unique key.
pub const MAX_UNIQUE_BYTES: usize = 256;
/// Most bytes of all headers of a job together.
pub const MAX_HEADER_BYTES: usize = 8 * 1024;

/// Names one job for ever. `UUIDv7` (RFC 9562 §5.7), made by the client and increasing within a process, so
/// that sorting by id is sorting by enqueue time and a repeated enqueue can be recognised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Uuid);

impl JobId {
    /// A new id, greater than every id made by this process before.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The 16 bytes of the UUID.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The UUID itself.
    pub const fn as_uuid(&self) -> &Uuid {
        &self.0
    }

    /// Takes an id that a store has kept.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// Writes the usual text form (36 characters, lower case) into `buffer`.
    pub fn encode<'a>(&self, buffer: &'a mut [u8; 36]) -> &'a str {
        self.0.hyphenated().encode_lower(buffer)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Uuid::parse_str(text).map(Self).map_err(|error| {
            Error::new(
                ErrorKind::UnknownJob,
                format!("{text:?} is not a job id; ids are UUIDs, as `enqueue` returns them"),
            )
            .with_source(error)
        })
    }
}

/// The name that finds a job's handler: 1 to 128 of `A-Z a-z 0-9 _ . : / -`, the characters that every store,
/// log and metric takes unchanged.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobType(Arc<str>);

impl JobType {
    /// Checks and takes a type.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when it is empty, too long or has another character.
    pub fn new(name: &str) -> Result<Self> {
        let wrong = name.bytes().position(|byte| !(byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte)));
        let why = if name.is_empty() {
            "is empty".to_owned()
        } else if name.len() > MAX_TYPE_BYTES {
            format!("has {} bytes, {MAX_TYPE_BYTES} is the most", name.len())
        } else if let Some(at) = wrong {
            let character = name[..].chars().find(|c| !(c.is_ascii_alphanumeric() || "_.:/-".contains(*c)));
            format!("has {:?} at byte {at}", character.unwrap_or_default())
        } else {
            return Ok(Self(name.into()));
        };
        let shown: String = name.chars().take(40).collect();
        Err(Error::config(format!(
            "job type {shown:?} {why}; a type names its handler and travels through stores, logs and metrics, \
             so use 1 to {MAX_TYPE_BYTES} of A-Z a-z 0-9 _ . : / - (for example \"email:v1\")"
        )))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is this the very same allocation? A cheap first test where neighbours often share their type.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Borrow<str> for JobType {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JobType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// A JSON document as UTF-8 text, shared and never changed. The core passes it through unread.
#[derive(Clone, PartialEq, Eq)]
pub struct Body(Arc<[u8]>);

impl Body {
    /// Checks that `text` is one JSON value (RFC 8259) and takes it.
    ///
    /// # Errors
    /// [`ErrorKind::Body`] with the line and column where it stops being JSON.
    pub fn from_json(text: &[u8]) -> Result<Self> {
        match serde_json::from_slice::<IgnoredAny>(text) {
            Ok(_) => Ok(Self(text.into())),
            Err(error) => Err(Error::new(ErrorKind::Body, format!("the body is not JSON: {error}"))),
        }
    }

    /// Takes `text` that an encoder of ours has just written, so that it is not parsed again.
    pub fn from_encoder(text: &[u8]) -> Self {
        Self(text.into())
    }

    /// The JSON text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Body {
    /// Shows the size only: bodies stay out of logs and error texts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.0.len())
    }
}

/// Text that travels beside the body: trace context, tenant, and the like.
pub type Headers = BTreeMap<String, String>;

/// What becomes of the rest of a chain when one of its jobs ends as failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// The next job runs all the same; the application keeps its own error state.
    #[default]
    Continue,
    /// The rest is cancelled.
    Cancel,
}

/// A job's place among the jobs of one `enqueue` call. A single job is a chain of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainPlace {
    /// Id of the chain: that of its first job.
    pub id: JobId,
    /// Counts from 1.
    pub position: u32,
    /// Jobs in the chain.
    pub length: u32,
}

/// A job as the client describes it to a backend.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Made by the client.
    pub id: JobId,
    /// Finds the handler.
    pub job_type: JobType,
    /// What the handler works on.
    pub body: Body,
    /// How long to wait after the job could run: after the enqueue or, later in a chain, after the job before.
    pub delay: Duration,
    /// Overrides the handler's and the worker's setting.
    pub max_attempts: Option<NonZeroU32>,
    /// While a job of this type and key is not final, another one is not stored. Single jobs only.
    pub unique: Option<Arc<str>>,
    /// Text that travels with the job.
    pub headers: Option<Arc<Headers>>,
    /// Where it stands; the jobs of a chain follow each other in the slice given to `Backend::enqueue`.
    pub chain: ChainPlace,
    /// The same for all jobs of a chain.
    pub on_failure: OnFailure,
}

impl NewJob {
    /// A single job with default options.
    pub fn single(job_type: JobType, body: Body) -> Self {
        let id = JobId::generate();
        Self {
            id,
            job_type,
            body,
            delay: Duration::ZERO,
            max_attempts: None,
            unique: None,
            headers: None,
            chain: ChainPlace { id, position: 1, length: 1 },
            on_failure: OnFailure::Continue,
        }
    }

    /// Links jobs made by [`NewJob::single`] into one chain, in the order given.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when there are none, or when several are chained and one has a unique key:
    /// storing only a part of a chain would break its order.
    pub fn link(jobs: &mut [Self], on_failure: OnFailure) -> Result<()> {
        let Some(first) = jobs.first() else {
            return Err(Error::config("enqueue() was given no job; pass at least one PendingJob"));
        };
        let id = first.id;
        let length =
            u32::try_from(jobs.len()).map_err(|_| Error::config("a chain this long is a mistake"))?;
        if length > 1 && jobs.iter().any(|job| job.unique.is_some()) {
            return Err(Error::config(
                "unique= works for single jobs only, and this job is part of a chain: \
                 a chain must be stored whole or not at all; enqueue the unique job alone",
            ));
        }
        for (job, position) in jobs.iter_mut().zip(1..) {
            job.chain = ChainPlace { id, position, length };
            job.on_failure = on_failure;
        }
        Ok(())
    }
}

/// A job as it comes out of a backend for a run.
#[derive(Debug, Clone)]
pub struct Job {
    /// The id that `enqueue` returned.
    pub id: JobId,
    /// Finds the handler.
    pub job_type: JobType,
    /// The JSON that was enqueued, byte for byte.
    pub body: Body,
    /// Text that travelled with the job.
    pub headers: Option<Arc<Headers>>,
    /// 1 on the first run; grows with each retry, not with a rescue or a give-back.
    pub attempt: u32,
    /// As the job itself asked, if it did.
    pub max_attempts: Option<NonZeroU32>,
    /// The number of the last attempt that the store grants, where it has a say.
    pub last_attempt: Option<NonZeroU32>,
    /// When the store took it.
    pub enqueued_at: SystemTime,
    /// Its place in its chain.
    pub chain: ChainPlace,
}

/// Where a job stands. The words are those of SQL, logs and command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The job before it in its chain is not final.
    Blocked,
    /// Not due yet: a delay or a retry.
    Scheduled,
    /// Waiting for a worker.
    Ready,
    /// A worker holds its lease.
    Running,
    /// Final: its handler returned, or an operator said so.
    Finished,
    /// Final: its attempts or rescues are used up.
    Failed,
    /// Final: an operator, `max_beats` or `on_failure="cancel"` ended it.
    Cancelled,
}

impl State {
    /// Every state, in the order of a job's life.
    pub const ALL: [Self; 7] = [
        Self::Blocked,
        Self::Scheduled,
        Self::Ready,
        Self::Running,
        Self::Finished,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Will nothing happen to the job any more, unless an operator asks for it?
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Scheduled => "scheduled",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl FromStr for State {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|state| state.as_str()).collect();
            Error::config(format!("there is no state {text:?}; the states are {}", known.join(", ")))
        })
    }
}

/// Why an attempt did not succeed, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Name of the exception's class, or dejq's word for it ("worker lost").
    pub kind: String,
    /// The exception's text.
    pub message: String,
    /// The formatted traceback, cut in the middle when it is very long.
    pub traceback: Option<String>,
}

impl Failure {
    /// A failure without a traceback.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: kind.into(), message: message.into(), traceback: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            f.write_str(&self.kind)
        } else {
            write!(f, "{}: {}", self.kind, self.message)
        }
    }
}

/// A job as an operator sees it.
#[derive(Debug, Clone)]
pub struct JobInfo {
    /// The job; `attempt` is the last one started, 0 before the first.
    pub job: Job,
    /// Where it stands.
    pub state: State,
    /// When a scheduled job becomes ready.
    pub due_at: Option<SystemTime>,
    /// When the current or last attempt started.
    pub started_at: Option<SystemTime>,
    /// When the lease was last renewed, while running.
    pub last_beat_at: Option<SystemTime>,
    /// When it became final.
    pub finished_at: Option<SystemTime>,
    /// How often its lease ran out.
    pub rescues: u32,
    /// Why the last attempt did not succeed.
    pub failure: Option<Failure>,
}

/// Milliseconds since the Unix epoch, the resolution in which stores keep times.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// The reverse of [`unix_ms`].
pub(crate) fn from_unix_ms(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_increase_and_read_back() {
        let ids: Vec<JobId> = (0..10_000).map(|_| JobId::generate()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(ids[0].to_string().parse::<JobId>().ok(), Some(ids[0]));
    }

    #[test]
    fn a_type_says_what_is_wrong_with_it() {
        assert!(JobType::new("email:v1").is_ok());
        assert!(JobType::new(&"x".repeat(128)).is_ok());
        for (name, why) in [("", "is empty"), ("a b", "' ' at byte 1"), ("é", "'é' at byte 0")] {
            let text = JobType::new(name).map(|_| ()).map_err(|error| error.to_string());
            assert!(text.as_ref().is_err_and(|text| text.contains(why)), "{name:?}: {text:?}");
        }
        let long = JobType::new(&"x".repeat(129)).map(|_| ()).map_err(|error| error.to_string());
        assert!(long.is_err_and(|text| text.contains("129 bytes")));
    }

    #[test]
    fn a_body_must_be_json_and_never_shows_itself() {
        assert!(Body::from_json(b"{\"a\": [1, 2.5, null]}").is_ok());
        assert!(Body::from_json(b"{'a': 1}").is_err());
        assert!(Body::from_json("[".repeat(200).as_bytes()).is_err());
        assert_eq!(format!("{:?}", Body::from_encoder(b"\"secret\"")), "Body(8 bytes)");
    }

    #[test]
    fn a_chain_is_numbered_from_one_and_refuses_unique_members() {
        let job =
            || NewJob::single(JobType::new("t").unwrap_or_else(|e| panic!("{e}")), Body::from_encoder(b"1"));
        let mut jobs = [job(), job(), job()];
        assert!(NewJob::link(&mut jobs, OnFailure::Cancel).is_ok());
        assert_eq!(jobs.each_ref().map(|job| job.chain.position), [1, 2, 3]);
        assert!(jobs.iter().all(|j| j.chain.id == jobs[0].id && j.chain.length == 3));
        jobs[1].unique = Some("k".into());
        assert!(NewJob::link(&mut jobs, OnFailure::Cancel).is_err());
        assert!(NewJob::link(&mut [], OnFailure::Continue).is_err());
    }
}
