//! What the queue says of itself.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use serde_json::Value;
use tokio::time::Instant;

use super::address::Address;
use super::message::MOST_BYTES;
use crate::error::{Error, Result};

/// How long what was read counts: a redrive policy may be changed while workers run.
const FRESH: Duration = Duration::from_secs(300);

/// A FIFO queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub url: String,
    pub redrive: Option<Redrive>,
    /// Most bytes of a message.
    pub most_bytes: usize,
    /// Does each group have a throughput of its own?
    pub is_high_throughput: bool,
    pub retention: Duration,
    read_at: Instant,
}

/// What becomes of messages that were received too often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Redrive {
    /// Of the dead-letter queue.
    pub arn: String,
    /// It is in the same account and region, always.
    pub url: String,
    /// A message that was received so often is moved there instead of being received again.
    pub most_receives: u32,
}

impl Queue {
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for a queue that keeps no order.
    pub fn read(url: &str, attributes: &HashMap<Attribute, String>, address: &Address) -> Result<Self> {
        let number = |name| attributes.get(&name).and_then(|text| text.parse::<u64>().ok());
        if attributes.get(&Attribute::FifoQueue).map(String::as_str) != Some("true") {
            return Err(Error::config(format!(
                "the queue {address} is a standard queue, which keeps no order and delivers twice, so chains would break; name or \
                 create a FIFO queue, with `dejq migrate` for example"
            )));
        }
        let redrive: Option<Value> =
            attributes.get(&Attribute::RedrivePolicy).and_then(|json| serde_json::from_str(json).ok());
        let redrive = redrive.and_then(|policy| {
            let most = policy.get("maxReceiveCount")?;
            let most = most.as_u64().or_else(|| most.as_str()?.parse().ok())?;
            let arn = policy.get("deadLetterTargetArn")?.as_str()?.to_owned();
            let (name, place) = (arn.rsplit(':').next()?, url.rsplit_once('/')?.0);
            Some(Redrive { url: format!("{place}/{name}"), arn, most_receives: most as u32 })
        });
        Ok(Self {
            url: url.to_owned(),
            redrive,
            most_bytes: number(Attribute::MaximumMessageSize).map_or(MOST_BYTES, |bytes| bytes as usize),
            is_high_throughput: attributes.get(&Attribute::FifoThroughputLimit).map(String::as_str)
                == Some("perMessageGroupId"),
            retention: Duration::from_secs(number(Attribute::MessageRetentionPeriod).unwrap_or(345_600)),
            read_at: Instant::now(),
        })
    }

    pub fn is_fresh(&self) -> bool {
        self.read_at.elapsed() < FRESH
    }

    /// The number of the last attempt that the redrive policy grants to a message, of which this is attempt `attempt` and
    /// receive `receives`.
    pub fn last_attempt(&self, attempt: u32, receives: u32) -> Option<NonZeroU32> {
        let most = self.redrive.as_ref()?.most_receives;
        NonZeroU32::new(attempt + most.saturating_sub(receives))
    }

    /// Will a message that was received so often be dead at the next receive?
    pub fn is_last(&self, receives: u32) -> bool {
        self.redrive.as_ref().is_some_and(|redrive| receives >= redrive.most_receives)
    }
}
