//! The engine without servers and without Python: the memory store behind a layer of faults, and tests that
//! act as executors. Most run on a paused clock, so that hours of leases pass in milliseconds; those that are
//! about threads use real ones and wait for events with a deadline.
//!
//! ```text
//! test ─enqueue→ FaultyBackend ─→ MemoryBackend
//!                     ↑ claim, extend, settle
//! test ←─take── Worker ←─ended── test
//! ```

// The ready queue's locks are shuttle's with that feature, and work in its own tests only.
#![cfg(not(feature = "shuttle"))]
// A test says what went wrong by panicking; its names and its file say what it is about.
#![allow(clippy::unwrap_used, missing_docs)]

mod executor;
mod faulty;
mod logbook;
mod stage;

mod beats;
mod chains;
mod counters;
mod ends;
mod handlers;
mod inline;
mod leases;
mod limits;
#[cfg(feature = "metrics")]
mod metrics;
mod observed;
mod operators;
mod panics;
mod rescue;
mod retries;
mod slots;
mod stopping;
mod store_errors;
mod storm;
mod stuck;
mod threads;
mod timeouts;
mod unknown_types;
