//! A job as a message: body, attributes, and what they weigh. The first three attributes are those of the original Go
//! library, whose producers and workers may share the queue.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_sqs::types::{
    Message, MessageAttributeValue, MessageSystemAttributeName as System, SendMessageBatchRequestEntry,
};
use uuid::{Builder, Uuid, Variant, Version};

use crate::error::{Error, ErrorKind, Result};
use crate::job::{
    Body, ChainPlace, Headers, Job, JobId, JobType, MAX_TYPE_BYTES, NewJob, OnFailure, from_unix_ms,
};

/// Most bytes of a message, attributes included, and of all messages of one call.
pub(super) const MOST_BYTES: usize = 1024 * 1024;
/// What the attributes of a job without headers weigh at most; a job with headers is weighed exactly.
pub(super) const ATTRIBUTE_BYTES: usize = 512 + MAX_TYPE_BYTES;

/// What a receive asks for. Each thing more is paid for with each message.
pub(super) const WANTED: [System; 5] = [
    System::ApproximateFirstReceiveTimestamp,
    System::ApproximateReceiveCount,
    System::MessageGroupId,
    System::SentTimestamp,
    System::SequenceNumber,
];

const JOB_ID: &str = "job_id";
const JOB_TYPE: &str = "job_type";
/// Jobs in the group.
const IN_GROUP: &str = "in_group";
/// The job's place in it, from 1.
const CHAIN_INDEX: &str = "chain_index";
const ON_FAILURE: &str = "on_failure";
const DELAY: &str = "delay_ms";
const MAX_ATTEMPTS: &str = "max_attempts";
const HEADERS: &str = "headers";
const CANCEL: &str = "cancel";
const TEXT: &str = "String";

/// A job on its way into the queue.
#[derive(Debug)]
pub(super) struct Outgoing {
    body: String,
    attributes: Vec<(&'static str, String)>,
    group: String,
    id: String,
}

impl Outgoing {
    /// # Errors
    /// [`ErrorKind::Body`] for text that is not UTF-8.
    pub fn new(job: &NewJob) -> Result<Self> {
        let body = std::str::from_utf8(job.body.as_bytes())
            .map_err(|error| Error::new(ErrorKind::Body, format!("the body is not UTF-8: {error}")))?;
        let mut attributes = vec![
            (JOB_ID, job.id.to_string()),
            (JOB_TYPE, job.job_type.to_string()),
            (IN_GROUP, job.chain.length.to_string()),
        ];
        if job.chain.length > 1 {
            attributes.push((CHAIN_INDEX, job.chain.position.to_string()));
        }
        if job.on_failure == OnFailure::Cancel {
            attributes.push((ON_FAILURE, CANCEL.to_owned()));
        }
        if !job.delay.is_zero() {
            attributes.push((DELAY, job.delay.as_millis().to_string()));
        }
        if let Some(attempts) = job.max_attempts {
            attributes.push((MAX_ATTEMPTS, attempts.to_string()));
        }
        if let Some(headers) = job.headers.as_deref() {
            let json: serde_json::Value =
                headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            attributes.push((HEADERS, xml_safe(&json.to_string()).into_owned()));
        }
        Ok(Self {
            body: xml_safe(body).into_owned(),
            attributes,
            group: job.chain.id.to_string(),
            id: job.id.to_string(),
        })
    }

    /// Bytes as SQS counts them: the body, and names, types and values of the attributes.
    pub fn bytes(&self) -> usize {
        let attributes =
            self.attributes.iter().map(|(name, value)| name.len() + TEXT.len() + value.len()).sum::<usize>();
        self.body.len() + attributes
    }

