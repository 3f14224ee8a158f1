//! What there is, as far as SQS tells.

use std::collections::HashMap;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;

use super::Core;
use crate::backend::{Counts, Stats};
use crate::error::Result;

impl Core {
    /// Approximate: SQS says that its counts settle a minute after the last send.
    pub async fn count(&self) -> Result<Stats> {
        let queue = self.link.queue().await?;
        let attributes = self.link.attributes(&queue.url).await?;
        let failed = match &queue.redrive {
            // Who may not look at it still sees the rest.
            Some(redrive) => self
                .link
                .attributes(&redrive.url)
                .await
                .ok()
                .map(|dead| number(&dead, &Attribute::ApproximateNumberOfMessages)),
            None => None,
        };
        let total = Counts {
            // Blocked ones count as waiting, and scheduled ones as running: SQS keeps them apart nowhere.
            ready: Some(
                number(&attributes, &Attribute::ApproximateNumberOfMessages)
                    + number(&attributes, &Attribute::ApproximateNumberOfMessagesDelayed),
            ),
            running: Some(number(&attributes, &Attribute::ApproximateNumberOfMessagesNotVisible)),
            failed,
            ..Counts::default()
        };
        Ok(Stats { total, bill: Some(self.link.bill.read()), ..Stats::default() })
    }
}

fn number(attributes: &HashMap<Attribute, String>, name: &Attribute) -> u64 {
    attributes.get(name).and_then(|text| text.parse().ok()).unwrap_or_default()
}
