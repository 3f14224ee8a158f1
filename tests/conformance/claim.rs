//! Who gets which job, and when a claim stops waiting for one.

use std::collections::HashSet;

use dejq::backend::Leased;
use dejq::job::{JobId, NewJob, State};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::{LEASE, ids, job};

/// Longer than anything that a test waits for.
const LONG: u32 = 1000;

for_every_backend! {
    async fn jobs_of_one_type_start_in_the_order_they_were_enqueued(queue: TestQueue) {
        let mut enqueued = queue.put(&[job("a"), job("a"), job("a")]).await;
        enqueued.push(queue.enqueue("a").await);
        enqueued.push(queue.enqueue("a").await);
        let mut started = ids(&queue.claim(&["a"], 2).await);
        started.extend(ids(&queue.claim(&["a"], 10).await));
        assert_eq!(started, enqueued);
    }

    async fn several_types_are_served_oldest_job_first(queue: TestQueue) {
        let mut enqueued = Vec::new();
        for job_type in ["a", "b", "b", "c", "a", "c", "b", "a"] {
            enqueued.push(queue.enqueue(job_type).await);
        }
        let mut started = ids(&queue.claim(&["c", "b", "a"], 3).await);
        started.extend(ids(&queue.claim(&["a", "b", "c"], 10).await));
        assert_eq!(started, enqueued);
    }

    async fn a_claim_for_very_many_types_takes_the_jobs_of_all_and_each_type_in_order(queue: TestQueue) {
        let names: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
        let types: Vec<&str> = names.iter().map(String::as_str).collect();
        // Few types have many jobs, many have few.
        let jobs: Vec<NewJob> = (0..400).map(|n| job(types[n * n % 100])).collect();
        let mut enqueued = queue.put(&jobs).await;
        let mut taken = Vec::new();
        while taken.len() < enqueued.len() {
            let some = queue.claim(&types, 7).await;
            assert!((1..=7).contains(&some.len()), "{} jobs", some.len());
            taken.extend(some);
        }
        assert_eq!(queue.claim(&types, 7).await.len(), 0);
        for name in types {
            let of_type: Vec<_> = taken.iter().filter(|leased| leased.job.job_type.as_str() == name).collect();
            assert!(of_type.is_sorted_by_key(|leased| leased.job.id), "{name}");
        }
        let mut taken = ids(&taken);
        taken.sort_unstable();
        enqueued.sort_unstable();
        assert_eq!(taken, enqueued);
    }

    async fn a_claim_finds_what_another_client_has_brought_back_in_front_of_what_it_took(queue: TestQueue) {
        let enqueued = queue.put(&[job("a"), job("a"), job("a"), job("a")]).await;
        let other = queue.other_client();
        let first = other.take("a").await;
        queue.claim(&["a"], 1).await;
        queue.claim(&["a"], 1).await;
        other.give_back(&[first]).await;
        assert_eq!(queue.claim(&["a"], 10).await.len(), 2);
        queue.assert_none_ready("a").await;
        queue.assert_state(enqueued[0], State::Running).await;
    }

    async fn a_claim_takes_only_types_that_it_asks_for(queue: TestQueue) {
        let other = queue.enqueue("other").await;
        let mine = queue.enqueue("mine").await;
        assert_eq!(ids(&queue.claim(&["mine"], 10).await), [mine]);
        assert_eq!(queue.take("other").await.job.id, other);
    }

    async fn a_claim_for_no_type_takes_nothing(queue: TestQueue) {
        queue.enqueue("a").await;
        assert_eq!(queue.claim(&[], 10).await.len(), 0);
    }

    async fn a_claim_for_a_type_that_never_was_takes_nothing(queue: TestQueue) {
        queue.assert_none_ready("never").await;
    }

    async fn a_type_named_twice_is_served_like_one_named_once(queue: TestQueue) {
        let mut enqueued = Vec::new();
        for job_type in ["a", "b", "a", "b"] {
            enqueued.push(queue.enqueue(job_type).await);
        }
        assert_eq!(ids(&queue.claim(&["a", "b", "a"], 10).await), enqueued);
    }

    async fn a_claim_takes_no_more_than_its_limit(queue: TestQueue) {
        queue.put(&[job("a"), job("b"), job("a"), job("b")]).await;
        assert_eq!(queue.claim(&["a"], 1).await.len(), 1);
        assert_eq!(queue.claim(&["a", "b"], 2).await.len(), 2);
        assert_eq!(queue.claim(&["a", "b"], 2).await.len(), 1);
    }

    async fn a_claim_returns_what_is_there_without_waiting_for_more(queue: TestQueue) {
        let queue = queue.in_real_time();
        queue.enqueue("a").await;
        let start = Instant::now();
        assert_eq!(queue.claim_until(&["a"], 10, LONG, &CancellationToken::new()).await.len(), 1);
        assert_eq!(queue.ticks_since(start), 0);
    }

    async fn a_running_job_is_hidden_from_others(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        queue.take("a").await;
        queue.assert_none_ready("a").await;
        queue.other_worker().assert_none_ready("a").await;
        queue.assert_state(id, State::Running).await;
    }

    async fn a_claim_counts_the_attempt(queue: TestQueue) {
        queue.enqueue("a").await;
        for attempt in 1..=3 {
            let taken = queue.take("a").await;
            assert_eq!(taken.job.attempt, attempt);
            queue.retry(&taken, 0).await;
        }
    }

    async fn a_claim_says_when_the_attempt_started(queue: TestQueue) {
        let id = queue.enqueue("a").await;
        let Some(operator) = queue.operator().await else { return };
        let waiting = operator.get(id).await.unwrap();
        assert_eq!((waiting.started_at, waiting.job.attempt), (None, 0));
        queue.pass(3).await;
        queue.take("a").await;
        let running = operator.get(id).await.unwrap();
        let waited = running.started_at.unwrap().duration_since(running.job.enqueued_at).unwrap();
        assert!((queue.ticks(3)..queue.ticks(4)).contains(&waited), "{waited:?}");
        assert_eq!(running.job.attempt, 1);
    }

    async fn every_lease_has_a_token_of_its_own(queue: TestQueue) {
        queue.put(&[job("a"), job("a"), job("a")]).await;
        let mut tokens = HashSet::new();
        for _ in 0..5 {
            let taken = queue.claim(&["a"], 10).await;
            for leased in &taken {
                assert!(tokens.insert((leased.job.id, leased.token)), "a token came twice");
            }
            queue.give_back(&taken).await;
        }
    }

    async fn a_claim_that_waits_ends_at_once_when_a_job_is_enqueued(queue: TestQueue) {
        let queue = queue.in_real_time();
        let claiming = queue.start_claim("a", LONG).await;
        let start = Instant::now();
        let id = queue.enqueue("a").await;
        assert_eq!(ids(&claiming.end().await), [id]);
        assert_eq!(queue.ticks_since(start), 0);
    }

    async fn a_claim_that_waits_ends_at_once_when_it_is_stopped(queue: TestQueue) {
        let queue = queue.in_real_time();
        let claiming = queue.start_claim("a", LONG).await;
        let start = Instant::now();
        claiming.stop.cancel();
        assert_eq!(claiming.end().await.len(), 0);
        assert_eq!(queue.ticks_since(start), 0);
    }

    async fn a_claim_that_was_stopped_before_does_not_wait(queue: TestQueue) {
        let queue = queue.in_real_time();
        let stop = CancellationToken::new();
        stop.cancel();
        let start = Instant::now();
        assert_eq!(queue.claim_until(&["a"], 1, LONG, &stop).await.len(), 0);
        assert_eq!(queue.ticks_since(start), 0);
    }

    async fn a_claim_waits_as_long_as_it_was_told_and_no_longer(queue: TestQueue) {
        let queue = queue.in_real_time();
        let start = Instant::now();
        assert_eq!(queue.claim_until(&["a"], 1, 5, &CancellationToken::new()).await.len(), 0);
        assert_eq!(queue.ticks_since(start), 5);
    }

    async fn a_claim_that_waits_is_not_ended_by_a_job_of_another_type(queue: TestQueue) {
        let queue = queue.in_real_time();
        let start = Instant::now();
        if !queue.backend.guarantees().filters_types {
            // It is ended, and the worker waits again; see `claim_until` for what becomes of the job.
            let other = queue.enqueue("other").await;
            assert_eq!(queue.claim_until(&["a"], 10, 5, &CancellationToken::new()).await.len(), 0);
            queue.pass(LONG).await;
            assert_eq!(ids(&queue.claim(&["other"], 10).await), [other]);
            return;
        }
        let claiming = queue.start_claim("a", 5).await;
        let mut others = vec![queue.enqueue("other").await];
        queue.pass(3).await;
        others.push(queue.enqueue("other").await);
        assert_eq!(claiming.end().await.len(), 0);
        assert!(queue.ticks_since(start) >= 5);
        assert_eq!(ids(&queue.claim(&["other"], 10).await), others);
    }

    async fn a_claim_that_waits_ends_when_a_delayed_job_becomes_due(queue: TestQueue) {
        let queue = queue.in_real_time();
        let start = Instant::now();
        queue.put(&[NewJob { delay: queue.ticks(6), ..job("a") }]).await;
        let claiming = queue.start_claim("a", LONG).await;
        assert_eq!(claiming.end().await.len(), 1);
        assert_eq!(queue.ticks_since(start), 6);
    }

    async fn a_claim_that_waits_learns_of_a_delayed_job_enqueued_meanwhile(queue: TestQueue) {
        let queue = queue.in_real_time();
        queue.put(&[NewJob { delay: queue.ticks(100), ..job("a") }]).await;
        let claiming = queue.start_claim("a", LONG).await;
        let start = Instant::now();
        let sooner = queue.put(&[NewJob { delay: queue.ticks(5), ..job("a") }]).await;
        assert_eq!(ids(&claiming.end().await), sooner);
        assert_eq!(queue.ticks_since(start), 5);
    }

    async fn a_claim_that_waits_ends_when_a_retry_becomes_due(queue: TestQueue) {
        let queue = queue.in_real_time();
        queue.enqueue("a").await;
        let taken = queue.take("a").await;
        let start = Instant::now();
        queue.retry(&taken, 6).await;
        assert_eq!(queue.start_claim("a", LONG).await.end().await.len(), 1);
        assert_eq!(queue.ticks_since(start), 6);
    }

    async fn a_claim_that_waits_ends_at_once_when_a_job_is_given_back(queue: TestQueue) {
        let queue = queue.in_real_time();
        queue.enqueue("a").await;
        let taken = queue.take("a").await;
        let claiming = queue.other_worker().start_claim("a", LONG).await;
        let start = Instant::now();
        queue.give_back(&[taken]).await;
        assert_eq!(claiming.end().await.len(), 1);
        assert_eq!(queue.ticks_since(start), 0);
    }

    async fn a_claim_that_waits_ends_at_once_when_a_job_is_rescued(queue: TestQueue) {
        let queue = queue.in_real_time();
        queue.enqueue("a").await;
        queue.take("a").await;
        let claiming = queue.other_worker().start_claim("a", LONG).await;
        queue.pass(LEASE + 1).await;
        let start = Instant::now();
        queue.rescue(3).await;
        assert_eq!(claiming.end().await.len(), 1);
        assert_eq!(queue.ticks_since(start), 0);
    }

    async fn a_claim_that_waits_ends_at_once_when_the_job_before_ends(queue: TestQueue) {
        let queue = queue.in_real_time();
        queue.enqueue_chain(["a", "b"]).await;
        let taken = queue.take("a").await;
        let claiming = queue.other_worker().start_claim("b", LONG).await;
        let start = Instant::now();
        queue.finish(&taken).await;
        assert_eq!(claiming.end().await.len(), 1);
        assert_eq!(queue.ticks_since(start), 0);
    }

    /// The job before was to be cancelled, and its worker died instead of answering.
    async fn a_claim_that_waits_ends_at_once_when_a_lost_job_is_cancelled(queue: TestQueue) {
        let queue = queue.in_real_time();
        let Some(operator) = queue.operator().await else { return };
        let [a, b] = queue.enqueue_chain(["a", "b"]).await;
        queue.take("a").await;
        operator.cancel(a).await.unwrap();
        let claiming = queue.other_worker().start_claim("b", LONG).await;
        queue.pass(LEASE + 1).await;
        let start = Instant::now();
        queue.rescue(3).await;
        assert_eq!(ids(&claiming.end().await), [b]);
        assert_eq!(queue.ticks_since(start), 0);
    }

    async fn a_claim_that_waits_ends_at_once_when_an_operator_requeues_a_job(queue: TestQueue) {
        let queue = queue.in_real_time();
        let Some(operator) = queue.operator().await else { return };
        let id = queue.enqueue("a").await;
        queue.fail(&queue.take("a").await).await;
        let claiming = queue.start_claim("a", LONG).await;
        let start = Instant::now();
        operator.requeue(id).await.unwrap();
        assert_eq!(ids(&claiming.end().await), [id]);
        assert_eq!(queue.ticks_since(start), 0);
    }

    async fn of_two_claims_that_wait_one_gets_the_job_and_the_other_goes_on_waiting(queue: TestQueue) {
        let queue = queue.in_real_time();
        let claims = [queue.start_claim("a", LONG).await, queue.other_worker().start_claim("a", LONG).await];
        let mut expected = [queue.enqueue("a").await, JobId::generate()];
        queue.pass(1).await;
        expected[1] = queue.enqueue("a").await;
        let mut taken: Vec<Leased> = Vec::new();
        for claiming in claims {
            taken.extend(claiming.end().await);
        }
        let mut taken = ids(&taken);
        taken.sort();
        assert_eq!(taken, expected);
    }

    async fn no_two_workers_ever_get_the_same_job(queue: TestQueue) {
        const JOBS: usize = 1_000;
        let jobs: Vec<NewJob> = (0..JOBS).map(|_| job("a")).collect();
        let enqueued = queue.put(&jobs).await;
        let taken = queue
            .in_parallel(8, |queue| async move {
                let mut taken = Vec::new();
                loop {
                    let leased = queue.claim(&["a"], 3).await;
                    if leased.is_empty() {
                        return taken;
                    }
                    taken.extend(ids(&leased));
                    for leased in &leased {
                        queue.finish(leased).await;
                    }
                }
            })
            .await;
        assert!(taken.iter().all(|one| one.is_sorted()), "a worker got a later job first");
        let mut taken: Vec<JobId> = taken.into_iter().flatten().collect();
        taken.sort();
        assert_eq!(taken, enqueued);
        queue.assert_counts(&[(State::Finished, JOBS as u64)]).await;
    }
}
