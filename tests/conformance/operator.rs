//! What operators see and do, job by job.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use dejq::backend::{Backend, Filter, Leased, Outcome, Rescued, Revocation};
use dejq::error::ErrorKind;
use dejq::job::{Body, Headers, JobId, JobInfo, NewJob, OnFailure, State};

use crate::support::{LEASE, TestQueue, assert_refused, chain, failure, ids, job, lease, linked};

/// One job of each state; `Running` is the lease of the running one.
struct OneOfEach {
    ids: BTreeMap<&'static str, JobId>,
    running: Leased,
}

impl OneOfEach {
    async fn new(queue: &TestQueue) -> Self {
        let mut ids = BTreeMap::new();
        for outcome in [Outcome::Finished, Outcome::Failed(failure()), Outcome::Cancelled(failure())] {
            let state = match outcome {
                Outcome::Finished => State::Finished,
                Outcome::Failed(_) => State::Failed,
                _ => State::Cancelled,
            };
            ids.insert(state.as_str(), queue.enqueue("ended").await);
            queue.settle(&queue.take("ended").await, outcome, &[]).await;
        }
        let [running, blocked] = queue.enqueue_chain(["running", "blocked"]).await;
        let lease_of_running = queue.take("running").await;
        ids.insert(State::Running.as_str(), running);
        ids.insert(State::Blocked.as_str(), blocked);
        ids.insert(State::Ready.as_str(), queue.enqueue("ready").await);
        let scheduled = queue.put(&[NewJob { delay: queue.ticks(300), ..job("scheduled") }]).await[0];
        ids.insert(State::Scheduled.as_str(), scheduled);
        Self { ids, running: lease_of_running }
    }

    fn id(&self, state: State) -> JobId {
        self.ids[state.as_str()]
    }
}

/// A chain of three: the first job has failed, the next one is ready, and the last one is blocked.
async fn failed_first(queue: &TestQueue) -> [JobId; 3] {
    let chain = queue.enqueue_chain(["a", "b", "c"]).await;
    queue.fail(&queue.take("a").await).await;
    chain
}

async fn state(operator: &dyn Backend, id: JobId) -> State {
    operator.get(id).await.unwrap().state
}

async fn listed(operator: &dyn Backend, filter: Filter) -> Vec<JobId> {
    found(&operator.list(&filter).await.unwrap())
}

fn found(jobs: &[JobInfo]) -> Vec<JobId> {
    jobs.iter().map(|info| info.job.id).collect()
}

fn all() -> Filter {
    Filter { limit: 100, ..Filter::default() }
}

// ---- get ---------------------------------------------------------------------------------------------

for_every_backend! {
    async fn a_job_is_seen_as_it_was_enqueued(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let headers = Headers::from([("tenant".into(), "7".into())]);
        let body = Body::from_encoder(b"{\"a\":1}");
        let options = NewJob {
            body: body.clone(),
            max_attempts: NonZeroU32::new(3),
            headers: Some(Arc::new(headers.clone())),
            ..job("a")
        };
        let jobs = linked(vec![options, job("b")], OnFailure::Continue);
        queue.put(&jobs).await;
        let info = operator.get(jobs[0].id).await.unwrap();
        assert_eq!(info.state, State::Ready);
        assert_eq!(info.job.id, jobs[0].id);
        assert_eq!(info.job.job_type, jobs[0].job_type);
        assert_eq!(info.job.body, body);
        assert_eq!(info.job.headers.as_deref(), Some(&headers));
        assert_eq!(info.job.max_attempts, NonZeroU32::new(3));
        assert_eq!(info.job.chain, jobs[0].chain);
        assert_eq!((info.job.attempt, info.rescues, info.failure), (0, 0, None));
        assert_eq!((info.due_at, info.started_at), (None, None));
        assert_eq!((info.last_beat_at, info.finished_at), (None, None));
    }

    async fn a_job_is_seen_in_every_state(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = OneOfEach::new(&queue).await;
        for expected in State::ALL {
            let info = operator.get(jobs.id(expected)).await.unwrap();
            assert_eq!(info.state, expected);
            assert_eq!(info.finished_at.is_some(), expected.is_final(), "{expected:?}");
            assert_eq!(info.due_at.is_some(), expected == State::Scheduled, "{expected:?}");
            assert_eq!(info.last_beat_at.is_some(), expected == State::Running, "{expected:?}");
        }
    }

    async fn a_job_that_never_was_is_unknown(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        queue.enqueue("a").await;
        let id = JobId::generate();
        assert_refused(operator.get(id).await, &ErrorKind::UnknownJob, id);
        assert_refused(operator.finish(id).await, &ErrorKind::UnknownJob, id);
        assert_refused(operator.requeue(id).await, &ErrorKind::UnknownJob, id);
        assert_refused(operator.cancel(id).await, &ErrorKind::UnknownJob, id);
    }
}

