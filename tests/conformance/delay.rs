//! Jobs that wait for their time.

use std::time::Duration;

use dejq::backend::Filter;
use dejq::error::ErrorKind;
use dejq::job::{NewJob, OnFailure, State};

use crate::support::{TestQueue, assert_refused, ids, job, linked};

fn delayed(queue: &TestQueue, job_type: &str, ticks: u32) -> NewJob {
    NewJob { delay: queue.ticks(ticks), ..job(job_type) }
}

for_every_backend! {
    async fn a_delayed_job_is_not_ready_before_its_time(queue: TestQueue) {
        let id = queue.put(&[delayed(&queue, "a", 3)]).await[0];
        queue.assert_state(id, State::Scheduled).await;
        queue.pass(2).await;
        queue.assert_none_ready("a").await;
        queue.assert_state(id, State::Scheduled).await;
    }

    async fn a_delayed_job_is_ready_when_its_time_has_come(queue: TestQueue) {
        let id = queue.put(&[delayed(&queue, "a", 3)]).await[0];
        queue.pass(3).await;
        assert_eq!(queue.take("a").await.job.id, id);
    }

    async fn a_delayed_job_says_when_it_is_due(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.put(&[delayed(&queue, "a", 3)]).await[0];
        let info = operator.get(id).await.unwrap();
        assert_eq!(info.due_at.unwrap().duration_since(info.job.enqueued_at).unwrap(), queue.ticks(3));
        queue.pass(3).await;
        queue.take("a").await;
        assert_eq!(operator.get(id).await.unwrap().due_at, None);
    }

    async fn delayed_jobs_start_in_the_order_of_their_times(queue: TestQueue) {
        let jobs = [3, 1, 2].map(|ticks| delayed(&queue, "a", ticks));
        queue.put(&jobs).await;
        queue.pass(3).await;
        // Where a delay is kept by hiding a job, those that are due keep their places in the queue.
        let order = if queue.backend.guarantees().max_delay.is_none() { [1, 2, 0] } else { [0, 1, 2] };
        assert_eq!(ids(&queue.claim(&["a"], 10).await), order.map(|place: usize| jobs[place].id));
    }

    async fn a_delayed_job_does_not_hold_up_the_others(queue: TestQueue) {
        queue.put(&[delayed(&queue, "a", 3)]).await;
        let plain = queue.enqueue("a").await;
        assert_eq!(ids(&queue.claim(&["a"], 10).await), [plain]);
    }

    async fn a_job_whose_time_has_come_is_seen_as_ready_before_anybody_claims(queue: TestQueue) {
        let id = queue.put(&[delayed(&queue, "a", 3)]).await[0];
        queue.pass(3).await;
        queue.assert_state(id, State::Ready).await;
        queue.assert_counts(&[(State::Ready, 1)]).await;
    }

    async fn a_job_whose_time_has_come_is_listed_as_ready(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.put(&[delayed(&queue, "a", 3)]).await[0];
        queue.pass(3).await;
        let ready = Filter { state: Some(State::Ready), limit: 10, ..Filter::default() };
        let listed = operator.list(&ready).await.unwrap();
        assert_eq!(listed.iter().map(|info| info.job.id).collect::<Vec<_>>(), [id]);
    }

    async fn a_delay_that_never_ends_is_accepted(queue: TestQueue) {
        let endless = NewJob { delay: Duration::MAX, ..job("a") };
        if queue.backend.guarantees().max_delay.is_some() {
            let refused = queue.backend.enqueue(&[endless]).await;
            return assert_refused(refused, &ErrorKind::NotSupported, "12 hours");
        }
        let id = queue.put(&[endless]).await[0];
        queue.pass(100).await;
        queue.assert_none_ready("a").await;
        queue.assert_state(id, State::Scheduled).await;
    }

    async fn the_delay_of_a_job_is_over_once_and_for_all(queue: TestQueue) {
        queue.put(&[delayed(&queue, "a", 3)]).await;
        queue.pass(3).await;
        queue.give_back(&[queue.take("a").await]).await;
        queue.retry(&queue.take("a").await, 0).await;
        queue.take("a").await;
    }

    async fn scheduled_jobs_can_be_made_ready_before_their_time(queue: TestQueue) {
        queue.put(&[job("a"), delayed(&queue, "a", 3), delayed(&queue, "b", 300)]).await;
        queue.retry(&queue.take("a").await, 5).await;
        if !queue.backend.guarantees().inspects {
            let store = queue.backend.guarantees().store;
            return assert_refused(queue.backend.promote().await, &ErrorKind::NotSupported, store);
        }
        assert_eq!(queue.backend.promote().await.unwrap(), 3);
        queue.assert_counts(&[(State::Ready, 3)]).await;
        assert_eq!(queue.backend.promote().await.unwrap(), 0);
    }

    async fn a_claim_that_waits_ends_at_once_when_jobs_are_made_ready(queue: TestQueue) {
        let queue = queue.in_real_time();
        if queue.operator().await.is_none() {
            return;
        }
        let id = queue.put(&[delayed(&queue, "a", 300)]).await[0];
        let claiming = queue.start_claim("a", 200).await;
        let start = tokio::time::Instant::now();
        queue.backend.promote().await.unwrap();
        assert_eq!(ids(&claiming.end().await), [id]);
        assert_eq!(queue.ticks_since(start), 0);
    }

    async fn making_jobs_ready_releases_no_blocked_one(queue: TestQueue) {
        if queue.operator().await.is_none() {
            return;
        }
        let jobs = linked(vec![delayed(&queue, "a", 3), delayed(&queue, "b", 3)], OnFailure::Continue);
        queue.put(&jobs).await;
        assert_eq!(queue.backend.promote().await.unwrap(), 1);
        queue.assert_state(jobs[1].id, State::Blocked).await;
    }
}
