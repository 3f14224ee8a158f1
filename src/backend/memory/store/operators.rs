//! What operators do by id and by filter, and what they see.

use std::collections::BinaryHeap;
use std::time::Duration;

use super::{OVERTAKEN, Store, by_operator, neighbour};
use crate::backend::memory::line::Line;
use crate::backend::{Counts, Filter, Stats};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobId, JobInfo, State, from_unix_ms};

impl Store {
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

    fn find(&self, id: JobId) -> Result<u32> {
        self.ids.get(id.as_bytes()).copied().ok_or_else(|| Error::unknown_job(id))
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

fn wrong_state(text: String) -> Error {
    Error::new(ErrorKind::WrongState, text)
}

fn as_counts(counts: [u64; State::ALL.len()], oldest_ready: Option<Duration>) -> Counts {
    let [blocked, scheduled, ready, running, finished, failed, cancelled] = counts.map(Some);
    Counts { blocked, scheduled, ready, running, finished, failed, cancelled, oldest_ready }
}
