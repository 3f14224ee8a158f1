//! The state machine of the memory backend: every transition of `Backend`'s contract, under the caller's lock.
//!
//! Records live in a slab and are named by index; a record's generation grows with every transition, which
//! makes tickets, due times and lease tokens of an earlier state void without a search.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::line::{Line, Ticket};
use crate::backend::{
    Claim, Counts, Filter, HandOff, Lease, Leased, Outcome, Rescued, Revocation, SettleReply, Settled, Stats,
    Token, WorkerId,
};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{
    Body, ChainPlace, Failure, Headers, Job, JobId, JobInfo, JobType, NewJob, OnFailure, State, from_unix_ms,
    unix_ms,
};

/// No record.
const NONE: u32 = u32::MAX;
/// Stands for the next job of a chain when that one had started and was deleted: nothing before it runs again.
const OVERTAKEN: u32 = u32::MAX - 1;
/// Failed and cancelled jobs kept for each finished one: they are the ones that operators look for.
const FAILED_PER_FINISHED: usize = 10;

#[derive(Debug)]
struct Record {
    id: JobId,
    chain: ChainPlace,
    body: Body,
    /// What few jobs have, out of line to keep the others small.
    rare: Option<Box<Rare>>,
    /// Place in line: smaller is served first.
    seq: u64,
    enqueued_ms: u64,
    /// When its last attempt started or, once final, when it became so; 0 before the first start.
    moment_ms: u64,
    /// Once final: how long before `moment_ms` its last attempt started; `NONE` if there was none.
    ran_ms: u32,
    line: u32,
    generation: u32,
    attempt: u32,
    rescues: u32,
    /// Neighbours in the chain.
    previous: u32,
    next: u32,
    /// Its entry in `running`.
    running_at: u32,
    max_attempts: Option<NonZeroU32>,
    /// `None` is a free slot.
    state: Option<State>,
    on_failure: OnFailure,
    cancel_requested: bool,
    /// A worker may have run it in an attempt that `attempt` no longer counts.
    has_run: bool,
}

impl Record {
    fn has_started(&self) -> bool {
        self.attempt > 0 || self.has_run
    }

    /// Notes that it is final from now on.
    fn close(&mut self, now: Now) {
        let ran = now.ms.saturating_sub(self.moment_ms).min(u64::from(NONE) - 1);
        self.ran_ms = if self.moment_ms == 0 { NONE } else { ran as u32 };
        self.moment_ms = now.ms;
    }

    fn started_ms(&self) -> Option<u64> {
        match self.state {
            Some(state) if state.is_final() => {
                (self.ran_ms != NONE).then(|| self.moment_ms - u64::from(self.ran_ms))
            }
            _ => (self.moment_ms > 0).then_some(self.moment_ms),
        }
    }
}

#[derive(Debug, Default)]
struct Rare {
    headers: Option<Arc<Headers>>,
    unique: Option<Arc<str>>,
    delay: Duration,
    due_ms: u64,
    failure: Option<Failure>,
    /// The job before it in its chain whose end cancelled it.
    cancelled_with: Option<JobId>,
}

#[derive(Debug)]
struct Running {
    index: u32,
    until: Instant,
    beat_ms: u64,
}

#[derive(Debug)]
pub(super) struct Store {
    records: Vec<Record>,
    free: Vec<u32>,
    ids: FxHashMap<[u8; 16], u32>,
    lines: Vec<Line>,
    line_of: FxHashMap<JobType, u32>,
    running: Vec<Running>,
    /// (due, seq, index, generation) of scheduled jobs, soonest first.
    due: BinaryHeap<Reverse<(Instant, u64, u32, u32)>>,
    unique: FxHashMap<(u32, Arc<str>), u32>,
    /// Final jobs, oldest end first.
    finished: VecDeque<Ticket>,
    failed: VecDeque<Ticket>,
    keep_finished: usize,
    workers: FxHashMap<WorkerId, Instant>,
    next_seq: u64,
    no_body: Body,
    /// One moment on both clocks. Times that people read are counted from here by the monotonic one, so that no
    /// age jumps when the system's clock is set.
    started: Now,
}

