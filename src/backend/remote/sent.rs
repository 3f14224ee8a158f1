//! Which jobs a client has sent before.

use std::collections::VecDeque;

use crate::job::{JobId, NewJob};

/// Calls of which the ids are remembered.
const REMEMBERED: usize = 1024;

/// The ids of the latest calls, from the smallest of a call to the greatest: who enqueues the same jobs again is told
/// from who enqueues new ones without asking the store.
#[derive(Debug, Default)]
pub struct Sent {
    calls: VecDeque<(JobId, JobId)>,
    /// The greatest one ever.
    greatest: Option<JobId>,
    /// Up to here calls are forgotten.
    forgotten: Option<JobId>,
}

impl Sent {
    /// Remembers a call; were none of its ids sent before?
    pub fn note(&mut self, jobs: &[NewJob]) -> bool {
        let ids = || jobs.iter().map(|job| job.id);
        let (Some(first), Some(last)) = (ids().min(), ids().max()) else { return true };
        // Whoever makes ids one after the other, as dejq does, is done here.
        let is_greater = self.greatest.is_none_or(|greatest| greatest < first);
        let overlaps = |&(low, high): &(JobId, JobId)| low <= last && first <= high;
        let is_new =
            is_greater || self.forgotten.is_none_or(|id| id < first) && !self.calls.iter().any(overlaps);
        self.greatest = self.greatest.max(Some(last));
        self.calls.push_back((first, last));
        if self.calls.len() > REMEMBERED
            && let Some((_, high)) = self.calls.pop_front()
        {
            self.forgotten = self.forgotten.max(Some(high));
        }
        is_new
    }
}
