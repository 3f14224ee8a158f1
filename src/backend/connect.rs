//! From a URL and options to a backend: the only place that names them all.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::Backend;
use crate::backend::memory::{MemoryBackend, MemoryOptions};
#[cfg(feature = "postgres")]
use crate::backend::postgres::PostgresBackend;
#[cfg(feature = "redis")]
use crate::backend::redis::RedisBackend;
#[cfg(feature = "sqs")]
use crate::backend::sqs::SqsBackend;
use crate::error::{Error, Result};

/// Settings by name, as text: from the URL's query and, overriding it, from the caller.
///
/// Every part of dejq takes the names it knows; what is left at the end is a mistake and refused by
/// [`Options::finish`], with the name that was probably meant.
#[derive(Debug, Default)]
pub struct Options {
    given: BTreeMap<String, String>,
    known: Vec<&'static str>,
}

impl Options {
    /// Options given by the caller.
    pub fn new(given: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { given: given.into_iter().collect(), known: Vec::new() }
    }

    /// Adds what a URL's query says and nobody gave yet. A plus is a plus, as it is in libpq.
    pub fn add_query(&mut self, url: &str) {
        let query = url.split_once('?').map_or("", |(_, query)| query).replace('+', "%2B");
        for (name, value) in form_urlencoded::parse(query.as_bytes()).into_owned() {
            self.given.entry(name).or_insert(value);
        }
    }

    /// Takes an option that `parse` understands.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) naming the option, the value and what it must be.
    pub fn take<T>(
        &mut self,
        name: &'static str,
        must_be: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        self.known.push(name);
        let Some(value) = self.given.remove(name) else { return Ok(None) };
        match parse(&value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(Error::config(format!("option {name}={value:?} must be {must_be}"))),
        }
    }

    /// Takes a whole number of at least `least`.
    pub fn take_number<N: FromStr + PartialOrd + Display + Copy>(
        &mut self,
        name: &'static str,
        least: N,
    ) -> Result<Option<N>> {
        let must_be = format!("a whole number of at least {least}");
        self.take(name, &must_be, |text| text.parse().ok().filter(|number| *number >= least))
    }

    /// Takes seconds, with a fraction if need be, of at least `least`.
    pub fn take_seconds(&mut self, name: &'static str, least: Duration) -> Result<Option<Duration>> {
        let must_be = format!("a number of seconds of at least {}", least.as_secs_f64());
        self.take(name, &must_be, |text| {
            let seconds = text.parse::<f64>().ok()?;
            Duration::try_from_secs_f64(seconds).ok().filter(|duration| *duration >= least)
        })
    }

    /// Takes a yes or a no.
    pub fn take_bool(&mut self, name: &'static str) -> Result<Option<bool>> {
        self.take(name, "true or false", |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => None,
        })
    }

    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) when an option is left that nobody knows.
    pub fn finish(self) -> Result<()> {
        let Some(name) = self.given.into_keys().next() else { return Ok(()) };
        let mut known = self.known;
        known.sort_unstable();
        let meant =
            closest(&name, &known).map(|meant| format!("; did you mean {meant:?}?")).unwrap_or_default();
        Err(Error::config(format!("there is no option {name:?}{meant} Options here: {}", known.join(", "))))
    }
}

