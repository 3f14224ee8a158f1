//! A job as text, as it is kept in the hash of jobs:
//!
//! ```text
//! 1764000000123456 email:v1                                          place, type
//! {"to": "ada@example.org"}                                          body
//!
//! 1764000000123456 email:v1 -c c=0193…:2:3x d=5000000 m=4 {"headers": {"tenant": "7"}}
//! {"to": "ada@example.org"}
//! ```
//!
//! The place is the time in microseconds at which the job was enqueued, or the next free one. The third word has the
//! flags c (one of a chain) and u (with a unique key). c= is the chain, the place in it and its length, with an x when a
//! failure cancels the rest; d= a delay in microseconds; m= the most attempts; what is in JSON is a unique key and
//! headers. A `!` before all of it says that its ticket in line is void.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use uuid::Uuid;

use super::errors::unreadable;
use crate::backend::remote::Types;
use crate::error::Result;
use crate::job::{Body, ChainPlace, Headers, Job, JobId, NewJob, OnFailure, from_unix_ms};

/// A delay beyond the calendar is as good as never.
const NEVER_MICROS: u128 = 9_000_000_000_000_000;

/// Whole microseconds.
pub(super) fn micros(time: Duration) -> u64 {
    time.as_micros().min(NEVER_MICROS) as u64
}

/// The time that a number of microseconds stands for.
pub(super) fn from_micros(micros: u64) -> SystemTime {
    from_unix_ms(micros / 1000)
}

/// Writes what follows the place.
pub(super) fn write(job: &NewJob, out: &mut Vec<u8>) {
    out.clear();
    append(job, out);
}

/// The same behind what is there.
pub(super) fn append(job: &NewJob, out: &mut Vec<u8>) {
    out.extend_from_slice(job.job_type.as_str().as_bytes());
    let is_chained = job.chain.length > 1;
    let rare = rare(job);
    if is_chained || rare.is_some() || job.max_attempts.is_some() || !job.delay.is_zero() {
        let (c, u) = (if is_chained { "c" } else { "" }, if job.unique.is_some() { "u" } else { "" });
        out.extend_from_slice(format!(" -{c}{u}").as_bytes());
        if is_chained {
            let ChainPlace { id, position, length } = job.chain;
            let cancels = if job.on_failure == OnFailure::Cancel { "x" } else { "" };
            out.extend_from_slice(format!(" c={}:{position}:{length}{cancels}", hex(id)).as_bytes());
        }
        if !job.delay.is_zero() {
            out.extend_from_slice(format!(" d={}", micros(job.delay)).as_bytes());
        }
        if let Some(attempts) = job.max_attempts {
            out.extend_from_slice(format!(" m={attempts}").as_bytes());
        }
        if let Some(rare) = rare {
            out.push(b' ');
            out.extend_from_slice(rare.to_string().as_bytes());
        }
    }
    out.push(b'\n');
    out.extend_from_slice(job.body.as_bytes());
}

/// What few jobs have.
fn rare(job: &NewJob) -> Option<Value> {
    let mut rare = Map::new();
    if let Some(key) = &job.unique {
        rare.insert("unique".to_owned(), Value::from(&**key));
    }
    if let Some(headers) = &job.headers {
        rare.insert("headers".to_owned(), serde_json::to_value(&**headers).unwrap_or_default());
    }
    (!rare.is_empty()).then_some(Value::Object(rare))
}

/// As the keys of chains are written.
pub(super) fn hex(id: JobId) -> String {
    id.as_uuid().simple().to_string()
}

/// The place that a frame begins with; 0 when it does not.
pub(super) fn place(frame: &[u8]) -> u64 {
    let frame = frame.strip_prefix(b"!").unwrap_or(frame);
    let digits = frame.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |place, digit| place.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
}

/// The ticket with which a job that was never claimed stands in line.
pub(super) fn ticket(place: u64, id: JobId) -> [u8; 23] {
    let mut ticket = [0; 23];
    ticket[..7].copy_from_slice(&place.to_be_bytes()[1..]);
    ticket[7..].copy_from_slice(id.as_bytes());
    ticket
}

/// The job of a frame, with the attempt that is not a part of it.
pub(super) fn read(id: JobId, attempt: u32, frame: &[u8], types: &mut Types<'_>) -> Result<Job> {
    parse(id, attempt, frame, types).ok_or_else(|| unreadable("a job"))
}