impl Store {
    pub fn new(keep_finished: usize) -> Self {
        Self {
            records: Vec::new(),
            free: Vec::new(),
            ids: FxHashMap::default(),
            lines: Vec::new(),
            line_of: FxHashMap::default(),
            running: Vec::new(),
            due: BinaryHeap::new(),
            unique: FxHashMap::default(),
            finished: VecDeque::new(),
            failed: VecDeque::new(),
            keep_finished,
            workers: FxHashMap::default(),
            next_seq: 0,
            no_body: Body::from_encoder(b""),
            started: Now { instant: Instant::now(), ms: unix_ms(SystemTime::now()) },
        }
    }

    /// Reads the clock and makes ready what is due by it, so that every operation sees the same states.
    fn now(&mut self) -> Now {
        let instant = Instant::now();
        let elapsed = instant.saturating_duration_since(self.started.instant);
        self.make_due(Some(instant));
        Now { instant, ms: self.started.ms + elapsed.as_millis() as u64 }
    }

    // ---- what clients do ---------------------------------------------------------------------------

    pub fn enqueue(&mut self, jobs: &[NewJob]) -> Vec<JobId> {
        let now = self.now();
        let mut ids = Vec::with_capacity(jobs.len());
        let mut previous = NONE;
        let mut last_line: Option<u32> = None;
        for job in jobs {
            let line = match last_line {
                Some(line) if self.lines[line as usize].job_type.same(&job.job_type) => line,
                _ => self.line(&job.job_type),
            };
            last_line = Some(line);
            if let Some(key) = &job.unique
                && let Some(&holder) = self.unique.get(&(line, Arc::clone(key)))
            {
                ids.push(self.records[holder as usize].id);
                continue;
            }
            ids.push(job.id);
            if self.ids.contains_key(job.id.as_bytes()) {
                previous = NONE;
                continue;
            }
            if job.chain.position > 1 && previous == NONE {
                // Stored by an earlier call, as the job before it shows, and deleted since.
                continue;
            }
            let index = self.insert(job, line, now);
            if job.chain.position > 1 {
                self.records[index as usize].previous = previous;
                self.records[previous as usize].next = index;
                self.enter(index, State::Blocked);
            } else {
                self.make_ready(index, now);
            }
            previous = index;
        }
        ids
    }

    pub fn claim(&mut self, want: &Claim<'_>) -> Vec<Leased> {
        let now = self.now();
        self.workers.insert(want.worker, now.instant + want.lease);
        let mut heads: Vec<(u64, u32)> = Vec::new();
        for job_type in want.types {
            if let Some(&line) = self.line_of.get(job_type)
                && let Some(seq) = self.head_seq(line)
            {
                heads.push((seq, line));
            }
        }
        let mut leased = Vec::new();
        if let [(_, line)] = heads[..] {
            while leased.len() < want.limit && self.head_seq(line).is_some() {
                leased.push(self.claim_head(line, now, want.lease));
            }
            return leased;
        }
        // Several types wait: oldest job first over all of them.
        let mut heads: BinaryHeap<Reverse<(u64, u32)>> = heads.into_iter().map(Reverse).collect();
        while leased.len() < want.limit
            && let Some(Reverse((seq, line))) = heads.pop()
        {
            if self.head_seq(line) != Some(seq) {
                continue; // its type was asked for twice
            }
            leased.push(self.claim_head(line, now, want.lease));
            if let Some(seq) = self.head_seq(line) {
                heads.push(Reverse((seq, line)));
            }
        }
        leased
    }

    pub fn extend(
        &mut self,
        worker: WorkerId,
        leases: &[Lease],
        lease: Duration,
    ) -> Vec<(Lease, Revocation)> {
        let now = self.now();
        self.workers.insert(worker, now.instant + lease);
        let mut revoked = Vec::new();
        for held in leases {
            match self.current(*held) {
                None => revoked.push((*held, Revocation::Lost)),
                Some(index) => {
                    let record = &self.records[index as usize];
                    let running = &mut self.running[record.running_at as usize];
                    running.until = now.instant + lease;
                    running.beat_ms = now.ms;
                    if record.cancel_requested {
                        revoked.push((*held, Revocation::Cancel));
                    }
                }
            }
        }
        revoked
    }

