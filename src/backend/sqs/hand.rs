//! The messages in hand: received, and neither deleted nor let go of. Pure state, no calls.
//!
//! SQS holds back what comes later in a group while something of it is in hand anywhere, but not what comes earlier: a job
//! whose lease has ended may run elsewhere while those after it are still here. So only the head of a group is ever
//! given to the worker, and whoever loses the head lets go of all that stands behind it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::types::Message;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::time::Instant;

use crate::backend::{Lease, Leased, Token, WorkerId};
use crate::job::{Job, JobId, JobType, OnFailure};

/// Chains whose rest is to be cancelled when it comes; the oldest are forgotten first.
const MOST_DOOMED: usize = 10_000;

/// A message in hand.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub job: Job,
    pub receipt: String,
    pub sequence: u128,
    pub receives: u32,
    pub delay: Duration,
    pub on_failure: OnFailure,
    /// Since when its 12 hours run, at the earliest.
    pub asked: Instant,
    /// When the store handed it out, or last renewed its lease.
    pub since: Instant,
    pub until: Instant,
    /// Whose beats keep it.
    pub worker: WorkerId,
    /// Does this client have a handler for its type?
    pub is_known: bool,
    pub message: Arc<Message>,
    state: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Waits,
    /// The worker has it, under this token.
    Out(u64),
    /// The same, and its end is being stored.
    Ending(u64),
}

impl Held {
    #[allow(clippy::too_many_arguments)] // each is a fact about one receive
    pub fn new(
        job: Job,
        incoming: &super::message::Incoming,
        worker: WorkerId,
        is_known: bool,
        (asked, since, until): (Instant, Instant, Instant),
    ) -> Self {
        Self {
            job,
            receipt: incoming.receipt.clone(),
            sequence: incoming.sequence,
            receives: incoming.receives,
            delay: incoming.delay,
            on_failure: incoming.on_failure,
            asked,
            since,
            until,
            worker,
            is_known,
            message: Arc::clone(&incoming.message),
            state: Place::Waits,
        }
    }

    pub fn is_out(&self) -> bool {
        self.state != Place::Waits
    }

    /// Is its end being stored, so that a beat may find it gone?
    pub fn is_ending(&self) -> bool {
        matches!(self.state, Place::Ending(_))
    }

    /// The lease under which the worker has it.
    pub fn lease(&self) -> Option<Lease> {
        match self.state {
            Place::Waits => None,
            Place::Out(token) | Place::Ending(token) => Some(Lease { id: self.job.id, token: Token(token) }),
        }
    }
}

#[derive(Debug, Default)]
struct Group {
    held: VecDeque<Held>,
    /// Where its head is listed as waiting.
    listed: Option<(u128, JobId)>,
}

/// All groups of which something is in hand.
#[derive(Debug, Default)]
pub(super) struct Hand {
    groups: FxHashMap<Arc<str>, Group>,
    /// Groups whose head waits for the worker, by its place in the queue.
    waiting: BTreeMap<(u128, JobId), Arc<str>>,
    by_job: FxHashMap<JobId, Arc<str>>,
    last_token: u64,
    doomed: FxHashSet<Arc<str>>,
    doomed_in_order: VecDeque<Arc<str>>,
}

impl Hand {
    /// Puts a message in its place. The same one from an earlier receive is replaced: its lease is stale.
    pub fn insert(&mut self, name: &Arc<str>, held: Held) {
        let group = self.groups.entry(Arc::clone(name)).or_default();
        group.held.retain(|other| other.job.id != held.job.id);
        self.by_job.insert(held.job.id, Arc::clone(name));
        let at = group.held.partition_point(|other| other.sequence <= held.sequence);
        group.held.insert(at, held);
        self.list(name);
    }

    /// Heads that wait, of these types or of types that nobody here handles, in the order of the queue.
    pub fn take(
        &mut self,
        types: &FxHashSet<&JobType>,
        limit: usize,
        worker: WorkerId,
        now: Instant,
    ) -> Vec<Leased> {
        let mut chosen = Vec::new();
        let mut late = Vec::new();
        for name in self.waiting.values() {
            if chosen.len() == limit {
                break;
            }
            let Some(head) = self.groups.get(name).and_then(|group| group.held.front()) else { continue };
            if head.until <= now {
                late.push(Arc::clone(name));
            } else if types.contains(&head.job.job_type) || !head.is_known {
                chosen.push(Arc::clone(name));
            }
        }
        // Nobody beat for them in time: they may be another worker's.
        for name in late {
            self.drop_group(&name);
        }
        chosen.into_iter().filter_map(|name| self.lend(&name, worker, now)).collect()
    }

    /// Gives the head of this group to the worker, unless its lease is over.
    pub fn lend(&mut self, name: &Arc<str>, worker: WorkerId, now: Instant) -> Option<Leased> {
        let token = self.last_token + 1;
        let head = self.groups.get_mut(name)?.held.front_mut()?;
        if head.is_out() || head.until <= now {
            return None;
        }
        (head.state, head.worker) = (Place::Out(token), worker);
        let leased = Leased { job: head.job.clone(), token: Token(token), since: head.since };
        self.last_token = token;
        self.list(name);
        Some(leased)
    }

