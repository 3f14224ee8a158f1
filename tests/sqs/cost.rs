//! Calls, which are what is paid for.

use std::time::Duration;

use dejq::backend::{Backend, Outcome};
use dejq::job::OnFailure;
use tokio::time::Instant;

use crate::stage::{Stage, chain, job};

#[tokio::test(start_paused = true)]
async fn an_idle_client_makes_one_long_poll_in_twenty_seconds_and_nothing_else() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    client.claim(&["t"], 4, Duration::from_secs(20)).await;
    let before = stage.fake.all_calls();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2000) {
        // Two lanes of one worker share the poll.
        tokio::join!(
            client.claim(&["t"], 4, Duration::from_secs(20)),
            client.claim(&["other"], 4, Duration::from_secs(20))
        );
        client.beat(&[]).await;
    }
    let mut after = stage.fake.all_calls();
    let polls = after["ReceiveMessage"] - before["ReceiveMessage"];
    assert!((100..=101).contains(&polls), "{polls} polls in 2000 s");
    after.insert("ReceiveMessage".into(), before["ReceiveMessage"]);
    assert_eq!(after, before);
}

#[tokio::test(start_paused = true)]
async fn single_jobs_cost_a_third_of_a_call_each() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    let jobs: Vec<_> = (0..1000).map(|number| job(&number.to_string())).collect();
    client.enqueue(&jobs).await;
    let mut ended = 0;
    while ended < jobs.len() {
        let taken = client.take(10).await;
        let ends: Vec<_> = taken.iter().map(|leased| (leased, Outcome::Finished)).collect();
        client.settle_all(&ends).await.unwrap();
        ended += taken.len();
    }
    let bill = client.backend.stats().await.unwrap().bill.unwrap();
    assert_eq!((bill.enqueued, bill.ended), (1000, 1000));
    let per_job = bill.per_job().unwrap();
    assert!((0.30..=0.35).contains(&per_job), "{per_job} calls per job: {bill:?}");
}

#[tokio::test(start_paused = true)]
async fn jobs_of_chains_of_ten_cost_less_than_four_tenths_of_a_call_each() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    let jobs: Vec<_> = (0..100).flat_map(|_| chain(10, OnFailure::Continue)).collect();
    client.enqueue(&jobs).await;
    let mut running = Vec::new();
    let mut ended = 0;
    while ended < jobs.len() {
        if running.len() < 20 {
            running.extend(client.take(20 - running.len()).await);
        }
        let ends: Vec<_> = running.iter().map(|leased| (leased, Outcome::Finished)).collect();
        let reply = client.settle_all(&ends).await.unwrap();
        ended += running.len();
        running = reply.next;
    }
    let per_job = client.backend.stats().await.unwrap().bill.unwrap().per_job().unwrap();
    assert!(per_job <= 0.4, "{per_job} calls per job");
}

#[tokio::test(start_paused = true)]
async fn a_claim_of_broken_seconds_polls_once_and_the_next_one_has_use_of_it() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    for claims in 1..=3_u64 {
        assert_eq!(client.claim(&["t"], 10, Duration::from_millis(19_990)).await.len(), 0);
        assert!(stage.fake.calls("ReceiveMessage") <= claims + 1);
    }
}
