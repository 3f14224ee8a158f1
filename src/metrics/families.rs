//! Every metric: its name, what it means, and how those of several processes become one. `docs/metrics.md` and
//! `docs/grafana.json` are checked against this list.

/// A metric with its labels' values.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// As Prometheus wants names: the unit at the end, counters end in `_total`.
    pub name: &'static str,
    /// What it counts or shows.
    pub kind: Kind,
    /// One line about it.
    pub help: &'static str,
    /// What several processes of one worker make of it.
    pub sum: Sum,
}

/// The types of Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// How the values of several processes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// They add up.
    Add,
    /// The largest counts: what is worst, or the same for all.
    Most,
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Counter, help, sum: Sum::Add }
}

const fn gauge(name: &'static str, sum: Sum, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, help, sum }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Histogram, help, sum: Sum::Add }
}

macro_rules! families {
    ($($name:ident = $family:expr;)*) => {
        $(pub(super) static $name: Family = $family;)*
        /// All of them, in the order of the page.
        pub static ALL: &[&Family] = &[$(&$name),*];
    };
}

families! {
    INFO = gauge("dejq_info", Sum::Most, "Always 1; the labels say which version works on which store.");
    READY = gauge("dejq_ready_processes", Sum::Add, "Processes that have started and are not stopping.");
    RESTARTS = counter("dejq_process_restarts_total", "Processes that the supervisor has started in place of others.");

    ENQUEUED = counter("dejq_jobs_enqueued_total", "Jobs stored by this process.");
    STARTED = counter("dejq_jobs_started_total", "Handler calls.");
    FINISHED = counter("dejq_jobs_finished_total", "Jobs that ended well.");
    FAILED = counter("dejq_jobs_failed_total", "Jobs that failed for good.");
    RETRIED = counter("dejq_jobs_retried_total", "Attempts that failed and will be repeated.");
    CANCELLED = counter("dejq_jobs_cancelled_total", "Jobs that an operator or max_beats ended.");
    LOST = counter("dejq_leases_lost_total", "Attempts whose lease was no longer this worker's when they ended.");
    GIVEN_BACK = counter("dejq_jobs_given_back_total", "Jobs given back unstarted, or cut short by a stop.");
    RESCUED = counter("dejq_jobs_rescued_total", "Jobs of lost workers that this worker made ready again.");
    STORE_ERRORS = counter("dejq_store_errors_total", "Calls to the store that failed and were tried again.");

    DURATION = histogram("dejq_job_duration_seconds", "How long handlers ran.");
    WAIT = histogram("dejq_job_wait_seconds", "From the enqueue to the first start, of first jobs of chains; with delays.");
    BATCH = histogram("dejq_settle_batch_jobs", "Ended attempts that were stored together.");

    SLOTS = gauge("dejq_slots", Sum::Add, "Handlers that may run at once.");
    SLOTS_IN_USE = gauge("dejq_slots_in_use", Sum::Add, "Handlers that run, stuck ones among them.");
    STUCK = gauge("dejq_slots_stuck", Sum::Add, "Handlers that go on although max_beats has ended their job.");
    BEAT_LATENESS = gauge(
        "dejq_beat_lateness_seconds", Sum::Most,
        "How overdue the heartbeat is; at twice the heartbeat other workers take over the jobs."
    );

    STORE_UP = gauge("dejq_store_up", Sum::Most, "Has the store answered when it was last asked for its counts?");
    JOBS = gauge("dejq_jobs", Sum::Most, "Jobs in the store.");
    OLDEST = gauge("dejq_oldest_ready_seconds", Sum::Most, "Age of the oldest job that waits for a worker.");
    WORKERS = gauge("dejq_workers", Sum::Most, "Workers on this store that are alive.");
}

/// The family of a sample, whose name may have a suffix.
pub(super) fn of_sample(name: &str) -> Option<usize> {
    let position = |name: &str| ALL.iter().position(|family| family.name == name);
    position(name).or_else(|| {
        ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| position(name.strip_suffix(suffix)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_the_rules_of_prometheus() {
        for (place, family) in ALL.iter().enumerate() {
            assert_eq!(of_sample(family.name), Some(place), "{} is there twice", family.name);
            assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
            assert!(family.name.starts_with("dejq_") && family.help.ends_with(['.', '?']), "{}", family.name);
        }
        assert_eq!(of_sample("dejq_job_wait_seconds_bucket"), of_sample("dejq_job_wait_seconds"));
        assert_eq!(of_sample("python_info"), None);
    }

    #[test]
    fn the_docs_list_every_metric_with_its_kind_and_no_other() {
        let docs = include_str!("../../docs/metrics.md");
        let listed: Vec<(&str, &str)> = docs
            .lines()
            .filter_map(|line| line.strip_prefix("| `dejq_"))
            .map(|row| {
                (row.split('`').next().unwrap_or_default(), row.split(" | ").nth(1).unwrap_or_default())
            })
            .collect();
        let all: Vec<(&str, &str)> =
            ALL.iter().map(|family| (&family.name["dejq_".len()..], family.kind.as_str())).collect();
        assert_eq!(listed, all);
    }
}