    /// The group whose head is out under this lease.
    pub fn find(&self, lease: Lease) -> Option<(&Arc<str>, &Held)> {
        let (name, group) = self.groups.get_key_value(self.by_job.get(&lease.id)?)?;
        let head = group.held.front()?;
        (head.lease() == Some(lease)).then_some((name, head))
    }

    /// Its end is about to be stored, or was not after all.
    pub fn mark_ending(&mut self, lease: Lease, is_ending: bool) {
        let group = self.by_job.get(&lease.id).and_then(|name| self.groups.get_mut(name));
        if let Some(head) = group.and_then(|group| group.held.front_mut())
            && head.lease() == Some(lease)
        {
            head.state = if is_ending { Place::Ending(lease.token.0) } else { Place::Out(lease.token.0) };
        }
    }

    /// The head has left the queue; the one behind it is the new head. False when another took its place meanwhile.
    pub fn pop(&mut self, lease: Lease) -> Option<Arc<str>> {
        let name = Arc::clone(self.find(lease)?.0);
        let group = self.groups.get_mut(&name)?;
        group.held.pop_front();
        self.by_job.remove(&lease.id);
        self.list(&name);
        Some(name)
    }

    /// The head of a group.
    pub fn head(&self, name: &str) -> Option<&Held> {
        self.groups.get(name)?.held.front()
    }

    /// All that is in hand of a group, in order.
    pub fn group(&self, name: &str) -> impl Iterator<Item = &Held> {
        self.groups.get(name).into_iter().flat_map(|group| &group.held)
    }

    /// What is in hand of a group under this receipt.
    pub fn of_receipt(&self, name: &str, receipt: &str) -> Option<&Held> {
        self.group(name).find(|held| held.receipt == receipt)
    }

    /// Lets go of a whole group.
    pub fn drop_group(&mut self, name: &str) -> Vec<Held> {
        let Some(group) = self.groups.remove(name) else { return Vec::new() };
        if let Some(listed) = group.listed {
            self.waiting.remove(&listed);
        }
        for held in &group.held {
            self.by_job.remove(&held.job.id);
        }
        group.held.into()
    }

    /// Lets go of what waits behind the head, or of all if the head waits too.
    pub fn drop_waiting(&mut self, name: &str) -> Vec<Held> {
        let Some(group) = self.groups.get_mut(name) else { return Vec::new() };
        let first = usize::from(group.held.front().is_some_and(Held::is_out));
        let dropped: Vec<Held> = group.held.drain(first..).collect();
        for held in &dropped {
            self.by_job.remove(&held.job.id);
        }
        self.list(name);
        dropped
    }

    /// Lets go of one message that waits.
    pub fn drop_one(&mut self, name: &str, id: JobId) {
        if let Some(group) = self.groups.get_mut(name) {
            group.held.retain(|held| held.job.id != id);
            self.by_job.remove(&id);
            self.list(name);
        }
    }

    /// Names of the groups of which something waits for this worker.
    pub fn groups_of(&self, worker: WorkerId) -> Vec<Arc<str>> {
        let waits = |held: &Held| !held.is_out() && held.worker == worker;
        let of = self.groups.iter().filter(|(_, group)| group.held.iter().any(waits));
        of.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Heads that wait although nobody has asked for them yet.
    pub fn waiting(&self) -> impl DoubleEndedIterator<Item = &Arc<str>> {
        self.waiting.values()
    }

    /// All that the beats of this worker keep, with the name of the group.
    pub fn kept_by(&self, worker: WorkerId) -> impl Iterator<Item = (&Arc<str>, &Held)> {
        self.groups
            .iter()
            .flat_map(|(name, group)| group.held.iter().map(move |held| (name, held)))
            .filter(move |(_, held)| held.worker == worker)
    }

    /// A lease was renewed.
    pub fn renew(&mut self, name: &str, id: JobId, receipt: &str, since: Instant, until: Instant) {
        let held = self.groups.get_mut(name).into_iter().flat_map(|group| &mut group.held);
        for held in held.filter(|held| held.job.id == id && held.receipt == receipt) {
            (held.since, held.until) = (since, until);
        }
    }

    /// The rest of this chain is to be cancelled when it comes.
    pub fn doom(&mut self, name: &Arc<str>) {
        if self.doomed.insert(Arc::clone(name)) {
            self.doomed_in_order.push_back(Arc::clone(name));
        }
        if self.doomed_in_order.len() > MOST_DOOMED
            && let Some(oldest) = self.doomed_in_order.pop_front()
        {
            self.doomed.remove(&oldest);
        }
    }

    pub fn is_doomed(&self, name: &str) -> bool {
        self.doomed.contains(name)
    }

    /// Brings the list of heads that wait up to date for one group, and forgets the group when it is empty.
    fn list(&mut self, name: &str) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let waits = group.held.front().filter(|head| !head.is_out()).map(|head| (head.sequence, head.job.id));
        if group.listed != waits {
            if let Some(listed) = group.listed.take() {
                self.waiting.remove(&listed);
            }
            group.listed = waits;
        }
        let is_empty = group.held.is_empty();
        if let Some(place) = waits
            && let Some((name, _)) = self.groups.get_key_value(name)
        {
            self.waiting.insert(place, Arc::clone(name));
        }
        if is_empty {
            self.groups.remove(name);
        }
    }
}
