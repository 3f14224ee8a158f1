//! When SQS handed messages out, by our own clock.
//!
//! A lease runs from that moment, and a long poll does not say when in its twenty seconds it was. Usually its answer is here at
//! once. An answer that was held up, by a network that stalled or because this process was stopped, looks just the same; to
//! count from its arrival would be to believe in a lease that is over, and to start a job that another worker has. The
//! date of the answer tells them apart.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_sqs::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_sqs::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_sqs::error::BoxError;
use aws_smithy_types::date_time::{DateTime, Format};
use tokio::time::Instant;

/// Dates are in whole seconds.
const BLUR: f64 = 1.0;

/// What the clock of SQS showed when an answer came that nothing had held up.
#[derive(Debug, Default)]
pub(super) struct Dates(Mutex<Option<(Instant, i64)>>);

/// A question that was answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered {
    pub sent: Instant,
    /// For how long SQS was to wait for something to answer with.
    pub wait: Duration,
    /// Had it nothing, so that it waited for all of that?
    pub is_empty: bool,
    /// In seconds since 1970.
    pub date: Option<i64>,
}

impl Dates {
    /// When the answer left SQS; earlier by up to two seconds if it was held up.
    pub fn left_at(&self, answered: Answered) -> Instant {
        let Answered { sent, wait, is_empty, date } = answered;
        let now = Instant::now();
        // It answers when the wait is over at the latest.
        let blur = Duration::from_secs_f64(BLUR);
        let latest = now.min(sent + wait + blur);
        let Some(date) = date else { return latest };
        let took = now - sent;
        let is_prompt = took < blur || is_empty && took < wait + blur;
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // In seconds by our clock, and by that of SQS.
        let held = shown.map(|(at, then)| (now - at).as_secs_f64() - (date - then) as f64);
        match held {
            _ if is_prompt => *shown = Some((now, date)),
            // Nothing is held up for longer than it took: one of the clocks was set.
            Some(held) if held > took.as_secs_f64() + BLUR || held < -BLUR => *shown = Some((now, date)),
            Some(held) if held > BLUR => {
                return latest.min(now - took.min(Duration::from_secs_f64(held + BLUR)));
            }
            _ => {}
        }
        latest
    }
}

/// Picks the date from one answer.
#[derive(Debug, Clone, Default)]
pub(super) struct DateOf(Arc<AtomicI64>);

impl DateOf {
    /// In seconds since 1970, if the answer had one.
    pub fn read(&self) -> Option<i64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|date| *date > 0)
    }
}

impl Intercept for DateOf {
    fn name(&self) -> &'static str {
        "DateOf"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let text = context.response().headers().get("date");
        let date = text.and_then(|text| DateTime::from_str(text, Format::HttpDate).ok());
        self.0.store(date.map_or(0, |date| date.secs()), Ordering::Relaxed);
        Ok(())
    }
}
