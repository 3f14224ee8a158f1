//! Tasks that wait for an executor: one shared queue per lane, so that nothing is parked behind a slow handler.
//!
//! An executor takes one task at a time, and only waits (without the interpreter lock) when there is none;
//! the fetcher adds whole batches. One short lock each, no spinning: on one or two cores executors and the
//! runtime share a CPU, and who spins keeps the other from doing what it waits for.

use std::collections::VecDeque;
use std::sync::PoisonError;

#[cfg(feature = "shuttle")]
use shuttle::sync::{Condvar, Mutex};
#[cfg(not(feature = "shuttle"))]
use std::sync::{Condvar, Mutex};

/// A queue that many threads take from.
#[derive(Debug)]
pub struct ReadyQueue<T> {
    state: Mutex<State<T>>,
    pushed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    queue: VecDeque<T>,
    waiting: usize,
    is_closed: bool,
}

impl<T> Default for ReadyQueue<T> {
    fn default() -> Self {
        let state = State { queue: VecDeque::new(), waiting: 0, is_closed: false };
        Self { state: Mutex::new(state), pushed: Condvar::new() }
    }
}

impl<T> ReadyQueue<T> {
    /// Adds a batch and wakes as many waiting threads as there is work for.
    pub fn push(&self, batch: impl IntoIterator<Item = T>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.queue.len();
        state.queue.extend(batch);
        let wake = state.waiting.min(state.queue.len() - before);
        drop(state);
        for _ in 0..wake {
            self.pushed.notify_one();
        }
    }

    /// Takes the first, if there is one. Never waits.
    pub fn try_pop(&self) -> Option<T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).queue.pop_front()
    }

    /// Takes the first, waiting for one. `None` once the queue is closed and empty.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(first) = state.queue.pop_front() {
                return Some(first);
            }
            if state.is_closed {
                return None;
            }
            state.waiting += 1;
            state = self.pushed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
    }

    /// Takes everything that nobody has started.
    pub fn drain(&self) -> Vec<T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).queue.drain(..).collect()
    }

    /// Ends the waiting: `pop` returns what is left, then `None`.
    pub fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.pushed.notify_all();
    }

    /// Is the queue closed and empty: will `pop` return `None`?
    pub fn is_over(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_closed && state.queue.is_empty()
    }
}
