//! Thread interleavings of the ready queue, explored by shuttle: the queue's locks are shuttle's with the
//! feature of that name, so that every step between two threads is a choice of the explorer.
//!
//! ```sh
//! cargo test --features shuttle --test interleavings
//! ```
//!
//! A thread that waits for ever is a deadlock, which shuttle reports with the schedule that led there; that
//! is how a lost wake-up shows.

#![allow(clippy::unwrap_used)] // a test says what went wrong by panicking

use std::collections::HashSet;

use dejq::worker::ready::ReadyQueue;
use shuttle::sync::Arc;
use shuttle::thread::{JoinHandle, spawn};

/// Schedules per check and way of choosing them: all checks together take a few seconds.
const SCHEDULES: usize = 1_000;
/// Most changes of priority in one schedule of the second way (probabilistic concurrency testing).
const DEPTH: usize = 3;

/// Explores at random, which is good at the middle of things, and by priorities, which is good at threads that
/// are late for everything.
fn explore(check: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(check.clone(), SCHEDULES);
    shuttle::check_pct(check, SCHEDULES, DEPTH);
}

type Queue = Arc<ReadyQueue<u32>>;

fn producer(queue: &Queue, batches: Vec<Vec<u32>>) -> JoinHandle<()> {
    let queue = Arc::clone(queue);
    spawn(move || batches.into_iter().for_each(|batch| queue.push(batch)))
}

/// Takes until the queue is over.
fn consumer(queue: &Queue) -> JoinHandle<Vec<u32>> {
    let queue = Arc::clone(queue);
    spawn(move || std::iter::from_fn(|| queue.pop()).collect())
}

/// Takes exactly so many.
fn taker(queue: &Queue, count: usize) -> JoinHandle<Vec<u32>> {
    let queue = Arc::clone(queue);
    spawn(move || (0..count).map(|_| queue.pop().unwrap()).collect())
}

fn join<T>(threads: Vec<JoinHandle<Vec<T>>>) -> Vec<T> {
    threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
}

fn assert_each_once(taken: &[u32], pushed: u32) {
    let distinct: HashSet<u32> = taken.iter().copied().collect();
    assert_eq!((taken.len(), distinct.len()), (pushed as usize, pushed as usize), "{taken:?}");
}

#[test]
fn nothing_is_lost_or_doubled_between_producers_and_consumers() {
    explore(|| {
        let queue = Queue::default();
        let consumers = (0..3).map(|_| consumer(&queue)).collect();
        let producers = [vec![vec![0], vec![1, 2]], vec![vec![3, 4, 5], vec![], vec![6]]];
        for thread in producers.map(|batches| producer(&queue, batches)) {
            thread.join().unwrap();
        }
        queue.close();
        assert_each_once(&join(consumers), 7);
        assert!(queue.is_over());
    });
}

#[test]
fn one_consumer_gets_what_one_producer_pushed_in_order() {
    explore(|| {
        let queue = Queue::default();
        let thread = producer(&queue, vec![vec![0, 1], vec![2], vec![3, 4]]);
        assert_eq!(join(vec![taker(&queue, 5)]), [0, 1, 2, 3, 4]);
        thread.join().unwrap();
    });
}

#[test]
fn every_waiting_thread_is_woken_when_there_is_work_for_it() {
    explore(|| {
        let queue = Queue::default();
        let takers = (0..3).map(|_| taker(&queue, 1)).collect();
        queue.push([0, 1, 2]);
        assert_each_once(&join(takers), 3);
    });
}

#[test]
fn no_wake_up_is_lost_between_several_pushes() {
    explore(|| {
        let queue = Queue::default();
        let takers = (0..3).map(|_| taker(&queue, 2)).collect();
        let producers = [vec![vec![0], vec![1]], vec![vec![2, 3], vec![4], vec![5]]];
        let producers = producers.map(|batches| producer(&queue, batches));
        assert_each_once(&join(takers), 6);
        for thread in producers {
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_thread_that_takes_without_waiting_steals_no_wake_up() {
    explore(|| {
        let queue = Queue::default();
        let takers = (0..2).map(|_| taker(&queue, 2)).collect();
        // Puts back what it took, so that the others get everything in the end.
        let thief = {
            let queue = Arc::clone(&queue);
            spawn(move || (0..3).for_each(|_| queue.push(queue.try_pop())))
        };
        let thread = producer(&queue, vec![vec![0], vec![1], vec![2, 3]]);
        assert_each_once(&join(takers), 4);
        thief.join().unwrap();
        thread.join().unwrap();
    });
}

#[test]
fn what_is_drained_is_taken_by_nobody_else_and_the_other_way_round() {
    explore(|| {
        let queue = Queue::default();
        let consumers = (0..2).map(|_| consumer(&queue)).collect();
        let thread = producer(&queue, vec![vec![0, 1, 2], vec![3]]);
        let mut taken = queue.drain();
        thread.join().unwrap();
        taken.extend(queue.drain());
        queue.close();
        taken.extend(join(consumers));
        assert_each_once(&taken, 4);
    });
}

#[test]
fn closing_ends_every_thread_that_waits_or_is_about_to() {
    explore(|| {
        let queue = Queue::default();
        let consumers = (0..3).map(|_| consumer(&queue)).collect();
        queue.close();
        assert!(join(consumers).is_empty());
        assert!(queue.is_over() && queue.pop().is_none());
    });
}

#[test]
fn what_was_pushed_before_the_end_is_taken_before_the_end() {
    explore(|| {
        let queue = Queue::default();
        queue.push([0]);
        let consumers = (0..2).map(|_| consumer(&queue)).collect();
        queue.push([1, 2]);
        queue.close();
        assert_each_once(&join(consumers), 3);
    });
}

#[test]
fn closing_twice_and_from_two_threads_is_closing_once() {
    explore(|| {
        let queue = Queue::default();
        let consumers = vec![consumer(&queue)];
        let other = {
            let queue = Arc::clone(&queue);
            spawn(move || queue.close())
        };
        queue.close();
        other.join().unwrap();
        assert!(join(consumers).is_empty());
    });
}
