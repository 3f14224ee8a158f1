//! What a worker has done since it started.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Live counters; relaxed, because nothing is decided by them.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: AtomicU64,)* }

        /// A reading of [`Counters`].
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counted { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// Reads all of them.
            pub fn read(&self) -> Counted {
                Counted { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl Counted {
            /// Names and values, for those who show them.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Claim calls that brought jobs.
    claims,
    /// Jobs claimed or handed off.
    claimed,
    /// Of these, handed off by a settle.
    handed_off,
    /// Handler calls.
    started,
    /// Jobs that ended as finished.
    finished,
    /// Jobs that ended as failed.
    failed,
    /// Attempts that will be repeated.
    retried,
    /// Jobs that ended as cancelled.
    cancelled,
    /// Attempts whose lease was no longer ours when they ended.
    lost,
    /// Jobs given back unstarted.
    given_back,
    /// Jobs of lost workers that this worker made ready again.
    rescued,
    /// Beats sent: one call for all leases.
    beats,
    /// Leases renewed by them.
    extended,
    /// Settle calls.
    settles,
    /// Handlers that used up `max_beats` and still occupy a slot.
    stuck,
    /// Calls to the store that failed and were tried again.
    store_errors,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}
