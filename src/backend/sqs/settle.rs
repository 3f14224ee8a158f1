//! How attempts end: what is deleted, hidden, or left to the redrive policy, and what comes after it in its group.
//!
//! The next job of a chain starts only when the end of the one before is acknowledged. Whose end was refused has been
//! taken over by another worker: then nothing behind it is started here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_sdk_sqs::types::Message;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::time::Instant;

use super::Core;
use super::hand::Held;
use super::link::{MOST_ENTRIES, Verdicts};
use super::message::{self, MOST_BYTES};
use super::queue::Queue;
use crate::backend::remote::Doing;
use crate::backend::{HandOff, Lease, Leased, Outcome, SettleReply, Settled};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobType, OnFailure};
use crate::log::{self, Verbosity};

/// A message is hidden for 12 hours at most, counted from its receive, and the way there takes time.
pub(super) const MOST_HIDDEN: Duration = Duration::from_secs(43_200 - 2);
/// So much longer than the head of a group those behind it are hidden: it comes back first and alone, and their receives
/// are not used up with its own.
pub(super) const MARGIN: Duration = Duration::from_secs(2);

const STORING: Doing = Doing::Write("storing how jobs ended");

/// What is to be done about the end of one attempt.
struct End {
    /// In the batch of the caller.
    place: usize,
    lease: Lease,
    group: Arc<str>,
    receipt: String,
    /// Is what waits behind it to be cancelled?
    cancels: bool,
    what: What,
}

enum What {
    /// Out of the queue.
    Delete,
    /// Into the dead-letter queue and out of this one.
    Bury { message: Arc<Message> },
    /// Its receives are used up: SQS moves it when its turn comes again, and never hands it out any more.
    Die,
    /// Back into the queue after this time, and what is behind it too.
    Return(Duration),
}

/// What SQS made of it.
enum Fate {
    Done,
    Lost,
    Unknown(Error),
}

impl Core {
    pub async fn settle_jobs(&self, done: &[Settled], next: &HandOff<'_>) -> Result<SettleReply> {
        let queue = self.link.queue().await?;
        let mut reply = SettleReply::default();
        let ends = self.plan(&queue, done, &mut reply.lost);
        let (mut fates, returned) = tokio::join!(self.end_for_good(&queue, &ends), self.end_for_now(&ends));
        fates.extend(returned?);
        let (mut error, mut stored, mut freed) = (None, Vec::with_capacity(ends.len()), Vec::new());
        let (mut back, mut cancelled) = (Vec::new(), Vec::new());
        {
            let mut hand = self.hand();
            for end in &ends {
                // It may have come anew meanwhile, to this very client.
                let is_ours = hand.find(end.lease).is_some();
                match fates.remove(&end.place).unwrap_or(Fate::Done) {
                    Fate::Done if !is_ours => {}
                    Fate::Done if matches!(end.what, What::Return(_)) => drop(hand.drop_group(&end.group)),
                    Fate::Done => {
                        hand.pop(end.lease);
                        if end.cancels {
                            hand.doom(&end.group);
                            cancelled.extend(hand.drop_waiting(&end.group));
                        }
                        freed.push(Arc::clone(&end.group));
                    }
                    Fate::Lost => {
                        reply.lost.push(end.place);
                        // Another worker has it, so nothing behind it may start here.
                        let dropped = if is_ours { hand.drop_group(&end.group) } else { Vec::new() };
                        back.extend(dropped.into_iter().skip(1).map(|held| (held.receipt, Duration::ZERO)));
                        continue;
                    }
                    Fate::Unknown(why) => {
                        hand.mark_ending(end.lease, false);
                        error = Some(why);
                        continue;
                    }
                }
                stored.push(end.lease);
            }
        }
        self.link.bill.ended.fetch_add(freed.len() as u64, Ordering::Relaxed);
        self.cancel_rest(cancelled).await;
        if error.is_none() {
            reply.next = self.hand_on(freed, next, &mut back);
        } else {
            // The call will be repeated for all.
            self.answered().extend(stored);
        }
        self.changed.notify_waiters();
        self.let_go(back).await;
        reply.lost.sort_unstable();
        error.map_or(Ok(reply), Err)
    }

