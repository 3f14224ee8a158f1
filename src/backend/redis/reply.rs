//! What scripts answer, taken apart.

use redis::Value;

use super::errors::unreadable;
use crate::error::Result;

/// The values of a list.
pub(super) fn list(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(values) => Ok(values),
        Value::Nil => Ok(Vec::new()),
        _ => Err(unreadable("an answer")),
    }
}

/// A string, which need not be text.
pub(super) fn bytes(value: &Value) -> Result<&[u8]> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.as_bytes()),
        _ => Err(unreadable("a value")),
    }
}

/// A string that is text.
pub(super) fn text(value: &Value) -> Result<&str> {
    str::from_utf8(bytes(value)?).map_err(|_| unreadable("a text"))
}

/// A whole number, written as one or as text.
#[allow(clippy::needless_pass_by_value)] // what an iterator gives, or not
pub(super) fn number(value: Option<Value>) -> Result<i64> {
    match &value {
        Some(Value::Int(number)) => Ok(*number),
        Some(value) => text(value)?.parse().map_err(|_| unreadable("a number")),
        None => Err(unreadable("an answer")),
    }
}

/// The values of a list, two by two.
pub(super) fn pairs(value: Value) -> Result<Vec<(Value, Value)>> {
    let mut values = list(value)?.into_iter();
    let mut pairs = Vec::with_capacity(values.len() / 2);
    while let (Some(first), Some(second)) = (values.next(), values.next()) {
        pairs.push((first, second));
    }
    Ok(pairs)
}
