//! Jobs that this process has stored, by type.

use std::sync::{Mutex, PoisonError};

use rustc_hash::FxHashMap;

use super::page::{MOST_TYPES, OTHER_TYPES};
use crate::job::{JobId, JobType, NewJob};

#[derive(Debug, Default)]
pub(super) struct Enqueued {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    by_type: FxHashMap<JobType, u64>,
    others: u64,
}

impl Enqueued {
    /// Counts the jobs of a call. `ids` are the store's answer, which names another job where a unique key was taken.
    pub fn add(&self, jobs: &[NewJob], ids: &[JobId]) {
        let stored = jobs.iter().zip(ids).filter(|(job, id)| job.id == **id);
        let mut types = stored.map(|(job, _)| &job.job_type).peekable();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(job_type) = types.next() {
            // Neighbours mostly share their type: one look for all of them.
            let mut count = 1;
            while types.next_if(|next| next.same(job_type) || *next == job_type).is_some() {
                count += 1;
            }
            counts.add(job_type, count);
        }
    }

    /// Counts by type, those beyond [`MOST_TYPES`] together.
    pub fn read(&self) -> Vec<(String, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let others = (counts.others > 0).then(|| (OTHER_TYPES.to_owned(), counts.others));
        let by_type = counts.by_type.iter().map(|(job_type, count)| (job_type.to_string(), *count));
        by_type.chain(others).collect()
    }
}

impl Counts {
    fn add(&mut self, job_type: &JobType, count: u64) {
        if let Some(there) = self.by_type.get_mut(job_type.as_str()) {
            *there += count;
        } else if self.by_type.len() < MOST_TYPES {
            self.by_type.insert(job_type.clone(), count);
        } else {
            self.others += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Body;

    fn jobs(names: &[&str]) -> Vec<NewJob> {
        let body = Body::from_encoder(b"1");
        let job =
            |name: &&str| NewJob::single(JobType::new(name).unwrap_or_else(|_| unreachable!()), body.clone());
        names.iter().map(job).collect()
    }

    fn ids(jobs: &[NewJob]) -> Vec<JobId> {
        jobs.iter().map(|job| job.id).collect()
    }

    #[test]
    fn what_was_there_already_is_not_counted() {
        let enqueued = Enqueued::default();
        let all = jobs(&["a", "a", "b", "a"]);
        enqueued.add(&all, &ids(&all));
        enqueued.add(&jobs(&["a"]), &ids(&all[..1]));
        let mut counted = enqueued.read();
        counted.sort();
        assert_eq!(counted, [("a".to_owned(), 3), ("b".to_owned(), 1)]);
    }

    #[test]
    fn types_beyond_the_limit_are_counted_together() {
        let enqueued = Enqueued::default();
        let names: Vec<String> = (0..MOST_TYPES + 7).map(|number| format!("t{number}")).collect();
        let all = jobs(&names.iter().map(String::as_str).collect::<Vec<_>>());
        enqueued.add(&all, &ids(&all));
        let counted = enqueued.read();
        assert_eq!((counted.len(), counted.last()), (MOST_TYPES + 1, Some(&(OTHER_TYPES.to_owned(), 7))));
    }
}
