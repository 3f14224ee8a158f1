//! What a worker has done since it started.

use std::sync::atomic::{AtomicU64, Ordering};

use super::tally::Tally;

macro_rules! counters {
    (
        worker { $($(#[$doc:meta])* $name:ident,)* }
        types { $($(#[$type_doc:meta])* $of_type:ident,)* }
    ) => {
        /// Live counters; relaxed, because nothing is decided by them. Those of types are in the `Tally`.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: AtomicU64,)* }

        /// A reading of all counters, those of types added up.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counted {
            $($(#[$type_doc])* pub $of_type: u64,)*
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(super) fn read(&self, tally: &Tally) -> Counted {
                let sums = tally.sums();
                Counted {
                    $($of_type: sums.$of_type,)*
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }

        impl Counted {
            /// Names and values, for those who show them.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($of_type), self.$of_type),)* $((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    worker {
        /// Claim calls that brought jobs.
        claims,
        /// Jobs claimed or handed off.
        claimed,
        /// Of these, handed off by a settle.
        handed_off,
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
    types {
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
    }
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}