    pub fn settle(&mut self, done: &[Settled], next: &HandOff<'_>) -> SettleReply {
        let now = self.now();
        let mut reply = SettleReply::default();
        for (place, settled) in done.iter().enumerate() {
            let Some(index) = self.current(settled.lease) else {
                reply.lost.push(place);
                continue;
            };
            let wanted = self.records[index as usize].cancel_requested;
            let released = match &settled.outcome {
                Outcome::Finished => {
                    if let Some(rare) = &mut self.records[index as usize].rare {
                        rare.failure = None;
                    }
                    self.end(index, State::Finished, None, now)
                }
                Outcome::Failed(failure) => self.end(index, State::Failed, Some(failure.clone()), now),
                Outcome::Cancelled(failure) => self.end(index, State::Cancelled, Some(failure.clone()), now),
                Outcome::Retry { failure, .. } if wanted => {
                    self.end(index, State::Cancelled, Some(failure.clone()), now)
                }
                Outcome::Retry { after, failure } => {
                    self.rare(index).failure = Some(failure.clone());
                    self.leave_state(index);
                    self.make_ready_after(index, *after, now);
                    None
                }
            };
            // The successor has the oldest seq of its type only by chance: it is claimed by itself, not as a head.
            if let Some(ready) = released
                && self.records[ready as usize].state == Some(State::Ready)
                && next.types.contains(&self.line_at(ready).job_type)
            {
                let record = &self.records[ready as usize];
                self.lines[record.line as usize].take_out(record.seq);
                self.leave_state(ready);
                reply.next.push(self.lease(ready, now, next.lease));
            }
        }
        reply
    }

    /// Backwards, so that each goes in front of the one put back before it.
    pub fn give_back(&mut self, leases: &[Lease]) {
        let now = self.now();
        for lease in leases.iter().rev() {
            let Some(index) = self.current(*lease) else { continue };
            self.put_back(index);
            let record = &mut self.records[index as usize];
            if record.attempt == 0 {
                record.moment_ms = 0;
            }
            if record.cancel_requested {
                self.end(index, State::Cancelled, Some(by_operator()), now);
            }
        }
    }

    pub fn rescue(&mut self, max_rescues: u32) -> Rescued {
        let now = self.now();
        self.workers.retain(|_, until| *until >= now.instant);
        let mut expired: Vec<u32> =
            self.running.iter().filter(|running| running.until < now.instant).map(|r| r.index).collect();
        expired.sort_by_key(|index| Reverse(self.records[*index as usize].seq));
        let mut rescued = Rescued::default();
        for index in expired {
            let record = &mut self.records[index as usize];
            if record.cancel_requested {
                let failure =
                    Failure::new("cancelled", "cancelled by an operator; its worker was lost meanwhile");
                self.end(index, State::Cancelled, Some(failure), now);
            } else if record.rescues < max_rescues {
                record.rescues += 1;
                record.has_run = true;
                self.put_back(index);
                rescued.requeued += 1;
            } else {
                let failure =
                    Failure::new("worker lost", format!("its lease ran out {} times", record.rescues + 1));
                self.end(index, State::Failed, Some(failure), now);
                rescued.failed += 1;
            }
        }
        rescued
    }

    pub fn leave(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
    }

    // ---- what operators do -------------------------------------------------------------------------

    pub fn get(&mut self, id: JobId) -> Result<JobInfo> {
        self.now();
        Ok(self.info(self.find(id)?))
    }