    /// What each end leads to. The first one of a lease counts.
    fn plan(&self, queue: &Queue, done: &[Settled], lost: &mut Vec<usize>) -> Vec<End> {
        let (mut hand, mut answered) = (self.hand(), self.answered());
        let mut seen = FxHashSet::default();
        let mut ends = Vec::with_capacity(done.len());
        for (place, Settled { lease, outcome }) in done.iter().enumerate() {
            let is_first = seen.insert(*lease);
            if is_first && answered.remove(lease) {
                continue;
            }
            let Some((group, head)) = hand.find(*lease).filter(|_| is_first) else {
                lost.push(place);
                continue;
            };
            let is_last = queue.is_last(head.receives);
            let what = match outcome {
                Outcome::Finished => What::Delete,
                Outcome::Interrupted => What::Return(Duration::ZERO),
                Outcome::Retry { after, .. } if !is_last => What::Return((*after).min(left(head))),
                _ if is_last => What::Die,
                _ if queue.redrive.is_some() => What::Bury { message: Arc::clone(&head.message) },
                _ => What::Delete,
            };
            let has_failed = !matches!(outcome, Outcome::Finished) && !matches!(what, What::Return(_));
            let end = End {
                place,
                lease: *lease,
                group: Arc::clone(group),
                receipt: head.receipt.clone(),
                cancels: has_failed && head.on_failure == OnFailure::Cancel,
                what,
            };
            hand.mark_ending(*lease, true);
            ends.push(end);
        }
        ends
    }

    /// Deletes what has ended, after copying what has failed into the dead-letter queue.
    async fn end_for_good(&self, queue: &Queue, ends: &[End]) -> FxHashMap<usize, Fate> {
        let mut fates = FxHashMap::default();
        let mut deleted: Vec<&End> = ends.iter().filter(|end| matches!(end.what, What::Delete)).collect();
        let dead: Vec<(&End, &Message)> = ends
            .iter()
            .filter_map(
                |end| if let What::Bury { message } = &end.what { Some((end, &**message)) } else { None },
            )
            .collect();
        let weighs = |(_, message): &(&End, &Message)| message::weight(message);
        for part in parts(&dead, weighs) {
            let entries =
                part.iter().enumerate().map(|(at, (end, message))| message::copy(at, message, &end.group));
            let url = queue.redrive.as_ref().map(|redrive| redrive.url.as_str()).unwrap_or_default();
            match self
                .link
                .send(url, Doing::Write("putting failed jobs into the dead-letter queue"), entries.collect())
                .await
            {
                Ok(refused) => {
                    let out: FxHashMap<usize, String> = refused
                        .into_iter()
                        .map(|entry| (entry.place, format!("{}: {}", entry.code, entry.message)))
                        .collect();
                    for (at, (end, _)) in part.iter().enumerate() {
                        match out.get(&at) {
                            None => deleted.push(end),
                            Some(why) => drop(fates.insert(end.place, Fate::Unknown(unburied(why)))),
                        }
                    }
                }
                Err(error) => {
                    let unknown =
                        |error: &Error| Fate::Unknown(Error::new(error.kind().clone(), error.text()));
                    fates.extend(part.iter().map(|(end, _)| (end.place, unknown(&error))));
                }
            }
        }
        if deleted.is_empty() {
            return fates;
        }
        let receipts: Vec<String> = deleted.iter().map(|end| end.receipt.clone()).collect();
        match self.link.delete(&receipts).await {
            Ok(verdicts) => judge(verdicts, |at| Some(deleted[at].place), &mut fates),
            Err(error) => {
                let unknown = || Fate::Unknown(Error::new(error.kind().clone(), error.text()));
                fates.extend(deleted.iter().map(|end| (end.place, unknown())));
            }
        }
        fates
    }

