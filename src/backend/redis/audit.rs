//! Whether the queue contradicts itself, job by job, and setting it right.
//!
//! What is looked at goes by in parts, each of them in one script, so that the server serves others in between. Lists have
//! no index: which jobs should be in one is remembered until it was walked through, and who was not seen there is looked
//! for one by one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use redis::Value;

use super::RedisBackend;
use super::errors::unreadable;
use super::portion::Portion;
use super::script::{AUDIT, BOOKS, Call};
use super::{frame, reply};
use crate::backend::remote::Doing;
use crate::backend::{Finding, Level};
use crate::error::Result;
use crate::job::JobId;

/// Chains that one call looks at, each with all its jobs; and jobs that one call looks for through a list.
const FEW: usize = 20;
/// How many of those with the same problem are named.
const NAMED: usize = 3;

/// A kind of contradiction.
struct Kind {
    /// As `audit.lua` calls it.
    word: &'static str,
    what: &'static str,
    /// What a repair does about it, or what else to do.
    repair: std::result::Result<&'static str, &'static str>,
}

const KINDS: [Kind; 12] = [
    Kind { word: "nowhere", what: "jobs in no line, which never run", repair: Ok("puts them in line") },
    Kind {
        word: "twice",
        what: "jobs in two places, which may run twice",
        repair: Ok("leaves them where they were last"),
    },
    Kind {
        word: "stuck",
        what: "jobs that wait for one before them in their chain, where all of those are final",
        repair: Ok("lets them run"),
    },
    Kind {
        word: "chainless",
        what: "jobs that wait for one before them in a chain of which nothing is known any more",
        repair: Err("cancel them (`dejq cancel`), or finish them by hand and enqueue them anew"),
    },
    Kind {
        word: "worker",
        what: "workers with jobs that are not on the list of workers, so that nobody rescues those",
        repair: Ok("enters them as lost"),
    },
    Kind {
        word: "key held",
        what: "unique keys that no job holds which waits or runs, so that enqueue stores nothing",
        repair: Ok("frees them"),
    },
    Kind {
        word: "key free",
        what: "jobs that do not hold their unique key, so that it may be enqueued again",
        repair: Ok("gives it to them"),
    },
    Kind {
        word: "key taken",
        what: "jobs with a unique key that another job holds",
        repair: Err("cancel one of the two"),
    },
    Kind {
        word: "unkept",
        what: "final jobs that are not among those of which the oldest are forgotten, so that they stay for ever",
        repair: Ok("puts them there"),
    },
    Kind { word: "leftover", what: "entries without a job", repair: Ok("deletes them") },
    Kind {
        word: "chain",
        what: "chains with a wrong number of jobs that are kept",
        repair: Ok("counts anew"),
    },
    Kind {
        word: "unreadable",
        what: "entries that dejq did not write",
        repair: Err("docs/redis.md says what should be there; delete or mend them by hand"),
    },
];

/// A sum, or the count of a state and a type, that does not fit.
struct Difference {
    what: String,
    counted: i64,
    there: i64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, counted, there } = self;
        match what.as_str() {
            // All jobs on the one side, those of which it is known where they stand on the other.
            "jobs" => write!(f, "{counted} jobs are stored, and {there} stand somewhere"),
            "void" => write!(f, "{counted} entries of lines are counted as void, and there are {there}"),
            _ => write!(f, "{counted} are counted as {what}, and there are {there}"),
        }
    }
}

/// One way through all of the queue, and what was seen.
struct Way<'a> {
    store: &'a RedisBackend,
    repair: bool,
    /// How many jobs, by "state type".
    there: BTreeMap<String, u64>,
    /// What has a problem, by its word.
    problems: HashMap<String, Vec<String>>,
    void_tickets: i64,
    /// Jobs by the list in which they should be, until they are seen there.
    expected: BTreeMap<String, HashSet<JobId>>,
}