    pub fn list(&mut self, filter: &Filter) -> Vec<JobInfo> {
        let now = self.now();
        let newest = filter.older_than.map(|age| now.ms.saturating_sub(age.as_millis() as u64));
        // The `limit` smallest matching ids, in one pass.
        let mut found: BinaryHeap<(JobId, u32)> = BinaryHeap::new();
        for (index, record) in (0..).zip(&self.records) {
            let Some(state) = record.state else { continue };
            let matches = filter.state.is_none_or(|wanted| wanted == state)
                && filter.after.is_none_or(|after| record.id > after)
                && newest.is_none_or(|newest| record.enqueued_ms < newest)
                && filter
                    .job_type
                    .as_deref()
                    .is_none_or(|wanted| self.line_at(index).job_type.as_str() == wanted);
            if matches {
                found.push((record.id, index));
                if found.len() > filter.limit {
                    found.pop();
                }
            }
        }
        found.into_sorted_vec().into_iter().map(|(_, index)| self.info(index)).collect()
    }

    pub fn unresponsive(&mut self, older_than: Duration) -> Vec<JobInfo> {
        let newest = self.now().ms.saturating_sub(older_than.as_millis() as u64);
        let mut silent: Vec<JobInfo> = self
            .running
            .iter()
            .filter(|running| running.beat_ms <= newest)
            .map(|r| self.info(r.index))
            .collect();
        silent.sort_by_key(|info| info.job.id);
        silent
    }

    pub fn finish(&mut self, id: JobId) -> Result<()> {
        let now = self.now();
        let index = self.find_open(id, "finish")?;
        self.end(index, State::Finished, None, now);
        Ok(())
    }

    pub fn cancel(&mut self, id: JobId) -> Result<()> {
        let now = self.now();
        let index = self.find_open(id, "cancel")?;
        let record = &mut self.records[index as usize];
        if record.state == Some(State::Running) {
            record.cancel_requested = true;
        } else {
            self.end(index, State::Cancelled, Some(by_operator()), now);
        }
        Ok(())
    }

    pub fn requeue(&mut self, id: JobId) -> Result<()> {
        self.now();
        let index = self.find(id)?;
        let state = self.state(index);
        if matches!(state, State::Finished | State::Ready | State::Blocked) {
            let fix =
                if state == State::Finished { "enqueue a new job instead" } else { "it will run by itself" };
            return Err(wrong_state(format!("job {id} cannot be requeued, it is {}; {fix}", state.as_str())));
        }
        let followers = self.followers(index);
        let started = followers.iter().find(|&&follower| self.records[follower as usize].has_started());
        let last = followers.last().copied().unwrap_or(index);
        if started.is_some() || self.records[last as usize].next == OVERTAKEN {
            let which = started.map_or("a deleted job".to_owned(), |&started| {
                format!("job {}", self.records[started as usize].id)
            });
            return Err(wrong_state(format!(
                "job {id} cannot be requeued: {which} after it in its chain has started, and a chain never goes \
                 back; enqueue a new job instead"
            )));
        }
        if let Some(key) = self.unique_key(index)
            && let Some(&holder) = self.unique.get(&key)
            && holder != index
        {
            return Err(wrong_state(format!(
                "job {id} cannot be requeued: job {} holds its unique key now; wait until that one is final",
                self.records[holder as usize].id
            )));
        }
        // What ended the rest of the chain: this job, or the one that this job was cancelled with.
        let rare = self.records[index as usize].rare.as_mut();
        let cause = rare.and_then(|rare| rare.cancelled_with.take()).unwrap_or(id);
        for follower in followers {
            let record = &mut self.records[follower as usize];
            let rare = record.rare.as_mut().filter(|rare| rare.cancelled_with == Some(cause));
            let is_released = matches!(record.state, Some(State::Ready | State::Scheduled));
            if rare.is_none() && !is_released {
                continue;
            }
            if let Some(rare) = rare {
                rare.cancelled_with = None;
                rare.failure = None;
            }
            record.moment_ms = 0;
            self.leave_state(follower);
            self.enter(follower, State::Blocked);
        }
        self.leave_state(index);
        let record = &mut self.records[index as usize];
        record.has_run = record.has_started();
        record.moment_ms = 0;
        record.attempt = 0;
        record.rescues = 0;
        record.cancel_requested = false;
        if let Some(key) = self.unique_key(index) {
            self.unique.insert(key, index);
        }
        let before = |&index: &u32| neighbour(self.records[index as usize].previous);
        let mut predecessors = std::iter::successors(before(&index), before);
        if predecessors.any(|predecessor| !self.state(predecessor).is_final()) {
            self.enter(index, State::Blocked);
        } else {
            self.join_line(index);
        }
        Ok(())
    }

