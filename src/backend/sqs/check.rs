//! What would go wrong later: looked at once before the first job is taken, and by `dejq doctor`.

use std::time::Duration;

use super::Core;
use super::address::is_fifo;
use super::errors;
use super::queue::Queue;
use crate::backend::remote::Doing;
use crate::backend::{Finding, Level};
use crate::error::{Error, ErrorKind, Result};

/// No message has it.
const NO_RECEIPT: &str = "dejq-asks-whether-it-may";
/// Fewer leave no room for a worker that dies, or for a stop that gives jobs back.
const FEW_RECEIVES: u32 = 3;
/// With less, jobs that wait out a weekend are gone.
const SHORT_RETENTION: Duration = Duration::from_secs(4 * 86_400);

impl Core {
    /// # Errors
    /// [`ErrorKind::Config`] or [`ErrorKind::SchemaMissing`] for a queue that jobs cannot be taken from safely.
    pub async fn check_once(&self, lease: Duration) -> Result<()> {
        Self::check_lease(lease)?;
        self.checked
            .get_or_try_init(|| async {
                let queue = self.link.queue().await?;
                if let Some(finding) = dead_letters(&queue).filter(|finding| finding.level == Level::Error) {
                    return Err(Error::config(finding.text));
                }
                // Who could take jobs and not end them would run them again and again.
                self.check_permissions().await
            })
            .await
            .map(drop)
    }

    /// SQS looks at rights before it looks at receipts.
    async fn check_permissions(&self) -> Result<()> {
        let receipt = NO_RECEIPT.to_owned();
        let deleted = self.link.delete(std::slice::from_ref(&receipt)).await?;
        let hidden =
            self.link.hide(Doing::Read("asking for permissions"), &[(receipt, Duration::ZERO)]).await?;
        match [deleted.error, hidden.error].into_iter().flatten().find(errors::is_denied) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    pub async fn findings(&self) -> Result<Vec<Finding>> {
        let finding = |level, name: &str, text: String, fix: Option<&str>| Finding {
            level,
            name: name.to_owned(),
            text,
            fix: fix.map(str::to_owned),
        };
        let address = &self.link.address;
        let queue = match self.link.queue().await {
            Ok(queue) => queue,
            Err(error) if matches!(error.kind(), ErrorKind::SchemaMissing) => {
                return Ok(vec![finding(
                    Level::Error,
                    "queue",
                    error.text().to_owned(),
                    Some("dejq migrate"),
                )]);
            }
            Err(error) => return Err(error),
        };
        let mut findings = vec![finding(Level::Ok, "queue", format!("{address} is a FIFO queue"), None)];
        match self.check_permissions().await {
            Ok(()) => findings.push(finding(
                Level::Ok,
                "permissions",
                "messages may be deleted and hidden; sending and receiving show when they are done"
                    .to_owned(),
                None,
            )),
            Err(error) => {
                findings.push(finding(
                    Level::Error,
                    "permissions",
                    error.text().to_owned(),
                    Some("docs/sqs.md has the policy"),
                ));
            }
        }
        findings.extend(dead_letters(&queue));
        if !queue.is_high_throughput {
            findings.push(finding(
                Level::Warn,
                "throughput",
                "all chains share 300 calls a second of each kind".to_owned(),
                Some(
                    "set DeduplicationScope=messageGroup and FifoThroughputLimit=perMessageGroupId, as `dejq migrate` does for new queues",
                ),
            ));
        }
        if queue.retention < SHORT_RETENTION {
            findings.push(finding(
                Level::Warn,
                "retention",
                format!("SQS deletes jobs that have waited for {} s", queue.retention.as_secs()),
                Some("set MessageRetentionPeriod to 1209600, which is 14 days"),
            ));
        }
        Ok(findings)
    }
}

fn dead_letters(queue: &Queue) -> Option<Finding> {
    let finding = |level, text: String, fix: &str| {
        Some(Finding { level, name: "dead letters".to_owned(), text, fix: Some(fix.to_owned()) })
    };
    let Some(redrive) = &queue.redrive else {
        return finding(
            Level::Warn,
            "there is no redrive policy: a job that fails for good is deleted, and only its log line is left"
                .to_owned(),
            "give the queue a RedrivePolicy with a FIFO dead-letter queue and maxReceiveCount 5, or create it with `dejq migrate`",
        );
    };
    if !is_fifo(&redrive.arn) {
        return finding(
            Level::Error,
            format!(
                "the dead-letter queue {} is no FIFO queue, and SQS moves nothing there from one; name a FIFO queue in the RedrivePolicy",
                redrive.arn
            ),
            "create one with `dejq migrate`, or name another in the RedrivePolicy",
        );
    }
    if redrive.most_receives < FEW_RECEIVES {
        return finding(
            Level::Warn,
            format!(
                "maxReceiveCount is {}, and receives count also when a worker dies or gives a job back: jobs may die that never ran",
                redrive.most_receives
            ),
            "set maxReceiveCount to 5 or more",
        );
    }
    None
}