    /// Hides what will come again, each with what stands behind it; and shows what SQS is to move away.
    async fn end_for_now(&self, ends: &[End]) -> Result<FxHashMap<usize, Fate>> {
        let mut fates = FxHashMap::default();
        if ends.iter().all(|end| matches!(end.what, What::Delete | What::Bury { .. })) {
            return Ok(fates);
        }
        // No beat under way may overwrite it.
        let _turn = self.visibility.lock().await;
        let (mut changes, mut places) = (Vec::new(), Vec::new());
        {
            let hand = self.hand();
            for end in ends {
                let time = match end.what {
                    What::Die => Duration::ZERO,
                    What::Return(time) => time,
                    What::Delete | What::Bury { .. } => continue,
                };
                changes.push((end.receipt.clone(), time));
                places.push(Some(end.place));
                if matches!(end.what, What::Return(_)) {
                    for held in hand.group(&end.group).skip(1) {
                        changes.push((held.receipt.clone(), (time + MARGIN).min(left(held))));
                        places.push(None);
                    }
                }
            }
        }
        let verdicts = self.link.hide(STORING, &changes).await?;
        judge(verdicts, |at| places[at], &mut fates);
        Ok(fates)
    }

    /// Gives the next jobs of these groups to the worker, if it takes them. What has a delay begins to wait now; a worker that
    /// stops gets nothing, and keeps nothing from others.
    fn hand_on(
        &self,
        freed: Vec<Arc<str>>,
        next: &HandOff<'_>,
        back: &mut Vec<(String, Duration)>,
    ) -> Vec<Leased> {
        let types: FxHashSet<&JobType> = next.types.iter().collect();
        let mut hand = self.hand();
        let mut leased = Vec::new();
        for group in freed {
            let Some(head) = hand.head(&group).filter(|head| !head.is_out()) else { continue };
            if next.types.is_empty() || !head.delay.is_zero() {
                let time = if next.types.is_empty() { Duration::ZERO } else { head.delay };
                back.extend(hand.drop_group(&group).into_iter().enumerate().map(|(at, held)| {
                    let time = if at > 0 && !time.is_zero() { time + MARGIN } else { time };
                    (held.receipt, time)
                }));
            } else if types.contains(&head.job.job_type) {
                leased.extend(hand.lend(&group, next.worker, Instant::now()));
            }
        }
        leased
    }

    /// The rest of a chain that ends with its failed job.
    async fn cancel_rest(&self, cancelled: Vec<Held>) {
        if cancelled.is_empty() {
            return;
        }
        for held in &cancelled {
            log::write(Verbosity::Errors, Some(&held.job), || {
                format!("{} is cancelled with its chain, a job before it failed", held.job.job_type)
            });
        }
        let receipts: Vec<String> = cancelled.into_iter().map(|held| held.receipt).collect();
        // What stays in the queue is cancelled when it comes again.
        if let Err(error) = self.link.delete(&receipts).await {
            log::write(Verbosity::Errors, None, || format!("cancelling the rest of a chain failed: {error}"));
        }
    }
}

/// For how long a message can still be hidden.
fn left(held: &Held) -> Duration {
    (held.asked + MOST_HIDDEN).saturating_duration_since(Instant::now())
}

/// Batches that SQS takes in one call.
fn parts<T>(all: &[T], weight: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut parts = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (at, one) in all.iter().enumerate() {
        let own = weight(one);
        if at > first && (at - first == MOST_ENTRIES || bytes + own > MOST_BYTES) {
            parts.push(&all[first..at]);
            (first, bytes) = (at, 0);
        }
        bytes += own;
    }
    if first < all.len() {
        parts.push(&all[first..]);
    }
    parts
}

/// From what SQS answered to what became of each end.
fn judge(verdicts: Verdicts, place_of: impl Fn(usize) -> Option<usize>, fates: &mut FxHashMap<usize, Fate>) {
    for entry in verdicts.refused {
        let Some(place) = place_of(entry.place) else { continue };
        let fate = if entry.is_final {
            Fate::Lost
        } else {
            let text = format!("{} failed: SQS could not do it just now ({})", STORING.what(), entry.code);
            Fate::Unknown(Error::new(ErrorKind::Unavailable, text))
        };
        fates.insert(place, fate);
    }
    if let Some(error) = verdicts.error {
        for place in verdicts.unknown.into_iter().filter_map(place_of) {
            fates.insert(place, Fate::Unknown(Error::new(error.kind().clone(), error.text())));
        }
    }
}

fn unburied(why: &str) -> Error {
    Error::config(format!(
        "a failed job could not be put into the dead-letter queue ({why}); it stays in its queue and runs again"
    ))
}