    pub fn delete_finished(&mut self, older_than: Duration, batch: usize) -> u64 {
        let newest = self.now().ms.saturating_sub(older_than.as_millis() as u64);
        let mut deleted = 0;
        for failed in [false, true] {
            while deleted < batch as u64 {
                let ends = if failed { &mut self.failed } else { &mut self.finished };
                let Some(&ticket) = ends.front() else { break };
                let record = &self.records[ticket.index as usize];
                if record.generation != ticket.generation {
                    ends.pop_front();
                } else if record.moment_ms <= newest {
                    ends.pop_front();
                    self.remove(ticket.index);
                    deleted += 1;
                } else {
                    break;
                }
            }
        }
        deleted
    }

    pub fn stats(&mut self) -> Stats {
        let now = self.now();
        self.workers.retain(|_, until| *until >= now.instant);
        let mut stats = Stats { workers: Some(self.workers.len() as u64), ..Stats::default() };
        let mut total = [0; State::ALL.len()];
        for line in 0..self.lines.len() as u32 {
            let head = self.head(line).map(|ticket| self.records[ticket.index as usize].enqueued_ms);
            let line = &self.lines[line as usize];
            let counts = State::ALL.map(|state| line.count(state));
            for (sum, count) in total.iter_mut().zip(counts) {
                *sum += count;
            }
            let oldest = head.map(|ms| Duration::from_millis(now.ms.saturating_sub(ms)));
            stats.total.oldest_ready = stats.total.oldest_ready.max(oldest);
            stats.by_type.insert(line.job_type.to_string(), as_counts(counts, oldest));
        }
        stats.total = as_counts(total, stats.total.oldest_ready);
        stats
    }

    pub fn shrink(&mut self) {
        self.ids.shrink_to_fit();
        self.due.shrink_to_fit();
        self.lines.iter_mut().for_each(Line::shrink);
    }

