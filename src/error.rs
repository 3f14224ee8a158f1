//! The one error type of the crate: a public kind, a text that helps, and the cause.

use std::error::Error as StdError;
use std::fmt;

use crate::job::JobId;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller has to tell apart. Each kind is one Python exception and one code
/// (`docs/errors.md`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option, URL, type or handler is wrong. Trying again will not help.
    Config,
    /// The store cannot be reached or cannot answer just now. Trying again may help.
    Unavailable,
    /// A write was sent and its answer was lost: it may or may not have happened.
    OutcomeUnknown,
    /// A body is not JSON as dejq understands it, or does not fit the type that was asked for.
    Body,
    /// A body is larger than the store takes.
    BodyTooLarge {
        /// Bytes of the body as JSON.
        size: usize,
        /// Most bytes the store takes.
        limit: usize,
    },
    /// A call was stored in part: some of its jobs are in the store and some are not.
    ChainBroken {
        /// Ids of those that are stored.
        sent: Vec<JobId>,
        /// Ids of the others.
        unsent: Vec<JobId>,
    },
    /// No job has this id.
    UnknownJob,
    /// The job or the client is not in a state that allows the operation.
    WrongState,
    /// This store cannot do it.
    NotSupported,
    /// The store has no dejq schema yet.
    SchemaMissing,
    /// The store's schema is older than this version needs.
    SchemaOutdated,
    /// The client was stopped.
    Stopped,
    /// The client was made in another process and came here by `fork`.
    Forked,
}

impl ErrorKind {
    /// The stable code that texts start with and `docs/errors.md` lists.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Config => "DEJQ-E100",
            Self::Body => "DEJQ-E110",
            Self::BodyTooLarge { .. } => "DEJQ-E111",
            Self::ChainBroken { .. } => "DEJQ-E112",
            Self::UnknownJob => "DEJQ-E120",
            Self::WrongState => "DEJQ-E121",
            Self::NotSupported => "DEJQ-E130",
            Self::Unavailable => "DEJQ-E200",
            Self::OutcomeUnknown => "DEJQ-E201",
            Self::SchemaMissing => "DEJQ-E210",
            Self::SchemaOutdated => "DEJQ-E211",
            Self::Stopped => "DEJQ-E300",
            Self::Forked => "DEJQ-E301",
        }
    }
}

/// An operation that failed. `Display` says what, where, why it matters and what to do next, and never
/// contains a password or a body.
pub struct Error {
    kind: ErrorKind,
    text: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` whose text a user can act on.
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), source: None }
    }

    /// [`ErrorKind::Config`]: what is wrong and what to type instead.
    pub fn config(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, text)
    }

    /// [`ErrorKind::NotSupported`] for an operation that `store` has no way to do.
    pub fn not_supported(operation: &str, store: &str, why: &str) -> Self {
        Self::new(ErrorKind::NotSupported, format!("{operation} is not possible on {store}: {why}"))
    }

    /// [`ErrorKind::UnknownJob`] for an id that a store does not have.
    pub fn unknown_job(id: impl fmt::Display) -> Self {
        let text =
            format!("there is no job {id}; it was never enqueued here, or finished long ago and was deleted");
        Self::new(ErrorKind::UnknownJob, text)
    }

    /// Keeps the cause, for `source()` and Python's `__cause__`.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub const fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The text without the code.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// May the same call succeed when it is tried again? What the worker's loops ask before they do.
    pub const fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::OutcomeUnknown)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.code(), self.text)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error").field("kind", &self.kind).field("text", &self.text).finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_starts_with_the_code_and_the_cause_is_kept() {
        let error =
            Error::new(ErrorKind::Unavailable, "no answer").with_source(std::io::Error::other("reset"));
        assert_eq!(error.to_string(), "DEJQ-E200 no answer");
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("reset"));
        assert!(error.is_transient());
        assert!(!Error::config("bad").is_transient());
    }
}
