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
    /// With the `seq` they were given for, which is their order.
    tickets: VecDeque<(u64, Ticket)>,
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

    /// Adds a job at its place in the order of `seq`: the end for a new one, near the front for one that comes
    /// back.
    pub fn push(&mut self, seq: u64, ticket: Ticket) {
        if self.tickets.back().is_none_or(|(last, _)| *last < seq) {
            self.tickets.push_back((seq, ticket));
        } else {
            let place = self.place(seq);
            self.tickets.insert(place, (seq, ticket));
        }
    }

    /// Takes out the job of this `seq` that has just been added.
    pub fn take_out(&mut self, seq: u64) {
        let place = self.place(seq);
        self.tickets.remove(place);
    }

    /// Where the first ticket of at least this `seq` stands, void ones included.
    fn place(&self, seq: u64) -> usize {
        self.tickets.partition_point(|(other, _)| *other < seq)
    }

    /// Drops void tickets at the head and returns the first valid one.
    pub fn head(&mut self, is_valid: impl Fn(Ticket) -> bool) -> Option<Ticket> {
        while let Some(&(_, ticket)) = self.tickets.front() {
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
