//! Jobs run one after another on the calling thread.

use std::num::NonZeroU32;
use std::sync::Arc;

use dejq::backend::Backend;
use dejq::error::ErrorKind;
use dejq::job::{OnFailure, State};
use dejq::worker::{Attempt, HandlerSpec, Inline, WorkerConfig};

use crate::executor::failed;
use crate::faulty::{Call, Fault};
use crate::stage::{Stage, handlers, pass, spec};

fn inline(stage: &Stage, specs: impl IntoIterator<Item = HandlerSpec>) -> Inline {
    let backend: Arc<dyn Backend> = Arc::clone(&stage.store) as _;
    Inline::new(backend, handlers(specs), WorkerConfig::default())
}

#[tokio::test]
async fn a_chain_runs_in_order_and_then_there_is_nothing_more() {
    let stage = Stage::new();
    let ids = stage.chain(&["a", "b", "a"], OnFailure::Continue).await;
    stage.enqueue_one("unknown").await;
    let inline = inline(&stage, [spec("a"), spec("b")]);
    for (id, handler) in ids.iter().zip([0, 1, 0]) {
        let task = inline.next().await.unwrap().unwrap();
        assert_eq!((task.job.id, task.handler), (*id, handler));
        inline.ended(&task, Attempt::Finished).await.unwrap();
    }
    assert!(inline.next().await.unwrap().is_none());
    assert_eq!(stage.states(&ids).await, [State::Finished; 3]);
}

#[tokio::test(start_paused = true)]
async fn failures_follow_the_rules_of_the_worker() {
    let stage = Stage::new();
    let twice = HandlerSpec { max_attempts: NonZeroU32::new(2), ..spec("twice") };
    let inline = inline(&stage, [twice, spec("once")]);
    let (repeated, once) = (stage.enqueue_one("twice").await, stage.enqueue_one("once").await);
    for _ in 0..2 {
        let task = inline.next().await.unwrap().unwrap();
        inline.ended(&task, failed()).await.unwrap();
    }
    assert_eq!((stage.state(repeated).await, stage.state(once).await), (State::Scheduled, State::Failed));
    assert!(inline.next().await.unwrap().is_none(), "it never waits");
    pass(std::time::Duration::from_secs(2)).await;
    let again = inline.next().await.unwrap().unwrap();
    assert_eq!((again.job.id, again.job.attempt), (repeated, 2));
    inline.ended(&again, failed()).await.unwrap();
    assert_eq!(stage.state(repeated).await, State::Failed);
}

#[tokio::test]
async fn a_job_without_a_handler_is_given_back() {
    let stage = Stage::that_hands_out(&["a", "unknown"]);
    let id = stage.enqueue_one("unknown").await;
    assert!(inline(&stage, [spec("a")]).next().await.unwrap().is_none());
    assert_eq!((stage.state(id).await, stage.info(id).await.job.attempt), (State::Ready, 0));
}

#[tokio::test]
async fn errors_of_the_store_come_out() {
    let stage = Stage::new();
    stage.enqueue_one("a").await;
    let inline = inline(&stage, [spec("a")]);
    stage.store.next(Call::Claim, 1, &Fault::Fail);
    assert_eq!(*inline.next().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let task = inline.next().await.unwrap().unwrap();
    stage.store.next(Call::Settle, 1, &Fault::Fail);
    let error = inline.ended(&task, Attempt::Finished).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Unavailable);
}
