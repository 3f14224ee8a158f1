//! The way to SQS: the client, opened when it is first used, and one place through which every call goes. It counts them,
//! bounds how long they take, and says in dejq's words what went wrong. It repeats nothing: those who call know what a
//! repeat means.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::StalledStreamProtectionConfig;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message,
    QueueAttributeName, SendMessageBatchRequestEntry,
};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use futures_util::{StreamExt, stream};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use super::address::{Address, Queue as Named};
use super::bill::{Api, Bill};
use super::dates::{Answered, DateOf, Dates};
use super::errors;
use super::message;
use super::queue::Queue;
use crate::backend::remote::Doing;
use crate::error::{Error, ErrorKind, Result};

/// A call that has no answer for so long is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most entries of one call.
pub(super) const MOST_ENTRIES: usize = 10;
/// Calls of one kind that are under way at the same time.
const MOST_CALLS: usize = 16;

/// An entry of a batch that SQS did not take.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    /// Its place among those that were asked for.
    pub place: usize,
    pub code: String,
    pub message: String,
    /// Is it ours to mend, so that a repeat is of no use?
    pub is_final: bool,
}

/// What became of the entries of several batches.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    pub refused: Vec<Refused>,
    /// Those of batches without an answer.
    pub unknown: Vec<usize>,
    /// Why, of one of them.
    pub error: Option<Error>,
}

/// One question for messages.
#[derive(Debug, Clone)]
pub(super) struct Question {
    /// The same for a repeat, which then brings what the first try took.
    pub attempt: String,
    pub most: usize,
    pub wait: Duration,
    pub lease: i32,
}

#[derive(Debug)]
pub(super) struct Link {
    pub address: Address,
    pub bill: Bill,
    client: OnceCell<Client>,
    queue: Mutex<Option<Arc<Queue>>>,
    dates: Dates,
}

impl Link {
    pub fn new(address: Address, client: Option<Client>) -> Self {
        let client = OnceCell::new_with(client);
        Self { address, bill: Bill::default(), client, queue: Mutex::default(), dates: Dates::default() }
    }

    async fn client(&self) -> Result<&Client> {
        self.client.get_or_try_init(|| Box::pin(dial(&self.address))).await
    }