// ---- list --------------------------------------------------------------------------------------------

for_every_backend! {
    async fn a_list_has_all_jobs_in_the_order_they_were_enqueued(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let enqueued = queue.put(&[job("b"), job("a"), job("c"), job("a")]).await;
        queue.finish(&queue.take("c").await).await;
        queue.take("a").await;
        assert_eq!(listed(operator, all()).await, enqueued);
    }

    async fn a_list_of_an_empty_store_is_empty(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        assert_eq!(listed(operator, all()).await, []);
    }

    async fn a_list_can_ask_for_a_state(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = OneOfEach::new(&queue).await;
        for state in State::ALL {
            let filter = Filter { state: Some(state), ..all() };
            assert_eq!(listed(operator, filter).await, [jobs.id(state)], "{state:?}");
        }
    }

    async fn a_list_can_ask_for_a_type(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let enqueued = queue.put(&[job("a"), job("b"), job("aa"), job("a")]).await;
        let of = |job_type: &str| Filter { job_type: Some(job_type.into()), ..all() };
        assert_eq!(listed(operator, of("a")).await, [enqueued[0], enqueued[3]]);
        assert_eq!(listed(operator, of("never")).await, []);
    }

    async fn a_list_can_ask_for_jobs_older_than_an_age(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let older = queue.enqueue("a").await;
        queue.pass(5).await;
        queue.enqueue("a").await;
        queue.pass(2).await;
        let than = |age| Filter { older_than: Some(age), ..all() };
        assert_eq!(listed(operator, than(queue.ticks(1))).await.len(), 2);
        assert_eq!(listed(operator, than(queue.ticks(4))).await, [older]);
        assert_eq!(listed(operator, than(queue.ticks(8))).await, []);
        assert_eq!(listed(operator, than(Duration::MAX)).await, []);
    }

    async fn conditions_of_a_list_are_joined_by_and(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let enqueued = queue.put(&[job("a"), job("b"), job("a"), job("b")]).await;
        queue.claim(&["a", "b"], 2).await;
        let both = Filter { state: Some(State::Ready), job_type: Some("b".into()), ..all() };
        assert_eq!(listed(operator, both.clone()).await, enqueued[3..]);
        assert_eq!(listed(operator, Filter { after: Some(enqueued[3]), ..both }).await, []);
    }

    async fn a_list_is_read_page_by_page(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs: Vec<NewJob> = (0..10).map(|_| job("a")).collect();
        let enqueued = queue.put(&jobs).await;
        let mut pages: Vec<Vec<JobId>> = Vec::new();
        for _ in 0..4 {
            let after = pages.last().and_then(|page| page.last()).copied();
            pages.push(listed(operator, Filter { after, limit: 4, ..Filter::default() }).await);
        }
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2, 0]);
        assert_eq!(pages.concat(), enqueued);
    }

    async fn a_list_of_at_most_no_job_is_empty(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        queue.enqueue("a").await;
        assert_eq!(listed(operator, Filter::default()).await, []);
    }
}

// ---- finish ------------------------------------------------------------------------------------------

