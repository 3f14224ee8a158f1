//! Job types as a store answers with them: by name.

use std::borrow::Cow;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::error::Result;
use crate::job::JobType;

/// The types that were asked for, by name, so that all jobs of one share it.
pub struct Types<'a> {
    asked: &'a [JobType],
    /// Made when there are two types for the first time.
    by_name: FxHashMap<&'a str, &'a JobType>,
    last: Option<JobType>,
}

impl<'a> Types<'a> {
    pub fn of(asked: &'a [JobType]) -> Self {
        Self { asked, by_name: FxHashMap::default(), last: asked.first().cloned() }
    }

    /// Neighbours often have the same one.
    pub fn find(&mut self, name: &str) -> Result<JobType> {
        if let Some(last) = self.last.as_ref().filter(|last| last.as_str() == name) {
            return Ok(last.clone());
        }
        if self.by_name.is_empty() {
            self.by_name.extend(self.asked.iter().map(|asked| (asked.as_str(), asked)));
        }
        let found =
            self.by_name.get(name).map_or_else(|| JobType::new(name), |asked| Ok((*asked).clone()))?;
        Ok(self.last.insert(found).clone())
    }
}

/// Each type once, or no job would know which of the two it belongs to.
pub fn distinct(types: &[JobType]) -> Cow<'_, [JobType]> {
    let mut seen = FxHashSet::default();
    if types.iter().all(|job_type| seen.insert(job_type)) {
        return Cow::Borrowed(types);
    }
    seen.clear();
    Cow::Owned(types.iter().filter(|job_type| seen.insert(*job_type)).cloned().collect())
}
