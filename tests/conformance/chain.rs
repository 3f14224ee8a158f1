//! Jobs that follow each other.

use dejq::backend::{Outcome, Settled};
use dejq::job::{NewJob, OnFailure, State};

use crate::support::{LEASE, chain, failure, handed_over, ids, job, lease, linked};

for_every_backend! {
    async fn a_chained_job_is_blocked_until_the_one_before_is_final(queue: TestQueue) {
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        queue.assert_state(b, State::Blocked).await;
        let a = queue.take("a").await;
        queue.assert_state(b, State::Blocked).await;
        queue.assert_none_ready("b").await;
        queue.finish(&a).await;
        queue.assert_state(b, State::Ready).await;
        assert_eq!(queue.take("b").await.job.id, b);
    }

    async fn a_chain_of_any_length_runs_in_order(queue: TestQueue) {
        for length in [1, 2, 100, 1_000] {
            let jobs = (0..length).map(|_| job("a")).collect();
            let enqueued = queue.put(&linked(jobs, OnFailure::Continue)).await;
            let mut started = Vec::new();
            while let [running] = &queue.claim(&["a"], 10).await[..] {
                started.push(running.job.id);
                queue.finish(running).await;
            }
            assert_eq!(started, enqueued);
        }
    }

    async fn a_chain_of_any_length_is_handed_over_in_order(queue: TestQueue) {
        for length in [2, 100, 1_000] {
            let jobs = (0..length).map(|_| job("a")).collect();
            let enqueued = queue.put(&linked(jobs, OnFailure::Continue)).await;
            let mut running = queue.take("a").await;
            for id in &enqueued[1..] {
                running = queue.finish_and_take(&running, "a").await;
                assert_eq!(running.job.id, *id);
            }
            queue.finish(&running).await;
        }
    }

    async fn a_released_job_takes_the_place_in_line_that_its_enqueue_gave_it(queue: TestQueue) {
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        let later = queue.enqueue("b").await;
        queue.finish(&queue.take("a").await).await;
        assert_eq!(ids(&queue.claim(&["b"], 10).await), [b, later]);
    }

    async fn chains_do_not_wait_for_each_other(queue: TestQueue) {
        queue.enqueue_chain(["a", "b"]).await;
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        let taken = queue.claim(&["a"], 10).await;
        queue.finish(&taken[1]).await;
        assert_eq!(ids(&queue.claim(&["b"], 10).await), [b]);
    }

    async fn a_settle_hands_the_next_job_to_the_same_worker(queue: TestQueue) {
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        let next = queue.finish_and_take(&queue.take("a").await, "b").await;
        assert_eq!(next.job.id, b);
        assert_eq!(next.job.attempt, 1);
        queue.assert_state(b, State::Running).await;
        queue.other_worker().assert_none_ready("b").await;
    }

    async fn a_settle_hands_over_the_next_job_of_every_chain(queue: TestQueue) {
        let [_, b1] = queue.enqueue_chain(["a", "b"]).await;
        let [_, b2] = queue.enqueue_chain(["a", "b"]).await;
        let done: Vec<Settled> = queue
            .claim(&["a"], 10)
            .await
            .iter()
            .map(|leased| Settled { lease: lease(leased), outcome: Outcome::Finished })
            .collect();
        let reply = queue.settle_all(&done, &["b"]).await;
        assert_eq!(ids(&reply.next), [b1, b2]);
    }

    async fn a_settle_hands_over_only_types_that_are_asked_for(queue: TestQueue) {
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        let reply = queue.settle(&queue.take("a").await, Outcome::Finished, &["a", "c"]).await;
        assert_eq!(reply.next.len(), 0);
        assert_eq!(queue.other_worker().take("b").await.job.id, b);
    }

    /// As a worker does that stops.
    async fn a_settle_that_asks_for_no_type_hands_nothing_over(queue: TestQueue) {
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        let reply = queue.settle(&queue.take("a").await, Outcome::Finished, &[]).await;
        assert_eq!(reply.next.len(), 0);
        queue.assert_state(b, State::Ready).await;
    }

    async fn a_settle_hands_over_nothing_that_others_enqueued(queue: TestQueue) {
        queue.enqueue("a").await;
        queue.enqueue("a").await;
        let reply = queue.settle(&queue.take("a").await, Outcome::Finished, &["a"]).await;
        assert_eq!(reply.next.len(), 0);
    }

    async fn a_job_that_was_handed_over_has_a_lease_like_any_other(queue: TestQueue) {
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        let next = queue.finish_and_take(&queue.take("a").await, "b").await;
        queue.assert_held(&next).await;
        queue.pass(LEASE + 1).await;
        queue.assert_rescued(1).await;
        queue.assert_lost(&next, Outcome::Finished).await;
        assert_eq!(queue.take("b").await.job.id, b);
    }

    async fn a_delayed_job_is_not_handed_over(queue: TestQueue) {
        let jobs = linked(vec![job("a"), NewJob { delay: queue.ticks(3), ..job("b") }], OnFailure::Continue);
        queue.put(&jobs).await;
        let reply = queue.settle(&queue.take("a").await, Outcome::Finished, &["b"]).await;
        assert_eq!(reply.next.len(), 0);
        queue.assert_state(jobs[1].id, State::Scheduled).await;
    }

    async fn a_delay_in_a_chain_counts_from_the_end_of_the_job_before(queue: TestQueue) {
        let jobs = linked(vec![job("a"), NewJob { delay: queue.ticks(3), ..job("b") }], OnFailure::Continue);
        queue.put(&jobs).await;
        queue.pass(4).await;
        queue.finish(&queue.take("a").await).await;
        // Somebody always looks: where delays are kept by hiding jobs, it begins then.
        queue.assert_none_ready("b").await;
        queue.pass(2).await;
        queue.assert_none_ready("b").await;
        queue.pass(1).await;
        queue.take("b").await;
    }

    async fn a_delay_of_the_first_job_holds_back_the_chain(queue: TestQueue) {
        let jobs = linked(vec![NewJob { delay: queue.ticks(3), ..job("a") }, job("b")], OnFailure::Continue);
        queue.put(&jobs).await;
        assert_eq!(queue.claim(&["a", "b"], 10).await.len(), 0);
        queue.pass(3).await;
        assert_eq!(ids(&queue.claim(&["a", "b"], 10).await), [jobs[0].id]);
    }

    async fn a_failed_job_lets_the_chain_go_on(queue: TestQueue) {
        let [a, b, c] = queue.enqueue_chain(["a", "b", "c"]).await;
        queue.fail(&queue.take("a").await).await;
        queue.assert_state(a, State::Failed).await;
        queue.assert_state(c, State::Blocked).await;
        assert_eq!(queue.take("b").await.job.id, b);
    }

    async fn a_failed_job_hands_over_the_next_one_too(queue: TestQueue) {
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        let next = queue.end_and_take(&queue.take("a").await, Outcome::Failed(failure()), "b").await;
        assert_eq!(next.job.id, b);
    }

    async fn a_failed_job_cancels_the_rest_when_the_chain_asks_for_it(queue: TestQueue) {
        let jobs = queue.put(&chain(["a", "b", "c", "d"], OnFailure::Cancel)).await;
        let b = queue.finish_and_take(&queue.take("a").await, "b").await;
        let reply = queue.settle(&b, Outcome::Failed(failure()), &["c"]).await;
        assert_eq!(reply.next.len(), 0);
        queue.assert_state(jobs[0], State::Finished).await;
        queue.assert_state(jobs[1], State::Failed).await;
        queue.assert_state(jobs[2], State::Cancelled).await;
        queue.assert_state(jobs[3], State::Cancelled).await;
        assert_eq!(queue.claim(&["c", "d"], 10).await.len(), 0);
    }

    async fn a_job_cancelled_with_its_chain_says_which_job_ended_it(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = queue.put(&chain(["a", "b", "c"], OnFailure::Cancel)).await;
        queue.fail(&queue.take("a").await).await;
        for id in &jobs[1..] {
            let info = operator.get(*id).await.unwrap();
            assert!(info.failure.unwrap().message.contains(&jobs[0].to_string()));
            assert!(info.finished_at.is_some());
            assert_eq!(info.started_at, None);
        }
    }

    async fn a_cancelled_job_lets_the_chain_go_on(queue: TestQueue) {
        queue.enqueue_chain(["a", "b"]).await;
        queue.settle(&queue.take("a").await, Outcome::Cancelled(failure()), &[]).await;
        queue.take("b").await;
    }

    async fn a_cancelled_job_cancels_the_rest_when_the_chain_asks_for_it(queue: TestQueue) {
        let jobs = queue.put(&chain(["a", "b"], OnFailure::Cancel)).await;
        queue.settle(&queue.take("a").await, Outcome::Cancelled(failure()), &["b"]).await;
        queue.assert_state(jobs[1], State::Cancelled).await;
        queue.assert_none_ready("b").await;
    }

    async fn a_finished_job_never_cancels_the_rest(queue: TestQueue) {
        queue.put(&chain(["a", "b"], OnFailure::Cancel)).await;
        queue.finish(&queue.take("a").await).await;
        queue.take("b").await;
    }

    async fn a_job_that_will_be_tried_again_keeps_the_next_one_blocked(queue: TestQueue) {
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        for after in [0, 3] {
            queue.retry(&queue.take("a").await, after).await;
            queue.assert_state(b, State::Blocked).await;
            queue.assert_none_ready("b").await;
            queue.pass(after).await;
        }
        queue.finish(&queue.take("a").await).await;
        queue.take("b").await;
    }

    async fn a_job_that_will_be_tried_again_does_not_cancel_the_rest(queue: TestQueue) {
        let jobs = queue.put(&chain(["a", "b"], OnFailure::Cancel)).await;
        queue.retry(&queue.take("a").await, 3).await;
        queue.assert_state(jobs[1], State::Blocked).await;
    }

    async fn a_job_that_is_given_back_keeps_the_next_one_blocked(queue: TestQueue) {
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        queue.give_back(&[queue.take("a").await]).await;
        queue.assert_state(b, State::Blocked).await;
        queue.assert_none_ready("b").await;
    }

    async fn a_chain_goes_on_at_the_job_that_was_running_when_its_worker_was_lost(queue: TestQueue) {
        let [_, b, c] = queue.enqueue_chain(["a", "b", "c"]).await;
        queue.finish_and_take(&queue.take("a").await, "b").await;
        queue.lose_worker().await;
        queue.assert_state(c, State::Blocked).await;
        assert_eq!(ids(&queue.claim(&["a", "b", "c"], 10).await), [b]);
    }

    async fn a_blocked_job_that_an_operator_finishes_is_passed_over(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [_, b, c] = queue.enqueue_chain(["a", "b", "c"]).await;
        let a = queue.take("a").await;
        operator.finish(b).await.unwrap();
        queue.assert_state(c, State::Blocked).await;
        let next = queue.settle(&a, Outcome::Finished, &["b", "c"]).await;
        assert_eq!(handed_over(next).job.id, c);
    }

    async fn a_blocked_job_that_an_operator_cancels_is_passed_over(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [_, b, c] = queue.enqueue_chain(["a", "b", "c"]).await;
        operator.cancel(b).await.unwrap();
        queue.assert_state(c, State::Blocked).await;
        queue.finish(&queue.take("a").await).await;
        assert_eq!(ids(&queue.claim(&["b", "c"], 10).await), [c]);
    }

    async fn a_blocked_job_that_is_cancelled_cancels_the_rest_when_the_chain_asks_for_it(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = queue.put(&chain(["a", "b", "c"], OnFailure::Cancel)).await;
        operator.cancel(jobs[1]).await.unwrap();
        queue.assert_state(jobs[0], State::Ready).await;
        queue.assert_state(jobs[2], State::Cancelled).await;
        let reply = queue.settle(&queue.take("a").await, Outcome::Finished, &["b", "c"]).await;
        assert_eq!(reply.next.len(), 0);
    }

    async fn a_waiting_job_that_an_operator_cancels_lets_the_chain_go_on(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b] = queue.enqueue_chain(["a", "b"]).await;
        operator.cancel(a).await.unwrap();
        assert_eq!(ids(&queue.claim(&["a", "b"], 10).await), [b]);
    }

    async fn deleting_ended_jobs_in_the_middle_does_not_break_the_chain(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [_, b, c, d] = queue.enqueue_chain(["a", "b", "c", "d"]).await;
        let a = queue.take("a").await;
        operator.finish(b).await.unwrap();
        operator.cancel(c).await.unwrap();
        assert_eq!(operator.delete_finished(queue.ticks(0), 10).await.unwrap(), 2);
        assert_eq!(queue.finish_and_take(&a, "d").await.job.id, d);
    }

    async fn deleting_ended_jobs_in_the_middle_does_not_save_the_rest_from_being_cancelled(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let jobs = queue.put(&chain(["a", "b", "c"], OnFailure::Cancel)).await;
        let a = queue.take("a").await;
        operator.finish(jobs[1]).await.unwrap();
        assert_eq!(operator.delete_finished(queue.ticks(0), 10).await.unwrap(), 1);
        queue.fail(&a).await;
        queue.assert_state(jobs[2], State::Cancelled).await;
    }
}