for_every_backend! {
    async fn an_operator_finishes_a_job_in_any_state_but_final(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = OneOfEach::new(&queue).await;
        for from in [State::Blocked, State::Scheduled, State::Ready, State::Running] {
            operator.finish(jobs.id(from)).await.unwrap();
            let info = operator.get(jobs.id(from)).await.unwrap();
            assert_eq!(info.state, State::Finished, "{from:?}");
            assert!(info.finished_at.is_some(), "{from:?}");
        }
        assert_eq!(queue.claim(&["ready", "scheduled", "blocked", "running"], 10).await.len(), 0);
    }

    async fn a_job_that_is_final_cannot_be_finished(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = OneOfEach::new(&queue).await;
        for from in [State::Finished, State::Failed, State::Cancelled] {
            assert_refused(operator.finish(jobs.id(from)).await, &ErrorKind::WrongState, from.as_str());
            assert_eq!(state(operator, jobs.id(from)).await, from);
        }
    }

    async fn a_worker_whose_job_an_operator_finished_is_told_and_refused(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        let taken = queue.take("a").await;
        operator.finish(id).await.unwrap();
        assert_eq!(queue.beat(&[lease(&taken)]).await, [(lease(&taken), Revocation::Lost)]);
        queue.assert_lost(&taken, Outcome::Failed(failure())).await;
        assert_eq!(state(operator, id).await, State::Finished);
    }

    async fn a_job_that_an_operator_finishes_lets_its_chain_go_on(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = queue.put(&chain(["a", "b"], OnFailure::Cancel)).await;
        operator.finish(jobs[0]).await.unwrap();
        assert_eq!(ids(&queue.claim(&["a", "b"], 10).await), [jobs[1]]);
    }
}

// ---- cancel ------------------------------------------------------------------------------------------

for_every_backend! {
    async fn an_operator_cancels_a_job_that_waits(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = OneOfEach::new(&queue).await;
        for from in [State::Blocked, State::Scheduled, State::Ready] {
            operator.cancel(jobs.id(from)).await.unwrap();
            let info = operator.get(jobs.id(from)).await.unwrap();
            assert_eq!(info.state, State::Cancelled, "{from:?}");
            assert!(info.finished_at.is_some() && info.failure.is_some(), "{from:?}");
        }
        queue.finish(&jobs.running).await;
        assert_eq!(queue.claim(&["ready", "scheduled", "blocked"], 10).await.len(), 0);
    }

    async fn a_job_that_is_final_cannot_be_cancelled(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = OneOfEach::new(&queue).await;
        for from in [State::Finished, State::Failed, State::Cancelled] {
            assert_refused(operator.cancel(jobs.id(from)).await, &ErrorKind::WrongState, from.as_str());
            assert_eq!(state(operator, jobs.id(from)).await, from);
        }
    }

    async fn a_worker_is_asked_by_its_next_beat_to_cancel_a_running_job(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        queue.put(&[job("a"), job("a")]).await;
        let taken = queue.claim(&["a"], 2).await;
        operator.cancel(taken[0].job.id).await.unwrap();
        let leases = [lease(&taken[0]), lease(&taken[1])];
        assert_eq!(queue.beat(&leases).await, [(leases[0], Revocation::Cancel)]);
        assert_eq!(queue.beat(&leases).await, [(leases[0], Revocation::Cancel)]);
        assert_eq!(state(operator, taken[0].job.id).await, State::Running);
    }

    async fn a_job_to_be_cancelled_keeps_its_lease_until_its_handler_returns(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        let taken = queue.take("a").await;
        operator.cancel(id).await.unwrap();
        for _ in 0..3 {
            queue.pass(LEASE - 1).await;
            queue.beat(&[lease(&taken)]).await;
            assert_eq!(queue.rescue(3).await, Rescued::default());
        }
        queue.settle(&taken, Outcome::Cancelled(failure()), &[]).await;
        assert_eq!(state(operator, id).await, State::Cancelled);
    }

    async fn asking_twice_to_cancel_a_running_job_is_fine(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        let taken = queue.take("a").await;
        operator.cancel(id).await.unwrap();
        operator.cancel(id).await.unwrap();
        assert_eq!(queue.beat(&[lease(&taken)]).await, [(lease(&taken), Revocation::Cancel)]);
    }

    async fn a_job_to_be_cancelled_that_finishes_all_the_same_is_finished(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        let taken = queue.take("a").await;
        operator.cancel(id).await.unwrap();
        queue.finish(&taken).await;
        assert_eq!(state(operator, id).await, State::Finished);
    }

    async fn a_job_to_be_cancelled_is_not_tried_again(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        for after in [0, 3] {
            let [a, b] = queue.enqueue_chain(["a", "b"]).await;
            let taken = queue.take("a").await;
            operator.cancel(a).await.unwrap();
            queue.retry(&taken, after).await;
            assert_eq!(state(operator, a).await, State::Cancelled);
            assert_eq!(queue.take("b").await.job.id, b);
        }
    }

    async fn a_job_to_be_cancelled_is_cancelled_when_its_worker_is_lost(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b] = queue.enqueue_chain(["a", "b"]).await;
        queue.take("a").await;
        operator.cancel(a).await.unwrap();
        queue.pass(LEASE + 1).await;
        assert_eq!(queue.rescue(3).await, Rescued::default());
        assert_eq!(state(operator, a).await, State::Cancelled);
        assert_eq!(ids(&queue.claim(&["a", "b"], 10).await), [b]);
    }

    async fn a_wish_to_cancel_does_not_outlive_the_job_that_it_was_for(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        queue.take("a").await;
        operator.cancel(id).await.unwrap();
        operator.requeue(id).await.unwrap();
        let again = queue.take("a").await;
        queue.assert_held(&again).await;
        queue.retry(&again, 0).await;
        assert_eq!(state(operator, id).await, State::Ready);
    }

    async fn a_running_job_to_be_cancelled_takes_the_rest_with_it_only_when_it_ends(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = queue.put(&chain(["a", "b"], OnFailure::Cancel)).await;
        let taken = queue.take("a").await;
        operator.cancel(jobs[0]).await.unwrap();
        assert_eq!(state(operator, jobs[1]).await, State::Blocked);
        queue.settle(&taken, Outcome::Cancelled(failure()), &[]).await;
        assert_eq!(state(operator, jobs[1]).await, State::Cancelled);
    }
}

