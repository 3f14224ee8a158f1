//! Jobs that a worker took and did not start.

use dejq::job::State;

use crate::support::{ids, job};

for_every_backend! {
    async fn a_job_that_is_given_back_is_ready_at_once(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        queue.give_back(&[queue.take("a").await]).await;
        queue.assert_state(id, State::Ready).await;
        assert_eq!(queue.other_worker().take("a").await.job.id, id);
    }

    async fn a_job_that_is_given_back_goes_to_its_old_place_in_line(queue: TestQueue) {
        let enqueued = queue.put(&[job("a"), job("a"), job("a")]).await;
        let taken = queue.take("a").await;
        queue.enqueue("a").await;
        queue.give_back(&[taken]).await;
        assert_eq!(ids(&queue.claim(&["a"], 3).await), enqueued);
    }

    async fn jobs_that_are_given_back_together_keep_their_order(queue: TestQueue) {
        let enqueued = queue.put(&[job("a"), job("b"), job("a"), job("b"), job("a"), job("a")]).await;
        let taken = queue.claim(&["a", "b"], 5).await;
        queue.give_back(&taken).await;
        assert_eq!(ids(&queue.claim(&["a", "b"], 10).await), enqueued);
    }

    async fn jobs_that_are_given_back_in_any_order_go_to_their_old_places(queue: TestQueue) {
        let enqueued = queue.put(&[job("a"), job("a"), job("a"), job("a"), job("a")]).await;
        let taken = queue.claim(&["a"], 4).await;
        for place in [2, 0, 3, 1] {
            queue.give_back(&taken[place..=place]).await;
        }
        assert_eq!(ids(&queue.claim(&["a"], 10).await), enqueued);
    }

    async fn jobs_that_left_the_line_do_not_change_the_place_of_one_that_is_given_back(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let enqueued = queue.put(&[job("a"), job("a"), job("a"), job("a"), job("a")]).await;
        let taken = queue.claim(&["a"], 2).await;
        operator.finish(enqueued[2]).await.unwrap();
        operator.cancel(enqueued[4]).await.unwrap();
        queue.give_back(&taken).await;
        assert_eq!(ids(&queue.claim(&["a"], 10).await), [enqueued[0], enqueued[1], enqueued[3]]);
    }

    async fn a_job_that_is_given_back_does_not_count_the_attempt(queue: TestQueue) {
        queue.enqueue("a").await;
        for handed_out in 1..=3 {
            let taken = queue.take("a").await;
            queue.assert_attempt(&taken, 1, handed_out);
            queue.give_back(&[taken]).await;
        }
        queue.retry(&queue.take("a").await, 0).await;
        queue.give_back(&[queue.take("a").await]).await;
        queue.assert_attempt(&queue.take("a").await, 2, 6);
    }

    async fn a_job_that_is_given_back_has_not_started(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        queue.give_back(&[queue.take("a").await]).await;
        let info = operator.get(id).await.unwrap();
        assert_eq!((info.job.attempt, info.started_at, info.last_beat_at), (0, None, None));
    }

    async fn a_job_that_is_given_back_is_no_rescue(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        queue.give_back(&[queue.take("a").await]).await;
        let Some(operator) = queue.operator().await else { return };
        assert_eq!(operator.get(id).await.unwrap().rescues, 0);
    }

    async fn a_job_that_was_handed_over_can_be_given_back(queue: TestQueue) {
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        let next = queue.finish_and_take(&queue.take("a").await, "b").await;
        queue.give_back(&[next]).await;
        let again = queue.other_worker().take("b").await;
        assert_eq!(again.job.id, b);
        queue.assert_attempt(&again, 1, 2);
    }

    async fn giving_nothing_back_changes_nothing(queue: TestQueue) {
        queue.enqueue("a").await;
        let taken = queue.take("a").await;
        queue.give_back(&[]).await;
        queue.assert_held(&taken).await;
    }

    async fn a_stale_lease_among_those_given_back_does_not_hold_up_the_others(queue: TestQueue) {
        let enqueued = queue.put(&[job("a"), job("a"), job("a")]).await;
        let taken = queue.claim(&["a"], 3).await;
        queue.finish(&taken[1]).await;
        queue.give_back(&taken).await;
        assert_eq!(ids(&queue.claim(&["a"], 10).await), [enqueued[0], enqueued[2]]);
    }

    /// An operator was told that it will not run again.
    async fn a_job_to_be_cancelled_is_cancelled_when_it_is_given_back(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b] = queue.enqueue_chain(["a", "b"]).await;
        let taken = queue.take("a").await;
        operator.cancel(a).await.unwrap();
        queue.give_back(&[taken]).await;
        queue.assert_state(a, State::Cancelled).await;
        queue.assert_state(b, State::Ready).await;
        queue.assert_none_ready("a").await;
    }
}
