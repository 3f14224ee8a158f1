//! The state machine of the memory backend: every transition of `Backend`'s contract, under the caller's lock.
//!
//! Records live in a slab and are named by index; a record's generation grows with every transition, which
//! makes tickets, due times and lease tokens of an earlier state void without a search.

mod operators;
mod transitions;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::line::{Line, Ticket};
use crate::backend::{
    Claim, HandOff, Lease, Leased, Outcome, Rescued, Revocation, SettleReply, Settled, WorkerId,
};
use crate::job::{
    Body, ChainPlace, Failure, Headers, Job, JobId, JobType, NewJob, OnFailure, State, from_unix_ms, unix_ms,
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
                Outcome::Interrupted if wanted => self.end(index, State::Cancelled, Some(by_operator()), now),
                Outcome::Interrupted => {
                    self.records[index as usize].has_run = true;
                    self.put_back(index);
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
            last_attempt: None,
            enqueued_at: from_unix_ms(record.enqueued_ms),
            chain: record.chain,
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