// ---- requeue -----------------------------------------------------------------------------------------

for_every_backend! {
    async fn an_operator_requeues_a_job_that_failed_was_cancelled_runs_or_is_scheduled(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = OneOfEach::new(&queue).await;
        let mut requeued = Vec::new();
        for from in [State::Failed, State::Cancelled, State::Running, State::Scheduled] {
            operator.requeue(jobs.id(from)).await.unwrap();
            let info = operator.get(jobs.id(from)).await.unwrap();
            assert_eq!(info.state, State::Ready, "{from:?}");
            assert_eq!((info.due_at, info.finished_at, info.last_beat_at), (None, None, None), "{from:?}");
            requeued.push(jobs.id(from));
        }
        assert_eq!(ids(&queue.claim(&["ended", "running", "scheduled"], 10).await), requeued);
    }

    async fn a_job_that_is_finished_or_waits_cannot_be_requeued(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = OneOfEach::new(&queue).await;
        for from in [State::Finished, State::Ready, State::Blocked] {
            assert_refused(operator.requeue(jobs.id(from)).await, &ErrorKind::WrongState, from.as_str());
            assert_eq!(state(operator, jobs.id(from)).await, from);
        }
    }

    async fn a_requeued_job_counts_its_attempts_anew(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        queue.retry(&queue.take("a").await, 0).await;
        queue.fail(&queue.take("a").await).await;
        operator.requeue(id).await.unwrap();
        assert_eq!(queue.take("a").await.job.attempt, 1);
    }

    async fn a_requeued_job_counts_its_rescues_anew(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        queue.take("a").await;
        queue.lose_worker().await;
        queue.take("a").await;
        queue.pass(LEASE + 1).await;
        assert_eq!(queue.rescue(1).await.failed, 1);
        operator.requeue(id).await.unwrap();
        assert_eq!(operator.get(id).await.unwrap().rescues, 0);
        queue.take("a").await;
        queue.pass(LEASE + 1).await;
        assert_eq!(queue.rescue(1).await, Rescued { requeued: 1, failed: 0 });
    }

    async fn a_requeued_job_has_not_started_yet(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        queue.pass(2).await;
        queue.fail(&queue.take("a").await).await;
        operator.requeue(id).await.unwrap();
        let info = operator.get(id).await.unwrap();
        assert_eq!((info.job.attempt, info.started_at), (0, None));
    }

    async fn a_requeue_takes_a_running_job_from_its_worker(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        let zombie = queue.take("a").await;
        operator.requeue(id).await.unwrap();
        let other = queue.other_worker();
        let current = other.take("a").await;
        assert_eq!(queue.beat(&[lease(&zombie)]).await, [(lease(&zombie), Revocation::Lost)]);
        queue.assert_lost(&zombie, Outcome::Finished).await;
        other.assert_held(&current).await;
    }

    async fn a_requeue_keeps_the_rest_of_the_chain_waiting(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b] = queue.enqueue_chain(["a", "b"]).await;
        queue.take("a").await;
        operator.requeue(a).await.unwrap();
        assert_eq!(state(operator, b).await, State::Blocked);
        queue.finish(&queue.take("a").await).await;
        queue.take("b").await;
    }

    async fn a_requeue_blocks_the_next_job_again_when_it_has_not_started(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b, c] = failed_first(&queue).await;
        operator.requeue(a).await.unwrap();
        queue.assert_state(b, State::Blocked).await;
        queue.assert_state(c, State::Blocked).await;
        for expected in [a, b, c] {
            let taken = queue.claim(&["a", "b", "c"], 10).await;
            assert_eq!(ids(&taken), [expected]);
            queue.finish(&taken[0]).await;
        }
    }

    async fn a_requeue_blocks_the_next_job_again_when_it_waits_for_its_own_delay(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = linked(vec![job("a"), NewJob { delay: queue.ticks(3), ..job("b") }], OnFailure::Continue);
        queue.put(&jobs).await;
        queue.fail(&queue.take("a").await).await;
        operator.requeue(jobs[0].id).await.unwrap();
        queue.pass(3).await;
        queue.assert_state(jobs[1].id, State::Blocked).await;
        queue.finish(&queue.take("a").await).await;
        queue.pass(2).await;
        queue.assert_none_ready("b").await;
        queue.pass(1).await;
        queue.take("b").await;
    }

    async fn a_requeue_blocks_the_next_job_again_when_it_was_given_back_unstarted(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b, _] = failed_first(&queue).await;
        queue.give_back(&[queue.take("b").await]).await;
        operator.requeue(a).await.unwrap();
        queue.assert_state(b, State::Blocked).await;
    }

    async fn a_requeue_is_refused_when_the_next_job_has_run_even_if_it_was_interrupted(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, ..] = failed_first(&queue).await;
        queue.settle(&queue.take("b").await, Outcome::Interrupted, &[]).await;
        let refused = operator.requeue(a).await.unwrap_err();
        assert_eq!(refused.kind(), &ErrorKind::WrongState);
    }

    async fn a_requeue_brings_back_the_jobs_that_were_cancelled_with_it(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = queue.put(&chain(["a", "b", "c"], OnFailure::Cancel)).await;
        queue.fail(&queue.take("a").await).await;
        operator.requeue(jobs[0]).await.unwrap();
        for follower in &jobs[1..] {
            let info = operator.get(*follower).await.unwrap();
            assert_eq!((info.state, info.failure), (State::Blocked, None));
            assert_eq!((info.started_at, info.finished_at), (None, None));
        }
        for expected in jobs {
            let taken = queue.claim(&["a", "b", "c"], 10).await;
            assert_eq!(ids(&taken), [expected]);
            queue.finish(&taken[0]).await;
        }
    }

    async fn a_requeue_leaves_a_later_job_cancelled_that_an_operator_cancelled(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b, c] = failed_first(&queue).await;
        operator.cancel(b).await.unwrap();
        operator.requeue(a).await.unwrap();
        queue.assert_state(b, State::Cancelled).await;
        queue.assert_state(c, State::Blocked).await;
        queue.finish(&queue.take("a").await).await;
        assert_eq!(ids(&queue.claim(&["b", "c"], 10).await), [c]);
    }

    async fn a_requeue_leaves_later_jobs_cancelled_that_were_cancelled_with_another_one(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = queue.put(&chain(["a", "b", "c"], OnFailure::Cancel)).await;
        operator.cancel(jobs[1]).await.unwrap();
        queue.fail(&queue.take("a").await).await;
        operator.requeue(jobs[0]).await.unwrap();
        queue.assert_state(jobs[1], State::Cancelled).await;
        queue.assert_state(jobs[2], State::Cancelled).await;
        queue.finish(&queue.take("a").await).await;
        assert_eq!(queue.claim(&["b", "c"], 10).await.len(), 0);
    }

    async fn a_requeue_in_the_middle_of_a_cancelled_chain_brings_back_the_jobs_after_it(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = queue.put(&chain(["a", "b", "c"], OnFailure::Cancel)).await;
        queue.fail(&queue.take("a").await).await;
        operator.requeue(jobs[1]).await.unwrap();
        queue.assert_state(jobs[0], State::Failed).await;
        queue.assert_state(jobs[2], State::Blocked).await;
        queue.finish(&queue.take("b").await).await;
        assert_eq!(queue.take("c").await.job.id, jobs[2]);
    }

    async fn a_requeue_leaves_a_later_job_finished_that_an_operator_finished(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = queue.put(&chain(["a", "b"], OnFailure::Cancel)).await;
        queue.fail(&queue.take("a").await).await;
        operator.requeue(jobs[1]).await.unwrap();
        operator.finish(jobs[1]).await.unwrap();
        operator.requeue(jobs[0]).await.unwrap();
        queue.assert_state(jobs[1], State::Finished).await;
    }

    async fn a_job_is_not_requeued_when_a_later_one_runs(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b, _] = failed_first(&queue).await;
        queue.take("b").await;
        assert_refused(operator.requeue(a).await, &ErrorKind::WrongState, b);
        queue.assert_state(a, State::Failed).await;
    }

    async fn a_job_is_not_requeued_when_a_later_one_has_ended(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        for outcome in [Outcome::Finished, Outcome::Failed(failure()), Outcome::Cancelled(failure())] {
            let [a, b, c] = failed_first(&queue).await;
            queue.settle(&queue.take("b").await, outcome, &[]).await;
            assert_refused(operator.requeue(a).await, &ErrorKind::WrongState, b);
            queue.assert_state(c, State::Ready).await;
        }
    }

    async fn a_job_is_not_requeued_when_a_later_one_waits_to_be_tried_again(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        for after in [3, 0] {
            let [a, b, _] = failed_first(&queue).await;
            queue.retry(&queue.take("b").await, after).await;
            assert_refused(operator.requeue(a).await, &ErrorKind::WrongState, b);
        }
    }

    async fn a_job_is_not_requeued_when_a_later_one_was_lost_by_its_worker(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b, _] = failed_first(&queue).await;
        queue.take("b").await;
        queue.lose_worker().await;
        assert_refused(operator.requeue(a).await, &ErrorKind::WrongState, b);
        queue.assert_state(b, State::Ready).await;
    }

    async fn a_job_is_not_requeued_when_a_later_one_has_run_and_was_requeued(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b, _] = failed_first(&queue).await;
        queue.fail(&queue.take("b").await).await;
        operator.requeue(b).await.unwrap();
        assert_refused(operator.requeue(a).await, &ErrorKind::WrongState, b);
        queue.assert_state(b, State::Ready).await;
    }

    async fn a_job_is_not_requeued_when_a_later_one_was_taken_from_its_worker(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b, _] = failed_first(&queue).await;
        queue.take("b").await;
        operator.requeue(b).await.unwrap();
        assert_refused(operator.requeue(a).await, &ErrorKind::WrongState, b);
    }

    async fn a_job_is_not_requeued_when_a_later_one_has_ended_and_was_deleted(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, ..] = failed_first(&queue).await;
        queue.finish(&queue.take("b").await).await;
        assert_eq!(operator.delete_finished(queue.ticks(0), 1).await.unwrap(), 1);
        // Which of the two was deleted is the store's choice.
        let refused = operator.requeue(a).await.unwrap_err();
        assert!([ErrorKind::WrongState, ErrorKind::UnknownJob].contains(refused.kind()), "{refused}");
        queue.assert_none_ready("a").await;
    }

    async fn a_job_in_the_middle_that_is_requeued_waits_for_the_one_before(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b, c] = queue.enqueue_chain(["a", "b", "c"]).await;
        operator.cancel(b).await.unwrap();
        operator.requeue(b).await.unwrap();
        for expected in [a, b, c] {
            let taken = queue.claim(&["a", "b", "c"], 10).await;
            assert_eq!(ids(&taken), [expected]);
            queue.finish(&taken[0]).await;
        }
    }

    async fn a_requeued_job_waits_for_every_job_before_it(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [_, b, c] = queue.enqueue_chain(["a", "b", "c"]).await;
        let running = queue.take("a").await;
        operator.cancel(b).await.unwrap();
        operator.cancel(c).await.unwrap();
        operator.requeue(c).await.unwrap();
        queue.assert_state(c, State::Blocked).await;
        queue.assert_none_ready("c").await;
        queue.finish(&running).await;
        queue.take("c").await;
    }

    async fn a_requeued_job_waits_for_those_before_it_when_one_between_was_deleted(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [_, b, c] = queue.enqueue_chain(["a", "b", "c"]).await;
        let running = queue.take("a").await;
        operator.finish(b).await.unwrap();
        assert_eq!(operator.delete_finished(queue.ticks(0), 10).await.unwrap(), 1);
        operator.cancel(c).await.unwrap();
        operator.requeue(c).await.unwrap();
        queue.assert_state(c, State::Blocked).await;
        queue.finish(&running).await;
        queue.take("c").await;
    }

    async fn a_job_whose_predecessor_was_deleted_can_be_requeued(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        queue.finish(&queue.take("a").await).await;
        assert_eq!(operator.delete_finished(queue.ticks(0), 10).await.unwrap(), 1);
        queue.fail(&queue.take("b").await).await;
        operator.requeue(b).await.unwrap();
        assert_eq!(queue.take("b").await.job.id, b);
    }
}

