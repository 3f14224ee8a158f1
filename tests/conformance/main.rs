//! The proof of the contract in `dejq::backend`: every behaviour is written once and becomes one named test
//! for each store, such as `chain::a_chained_job_is_blocked_until_the_one_before_is_final::memory`.
//!
//! Tests see a queue only through the trait. What a store cannot do it says in its `Guarantees`; the test
//! then proves that it is refused.

#![allow(clippy::unwrap_used)] // a test that meets an error it does not expect has found one

#[path = "../support/mod.rs"]
mod support;

/// Turns each behaviour into a module with one test per store. A new store is one more line here and one
/// constructor in `tests/support/queue.rs`. After `where keeps_keys;`, stores that cannot do that prove how they say so instead.
macro_rules! for_every_backend {
    (where $can:ident; $($(#[$meta:meta])* async fn $behaviour:ident($queue:ident: TestQueue) $body:block)*) => {
        for_every_backend! {$(
            $(#[$meta])*
            async fn $behaviour($queue: TestQueue) { if $queue.$can().await $body }
        )*}
    };
    ($($(#[$meta:meta])* async fn $behaviour:ident($queue:ident: TestQueue) $body:block)*) => {$(
        $(#[$meta])*
        mod $behaviour {
            #[allow(unused_imports)]
            use super::*;

            use crate::support::{Store, TestQueue};

            async fn behaviour($queue: TestQueue) $body

            #[tokio::test(start_paused = true)]
            async fn memory() { behaviour(TestQueue::open(Store::Memory).await).await }

            #[tokio::test]
            async fn postgres() { behaviour(TestQueue::open(Store::Postgres).await).await }

            #[tokio::test]
            async fn redis() { behaviour(TestQueue::open(Store::Redis).await).await }

            #[tokio::test(start_paused = true)]
            async fn sqs() { behaviour(TestQueue::open(Store::Sqs).await).await }
        }
    )*};
}

mod chain;
mod claim;
mod delay;
mod enqueue;
mod give_back;
mod guarantees;
mod lease;
mod model;
mod operator;
mod settle;
mod stats;
mod unique;
