//! What cannot work is refused before it does harm, with what to do.

use std::time::Duration;

use dejq::backend::{Backend, Level};
use dejq::error::{Error, ErrorKind};
use dejq::job::NewJob;

use crate::fake::{Fake, Fault, Queue};
use crate::stage::{QUEUE, Stage, URL, job};

fn assert_says(error: &Error, kind: &ErrorKind, parts: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for part in parts {
        assert!(error.text().contains(part), "{part:?} is not in {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_queue_is_told_with_the_way_to_create_it() {
    let fake = Fake::new();
    let backend = fake.connect(URL, &[]);
    let error = backend.enqueue(&[job("1")]).await.unwrap_err();
    assert_says(
        &error,
        &ErrorKind::SchemaMissing,
        &["no queue jobs.fifo in us-east-1", "dejq migrate", "create_queue()"],
    );
    assert!(!backend.migrate().await.unwrap().is_empty());
    assert_eq!(backend.migrate().await.unwrap(), [] as [String; 0]);
    backend.enqueue(&[job("1")]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_standard_queue_is_refused_by_its_attribute_too() {
    let fake = Fake::new();
    fake.queues().insert(QUEUE.into(), Queue::default());
    let error = fake.connect(URL, &[]).enqueue(&[job("1")]).await.unwrap_err();
    assert_says(&error, &ErrorKind::Config, &["standard queue", "dejq migrate"]);
}

#[tokio::test(start_paused = true)]
async fn who_may_not_delete_takes_no_job() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    client.enqueue(&[job("1")]).await;
    stage.fake.fail("DeleteMessageBatch", Fault::Refuse(403, "AccessDeniedException"));
    let error = client.try_claim(&["t"], 1, Duration::ZERO).await.unwrap_err();
    assert_says(&error, &ErrorKind::Config, &["allow sqs:DeleteMessage", "docs/sqs.md"]);
    assert_eq!(stage.receives(), [0]);
    client.take_one(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_queue_that_is_no_fifo_queue_is_told_before_the_first_job() {
    let stage = Stage::with_dead_letters(5).await;
    let policy =
        r#"{"deadLetterTargetArn": "arn:aws:sqs:us-east-1:000000000000:dead", "maxReceiveCount": 5}"#;
    stage.fake.queues().get_mut(QUEUE).unwrap().attributes.insert("RedrivePolicy".into(), policy.into());
    let client = stage.client();
    let error = client.try_claim(&["t"], 1, Duration::ZERO).await.unwrap_err();
    assert_says(&error, &ErrorKind::Config, &["is no FIFO queue", "RedrivePolicy"]);
    let findings = client.backend.check().await.unwrap();
    assert!(findings.iter().any(|finding| finding.level == Level::Error && finding.fix.is_some()));
}

#[tokio::test(start_paused = true)]
async fn what_fifo_queues_cannot_do_is_refused_with_the_reason() {
    let stage = Stage::with_dead_letters(1).await;
    let backend = stage.client().backend;
    let refused = async |job: NewJob| backend.enqueue(&[job]).await.unwrap_err();
    let unique = refused(NewJob { unique: Some("k".into()), ..job("1") }).await;
    assert_says(&unique, &ErrorKind::NotSupported, &["unique=", "five minutes"]);
    let late = refused(NewJob { delay: Duration::from_secs(43_200), ..job("1") }).await;
    assert_says(&late, &ErrorKind::NotSupported, &["12 hours"]);
    let delayed = refused(NewJob { delay: Duration::from_secs(1), ..job("1") }).await;
    assert_says(&delayed, &ErrorKind::Config, &["maxReceiveCount of this one is 1", "set it to 2 or more"]);
    assert_eq!(stage.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn doctor_warns_of_a_queue_that_works_with_a_risk() {
    let stage = Stage::with_dead_letters(5).await;
    let backend = stage.client().backend;
    let findings = backend.check().await.unwrap();
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
    {
        let mut queues = stage.fake.queues();
        let attributes = &mut queues.get_mut(QUEUE).unwrap().attributes;
        attributes.retain(|name, _| name == "FifoQueue");
        attributes.insert("MessageRetentionPeriod".into(), "60".into());
    }
    let findings = stage.client().backend.check().await.unwrap();
    let warned: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.level == Level::Warn)
        .map(|finding| finding.name.as_str())
        .collect();
    assert_eq!(warned, ["dead letters", "throughput", "retention"]);
}
