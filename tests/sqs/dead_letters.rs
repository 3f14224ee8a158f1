//! Which receive is the last, and what becomes of a job then, and of those behind it.

use dejq::backend::{Outcome, Revocation};
use dejq::job::{NewJob, OnFailure};

use crate::stage::{DEAD, Stage, bodies, body, chain, failure, job, lease, pass, retry};

#[tokio::test(start_paused = true)]
async fn a_job_that_fails_to_its_last_receive_dies_alone_and_its_dependants_run_here() {
    let stage = Stage::with_dead_letters(3).await;
    let client = stage.client();
    client.enqueue(&chain(3, OnFailure::Continue)).await;
    for attempt in 1..=3 {
        let a = client.take_one(10).await;
        assert_eq!((body(&a).as_str(), a.job.attempt, a.job.last_attempt.unwrap().get()), ("1", attempt, 3));
        if attempt < 3 {
            client.settle(&a, retry(5)).await;
            assert_eq!(client.take(10).await.len(), 0, "it came back before its time");
            pass(5).await;
            continue;
        }
        // Those behind it came along with the first attempt and this one, but not with the one between.
        let b = client.next(&a, Outcome::Failed(failure())).await;
        assert_eq!((body(&b).as_str(), stage.receives()), ("2", vec![3, 2, 2]));
        let c = client.next(&b, Outcome::Finished).await;
        client.settle(&c, Outcome::Finished).await;
    }
    client.take(10).await;
    assert_eq!(stage.counts(), (0, 1));
    assert_eq!(stage.fake.bodies(DEAD), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn at_its_last_receive_a_job_hands_over_to_the_next_one_in_hand() {
    let stage = Stage::with_dead_letters(1).await;
    let client = stage.client();
    client.enqueue(&chain(3, OnFailure::Continue)).await;
    let a = client.take_one(10).await;
    let b = client.next(&a, Outcome::Failed(failure())).await;
    // It is never handed out again, although it is not hidden any more.
    assert_eq!(stage.client().take(10).await.len(), 0);
    let c = client.next(&b, Outcome::Finished).await;
    client.settle(&c, Outcome::Failed(failure())).await;
    assert_eq!(client.take(10).await.len(), 0);
    assert_eq!(stage.counts(), (0, 2));
    assert_eq!(stage.fake.bodies(DEAD), ["1", "3"]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_gives_up_early_is_put_into_the_dead_letter_queue_whole() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    let ids = client.enqueue(&chain(2, OnFailure::Continue)).await;
    let b = {
        let a = client.take_one(10).await;
        client.next(&a, Outcome::Failed(failure())).await
    };
    assert_eq!(b.job.id, ids[1]);
    let queues = stage.fake.queues();
    let dead = &queues[DEAD].messages[0];
    assert_eq!(
        (dead.body.as_str(), dead.attributes["job_id"]["StringValue"].as_str()),
        ("1", Some(&*ids[0].to_string()))
    );
}

#[tokio::test(start_paused = true)]
async fn an_early_end_that_cannot_be_buried_is_told_and_can_be_repeated() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    client.enqueue(&[job("1")]).await;
    let a = client.take_one(10).await;
    stage.fake.fail("SendMessageBatch", crate::fake::Fault::Refuse(503, "ServiceUnavailable"));
    assert!(client.settle_all(&[(&a, Outcome::Failed(failure()))]).await.unwrap_err().is_transient());
    assert_eq!(stage.counts(), (1, 0));
    client.settle(&a, Outcome::Failed(failure())).await;
    assert_eq!(stage.counts(), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn without_a_redrive_policy_a_job_that_failed_for_good_is_deleted_and_the_next_one_runs() {
    let stage = Stage::without_dead_letters().await;
    let client = stage.client();
    client.enqueue(&chain(2, OnFailure::Continue)).await;
    let a = client.take_one(10).await;
    assert_eq!(a.job.last_attempt, None);
    client.settle(&a, retry(3)).await;
    pass(3).await;
    let a = client.take_one(10).await;
    assert_eq!(a.job.attempt, 2);
    client.settle(&a, Outcome::Failed(failure())).await;
    pass(2).await;
    assert_eq!(bodies(&client.take(10).await), ["2"]);
    assert_eq!(stage.counts(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failure_cancels_the_rest_of_the_chain_when_it_asks_for_it_also_what_comes_later() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    client.enqueue(&chain(25, OnFailure::Cancel)).await;
    let a = client.take_one(10).await;
    let reply = client.settle(&a, Outcome::Failed(failure())).await;
    assert_eq!(reply.next.len(), 0);
    while stage.counts().0 > 0 {
        assert_eq!(client.take(10).await.len(), 0);
    }
    assert_eq!(stage.fake.bodies(DEAD), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn workers_that_die_use_up_receives_of_those_that_wait_half_as_fast() {
    let stage = Stage::with_dead_letters(5).await;
    stage.client().enqueue(&chain(3, OnFailure::Continue)).await;
    for death in 1..=5_u32 {
        let client = stage.client();
        let a = client.take_one(10).await;
        assert_eq!(body(&a), "1");
        // One beat: from then on those behind it are hidden for longer.
        assert_eq!(client.beat(&[&a]).await, []);
        let waited = death.div_ceil(2);
        assert_eq!(stage.receives(), [death, waited, waited]);
        pass(30).await;
    }
    // The job that killed them is dead, and its dependants run.
    pass(2).await;
    assert_eq!(body(&stage.client().take_one(10).await), "2");
    assert_eq!(stage.fake.bodies(DEAD), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_kills_each_worker_before_its_first_beat_dies_alone() {
    let stage = Stage::with_dead_letters(3).await;
    stage.client().enqueue(&chain(3, OnFailure::Continue)).await;
    // Handed out for the second time it is suspected, and comes alone the third time.
    for receives in [[1, 1, 1], [2, 2, 2], [3, 2, 2]] {
        assert_eq!(body(&stage.client().take_one(10).await), "1");
        assert_eq!(stage.receives(), receives);
        pass(31).await;
    }
    let client = stage.client();
    let b = client.take_one(10).await;
    assert_eq!((body(&b).as_str(), stage.fake.bodies(DEAD)), ("2", vec!["1".to_owned()]));
    assert_eq!(body(&client.next(&b, Outcome::Finished).await), "3");
}

#[tokio::test(start_paused = true)]
async fn messages_received_often_without_a_run_are_from_then_on_received_one_by_one() {
    let stage = Stage::with_dead_letters(6).await;
    stage.client().enqueue(&chain(3, OnFailure::Continue)).await;
    for receives in [[1, 1, 1], [2, 2, 2], [3, 2, 2], [4, 3, 3], [5, 3, 3]] {
        stage.client().take_one(10).await;
        assert_eq!(stage.receives(), receives);
        pass(31).await;
    }
    let client = stage.client();
    let a = client.take_one(10).await;
    assert_eq!(stage.receives(), [6, 4, 4]);
    pass(33).await;
    assert_eq!(client.beat(&[&a]).await, [(lease(&a), Revocation::Lost)]);
    let b = client.take_one(10).await;
    assert_eq!((body(&b).as_str(), stage.receives()), ("2", vec![5, 4]));
}

#[tokio::test(start_paused = true)]
async fn a_delay_costs_a_receive_and_is_no_attempt() {
    let stage = Stage::with_dead_letters(2).await;
    let client = stage.client();
    client.enqueue(&[NewJob { delay: std::time::Duration::from_secs(60), ..job("1") }]).await;
    assert_eq!(client.take(10).await.len(), 0);
    pass(59).await;
    assert_eq!(client.take(10).await.len(), 0);
    pass(1).await;
    let a = client.take_one(10).await;
    assert_eq!((a.job.attempt, a.job.last_attempt.unwrap().get()), (1, 1));
    client.settle(&a, Outcome::Failed(failure())).await;
    assert_eq!(client.take(10).await.len(), 0);
    assert_eq!(stage.counts(), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_never_deleted_and_holds_up_the_rest_no_longer_than_its_receives() {
    let stage = Stage::with_dead_letters(3).await;
    let client = stage.client();
    stage.client().enqueue(&chain(1, OnFailure::Continue)).await;
    let a = client.take_one(10).await;
    client.settle(&a, Outcome::Finished).await;
    let poison = crate::messages::raw("not json", "g", "1", &[("job_type", "t")]);
    let good = crate::messages::raw("2", "g", "2", &[("job_type", "t"), ("job_id", "x"), ("in_group", "2")]);
    crate::messages::send(&stage, vec![poison, good]).await;
    let started = tokio::time::Instant::now();
    let b = loop {
        if let [b] = &client.take(10).await[..] {
            break b.clone();
        }
        pass(1).await;
        assert!(started.elapsed().as_secs() < 60, "the rest is held up");
    };
    assert_eq!((body(&b).as_str(), lease(&b).id), ("2", b.job.id));
    assert_eq!(client.take(10).await.len(), 0);
    assert_eq!(stage.fake.bodies(DEAD), ["not json"]);
}