    /// *scheduled* → *ready*, up to a time or (`None`) all of them; returns how many.
    pub fn make_due(&mut self, until: Option<Instant>) -> u64 {
        let mut made_due = 0;
        while let Some(&Reverse((due, _, index, generation))) = self.due.peek() {
            if until.is_some_and(|until| due > until) {
                break;
            }
            self.due.pop();
            if self.records[index as usize].generation == generation {
                self.leave_state(index);
                self.join_line(index);
                made_due += 1;
            }
        }
        made_due
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((due, ..))| *due)
    }

    // ---- transitions -------------------------------------------------------------------------------

    fn insert(&mut self, job: &NewJob, line: u32, now: Now) -> u32 {
        let is_plain = job.headers.is_none() && job.unique.is_none() && job.delay.is_zero();
        let record = Record {
            id: job.id,
            chain: job.chain,
            body: job.body.clone(),
            rare: (!is_plain).then(|| {
                Box::new(Rare {
                    headers: job.headers.clone(),
                    unique: job.unique.clone(),
                    delay: job.delay,
                    ..Rare::default()
                })
            }),
            seq: self.take_seq(),
            enqueued_ms: now.ms,
            moment_ms: 0,
            ran_ms: NONE,
            line,
            generation: 0,
            attempt: 0,
            rescues: 0,
            previous: NONE,
            next: NONE,
            running_at: NONE,
            max_attempts: job.max_attempts,
            state: None,
            on_failure: job.on_failure,
            cancel_requested: false,
            has_run: false,
        };
        let index = if let Some(index) = self.free.pop() {
            let slot = &mut self.records[index as usize];
            *slot = Record { generation: slot.generation, ..record };
            index
        } else {
            self.records.push(record);
            self.records.len() as u32 - 1
        };
        self.ids.insert(*job.id.as_bytes(), index);
        if let Some(key) = &job.unique {
            self.unique.insert((line, Arc::clone(key)), index);
        }
        index
    }

    /// Frees the slot of a final job; its neighbours in the chain become each other's.
    fn remove(&mut self, index: u32) {
        let record = &self.records[index as usize];
        let (has_started, previous, next) = (record.has_started(), record.previous, record.next);
        if let Some(previous) = neighbour(previous) {
            self.records[previous as usize].next = if has_started { OVERTAKEN } else { next };
        }
        if let Some(next) = neighbour(next) {
            self.records[next as usize].previous = if has_started { NONE } else { previous };
        }
        let no_body = self.no_body.clone();
        let record = &mut self.records[index as usize];
        record.state = None;
        record.generation = record.generation.wrapping_add(1);
        record.body = no_body;
        record.rare = None;
        self.ids.remove(record.id.as_bytes());
        self.free.push(index);
    }

    /// Out of its state, into none; what named the old state becomes void.
    fn leave_state(&mut self, index: u32) {
        let record = &mut self.records[index as usize];
        record.generation = record.generation.wrapping_add(1);
        let from = record.state.take();
        self.lines[record.line as usize].moved(from, None);
        if from == Some(State::Running) {
            let at = record.running_at as usize;
            record.running_at = NONE;
            self.running.swap_remove(at);
            if let Some(moved) = self.running.get(at) {
                self.records[moved.index as usize].running_at = at as u32;
            }
        }
    }

    /// Out of no state, into this one.
    fn enter(&mut self, index: u32, state: State) {
        let record = &mut self.records[index as usize];
        record.state = Some(state);
        self.lines[record.line as usize].moved(None, Some(state));
    }

    /// A new job, or the next one of a chain → *ready* at its place in enqueue order, or *scheduled*.
    fn make_ready(&mut self, index: u32, now: Now) {
        let delay = self.records[index as usize].rare.as_ref().map_or(Duration::ZERO, |rare| rare.delay);
        if delay.is_zero() {
            self.take_place(index);
        } else {
            self.make_ready_after(index, delay, now);
        }
    }

    fn make_ready_after(&mut self, index: u32, delay: Duration, now: Now) {
        if delay.is_zero() {
            self.join_line(index);
            return;
        }
        self.rare(index).due_ms = now.ms.saturating_add(delay.as_millis() as u64);
        self.enter(index, State::Scheduled);
        let seq = self.take_seq();
        let generation = self.records[index as usize].generation;
        // A delay beyond what the clock can name is as good as never.
        let due =
            now.instant.checked_add(delay).unwrap_or(now.instant + Duration::from_secs(86_400 * 36_500));
        self.due.push(Reverse((due, seq, index, generation)));
    }

    /// → *ready*, at the end of its line.
    fn join_line(&mut self, index: u32) {
        self.records[index as usize].seq = self.take_seq();
        self.take_place(index);
    }

    /// *running* → *ready* at its old place, the attempt uncounted.
    fn put_back(&mut self, index: u32) {
        self.leave_state(index);
        self.records[index as usize].attempt -= 1;
        self.take_place(index);
    }

    /// Out of no state → *ready*, where its `seq` says.
    fn take_place(&mut self, index: u32) {
        self.enter(index, State::Ready);
        let record = &self.records[index as usize];
        let ticket = Ticket { index, generation: record.generation };
        self.lines[record.line as usize].push(record.seq, ticket);
    }

    fn claim_head(&mut self, line: u32, now: Now, lease: Duration) -> Leased {
        // The caller has just seen the head.
        let ticket = self.head(line).unwrap_or(Ticket { index: NONE, generation: 0 });
        self.lines[line as usize].pop();
        self.leave_state(ticket.index);
        self.lease(ticket.index, now, lease)
    }

    /// Out of no state → *running*.
    fn lease(&mut self, index: u32, now: Now, lease: Duration) -> Leased {
        self.enter(index, State::Running);
        let running_at = self.running.len() as u32;
        self.running.push(Running { index, until: now.instant + lease, beat_ms: now.ms });
        let record = &mut self.records[index as usize];
        record.running_at = running_at;
        record.moment_ms = now.ms;
        record.attempt += 1;
        let token = Token(u64::from(index) << 32 | u64::from(record.generation));
        Leased { job: self.job(index), token }
    }

    /// Any state but final → `to`; returns the next job of the chain if this made it ready or scheduled.
    fn end(&mut self, index: u32, to: State, failure: Option<Failure>, now: Now) -> Option<u32> {
        let was_blocked = self.state(index) == State::Blocked;
        self.leave_state(index);
        self.enter(index, to);
        if let Some(key) = self.unique_key(index) {
            self.unique.remove(&key);
        }
        if let Some(failure) = failure {
            self.rare(index).failure = Some(failure);
        }
        let record = &mut self.records[index as usize];
        record.close(now);
        let ticket = Ticket { index, generation: record.generation };
        let cancels_rest = to != State::Finished && record.on_failure == OnFailure::Cancel;
        let released = if record.chain.position == record.chain.length {
            None
        } else if cancels_rest {
            self.cancel_rest(index, now);
            None
        } else if was_blocked {
            None
        } else {
            self.release_next(index, now)
        };
        self.remember(ticket, to);
        released
    }

    /// The first job after `index` that is not final goes *blocked* → *ready*.
    fn release_next(&mut self, index: u32, now: Now) -> Option<u32> {
        let mut next = self.next_in_chain(index)?;
        while self.state(next).is_final() {
            next = self.next_in_chain(next)?;
        }
        if self.state(next) != State::Blocked {
            return None;
        }
        self.leave_state(next);
        self.make_ready(next, now);
        Some(next)
    }

    fn cancel_rest(&mut self, index: u32, now: Now) {
        let id = self.records[index as usize].id;
        for follower in self.followers(index) {
            if self.state(follower) == State::Blocked {
                self.leave_state(follower);
                self.enter(follower, State::Cancelled);
                let failure = Failure::new("chain cancelled", format!("job {id} before it did not finish"));
                let rare = self.rare(follower);
                rare.failure = Some(failure);
                rare.cancelled_with = Some(id);
                let record = &mut self.records[follower as usize];
                record.close(now);
                let ticket = Ticket { index: follower, generation: record.generation };
                self.remember(ticket, State::Cancelled);
            }
        }
    }

    /// Keeps a final job for inspection and forgets the oldest beyond the limit.
    fn remember(&mut self, ticket: Ticket, state: State) {
        let (ends, limit) = if state == State::Finished {
            (&mut self.finished, self.keep_finished)
        } else {
            (&mut self.failed, self.keep_finished.saturating_mul(FAILED_PER_FINISHED))
        };
        ends.push_back(ticket);
        if ends.len() > limit
            && let Some(oldest) = ends.pop_front()
            && self.records[oldest.index as usize].generation == oldest.generation
        {
            self.remove(oldest.index);
        }
    }

    // ---- looking things up -------------------------------------------------------------------------

    fn line(&mut self, job_type: &JobType) -> u32 {
        if let Some(&line) = self.line_of.get(job_type) {
            return line;
        }
        let line = self.lines.len() as u32;
        self.lines.push(Line::new(job_type.clone()));
        self.line_of.insert(job_type.clone(), line);
        line
    }

    fn line_at(&self, index: u32) -> &Line {
        &self.lines[self.records[index as usize].line as usize]
    }

    fn head(&mut self, line: u32) -> Option<Ticket> {
        let records = &self.records;
        self.lines[line as usize]
            .head(|ticket| records[ticket.index as usize].generation == ticket.generation)
    }

    fn head_seq(&mut self, line: u32) -> Option<u64> {
        self.head(line).map(|ticket| self.records[ticket.index as usize].seq)
    }

    /// The record of a lease that is still current.
    fn current(&self, lease: Lease) -> Option<u32> {
        let index = (lease.token.0 >> 32) as u32;
        let record = self.records.get(index as usize)?;
        let is_current = record.generation == lease.token.0 as u32
            && record.state == Some(State::Running)
            && record.id == lease.id;
        is_current.then_some(index)
    }

    fn find(&self, id: JobId) -> Result<u32> {
        self.ids.get(id.as_bytes()).copied().ok_or_else(|| {
            Error::new(
                ErrorKind::UnknownJob,
                format!(
                    "there is no job {id}; it was never enqueued here, or finished long ago and was deleted"
                ),
            )
        })
    }

    fn find_open(&self, id: JobId, operation: &str) -> Result<u32> {
        let index = self.find(id)?;
        let state = self.state(index);
        if state.is_final() {
            return Err(wrong_state(format!(
                "cannot {operation} job {id}, it is {} already",
                state.as_str()
            )));
        }
        Ok(index)
    }

    fn state(&self, index: u32) -> State {
        // Only free slots have none, and no index to a free slot survives its generation.
        self.records[index as usize].state.unwrap_or(State::Cancelled)
    }

    /// The jobs after this one in its chain, in order.
    fn followers(&self, index: u32) -> Vec<u32> {
        std::iter::successors(self.next_in_chain(index), |&next| self.next_in_chain(next)).collect()
    }

    fn next_in_chain(&self, index: u32) -> Option<u32> {
        neighbour(self.records[index as usize].next)
    }

    fn unique_key(&self, index: u32) -> Option<(u32, Arc<str>)> {
        let record = &self.records[index as usize];
        let key = record.rare.as_ref()?.unique.as_ref()?;
        Some((record.line, Arc::clone(key)))
    }

    fn rare(&mut self, index: u32) -> &mut Rare {
        self.records[index as usize].rare.get_or_insert_default()
    }

    fn take_seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq
    }

    fn job(&self, index: u32) -> Job {
        let record = &self.records[index as usize];
        Job {
            id: record.id,
            job_type: self.lines[record.line as usize].job_type.clone(),
            body: record.body.clone(),
            headers: record.rare.as_ref().and_then(|rare| rare.headers.clone()),
            attempt: record.attempt,
            max_attempts: record.max_attempts,
            enqueued_at: from_unix_ms(record.enqueued_ms),
            chain: record.chain,
        }
    }

    fn info(&self, index: u32) -> JobInfo {
        let record = &self.records[index as usize];
        let state = self.state(index);
        let rare = record.rare.as_deref();

        let beat = self.running.get(record.running_at as usize).map(|running| from_unix_ms(running.beat_ms));
        JobInfo {
            job: self.job(index),
            state,
            due_at: rare.filter(|_| state == State::Scheduled).map(|rare| from_unix_ms(rare.due_ms)),
            started_at: record.started_ms().map(from_unix_ms),
            last_beat_at: beat,
            finished_at: state.is_final().then(|| from_unix_ms(record.moment_ms)),
            rescues: record.rescues,
            failure: rare.and_then(|rare| rare.failure.clone()),
        }
    }
}

/// One reading of the clock per call, as leases and delays need it and as people read it.
#[derive(Debug, Clone, Copy)]
struct Now {
    instant: Instant,
    ms: u64,
}

/// A link to another job of the chain, if it leads to one.
fn neighbour(link: u32) -> Option<u32> {
    (link != NONE && link != OVERTAKEN).then_some(link)
}

fn by_operator() -> Failure {
    Failure::new("cancelled", "cancelled by an operator")
}

fn wrong_state(text: String) -> Error {
    Error::new(ErrorKind::WrongState, text)
}

fn as_counts(counts: [u64; State::ALL.len()], oldest_ready: Option<Duration>) -> Counts {
    let [blocked, scheduled, ready, running, finished, failed, cancelled] = counts.map(Some);
    Counts { blocked, scheduled, ready, running, finished, failed, cancelled, oldest_ready }
}
