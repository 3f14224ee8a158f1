//! Which queue, where, and how it is asked: the URL and options.

use std::fmt;
use std::time::Duration;

use crate::backend::Options;
use crate::error::{Error, Result};

const UNREADABLE: &str = "the URL cannot be read as sqs://REGION/NAME.fifo (with ?endpoint=http://HOST:PORT for an emulator, \
                          ?queue= for a queue's URL or ARN instead of the name)";
/// Most that SQS waits, and most that it hands out at once.
const MOST_WAIT: u64 = 20;
const MOST_BATCH: usize = 10;
const MOST_POLLERS: usize = 64;

/// How the queue is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Queue {
    /// In the account of the credentials.
    Name(String),
    Url(String),
    Arn {
        account: String,
        name: String,
    },
}

impl Queue {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) | Self::Arn { name, .. } => name,
            Self::Url(url) => url.rsplit('/').next().unwrap_or(url),
        }
    }
}

/// Where the queue is, checked.
#[derive(Debug, Clone)]
pub(super) struct Address {
    pub queue: Queue,
    /// `None`: from the usual places (`AWS_REGION`, the profile, the machine).
    pub region: Option<String>,
    pub endpoint: Option<String>,
    pub profile: Option<String>,
    /// How long one poll waits for messages.
    pub wait_time: Duration,
    /// Most messages of one call.
    pub batch_size: usize,
    /// Polls at the same time.
    pub pollers: usize,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.queue.name())?;
        if let Some(region) = &self.region {
            write!(f, " in {region}")?;
        }
        if let Some(endpoint) = &self.endpoint {
            write!(f, " at {endpoint}")?;
        }
        Ok(())
    }
}

impl Address {
    /// Reads a URL of the scheme `sqs`, whose query is in `options` already, and takes from these: `queue` (a name, a URL
    /// or an ARN), `region`, `endpoint`, `profile`, `wait_time` (seconds, 0 to 20, default 20), `batch_size` (1 to 10,
    /// default 10), `pollers` (1 to 64, default 1).
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for what cannot be understood or used.
    pub fn parse(url: &str, options: &mut Options) -> Result<Self> {
        let unreadable = || Error::config(UNREADABLE);
        let rest = url.strip_prefix("sqs://").ok_or_else(unreadable)?;
        let place = rest.split_once('?').map_or(rest, |(place, _)| place);
        if place.contains(['@', '#']) {
            return Err(Error::config(
                "an sqs:// URL holds no keys and no passwords; leave them to the usual places of AWS (environment, profile, \
                 role of the machine) and write sqs://REGION/NAME.fifo",
            ));
        }
        let (region, name) = place.split_once('/').unwrap_or((place, ""));
        let mut text = |name, given: &str| -> Result<Option<String>> {
            let option = options.take(name, "text", |text| Some(text.to_owned()))?;
            Ok(option.or_else(|| Some(given.to_owned())).filter(|text| !text.is_empty()))
        };
        let queue = text("queue", name.trim_end_matches('/'))?.ok_or_else(unreadable)?;
        let (queue, arn_region) = named(&queue)?;
        let region = text("region", region)?.or(arn_region);
        let (endpoint, profile) = (text("endpoint", "")?, text("profile", "")?);
        if endpoint.as_ref().is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
            return Err(Error::config(format!(
                "option endpoint={:?} must be a URL like http://127.0.0.1:4566",
                endpoint.unwrap_or_default()
            )));
        }
        let wait = options.take("wait_time", "a whole number of seconds from 0 to 20", |text| {
            text.parse::<f64>()
                .ok()
                .filter(|wait| wait.fract() == 0.0 && (0.0..=MOST_WAIT as f64).contains(wait))
        })?;
        let within = |text: &str, most: usize| text.parse().ok().filter(|number| (1..=most).contains(number));
        let batch =
            options.take("batch_size", "a whole number from 1 to 10", |text| within(text, MOST_BATCH))?;
        let pollers =
            options.take("pollers", "a whole number from 1 to 64", |text| within(text, MOST_POLLERS))?;
        Ok(Self {
            queue,
            region,
            endpoint,
            profile,
            wait_time: Duration::from_secs(wait.map_or(MOST_WAIT, |wait| wait as u64)),
            batch_size: batch.unwrap_or(MOST_BATCH),
            pollers: pollers.unwrap_or(1),
        })
    }
}

