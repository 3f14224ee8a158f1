//! How leases are kept, and how messages are let go of.
//!
//! Everything that changes visibility takes turns: a beat that was under way must not overwrite the time after which a
//! job is to come again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Core;
use super::claim::{backoff, too_long};
use super::hand::{Hand, Held};
use super::link::{Verdicts, whole_seconds};
use super::settle::{MARGIN, MOST_HIDDEN};
use crate::backend::remote::Doing;
use crate::backend::{Lease, Revocation, WorkerId};
use crate::error::Result;
use crate::job::JobId;
use crate::log::{self, Verbosity};

const GIVING_BACK: Doing = Doing::Write("giving jobs back");

/// One message of a beat.
struct Beaten {
    group: Arc<str>,
    id: JobId,
    receipt: String,
    time: Duration,
}

impl Core {
    /// Renews all that this worker has in hand: what runs, and what waits behind it.
    pub async fn beat(
        &self,
        worker: WorkerId,
        leases: &[Lease],
        lease: Duration,
    ) -> Result<Vec<(Lease, Revocation)>> {
        let _turn = self.visibility.lock().await;
        let now = Instant::now();
        let time = Duration::from_secs(whole_seconds(lease).max(1) as u64);
        let mut revoked: Vec<Lease> = Vec::new();
        let (beaten, mut back) = self.list_for_beat(worker, leases, time, &mut revoked);
        let changes: Vec<(String, Duration)> =
            beaten.iter().map(|one| (one.receipt.clone(), one.time)).collect();
        let verdicts = if changes.is_empty() {
            Verdicts::default()
        } else {
            self.link.hide(Doing::Read("the heartbeat"), &changes).await?
        };
        {
            let mut hand = self.hand();
            let mut is_renewed = vec![true; beaten.len()];
            verdicts.unknown.iter().for_each(|at| is_renewed[*at] = false);
            for entry in &verdicts.refused {
                is_renewed[entry.place] = false;
                let one = &beaten[entry.place];
                // Not if its end has arrived meanwhile, or is under way and will be refused as well: what is behind it may run.
                let lost = hand
                    .of_receipt(&one.group, &one.receipt)
                    .filter(|held| entry.is_final && !held.is_ending())
                    .map(Held::lease);
                match lost {
                    None => {}
                    Some(Some(lease)) => {
                        revoked.push(lease);
                        back.extend(hand.drop_group(&one.group).into_iter().skip(1).map(|held| held.receipt));
                    }
                    Some(None) => back.extend(drop_from(&mut hand, &one.group, one.id)),
                }
            }
            for (one, _) in beaten.iter().zip(is_renewed).filter(|(_, is_renewed)| *is_renewed) {
                hand.renew(&one.group, one.id, &one.receipt, now, now + time);
            }
        }
        let back: Vec<(String, Duration)> =
            back.into_iter().map(|receipt| (receipt, Duration::ZERO)).collect();
        if !back.is_empty() {
            let _ = self.link.hide(GIVING_BACK, &back).await;
        }
        if let Some(error) = verdicts.error {
            return Err(error);
        }
        Ok(leases
            .iter()
            .filter(|lease| revoked.contains(lease))
            .map(|lease| (*lease, Revocation::Lost))
            .collect())
    }

    /// What is to be renewed; and receipts of what stands behind those whose 12 hours are over.
    fn list_for_beat(
        &self,
        worker: WorkerId,
        leases: &[Lease],
        time: Duration,
        revoked: &mut Vec<Lease>,
    ) -> (Vec<Beaten>, Vec<String>) {
        let now = Instant::now();
        let mut hand = self.hand();
        revoked.extend(leases.iter().filter(|lease| hand.find(**lease).is_none()));
        let mut ended: Vec<Arc<str>> = Vec::new();
        let mut beaten = Vec::new();
        for (group, held) in hand.kept_by(worker) {
            if ended.last() == Some(group) {
                continue;
            }
            if now + time + MARGIN > held.asked + MOST_HIDDEN {
                ended.push(Arc::clone(group));
                continue;
            }
            beaten.push(Beaten {
                group: Arc::clone(group),
                id: held.job.id,
                receipt: held.receipt.clone(),
                time: if held.is_out() { time } else { time + MARGIN },
            });
        }
        let mut back = Vec::new();
        for group in ended {
            // Messages of one receive end together; what came later goes back with them.
            beaten.retain(|one| one.group != group);
            for held in hand.drop_group(&group) {
                match held.lease() {
                    Some(lease) => {
                        revoked.push(lease);
                        tell_end(&held);
                    }
                    None => back.push(held.receipt),
                }
            }
        }
        (beaten, back)
    }

