//! What stores with a server have in common.

// SQS alone needs less of it.
#![cfg_attr(not(any(feature = "postgres", feature = "redis")), allow(dead_code, unused_imports))]

#[cfg(any(feature = "postgres", feature = "redis"))]
mod clocks;
mod doing;
mod enqueuer;
mod sent;
mod stranded;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(super) mod tls;
mod types;

#[cfg(any(feature = "postgres", feature = "redis"))]
pub(super) use self::clocks::clocks;
pub(super) use self::doing::Doing;
pub(super) use self::enqueuer::{Answer, Batch, Enqueuer, Insert, PATIENCE};
pub(super) use self::stranded::Stranded;
pub(super) use self::types::{Types, distinct};
use crate::backend::Token;
use crate::job::{Failure, JobId};

impl Token {
    /// From a number that all jobs of a claim share: bound to the job, so that no lease passes for that of another.
    pub(crate) fn bound(id: JobId, shared: u64) -> Self {
        Self(shared ^ Self::salt(id))
    }

    /// The other way round.
    pub(crate) fn shared(self, id: JobId) -> u64 {
        self.0 ^ Self::salt(id)
    }

    /// The half of a `UUIDv7` that is random.
    fn salt(id: JobId) -> u64 {
        id.as_uuid().as_u64_pair().1
    }
}

impl Failure {
    /// As stores with a server keep it.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut value = serde_json::json!({ "kind": self.kind, "message": self.message });
        if let Some(traceback) = &self.traceback {
            value["traceback"] = traceback.as_str().into();
        }
        value.to_string().into_bytes()
    }

    /// The reverse of [`Failure::to_json`], or what can be made of what somebody else put there.
    pub(crate) fn from_json(json: &[u8]) -> Self {
        let value: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
        let text = |name: &str| value.get(name).and_then(|text| text.as_str()).map(str::to_owned);
        Self {
            kind: text("kind").unwrap_or_else(|| "unknown".to_owned()),
            message: text("message").unwrap_or_default(),
            traceback: text("traceback"),
        }
    }
}

/// Host and process: for people, never an identity.
pub(super) fn host_and_process() -> String {
    let host =
        std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    format!("{}:{}", host.as_deref().map_or("localhost", str::trim), std::process::id())
}