    /// What is known of the queue, looked up if that is too long ago.
    pub async fn queue(&self) -> Result<Arc<Queue>> {
        let known = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(queue) if queue.is_fresh() => Ok(queue),
            Some(queue) => match self.look(&queue.url).await {
                // It was right a while ago, and what is wrong now the calls themselves will tell.
                Err(error) if error.is_transient() => Ok(queue),
                looked => looked,
            },
            None => self.look(&self.url_of(&self.address.queue).await?).await,
        }
    }

    /// The same, if it has been looked up.
    pub fn known_queue(&self) -> Option<Arc<Queue>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It may be another one from now on.
    pub fn forget_queue(&self) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn look(&self, url: &str) -> Result<Arc<Queue>> {
        let attributes = self.attributes(url).await?;
        let queue = Arc::new(Queue::read(url, &attributes, &self.address)?);
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&queue));
        Ok(queue)
    }

    /// Where a queue is.
    pub async fn url_of(&self, named: &Named) -> Result<String> {
        let (name, account) = match named {
            Named::Url(url) => return Ok(url.clone()),
            Named::Name(name) => (name, None),
            Named::Arn { account, name } => (name, Some(account.clone())),
        };
        let call =
            self.client().await?.get_queue_url().queue_name(name).set_queue_owner_aws_account_id(account);
        let answer = self
            .call(Api::GetQueueUrl, Doing::Read("looking up the queue"), PATIENCE, Box::pin(call.send()))
            .await?;
        answer.queue_url.ok_or_else(|| errors::missing("looking up the queue", &self.address))
    }

    pub async fn attributes(
        &self,
        url: &str,
    ) -> Result<std::collections::HashMap<QueueAttributeName, String>> {
        let call = self
            .client()
            .await?
            .get_queue_attributes()
            .queue_url(url)
            .attribute_names(QueueAttributeName::All);
        let (sent, date) = (Instant::now(), DateOf::default());
        let call = call.customize().interceptor(date.clone());
        let doing = Doing::Read("looking at the queue");
        let answer = self.call(Api::GetQueueAttributes, doing, PATIENCE, Box::pin(call.send())).await?;
        // The first poll has this date to compare with.
        self.dates.left_at(Answered { sent, wait: Duration::ZERO, is_empty: false, date: date.read() });
        Ok(answer.attributes.unwrap_or_default())
    }

    /// Creates a queue; returns its URL. One that is there with the same attributes is left as it is.
    pub async fn create(&self, name: &str, attributes: &[(QueueAttributeName, String)]) -> Result<String> {
        let attributes = attributes.iter().cloned().collect();
        let call = self.client().await?.create_queue().queue_name(name).set_attributes(Some(attributes));
        let answer = self
            .call(Api::CreateQueue, Doing::Write("creating the queue"), PATIENCE, Box::pin(call.send()))
            .await?;
        answer.queue_url.ok_or_else(|| errors::missing("creating the queue", &self.address))
    }

    /// Sends one batch; returns the entries that were not taken.
    pub async fn send(
        &self,
        url: &str,
        doing: Doing,
        entries: Vec<SendMessageBatchRequestEntry>,
    ) -> Result<Vec<Refused>> {
        let call = self.client().await?.send_message_batch().queue_url(url).set_entries(Some(entries));
        let answer = self.call(Api::SendMessageBatch, doing, PATIENCE, Box::pin(call.send())).await?;
        Ok(refused(answer.failed, 0))
    }

    /// What SQS handed out, and when.
    pub async fn receive(&self, url: &str, question: &Question) -> Result<(Vec<Message>, Instant)> {
        let call = self
            .client()
            .await?
            .receive_message()
            .queue_url(url)
            .max_number_of_messages(question.most as i32)
            .wait_time_seconds(question.wait.as_secs() as i32)
            .visibility_timeout(question.lease)
            .receive_request_attempt_id(&question.attempt)
            .message_attribute_names("All")
            .set_message_system_attribute_names(Some(message::WANTED.to_vec()));
        let (sent, date) = (Instant::now(), DateOf::default());
        let call = call.customize().interceptor(date.clone());
        let doing = Doing::Write("claiming jobs");
        let answer =
            self.call(Api::ReceiveMessage, doing, question.wait + PATIENCE, Box::pin(call.send())).await?;
        let messages = answer.messages.unwrap_or_default();
        let (wait, is_empty) = (question.wait, messages.is_empty());
        let since = self.dates.left_at(Answered { sent, wait, is_empty, date: date.read() });
        Ok((messages, since))
    }

    /// Deletes messages, by 10.
    pub async fn delete(&self, receipts: &[String]) -> Result<Verdicts> {
        let (client, url) = (self.client().await?, &self.queue().await?.url);
        let mut batches = Vec::new();
        for part in receipts.chunks(MOST_ENTRIES) {
            let entries = part.iter().enumerate().map(|(place, receipt)| {
                let entry =
                    DeleteMessageBatchRequestEntry::builder().id(place.to_string()).receipt_handle(receipt);
                entry.build().map_err(unbuilt)
            });
            let call = client
                .delete_message_batch()
                .queue_url(url)
                .set_entries(Some(entries.collect::<Result<_>>()?));
            batches.push(async move {
                let doing = Doing::Write("storing how jobs ended");
                Ok(self.call(Api::DeleteMessageBatch, doing, PATIENCE, Box::pin(call.send())).await?.failed)
            });
        }
        Ok(verdicts(batches, receipts.len()).await)
    }

    /// Says for how long messages stay hidden from now on, by 10, in the order given. Part of a second counts as a whole one.
    pub async fn hide(&self, doing: Doing, changes: &[(String, Duration)]) -> Result<Verdicts> {
        let (client, url) = (self.client().await?, &self.queue().await?.url);
        let mut batches = Vec::new();
        for part in changes.chunks(MOST_ENTRIES) {
            let entries = part.iter().enumerate().map(|(place, (receipt, time))| {
                let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(place.to_string())
                    .receipt_handle(receipt);
                entry.visibility_timeout(whole_seconds(*time)).build().map_err(unbuilt)
            });
            let entries = entries.collect::<Result<_>>()?;
            let call = client.change_message_visibility_batch().queue_url(url).set_entries(Some(entries));
            batches.push(async move {
                Ok(self
                    .call(Api::ChangeMessageVisibilityBatch, doing, PATIENCE, Box::pin(call.send()))
                    .await?
                    .failed)
            });
        }
        Ok(verdicts(batches, changes.len()).await)
    }

    /// Boxed, because a call of the SDK is a future of several kilobytes.
    async fn call<T, E>(
        &self,
        api: Api,
        doing: Doing,
        patience: Duration,
        answer: Pin<Box<impl Future<Output = Result<T, SdkError<E, HttpResponse>>>>>,
    ) -> Result<T>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        self.bill.count(api);
        match timeout(patience, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let error =
                    errors::explain(doing, api.name().trim_end_matches("Batch"), &self.address, error);
                if *error.kind() == ErrorKind::SchemaMissing {
                    self.forget_queue();
                }
                Err(error)
            }
            Err(elapsed) => Err(doing.broken("the server is silent", elapsed)),
        }
    }
}