// ---- unresponsive ------------------------------------------------------------------------------------

for_every_backend! {
    async fn a_running_job_without_a_beat_for_long_is_unresponsive(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        queue.take("a").await;
        queue.pass(4).await;
        assert_eq!(found(&operator.unresponsive(queue.ticks(3)).await.unwrap()), [id]);
        assert_eq!(found(&operator.unresponsive(queue.ticks(6)).await.unwrap()), []);
    }

    async fn a_beat_makes_a_job_responsive_again(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let enqueued = queue.put(&[job("a"), job("a")]).await;
        queue.take("a").await;
        let other = queue.other_worker();
        let taken = other.take("a").await;
        queue.pass(4).await;
        other.assert_held(&taken).await;
        queue.pass(2).await;
        assert_eq!(found(&operator.unresponsive(queue.ticks(5)).await.unwrap()), enqueued[..1]);
        let info = operator.get(enqueued[1]).await.unwrap();
        let beat_after = info.last_beat_at.unwrap().duration_since(info.started_at.unwrap()).unwrap();
        assert!((queue.ticks(4)..queue.ticks(5)).contains(&beat_after), "{beat_after:?}");
    }

    async fn a_job_that_does_not_run_is_not_unresponsive(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = OneOfEach::new(&queue).await;
        queue.pass(4).await;
        let unresponsive = operator.unresponsive(queue.ticks(1)).await.unwrap();
        assert_eq!(found(&unresponsive), [jobs.id(State::Running)]);
    }

    async fn unresponsive_jobs_come_in_the_order_they_were_enqueued(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let enqueued = queue.put(&[job("c"), job("b"), job("a")]).await;
        queue.claim(&["a"], 1).await;
        queue.claim(&["b", "c"], 2).await;
        queue.pass(2).await;
        assert_eq!(found(&operator.unresponsive(queue.ticks(1)).await.unwrap()), enqueued);
    }
}

