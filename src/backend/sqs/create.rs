//! The queue and its dead-letter queue, created with settings that suit jobs.

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use serde_json::json;

use super::Core;
use super::address::is_fifo;
use crate::backend::{DeadLetters, NewQueue};
use crate::error::{Error, ErrorKind, Result};

/// As long as SQS keeps anything: 14 days.
const RETENTION_S: u32 = 1_209_600;
/// What a consumer gets that names no time of its own; workers of dejq do.
const VISIBILITY_S: u32 = 30;
const WAIT_S: u32 = 20;

impl Core {
    /// Creates what is missing; says what was created. What is there is left as it is.
    pub async fn create(&self, wanted: &NewQueue) -> Result<Vec<String>> {
        match self.link.queue().await {
            Ok(_) => return Ok(Vec::new()),
            Err(error) if *error.kind() == ErrorKind::SchemaMissing => {}
            Err(error) => return Err(error),
        }
        let name = self.link.address.queue.name().to_owned();
        let mut created = Vec::new();
        let mut attributes = usual();
        if let Some(dead) = wanted.dead_letter_name(&name)? {
            let url = self.link.create(&dead, &usual()).await?;
            let found = self.link.attributes(&url).await?;
            let arn = found.get(&Attribute::QueueArn).ok_or_else(|| {
                Error::config(format!(
                    "the dead-letter queue {dead} was created and has no ARN; is the endpoint SQS?"
                ))
            })?;
            let policy = json!({ "deadLetterTargetArn": arn, "maxReceiveCount": wanted.max_receives.get() });
            attributes.push((Attribute::RedrivePolicy, policy.to_string()));
            created.push(format!("queue {dead}, for jobs that failed {} times", wanted.max_receives));
        }
        attributes.push((Attribute::VisibilityTimeout, VISIBILITY_S.to_string()));
        attributes.push((Attribute::ReceiveMessageWaitTimeSeconds, WAIT_S.to_string()));
        self.link.create(&name, &attributes).await?;
        created.push(format!("queue {name}"));
        self.link.forget_queue();
        Ok(created)
    }
}

/// Groups with a throughput of their own, which is the high throughput mode; deduplication by the ids of jobs alone.
fn usual() -> Vec<(Attribute, String)> {
    vec![
        (Attribute::FifoQueue, "true".to_owned()),
        (Attribute::ContentBasedDeduplication, "false".to_owned()),
        (Attribute::DeduplicationScope, "messageGroup".to_owned()),
        (Attribute::FifoThroughputLimit, "perMessageGroupId".to_owned()),
        (Attribute::MessageRetentionPeriod, RETENTION_S.to_string()),
    ]
}

impl NewQueue {
    /// The name of the dead-letter queue of the queue `name`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for one that could not be it.
    fn dead_letter_name(&self, name: &str) -> Result<Option<String>> {
        let dead = match &self.dead_letters {
            DeadLetters::None => return Ok(None),
            DeadLetters::Usual => format!("{}-dlq.fifo", name.trim_end_matches(".fifo")),
            DeadLetters::Named(dead) => dead.clone(),
        };
        if !is_fifo(&dead) || dead == name || dead.len() > 80 {
            return Err(Error::config(format!(
                "dlq={dead:?} cannot be the dead-letter queue of {name}, which must be another FIFO queue: a name of at most 80 characters \
                 that ends in .fifo"
            )));
        }
        Ok(Some(dead))
    }
}
