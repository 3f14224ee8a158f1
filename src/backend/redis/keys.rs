//! The names of what a queue keeps in Redis. All of them begin with `dejq:{queue}:`, and what is in the braces decides
//! the slot of a cluster: one queue lives in one slot.
//!
//! | key, after the prefix | type | what it holds |
//! |---|---|---|
//! | `job` | hash | id (16 bytes) → the job as text, see [`frame`](super::frame) |
//! | `state` | hash | id → where it stands; nothing for a job that runs, or waits in `fresh` |
//! | `fresh:<type>` | list | jobs that were never claimed, in the order of their places: place (7 bytes) and id |
//! | `back:<type>` | sorted set | ready jobs that were something else before, by place |
//! | `due` | sorted set | scheduled jobs, by their time in microseconds |
//! | `run:<worker>` | hash | what a worker has: id → token, and where the job stood |
//! | `workers` | sorted set | workers, by the end of their lease in microseconds |
//! | `worker` | hash | worker → length of its lease, host and process |
//! | `chain` | hash | chain → how many of its jobs are kept, how far it has come, its ids |
//! | `unique` | hash | type and unique key → the id of the job that holds it |
//! | `failure` | hash | id → why its last attempt did not succeed, as JSON |
//! | `finished` | list | jobs that finished, the first one first, as many as are kept |
//! | `failed` | sorted set | failed and cancelled jobs, by their end |
//! | `count` | hash | `<state> <type>` → how many jobs |
//! | `total` | hash | totals since the queue began: jobs, jobs linked to another, attempts, failures, retries, rescues, durations |
//! | `wake:<type>` | list | a hint for who waits: there may be a job |
//! | `place` | string | the last place that was given |
//! | `void` | string | tickets in `fresh` of jobs that do not wait there any more |
//! | `awake` | string | when the server last answered a worker, and since when without a pause |
//! | `meta` | hash | `format`: the version of all this |

use crate::error::{Error, Result};
use crate::job::JobType;

/// Most bytes of the name of a queue.
const MAX_QUEUE_BYTES: usize = 100;

/// The keys of one queue.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    queue: String,
    job: String,
}

impl Keys {
    /// Those of this queue.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for a name with other characters than `A-Z a-z 0-9 _ . : / -`.
    pub fn new(queue: &str) -> Result<Self> {
        let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
        if queue.is_empty() || queue.len() > MAX_QUEUE_BYTES || !queue.bytes().all(is_fine) {
            let shown: String = queue.chars().take(40).collect();
            return Err(Error::config(format!(
                "queue {shown:?} is no name for a queue, which becomes a part of its keys; use 1 to \
                 {MAX_QUEUE_BYTES} of A-Z a-z 0-9 _ . : / - (for example \"mail\")"
            )));
        }
        Ok(Self { queue: queue.to_owned(), job: named(queue, "job") })
    }

    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The one that scripts are given: they know the others by it.
    pub fn job(&self) -> &str {
        &self.job
    }

    pub fn meta(&self) -> String {
        named(&self.queue, "meta")
    }

    /// There never is such a key.
    pub fn nothing(&self) -> String {
        named(&self.queue, "nothing")
    }

    pub fn fresh(&self, job_type: &JobType) -> String {
        named(&self.queue, "fresh:") + job_type.as_str()
    }

    pub fn wake(&self, job_type: &JobType) -> String {
        named(&self.queue, "wake:") + job_type.as_str()
    }
}

fn named(queue: &str, name: &str) -> String {
    format!("dejq:{{{queue}}}:{name}")
}
