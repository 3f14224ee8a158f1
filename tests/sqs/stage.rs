//! A queue, and clients that take jobs from it.

use std::sync::Arc;
use std::time::Duration;

use dejq::backend::sqs::SqsBackend;
use dejq::backend::{
    Backend, Claim, DeadLetters, HandOff, Lease, Leased, NewQueue, Outcome, Revocation, SettleReply, Settled,
    WorkerId,
};
use dejq::job::{Body, Failure, JobId, JobType, NewJob, OnFailure};
use tokio_util::sync::CancellationToken;

use crate::fake::Fake;

pub const LEASE: Duration = Duration::from_secs(30);
pub const QUEUE: &str = "jobs.fifo";
pub const DEAD: &str = "jobs-dlq.fifo";
pub const URL: &str = "sqs://us-east-1/jobs.fifo";

pub struct Stage {
    pub fake: Arc<Fake>,
}

impl Stage {
    /// A queue whose redrive policy grants so many receives.
    pub async fn with_dead_letters(max_receives: u32) -> Self {
        Self::made(DeadLetters::Usual, max_receives).await
    }

    pub async fn without_dead_letters() -> Self {
        Self::made(DeadLetters::None, 1).await
    }

    async fn made(dead_letters: DeadLetters, max_receives: u32) -> Self {
        let fake = Fake::new();
        let wanted = NewQueue { dead_letters, max_receives: max_receives.try_into().unwrap() };
        fake.connect(URL, &[]).create_queue(&wanted).await.unwrap();
        Self { fake }
    }

    pub fn client(&self) -> Client {
        self.client_with(&[])
    }

    pub fn client_with(&self, options: &[(&str, &str)]) -> Client {
        Client {
            backend: self.fake.connect(URL, options),
            worker: WorkerId(JobId::generate()),
            stop: CancellationToken::new(),
        }
    }

    /// Numbers of jobs in the queue and in its dead-letter queue.
    pub fn counts(&self) -> (usize, usize) {
        let queues = self.fake.queues();
        (queues[QUEUE].messages.len(), queues.get(DEAD).map_or(0, |dead| dead.messages.len()))
    }

    /// How often each job that is left was received.
    pub fn receives(&self) -> Vec<u32> {
        self.fake.queues()[QUEUE].messages.iter().map(|message| message.receives).collect()
    }
}

#[derive(Debug)]
pub struct Client {
    pub backend: Arc<SqsBackend>,
    pub worker: WorkerId,
    pub stop: CancellationToken,
}

impl Client {
    pub async fn claim(&self, types: &[&str], limit: usize, wait: Duration) -> Vec<Leased> {
        self.try_claim(types, limit, wait).await.unwrap()
    }

    pub async fn try_claim(
        &self,
        types: &[&str],
        limit: usize,
        wait: Duration,
    ) -> dejq::error::Result<Vec<Leased>> {
        let types: Vec<JobType> = types.iter().map(|name| a_type(name)).collect();
        let asked = Claim { worker: self.worker, types: &types, limit, lease: LEASE, wait, stop: &self.stop };
        self.backend.claim(&asked).await
    }

    /// What is ready now, of the type "t".
    pub async fn take(&self, limit: usize) -> Vec<Leased> {
        self.claim(&["t"], limit, Duration::ZERO).await
    }

    /// The one job that is ready now.
    pub async fn take_one(&self, limit: usize) -> Leased {
        let mut taken = self.take(limit).await;
        assert_eq!(taken.len(), 1, "jobs that are ready: {taken:?}");
        taken.remove(0)
    }

    pub async fn settle(&self, leased: &Leased, outcome: Outcome) -> SettleReply {
        self.settle_all(&[(leased, outcome)]).await.unwrap()
    }

    pub async fn settle_all(&self, ends: &[(&Leased, Outcome)]) -> dejq::error::Result<SettleReply> {
        let done: Vec<Settled> = ends
            .iter()
            .map(|(leased, outcome)| Settled { lease: lease(leased), outcome: outcome.clone() })
            .collect();
        let types = [a_type("t")];
        self.backend.settle(&done, &HandOff { worker: self.worker, types: &types, lease: LEASE }).await
    }

    /// Ends the job and returns the next one of its chain, which comes with the answer.
    pub async fn next(&self, leased: &Leased, outcome: Outcome) -> Leased {
        let mut reply = self.settle(leased, outcome).await;
        assert_eq!((reply.lost.len(), reply.next.len()), (0, 1), "{reply:?}");
        reply.next.remove(0)
    }

    pub async fn beat(&self, leased: &[&Leased]) -> Vec<(Lease, Revocation)> {
        let held: Vec<Lease> = leased.iter().map(|leased| lease(leased)).collect();
        self.backend.extend(self.worker, &held, LEASE).await.unwrap()
    }

    pub async fn give_back(&self, leased: &Leased) {
        self.backend.give_back(&[lease(leased)]).await.unwrap();
    }

    pub async fn enqueue(&self, jobs: &[NewJob]) -> Vec<JobId> {
        self.backend.enqueue(jobs).await.unwrap()
    }

    /// A worker that stops.
    pub async fn leave(&self) {
        self.stop.cancel();
        self.backend.leave(self.worker).await.unwrap();
    }
}

pub fn lease(leased: &Leased) -> Lease {
    Lease { id: leased.job.id, token: leased.token }
}

pub fn a_type(name: &str) -> JobType {
    JobType::new(name).unwrap()
}

pub fn job(body: &str) -> NewJob {
    NewJob::single(a_type("t"), Body::from_json(body.as_bytes()).unwrap())
}

/// Jobs with the bodies 1, 2, 3, …, one after another.
pub fn chain(length: usize, on_failure: OnFailure) -> Vec<NewJob> {
    let mut jobs: Vec<NewJob> = (1..=length).map(|number| job(&number.to_string())).collect();
    NewJob::link(&mut jobs, on_failure).unwrap();
    jobs
}

pub fn body(leased: &Leased) -> String {
    String::from_utf8(leased.job.body.as_bytes().to_vec()).unwrap()
}

pub fn bodies(leased: &[Leased]) -> Vec<String> {
    leased.iter().map(body).collect()
}

pub fn failure() -> Failure {
    Failure::new("ValueError", "no such customer")
}

pub fn retry(seconds: u64) -> Outcome {
    Outcome::Retry { after: Duration::from_secs(seconds), failure: failure() }
}

pub async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