// ---- delete_finished ---------------------------------------------------------------------------------

for_every_backend! {
    async fn ended_jobs_are_deleted_and_others_are_not(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = OneOfEach::new(&queue).await;
        assert_eq!(operator.delete_finished(queue.ticks(0), 100).await.unwrap(), 3);
        for state in State::ALL {
            let info = operator.get(jobs.id(state)).await;
            if state.is_final() {
                assert_refused(info, &ErrorKind::UnknownJob, jobs.id(state));
            } else {
                assert_eq!(info.unwrap().state, state);
            }
        }
        queue.assert_held(&jobs.running).await;
    }

    async fn only_jobs_that_ended_long_enough_ago_are_deleted(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let enqueued = queue.put(&[job("a"), job("a"), job("a")]).await;
        let taken = queue.claim(&["a"], 3).await;
        queue.finish(&taken[2]).await;
        queue.pass(2).await;
        queue.fail(&taken[0]).await;
        queue.pass(2).await;
        assert_eq!(operator.delete_finished(queue.ticks(3), 100).await.unwrap(), 1);
        assert_eq!(listed(operator, all()).await, enqueued[..2]);
        assert_eq!(operator.delete_finished(queue.ticks(3), 100).await.unwrap(), 0);
        queue.pass(2).await;
        assert_eq!(operator.delete_finished(queue.ticks(3), 100).await.unwrap(), 1);
        assert_eq!(listed(operator, all()).await, enqueued[1..2]);
    }

    async fn no_more_than_a_batch_is_deleted_at_a_time(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        queue.put(&[job("a"), job("a"), job("a"), job("a"), job("a")]).await;
        for (place, taken) in queue.claim(&["a"], 5).await.iter().enumerate() {
            let outcome = if place < 2 { Outcome::Failed(failure()) } else { Outcome::Finished };
            queue.settle(taken, outcome, &[]).await;
        }
        let mut deleted = Vec::new();
        for _ in 0..4 {
            deleted.push(operator.delete_finished(queue.ticks(0), 2).await.unwrap());
        }
        assert_eq!(deleted, [2, 2, 1, 0]);
    }

    async fn a_job_that_was_requeued_is_not_deleted(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        queue.fail(&queue.take("a").await).await;
        operator.requeue(id).await.unwrap();
        assert_eq!(operator.delete_finished(queue.ticks(0), 10).await.unwrap(), 0);
        assert_eq!(queue.take("a").await.job.id, id);
    }

    async fn a_deleted_job_cannot_be_settled_or_requeued(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        let taken = queue.take("a").await;
        queue.fail(&taken).await;
        operator.delete_finished(queue.ticks(0), 10).await.unwrap();
        queue.enqueue("a").await;
        queue.assert_lost(&taken, Outcome::Finished).await;
        assert_refused(operator.requeue(id).await, &ErrorKind::UnknownJob, id);
    }

    async fn jobs_enqueued_after_a_deletion_are_new_jobs(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        for _ in 0..3 {
            let mut jobs = chain(["a", "b"], OnFailure::Cancel);
            jobs[0].headers = Some(Arc::new(Headers::from([("k".into(), "v".into())])));
            queue.put(&jobs).await;
            let a = queue.take("a").await;
            assert_eq!((a.job.attempt, a.job.chain), (1, jobs[0].chain));
            queue.fail(&a).await;
            assert_eq!(operator.delete_finished(queue.ticks(0), 10).await.unwrap(), 2);
            let plain = operator.get(queue.enqueue("c").await).await.unwrap();
            assert_eq!((plain.failure, plain.job.headers, plain.rescues), (None, None, 0));
        }
    }
}
