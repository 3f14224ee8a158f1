//! One reading of all metrics, and its text in the format that Prometheus reads (0.0.4). Processes of one worker send
//! each other this text, so it can be read back and added up.

use std::fmt::Write;

use rustc_hash::FxHashMap;

use super::families::{ALL, Family, Kind, Sum, of_sample};
use crate::worker::Histogram;

/// Types that have values of their own; the others are shown together. A label with more values is a burden to
/// every server that stores them.
pub const MOST_TYPES: usize = 100;
/// The label of the others: no job type has such characters.
pub const OTHER_TYPES: &str = "(other)";

/// Values by metric and labels.
#[derive(Debug, Clone, Default)]
pub struct Page {
    samples: Vec<Sample>,
    /// Where a sample stands, by its name and labels.
    places: FxHashMap<Box<str>, usize>,
}

#[derive(Debug, Clone)]
struct Sample {
    /// Place in `ALL`.
    family: usize,
    /// Name and labels.
    key: Box<str>,
    value: f64,
}

impl Page {
    /// Adds a value. `labels` are as they stand between the braces; empty for none.
    pub(super) fn add(&mut self, family: &'static Family, labels: &str, value: f64) {
        self.add_sample(family, "", labels, value);
    }

    /// Adds a histogram whose values and bounds are so many to one of its unit.
    pub(super) fn add_histogram<const N: usize>(
        &mut self,
        family: &'static Family,
        labels: &str,
        values: &Histogram<N>,
        per_unit: f64,
    ) {
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, count) in values.cumulative() {
            let labels = format!("{labels}{comma}le=\"{}\"", bound as f64 / per_unit);
            self.add_sample(family, "_bucket", &labels, count as f64);
        }
        self.add_sample(family, "_bucket", &format!("{labels}{comma}le=\"+Inf\""), values.count() as f64);
        self.add_sample(family, "_sum", labels, values.sum() as f64 / per_unit);
        self.add_sample(family, "_count", labels, values.count() as f64);
    }

    fn add_sample(&mut self, family: &'static Family, suffix: &str, labels: &str, value: f64) {
        let name = family.name;
        let key =
            if labels.is_empty() { format!("{name}{suffix}") } else { format!("{name}{suffix}{{{labels}}}") };
        if let Some(place) = of_sample(name) {
            self.put(place, key.into(), value);
        }
    }

    fn put(&mut self, family: usize, key: Box<str>, value: f64) {
        match self.places.get(&key) {
            None => {
                self.places.insert(key.clone(), self.samples.len());
                self.samples.push(Sample { family, key, value });
            }
            Some(&place) => {
                let there = &mut self.samples[place].value;
                *there = match ALL[family].sum {
                    Sum::Add => *there + value,
                    Sum::Most => there.max(value),
                };
            }
        }
    }

    /// Adds what another process has measured.
    pub(super) fn merge(&mut self, other: &Self) {
        for sample in &other.samples {
            self.put(sample.family, sample.key.clone(), sample.value);
        }
    }

    /// Without what was true at one moment only: what stays of a process that has ended.
    pub(super) fn without_gauges(mut self) -> Self {
        self.samples.retain(|sample| ALL[sample.family].kind != Kind::Gauge);
        self.places =
            self.samples.iter().enumerate().map(|(place, sample)| (sample.key.clone(), place)).collect();
        self
    }

    /// All values of a metric together; `None` when there is none.
    pub(super) fn total(&self, family: &'static Family) -> Option<f64> {
        let of = self.samples.iter().filter(|sample| ALL[sample.family] == family);
        of.map(|sample| sample.value).reduce(|sum, value| sum + value)
    }

    /// The text.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(64 * self.samples.len());
        for (place, family) in ALL.iter().enumerate() {
            let mut of = self.samples.iter().filter(|sample| sample.family == place).peekable();
            if of.peek().is_some() {
                let (name, kind) = (family.name, family.kind.as_str());
                let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", family.help);
            }
            for sample in of {
                let _ = writeln!(text, "{} {}", sample.key, sample.value);
            }
        }
        text
    }

    /// Reads what [`text`](Self::text) has written; what is no sample of ours is left out.
    pub(super) fn from_text(text: &str) -> Self {
        let mut page = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((key, value)) = line.rsplit_once(' ') else { continue };
            let name = key.split('{').next().unwrap_or_default();
            if let (Some(family), Ok(value)) = (of_sample(name), value.parse()) {
                page.put(family, key.into(), value);
            }
        }
        page
    }
}

/// The label of a type.
pub(super) fn type_label(job_type: &str) -> String {
    format!("type=\"{job_type}\"")
}

#[cfg(test)]
mod tests {
    use super::super::families::{DURATION, FINISHED, JOBS, READY};
    use super::*;
    use crate::worker::Durations;

    fn page(finished: f64) -> Page {
        let mut page = Page::default();
        page.add(&READY, "", 1.0);
        page.add(&FINISHED, &type_label("a"), finished);
        page.add(&JOBS, "state=\"ready\"", finished);
        let mut durations = Durations::new(&crate::worker::DURATIONS);
        durations.add(30_000_000);
        page.add_histogram(&DURATION, &type_label("a"), &durations, 1e9);
        page
    }

    #[test]
    fn the_text_is_what_prometheus_reads_and_reads_back() {
        let text = page(3.0).text();
        assert!(text.starts_with(
            "# HELP dejq_ready_processes Processes that have started and are not stopping.\n\
             # TYPE dejq_ready_processes gauge\ndejq_ready_processes 1\n"
        ));
        assert!(text.contains("\ndejq_jobs_finished_total{type=\"a\"} 3\n"), "{text}");
        assert!(text.contains("\ndejq_job_duration_seconds_bucket{type=\"a\",le=\"0.025\"} 0\n"), "{text}");
        assert!(text.contains("\ndejq_job_duration_seconds_bucket{type=\"a\",le=\"0.1\"} 1\n"), "{text}");
        assert!(text.contains("\ndejq_job_duration_seconds_sum{type=\"a\"} 0.03\n"), "{text}");
        assert_eq!(Page::from_text(&text).text(), text);
        assert_eq!(Page::from_text("python_info 1\nno sample\n\ndejq_jobs many\n").text(), "");
    }

    #[test]
    fn processes_add_up_and_what_is_the_same_for_all_counts_once() {
        let mut sum = page(3.0);
        sum.merge(&page(4.0));
        assert_eq!(sum.total(&FINISHED), Some(7.0));
        assert_eq!(sum.total(&READY), Some(2.0));
        assert_eq!(sum.total(&JOBS), Some(4.0));
        assert!(sum.text().contains("dejq_job_duration_seconds_count{type=\"a\"} 2"));
    }

    #[test]
    fn of_an_ended_process_the_counters_stay() {
        let mut left = page(3.0).without_gauges();
        assert_eq!((left.total(&READY), left.total(&FINISHED)), (None, Some(3.0)));
        left.merge(&page(1.0));
        assert_eq!((left.total(&READY), left.total(&FINISHED)), (Some(1.0), Some(4.0)));
    }
}
