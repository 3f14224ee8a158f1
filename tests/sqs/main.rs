//! What the SQS store does under the rules of FIFO queues, on the virtual clock: retries and dead letters, lost answers,
//! stops and crashes, and what it all costs. No emulator keeps all of these rules, so this is their authority.

#![allow(clippy::unwrap_used)] // a test that meets an error it does not expect has found one

#[path = "../support/sqs/mod.rs"]
mod fake;

mod chains;
mod cost;
mod dead_letters;
mod faults;
mod leases;
mod messages;
mod refusals;
mod stage;
