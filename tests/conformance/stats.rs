//! Numbers that add up, whatever happened to the jobs.

use dejq::backend::Outcome;
use dejq::error::ErrorKind;
use dejq::job::{JobId, NewJob, OnFailure, State};

use crate::support::{LEASE, assert_refused, chain, failure, job};

for_every_backend! {
    async fn an_empty_store_counts_nothing(queue: TestQueue) {
        queue.assert_counts(&[]).await;
        let stats = queue.backend.stats().await.unwrap();
        assert!(stats.by_type.is_empty(), "{:?}", stats.by_type);
        assert_eq!(stats.total.oldest_ready, None);
    }

    async fn waiting_jobs_are_counted_by_what_they_wait_for(queue: TestQueue) {
        queue.enqueue_chain(["a", "a", "a"]).await;
        queue.put(&[NewJob { delay: queue.ticks(3), ..job("a") }, job("a")]).await;
        queue.assert_counts(&[(State::Ready, 2), (State::Blocked, 2), (State::Scheduled, 1)]).await;
    }

    async fn running_jobs_are_counted(queue: TestQueue) {
        queue.put(&[job("a"), job("a"), job("a")]).await;
        queue.claim(&["a"], 2).await;
        queue.assert_counts(&[(State::Ready, 1), (State::Running, 2)]).await;
    }

    async fn ended_jobs_are_counted_by_how_they_ended(queue: TestQueue) {
        queue.put(&[job("a"), job("a"), job("a"), job("a")]).await;
        let taken = queue.claim(&["a"], 4).await;
        queue.finish(&taken[0]).await;
        queue.fail(&taken[1]).await;
        queue.settle(&taken[2], Outcome::Cancelled(failure()), &[]).await;
        queue.finish(&taken[3]).await;
        queue.assert_counts(&[(State::Finished, 2), (State::Failed, 1), (State::Cancelled, 1)]).await;
    }

    async fn jobs_that_come_back_are_counted_where_they_are(queue: TestQueue) {
        queue.put(&[job("a"), job("a"), job("a"), job("a")]).await;
        let taken = queue.claim(&["a"], 4).await;
        queue.retry(&taken[0], 100).await;
        queue.retry(&taken[1], 0).await;
        queue.give_back(&taken[2..3]).await;
        queue.assert_counts(&[(State::Scheduled, 1), (State::Ready, 2), (State::Running, 1)]).await;
        queue.lose_worker().await;
        queue.assert_counts(&[(State::Scheduled, 1), (State::Ready, 3)]).await;
    }

    async fn a_job_that_fails_as_worker_lost_is_counted_as_failed(queue: TestQueue) {
        if !queue.tells_rescues().await {
            return;
        }
        queue.enqueue("a").await;
        queue.take("a").await;
        queue.pass(LEASE + 1).await;
        queue.rescue(0).await;
        queue.assert_counts(&[(State::Failed, 1)]).await;
    }

    async fn jobs_of_a_chain_are_counted_as_it_moves_on(queue: TestQueue) {
        queue.enqueue_chain(["a", "b", "a"]).await;
        let b = queue.finish_and_take(&queue.take("a").await, "b").await;
        queue.assert_counts(&[(State::Finished, 1), (State::Running, 1), (State::Blocked, 1)]).await;
        queue.finish(&b).await;
        queue.assert_counts(&[(State::Finished, 2), (State::Ready, 1)]).await;
    }

    async fn jobs_cancelled_with_their_chain_are_counted_as_cancelled(queue: TestQueue) {
        queue.put(&chain(["a", "b", "a"], OnFailure::Cancel)).await;
        queue.fail(&queue.take("a").await).await;
        // Where nobody can reach the rest before its turn comes, it is cancelled then.
        assert_eq!(queue.claim(&["a", "b"], 10).await.len(), 0);
        queue.assert_counts(&[(State::Failed, 1), (State::Cancelled, 2)]).await;
    }

    async fn what_operators_do_is_counted(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let [a, b, c] = queue.enqueue_chain(["a", "b", "c"]).await;
        operator.finish(b).await.unwrap();
        queue.assert_counts(&[(State::Ready, 1), (State::Blocked, 1), (State::Finished, 1)]).await;
        operator.cancel(a).await.unwrap();
        queue.assert_counts(&[(State::Cancelled, 1), (State::Ready, 1), (State::Finished, 1)]).await;
        operator.requeue(a).await.unwrap();
        queue.assert_counts(&[(State::Ready, 1), (State::Blocked, 1), (State::Finished, 1)]).await;
        operator.cancel(c).await.unwrap();
        queue.assert_counts(&[(State::Ready, 1), (State::Cancelled, 1), (State::Finished, 1)]).await;
    }

    async fn a_job_that_is_requeued_is_no_longer_counted_as_failed(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        queue.fail(&queue.take("a").await).await;
        operator.requeue(id).await.unwrap();
        queue.assert_counts(&[(State::Ready, 1)]).await;
    }

    async fn deleted_jobs_stay_counted(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        queue.put(&[job("a"), job("a")]).await;
        let taken = queue.claim(&["a"], 2).await;
        queue.finish(&taken[0]).await;
        queue.fail(&taken[1]).await;
        assert_eq!(operator.delete_finished(queue.ticks(0), 10).await.unwrap(), 2);
        queue.assert_counts(&[(State::Finished, 1), (State::Failed, 1)]).await;
    }

    async fn every_type_is_counted_by_itself(queue: TestQueue) {
        queue.put(&[job("a"), job("b"), job("a"), job("c")]).await;
        queue.take("a").await;
        queue.finish(&queue.take("c").await).await;
        queue.assert_counts_of("a", &[(State::Ready, 1), (State::Running, 1)]).await;
        queue.assert_counts_of("b", &[(State::Ready, 1)]).await;
        queue.assert_counts_of("c", &[(State::Finished, 1)]).await;
        queue.assert_counts(&[(State::Ready, 2), (State::Running, 1), (State::Finished, 1)]).await;
    }

    async fn asking_for_a_type_does_not_make_it_known(queue: TestQueue) {
        queue.assert_none_ready("never").await;
        assert!(queue.backend.stats().await.unwrap().by_type.is_empty());
    }

    async fn the_age_of_the_job_that_waits_longest_is_told(queue: TestQueue) {
        queue.enqueue("a").await;
        if !queue.backend.guarantees().counts_exactly {
            return assert_eq!(queue.backend.stats().await.unwrap().total.oldest_ready, None);
        }
        queue.pass(2).await;
        queue.enqueue("b").await;
        queue.pass(3).await;
        let ages = |stats: dejq::backend::Stats| {
            [&stats.total, &stats.by_type["a"], &stats.by_type["b"]].map(|counts| counts.oldest_ready)
        };
        let told = ages(queue.backend.stats().await.unwrap());
        for (age, expected) in told.into_iter().zip([5, 5, 3]) {
            let expected = queue.ticks(expected)..queue.ticks(expected + 1);
            match age {
                Some(age) => assert!(expected.contains(&age), "{told:?}"),
                None => assert!(!queue.backend.guarantees().inspects, "{told:?}"),
            }
        }
        queue.take("a").await;
        let told = ages(queue.backend.stats().await.unwrap());
        assert_eq!((told[0], told[1]), (told[2], None));
    }

    async fn what_operators_are_refused_changes_no_count(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let id = JobId::generate();
        for verb in 0..3 {
            queue.put(&[NewJob { delay: queue.ticks(1), ..job("a") }]).await;
            queue.pass(2).await;
            // The first to look after its time has come.
            let refused = match verb {
                0 => operator.finish(id).await,
                1 => operator.cancel(id).await,
                _ => operator.requeue(id).await,
            };
            assert_refused(refused, &ErrorKind::UnknownJob, id);
            queue.assert_counts(&[(State::Ready, verb + 1)]).await;
        }
    }

    async fn workers_are_counted_while_they_are_alive(queue: TestQueue) {
        let alive = async || queue.backend.stats().await.unwrap().workers;
        if alive().await.is_none() {
            return assert!(!queue.backend.guarantees().inspects, "the number of workers is not told");
        }
        assert_eq!(alive().await, Some(0));
        let silent = queue.other_worker();
        silent.assert_none_ready("a").await;
        queue.beat(&[]).await;
        assert_eq!(alive().await, Some(2));
        queue.pass(LEASE - 1).await;
        queue.beat(&[]).await;
        queue.pass(2).await;
        assert_eq!(alive().await, Some(1));
        queue.backend.leave(queue.worker).await.unwrap();
        assert_eq!(alive().await, Some(0));
    }
}