/// Opens the store that `url` names, taking the options that belong to it.
///
/// `memory://` is a queue of this client's own, `memory://name` one that clients of the process share; options:
/// `max_body` (bytes, default 1 MiB), `keep_finished` (jobs, default 1,000). `postgresql://…` is a schema of a
/// database; options: those of libpq, `schema` (default "dejq"), `max_body` (bytes, default 1 MiB), `keep_finished`
/// (default true), `retention` (seconds that finished jobs are kept, default for ever), `listen` (default true). `redis://…` (or `valkey://`, `rediss://`
/// and `valkeys://` for TLS, `redis+unix:///path`) is a queue in Redis or Valkey; options: `queue` (default "dejq"),
/// `durability` (memory, aof or replicas; default memory), `replicas` (default 1), `max_body` (bytes, default 1 MiB),
/// `keep_finished` and `keep_failed` (jobs, default 1,000 and 10,000), `allow_eviction` (default false), `username`,
/// `password`, `db`, `sentinel`, `sentinel_username`, `sentinel_password`, `sslrootcert`, `sslcert`, `sslkey`.
/// `sqs://region/name.fifo` is a FIFO queue of AWS SQS; options: `queue` (name, URL or ARN), `region`, `endpoint`, `profile`,
/// `wait_time` (whole seconds, 0 to 20, default 20), `batch_size` (1 to 10, default 10), `pollers` (1 to 64, default 1).
///
/// # Errors
/// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for an unknown scheme or a bad option. The text never
/// shows the URL, which may hold a password.
pub fn connect(url: &str, options: &mut Options) -> Result<Arc<dyn Backend>> {
    let (scheme, rest) = url.split_once("://").ok_or_else(|| unknown_scheme(None))?;
    let place = rest.split_once('?').map_or(rest, |(place, _)| place);
    options.add_query(url);
    match scheme {
        "memory" => {
            let mut memory = MemoryOptions::default();
            if let Some(bytes) = options.take_number("max_body", 1)? {
                memory.max_body = bytes;
            }
            if let Some(jobs) = options.take_number("keep_finished", 0)? {
                memory.keep_finished = jobs;
            }
            let is_named = !place.is_empty();
            Ok(if is_named { MemoryBackend::named(place, memory) } else { MemoryBackend::new(memory) })
        }
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => Ok(PostgresBackend::open(url, options)?),
        #[cfg(feature = "redis")]
        "redis" | "rediss" | "redis+unix" | "valkey" | "valkeys" | "valkey+unix" => {
            Ok(RedisBackend::open(url, options)?)
        }
        #[cfg(feature = "sqs")]
        "sqs" => Ok(SqsBackend::open(url, options)?),
        other => Err(unknown_scheme(Some(other))),
    }
}

const SCHEMES: &[&str] = &[
    "memory",
    #[cfg(feature = "postgres")]
    "postgresql",
    #[cfg(feature = "redis")]
    "redis",
    #[cfg(feature = "redis")]
    "rediss",
    #[cfg(feature = "sqs")]
    "sqs",
];

fn unknown_scheme(scheme: Option<&str>) -> Error {
    let known = format!("this build of dejq knows {}://", SCHEMES.join("://, "));
    Error::config(match scheme {
        None => format!("a store is named by a URL like memory:// and this one has no \"://\"; {known}"),
        Some(scheme) => {
            let shown: String = scheme.chars().take(20).collect();
            let meant = closest(scheme, SCHEMES).map(|meant| format!("; did you mean {meant}://?"));
            format!("there is no store with the scheme {shown:?}{}; {known}", meant.unwrap_or_default())
        }
    })
}

/// The candidate that a slip of the finger could have turned into `name`.
fn closest<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|candidate| (edit_distance(name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, one row at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let cost = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(url: &str) -> String {
        let mut options = Options::default();
        match connect(url, &mut options).and_then(|_| options.finish()) {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_bad_url_or_option_is_refused_with_what_to_type() {
        for (url, part) in [
            ("memory", "no \"://\""),
            ("memry://", "did you mean memory://?"),
            ("mysql://user:hunter2@host/db", "no store with the scheme \"mysql\""),
            #[cfg(feature = "sqs")]
            ("sqs://key:hunter2@eu-west-1/jobs.fifo", "holds no keys"),
            #[cfg(feature = "postgres")]
            ("postgrsql://user:hunter2@host/db", "did you mean postgresql://?"),
            ("memory://?max_bdy=1", "did you mean \"max_body\""),
            ("memory://?max_body=-1", "must be a whole number of at least 1"),
            ("memory://?max_body=lots", "max_body=\"lots\""),
        ] {
            let text = text_of(url);
            assert!(text.contains(part), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{url}: {text}");
        }
        assert_eq!(text_of("memory://?max_body=10&keep_finished=0"), "ok");
    }

    #[test]
    fn a_name_stands_for_one_queue_and_no_name_for_a_new_one() {
        let open = |url| connect(url, &mut Options::default()).unwrap_or_else(|error| panic!("{error}"));
        let shared = open("memory://shared");
        assert!(Arc::ptr_eq(&shared, &open("memory://shared")));
        assert!(!Arc::ptr_eq(&open("memory://"), &open("memory://")));
    }
}
