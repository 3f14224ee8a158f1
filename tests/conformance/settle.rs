//! How an attempt ends, and what is kept of it.

use dejq::backend::{Outcome, Settled};
use dejq::job::{Failure, State};

use crate::support::{failure, ids, job, lease};

for_every_backend! {
    async fn a_finished_job_is_final(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        queue.finish(&queue.take("a").await).await;
        queue.assert_none_ready("a").await;
        queue.assert_state(id, State::Finished).await;
    }

    async fn a_failed_job_is_final_and_keeps_its_failure(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        let failure = Failure { traceback: Some("Traceback:\n  żółw 🐢".into()), ..failure() };
        queue.settle(&queue.take("a").await, Outcome::Failed(failure.clone()), &[]).await;
        queue.assert_none_ready("a").await;
        let Some(operator) = queue.operator().await else { return };
        let info = operator.get(id).await.unwrap();
        assert_eq!((info.state, info.failure), (State::Failed, Some(failure)));
    }

    async fn a_cancelled_job_is_final_and_keeps_the_reason(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        let reason = Failure::new("stuck", "no end after 3 beats (max_beats)");
        queue.settle(&queue.take("a").await, Outcome::Cancelled(reason.clone()), &[]).await;
        queue.assert_none_ready("a").await;
        let Some(operator) = queue.operator().await else { return };
        let info = operator.get(id).await.unwrap();
        assert_eq!((info.state, info.failure), (State::Cancelled, Some(reason)));
    }

    async fn an_interrupted_job_is_ready_at_its_old_place_and_the_attempt_does_not_count(queue: TestQueue) {
        let first = queue.enqueue("a").await;
        queue.enqueue("a").await;
        queue.settle(&queue.take("a").await, Outcome::Interrupted, &[]).await;
        let again = queue.take("a").await;
        assert_eq!(again.job.id, first);
        queue.assert_attempt(&again, 1, 2);
    }

    async fn an_interrupted_job_that_was_to_be_cancelled_is_cancelled(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        let taken = queue.take("a").await;
        operator.cancel(id).await.unwrap();
        queue.settle(&taken, Outcome::Interrupted, &[]).await;
        queue.assert_state(id, State::Cancelled).await;
    }

    async fn a_job_to_be_tried_again_waits_for_its_time(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        queue.retry(&queue.take("a").await, 3).await;
        queue.assert_state(id, State::Scheduled).await;
        queue.pass(2).await;
        queue.assert_none_ready("a").await;
        queue.pass(1).await;
        let again = queue.take("a").await;
        assert_eq!((again.job.id, again.job.attempt), (id, 2));
    }

    async fn a_job_to_be_tried_again_at_once_is_ready_at_once(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        queue.retry(&queue.take("a").await, 0).await;
        queue.assert_state(id, State::Ready).await;
        assert_eq!(queue.take("a").await.job.id, id);
    }

    async fn a_job_to_be_tried_again_says_why_and_when(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        queue.pass(2).await;
        let taken = queue.take("a").await;
        queue.retry(&taken, 3).await;
        let info = operator.get(id).await.unwrap();
        assert_eq!(info.failure, Some(failure()));
        let due_in = info.due_at.unwrap().duration_since(taken.job.enqueued_at).unwrap();
        assert!((queue.ticks(5)..queue.ticks(6)).contains(&due_in), "{due_in:?}");
        assert_eq!(info.finished_at, None);
    }

    async fn a_later_failure_takes_the_place_of_an_earlier_one(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        queue.retry(&queue.take("a").await, 0).await;
        let last = Failure::new("KeyError", "'b'");
        queue.settle(&queue.take("a").await, Outcome::Failed(last.clone()), &[]).await;
        assert_eq!(operator.get(id).await.unwrap().failure, Some(last));
    }

    async fn a_job_that_finishes_after_a_failed_attempt_has_no_failure(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        queue.retry(&queue.take("a").await, 0).await;
        queue.finish(&queue.take("a").await).await;
        assert_eq!(operator.get(id).await.unwrap().failure, None);
    }

    async fn an_ended_job_says_when_it_started_and_ended(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        for outcome in [Outcome::Finished, Outcome::Failed(failure()), Outcome::Cancelled(failure())] {
            let id = queue.enqueue("a").await;
            queue.pass(2).await;
            let taken = queue.take("a").await;
            queue.pass(3).await;
            queue.settle(&taken, outcome, &[]).await;
            let info = operator.get(id).await.unwrap();
            let started_at = info.started_at.unwrap();
            let waited = started_at.duration_since(info.job.enqueued_at).unwrap();
            let ran = info.finished_at.unwrap().duration_since(started_at).unwrap();
            assert!((queue.ticks(2)..queue.ticks(3)).contains(&waited), "waited {waited:?}");
            assert!((queue.ticks(3)..queue.ticks(4)).contains(&ran), "ran {ran:?}");
            assert_eq!((info.last_beat_at, info.due_at), (None, None));
        }
    }

    async fn many_jobs_can_end_in_one_call_each_in_its_own_way(queue: TestQueue) {
        let [done, again, failed, cancelled] =
            <[_; 4]>::try_from(queue.put(&[job("a"), job("a"), job("a"), job("a")]).await).unwrap();
        let after = queue.ticks(3);
        let outcomes = [
            Outcome::Finished,
            Outcome::Retry { after, failure: failure() },
            Outcome::Failed(failure()),
            Outcome::Cancelled(failure()),
        ];
        let settled: Vec<Settled> = queue
            .claim(&["a"], 4)
            .await
            .iter()
            .zip(outcomes)
            .map(|(leased, outcome)| Settled { lease: lease(leased), outcome })
            .collect();
        assert_eq!(queue.settle_all(&settled, &[]).await.lost, [] as [usize; 0]);
        queue.assert_state(done, State::Finished).await;
        queue.assert_state(again, State::Scheduled).await;
        queue.assert_state(failed, State::Failed).await;
        queue.assert_state(cancelled, State::Cancelled).await;
    }

    async fn a_settle_of_nothing_does_nothing(queue: TestQueue) {
        queue.enqueue("a").await;
        let reply = queue.settle_all(&[], &["a"]).await;
        assert_eq!((reply.lost.len(), reply.next.len()), (0, 0));
        queue.assert_counts(&[(State::Ready, 1)]).await;
    }

    async fn the_end_of_one_job_leaves_the_others_alone(queue: TestQueue) {
        let enqueued = queue.put(&[job("a"), job("a"), job("a")]).await;
        let taken = queue.claim(&["a"], 2).await;
        queue.fail(&taken[0]).await;
        queue.assert_held(&taken[1]).await;
        assert_eq!(ids(&queue.claim(&["a"], 10).await), enqueued[2..]);
    }
}
