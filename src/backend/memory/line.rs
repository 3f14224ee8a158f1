//! The jobs of one type that wait for a worker, first in, first out.

use std::collections::VecDeque;

use crate::job::{JobType, State};

/// A place in line. It is void once the record's generation has moved on, so that a job can leave the line
/// (cancelled, finished by hand) without a search.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub index: u32,
    pub generation: u32,
}

/// One job type: its line and its counts.
#[derive(Debug)]
pub(super) struct Line {
    pub job_type: JobType,
    tickets: VecDeque<Ticket>,
    /// Jobs per state; the final ones since the store was made.
    counts: [u64; State::ALL.len()],
}

impl Line {
    pub fn new(job_type: JobType) -> Self {
        Self { job_type, tickets: VecDeque::new(), counts: [0; State::ALL.len()] }
    }

    pub fn count(&self, state: State) -> u64 {
        self.counts[state as usize]
    }

    /// A job of this type goes from one state to another; `None` is outside the store.
    pub fn moved(&mut self, from: Option<State>, to: Option<State>) {
        if let Some(from) = from {
            self.counts[from as usize] -= 1;
        }
        if let Some(to) = to {
            self.counts[to as usize] += 1;
        }
    }

    /// Adds a job at its place; `is_before` says whether a valid ticket stands before it. New jobs go to the end
    /// at once; those that come back are among the oldest, so the search from the front is short.
    pub fn push(
        &mut self,
        ticket: Ticket,
        is_valid: impl Fn(Ticket) -> bool,
        is_before: impl Fn(Ticket) -> bool,
    ) {
        while self.tickets.back().is_some_and(|last| !is_valid(*last)) {
            self.tickets.pop_back();
        }
        if self.tickets.back().is_none_or(|last| is_before(*last)) {
            self.tickets.push_back(ticket);
            return;
        }
        let place = self.tickets.iter().take_while(|other| !is_valid(**other) || is_before(**other)).count();
        self.tickets.insert(place, ticket);
    }

    /// Drops void tickets at the head and returns the first valid one.
    pub fn head(&mut self, is_valid: impl Fn(Ticket) -> bool) -> Option<Ticket> {
        while let Some(&ticket) = self.tickets.front() {
            if is_valid(ticket) {
                return Some(ticket);
            }
            self.tickets.pop_front();
        }
        None
    }

    pub fn pop(&mut self) {
        self.tickets.pop_front();
    }

    pub fn shrink(&mut self) {
        self.tickets.shrink_to_fit();
    }
}
