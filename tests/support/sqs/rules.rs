//! The rules of a FIFO queue, in one page: who is handed out, how often, and what becomes of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::time::Instant;

const DEDUPLICATION: Duration = Duration::from_secs(300);
const MOST_VISIBILITY: Duration = Duration::from_secs(43_200);
const MOST_BYTES: usize = 1024 * 1024;

#[derive(Debug, Clone)]
pub struct Message {
    pub id: String,
    pub sequence: u64,
    pub group: String,
    pub body: String,
    pub attributes: Value,
    pub receives: u32,
    pub sent: SystemTime,
    pub first_received: Option<SystemTime>,
    /// Of the latest receive.
    pub receipt: String,
    received: Instant,
    visible: Instant,
}

#[derive(Debug, Default)]
pub struct Queue {
    pub attributes: BTreeMap<String, String>,
    /// In the order of the queue.
    pub messages: Vec<Message>,
    sent: HashMap<String, (Instant, String)>,
    attempts: HashMap<String, (Instant, Vec<String>)>,
    deleted: HashSet<String>,
    issued: u64,
}

/// What a batch entry is refused with.
pub type Refusal = (&'static str, String);

impl Queue {
    fn redrive(&self) -> Option<(u32, String)> {
        let policy: Value = serde_json::from_str(self.attributes.get("RedrivePolicy")?).ok()?;
        let most = policy["maxReceiveCount"].as_u64()? as u32;
        Some((most, policy["deadLetterTargetArn"].as_str()?.rsplit(':').next()?.to_owned()))
    }

    /// Stores a message, unless one of its deduplication id came within five minutes; returns the id of whichever is stored.
    pub fn send(&mut self, entry: &Value, now: SystemTime) -> Result<String, Refusal> {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let (body, group, key) =
            (text("MessageBody"), text("MessageGroupId"), text("MessageDeduplicationId"));
        let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
        let attributes = &entry["MessageAttributes"];
        let values = attributes.as_object().into_iter().flatten();
        if !body.chars().all(allowed)
            || !values
                .clone()
                .all(|(_, value)| value["StringValue"].as_str().unwrap_or_default().chars().all(allowed))
        {
            return Err((
                "InvalidMessageContents",
                "the message contains characters outside the allowed set".into(),
            ));
        }
        if values.clone().count() > 10 {
            return Err(("InvalidParameterValue", "more than 10 attributes".into()));
        }
        if size(entry) > MOST_BYTES {
            return Err(("InvalidParameterValue", "message must be shorter than 1048576 bytes".into()));
        }
        let by_group = self.attributes.get("DeduplicationScope").is_some_and(|scope| scope == "messageGroup");
        let key = if by_group { format!("{group} {key}") } else { key };
        self.sent.retain(|_, (at, _)| at.elapsed() < DEDUPLICATION);
        if let Some((_, id)) = self.sent.get(&key) {
            return Ok(id.clone());
        }
        let id = uuid(self.issued, &key);
        self.push(Message {
            id: id.clone(),
            sequence: 0,
            group,
            body,
            attributes: attributes.clone(),
            receives: 0,
            sent: now,
            first_received: None,
            receipt: String::new(),
            received: Instant::now(),
            visible: Instant::now(),
        });
        self.sent.insert(key, (Instant::now(), id.clone()));
        Ok(id)
    }

    fn push(&mut self, mut message: Message) {
        self.issued += 1;
        message.sequence = self.issued;
        self.messages.push(message);
    }

    /// What is handed out now: of each group what is not behind a message that is hidden, one group after the other.
    /// And what is dead, because it was received too often before.
    pub fn receive(
        &mut self,
        most: usize,
        visibility: Duration,
        attempt: Option<&str>,
        now: SystemTime,
    ) -> (Vec<Message>, Vec<Message>) {
        if let Some(again) = attempt.and_then(|attempt| self.again(attempt, visibility)) {
            return (again, Vec::new());
        }
        let limit = self.redrive().map(|(most, _)| most);
        let (mut blocked, mut chosen, mut dead) = (HashSet::new(), Vec::<usize>::new(), Vec::new());
        let mut order: Vec<&str> = Vec::new();
        let mut by_group: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, message) in self.messages.iter().enumerate() {
            let group = message.group.as_str();
            if blocked.contains(group) {
                continue;
            }
            if message.visible > Instant::now() {
                blocked.insert(group);
            } else if limit.is_some_and(|limit| message.receives >= limit) {
                dead.push(at);
            } else {
                by_group
                    .entry(group)
                    .or_insert_with(|| {
                        order.push(group);
                        Vec::new()
                    })
                    .push(at);
            }
        }
        for group in order {
            chosen.extend(&by_group[group]);
        }
        chosen.truncate(most);
        let mut taken = Vec::new();
        for at in chosen {
            self.issued += 1;
            let message = &mut self.messages[at];
            message.receives += 1;
            message.first_received.get_or_insert(now);
            message.receipt = format!("receipt-{}", self.issued);
            (message.received, message.visible) = (Instant::now(), Instant::now() + visibility);
            taken.push(message.clone());
        }
        let dead: Vec<Message> = dead.into_iter().rev().map(|at| self.messages.remove(at)).collect();
        if let Some(attempt) = attempt.filter(|_| !taken.is_empty()) {
            let receipts = taken.iter().map(|message| message.receipt.clone()).collect();
            self.attempts.insert(attempt.to_owned(), (Instant::now(), receipts));
        }
        (taken, dead.into_iter().rev().collect())
    }

    /// The same attempt brings the same messages, while they are all in flight.
    fn again(&mut self, attempt: &str, visibility: Duration) -> Option<Vec<Message>> {
        let (at, receipts) = self.attempts.get(attempt)?;
        let in_flight = |receipt: &String| {
            self.messages
                .iter()
                .any(|message| message.receipt == *receipt && message.visible > Instant::now())
        };
        if at.elapsed() >= DEDUPLICATION || !receipts.iter().all(in_flight) {
            return None;
        }
        let receipts = receipts.clone();
        let mut again = Vec::new();
        for message in &mut self.messages {
            if receipts.contains(&message.receipt) {
                message.visible = Instant::now() + visibility;
                again.push(message.clone());
            }
        }
        Some(again)
    }

    /// Takes in what is dead in another queue.
    pub fn bury(&mut self, dead: Vec<Message>) {
        for message in dead {
            self.push(Message { visible: Instant::now(), ..message });
        }
    }

    pub fn delete(&mut self, receipt: &str) -> Result<(), Refusal> {
        if self.deleted.contains(receipt) {
            return Ok(());
        }
        let at = self.held(receipt)?;
        self.messages.remove(at);
        self.deleted.insert(receipt.to_owned());
        Ok(())
    }

    pub fn change_visibility(&mut self, receipt: &str, time: Duration) -> Result<(), Refusal> {
        let at = self.held(receipt)?;
        let message = &mut self.messages[at];
        if message.received.elapsed() + time > MOST_VISIBILITY {
            return Err(("InvalidParameterValue", "total visibility timeout beyond 12 hours".into()));
        }
        message.visible = Instant::now() + time;
        self.attempts.retain(|_, (_, receipts)| !receipts.iter().any(|of| of == receipt));
        Ok(())
    }

    fn held(&self, receipt: &str) -> Result<usize, Refusal> {
        if !receipt.starts_with("receipt-") {
            return Err(("ReceiptHandleIsInvalid", "the input receipt handle is invalid".into()));
        }
        let held = |message: &Message| message.receipt == receipt && message.visible > Instant::now();
        let expired = || ("InvalidParameterValue", "the receipt handle has expired".to_owned());
        self.messages.iter().position(held).ok_or_else(expired)
    }

    pub fn dead_letter_queue(&self) -> Option<String> {
        self.redrive().map(|(_, name)| name)
    }

    /// When something becomes visible that is not yet.
    pub fn next_visible(&self) -> Option<Instant> {
        self.messages.iter().map(|message| message.visible).filter(|visible| *visible > Instant::now()).min()
    }

    /// (visible, hidden)
    pub fn counts(&self) -> (usize, usize) {
        let hidden = self.messages.iter().filter(|message| message.visible > Instant::now()).count();
        (self.messages.len() - hidden, hidden)
    }
}

pub fn size(entry: &Value) -> usize {
    let attributes = entry["MessageAttributes"].as_object().into_iter().flatten();
    let text = |value: &Value| value.as_str().map_or(0, str::len);
    let own =
        attributes.map(|(name, value)| name.len() + text(&value["DataType"]) + text(&value["StringValue"]));
    text(&entry["MessageBody"]) + own.sum::<usize>()
}

pub fn millis(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

fn uuid(number: u64, key: &str) -> String {
    let salt = key.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    format!("00000000-0000-4000-8{:03x}-{number:012x}", salt & 0xfff)
}
