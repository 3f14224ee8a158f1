//! What a call to a server is for.

use std::error::Error as StdError;

use crate::error::{Error, ErrorKind};

/// A write whose answer is lost may have happened.
#[derive(Debug, Clone, Copy)]
pub enum Doing {
    Read(&'static str),
    Write(&'static str),
}

impl Doing {
    pub const fn what(self) -> &'static str {
        match self {
            Self::Read(what) | Self::Write(what) => what,
        }
    }

    /// The connection ended before the answer came, or the server is silent.
    pub fn broken(self, why: &str, source: impl StdError + Send + Sync + 'static) -> Error {
        let (kind, text) = match self {
            Self::Read(what) => (ErrorKind::Unavailable, format!("{what} failed: {why}")),
            Self::Write(what) => (
                ErrorKind::OutcomeUnknown,
                format!("{what}: no answer came ({why}), so it may or may not have happened"),
            ),
        };
        Error::new(kind, text).with_source(source)
    }
}
