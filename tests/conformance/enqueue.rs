//! What is stored by an enqueue, and what comes out again.

use std::num::NonZeroU32;
use std::sync::Arc;

use dejq::backend::check_sizes;
use dejq::error::ErrorKind;
use dejq::job::{Body, Headers, NewJob, OnFailure, State};

use crate::support::{a_type, chain, count, ids, job, linked, unique};

fn with_body(json: &[u8]) -> NewJob {
    NewJob { body: Body::from_json(json).unwrap(), ..job("a") }
}

/// JSON text of exactly so many bytes.
fn text_of(bytes: usize) -> Vec<u8> {
    format!("\"{}\"", "x".repeat(bytes - 2)).into_bytes()
}

for_every_backend! {
    async fn ids_come_back_in_the_order_given(queue: TestQueue) {
        let jobs = [job("b"), job("a"), job("b")];
        assert_eq!(queue.put(&jobs).await, jobs.each_ref().map(|job| job.id));
    }

    async fn an_enqueue_of_nothing_stores_nothing(queue: TestQueue) {
        assert_eq!(queue.put(&[]).await, []);
        queue.assert_counts(&[]).await;
    }

    async fn a_repeated_enqueue_stores_nothing_twice(queue: TestQueue) {
        let jobs = [job("a"), job("a")];
        let first = queue.put(&jobs).await;
        assert_eq!(queue.put(&jobs).await, first);
        assert_eq!(ids(&queue.claim(&["a"], 10).await), first);
    }

    async fn a_repeated_enqueue_of_a_chain_stores_nothing_twice(queue: TestQueue) {
        let jobs = chain(["a", "b"], OnFailure::Continue);
        let first = queue.put(&jobs).await;
        assert_eq!(queue.put(&jobs).await, first);
        queue.assert_counts(&[(State::Ready, 1), (State::Blocked, 1)]).await;
        queue.finish(&queue.take("a").await).await;
        assert_eq!(ids(&queue.claim(&["a", "b"], 10).await), first[1..]);
    }

    async fn a_repeated_enqueue_leaves_a_running_job_alone(queue: TestQueue) {
        let jobs = [job("a")];
        queue.put(&jobs).await;
        let running = queue.take("a").await;
        queue.put(&jobs).await;
        queue.assert_none_ready("a").await;
        queue.assert_held(&running).await;
    }

    async fn a_repeated_enqueue_does_not_run_a_finished_job_again(queue: TestQueue) {
        let jobs = [job("a")];
        queue.put(&jobs).await;
        queue.finish(&queue.take("a").await).await;
        assert_eq!(queue.put(&jobs).await, [jobs[0].id]);
        queue.assert_none_ready("a").await;
    }

    async fn what_is_new_in_a_partly_repeated_enqueue_is_stored(queue: TestQueue) {
        let jobs = [job("a"), job("a"), job("a")];
        queue.put(&jobs[1..2]).await;
        let all = queue.put(&jobs).await;
        assert_eq!(all, jobs.each_ref().map(|job| job.id));
        queue.assert_counts(&[(State::Ready, 3)]).await;
    }

    async fn chains_and_single_jobs_of_one_call_are_kept_apart(queue: TestQueue) {
        let mut jobs = chain(["a", "b"], OnFailure::Continue);
        jobs.push(job("c"));
        jobs.extend(chain(["d", "e"], OnFailure::Continue));
        let ids_of = queue.put(&jobs).await;
        queue.assert_counts(&[(State::Ready, 3), (State::Blocked, 2)]).await;
        queue.finish(&queue.take("d").await).await;
        assert_eq!(ids(&queue.claim(&["b", "e"], 10).await), [ids_of[4]]);
    }

    async fn a_repeated_job_in_front_of_a_chain_does_not_join_it(queue: TestQueue) {
        let repeated = job("a");
        queue.put(std::slice::from_ref(&repeated)).await;
        let mut jobs = chain(["b", "c"], OnFailure::Continue);
        jobs.insert(0, repeated);
        queue.put(&jobs).await;
        queue.finish(&queue.take("a").await).await;
        queue.assert_none_ready("c").await;
        queue.finish(&queue.take("b").await).await;
        queue.take("c").await;
    }

    async fn a_repeated_chain_that_lost_a_job_to_deletion_still_runs_in_order(queue: TestQueue) {
        let Some(operator) = queue.operator().await else { return };
        let repeated = chain(["a", "b", "c"], OnFailure::Continue);
        queue.put(&repeated).await;
        operator.finish(repeated[1].id).await.unwrap();
        assert_eq!(operator.delete_finished(queue.ticks(0), 10).await.unwrap(), 1);
        let with_another = [chain(["other"], OnFailure::Continue), repeated].concat();
        assert_eq!(queue.put(&with_another).await.len(), 4);
        queue.finish(&queue.take("other").await).await;
        let mut started = Vec::new();
        while let [running] = &queue.claim(&["a", "b", "c"], 10).await[..] {
            started.push(running.job.chain.position);
            queue.finish(running).await;
        }
        assert!(started.is_sorted() && started.starts_with(&[1]) && started.ends_with(&[3]), "{started:?}");
        queue.assert_none_ready("b").await;
        assert_eq!(queue.backend.stats().await.unwrap().total.blocked.unwrap_or_default(), 0);
    }

    /// Somebody who looks while others enqueue sees all jobs of a call or none.
    async fn the_jobs_of_a_call_appear_together(queue: TestQueue) {
        const CALLS: usize = 40;
        // Elsewhere that holds for a chain of as many jobs as the store takes at once.
        let is_whole = queue.backend.guarantees().stores_whole_calls;
        let jobs_per_call = if is_whole { 50 } else { 10 };
        let seen = queue
            .in_parallel(4, move |queue| async move {
                let mut seen = Vec::new();
                for _ in 0..CALLS {
                    let jobs: Vec<NewJob> = (0..jobs_per_call).map(|_| job("a")).collect();
                    let jobs = if is_whole { jobs } else { linked(jobs, OnFailure::Continue) };
                    queue.put(&jobs).await;
                    seen.extend(count(&queue.backend.stats().await.unwrap().total, State::Ready));
                }
                seen
            })
            .await;
        let partial: Vec<u64> =
            seen.into_iter().flatten().filter(|ready| ready % jobs_per_call as u64 != 0).collect();
        assert!(partial.is_empty(), "numbers of ready jobs with a part of a call: {partial:?}");
        queue.assert_counts(&[(State::Ready, (4 * CALLS * jobs_per_call) as u64)]).await;
    }

    async fn a_body_comes_back_byte_for_byte(queue: TestQueue) {
        let bodies = [
            r"null",
            r#""""#,
            r"{}",
            r"[]",
            r"0",
            r"-0.0",
            r"1e400",
            r"123456789012345678901234567890",
            r#"{"b": 1,  "a":[true , false],"b":2}"#,
            "\"zażółć 東京 🦀 \u{202e}\u{2028}\"",
            r#""a\u0000b\ud83e\udd80\/\n""#,
            "\n{\"white\"\t: \"space\" }\r\n",
        ];
        let jobs = bodies.map(|body| with_body(body.as_bytes()));
        queue.put(&jobs).await;
        let mut taken = Vec::new();
        while taken.len() < bodies.len() {
            taken.extend(queue.claim(&["a"], bodies.len() - taken.len()).await);
        }
        let back: Vec<String> = taken
            .iter()
            .map(|leased| String::from_utf8(leased.job.body.as_bytes().to_vec()).unwrap())
            .collect();
        assert_eq!(back, bodies);
    }

    async fn the_largest_body_comes_back_whole(queue: TestQueue) {
        let guarantees = queue.backend.guarantees();
        let text = text_of(guarantees.max_body);
        let jobs = [with_body(&text)];
        check_sizes(&guarantees, &jobs).unwrap();
        queue.put(&jobs).await;
        assert!(queue.take("a").await.job.body.as_bytes() == text, "the body has changed");
    }

    async fn a_body_over_the_limit_is_refused_with_both_sizes(queue: TestQueue) {
        let guarantees = queue.backend.guarantees();
        let limit = guarantees.max_body;
        let error = check_sizes(&guarantees, &[job("a"), with_body(&text_of(limit + 1))]).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::BodyTooLarge { size: limit + 1, limit });
        assert!(error.text().contains(&limit.to_string()), "{error}");
        assert!(error.text().contains(&(limit + 1).to_string()), "{error}");
        assert!(!error.text().contains("xxx"), "the text shows the body");
    }

    async fn headers_and_max_attempts_travel_with_the_job(queue: TestQueue) {
        let headers = Headers::from([("tenant".into(), "żółw".into()), (String::new(), String::new())]);
        let max_attempts = NonZeroU32::new(7);
        queue.put(&[NewJob { headers: Some(Arc::new(headers.clone())), max_attempts, ..job("a") }]).await;
        let taken = queue.take("a").await.job;
        assert_eq!(taken.headers.as_deref(), Some(&headers));
        assert_eq!(taken.max_attempts, max_attempts);
    }

    async fn a_job_without_options_comes_back_without(queue: TestQueue) {
        queue.enqueue("a").await;
        let taken = queue.take("a").await.job;
        assert_eq!(taken.headers.as_deref(), None);
        assert_eq!(taken.max_attempts, None);
    }

    async fn headers_that_the_caller_changes_later_stay_as_they_were(queue: TestQueue) {
        let mut headers = Arc::new(Headers::from([("k".into(), "before".into())]));
        let mut new = NewJob { headers: Some(Arc::clone(&headers)), ..job("a") };
        queue.put(std::slice::from_ref(&new)).await;
        Arc::make_mut(&mut headers).insert("k".into(), "after".into());
        Arc::make_mut(new.headers.as_mut().unwrap()).clear();
        let taken = queue.take("a").await.job;
        assert_eq!(taken.headers.as_deref(), Some(&Headers::from([("k".into(), "before".into())])));
    }

    async fn headers_that_a_worker_changes_stay_as_they_were_for_the_next(queue: TestQueue) {
        let headers = Headers::from([("k".into(), "v".into())]);
        queue.put(&[NewJob { headers: Some(Arc::new(headers.clone())), ..job("a") }]).await;
        let mut taken = queue.take("a").await;
        Arc::make_mut(taken.job.headers.as_mut().unwrap()).clear();
        queue.retry(&taken, 0).await;
        assert_eq!(queue.take("a").await.job.headers.as_deref(), Some(&headers));
    }

    async fn a_type_of_any_allowed_character_and_length_comes_back(queue: TestQueue) {
        let long = "x".repeat(128);
        for name in ["AZaz09_.:/-", ":", &long] {
            queue.enqueue(name).await;
            assert_eq!(queue.take(name).await.job.job_type, a_type(name));
        }
    }

    async fn types_that_differ_in_case_are_different(queue: TestQueue) {
        queue.enqueue("mail").await;
        queue.assert_none_ready("Mail").await;
    }

    async fn a_job_knows_its_place_in_its_chain(queue: TestQueue) {
        let jobs = chain(["a", "a"], OnFailure::Continue);
        queue.put(&jobs).await;
        for expected in &jobs {
            let taken = queue.take("a").await;
            assert_eq!(taken.job.chain, expected.chain);
            queue.finish(&taken).await;
        }
    }

    async fn a_job_knows_when_it_was_enqueued(queue: TestQueue) {
        let first = if queue.backend.guarantees().keeps_keys { unique("a", "k") } else { job("a") };
        queue.put(&[first]).await;
        queue.pass(3).await;
        queue.enqueue("a").await;
        let [first, second] = <[_; 2]>::try_from(queue.claim(&["a"], 2).await).unwrap();
        let apart = second.job.enqueued_at.duration_since(first.job.enqueued_at).unwrap();
        assert!((queue.ticks(3)..queue.ticks(4)).contains(&apart), "{apart:?} apart");
    }
}