    /// The entry of a batch. Its id is its place there; the id of the job keeps a repeat from being stored twice.
    pub fn entry(&self, place: usize) -> SendMessageBatchRequestEntry {
        let attributes =
            self.attributes.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect();
        entry(place, &self.body, attributes, &self.group, &self.id)
    }
}

fn entry(
    place: usize,
    body: &str,
    attributes: std::collections::HashMap<String, MessageAttributeValue>,
    group: &str,
    deduplication: &str,
) -> SendMessageBatchRequestEntry {
    let entry = SendMessageBatchRequestEntry::builder()
        .id(place.to_string())
        .message_body(body)
        .set_message_attributes(Some(attributes))
        .message_group_id(group)
        .message_deduplication_id(deduplication)
        .build();
    match entry {
        Ok(entry) => entry,
        Err(error) => unreachable!("id and body are set: {error}"),
    }
}

fn text(value: &str) -> MessageAttributeValue {
    let value = MessageAttributeValue::builder().data_type(TEXT).string_value(value).build();
    match value {
        Ok(value) => value,
        Err(error) => unreachable!("the type is set: {error}"),
    }
}

/// SQS takes only the characters of XML 1.0. JSON has escaped the control characters already, and these two stand in
/// strings alone, where an escape means the same.
fn xml_safe(json: &str) -> Cow<'_, str> {
    if json.contains(['\u{fffe}', '\u{ffff}']) {
        Cow::Owned(json.replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff"))
    } else {
        Cow::Borrowed(json)
    }
}

/// A message as it was received.
#[derive(Debug, Clone)]
pub(super) struct Incoming {
    pub group: Arc<str>,
    /// Its place in the queue.
    pub sequence: u128,
    pub receipt: String,
    /// How often it was handed out, this time included.
    pub receives: u32,
    pub message_id: String,
    /// When it is due, if it was sent with a delay and first received before that.
    pub due: Option<SystemTime>,
    pub delay: Duration,
    pub on_failure: OnFailure,
    /// What to run; or why that cannot be told.
    pub job: Result<Job, String>,
    /// As it came, to be copied into the dead-letter queue.
    pub message: Arc<Message>,
}

impl Incoming {
    pub fn read(message: Message) -> Self {
        let system =
            |name: System| message.attributes.as_ref().and_then(|all| all.get(&name)).map(String::as_str);
        let number = |name| system(name).and_then(|text| text.parse::<u64>().ok());
        let receives = number(System::ApproximateReceiveCount).unwrap_or(1).max(1) as u32;
        let sent = from_unix_ms(number(System::SentTimestamp).unwrap_or_default());
        let first = number(System::ApproximateFirstReceiveTimestamp).map_or(sent, from_unix_ms);
        let message_id = message.message_id.clone().unwrap_or_default();
        let group: Arc<str> = system(System::MessageGroupId).unwrap_or(&message_id).into();
        let delay = parsed(&message, DELAY).map_or(Duration::ZERO, Duration::from_millis);
        let place = place(&message, &group);
        // A first job waits from when it was sent, a later one from when it could first be received.
        let from = if place.position == 1 { sent } else { first };
        // Dates beyond those that a clock can name never come.
        let due = from.checked_add(delay).filter(|due| !delay.is_zero() && *due > first);
        // It was received once only to be hidden until it was due.
        let hidden = u32::from(due.is_some() && receives > 1);
        let on_failure = if attribute(&message, ON_FAILURE) == Some(CANCEL) {
            OnFailure::Cancel
        } else {
            OnFailure::Continue
        };
        Self {
            sequence: system(System::SequenceNumber).and_then(|text| text.parse().ok()).unwrap_or_default(),
            receipt: message.receipt_handle.clone().unwrap_or_default(),
            receives,
            due,
            delay,
            on_failure,
            job: job(&message, &message_id, place, receives - hidden, sent),
            group,
            message_id,
            message: Arc::new(message),
        }
    }
}

fn job(
    message: &Message,
    message_id: &str,
    chain: ChainPlace,
    attempt: u32,
    enqueued_at: SystemTime,
) -> Result<Job, String> {
    let Some(name) = attribute(message, JOB_TYPE) else {
        return Err(format!("it has no attribute {JOB_TYPE:?}, which names the handler"));
    };
    let job_type = JobType::new(name).map_err(|error| error.text().to_owned())?;
    let body = Body::from_json(message.body.as_deref().unwrap_or_default().as_bytes())
        .map_err(|error| error.text().to_owned())?;
    let mut headers: Option<Headers> =
        attribute(message, HEADERS).and_then(|json| serde_json::from_str(json).ok());
    let given = attribute(message, JOB_ID).unwrap_or(message_id);
    let id = named(given);
    if Uuid::parse_str(given).is_err() {
        // Ids of the original are no UUIDs: its producers find theirs here.
        headers.get_or_insert_default().insert(JOB_ID.to_owned(), given.to_owned());
    }
    Ok(Job {
        id,
        job_type,
        body,
        headers: headers.map(Arc::new),
        attempt,
        max_attempts: parsed(message, MAX_ATTEMPTS).and_then(|most: u64| NonZeroU32::new(most as u32)),
        last_attempt: None,
        enqueued_at,
        chain,
    })
}

fn place(message: &Message, group: &str) -> ChainPlace {
    let position = parsed(message, CHAIN_INDEX).unwrap_or(1).max(1) as u32;
    let length = parsed(message, IN_GROUP).unwrap_or(1) as u32;
    ChainPlace { id: named(group), position, length: length.max(position) }
}

fn attribute<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.message_attributes.as_ref()?.get(name)?.string_value.as_deref()
}

fn parsed(message: &Message, name: &str) -> Option<u64> {
    attribute(message, name)?.parse().ok()
}

/// The id that a text stands for: its own if it is a UUID, else always the same one.
fn named(text: &str) -> JobId {
    JobId::from_uuid(Uuid::parse_str(text).unwrap_or_else(|_| {
        // FNV-1a: nobody chooses these texts to collide.
        let hash = text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
            (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b)
        });
        Builder::from_u128(hash).with_variant(Variant::RFC4122).with_version(Version::Custom).into_uuid()
    }))
}

/// The message once more, for the dead-letter queue.
pub(super) fn copy(place: usize, message: &Message, group: &str) -> SendMessageBatchRequestEntry {
    entry(
        place,
        message.body.as_deref().unwrap_or_default(),
        message.message_attributes.clone().unwrap_or_default(),
        group,
        message.message_id.as_deref().unwrap_or(group),
    )
}

/// Bytes of a received message, about as SQS counts them.
pub(super) fn weight(message: &Message) -> usize {
    let attributes = message.message_attributes.iter().flatten();
    let own = |value: &MessageAttributeValue| {
        value.data_type.len() + value.string_value.as_ref().map_or(0, String::len)
    };
    let attributes: usize = attributes.map(|(name, value)| name.len() + own(value)).sum();
    message.body.as_ref().map_or(0, String::len) + attributes
}
