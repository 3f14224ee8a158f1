//! While a job of a type and key is not final, another one is not stored.

use dejq::backend::{Outcome, Rescued};
use dejq::error::ErrorKind;
use dejq::job::{Body, NewJob, State};

use crate::support::{LEASE, TestQueue, assert_refused, failure, ids, job, unique};

/// The key is held by this job.
async fn assert_holds(queue: &TestQueue, holder: dejq::job::JobId) {
    assert_eq!(queue.put(&[unique("a", "k")]).await, [holder]);
}

/// The key is free: a job that asks for it is stored.
async fn assert_free(queue: &TestQueue) {
    let new = unique("a", "k");
    assert_eq!(queue.put(std::slice::from_ref(&new)).await, [new.id]);
}

for_every_backend! {
    where keeps_keys;

    async fn a_second_job_is_not_stored_and_the_id_of_the_first_comes_back(queue: TestQueue) {
        let first = queue.put(&[unique("a", "k")]).await;
        let second = NewJob { body: Body::from_encoder(b"2"), ..unique("a", "k") };
        assert_eq!(queue.put(&[second]).await, first);
        let taken = queue.claim(&["a"], 10).await;
        assert_eq!(ids(&taken), first);
        assert_eq!(taken[0].job.body.as_bytes(), b"null");
    }

    async fn a_second_job_of_the_same_call_is_not_stored(queue: TestQueue) {
        let jobs = [unique("a", "k"), unique("a", "other"), unique("a", "k")];
        assert_eq!(queue.put(&jobs).await, [jobs[0].id, jobs[1].id, jobs[0].id]);
        queue.assert_counts(&[(State::Ready, 2)]).await;
    }

    async fn a_key_that_is_held_does_not_keep_the_others_of_the_call_out(queue: TestQueue) {
        let holder = queue.put(&[unique("a", "k")]).await[0];
        let jobs = [job("a"), unique("a", "k"), job("a")];
        assert_eq!(queue.put(&jobs).await, [jobs[0].id, holder, jobs[2].id]);
        queue.assert_counts(&[(State::Ready, 3)]).await;
    }

    async fn a_key_counts_for_its_own_type_only(queue: TestQueue) {
        let jobs = [unique("a", "k"), unique("b", "k")];
        assert_eq!(queue.put(&jobs).await, jobs.each_ref().map(|job| job.id));
    }

    async fn keys_that_differ_a_little_are_different(queue: TestQueue) {
        let long = "k".repeat(256);
        let jobs = ["", " ", "k", "K", "k ", "k:", "ł", "a:k", &long, &long[1..]].map(|key| unique("a", key));
        assert_eq!(queue.put(&jobs).await, jobs.each_ref().map(|job| job.id));
    }

    async fn a_type_and_key_are_never_mistaken_for_another_pair(queue: TestQueue) {
        let jobs = [unique("a:b", "c"), unique("a", "b:c"), unique("a/b", "c"), unique("a", "b/c")];
        assert_eq!(queue.put(&jobs).await, jobs.each_ref().map(|job| job.id));
    }

    async fn a_job_without_a_key_is_never_held_back(queue: TestQueue) {
        queue.put(&[unique("a", "")]).await;
        let plain = job("a");
        assert_eq!(queue.put(std::slice::from_ref(&plain)).await, [plain.id]);
    }

    async fn a_repeated_enqueue_of_the_holder_brings_its_own_id(queue: TestQueue) {
        let jobs = [unique("a", "k")];
        assert_eq!(queue.put(&jobs).await, queue.put(&jobs).await);
        queue.assert_counts(&[(State::Ready, 1)]).await;
    }

    async fn a_job_holds_its_key_while_it_waits_for_its_time(queue: TestQueue) {
        let id = queue.put(&[NewJob { delay: queue.ticks(3), ..unique("a", "k") }]).await[0];
        assert_holds(&queue, id).await;
    }

    async fn a_job_holds_its_key_while_it_runs(queue: TestQueue) {
        let id = queue.put(&[unique("a", "k")]).await[0];
        queue.take("a").await;
        assert_holds(&queue, id).await;
    }

    async fn a_job_holds_its_key_until_it_is_tried_again(queue: TestQueue) {
        let id = queue.put(&[unique("a", "k")]).await[0];
        queue.retry(&queue.take("a").await, 3).await;
        assert_holds(&queue, id).await;
        queue.pass(3).await;
        assert_holds(&queue, id).await;
    }

    async fn a_job_that_is_given_back_holds_its_key(queue: TestQueue) {
        let id = queue.put(&[unique("a", "k")]).await[0];
        queue.give_back(&[queue.take("a").await]).await;
        assert_holds(&queue, id).await;
    }

    async fn a_job_that_is_rescued_holds_its_key(queue: TestQueue) {
        let id = queue.put(&[unique("a", "k")]).await[0];
        queue.take("a").await;
        queue.lose_worker().await;
        assert_holds(&queue, id).await;
    }

    async fn a_key_is_free_when_its_job_has_finished(queue: TestQueue) {
        queue.put(&[unique("a", "k")]).await;
        queue.finish(&queue.take("a").await).await;
        assert_free(&queue).await;
    }

    async fn a_key_is_free_when_its_job_has_failed(queue: TestQueue) {
        queue.put(&[unique("a", "k")]).await;
        queue.fail(&queue.take("a").await).await;
        assert_free(&queue).await;
    }

    async fn a_key_is_free_when_its_job_was_cancelled(queue: TestQueue) {
        queue.put(&[unique("a", "k")]).await;
        queue.settle(&queue.take("a").await, Outcome::Cancelled(failure()), &[]).await;
        assert_free(&queue).await;
    }

    async fn a_key_is_free_when_its_job_failed_as_worker_lost(queue: TestQueue) {
        queue.put(&[unique("a", "k")]).await;
        queue.take("a").await;
        queue.pass(LEASE + 1).await;
        assert_eq!(queue.rescue(0).await, Rescued { requeued: 0, failed: 1 });
        assert_free(&queue).await;
    }

    async fn a_key_is_free_when_an_operator_finished_its_job(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.put(&[unique("a", "k")]).await[0];
        operator.finish(id).await.unwrap();
        assert_free(&queue).await;
    }

    async fn a_key_is_free_when_an_operator_cancelled_its_job(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.put(&[unique("a", "k")]).await[0];
        operator.cancel(id).await.unwrap();
        assert_free(&queue).await;
    }

    async fn a_key_is_held_until_a_running_job_that_is_to_be_cancelled_has_ended(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.put(&[unique("a", "k")]).await[0];
        let taken = queue.take("a").await;
        operator.cancel(id).await.unwrap();
        assert_holds(&queue, id).await;
        queue.settle(&taken, Outcome::Cancelled(failure()), &[]).await;
        assert_free(&queue).await;
    }

    async fn a_job_that_is_requeued_takes_its_key_again(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.put(&[unique("a", "k")]).await[0];
        queue.fail(&queue.take("a").await).await;
        operator.requeue(id).await.unwrap();
        assert_holds(&queue, id).await;
        queue.finish(&queue.take("a").await).await;
        assert_free(&queue).await;
    }

    async fn a_job_is_not_requeued_while_another_holds_its_key(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.put(&[unique("a", "k")]).await[0];
        queue.fail(&queue.take("a").await).await;
        let holder = queue.put(&[unique("a", "k")]).await[0];
        assert_refused(operator.requeue(id).await, &ErrorKind::WrongState, holder);
        queue.assert_state(id, State::Failed).await;
        queue.finish(&queue.take("a").await).await;
        operator.requeue(id).await.unwrap();
    }

    async fn deleting_an_ended_job_leaves_the_key_with_its_new_holder(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        queue.put(&[unique("a", "k")]).await;
        queue.finish(&queue.take("a").await).await;
        let holder = queue.put(&[unique("a", "k")]).await[0];
        assert_eq!(operator.delete_finished(queue.ticks(0), 10).await.unwrap(), 1);
        assert_holds(&queue, holder).await;
    }

    async fn of_many_that_enqueue_at_the_same_time_one_is_stored(queue: TestQueue) {
        let enqueue = |queue: TestQueue| async move { queue.put(&[unique("a", "k")]).await[0] };
        let stored = queue.in_parallel(8, enqueue).await;
        assert!(stored.iter().all(|id| *id == stored[0]), "{stored:?}");
        queue.assert_counts(&[(State::Ready, 1)]).await;
    }
}