fn parse(id: JobId, attempt: u32, frame: &[u8], types: &mut Types<'_>) -> Option<Job> {
    let frame = frame.strip_prefix(b"!").unwrap_or(frame);
    let end = frame.iter().position(|byte| *byte == b'\n')?;
    let (head, body) = (str::from_utf8(&frame[..end]).ok()?, &frame[end + 1..]);
    let (place, rest) = head.split_once(' ')?;
    let (job_type, options) = rest.split_once(' ').unwrap_or((rest, ""));
    let mut job = Job {
        id,
        job_type: types.find(job_type).ok()?,
        body: Body::from_encoder(body),
        headers: None,
        attempt,
        max_attempts: None,
        last_attempt: None,
        enqueued_at: from_micros(place.parse().ok()?),
        chain: ChainPlace { id, position: 1, length: 1 },
    };
    let (plain, json) = options.split_at(options.find('{').unwrap_or(options.len()));
    for option in plain.split_ascii_whitespace() {
        if let Some(chain) = option.strip_prefix("c=") {
            job.chain = chain_place(chain)?;
        } else if let Some(attempts) = option.strip_prefix("m=") {
            job.max_attempts = attempts.parse::<NonZeroU32>().ok();
        }
    }
    if !json.is_empty() {
        job.headers = headers(json).map(Arc::new);
    }
    Some(job)
}

fn chain_place(text: &str) -> Option<ChainPlace> {
    let mut parts = text.split(':');
    let id = JobId::from_uuid(Uuid::parse_str(parts.next()?).ok()?);
    let position = parts.next()?.parse().ok()?;
    let length = parts.next()?.trim_end_matches('x').parse().ok()?;
    Some(ChainPlace { id, position, length })
}

/// Somebody else may have put anything there, and a job is not to be lost for it: then it runs without headers.
fn headers(json: &str) -> Option<Headers> {
    let rare: Value = serde_json::from_str(json).ok()?;
    serde_json::from_value(rare.get("headers")?.clone()).ok()
}

/// The id that 16 bytes are.
pub(super) fn id(bytes: &[u8]) -> Result<JobId> {
    Uuid::from_slice(bytes).map(JobId::from_uuid).map_err(|_| unreadable("the id of a job"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobType;

    fn there_and_back(job: &NewJob) -> Job {
        let mut text = b"1764000000123456 ".to_vec();
        let mut rest = Vec::new();
        write(job, &mut rest);
        text.extend_from_slice(&rest);
        read(job.id, 2, &text, &mut Types::of(&[])).unwrap_or_else(|error| panic!("{error}"))
    }

    fn a_job() -> NewJob {
        let job_type = JobType::new("email:v1").unwrap_or_else(|error| panic!("{error}"));
        NewJob::single(job_type, Body::from_encoder(b"{\"a\":\n 1}"))
    }

    #[test]
    fn a_plain_job_has_no_options() {
        let mut rest = Vec::new();
        write(&a_job(), &mut rest);
        assert_eq!(rest, b"email:v1\n{\"a\":\n 1}");
    }

    #[test]
    fn a_job_comes_back_as_it_was() {
        let headers = [("tenant".to_owned(), "7\n{ c=x".to_owned())].into();
        let chain = ChainPlace { id: JobId::generate(), position: 2, length: 3 };
        let described = NewJob {
            headers: Some(Arc::new(headers)),
            max_attempts: NonZeroU32::new(4),
            delay: Duration::from_secs(5),
            on_failure: OnFailure::Cancel,
            chain,
            ..a_job()
        };
        let job = there_and_back(&described);
        assert_eq!(job.headers, described.headers);
        assert_eq!(job.max_attempts, described.max_attempts);
        assert_eq!(job.chain, chain);
        assert_eq!(job.body.as_bytes(), described.body.as_bytes());
        assert_eq!((job.attempt, job.enqueued_at), (2, from_micros(1_764_000_000_123_456)));
        let unique = NewJob { unique: Some("a key".into()), ..a_job() };
        assert_eq!(there_and_back(&unique).headers, None);
    }

    #[test]
    fn what_is_no_job_is_refused() {
        let mut types = Types::of(&[]);
        for text in [&b""[..], b"x", b"1 a", b"x a\n1", b"1 a -c c=1:2\n1"] {
            assert!(read(JobId::generate(), 1, text, &mut types).is_err(), "{text:?}");
        }
    }
}
