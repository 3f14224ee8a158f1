//! Which types a worker handles, and how. The callables themselves live with the executors, which find them
//! by the index given here.

use std::num::NonZeroU32;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::retry::Backoff;
use crate::error::{Error, Result};
use crate::job::JobType;

/// What runs a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// A plain function: one thread slot each.
    Sync,
    /// An `async def` function: all on one event loop.
    Async,
}

/// What the worker knows of a handler.
#[derive(Debug, Clone)]
pub struct HandlerSpec {
    /// The type it handles.
    pub job_type: JobType,
    /// What runs it.
    pub flavour: Flavour,
    /// Overrides the worker's setting.
    pub max_attempts: Option<NonZeroU32>,
    /// Overrides the worker's setting.
    pub backoff: Option<Backoff>,
    /// Longest run time of one attempt.
    pub timeout: Option<Duration>,
}

/// All handlers of a worker.
#[derive(Debug, Clone, Default)]
pub struct Handlers {
    specs: Vec<HandlerSpec>,
    by_type: FxHashMap<JobType, u32>,
}

impl Handlers {
    /// Adds a handler and returns its index.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) when the type has one already.
    pub fn add(&mut self, spec: HandlerSpec) -> Result<u32> {
        let index = self.specs.len() as u32;
        if self.by_type.contains_key(&spec.job_type) {
            return Err(Error::config(format!(
                "job type {:?} has a handler already; a type names exactly one handler, so give the second one \
                 a type of its own (for example {:?})",
                spec.job_type,
                format!("{}:v2", spec.job_type)
            )));
        }
        self.by_type.insert(spec.job_type.clone(), index);
        self.specs.push(spec);
        Ok(index)
    }

    /// The index of a type's handler.
    pub fn find(&self, job_type: &JobType) -> Option<u32> {
        self.by_type.get(job_type).copied()
    }

    /// The handler with this index, which must come from `add` or `find`.
    pub fn get(&self, index: u32) -> &HandlerSpec {
        &self.specs[index as usize]
    }

    /// Those of these types alone, and the places where they were.
    #[must_use]
    pub fn only(&self, types: &[JobType]) -> (Self, Vec<usize>) {
        let places = (0..self.specs.len()).filter(|place| types.contains(&self.specs[*place].job_type));
        let places: Vec<usize> = places.collect();
        let specs: Vec<HandlerSpec> = places.iter().map(|place| self.specs[*place].clone()).collect();
        let by_type =
            specs.iter().enumerate().map(|(index, spec)| (spec.job_type.clone(), index as u32)).collect();
        (Self { specs, by_type }, places)
    }

    /// All of them, by index.
    pub fn all(&self) -> &[HandlerSpec] {
        &self.specs
    }

    /// The types of one flavour.
    pub fn types(&self, flavour: Flavour) -> Vec<JobType> {
        self.specs.iter().filter(|spec| spec.flavour == flavour).map(|spec| spec.job_type.clone()).collect()
    }
}
