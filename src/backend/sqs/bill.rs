//! What the queue costs: calls by kind, and the jobs they were for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of call, as AWS names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    SendMessageBatch,
    ReceiveMessage,
    DeleteMessageBatch,
    ChangeMessageVisibilityBatch,
    GetQueueAttributes,
    GetQueueUrl,
    CreateQueue,
}

impl Api {
    const ALL: [Self; 7] = [
        Self::SendMessageBatch,
        Self::ReceiveMessage,
        Self::DeleteMessageBatch,
        Self::ChangeMessageVisibilityBatch,
        Self::GetQueueAttributes,
        Self::GetQueueUrl,
        Self::CreateQueue,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::SendMessageBatch => "SendMessageBatch",
            Self::ReceiveMessage => "ReceiveMessage",
            Self::DeleteMessageBatch => "DeleteMessageBatch",
            Self::ChangeMessageVisibilityBatch => "ChangeMessageVisibilityBatch",
            Self::GetQueueAttributes => "GetQueueAttributes",
            Self::GetQueueUrl => "GetQueueUrl",
            Self::CreateQueue => "CreateQueue",
        }
    }
}

/// Counts since this client was made. A call that is repeated counts again, as it does on the bill.
#[derive(Debug, Default)]
pub(super) struct Bill {
    calls: [AtomicU64; Api::ALL.len()],
    pub enqueued: AtomicU64,
    pub ended: AtomicU64,
}

impl Bill {
    pub fn count(&self, api: Api) {
        self.calls[api as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn read(&self) -> crate::backend::Bill {
        let calls = |api: Api| self.calls[api as usize].load(Ordering::Relaxed);
        let calls: BTreeMap<&'static str, u64> = Api::ALL
            .into_iter()
            .map(|api| (api.name(), calls(api)))
            .filter(|(_, calls)| *calls > 0)
            .collect();
        crate::backend::Bill {
            calls,
            enqueued: self.enqueued.load(Ordering::Relaxed),
            ended: self.ended.load(Ordering::Relaxed),
        }
    }
}
