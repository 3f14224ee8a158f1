//! The right to run a job: how it is kept, how it is lost, and what a worker can still do after that.

use dejq::backend::{Lease, Outcome, Rescued, Revocation, Settled};
use dejq::job::{OnFailure, State};

use crate::support::{LEASE, TestQueue, chain, failure, ids, job, lease};

/// One of every way in which an attempt ends.
fn every_outcome(queue: &TestQueue) -> [Outcome; 4] {
    [
        Outcome::Finished,
        Outcome::Retry { after: queue.ticks(0), failure: failure() },
        Outcome::Failed(failure()),
        Outcome::Cancelled(failure()),
    ]
}

for_every_backend! {
    async fn a_beat_keeps_a_job_past_its_first_lease(queue: TestQueue) {
        queue.enqueue("a").await;
        let taken = queue.take("a").await;
        for _ in 0..4 {
            queue.pass(LEASE - 1).await;
            queue.assert_held(&taken).await;
            queue.assert_rescued(0).await;
        }
        queue.finish(&taken).await;
    }

    async fn a_beat_lasts_no_longer_than_a_lease(queue: TestQueue) {
        queue.enqueue("a").await;
        let taken = queue.take("a").await;
        queue.pass(LEASE - 1).await;
        queue.assert_held(&taken).await;
        queue.pass(LEASE).await;
        queue.assert_rescued(0).await;
        queue.pass(1).await;
        queue.assert_rescued(1).await;
    }

    async fn one_beat_renews_all_leases_of_a_worker(queue: TestQueue) {
        queue.put(&[job("a"), job("b"), job("a")]).await;
        let leases: Vec<Lease> = queue.claim(&["a", "b"], 3).await.iter().map(lease).collect();
        queue.pass(LEASE).await;
        assert_eq!(queue.beat(&leases).await, []);
        queue.pass(LEASE).await;
        queue.assert_rescued(0).await;
    }

    async fn a_beat_says_which_leases_are_lost_and_renews_the_others(queue: TestQueue) {
        queue.put(&[job("a"), job("a"), job("a")]).await;
        let taken = queue.claim(&["a"], 3).await;
        queue.finish(&taken[1]).await;
        queue.pass(LEASE).await;
        let leases: Vec<Lease> = taken.iter().map(lease).collect();
        assert_eq!(queue.beat(&leases).await, [(leases[1], Revocation::Lost)]);
        queue.pass(LEASE).await;
        queue.assert_rescued(0).await;
    }

    async fn a_beat_without_leases_is_fine(queue: TestQueue) {
        assert_eq!(queue.beat(&[]).await, []);
    }

    async fn a_job_is_not_rescued_while_its_lease_lasts(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        let taken = queue.take("a").await;
        queue.pass(LEASE).await;
        queue.assert_rescued(0).await;
        queue.assert_state(id, State::Running).await;
        queue.finish(&taken).await;
    }

    async fn a_job_whose_lease_ran_out_is_given_to_another_worker(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        queue.take("a").await;
        queue.pass(LEASE + 1).await;
        queue.assert_rescued(1).await;
        assert_eq!(queue.other_worker().take("a").await.job.id, id);
    }

    async fn a_rescue_does_nothing_twice(queue: TestQueue) {
        queue.enqueue("a").await;
        queue.take("a").await;
        queue.lose_worker().await;
        queue.assert_rescued(0).await;
        assert_eq!(queue.claim(&["a"], 10).await.len(), 1);
    }

    async fn a_rescued_job_goes_back_to_its_old_place_in_line(queue: TestQueue) {
        let enqueued = queue.put(&[job("a"), job("a"), job("a")]).await;
        queue.claim(&["a"], 2).await;
        queue.enqueue("a").await;
        queue.lose_worker().await;
        assert_eq!(ids(&queue.claim(&["a"], 3).await), enqueued);
    }

    async fn a_rescue_does_not_count_the_attempt(queue: TestQueue) {
        queue.enqueue("a").await;
        queue.retry(&queue.take("a").await, 0).await;
        for handed_out in 2..4 {
            queue.assert_attempt(&queue.take("a").await, 2, handed_out);
            queue.lose_worker().await;
        }
    }

    async fn rescues_are_counted(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        for rescues in 0..3 {
            queue.take("a").await;
            assert_eq!(operator.get(id).await.unwrap().rescues, rescues);
            queue.lose_worker().await;
        }
    }

    async fn a_rescue_takes_only_the_jobs_of_lost_workers(queue: TestQueue) {
        queue.put(&[job("a"), job("a")]).await;
        queue.take("a").await;
        let alive = queue.other_worker();
        let held = alive.take("a").await;
        queue.pass(LEASE).await;
        alive.assert_held(&held).await;
        queue.pass(1).await;
        queue.assert_rescued(1).await;
        alive.assert_held(&held).await;
    }

    async fn a_stale_token_ends_nothing(queue: TestQueue) {
        for outcome in every_outcome(&queue) {
            let id = queue.enqueue("a").await;
            let zombie = queue.take("a").await;
            queue.lose_worker().await;
            let other = queue.other_worker();
            let current = other.take("a").await;
            queue.assert_lost(&zombie, outcome).await;
            queue.assert_state(id, State::Running).await;
            other.assert_held(&current).await;
            other.finish(&current).await;
        }
    }

    async fn a_stale_token_ends_nothing_while_the_job_waits_for_another_worker(queue: TestQueue) {
        for outcome in every_outcome(&queue) {
            let id = queue.enqueue("a").await;
            let zombie = queue.take("a").await;
            queue.lose_worker().await;
            queue.assert_lost(&zombie, outcome).await;
            queue.assert_state(id, State::Ready).await;
            queue.finish(&queue.take("a").await).await;
        }
    }

    async fn a_stale_token_releases_nothing(queue: TestQueue) {
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        let zombie = queue.take("a").await;
        queue.lose_worker().await;
        queue.other_worker().take("a").await;
        let done = [Settled { lease: lease(&zombie), outcome: Outcome::Finished }];
        let reply = queue.settle_all(&done, &["b"]).await;
        assert_eq!((reply.lost, reply.next.len()), (vec![0], 0));
        queue.assert_state(b, State::Blocked).await;
    }

    async fn a_stale_token_extends_nothing(queue: TestQueue) {
        queue.enqueue("a").await;
        let zombie = queue.take("a").await;
        queue.lose_worker().await;
        let other = queue.other_worker();
        let current = other.take("a").await;
        queue.pass(LEASE).await;
        assert_eq!(queue.beat(&[lease(&zombie)]).await, [(lease(&zombie), Revocation::Lost)]);
        queue.pass(1).await;
        queue.assert_rescued(1).await;
        other.assert_lost(&current, Outcome::Finished).await;
    }

    async fn a_stale_token_gives_nothing_back(queue: TestQueue) {
        queue.enqueue("a").await;
        let zombie = queue.take("a").await;
        queue.lose_worker().await;
        let other = queue.other_worker();
        let current = other.take("a").await;
        queue.give_back(&[zombie]).await;
        queue.assert_none_ready("a").await;
        other.assert_held(&current).await;
    }

    async fn the_end_of_an_attempt_counts_once(queue: TestQueue) {
        for outcome in every_outcome(&queue) {
            queue.enqueue("a").await;
            let taken = queue.take("a").await;
            queue.settle(&taken, outcome, &[]).await;
            queue.assert_lost(&taken, Outcome::Finished).await;
            assert_eq!(queue.beat(&[lease(&taken)]).await, [(lease(&taken), Revocation::Lost)]);
            queue.give_back(std::slice::from_ref(&taken)).await;
        }
    }

    async fn the_same_lease_twice_in_one_batch_counts_once(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        let taken = queue.take("a").await;
        let done = [Outcome::Failed(failure()), Outcome::Finished]
            .map(|outcome| Settled { lease: lease(&taken), outcome });
        assert_eq!(queue.settle_all(&done, &[]).await.lost, [1]);
        queue.assert_state(id, State::Failed).await;
    }

    async fn a_lease_that_was_given_back_is_stale(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        let taken = queue.take("a").await;
        queue.give_back(std::slice::from_ref(&taken)).await;
        queue.assert_lost(&taken, Outcome::Finished).await;
        queue.assert_state(id, State::Ready).await;
    }

    async fn a_new_lease_of_the_same_worker_makes_its_old_one_stale(queue: TestQueue) {
        queue.enqueue("a").await;
        let old = queue.take("a").await;
        queue.retry(&old, 0).await;
        let new = queue.take("a").await;
        queue.assert_lost(&old, Outcome::Finished).await;
        queue.finish(&new).await;
    }

    async fn a_token_serves_only_its_own_job(queue: TestQueue) {
        queue.put(&[job("a"), job("a")]).await;
        let [first, second] = <[_; 2]>::try_from(queue.claim(&["a"], 2).await).unwrap();
        let mixed = Lease { id: first.job.id, token: second.token };
        assert_eq!(queue.beat(&[mixed]).await, [(mixed, Revocation::Lost)]);
        let done = [Settled { lease: mixed, outcome: Outcome::Finished }];
        assert_eq!(queue.settle_all(&done, &[]).await.lost, [0]);
        queue.finish(&first).await;
        queue.finish(&second).await;
    }

    async fn a_stale_lease_in_a_batch_does_not_hold_up_the_others(queue: TestQueue) {
        queue.put(&[job("a"), job("a"), job("a")]).await;
        let taken = queue.claim(&["a"], 3).await;
        queue.finish(&taken[1]).await;
        let done: Vec<Settled> = taken
            .iter()
            .map(|leased| Settled { lease: lease(leased), outcome: Outcome::Failed(failure()) })
            .collect();
        assert_eq!(queue.settle_all(&done, &[]).await.lost, [1]);
        queue.assert_counts(&[(State::Finished, 1), (State::Failed, 2)]).await;
    }
}

