//! What a store says about itself, and how it refuses what it cannot do.

use std::time::Duration;

use dejq::backend::{Backend, Filter, check_sizes};
use dejq::error::ErrorKind;
use dejq::job::{Body, JobId, NewJob};

use crate::support::{Bare, assert_refused, job};

for_every_backend! {
    async fn a_store_has_a_word_for_messages(queue: TestQueue) {
        assert!(!queue.backend.guarantees().store.is_empty());
    }

    async fn a_store_takes_bodies_as_large_as_those_of_a_usual_job(queue: TestQueue) {
        assert!(queue.backend.guarantees().max_body >= 128 * 1024);
    }

    async fn what_operators_do_works_or_is_refused_clearly(queue: TestQueue) {
        if let Some(operator) = queue.operator().await {
            let unknown = JobId::generate();
            assert_refused(operator.get(unknown).await, &ErrorKind::UnknownJob, unknown);
        }
    }

    async fn a_store_can_be_migrated_again_and_again(queue: TestQueue) {
        queue.enqueue("a").await;
        queue.backend.migrate().await.unwrap();
        assert_eq!(queue.backend.migrate().await.unwrap(), [] as [String; 0]);
        queue.take("a").await;
    }

    async fn a_healthy_store_has_no_error_to_report(queue: TestQueue) {
        let findings = queue.backend.check().await.unwrap();
        assert!(findings.iter().all(|finding| finding.level != dejq::backend::Level::Error), "{findings:?}");
    }

    async fn a_vacuum_keeps_every_job(queue: TestQueue) {
        queue.put(&[job("a"), job("b"), job("a")]).await;
        queue.finish(&queue.take("a").await).await;
        queue.backend.vacuum().await.unwrap();
        assert_eq!(queue.claim(&["a", "b"], 10).await.len(), 2);
    }
}

#[tokio::test]
async fn what_a_store_does_not_implement_is_refused_with_its_name() {
    let (id, age) = (JobId::generate(), Duration::ZERO);
    let refused = &ErrorKind::NotSupported;
    assert_refused(Bare.get(id).await, refused, "looking up a job is not possible on bare");
    assert_refused(Bare.list(&Filter::default()).await, refused, "listing jobs is not possible on bare");
    assert_refused(
        Bare.unresponsive(age).await,
        refused,
        "finding unresponsive jobs is not possible on bare",
    );
    assert_refused(Bare.finish(id).await, refused, "finishing a job by hand is not possible on bare");
    assert_refused(Bare.requeue(id).await, refused, "requeueing a job is not possible on bare");
    assert_refused(Bare.cancel(id).await, refused, "cancelling a job is not possible on bare");
    assert_refused(
        Bare.delete_finished(age, 1).await,
        refused,
        "deleting finished jobs is not possible on bare",
    );
    assert_refused(Bare.promote().await, refused, "before their time is not possible on bare");
}

#[test]
fn the_size_limit_is_that_of_the_store_and_counts_bytes() {
    let of = |json: &str| NewJob { body: Body::from_json(json.as_bytes()).unwrap(), ..job("a") };
    let guarantees = Bare.guarantees();
    check_sizes(&guarantees, &[]).unwrap();
    check_sizes(&guarantees, &[of("\"12345678\""), of("\"żółw\"")]).unwrap();
    let error = check_sizes(&guarantees, &[of("1"), of("\"żółwia\"")]).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::BodyTooLarge { size: 11, limit: 10 });
}
