//! New jobs on their way into the queue.
//!
//! A chain is one group, and the slices of a long one go strictly one after the other: a slice that overtook another would
//! turn the order round. Chains do not wait for each other. The id of a job is that of its deduplication, so that a repeat stores nothing twice for
//! five minutes, which is much longer than anything here is repeated.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use rustc_hash::FxHashSet;
use tokio::time::{Instant, sleep};

use super::link::{Link, MOST_ENTRIES, Refused};
use super::message::{MOST_BYTES, Outgoing};
use super::queue::Queue;
use super::settle::MOST_HIDDEN;
use crate::backend::remote::{Answer, Batch, Doing, Insert};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobId, NewJob};

const DOING: Doing = Doing::Write("enqueueing");
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// Calls under way at the same time.
const MOST_CALLS: usize = 8;

/// The way in.
#[derive(Debug)]
pub(super) struct Entrance {
    pub link: Arc<Link>,
}

/// What SQS can never keep.
///
/// # Errors
/// [`ErrorKind::NotSupported`] with the reason.
pub(super) fn check(jobs: &[NewJob]) -> Result<()> {
    let refused = |what: &str, why: &str| Err(Error::not_supported(what, "sqs", why));
    if jobs.iter().any(|job| job.unique.is_some()) {
        return refused(
            "unique=",
            "SQS cannot look into its queue, and what it remembers of a key it forgets after five minutes, whatever has become of the \
             job; leave it out and let the handler check, or use PostgreSQL or Redis",
        );
    }
    if let Some(job) = jobs.iter().find(|job| job.delay > MOST_HIDDEN) {
        return refused(
            &format!("a delay of {:?}", job.delay),
            "a message can be hidden for 12 hours at most (43200 s); enqueue it later, or use PostgreSQL or Redis",
        );
    }
    Ok(())
}

/// Slices that are sent one after the other, as places in the call.
type Lane = Vec<Vec<usize>>;

/// What became of a lane.
#[derive(Debug, Default)]
struct Sent {
    places: Vec<usize>,
    error: Option<Error>,
    /// A later job of a chain went in and an earlier one did not.
    is_broken: bool,
}

impl Insert for Entrance {
    const MOST_MERGED: usize = 10 * MOST_CALLS;

    /// Whose chain breaks must be told, and nobody else.
    fn goes_alone(jobs: &[NewJob], _is_new: bool) -> bool {
        jobs.iter().any(|job| job.chain.length > 1)
    }

    async fn insert(&self, batch: &Batch<'_>) -> Result<Answer> {
        let queue = self.link.queue().await?;
        let messages = batch.jobs.iter().map(|job| Outgoing::new(job)).collect::<Result<Vec<_>>>()?;
        check_against(&queue, batch.jobs, &messages)?;
        let lanes = lanes(batch.jobs, &messages);
        // Jobs of several calls get another try one call after the other.
        let deadline = if batch.is_merged { Instant::now() } else { batch.deadline };
        let mut sending = Vec::with_capacity(lanes.len());
        for lane in &lanes {
            sending.push(self.send(&queue.url, batch.jobs, &messages, lane, deadline));
        }
        let done: Vec<Sent> = stream::iter(sending).buffer_unordered(MOST_CALLS).collect().await;
        let sent: FxHashSet<usize> = done.iter().flat_map(|lane| &lane.places).copied().collect();
        let is_broken = done.iter().any(|lane| lane.is_broken);
        let error = done.into_iter().find_map(|lane| lane.error);
        let Some(error) = error else {
            self.link.bill.enqueued.fetch_add(sent.len() as u64, Ordering::Relaxed);
            return Ok(Ok(batch.jobs.iter().map(|job| job.id).collect()));
        };
        if batch.is_merged || sent.is_empty() {
            return Err(error);
        }
        self.link.bill.enqueued.fetch_add(sent.len() as u64, Ordering::Relaxed);
        Ok(Err(broken(batch.jobs, &sent, is_broken, error)))
    }
}

impl Entrance {
    /// Sends the slices of a lane, each again until all of it is in or the deadline has passed.
    async fn send(
        &self,
        url: &str,
        jobs: &[&NewJob],
        messages: &[Outgoing],
        lane: &Lane,
        deadline: Instant,
    ) -> Sent {
        let mut sent = Sent::default();
        for slice in lane {
            let mut rest = slice.clone();
            while !rest.is_empty() {
                let entries = rest.iter().enumerate().map(|(at, place)| messages[*place].entry(at)).collect();
                let error = match self.link.send(url, DOING, entries).await {
                    Err(error) => error,
                    Ok(refused) => {
                        let out: FxHashSet<usize> = refused.iter().map(|entry| rest[entry.place]).collect();
                        let (failed, taken): (Vec<_>, Vec<_>) =
                            rest.into_iter().partition(|place| out.contains(place));
                        sent.is_broken = overtaken(jobs, &failed, &taken);
                        sent.places.extend(taken);
                        rest = failed;
                        match refused.into_iter().next() {
                            None => break,
                            Some(entry) => entry_error(entry),
                        }
                    }
                };
                if sent.is_broken || !error.is_transient() || Instant::now() + PAUSE >= deadline {
                    sent.error = Some(error);
                    return sent;
                }
                sleep(PAUSE).await;
            }
        }
        sent
    }
}

