//! From the queue to the worker: long polls, and what becomes of what they bring.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_sqs::types::Message;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Core;
use super::hand::Held;
use super::link::{Question, whole_seconds};
use super::message::Incoming;
use super::settle::MARGIN;
use crate::backend::{Claim, Leased, WorkerId};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobId, JobType, OnFailure};
use crate::log::{self, Verbosity};

/// A receive whose answer was lost is repeated so often: with the same attempt id, SQS answers once more with what it took.
const REPEATS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);
/// Weight of the newest receive in what is expected of the next one.
const WEIGHT: f64 = 0.3;
/// While messages of chains come back that were received often without being run, each is received alone, so that no wait
/// behind another counts as a receive.
const SINGLY: Duration = Duration::from_secs(3600);
/// Heads in hand that wait for places in another lane, as polls: with more, nothing is polled for, because nobody could take it.
const MOST_WAITING: usize = 2;

/// A worker of this client.
#[derive(Debug)]
pub(super) struct Here {
    types: FxHashSet<JobType>,
    /// Gives back what waits when the worker stops.
    stopping: JoinHandle<()>,
}

/// One long poll.
struct Poll {
    worker: WorkerId,
    most: usize,
    wait: Duration,
    lease: Duration,
    stop: CancellationToken,
}

/// Counts down however the poll ends.
struct Polling<'a>(&'a AtomicUsize);

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Core {
    pub async fn claim_jobs(self: &Arc<Self>, want: &Claim<'_>) -> Result<Vec<Leased>> {
        let deadline = Instant::now() + want.wait;
        if want.types.is_empty() {
            tokio::select! {
                () = sleep_until(deadline) => {}
                () = want.stop.cancelled() => {}
            }
            return Ok(Vec::new());
        }
        self.check_once(want.lease).await?;
        self.meet(want);
        let types: FxHashSet<&JobType> = want.types.iter().collect();
        let batch = self.link.address.batch_size;
        let most_polls = self.link.address.pollers.min(want.limit.div_ceil(batch)).max(1);
        let mut polls: JoinSet<Result<usize>> = JoinSet::new();
        let mut has_looked = false;
        let taken = loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let taken = self.hand().take(&types, want.limit, want.worker, Instant::now());
            let has_room = self.hand().waiting().count() < MOST_WAITING * batch * self.link.address.pollers;
            let left = deadline.saturating_duration_since(Instant::now());
            // Who does not wait looks once all the same.
            has_looked |= want.wait.is_zero() && !has_room;
            if !taken.is_empty()
                || want.stop.is_cancelled()
                || left.is_zero() && has_looked && polls.is_empty()
            {
                break taken;
            }
            // A poll of another claim serves this one as well, unless it would have to wait for it.
            let may_start = |own: usize| {
                has_room
                    && (self.polling.load(Ordering::SeqCst) < most_polls || want.wait.is_zero() && own == 0)
            };
            while may_start(polls.len()) {
                self.polling.fetch_add(1, Ordering::SeqCst);
                let poll = Poll {
                    worker: want.worker,
                    most: self.most_to_ask(want.limit),
                    wait: whole(left).min(self.link.address.wait_time),
                    lease: want.lease,
                    stop: want.stop.clone(),
                };
                let core = Arc::clone(self);
                polls.spawn(async move { core.poll(poll).await });
            }
            tokio::select! {
                biased;
                () = want.stop.cancelled() => {}
                Some(ended) = polls.join_next() => {
                    match ended {
                        Ok(Ok(brought)) => has_looked |= brought == 0,
                        Ok(Err(error)) => {
                            polls.detach_all();
                            return Err(error);
                        }
                        // It panicked, and has said so.
                        Err(_) => has_looked = true,
                    }
                }
                () = changed => {}
                () = sleep_until(deadline), if !want.wait.is_zero() => {
                    polls.detach_all();
                    has_looked = true;
                }
            }
        };
        // What they bring waits in hand for the next claim.
        polls.detach_all();
        Ok(taken)
    }

    /// Messages to ask for when so many jobs can start. Of a chain only the first one can, and those behind it take no slots.
    fn most_to_ask(&self, limit: usize) -> usize {
        if self.is_singly() {
            return 1;
        }
        let expected = (limit as f64 * *self.per_start()).round() as usize;
        expected.clamp(1, self.link.address.batch_size)
    }

    /// Remembers a worker and its types, and sees to its stop.
    fn meet(self: &Arc<Self>, want: &Claim<'_>) {
        let mut here = self.workers();
        let known = here.entry(want.worker).or_insert_with(|| {
            let (core, stop, worker) = (Arc::downgrade(self), want.stop.clone(), want.worker);
            let stopping = tokio::spawn(async move {
                stop.cancelled().await;
                if let Some(core) = core.upgrade() {
                    core.give_back_waiting(worker).await;
                }
            });
            Here { types: FxHashSet::default(), stopping }
        });
        for job_type in want.types {
            if !known.types.contains(job_type) {
                known.types.insert(job_type.clone());
            }
        }
    }

    /// The worker has stopped: what it did not start goes back, also what a poll brings in late.
    pub async fn goodbye(&self, worker: WorkerId) -> Result<()> {
        let known = self.workers().remove(&worker);
        if let Some(known) = known {
            known.stopping.abort();
        }
        // Polls that were cut are picking up what they had taken.
        while self.workers().is_empty() {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.polling.load(Ordering::SeqCst) == 0 {
                break;
            }
            changed.await;
        }
        self.give_back_waiting(worker).await;
        Ok(())
    }

    /// Says how many messages it brought.
    async fn poll(&self, poll: Poll) -> Result<usize> {
        let result = {
            let _polling = Polling(&self.polling);
            self.ask(&poll).await
        };
        self.changed.notify_waiters();
        result
    }

    async fn ask(&self, poll: &Poll) -> Result<usize> {
        // An idle client polls and does nothing else: the queue is looked at anew when there is something to do.
        let url = match self.link.known_queue() {
            Some(queue) => queue.url.clone(),
            None => self.link.queue().await?.url.clone(),
        };
        let mut question = Question {
            attempt: JobId::generate().to_string(),
            most: poll.most,
            wait: poll.wait,
            lease: whole_seconds(poll.lease).max(1),
        };
        let asked = Instant::now();
        let mut repeats = 0;
        loop {
            let answer = tokio::select! {
                biased;
                answer = self.link.receive(&url, &question) => answer,
                () = poll.stop.cancelled() => {
                    // What the poll had taken, and its answer would have brought, comes with the same attempt id.
                    question.wait = Duration::ZERO;
                    let cut = self.link.receive(&url, &question).await;
                    if let Ok((messages, _)) = cut {
                        let receipts = messages.into_iter().filter_map(|message| message.receipt_handle);
                        self.let_go(receipts.map(|receipt| (receipt, Duration::ZERO)).collect()).await;
                    }
                    return Ok(0);
                }
            };
            match answer {
                Ok((messages, since)) => {
                    let brought = messages.len();
                    self.take_in(
                        poll.worker,
                        messages,
                        asked,
                        since,
                        question.lease,
                        poll.stop.is_cancelled(),
                    )
                    .await;
                    return Ok(brought);
                }
                Err(error) if *error.kind() == ErrorKind::OutcomeUnknown && repeats < REPEATS => {
                    repeats += 1;
                    question.wait = Duration::ZERO;
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts messages in hand, and hides those whose time has not come or that cannot be read.
    async fn take_in(
        &self,
        worker: WorkerId,
        messages: Vec<Message>,
        asked: Instant,
        since: Instant,
        lease: i32,
        is_stopping: bool,
    ) {
        if messages.is_empty() {
            return;
        }
        let mut groups: Vec<(Arc<str>, Vec<Incoming>)> = Vec::new();
        let mut place_of: FxHashMap<Arc<str>, usize> = FxHashMap::default();
        for incoming in messages.into_iter().map(Incoming::read) {
            let place = *place_of.entry(Arc::clone(&incoming.group)).or_insert_with(|| {
                groups.push((Arc::clone(&incoming.group), Vec::new()));
                groups.len() - 1
            });
            groups[place].1.push(incoming);
        }
        {
            let messages: usize = groups.iter().map(|(_, incoming)| incoming.len()).sum();
            let mut per_start = self.per_start();
            *per_start += WEIGHT * (messages as f64 / groups.len() as f64 - *per_start);
        }
        let lease = Duration::from_secs(lease as u64);
        let until = since + lease;
        self.let_go(behind_suspects(&mut groups, lease)).await;
        let (mut hidden, mut cancelled) = (Vec::new(), Vec::new());
        for (name, incoming) in groups {
            self.note_burnt(&incoming);
            if is_stopping {
                hidden.extend(incoming.into_iter().map(|incoming| (incoming.receipt, Duration::ZERO)));
            } else {
                self.take_in_group(
                    worker,
                    &name,
                    incoming,
                    (asked, since, until),
                    &mut hidden,
                    &mut cancelled,
                );
            }
        }
        self.changed.notify_waiters();
        self.let_go(hidden).await;
        if !cancelled.is_empty()
            && let Err(error) = self.link.delete(&cancelled).await
        {
            log::write(Verbosity::Errors, None, || format!("cancelling the rest of a chain failed: {error}"));
        }
    }

    fn take_in_group(
        &self,
        worker: WorkerId,
        name: &Arc<str>,
        incoming: Vec<Incoming>,
        times: (Instant, Instant, Instant),
        hidden: &mut Vec<(String, Duration)>,
        cancelled: &mut Vec<String>,
    ) {
        let queue = self.link.known_queue();
        let mut hand = self.hand();
        // What is behind a hidden message must not overtake it.
        let mut behind: Option<Duration> = None;
        for incoming in incoming {
            if let Some(time) = behind {
                hidden.push((incoming.receipt, time + MARGIN));
                continue;
            }
            let job = match &incoming.job {
                Ok(job) => job.clone(),
                Err(why) => {
                    self.tell_once(&incoming.message_id, why);
                    // At its last receive it goes to the dead-letter queue by itself, and holds up nobody any more.
                    let is_last = queue.as_ref().is_some_and(|queue| queue.is_last(incoming.receives));
                    let time = if is_last { Duration::ZERO } else { backoff(incoming.receives) };
                    behind = (!is_last).then_some(time);
                    hidden.push((incoming.receipt, time));
                    continue;
                }
            };
            if incoming.on_failure == OnFailure::Cancel && hand.is_doomed(name) {
                log::write(Verbosity::Errors, Some(&job), || {
                    format!("{} is cancelled with its chain, a job before it failed", job.job_type)
                });
                cancelled.push(incoming.receipt);
                continue;
            }
            let is_head = hand.head(name).is_none();
            if let Some(due) = incoming.due.filter(|_| is_head)
                && let Ok(rest) = due.duration_since(self.clock.now())
                // Whose clock differs a little from that of SQS does not hide a message twice.
                && rest > if incoming.receives > 1 { MARGIN } else { Duration::ZERO }
            {
                hidden.push((incoming.receipt, rest));
                behind = Some(rest);
                continue;
            }
            let mut job = job;
            job.last_attempt =
                queue.as_ref().and_then(|queue| queue.last_attempt(job.attempt, incoming.receives));
            let is_known = self.workers().values().any(|here| here.types.contains(&job.job_type));
            hand.insert(name, Held::new(job, &incoming, worker, is_known, times));
        }
    }

    /// A message that cannot be read is no reason to be silent, nor to repeat oneself.
    fn tell_once(&self, message_id: &str, why: &str) {
        if self.told(message_id) {
            log::write(Verbosity::Errors, None, || {
                format!(
                    "message {message_id} cannot be read as a job: {why}. It is hidden for a while each time it comes and never deleted; \
                     the redrive policy of the queue moves it away, or its sender mends it"
                )
            });
        }
    }

    /// Of messages behind another one, each receive counts although none is run: when that has gone far, it must end.
    fn note_burnt(&self, incoming: &[Incoming]) {
        let Some(most) =
            self.link.known_queue().and_then(|queue| Some(queue.redrive.as_ref()?.most_receives))
        else {
            return;
        };
        if incoming.iter().skip(1).any(|incoming| incoming.receives > most / 2) {
            *self.singly_until() = Some(Instant::now() + SINGLY);
        }
    }

    fn is_singly(&self) -> bool {
        self.singly_until().is_some_and(|until| Instant::now() < until)
    }
}

/// SQS waits whole seconds. A poll that outlasts its claim serves the next one; one that did not wait at the end would be
/// followed by hundreds more until then, each of which costs money.
fn whole(left: Duration) -> Duration {
    Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0))
}

/// Sorts what came of each group. A head that was handed out before may have killed its worker, and may do so again before the
/// first beat: what is behind it is hidden for longer at once, so that the head comes back alone the next time.
fn behind_suspects(groups: &mut [(Arc<str>, Vec<Incoming>)], lease: Duration) -> Vec<(String, Duration)> {
    let mut behind = Vec::new();
    for (_, incoming) in groups {
        incoming.sort_by_key(|incoming| incoming.sequence);
        if incoming[0].receives > 1 {
            behind.extend(incoming[1..].iter().map(|incoming| (incoming.receipt.clone(), lease + MARGIN)));
        }
    }
    behind
}

/// How long a message is hidden that this client can do nothing with: 10 s, three times as long each time, 15 minutes at
/// most, so that the receives that a redrive policy grants last until somebody can.
pub(super) fn backoff(receives: u32) -> Duration {
    let steps = receives.saturating_sub(1).min(5);
    Duration::from_secs(10 * 3_u64.pow(steps)).min(Duration::from_secs(900))
}

/// The error of a lease that SQS cannot grant.
pub(super) fn too_long(lease: Duration) -> Error {
    Error::config(format!(
        "a lease of {} s (three heartbeats) is longer than the 12 hours for which SQS hides a message; set heartbeat to 14000 s or less",
        lease.as_secs_f64()
    ))
}