impl RedisBackend {
    pub(super) async fn audit_queue(&self, repair: bool) -> Result<Vec<Finding>> {
        let (_, counts, _) = self.sums().await?;
        let mut way = Way::through(self, repair, &counts).await?;
        let mut findings = Vec::new();
        if repair && !way.problems.is_empty() {
            // What was repaired is seen, and not believed.
            let again = Way::through(self, false, &counts).await?;
            way.problems.retain(|word, _| !again.problems.contains_key(word));
            findings.extend(way.findings(true));
            way = again;
        }
        findings.extend(way.findings(false));
        findings.extend(self.compare(repair, &counts, &way).await?);
        if findings.is_empty() {
            let jobs: u64 = way.there.values().sum();
            findings.push(finding(
                Level::Ok,
                format!("{jobs} jobs, each of them counted, and in one place only"),
                None,
            ));
        }
        Ok(findings)
    }

    /// Whether sums fit together, at a price that does not grow with the number of jobs.
    pub(super) async fn balance(&self) -> Result<Finding> {
        let (jobs, _, differences) = self.sums().await?;
        Ok(if differences.is_empty() {
            finding(Level::Ok, format!("{jobs} jobs, as many as are counted"), None)
        } else {
            let fix = "`dejq doctor --audit` looks at each job, and --repair sets it right";
            finding(Level::Error, told(&differences), Some(fix))
        })
    }

    /// How many jobs there are, their counts as the server has them, and sums that do not fit.
    async fn sums(&self) -> Result<(i64, Vec<Value>, Vec<Difference>)> {
        let answer = self.work.run(Doing::Read("counting jobs"), &BOOKS.call(&self.keys).arg("sums")).await?;
        let mut parts = reply::list(answer)?.into_iter();
        let jobs = reply::number(parts.next())?;
        let counts = reply::list(parts.next().unwrap_or(Value::Nil))?;
        Ok((jobs, counts, differences(parts.next().unwrap_or(Value::Nil))?))
    }

    /// Compares the counts, as they were before the way, with the jobs that were seen on it.
    async fn compare(&self, repair: bool, counts: &[Value], way: &Way<'_>) -> Result<Option<Finding>> {
        let mut call =
            BOOKS.call(&self.keys).arg(if repair { "repair" } else { "compare" }).arg(counts.len());
        for value in counts {
            call.push(reply::bytes(value)?);
        }
        call.push(way.void_tickets);
        for (name, number) in &way.there {
            call.push(name);
            call.push(*number);
        }
        let (differences, have_moved) = match self.work.run(doing(repair), &call).await? {
            // Then sums are all that can be compared.
            Value::Int(_) => (self.sums().await?.2, true),
            answer => (differences(answer)?, false),
        };
        if differences.is_empty() {
            return Ok(None);
        }
        let text = told(&differences);
        Ok(Some(match (repair, have_moved) {
            (true, false) => finding(Level::Warn, format!("{text}; repaired"), None),
            (false, false) => finding(Level::Error, text, Some("`dejq doctor --repair` counts anew")),
            (_, true) => {
                let fix = "jobs came or went meanwhile: stop workers and whatever enqueues, and try again";
                finding(Level::Error, text, Some(fix))
            }
        }))
    }
}

impl<'a> Way<'a> {
    async fn through(store: &'a RedisBackend, repair: bool, counts: &[Value]) -> Result<Self> {
        let (there, problems, expected) = <_>::default();
        let mut way = Self { store, repair, there, problems, void_tickets: 0, expected };
        way.look_at("worker").await?;
        // A key that is free by then may be given to the job that should have it.
        way.look_at("unique").await?;
        way.look_at("state").await?;
        way.look_at("job").await?;
        let counted = counts.iter().filter_map(|value| reply::text(value).ok());
        let names =
            counted.chain(way.there.keys().map(String::as_str)).filter_map(|name| name.split_once(' '));
        let types: BTreeSet<String> = names.map(|(_, job_type)| job_type.to_owned()).collect();
        way.look_at("finished").await?;
        for job_type in &types {
            way.look_at(&format!("fresh:{job_type}")).await?;
        }
        way.look_for_absent().await?;
        for place in ["due", "failed", "failure"] {
            way.look_at(place).await?;
        }
        for job_type in &types {
            way.look_at(&format!("back:{job_type}")).await?;
        }
        way.look_at("chain").await?;
        Ok(way)
    }

