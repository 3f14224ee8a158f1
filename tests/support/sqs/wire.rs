//! What the SDK sends and reads: JSON over HTTP, without a network.

use std::sync::Arc;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use super::rules::{Message, Refusal, millis, size};
use super::{Fake, Fault};

#[derive(Debug, Clone)]
pub struct Wire(pub Arc<Fake>);

/// Status, code and text.
type Failure = (u16, String, String);

impl HttpClient for Wire {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let fake = Arc::clone(&self.0);
        HttpConnectorFuture::new(async move {
            let target = request.headers().get("x-amz-target").unwrap_or_default();
            let call = target.rsplit('.').next().unwrap_or_default().to_owned();
            let asked: Value =
                serde_json::from_slice(request.body().bytes().unwrap_or_default()).unwrap_or_default();
            *fake.calls.lock().unwrap().entry(call.clone()).or_default() += 1;
            let lost = || ConnectorError::io("connection reset".into());
            let fault = fake.next_fault(&call);
            match &fault {
                Some(Fault::LoseRequest) => return Err(lost()),
                Some(Fault::Refuse(status, code)) => {
                    return Ok(refusal((*status, (*code).into(), "as asked".into())));
                }
                Some(Fault::HoldRequest(time)) => sleep(*time).await,
                _ => {}
            }
            let failing =
                if let Some(Fault::FailEntries(places)) = &fault { places.clone() } else { Vec::new() };
            let answer = fake.answer(&call, &asked, &failing).await;
            let mut answer = match answer {
                Ok(answer) => response(200, &answer, None),
                Err(failure) => refusal(failure),
            };
            answer.headers_mut().insert("date", fake.date());
            match fault {
                Some(Fault::LoseReply) => return Err(lost()),
                Some(Fault::HoldReply(time)) => sleep(time).await,
                _ => {}
            }
            Ok(answer)
        })
    }
}

fn response(status: u16, body: &Value, error: Option<&str>) -> HttpResponse {
    let mut response =
        HttpResponse::new(StatusCode::try_from(status).unwrap(), SdkBody::from(body.to_string()));
    response.headers_mut().insert("content-type", "application/x-amz-json-1.0");
    if let Some(code) = error {
        response.headers_mut().insert("x-amzn-query-error", format!("{code};Sender"));
    }
    response
}

