//! Acts as executor: by hand, one task at a time, or as an event loop that runs a handler on every task.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use dejq::job::Failure;
use dejq::worker::{Attempt, Counted, Flavour, StopReport, Task, Worker};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use crate::stage::within;

/// A worker and whoever runs its handlers.
#[derive(Debug, Clone)]
pub struct Executor {
    pub worker: Arc<Worker>,
    /// One per lane: fired by the worker.
    woken: Vec<Arc<Notify>>,
}

impl Executor {
    pub fn new(worker: Worker) -> Self {
        let woken: Vec<Arc<Notify>> = [Flavour::Sync, Flavour::Async]
            .into_iter()
            .filter_map(|flavour| worker.lane(flavour))
            .map(|lane| {
                let woken = Arc::new(Notify::new());
                let waker = Arc::clone(&woken);
                worker.set_waker(lane, Box::new(move || waker.notify_one()));
                woken
            })
            .collect();
        Self { worker: Arc::new(worker), woken }
    }

    /// Starts the next task of the first lane; waits for one.
    pub async fn take(&self) -> Arc<Task> {
        self.take_from(0).await
    }

    pub async fn take_from(&self, lane: usize) -> Arc<Task> {
        within("a task to start", async {
            loop {
                if let Some(task) = self.worker.try_next(lane) {
                    return task;
                }
                self.worker.idle();
                self.woken[lane].notified().await;
            }
        })
        .await
    }

    /// Waits until the worker wakes the executor of this flavour.
    pub async fn woken(&self, flavour: Flavour) {
        self.woken[self.worker.lane(flavour).unwrap()].notified().await;
    }

    pub async fn take_all(&self, count: usize) -> Vec<Arc<Task>> {
        let mut tasks = Vec::with_capacity(count);
        for _ in 0..count {
            tasks.push(self.take().await);
        }
        tasks
    }

    /// Starts a task of the first lane if there is one, and says which.
    pub fn take_now(&self) -> Option<Arc<Task>> {
        let task = self.worker.try_next(0);
        self.worker.idle();
        task
    }

    pub fn end(&self, task: Arc<Task>, attempt: Attempt) {
        self.worker.ended(task, attempt);
        self.worker.idle();
    }

    pub fn finish(&self, task: Arc<Task>) {
        self.end(task, Attempt::Finished);
    }

    pub fn fail(&self, task: Arc<Task>) {
        self.end(task, failed());
    }

    /// Runs `handler` on every task of every lane, as many at once as there are slots, until the worker is over.
    pub fn serve<F>(&self, handler: impl Fn(Arc<Task>) -> F + Clone + Send + 'static) -> Vec<JoinHandle<()>>
    where
        F: Future<Output = Attempt> + Send + 'static,
    {
        (0..self.woken.len())
            .map(|lane| {
                let (executor, handler) = (self.clone(), handler.clone());
                tokio::spawn(async move { executor.serve_lane(lane, handler).await })
            })
            .collect()
    }

    async fn serve_lane<F>(&self, lane: usize, handler: impl Fn(Arc<Task>) -> F)
    where
        F: Future<Output = Attempt> + Send + 'static,
    {
        let slots = self.worker.slots(lane);
        let mut running = JoinSet::new();
        while !self.worker.is_over(lane) {
            while running.len() < slots
                && let Some(task) = self.worker.try_next(lane)
            {
                let attempt = handler(Arc::clone(&task));
                running.spawn(async move { (task, attempt.await) });
            }
            self.worker.idle();
            tokio::select! {
                Some(ended) = running.join_next() => {
                    let (task, attempt) = ended.unwrap();
                    self.worker.ended(task, attempt);
                }
                () = self.woken[lane].notified() => {}
            }
        }
    }

    pub fn counted(&self) -> Counted {
        self.worker.counted()
    }

    /// Stops without a deadline, which must come to an end all the same.
    pub async fn stop(&self) -> StopReport {
        within("the stop", self.worker.stop(None)).await
    }

    pub async fn stop_by(&self, timeout: Duration) -> StopReport {
        within("the stop", self.worker.stop(Some(timeout))).await
    }
}

/// What a handler that raises leads to.
pub fn failed() -> Attempt {
    Attempt::Failed(Failure::new("ValueError", "a fault of the test"))
}
