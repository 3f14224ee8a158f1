//! The end of a worker, in phases.
//!
//! 1. no more claims; a claim under way brings in what it has taken
//! 2. what nobody has started is given back, for others to start at once
//! 3. running handlers go on to their end, with beats, and what they report is stored
//! 4. at the deadline, if there is one, the rest is told to return and gets a moment to do so
//! 5. beats and settles end, executors are let go

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::keeper::cancel;
use super::settler::{LetGo, give_back};
use super::task::{Cancel, Task};
use super::{Counted, Shared};
use crate::backend::Lease;
use crate::log::{self, Verbosity};

/// What cancelled handlers get to return in: long enough for a coroutine's `finally`, short beside any timeout.
const CANCEL_GRACE: Duration = Duration::from_millis(500);

/// What a stop did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StopReport {
    /// Jobs whose handlers ended during the stop.
    pub finished: u64,
    /// Jobs given back unstarted, or cut short by the deadline.
    pub given_back: u64,
    /// Handlers that had not returned when the stop ended; their leases run out.
    pub abandoned: u64,
    /// The deadline came before the last handler returned.
    pub forced: bool,
}

pub(super) async fn run(
    shared: &Arc<Shared>,
    fetchers: Vec<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    mut deadline: watch::Receiver<Option<Instant>>,
) -> StopReport {
    let before = shared.counters.read(&shared.tally);
    say(|| "stop 1/5: no more claims".into());
    shared.stopping.cancel();
    give_back_unstarted(shared).await;
    join(fetchers).await;

    say(|| "stop 2/5: giving back what was not started".into());
    give_back_unstarted(shared).await;

    say(|| format!("stop 3/5: waiting for {} running jobs", shared.in_hand.len()));
    let forced = !empty_by(shared, &mut deadline).await;
    if forced {
        let running = shared.in_hand.all();
        say(|| format!("stop 4/5: out of time, {} running jobs are told to return", running.len()));
        for task in &running {
            cancel(shared, task, Cancel::Stopping);
        }
        let _ = timeout(CANCEL_GRACE, empty(shared)).await;
    }

    let abandoned = shared.in_hand.len() + shared.stuck();
    say(|| format!("stop 5/5: ending, {abandoned} handlers left behind"));
    shared.ended.cancel();
    for lane in &shared.lanes {
        lane.ready.close();
        lane.wake();
    }
    join(others).await;
    if abandoned == 0
        && let Err(error) = shared.backend.leave(shared.id).await
    {
        log::write(Verbosity::Errors, None, || {
            format!("the store was not told that this worker left: {error}")
        });
    }
    let after = shared.counters.read(&shared.tally);
    let ends = |counted: Counted| counted.finished + counted.failed + counted.retried + counted.cancelled;
    StopReport {
        finished: ends(after) - ends(before),
        given_back: after.given_back - before.given_back,
        abandoned: abandoned as u64,
        forced,
    }
}

async fn give_back_unstarted(shared: &Shared) {
    let tasks: Vec<Arc<Task>> = shared.lanes.iter().flat_map(|lane| lane.ready.drain()).collect();
    if tasks.is_empty() {
        return;
    }
    let leases: Vec<Lease> = tasks.iter().map(|task| task.lease).collect();
    let mut held = LetGo { shared, tasks, is_told: false };
    give_back(shared, &leases).await;
    held.is_told = true;
}

/// Waits until nothing is in hand; false when the deadline came first. The deadline may come nearer meanwhile.
async fn empty_by(shared: &Shared, deadline: &mut watch::Receiver<Option<Instant>>) -> bool {
    loop {
        let end = *deadline.borrow_and_update();
        let expired = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = empty(shared) => return true,
            () = expired => return false,
            // The sender lives in the worker that is being stopped.
            _ = deadline.changed() => {}
        }
    }
}

async fn empty(shared: &Shared) {
    loop {
        let mut emptied = std::pin::pin!(shared.emptied.notified());
        emptied.as_mut().enable();
        if shared.in_hand.len() == 0 && shared.outbox.is_empty() {
            return;
        }
        // A hand-off that was decided before the stop may still bring a job in.
        give_back_unstarted(shared).await;
        emptied.await;
    }
}

async fn join(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        // A panic inside was reported by its supervisor.
        let _ = task.await;
    }
}

fn say(message: impl FnOnce() -> String) {
    log::write(Verbosity::Worker, None, message);
}
