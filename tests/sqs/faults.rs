//! Answers that are lost, a service that is away, and entries that fail alone.

use std::time::Duration;

use dejq::backend::{Backend, Outcome};
use dejq::error::ErrorKind;
use dejq::job::OnFailure;
use tokio::time::Instant;

use crate::fake::Fault;
use crate::stage::{Client, QUEUE, Stage, bodies, chain, job};

#[tokio::test(start_paused = true)]
async fn an_enqueue_whose_answer_is_lost_stores_nothing_twice() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    stage.fake.fail("SendMessageBatch", Fault::LoseReply);
    stage.fake.fail("SendMessageBatch", Fault::LoseRequest);
    client.enqueue(&chain(25, OnFailure::Continue)).await;
    let expected: Vec<String> = (1..=25).map(|number| number.to_string()).collect();
    assert_eq!(stage.fake.bodies(QUEUE), expected);
}

#[tokio::test(start_paused = true)]
async fn an_enqueue_waits_out_a_service_that_is_away_for_a_moment() {
    let stage = Stage::with_dead_letters(5).await;
    for (status, code) in [
        (503, "ServiceUnavailable"),
        (400, "RequestThrottled"),
        (500, "InternalFailure"),
        (400, "ThrottlingException"),
    ] {
        stage.fake.fail("SendMessageBatch", Fault::Refuse(status, code));
    }
    stage.client().enqueue(&[job("1"), job("2")]).await;
    assert_eq!(stage.fake.bodies(QUEUE), ["1", "2"]);
}

async fn refused(client: &Client, length: usize) -> dejq::error::Error {
    client.backend.enqueue(&chain(length, OnFailure::Continue)).await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn an_enqueue_that_meets_a_service_that_stays_away_says_so_after_five_seconds() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    client.enqueue(&[job("0")]).await;
    for _ in 0..100 {
        stage.fake.fail("SendMessageBatch", Fault::Refuse(503, "ServiceUnavailable"));
    }
    let start = Instant::now();
    let error = refused(&client, 3).await;
    assert_eq!((error.kind(), start.elapsed().as_secs()), (&ErrorKind::Unavailable, 4));
    assert_eq!(stage.fake.bodies(QUEUE), ["0"]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_overtook_another_breaks_its_chain_and_nothing_is_sent_again() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    stage.fake.fail("SendMessageBatch", Fault::FailEntries(vec![1]));
    let error = refused(&client, 3).await;
    let ErrorKind::ChainBroken { sent, unsent } = error.kind() else { panic!("{error}") };
    assert_eq!((sent.len(), unsent.len()), (2, 1));
    assert!(error.text().contains("a later job of a chain went in"), "{error}");
    assert_eq!(stage.fake.bodies(QUEUE), ["1", "3"]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_slice_that_failed_is_sent_again() {
    let stage = Stage::with_dead_letters(5).await;
    stage.fake.fail("SendMessageBatch", Fault::FailEntries(vec![1, 2]));
    stage.client().enqueue(&chain(3, OnFailure::Continue)).await;
    assert_eq!(stage.fake.bodies(QUEUE), ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn a_chain_cut_between_its_slices_names_what_was_sent() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    let jobs = chain(25, OnFailure::Continue);
    stage.fake.fail("SendMessageBatch", Fault::FailEntries(vec![]));
    for _ in 0..100 {
        stage.fake.fail("SendMessageBatch", Fault::Refuse(503, "ServiceUnavailable"));
    }
    let error = client.backend.enqueue(&jobs).await.unwrap_err();
    let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
    let expected = ErrorKind::ChainBroken { sent: ids[..10].to_vec(), unsent: ids[10..].to_vec() };
    assert_eq!(*error.kind(), expected, "{error}");
    assert_eq!(stage.fake.bodies(QUEUE).len(), 10);
}

#[tokio::test(start_paused = true)]
async fn one_broken_call_does_not_fail_others_that_came_at_the_same_time() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    let too_large = job(&format!("\"{}\"", "x".repeat(1024 * 1024)));
    let (one, large, three) = ([job("1")], [too_large], [job("3")]);
    let (one, large, three) = tokio::join!(
        client.backend.enqueue(&one),
        client.backend.enqueue(&large),
        client.backend.enqueue(&three)
    );
    assert!(one.is_ok() && three.is_ok());
    assert!(matches!(large.unwrap_err().kind(), ErrorKind::BodyTooLarge { limit: 1_048_576, .. }));
}

#[tokio::test(start_paused = true)]
async fn a_receive_whose_answer_is_lost_is_asked_again_and_brings_the_same_jobs() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    client.enqueue(&[job("1"), job("2")]).await;
    stage.fake.fail("ReceiveMessage", Fault::LoseReply);
    assert_eq!(bodies(&client.take(10).await), ["1", "2"]);
    assert_eq!(stage.receives(), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_end_whose_answer_is_lost_is_stored_once_it_is_repeated() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    let jobs: Vec<_> = (0..15).map(|number| job(&number.to_string())).collect();
    client.enqueue(&jobs).await;
    let mut taken = client.take(10).await;
    taken.extend(client.take(10).await);
    let ends: Vec<_> = taken.iter().map(|leased| (leased, Outcome::Finished)).collect();
    stage.fake.fail("DeleteMessageBatch", Fault::LoseReply);
    assert!(client.settle_all(&ends).await.unwrap_err().is_transient());
    let reply = client.settle_all(&ends).await.unwrap();
    assert_eq!((reply.lost.len(), stage.counts().0), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_fails_on_the_side_of_the_queue_is_no_lost_lease() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    client.enqueue(&chain(2, OnFailure::Continue)).await;
    let a = client.take_one(10).await;
    stage.fake.fail("DeleteMessageBatch", Fault::FailEntries(vec![0]));
    assert!(client.settle_all(&[(&a, Outcome::Finished)]).await.unwrap_err().is_transient());
    stage.fake.fail("ChangeMessageVisibilityBatch", Fault::FailEntries(vec![0, 1]));
    assert_eq!(client.beat(&[&a]).await, []);
    client.next(&a, Outcome::Finished).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_tells_of_a_service_that_is_away() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    client.take(1).await;
    stage.fake.fail("ReceiveMessage", Fault::Refuse(503, "ServiceUnavailable"));
    let error = client.try_claim(&["t"], 1, Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Unavailable);
}