    pub async fn give_back_jobs(&self, leases: &[Lease]) -> Result<()> {
        let changes: Vec<(String, Duration)> = {
            let mut hand = self.hand();
            let mut changes = Vec::new();
            for lease in leases {
                let Some((group, head)) = hand.find(*lease) else { continue };
                let group = Arc::clone(group);
                // Nobody here knows its type: somebody else is given time to come for it.
                let time = if head.is_known { Duration::ZERO } else { backoff(head.receives) };
                changes.extend(returned(hand.drop_group(&group), time));
            }
            changes
        };
        if changes.is_empty() {
            return Ok(());
        }
        let _turn = self.visibility.lock().await;
        let verdicts = self.link.hide(GIVING_BACK, &changes).await?;
        verdicts.error.map_or(Ok(()), Err)
    }

    /// Gives back what this worker has not started, also what stands behind what it runs: there it is held back until the
    /// head has ended.
    pub async fn give_back_waiting(&self, worker: WorkerId) {
        let mut changes = Vec::new();
        {
            let mut hand = self.hand();
            for group in hand.groups_of(worker) {
                let waiting = hand.drop_waiting(&group);
                changes.extend(waiting.into_iter().map(|held| (held.receipt, Duration::ZERO)));
            }
        }
        self.let_go(changes).await;
    }

    /// Hides messages for these times, in this order. Should that fail, they come back when their leases run out.
    pub async fn let_go(&self, changes: Vec<(String, Duration)>) {
        if changes.is_empty() {
            return;
        }
        let _turn = self.visibility.lock().await;
        let failed = match self.link.hide(GIVING_BACK, &changes).await {
            Ok(verdicts) => verdicts.error,
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            log::write(Verbosity::Errors, None, || {
                format!(
                    "{} messages could not be given back, their leases will run out: {error}",
                    changes.len()
                )
            });
        }
    }

    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for leases that SQS cannot grant.
    pub fn check_lease(lease: Duration) -> Result<()> {
        if lease + MARGIN > MOST_HIDDEN { Err(too_long(lease)) } else { Ok(()) }
    }
}

/// A group goes back: its head after this time, and the rest so much later that the head comes first and alone.
fn returned(group: Vec<Held>, time: Duration) -> impl Iterator<Item = (String, Duration)> {
    group
        .into_iter()
        .enumerate()
        .map(move |(at, held)| (held.receipt, if at == 0 { time } else { time + MARGIN }))
}

/// Lets go of a message that is lost, and returns the receipts of those behind it, which must not start either.
fn drop_from(hand: &mut Hand, group: &str, id: JobId) -> Vec<String> {
    let ids: Vec<(JobId, String)> = hand
        .group(group)
        .skip_while(|held| held.job.id != id)
        .map(|held| (held.job.id, held.receipt.clone()))
        .collect();
    ids.into_iter()
        .enumerate()
        .filter_map(|(at, (id, receipt))| {
            hand.drop_one(group, id);
            (at > 0).then_some(receipt)
        })
        .collect()
}

fn tell_end(held: &Held) {
    log::write(Verbosity::Errors, Some(&held.job), || {
        format!(
            "{} has run for nearly 12 hours, and SQS hides a message no longer: its lease ends and another worker will get it; split the \
             job into a chain, or use PostgreSQL or Redis for jobs this long",
            held.job.job_type
        )
    });
}