for_every_backend! {
    where tells_rescues;

    async fn a_job_rescued_too_often_fails_as_worker_lost(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        for _ in 0..2 {
            queue.take("a").await;
            queue.pass(LEASE + 1).await;
            assert_eq!(queue.rescue(2).await, Rescued { requeued: 1, failed: 0 });
        }
        queue.take("a").await;
        queue.pass(LEASE + 1).await;
        assert_eq!(queue.rescue(2).await, Rescued { requeued: 0, failed: 1 });
        queue.assert_none_ready("a").await;
        if let Some(operator) = queue.operator().await {
            let info = operator.get(id).await.unwrap();
            assert_eq!(info.state, State::Failed);
            assert_eq!(info.failure.unwrap().kind, "worker lost");
        }
    }

    async fn a_job_that_may_not_be_rescued_fails_when_its_worker_is_lost(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        queue.take("a").await;
        queue.pass(LEASE + 1).await;
        assert_eq!(queue.rescue(0).await, Rescued { requeued: 0, failed: 1 });
        queue.assert_state(id, State::Failed).await;
    }

    async fn a_job_that_fails_as_worker_lost_lets_its_chain_go_on(queue: TestQueue) {
        let [_, b] = queue.enqueue_chain(["a", "b"]).await;
        queue.take("a").await;
        queue.pass(LEASE + 1).await;
        queue.rescue(0).await;
        assert_eq!(queue.take("b").await.job.id, b);
    }

    async fn a_job_that_fails_as_worker_lost_cancels_the_rest_when_the_chain_asks_for_it(queue: TestQueue) {
        let jobs = queue.put(&chain(["a", "b"], OnFailure::Cancel)).await;
        queue.take("a").await;
        queue.pass(LEASE + 1).await;
        queue.rescue(0).await;
        queue.assert_state(jobs[1], State::Cancelled).await;
        queue.assert_none_ready("b").await;
    }

    async fn a_rescue_says_how_many_jobs_it_requeued_and_failed(queue: TestQueue) {
        queue.enqueue("a").await;
        queue.take("a").await;
        queue.pass(LEASE + 1).await;
        queue.rescue(1).await;
        queue.put(&[job("b"), job("b")]).await;
        assert_eq!(queue.claim(&["a", "b"], 10).await.len(), 3);
        queue.pass(LEASE + 1).await;
        assert_eq!(queue.rescue(1).await, Rescued { requeued: 2, failed: 1 });
    }

    async fn a_late_beat_wins_against_a_rescue_that_comes_later(queue: TestQueue) {
        queue.enqueue("a").await;
        let taken = queue.take("a").await;
        queue.pass(2 * LEASE).await;
        queue.assert_held(&taken).await;
        queue.assert_rescued(0).await;
        queue.finish(&taken).await;
    }

    async fn a_late_finish_counts_while_nobody_else_has_the_job(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        let taken = queue.take("a").await;
        queue.pass(2 * LEASE).await;
        queue.finish(&taken).await;
        queue.assert_rescued(0).await;
        queue.assert_state(id, State::Finished).await;
    }
}
