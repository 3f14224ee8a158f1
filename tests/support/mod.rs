//! What every test needs: a fresh queue of the store under test, and one-liners that keep the tests readable.

mod bare;
mod queue;
#[allow(dead_code)] // nothing goes wrong there in this suite; tests/sqs has the faults
pub mod sqs;

use std::fmt::{Debug, Display};

use dejq::backend::{Counts, Lease, Leased, SettleReply};
use dejq::error::{ErrorKind, Result};
use dejq::job::{Body, Failure, JobId, JobType, NewJob, OnFailure, State};

pub use self::bare::Bare;
pub use self::queue::{LEASE, Store, TestQueue};

/// A job of this type with default options; `NewJob { delay, ..job("a") }` sets others.
pub fn job(job_type: &str) -> NewJob {
    NewJob::single(a_type(job_type), Body::from_encoder(b"null"))
}

/// A job that no second one of its type and key may join.
pub fn unique(job_type: &str, key: &str) -> NewJob {
    NewJob { unique: Some(key.into()), ..job(job_type) }
}

/// Jobs of these types, one after another.
pub fn chain<const N: usize>(types: [&str; N], on_failure: OnFailure) -> Vec<NewJob> {
    linked(types.map(job).into(), on_failure)
}

/// These jobs, one after another.
pub fn linked(mut jobs: Vec<NewJob>, on_failure: OnFailure) -> Vec<NewJob> {
    NewJob::link(&mut jobs, on_failure).unwrap();
    jobs
}

pub fn a_type(name: &str) -> JobType {
    JobType::new(name).unwrap()
}

/// What a handler's exception looks like.
pub fn failure() -> Failure {
    Failure::new("ValueError", "no such customer")
}

pub fn lease(leased: &Leased) -> Lease {
    Lease { id: leased.job.id, token: leased.token }
}

pub fn ids(leased: &[Leased]) -> Vec<JobId> {
    leased.iter().map(|leased| leased.job.id).collect()
}

/// The one job that a settle handed over.
pub fn handed_over(mut reply: SettleReply) -> Leased {
    assert_eq!(reply.next.len(), 1, "jobs handed over: {:?}", reply.next);
    reply.next.remove(0)
}

/// The count of one state.
pub fn count(counts: &Counts, state: State) -> Option<u64> {
    counts.by_state().into_iter().find(|(of, _)| *of == state).and_then(|(_, count)| count)
}

/// The operation was refused with this kind of error, and the text names what it is about.
pub fn assert_refused<T: Debug>(result: Result<T>, kind: &ErrorKind, word: impl Display) {
    let (error, word) = (result.expect_err("this should have been refused"), format!("{word}"));
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.text().contains(&word), "{word:?} is not in {error}");
}
