//! What a worker shows of itself: numbers for Prometheus and answers to probes, over HTTP. All of it runs on the
//! runtime and needs nothing that a handler could hold.
//!
//! ```text
//! worker, store ─→ Process ─page→ Page ─text→ http
//!                     └─ report ─→ Team (the supervisor's, which adds up its processes) ─→ http
//! ```

mod backlog;
mod enqueued;
mod families;
mod http;
mod page;
mod process;
mod team;

use async_trait::async_trait;

pub use families::{ALL, Family, Kind, Sum};
pub use http::{Server, bind};
pub use page::{MOST_TYPES, OTHER_TYPES, Page};
pub use process::Process;
pub use team::{Reporter, Team};

/// Who can be asked for metrics.
#[async_trait]
pub trait Source: std::fmt::Debug + Send + Sync + 'static {
    /// A reading. Answers within seconds, whatever the store or another process does.
    async fn page(&self, wanted: Wanted) -> Page;
}

/// What a page is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// What the process itself knows.
    Own,
    /// Also what is in the store, which has to be asked.
    WithStore,
}