/// The ending of a FIFO queue's name, in lower case always.
pub(super) fn is_fifo(name: &str) -> bool {
    name.as_bytes().ends_with(b".fifo")
}

/// The queue that an ARN names.
fn arn(text: &str) -> Option<Queue> {
    let parts: Vec<&str> = text.split(':').collect();
    let ["arn", _, "sqs", _, account, name] = parts[..] else { return None };
    Some(Queue::Arn { account: account.to_owned(), name: name.to_owned() })
}

/// A queue by name, URL or ARN, and the region of an ARN.
fn named(text: &str) -> Result<(Queue, Option<String>)> {
    let (queue, region) = if text.starts_with("arn:") {
        let queue = arn(text).ok_or_else(|| {
            Error::config(format!(
                "queue={text:?} is not the ARN of a queue, which looks like arn:aws:sqs:REGION:ACCOUNT:NAME.fifo"
            ))
        })?;
        (queue, text.split(':').nth(3).map(str::to_owned))
    } else if text.contains("://") {
        (Queue::Url(text.to_owned()), None)
    } else {
        (Queue::Name(text.to_owned()), None)
    };
    let name = queue.name();
    let base = name.strip_suffix(".fifo").unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if base.is_empty() || !base.chars().all(is_plain) || name.len() > 80 {
        return Err(Error::config(format!(
            "{name:?} is not the name of a FIFO queue, which is 1 to 80 of A-Z a-z 0-9 _ - and ends in .fifo; a standard queue keeps \
             no order, so chains would break: name or create a FIFO queue, with `dejq migrate` for example"
        )));
    }
    Ok((queue, region))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Address> {
        let mut options = Options::default();
        options.add_query(url);
        let address = Address::parse(url, &mut options)?;
        options.finish().map(|()| address)
    }

    #[test]
    fn a_queue_is_named_by_url_option_or_arn() {
        let address =
            parse("sqs://eu-west-1/jobs.fifo?endpoint=http://127.0.0.1:1&pollers=2&wait_time=5&batch_size=1");
        let address = address.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(address.queue, Queue::Name("jobs.fifo".into()));
        assert_eq!(address.region.as_deref(), Some("eu-west-1"));
        assert_eq!((address.pollers, address.batch_size, address.wait_time.as_secs()), (2, 1, 5));
        for (url, name) in [
            ("sqs:///?queue=arn:aws:sqs:eu-west-1:123456789012:a.fifo", "a.fifo"),
            ("sqs://eu-west-1?queue=https://sqs.eu-west-1.amazonaws.com/123456789012/b.fifo", "b.fifo"),
            ("sqs:///c.fifo", "c.fifo"),
        ] {
            let address = parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(address.queue.name(), name);
        }
        let arn = parse("sqs:///?queue=arn:aws:sqs:eu-west-1:123456789012:a.fifo");
        assert_eq!(arn.map(|address| address.region).unwrap_or_default().as_deref(), Some("eu-west-1"));
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_what_to_type() {
        for (url, part) in [
            ("sqs://eu-west-1", "sqs://REGION/NAME.fifo"),
            ("sqs://eu-west-1/jobs", "ends in .fifo"),
            ("sqs://eu-west-1/.fifo", "ends in .fifo"),
            ("sqs://key:hunter2@eu-west-1/jobs.fifo", "holds no keys"),
            ("sqs://eu-west-1/jobs.fifo?wait_time=21", "from 0 to 20"),
            ("sqs://eu-west-1/jobs.fifo?batch_size=11", "from 1 to 10"),
            ("sqs://eu-west-1/jobs.fifo?pollers=0", "from 1 to 64"),
            ("sqs://eu-west-1/jobs.fifo?endpoint=localhost", "http://127.0.0.1:4566"),
            ("sqs://eu-west-1/?queue=arn:aws:sns:x", "arn:aws:sqs:REGION"),
            ("sqs://eu-west-1/jobs.fifo?poller=1", "did you mean \"pollers\""),
        ] {
            let text = parse(url).map_or_else(|error| error.to_string(), |_| "ok".to_owned());
            assert!(text.contains(part), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