/// Did a job go in although one before it in its chain did not? To send that one now would run it too late.
fn overtaken(jobs: &[&NewJob], failed: &[usize], taken: &[usize]) -> bool {
    let is_before =
        |before: usize, after: usize| before < after && jobs[before].chain.id == jobs[after].chain.id;
    failed.iter().any(|before| taken.iter().any(|after| is_before(*before, *after)))
}

fn entry_error(entry: Refused) -> Error {
    let Refused { code, message, is_final, .. } = entry;
    let kind = if is_final { ErrorKind::Config } else { ErrorKind::Unavailable };
    Error::new(kind, format!("enqueueing failed: SQS did not take a message ({code}: {message})"))
}

/// What this queue cannot keep.
fn check_against(queue: &Queue, jobs: &[&NewJob], messages: &[Outgoing]) -> Result<()> {
    let limit = queue.most_bytes.min(MOST_BYTES);
    for (job, message) in jobs.iter().zip(messages) {
        let size = message.bytes();
        if size > limit {
            return Err(Error::new(
                ErrorKind::BodyTooLarge { size, limit },
                format!(
                    "a {:?} job has {size} bytes with its headers and attributes, and this queue takes {limit} (MaximumMessageSize); store \
                     large data elsewhere and enqueue a reference to it",
                    job.job_type
                ),
            ));
        }
        if !job.delay.is_zero()
            && let Some(redrive) = &queue.redrive
            && redrive.most_receives < 2
        {
            return Err(Error::config(format!(
                "a delay needs a queue that lets a message be received twice, and maxReceiveCount of this one is {}: the receive that \
                 hides the job until its time would be its last; set it to 2 or more (5 is usual)",
                redrive.most_receives
            )));
        }
    }
    Ok(())
}

/// Batches of at most 10 messages and 1 MiB. Jobs and short chains share them; a long chain has a lane of its own.
fn lanes(jobs: &[&NewJob], messages: &[Outgoing]) -> Vec<Lane> {
    let mut lanes = Vec::new();
    let mut shared: Vec<usize> = Vec::new();
    let mut shared_bytes = 0;
    let mut first = 0;
    while first < jobs.len() {
        let chain = jobs[first].chain.id;
        let length = jobs[first..].iter().take_while(|job| job.chain.id == chain).count();
        let places: Vec<usize> = (first..first + length).collect();
        let bytes: usize = places.iter().map(|place| messages[*place].bytes()).sum();
        first += length;
        if length > MOST_ENTRIES || bytes > MOST_BYTES {
            lanes.push(slices(places, messages));
            continue;
        }
        if shared.len() + length > MOST_ENTRIES || shared_bytes + bytes > MOST_BYTES {
            lanes.push(vec![std::mem::take(&mut shared)]);
            shared_bytes = 0;
        }
        shared.extend(places);
        shared_bytes += bytes;
    }
    if !shared.is_empty() {
        lanes.push(vec![shared]);
    }
    lanes
}

fn slices(places: Vec<usize>, messages: &[Outgoing]) -> Lane {
    let mut slices: Lane = Vec::new();
    let mut bytes = 0;
    for place in places {
        let own = messages[place].bytes();
        match slices.last_mut() {
            Some(slice) if slice.len() < MOST_ENTRIES && bytes + own <= MOST_BYTES => slice.push(place),
            _ => {
                slices.push(vec![place]);
                bytes = 0;
            }
        }
        bytes += own;
    }
    slices
}

fn broken(jobs: &[&NewJob], sent: &FxHashSet<usize>, is_broken: bool, error: Error) -> Error {
    let of = |is_sent: bool| -> Vec<JobId> {
        let places = (0..jobs.len()).filter(|place| sent.contains(place) == is_sent);
        places.map(|place| jobs[place].id).collect()
    };
    let (sent, unsent) = (of(true), of(false));
    let fix = if is_broken {
        "a later job of a chain went in before an earlier one, which was therefore not sent again"
    } else {
        "what was sent will run; enqueue the rest when SQS answers again"
    };
    let text = format!(
        "{} of {} jobs were sent and the others not ({}): {fix}. .sent and .unsent have the ids; up to 10 jobs and 1 MiB go \
         in one call",
        sent.len(),
        jobs.len(),
        error.text()
    );
    Error::new(ErrorKind::ChainBroken { sent, unsent }, text).with_source(error)
}