    /// At all of a key, part by part.
    async fn look_at(&mut self, place: &str) -> Result<()> {
        let mut cursor = "0".to_owned();
        let mut portion = Portion::first();
        loop {
            let most = if place == "chain" { FEW } else { portion.jobs() };
            let bytes;
            (cursor, bytes) = self.ask(place, |call| call.arg(&cursor).arg(most)).await?;
            portion.adapt(bytes);
            if cursor == "0" {
                return Ok(());
            }
        }
    }

    /// For those that were not seen where they should be.
    async fn look_for_absent(&mut self) -> Result<()> {
        for (list, ids) in std::mem::take(&mut self.expected) {
            let ids: Vec<JobId> = ids.into_iter().collect();
            for part in ids.chunks(FEW) {
                self.ask("absent", |mut call| {
                    call.push(&list);
                    for id in part {
                        call.push(&id.as_bytes()[..]);
                    }
                    call
                })
                .await?;
            }
        }
        Ok(())
    }

    /// One call, and what it answers; the next cursor, and how many bytes of jobs were read.
    async fn ask(&mut self, place: &str, more: impl FnOnce(Call) -> Call) -> Result<(String, usize)> {
        let call = AUDIT.call(&self.store.keys).arg(if self.repair { "repair" } else { "" }).arg(place);
        let answer = reply::list(self.store.work.run(doing(self.repair), &more(call)).await?)?;
        let [cursor, problems, jobs, present, void_tickets, bytes] =
            <[Value; 6]>::try_from(answer).map_err(|_| unreadable("an answer"))?;
        for (word, about) in reply::pairs(problems)? {
            let about = String::from_utf8_lossy(reply::bytes(&about)?).into_owned();
            self.problems.entry(reply::text(&word)?.to_owned()).or_default().push(about);
        }
        let mut jobs = reply::list(jobs)?.into_iter();
        while let (Some(list), Some(id), Some(name)) = (jobs.next(), jobs.next(), jobs.next()) {
            *self.there.entry(reply::text(&name)?.to_owned()).or_default() += 1;
            let list = reply::text(&list)?;
            if !list.is_empty() {
                self.expected.entry(list.to_owned()).or_default().insert(frame::id(reply::bytes(&id)?)?);
            }
        }
        self.void_tickets += reply::number(Some(void_tickets))?;
        if let Some(expected) = self.expected.get_mut(place) {
            for id in reply::list(present)? {
                expected.remove(&frame::id(reply::bytes(&id)?)?);
            }
        }
        Ok((reply::text(&cursor)?.to_owned(), reply::number(Some(bytes))?.max(0) as usize))
    }

    fn findings(&self, repaired: bool) -> impl Iterator<Item = Finding> {
        KINDS.iter().filter_map(move |kind| {
            let all = self.problems.get(kind.word)?;
            let named = all
                .iter()
                .take(NAMED)
                .map(|about| about.escape_debug().to_string())
                .collect::<Vec<_>>()
                .join(", ");
            let more = if all.len() > NAMED { ", …" } else { "" };
            let text = format!("{}: {} ({named}{more})", kind.what, all.len());
            Some(match (repaired, kind.repair) {
                (true, _) => finding(Level::Warn, format!("{text}; repaired"), None),
                (false, Ok(what)) => {
                    finding(Level::Error, text, Some(&format!("`dejq doctor --repair` {what}")))
                }
                (false, Err(fix)) => finding(Level::Error, text, Some(fix)),
            })
        })
    }
}

fn doing(repair: bool) -> Doing {
    if repair { Doing::Write("repairing the queue") } else { Doing::Read("an audit of the queue") }
}

fn told(differences: &[Difference]) -> String {
    let all: Vec<String> = differences.iter().map(Difference::to_string).collect();
    all.join("; ")
}

fn differences(answer: Value) -> Result<Vec<Difference>> {
    let mut values = reply::list(answer)?.into_iter();
    let mut all = Vec::new();
    while let Some(what) = values.next() {
        let what = reply::text(&what)?.to_owned();
        all.push(Difference {
            what,
            counted: reply::number(values.next())?,
            there: reply::number(values.next())?,
        });
    }
    Ok(all)
}

fn finding(level: Level, text: String, fix: Option<&str>) -> Finding {
    Finding { level, name: "books".to_owned(), text, fix: fix.map(str::to_owned) }
}
