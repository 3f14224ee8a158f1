//! A store that can do only what every store must, and holds nothing.

use std::time::Duration;

use async_trait::async_trait;
use dejq::backend::{
    Backend, Claim, Guarantees, HandOff, Lease, Leased, Rescued, Revocation, SettleReply, Settled, Stats,
    WorkerId,
};
use dejq::error::Result;
use dejq::job::{JobId, NewJob};

/// Implements what the trait requires and leaves the rest to its defaults.
#[derive(Debug)]
pub struct Bare;

#[async_trait]
impl Backend for Bare {
    fn guarantees(&self) -> Guarantees {
        Guarantees {
            store: "bare",
            durable: false,
            filters_types: false,
            in_process: true,
            inspects: false,
            transactions: false,
            stores_whole_calls: true,
            keeps_keys: true,
            counts_attempts: true,
            tells_rescues: true,
            counts_exactly: true,
            hands_over_always: true,
            entries_per_call: None,
            max_lease: None,
            max_delay: None,
            max_body: 10,
        }
    }

    async fn enqueue(&self, _: &[NewJob]) -> Result<Vec<JobId>> {
        Ok(Vec::new())
    }

    async fn claim(&self, _: &Claim<'_>) -> Result<Vec<Leased>> {
        Ok(Vec::new())
    }

    async fn extend(&self, _: WorkerId, _: &[Lease], _: Duration) -> Result<Vec<(Lease, Revocation)>> {
        Ok(Vec::new())
    }

    async fn settle(&self, _: &[Settled], _: &HandOff<'_>) -> Result<SettleReply> {
        Ok(SettleReply::default())
    }

    async fn give_back(&self, _: &[Lease]) -> Result<()> {
        Ok(())
    }

    async fn rescue(&self, _: u32) -> Result<Rescued> {
        Ok(Rescued::default())
    }

    async fn stats(&self) -> Result<Stats> {
        Ok(Stats::default())
    }
}
