//! What AWS or the way to it says, in words that help: which kind of error it is, and what to do.

use std::error::Error as StdError;
use std::io;

use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

use super::address::Address;
use crate::backend::remote::Doing;
use crate::error::{Error, ErrorKind};

const DENIED: &str = "AWS does not let these credentials do it";

/// Was it refused for want of rights?
pub(super) fn is_denied(error: &Error) -> bool {
    error.text().contains(DENIED)
}

/// The error of a call. `api` is its name in a policy of IAM.
pub(super) fn explain<E>(
    doing: Doing,
    api: &str,
    address: &Address,
    error: SdkError<E, HttpResponse>,
) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let what = doing.what();
    match &error {
        SdkError::ServiceError(context) => {
            let (code, status) =
                (context.err().code().unwrap_or_default().to_owned(), context.raw().status().as_u16());
            let message = context.err().message().unwrap_or("no reason given").to_owned();
            refused(doing, api, address, &code, status, &message).with_source(error)
        }
        SdkError::TimeoutError(_) => doing.broken("the server is silent", error),
        SdkError::ResponseError(_) => doing.broken("the answer cannot be read", error),
        SdkError::DispatchFailure(failure)
            if failure.is_user() || !(failure.is_io() || failure.is_timeout()) =>
        {
            let text = DisplayErrorContext(&error).to_string();
            if text.contains("redential") {
                return no_credentials(what).with_source(error);
            }
            unreachable_at(what, address, &error).with_source(error)
        }
        SdkError::DispatchFailure(_) if never_arrived(&error) => {
            unreachable_at(what, address, &error).with_source(error)
        }
        SdkError::DispatchFailure(_) => doing.broken("the connection broke", error),
        _ => {
            let text = DisplayErrorContext(&error).to_string();
            if text.contains("redential") {
                return no_credentials(what).with_source(error);
            }
            Error::config(format!("{what} failed before it was sent: {}", cause(&error))).with_source(error)
        }
    }
}

/// What the service answered instead of doing it.
fn refused(doing: Doing, api: &str, address: &Address, code: &str, status: u16, message: &str) -> Error {
    let what = doing.what();
    // `AWS.SimpleQueueService.NonExistentQueue` and `QueueDoesNotExist` are the same in two protocols.
    let word = code.rsplit(['.', '#']).next().unwrap_or(code);
    match word.trim_end_matches("Exception") {
        "QueueDoesNotExist" | "NonExistentQueue" => missing(what, address),
        "AccessDenied" | "KmsAccessDenied" => Error::config(format!(
            "{what} failed: {DENIED} ({message}); allow sqs:{api} on the queue, docs/sqs.md has the \
             whole policy"
        )),
        "InvalidClientTokenId"
        | "UnrecognizedClient"
        | "SignatureDoesNotMatch"
        | "InvalidSecurity"
        | "InvalidAccessKeyId"
        | "MissingAuthenticationToken"
        | "IncompleteSignature" => Error::config(format!(
            "{what} failed: AWS does not know these credentials ({word}: {message}); `aws sts get-caller-identity` shows which ones \
             are found, and profile= chooses others"
        )),
        "ExpiredToken" | "RequestExpired" => Error::new(
            ErrorKind::Unavailable,
            format!(
                "{what} failed: the credentials have expired ({message}); renew them, with `aws sso login` for example"
            ),
        ),
        "RequestThrottled"
        | "Throttling"
        | "ThrottledRequest"
        | "TooManyRequests"
        | "RequestLimitExceeded"
        | "KmsThrottled"
        | "OverLimit" => Error::new(
            ErrorKind::Unavailable,
            format!(
                "{what} failed: AWS takes no more such calls just now ({word}); high throughput mode of the queue raises the limit, see \
                     docs/sqs.md"
            ),
        ),
        "ServiceUnavailable" | "SlowDown" => {
            Error::new(ErrorKind::Unavailable, format!("{what} failed: SQS cannot answer just now ({word})"))
        }
        _ if status == 503 || status == 429 => Error::new(
            ErrorKind::Unavailable,
            format!("{what} failed: SQS cannot answer just now (HTTP {status})"),
        ),
        _ if status >= 500 => {
            doing.broken(&format!("SQS failed: HTTP {status} {word}"), io::Error::other(message.to_owned()))
        }
        _ => Error::config(format!("{what} failed: {word}: {message}")),
    }
}

/// The queue is not there.
pub(super) fn missing(what: &str, address: &Address) -> Error {
    Error::new(
        ErrorKind::SchemaMissing,
        format!(
            "{what} failed: there is no queue {address}, so there is nowhere to keep jobs; create it with `dejq migrate` or \
             client.create_queue(), or check name, region and account"
        ),
    )
}

fn no_credentials(what: &str) -> Error {
    Error::config(format!(
        "{what} failed: there are no AWS credentials here; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile with \
         profile=, or give this machine a role"
    ))
}

fn unreachable_at(what: &str, address: &Address, error: &(dyn StdError + 'static)) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "{what} failed: cannot reach SQS for {address}: {}; check endpoint, region and network",
            cause(error)
        ),
    )
}

/// Did the connection never come about?
fn never_arrived(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::AddrNotAvailable
            );
        }
        if error.to_string().contains("dns error") {
            return true;
        }
        next = error.source();
    }
    false
}

/// The innermost reason.
fn cause(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
