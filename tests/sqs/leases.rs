//! Leases that end, and who may go on.

use std::time::Duration;

use dejq::backend::{Outcome, Revocation};
use dejq::job::OnFailure;
use tokio::time::Instant;

use crate::fake::Fault;
use crate::stage::{QUEUE, Stage, bodies, body, chain, job, lease, pass, retry};

#[tokio::test(start_paused = true)]
async fn who_lost_the_head_of_a_chain_does_not_go_on_with_the_rest() {
    let stage = Stage::with_dead_letters(9).await;
    let (zombie, other) = (stage.client(), stage.client());
    zombie.enqueue(&chain(3, OnFailure::Continue)).await;
    let a = zombie.take_one(10).await;
    pass(31).await;
    let again = other.take_one(1).await;
    assert_eq!(again.job.id, a.job.id);
    let reply = zombie.settle(&a, Outcome::Finished).await;
    assert_eq!((reply.lost, reply.next.len()), (vec![0], 0));
    assert_eq!(zombie.take(10).await.len(), 0, "it goes on with what is behind a job of another worker");
    other.settle(&again, Outcome::Finished).await;
    assert_eq!(bodies(&other.take(1).await), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn a_beat_tells_of_a_lost_lease_and_keeps_the_others() {
    let stage = Stage::with_dead_letters(9).await;
    let (client, other) = (stage.client(), stage.client());
    client.enqueue(&[job("1"), job("2")]).await;
    let taken = client.take(10).await;
    pass(20).await;
    client.beat(&[&taken[1]]).await;
    // Beats keep all that the worker has, also what they are not told of.
    pass(20).await;
    assert_eq!(client.beat(&[&taken[0], &taken[1]]).await, []);
    pass(31).await;
    other.take_one(1).await;
    assert_eq!(client.beat(&[&taken[0]]).await, [(lease(&taken[0]), Revocation::Lost)]);
}

#[tokio::test(start_paused = true)]
async fn a_beat_under_way_does_not_overwrite_the_time_of_a_retry() {
    let stage = Stage::with_dead_letters(9).await;
    let client = stage.client();
    client.enqueue(&[job("1")]).await;
    let a = client.take_one(10).await;
    let beaten = [&a];
    let (beat, settled) = tokio::join!(client.beat(&beaten), client.settle(&a, retry(2)));
    assert_eq!((beat.len(), settled.lost.len()), (0, 0));
    pass(2).await;
    assert_eq!(client.take(10).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_beat_that_comes_after_the_end_of_a_job_leaves_the_next_one_of_its_chain_alone() {
    let stage = Stage::with_dead_letters(9).await;
    let client = stage.client();
    client.enqueue(&chain(3, OnFailure::Continue)).await;
    let a = client.take_one(10).await;
    stage.fake.fail("ChangeMessageVisibilityBatch", Fault::HoldRequest(Duration::from_secs(2)));
    let beaten = [&a];
    let (told, b) = tokio::join!(client.beat(&beaten), async {
        pass(1).await;
        client.next(&a, Outcome::Finished).await
    });
    assert_eq!(told, []);
    let c = client.next(&b, Outcome::Finished).await;
    assert_eq!((body(&c), stage.receives()), ("3".to_owned(), vec![1]));
}

#[tokio::test(start_paused = true)]
async fn a_beat_that_comes_while_an_end_is_stored_leaves_what_is_behind_it_alone() {
    let stage = Stage::with_dead_letters(9).await;
    let client = stage.client();
    client.enqueue(&chain(3, OnFailure::Continue)).await;
    let a = client.take_one(10).await;
    stage.fake.fail("ChangeMessageVisibilityBatch", Fault::HoldRequest(Duration::from_secs(2)));
    stage.fake.fail("DeleteMessageBatch", Fault::HoldReply(Duration::from_secs(2)));
    let beaten = [&a];
    let (told, b) = tokio::join!(client.beat(&beaten), async {
        pass(1).await;
        client.next(&a, Outcome::Finished).await
    });
    assert_eq!((told.len(), body(&b), stage.receives()), (0, "2".to_owned(), vec![1, 1]));
}

/// Of a job that comes 5 s after a poll began, whose answer is held up for so long: when its lease is said to begin, in
/// seconds after the poll.
async fn lease_begins(held_up: u64) -> f64 {
    let stage = Stage::with_dead_letters(9).await;
    let client = stage.client();
    assert_eq!(client.take(10).await.len(), 0);
    stage.fake.fail("ReceiveMessage", Fault::HoldReply(Duration::from_secs(held_up)));
    let asked = Instant::now();
    let (taken, ()) = tokio::join!(client.claim(&["t"], 10, Duration::from_secs(60)), async {
        pass(5).await;
        stage.client().enqueue(&[job("1")]).await;
    });
    assert_eq!(asked.elapsed().as_secs(), 5 + held_up);
    (taken[0].since - asked).as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn a_lease_counts_from_when_it_was_granted_also_if_the_answer_was_held_up() {
    assert!((5.0..5.1).contains(&lease_begins(0).await));
    for seconds in [3, 10, 14] {
        let begins = lease_begins(seconds).await;
        assert!((3.0..=5.0).contains(&begins), "{seconds}: {begins}");
    }
    // Longer than any poll waits.
    let begins = lease_begins(18).await;
    assert!((3.0..=5.0).contains(&begins), "{begins}");
}

#[tokio::test(start_paused = true)]
async fn a_clock_of_the_service_that_is_set_costs_no_lease() {
    let stage = Stage::with_dead_letters(9).await;
    let client = stage.client();
    assert_eq!(client.take(10).await.len(), 0);
    for hours in [-5_i64, 5, 0] {
        stage.fake.set_clock(hours * 3600);
        for _ in 0..2 {
            let asked = Instant::now();
            let (taken, ()) = tokio::join!(client.claim(&["t"], 10, Duration::from_secs(60)), async {
                pass(15).await;
                stage.client().enqueue(&[job("1")]).await;
            });
            assert_eq!((taken[0].since - asked).as_secs(), 15, "{hours}");
            client.settle(&taken[0], Outcome::Finished).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_a_long_job_is_kept_and_runs_when_it_ends() {
    let stage = Stage::with_dead_letters(9).await;
    let client = stage.client();
    client.enqueue(&chain(3, OnFailure::Continue)).await;
    let a = client.take_one(10).await;
    for _ in 0..50 {
        pass(10).await;
        assert_eq!(client.beat(&[&a]).await, []);
    }
    let b = client.next(&a, Outcome::Finished).await;
    let c = client.next(&b, Outcome::Finished).await;
    assert_eq!(body(&c), "3");
    assert_eq!(stage.receives(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_job_near_twelve_hours_loses_its_lease_before_the_queue_takes_it_away() {
    let stage = Stage::with_dead_letters(9).await;
    let client = stage.client();
    client.enqueue(&chain(2, OnFailure::Continue)).await;
    let a = client.take_one(10).await;
    let start = Instant::now();
    let told = loop {
        pass(10).await;
        let told = client.beat(&[&a]).await;
        if !told.is_empty() {
            break told;
        }
    };
    assert_eq!(told, [(lease(&a), Revocation::Lost)]);
    let ran = start.elapsed();
    assert!((43_100..43_200).contains(&ran.as_secs()), "{ran:?}");
    assert_eq!(client.settle(&a, Outcome::Finished).await.lost, [0]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_cuts_the_poll_and_strands_nothing() {
    let stage = Stage::with_dead_letters(9).await;
    let client = stage.client();
    let waiting = async {
        let start = Instant::now();
        let taken = client.claim(&["t"], 10, Duration::from_secs(20)).await;
        (taken.len(), start.elapsed())
    };
    let stopping = async {
        pass(5).await;
        client.leave().await;
    };
    let ((taken, waited), ()) = tokio::join!(waiting, stopping);
    assert_eq!((taken, waited.as_secs()), (0, 5));
    stage.client().enqueue(&[job("1")]).await;
    assert_eq!(stage.client().take(1).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_gives_back_what_waits_and_others_start_it_at_once() {
    let stage = Stage::with_dead_letters(9).await;
    let (client, other) = (stage.client(), stage.client());
    client.enqueue(&chain(2, OnFailure::Continue)).await;
    let a = client.take_one(10).await;
    client.leave().await;
    assert_eq!(other.take(10).await.len(), 0, "the head still runs");
    client.settle(&a, Outcome::Finished).await;
    assert_eq!(bodies(&other.take(10).await), ["2"]);
    assert_eq!(stage.fake.queues()[QUEUE].messages.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_job_given_back_by_a_worker_that_has_no_handler_is_hidden_for_a_while() {
    let stage = Stage::with_dead_letters(9).await;
    let (client, other) = (stage.client(), stage.client());
    client.enqueue(&[job("1")]).await;
    let unknown = client.claim(&["other"], 10, Duration::ZERO).await;
    assert_eq!(unknown.len(), 1);
    client.give_back(&unknown[0]).await;
    assert_eq!(other.take(10).await.len(), 0);
    pass(10).await;
    assert_eq!(other.take(10).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_type_of_another_lane_waits_in_hand_for_it() {
    let stage = Stage::with_dead_letters(9).await;
    let client = stage.client();
    assert_eq!(client.claim(&["other"], 10, Duration::ZERO).await.len(), 0);
    client.enqueue(&[job("1")]).await;
    assert_eq!(client.take(10).await.len(), 1);
    client.enqueue(&[job("2")]).await;
    assert_eq!(client.claim(&["other"], 10, Duration::ZERO).await.len(), 0);
    let calls = stage.fake.calls("ReceiveMessage");
    assert_eq!(bodies(&client.take(10).await), ["2"]);
    assert_eq!(stage.fake.calls("ReceiveMessage"), calls, "it was in hand already");
}
