//! Jobs without a handler here, from a store that cannot filter: given back, told once, never dropped.

use std::time::Duration;

use dejq::backend::Backend;
use dejq::job::State;
use dejq::worker::Attempt;

use crate::faulty::Call;
use crate::logbook;
use crate::stage::{LEASE, Stage, pass, settle_down, slots, spec};

#[tokio::test(start_paused = true)]
async fn a_job_without_a_handler_waits_for_a_worker_that_has_one() {
    let stage = Stage::that_hands_out(&["known", "unknown"]);
    assert!(!stage.store.guarantees().filters_types);
    let id = stage.enqueue_one("unknown").await;
    let worker = stage.start([spec("known")], slots(2));
    pass(LEASE * 100).await;
    let info = stage.info(id).await;
    assert_eq!((info.job.attempt, info.rescues, info.failure), (0, 0, None));
    assert_eq!(worker.counted().started, 0);
    let other = stage.start([spec("unknown")], slots(1));
    other.serve(|_| async { Attempt::Finished });
    stage.until(id, State::Finished).await;
}

#[tokio::test(start_paused = true)]
async fn jobs_without_a_handler_do_not_keep_the_worker_spinning() {
    let stage = Stage::that_hands_out(&["known", "unknown"]);
    stage.enqueue("unknown", 3).await;
    let _worker = stage.start([spec("known")], slots(2));
    pass(Duration::from_secs(60)).await;
    let claims = stage.store.count(Call::Claim);
    assert!(claims < 30, "{claims} claims within a minute");
}

#[tokio::test(start_paused = true)]
async fn each_type_without_a_handler_is_told_once_with_what_to_do() {
    logbook::open();
    let stage = Stage::that_hands_out(&["known", "unknown", "odd"]);
    let first = stage.enqueue_one("unknown").await;
    let odd = stage.enqueue_one("odd").await;
    let _worker = stage.start([spec("known")], slots(5));
    pass(Duration::from_secs(600)).await;
    let second = stage.enqueue_one("unknown").await;
    pass(Duration::from_secs(600)).await;
    let (about_first, about_odd) = (logbook::about(first), logbook::about(odd));
    assert_eq!((about_first.len(), about_odd.len()), (1, 1), "{about_first:#?} {about_odd:#?}");
    assert!(
        about_first[0].contains("no handler for job type \"unknown\"") && about_first[0].contains("known")
    );
    assert_eq!(logbook::about(second), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn jobs_behind_those_without_a_handler_run_all_the_same() {
    let stage = Stage::that_hands_out(&["known", "unknown"]);
    let unknown = stage.enqueue("unknown", 3).await;
    let known = stage.enqueue("known", 20).await;
    let worker = stage.start([spec("known")], slots(5));
    worker.serve(|_| async { Attempt::Finished });
    stage.until_all(&known, State::Finished).await;
    settle_down().await;
    let counted = worker.counted();
    assert_eq!((counted.claimed, counted.finished, worker.worker.in_hand()), (20, 20, 0));
    assert_eq!(stage.info(unknown[0]).await.job.attempt, 0);
}
