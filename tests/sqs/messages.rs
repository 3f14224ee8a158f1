//! What is on the wire.

use aws_sdk_sqs::types::{MessageAttributeValue, SendMessageBatchRequestEntry};
use dejq::backend::Backend;
use dejq::error::ErrorKind;
use dejq::job::{NewJob, OnFailure};
use serde_json::Value;

use crate::stage::{QUEUE, Stage, bodies, chain, job};

/// A message as somebody else sends it.
pub fn raw(body: &str, group: &str, id: &str, attributes: &[(&str, &str)]) -> SendMessageBatchRequestEntry {
    let mut entry = SendMessageBatchRequestEntry::builder()
        .id(id)
        .message_body(body)
        .message_group_id(group)
        .message_deduplication_id(id);
    for (name, value) in attributes {
        let value =
            MessageAttributeValue::builder().data_type("String").string_value(*value).build().unwrap();
        entry = entry.message_attributes(*name, value);
    }
    entry.build().unwrap()
}

pub async fn send(stage: &Stage, entries: Vec<SendMessageBatchRequestEntry>) {
    let client = stage.fake.client();
    let url = client.get_queue_url().queue_name(QUEUE).send().await.unwrap().queue_url.unwrap();
    client.send_message_batch().queue_url(url).set_entries(Some(entries)).send().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn jobs_of_a_go_producer_run_here() {
    let stage = Stage::with_dead_letters(5).await;
    let attributes = |id| [("job_type", "t"), ("job_id", id), ("in_group", "2")];
    let entries = vec![
        raw(r#"{"n": 1}"#, "2VfUX1cVMZKTZTdGUyJpLq", "0", &attributes("aZ3kQp9LmX2vB7nC5dWt")),
        raw(r#"{"n": 2}"#, "2VfUX1cVMZKTZTdGUyJpLq", "1", &attributes("bZ3kQp9LmX2vB7nC5dWt")),
    ];
    send(&stage, entries).await;
    let client = stage.client();
    let a = client.take_one(10).await;
    assert_eq!(a.job.headers.as_ref().unwrap()["job_id"], "aZ3kQp9LmX2vB7nC5dWt");
    assert_eq!((a.job.attempt, a.job.chain.length), (1, 2));
    let b = client.next(&a, dejq::backend::Outcome::Finished).await;
    assert_eq!(bodies(&[a.clone(), b.clone()]), [r#"{"n": 1}"#, r#"{"n": 2}"#]);
    assert_eq!(a.job.chain.id, b.job.chain.id);
    assert_ne!(a.job.id, b.job.id);
}

#[tokio::test(start_paused = true)]
async fn a_message_has_the_attributes_of_the_original_and_is_named_by_its_job() {
    let stage = Stage::with_dead_letters(5).await;
    let jobs = chain(2, OnFailure::Continue);
    stage.client().enqueue(&jobs).await;
    let queues = stage.fake.queues();
    let second = &queues[QUEUE].messages[1];
    let attribute = |name: &str| second.attributes[name]["StringValue"].as_str().unwrap().to_owned();
    assert_eq!(attribute("job_type"), "t");
    assert_eq!(attribute("job_id"), jobs[1].id.to_string());
    assert_eq!((attribute("in_group"), attribute("chain_index")), ("2".into(), "2".into()));
    assert_eq!(second.group, jobs[0].id.to_string());
}

#[tokio::test(start_paused = true)]
async fn characters_that_sqs_refuses_come_back_the_same() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    let text = "\u{fffe}\u{ffff}\u{fffd}\u{1fffe}\u{7f}\u{85}\u{2028}🦀\0\u{1}\u{1f}";
    let json = serde_json::to_string(text).unwrap();
    let headers = dejq::job::Headers::from([("h\u{ffff}".to_owned(), text.to_owned())]);
    client.enqueue(&[NewJob { headers: Some(headers.clone().into()), ..job(&json) }]).await;
    let taken = client.take_one(1).await;
    let back: Value = serde_json::from_slice(taken.job.body.as_bytes()).unwrap();
    assert_eq!(back, Value::from(text));
    assert_eq!(taken.job.headers.as_deref(), Some(&headers));
}

#[tokio::test(start_paused = true)]
async fn a_message_is_weighed_with_its_attributes_before_it_is_sent() {
    let stage = Stage::with_dead_letters(5).await;
    let client = stage.client();
    let most = client.backend.guarantees().max_body;
    let large = |bytes: usize| job(&format!("\"{}\"", "x".repeat(bytes - 2)));
    client.enqueue(&[large(most), large(most)]).await;
    let sent = stage.fake.calls("SendMessageBatch");
    assert_eq!(sent, 2, "two messages of 1 MiB fit into no batch");
    let headers = dejq::job::Headers::from([("h".to_owned(), "x".repeat(4000))]);
    let heavy = NewJob { headers: Some(headers.into()), ..large(most) };
    let error = client.backend.enqueue(&[heavy]).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::BodyTooLarge { size, limit: 1_048_576 } if *size > 1_048_576),
        "{error}"
    );
    assert_eq!(stage.fake.calls("SendMessageBatch"), sent);
}