/// Runs batches at the same time, some at once, and puts together what became of their entries.
async fn verdicts<F: Future<Output = Result<Vec<BatchResultErrorEntry>>>>(
    batches: Vec<F>,
    entries: usize,
) -> Verdicts {
    let mut verdicts = Verdicts::default();
    let answers: Vec<_> = stream::iter(batches).buffered(MOST_CALLS).collect().await;
    for (number, answer) in answers.into_iter().enumerate() {
        let first = number * MOST_ENTRIES;
        match answer {
            Ok(failed) => verdicts.refused.extend(refused(failed, first)),
            Err(error) => {
                verdicts.unknown.extend(first..entries.min(first + MOST_ENTRIES));
                verdicts.error = Some(error);
            }
        }
    }
    verdicts
}

fn refused(failed: Vec<BatchResultErrorEntry>, first: usize) -> Vec<Refused> {
    let read = |entry: BatchResultErrorEntry| Refused {
        place: first + entry.id.parse::<usize>().unwrap_or_default(),
        code: entry.code,
        message: entry.message.unwrap_or_default(),
        is_final: entry.sender_fault,
    };
    failed.into_iter().map(read).collect()
}

pub(super) fn whole_seconds(time: Duration) -> i32 {
    i32::try_from(time.as_secs() + u64::from(time.subsec_nanos() > 0)).unwrap_or(i32::MAX)
}

fn unbuilt(error: aws_sdk_sqs::error::BuildError) -> Error {
    Error::config("a call to SQS could not be put together; this is a bug in dejq, please report it")
        .with_source(error)
}

/// Credentials and region come from where all tools of AWS look for them.
async fn dial(address: &Address) -> Result<Client> {
    let http =
        aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
    if let Some(region) = &address.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = &address.profile {
        loader = loader.profile_name(profile);
    }
    let found = loader.load().await;
    if found.region().is_none() {
        return Err(Error::config(
            "no AWS region is set, so it is not known where the queue is; write sqs://REGION/NAME.fifo, or set AWS_REGION",
        ));
    }
    let mut config = aws_sdk_sqs::config::Builder::from(&found)
        // Only who made a call knows what a repeat of it means.
        .retry_config(RetryConfig::disabled())
        // A long poll is silent for as long as it waits.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(endpoint) = &address.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}
