//! dejq: a very simple job queue for Python with a Rust engine.
//!
//! ```text
//! job, error  ←  backend (trait + one folder each)  ←  worker (loop, beats, settle, stop)  ←  metrics  ←  py (the seam)
//! ```
//!
//! Each layer knows only those to its left. `py` exists with the cargo feature `python` and is the only one
//! that knows Python; the layers below build, test and run without it.

pub mod backend;
pub mod error;
pub mod job;
pub mod log;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(feature = "python")]
mod py;
pub mod worker;
