//! From state to state: what each transition does to a record, its line and its chain.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use super::{FAILED_PER_FINISHED, NONE, Now, OVERTAKEN, Rare, Record, Running, Store, neighbour};
use crate::backend::memory::line::Ticket;
use crate::backend::{Leased, Token};
use crate::job::{Failure, NewJob, OnFailure, State};

impl Store {
    pub(super) fn insert(&mut self, job: &NewJob, line: u32, now: Now) -> u32 {
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
    pub(super) fn remove(&mut self, index: u32) {
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
    pub(super) fn leave_state(&mut self, index: u32) {
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
    pub(super) fn enter(&mut self, index: u32, state: State) {
        let record = &mut self.records[index as usize];
        record.state = Some(state);
        self.lines[record.line as usize].moved(None, Some(state));
    }

    /// A new job, or the next one of a chain → *ready* at its place in enqueue order, or *scheduled*.
    pub(super) fn make_ready(&mut self, index: u32, now: Now) {
        let delay = self.records[index as usize].rare.as_ref().map_or(Duration::ZERO, |rare| rare.delay);
        if delay.is_zero() {
            self.take_place(index);
        } else {
            self.make_ready_after(index, delay, now);
        }
    }

    pub(super) fn make_ready_after(&mut self, index: u32, delay: Duration, now: Now) {
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
    pub(super) fn join_line(&mut self, index: u32) {
        self.records[index as usize].seq = self.take_seq();
        self.take_place(index);
    }

    /// *running* → *ready* at its old place, the attempt uncounted.
    pub(super) fn put_back(&mut self, index: u32) {
        self.leave_state(index);
        self.records[index as usize].attempt -= 1;
        self.take_place(index);
    }

    /// Out of no state → *ready*, where its `seq` says.
    pub(super) fn take_place(&mut self, index: u32) {
        self.enter(index, State::Ready);
        let record = &self.records[index as usize];
        let ticket = Ticket { index, generation: record.generation };
        self.lines[record.line as usize].push(record.seq, ticket);
    }

    pub(super) fn claim_head(&mut self, line: u32, now: Now, lease: Duration) -> Leased {
        // The caller has just seen the head.
        let ticket = self.head(line).unwrap_or(Ticket { index: NONE, generation: 0 });
        self.lines[line as usize].pop();
        self.leave_state(ticket.index);
        self.lease(ticket.index, now, lease)
    }

    /// Out of no state → *running*.
    pub(super) fn lease(&mut self, index: u32, now: Now, lease: Duration) -> Leased {
        self.enter(index, State::Running);
        let running_at = self.running.len() as u32;
        self.running.push(Running { index, until: now.instant + lease, beat_ms: now.ms });
        let record = &mut self.records[index as usize];
        record.running_at = running_at;
        record.moment_ms = now.ms;
        record.attempt += 1;
        let token = Token(u64::from(index) << 32 | u64::from(record.generation));
        Leased { job: self.job(index), token, since: now.instant }
    }

    /// Any state but final → `to`; returns the next job of the chain if this made it ready or scheduled.
    pub(super) fn end(&mut self, index: u32, to: State, failure: Option<Failure>, now: Now) -> Option<u32> {
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
    pub(super) fn release_next(&mut self, index: u32, now: Now) -> Option<u32> {
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

    pub(super) fn cancel_rest(&mut self, index: u32, now: Now) {
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
    pub(super) fn remember(&mut self, ticket: Ticket, state: State) {
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
}
