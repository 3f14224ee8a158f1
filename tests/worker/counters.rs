//! The counters say what happened, and add up.

use std::num::NonZeroU32;
use std::time::Duration;

use dejq::job::{Failure, OnFailure};
use dejq::worker::{Attempt, Counted, HandlerSpec};

use crate::executor::failed;
use crate::stage::{Stage, pass, settle_down, slots, spec, within};

#[tokio::test(start_paused = true)]
async fn every_claimed_job_is_counted_once_at_its_end() {
    let stage = Stage::new();
    for names in [["good", "bad", "good"], ["odd", "good", "bad"], ["again", "odd", "again"]] {
        for _ in 0..30 {
            stage.chain(&names, OnFailure::Continue).await;
        }
    }
    stage.enqueue("good", 100).await;
    let twice = HandlerSpec { max_attempts: NonZeroU32::new(2), ..spec("again") };
    let worker = stage.start([spec("good"), spec("bad"), spec("odd"), twice], slots(5));
    worker.serve(|task| async move {
        pass(Duration::from_millis(10)).await;
        match task.job.job_type.as_str() {
            "good" => Attempt::Finished,
            "odd" => Attempt::Discarded(Failure::new("Discard", "odd")),
            _ => failed(),
        }
    });
    let all = 3 * 30 * 3 + 100;
    let is_done = async || {
        let total = stage.stats().await.total;
        total.finished.unwrap() + total.failed.unwrap() == all
    };
    within("all jobs", stage.store.until(is_done)).await;
    settle_down().await;
    let counted = worker.counted();
    let total = stage.stats().await.total;
    assert_eq!((Some(counted.finished), Some(counted.failed)), (total.finished, total.failed));
    assert_eq!((counted.finished, counted.failed, counted.retried), (190, 180, 60));
    assert_eq!(counted.claimed, all + 60, "each job once, and those that are repeated twice");
    assert_eq!(counted.started, counted.claimed);
    assert_eq!(ends(counted), counted.claimed);
    assert_eq!((counted.lost, counted.given_back, counted.stuck, counted.store_errors), (0, 0, 0, 0));
    assert!(counted.handed_off >= 120 && counted.handed_off < counted.claimed, "{counted:?}");
}

#[tokio::test(start_paused = true)]
async fn counters_add_up_when_a_stop_cuts_in() {
    let stage = Stage::new();
    stage.enqueue("a", 100).await;
    let worker = stage.start([spec("a")], slots(10));
    let mut tasks = worker.take_all(6).await;
    let late = tasks.split_off(3);
    for task in tasks {
        worker.finish(task);
    }
    settle_down().await;
    let stopping = tokio::spawn({
        let worker = worker.clone();
        async move { worker.stop().await }
    });
    settle_down().await;
    for task in late {
        worker.fail(task);
    }
    let report = stopping.await.unwrap();
    let counted = worker.counted();
    assert_eq!((counted.finished, counted.failed, counted.started), (3, 3, 6));
    assert_eq!(report.finished, 3);
    assert_eq!(counted.claimed, 6 + counted.given_back);
    assert_eq!(report.given_back, counted.given_back);
    assert!(counted.given_back >= 7);
}

#[test]
fn counters_can_be_shown_by_name() {
    let counted = Counted { claims: 1, store_errors: 2, ..Counted::default() };
    let shown: Vec<_> = counted.iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!((counted.iter().count(), shown), (16, vec![("claims", 1), ("store_errors", 2)]));
}

/// Ways in which a claimed job leaves a worker.
fn ends(counted: Counted) -> u64 {
    counted.finished
        + counted.failed
        + counted.retried
        + counted.cancelled
        + counted.lost
        + counted.given_back
}