fn refusal((status, code, text): Failure) -> HttpResponse {
    response(status, &json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": text }), Some(&code))
}

fn bad(code: &str, text: &str) -> Failure {
    (400, code.to_owned(), text.to_owned())
}

impl Fake {
    async fn answer(&self, call: &str, asked: &Value, failing: &[usize]) -> Result<Value, Failure> {
        match call {
            "CreateQueue" => return self.create(asked),
            "GetQueueUrl" => {
                let name = asked["QueueName"].as_str().unwrap_or_default();
                return if self.queues().contains_key(name) {
                    Ok(json!({ "QueueUrl": url(name) }))
                } else {
                    Err(missing())
                };
            }
            _ => {}
        }
        let name =
            asked["QueueUrl"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
        if !self.queues().contains_key(&name) {
            return Err(missing());
        }
        let seconds = |value: &Value| Duration::from_secs(value.as_u64().unwrap_or_default());
        match call {
            "GetQueueAttributes" => Ok(json!({ "Attributes": self.attributes(&name) })),
            "ReceiveMessage" => self.receive(&name, asked).await,
            "SendMessageBatch" => {
                let entries = asked["Entries"].as_array().map(Vec::as_slice).unwrap_or_default();
                if entries.iter().map(size).sum::<usize>() > 1024 * 1024 {
                    return Err(bad(
                        "AWS.SimpleQueueService.BatchRequestTooLong",
                        "batch over 1048576 bytes",
                    ));
                }
                let now = self.now();
                self.batch(&name, asked, failing, |queue, entry| queue.send(entry, now))
            }
            "DeleteMessageBatch" => self.batch(&name, asked, failing, |queue, entry| {
                queue.delete(entry["ReceiptHandle"].as_str().unwrap_or_default()).map(|()| String::new())
            }),
            "ChangeMessageVisibilityBatch" => self.batch(&name, asked, failing, |queue, entry| {
                let receipt = entry["ReceiptHandle"].as_str().unwrap_or_default();
                queue.change_visibility(receipt, seconds(&entry["VisibilityTimeout"])).map(|()| String::new())
            }),
            _ => Err(bad("InvalidAction", call)),
        }
    }

    fn create(&self, asked: &Value) -> Result<Value, Failure> {
        let name = asked["QueueName"].as_str().unwrap_or_default().to_owned();
        let given = asked["Attributes"].as_object().into_iter().flatten();
        let given = given.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()));
        let given: std::collections::BTreeMap<_, _> = given.collect();
        let mut queues = self.queues();
        let queue = queues.entry(name.clone()).or_default();
        if queue.attributes.is_empty() {
            queue.attributes = given;
        } else if given.iter().any(|(name, value)| queue.attributes.get(name) != Some(value)) {
            return Err(bad("QueueAlreadyExists", "a queue of this name has other attributes"));
        }
        Ok(json!({ "QueueUrl": url(&name) }))
    }

    fn attributes(&self, name: &str) -> Value {
        let queues = self.queues();
        let queue = &queues[name];
        let (visible, hidden) = queue.counts();
        let mut all = queue.attributes.clone();
        all.insert("QueueArn".into(), format!("arn:aws:sqs:us-east-1:000000000000:{name}"));
        all.insert("ApproximateNumberOfMessages".into(), visible.to_string());
        all.insert("ApproximateNumberOfMessagesNotVisible".into(), hidden.to_string());
        all.insert("ApproximateNumberOfMessagesDelayed".into(), "0".into());
        json!(all)
    }

    async fn receive(&self, name: &str, asked: &Value) -> Result<Value, Failure> {
        let number = |name: &str| asked[name].as_u64().unwrap_or_default();
        let deadline = Instant::now() + Duration::from_secs(number("WaitTimeSeconds"));
        let visibility = Duration::from_secs(number("VisibilityTimeout"));
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let next = {
                let now = self.now();
                let mut queues = self.queues();
                let queue = queues.get_mut(name).ok_or_else(missing)?;
                let most = number("MaxNumberOfMessages") as usize;
                let (taken, dead) =
                    queue.receive(most, visibility, asked["ReceiveRequestAttemptId"].as_str(), now);
                let (next, target) = (queue.next_visible(), queue.dead_letter_queue());
                if let Some(target) = target.and_then(|target| queues.get_mut(&target)) {
                    target.bury(dead);
                }
                if !taken.is_empty() || Instant::now() >= deadline {
                    return Ok(json!({ "Messages": taken.iter().map(described).collect::<Vec<_>>() }));
                }
                next
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(next.map_or(deadline, |next| next.min(deadline))) => {}
            }
        }
    }

    fn batch(
        &self,
        name: &str,
        asked: &Value,
        failing: &[usize],
        act: impl Fn(&mut super::Queue, &Value) -> Result<String, Refusal>,
    ) -> Result<Value, Failure> {
        let entries = asked["Entries"].as_array().map(Vec::as_slice).unwrap_or_default();
        if entries.is_empty() || entries.len() > 10 {
            return Err(bad("AWS.SimpleQueueService.TooManyEntriesInBatchRequest", "1 to 10 entries"));
        }
        let (mut successful, mut failed) = (Vec::new(), Vec::new());
        let mut queues = self.queues();
        let queue = queues.get_mut(name).ok_or_else(missing)?;
        for (place, entry) in entries.iter().enumerate() {
            let result = if failing.contains(&place) {
                Err(("InternalError", "as asked".to_owned(), false))
            } else {
                act(queue, entry).map_err(|(code, text)| (code, text, true))
            };
            match result {
                Ok(id) => {
                    successful.push(json!({ "Id": entry["Id"], "MessageId": id, "MD5OfMessageBody": "0" }));
                }
                Err((code, text, ours)) => {
                    failed.push(
                        json!({ "Id": entry["Id"], "Code": code, "Message": text, "SenderFault": ours }),
                    );
                }
            }
        }
        drop(queues);
        self.changed.notify_waiters();
        Ok(json!({ "Successful": successful, "Failed": failed }))
    }
}

fn described(message: &Message) -> Value {
    json!({
        "MessageId": message.id,
        "ReceiptHandle": message.receipt,
        "Body": message.body,
        "MD5OfBody": "0",
        "MessageAttributes": message.attributes,
        "Attributes": {
            "ApproximateReceiveCount": message.receives.to_string(),
            "SentTimestamp": millis(message.sent).to_string(),
            "ApproximateFirstReceiveTimestamp": millis(message.first_received.unwrap_or(message.sent)).to_string(),
            "MessageGroupId": message.group,
            "SequenceNumber": format!("{:020}", message.sequence),
        },
    })
}

fn url(name: &str) -> String {
    format!("https://sqs.us-east-1.amazonaws.com/000000000000/{name}")
}

fn missing() -> Failure {
    bad("AWS.SimpleQueueService.NonExistentQueue", "the specified queue does not exist")
}
