//! What the server or the way to it says, in words that help: which kind of error it is, and what to do.

use redis::{ErrorKind as Kind, RedisError};

use crate::backend::remote::Doing;
use crate::error::{Error, ErrorKind};

/// The words in which servers say no; a script's own error has them somewhere in its text.
const CODES: [&str; 18] = [
    "OOM",
    "READONLY",
    "LOADING",
    "BUSY",
    "MISCONF",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "ASK",
    "MOVED",
    "NOREPLICAS",
    "WRONGTYPE",
    "NOPERM",
    "NOAUTH",
    "WRONGPASS",
    "NOSCRIPT",
    "UNKILLABLE",
    "UNBLOCKED",
];

/// What a script's own error says instead of such a word.
const IN_SCRIPTS: [(&str, &str); 3] = [
    // A slot on the move, see base.lua.
    ("non local key", "TRYAGAIN"),
    // Valkey, and Redis from 7.2 on; and the older ones.
    ("ACL failure in script", "NOPERM"),
    ("The user executing the script", "NOPERM"),
];

/// The word for what went wrong on the server.
pub(super) fn code(error: &RedisError) -> &str {
    let own = error.code().unwrap_or_default();
    let known = |word: &str| CODES.iter().copied().find(|code| *code == word);
    if let Some(code) = known(own) {
        return code;
    }
    // Of several commands, the first one that was refused says why.
    let errors = error.clone().into_server_errors();
    if let Some(code) = errors.iter().flat_map(|all| all.iter()).find_map(|(_, error)| known(error.code())) {
        return code;
    }
    let text = error.detail().unwrap_or_default();
    if let Some((_, code)) = IN_SCRIPTS.iter().find(|(said, _)| text.contains(said)) {
        return code;
    }
    text.split(|c: char| !c.is_ascii_uppercase()).find_map(known).unwrap_or(own)
}

/// The error of a call.
pub(super) fn explain(doing: Doing, error: RedisError) -> Error {
    if is_broken(&error) {
        return broken(doing, error);
    }
    let what = doing.what();
    let told = told(&error);
    let (kind, text) = match code(&error) {
        "OOM" => (
            ErrorKind::Unavailable,
            format!(
                "{what} failed: the server has no memory left ({told}); raise maxmemory or let workers empty the queue, \
                 which they still can"
            ),
        ),
        "READONLY" | "MASTERDOWN" => (
            ErrorKind::Unavailable,
            format!(
                "{what} failed: the server is a replica and only reads ({told}); name the primary in the URL, or the \
                 sentinels with ?sentinel=NAME, which follows a failover"
            ),
        ),
        "NOPERM" => (
            ErrorKind::Config,
            format!(
                "{what} failed: {told}; docs/redis.md has the list of what the user of dejq must be allowed"
            ),
        ),
        "NOAUTH" | "WRONGPASS" => (ErrorKind::Config, refused(&told)),
        "WRONGTYPE" => (
            ErrorKind::Config,
            format!(
                "{what} failed: a key of this queue holds something else than dejq put there ({told}); docs/redis.md \
                 lists the keys, delete or rename the one that is not ours, or use another queue"
            ),
        ),
        "LOADING" | "BUSY" | "MISCONF" | "CLUSTERDOWN" | "TRYAGAIN" | "ASK" | "MOVED" | "NOREPLICAS"
        | "NOSCRIPT" | "UNKILLABLE" | "UNBLOCKED" => {
            (ErrorKind::Unavailable, format!("{what} failed: {told}"))
        }
        _ if error.kind() == Kind::AuthenticationFailed => (ErrorKind::Config, refused(&told)),
        _ => (ErrorKind::Config, format!("{what} failed: {told}")),
    };
    Error::new(kind, text).with_source(error)
}

fn refused(told: &str) -> String {
    format!(
        "the server does not let this user in ({told}); check user and password, written redis://USER:PASSWORD@HOST"
    )
}

/// What the server said, without our wrapping.
pub(super) fn told(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) if !detail.starts_with(code) => format!("{code} {detail}"),
        (_, Some(detail)) => detail.to_owned(),
        _ => error.to_string(),
    }
}

/// Is the server's memory full, which no waiting mends?
pub(super) fn is_full(error: &Error) -> bool {
    source(error).is_some_and(|error| code(error) == "OOM")
}

pub(super) fn is_unknown_command(error: &Error) -> bool {
    source(error).is_some_and(|error| told(error).contains("unknown command"))
}

fn source(error: &Error) -> Option<&RedisError> {
    std::error::Error::source(error).and_then(|source| source.downcast_ref())
}

/// Did the connection end, or is it silent, so that nobody knows what became of the call?
pub(super) fn is_broken(error: &RedisError) -> bool {
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped() || error.kind() == Kind::Parse
}

/// Does the connection lead to a server that cannot do it, such as the primary of yesterday?
pub(super) fn is_wrong_server(error: &RedisError) -> bool {
    matches!(code(error), "READONLY" | "MASTERDOWN" | "MOVED" | "LOADING" | "CLUSTERDOWN")
}

fn broken(doing: Doing, error: RedisError) -> Error {
    let why = if error.is_timeout() {
        "the server is silent".to_owned()
    } else {
        format!("the connection broke: {}", told(&error))
    };
    doing.broken(&why, error)
}

/// An answer that this version of dejq cannot read.
pub(super) fn unreadable(what: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!(
            "{what} in Redis is not what this version of dejq expects; were keys of the queue changed by hand? \
             docs/redis.md says what they hold"
        ),
    )
}
