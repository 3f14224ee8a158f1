//! What the server or the way to it says, in words that help: which kind of error it is, and what to do.

use std::error::Error as _;

use tokio_postgres::error::{Error as PgError, Severity, SqlState};

use super::schema::Schema;
use crate::backend::remote::Doing;
use crate::error::{Error, ErrorKind};

/// The codes that functions of the schema raise.
const UNKNOWN_JOB: &str = "DQ001";
const WRONG_STATE: &str = "DQ002";

/// The error of a statement.
pub(super) fn explain(schema: &Schema, doing: Doing, error: PgError) -> Error {
    let Some(told) = error.as_db_error() else { return broken(doing, error) };
    let what = doing.what();
    let message = told.message();
    let (kind, text) = match told.code() {
        code if code.code() == UNKNOWN_JOB => (ErrorKind::UnknownJob, message.to_owned()),
        code if code.code() == WRONG_STATE => (ErrorKind::WrongState, message.to_owned()),
        _ if told.parsed_severity().is_some_and(|severity| severity != Severity::Error) => {
            return broken(doing, error);
        }
        &SqlState::UNDEFINED_TABLE | &SqlState::UNDEFINED_FUNCTION | &SqlState::INVALID_SCHEMA_NAME => {
            return missing(schema).with_source(error);
        }
        &SqlState::INSUFFICIENT_PRIVILEGE => (
            ErrorKind::Config,
            format!(
                "{what} failed: {message}; the role needs USAGE on the schema {:?} and rights on what is in it: \
                 docs/postgres.md has the GRANTs",
                schema.name()
            ),
        ),
        &SqlState::READ_ONLY_SQL_TRANSACTION => (
            ErrorKind::Unavailable,
            format!(
                "{what} failed: the server only reads ({message}); after a failover name all hosts in the URL and add \
                 target_session_attrs=read-write"
            ),
        ),
        &SqlState::DISK_FULL | &SqlState::OUT_OF_MEMORY => {
            (ErrorKind::Unavailable, format!("{what} failed: the server has no room left ({message})"))
        }
        code if is_passing(code) => (ErrorKind::Unavailable, format!("{what} failed: {message}")),
        code => (ErrorKind::Config, format!("{what} failed: {message} (SQLSTATE {})", code.code())),
    };
    Error::new(kind, text).with_source(error)
}

fn broken(doing: Doing, error: PgError) -> Error {
    let why = error
        .as_db_error()
        .map_or_else(|| "the connection broke".to_owned(), |told| told.message().to_owned());
    doing.broken(&why, error)
}

/// Classes of errors after which the same statement may well succeed: SQL standard and Postgres, appendix A.
fn is_passing(code: &SqlState) -> bool {
    let class = code.code().get(..2).unwrap_or_default();
    matches!(class, "08" | "40" | "53" | "55" | "57" | "58")
}

/// Does the connection lead to a server that cannot write, such as the primary of yesterday?
pub(super) fn is_wrong_server(error: &PgError) -> bool {
    error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
}

pub(super) fn is_undefined(error: &PgError) -> bool {
    matches!(error.code(), Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME))
}

/// Did something on the way to the server refuse the options that come with a connection? PgBouncer does: "unsupported
/// startup parameter".
pub(super) fn is_option_refused(error: &Error) -> bool {
    let told =
        error.source().and_then(|source| source.downcast_ref::<PgError>()).and_then(PgError::as_db_error);
    told.is_some_and(|told| {
        told.code() == &SqlState::PROTOCOL_VIOLATION || told.message().contains("startup parameter")
    })
}

/// Did a job have an id that is there already?
pub(super) fn is_duplicate(error: &Error) -> bool {
    let told = error.source().and_then(|source| source.downcast_ref::<PgError>());
    told.and_then(PgError::code) == Some(&SqlState::UNIQUE_VIOLATION)
}

pub(super) fn no_row(doing: Doing) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{} failed: the server answered with nothing", doing.what()))
}

pub(super) fn missing(schema: &Schema) -> Error {
    Error::new(
        ErrorKind::SchemaMissing,
        format!(
            "the database has no dejq schema {:?}, so there is nowhere to keep jobs; create it once with `dejq migrate` \
             or client.migrate()",
            schema.name()
        ),
    )
}

pub(super) fn outdated(schema: &Schema, version: i32, needed: i32) -> Error {
    Error::new(
        ErrorKind::SchemaOutdated,
        format!(
            "the schema {:?} has version {version} and this dejq needs {needed}; upgrade it with `dejq migrate` or \
             client.migrate(), which workers of the version before survive",
            schema.name()
        ),
    )
}

pub(super) fn too_new(schema: &Schema, version: i32, known: i32) -> Error {
    Error::new(
        ErrorKind::SchemaOutdated,
        format!(
            "the schema {:?} has version {version}, which clients that know only version {known} must not work with; \
             upgrade this dejq with `pip install -U dejq`",
            schema.name()
        ),
    )
}
