//! Looking into the queue, and stepping in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redis::Value;

use super::RedisBackend;
use super::errors::unreadable;
use super::frame::{self, from_micros, micros};
use super::portion::Portion;
use super::reply;
use super::script::{DELETE, INFO, OPERATE, PROMOTE, SCAN, STATS};
use crate::backend::remote::{Doing, Types};
use crate::backend::{Counts, Filter, Stats, Totals};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{Failure, JobId, JobInfo, State};

/// Final jobs that one call deletes at most: how long the server may be busy with it.
const DELETED: usize = 1000;
/// Jobs that one call brings.
const BROUGHT: usize = 100;

impl RedisBackend {
    pub(super) async fn get_job(&self, id: JobId) -> Result<JobInfo> {
        let mut found = self.infos("looking up a job", &[id]).await?;
        found.pop().ok_or_else(|| Error::unknown_job(id))
    }

    /// What is known of these jobs; those that are gone are left out.
    async fn infos(&self, doing: &'static str, ids: &[JobId]) -> Result<Vec<JobInfo>> {
        let mut infos = Vec::with_capacity(ids.len());
        for part in ids.chunks(BROUGHT) {
            let mut call = INFO.call(&self.keys);
            for id in part {
                call.push(&id.as_bytes()[..]);
            }
            let mut values = reply::list(self.work.run(Doing::Read(doing), &call).await?)?.into_iter();
            let mut next = || values.next();
            while let (Some(id), Some(job), Some(state), Some(record), Some(beat), Some(failure)) =
                (next(), next(), next(), next(), next(), next())
            {
                infos.push(info(&id, &job, &state, &record, beat, &failure)?);
            }
        }
        Ok(infos)
    }

    pub(super) async fn list_jobs(&self, filter: &Filter) -> Result<Vec<JobInfo>> {
        let doing = "listing jobs";
        if filter.limit == 0 {
            return Ok(Vec::new());
        }
        let newest = match filter.older_than {
            None => String::new(),
            Some(age) => self.now().await?.saturating_sub(micros(age)).to_string(),
        };
        // The smallest ids, as many as are asked for.
        let mut found: BTreeSet<JobId> = BTreeSet::new();
        let mut cursor = "0".to_owned();
        let mut portion = Portion::first();
        loop {
            let call = SCAN
                .call(&self.keys)
                .arg(place_of(filter.state))
                .arg(&cursor)
                .arg(portion.jobs())
                .arg(filter.state.map(State::as_str).unwrap_or_default())
                .arg(filter.job_type.as_deref().unwrap_or_default())
                .arg(&newest)
                .arg(filter.after.map(|id| id.as_bytes().to_vec()).unwrap_or_default());
            let mut values = reply::list(self.work.run(Doing::Read(doing), &call).await?)?.into_iter();
            let next = values.next().ok_or_else(|| unreadable("an answer"))?;
            portion.adapt(reply::number(values.next())?.max(0) as usize);
            for id in values {
                // A hash that grows or shrinks meanwhile may name a job twice.
                found.insert(frame::id(reply::bytes(&id)?)?);
                if found.len() > filter.limit {
                    found.pop_last();
                }
            }
            reply::text(&next)?.clone_into(&mut cursor);
            if cursor == "0" {
                break;
            }
        }
        self.infos(doing, &found.into_iter().collect::<Vec<_>>()).await
    }

    pub(super) async fn unresponsive_jobs(&self, older_than: Duration) -> Result<Vec<JobInfo>> {
        let running = Filter { state: Some(State::Running), limit: usize::MAX, ..Filter::default() };
        let newest = from_micros(self.now().await?.saturating_sub(micros(older_than)));
        let mut silent = self.list_jobs(&running).await?;
        silent.retain(|info| info.last_beat_at.is_some_and(|beat| beat <= newest));
        Ok(silent)
    }

    /// The server's time in microseconds.
    pub(super) async fn now(&self) -> Result<u64> {
        let answer = self.work.command(Doing::Read("asking for the time"), &redis::cmd("TIME")).await?;
        let mut parts = reply::list(answer)?.into_iter();
        let (seconds, micros) = (reply::number(parts.next())?, reply::number(parts.next())?);
        Ok(seconds as u64 * 1_000_000 + micros as u64)
    }

    /// What an operator does with one job: finish, cancel or requeue.
    pub(super) async fn operate(&self, doing: &'static str, verb: &str, id: JobId) -> Result<()> {
        let call = OPERATE
            .call(&self.keys)
            .arg(verb)
            .arg(&id.as_bytes()[..])
            .arg(self.settings.keep_finished)
            .arg(self.settings.keep_failed);
        let answer = reply::list(self.work.run(Doing::Write(doing), &call).await?)?;
        let [word, about] = &answer[..] else { return Err(unreadable("an answer")) };
        let about = reply::text(about)?;
        let text = match reply::text(word)? {
            "done" => return Ok(()),
            "unknown" => return Err(Error::unknown_job(id)),
            "overtaken" => {
                let which =
                    if about.is_empty() { "a deleted job".to_owned() } else { format!("job {about}") };
                format!(
                    "job {id} cannot be requeued: {which} after it in its chain has started, and a chain never goes back; \
                     enqueue a new job instead"
                )
            }
            "held" => format!(
                "job {id} cannot be requeued: job {about} holds its unique key now; wait until that one is final"
            ),
            _ if verb == "requeue" => {
                let fix =
                    if about == "finished" { "enqueue a new job instead" } else { "it will run by itself" };
                format!("job {id} cannot be requeued, it is {about}; {fix}")
            }
            _ => format!("cannot {verb} job {id}, it is {about} already"),
        };
        Err(Error::new(ErrorKind::WrongState, text))
    }

    pub(super) async fn delete_ended(&self, older_than: Duration, batch: usize) -> Result<u64> {
        let call = DELETE.call(&self.keys).arg(micros(older_than)).arg(batch.min(DELETED));
        let deleted = self.work.run(Doing::Write("deleting finished jobs"), &call).await?;
        Ok(reply::number(Some(deleted))?.max(0) as u64)
    }

    pub(super) async fn promote_all(&self) -> Result<u64> {
        let promoted = self.work.run(Doing::Write("making jobs due"), &PROMOTE.call(&self.keys)).await?;
        Ok(reply::number(Some(promoted))?.max(0) as u64)
    }

    pub(super) async fn count(&self) -> Result<Stats> {
        let mut answer;
        loop {
            answer =
                reply::list(self.work.run(Doing::Read("counting jobs"), &STATS.call(&self.keys)).await?)?;
            // More stood in the way than one call looks through.
            if reply::number(answer.pop())? == 0 {
                break;
            }
        }
        let mut parts = answer.into_iter();
        let now = reply::number(parts.next())?.max(0) as u64;
        let workers = reply::number(parts.next())?.max(0) as u64;
        let mut by_type: BTreeMap<String, Counts> = BTreeMap::new();
        for (name, count) in reply::pairs(parts.next().unwrap_or(Value::Nil))? {
            let (state, job_type) =
                reply::text(&name)?.split_once(' ').ok_or_else(|| unreadable("a count"))?;
            let count = reply::number(Some(count))?.max(0) as u64;
            let counts = by_type.entry(job_type.to_owned()).or_insert_with(|| Counts::sum([].iter()));
            let place = match state.parse::<State>()? {
                State::Blocked => &mut counts.blocked,
                State::Scheduled => &mut counts.scheduled,
                State::Ready => &mut counts.ready,
                State::Running => &mut counts.running,
                State::Finished => &mut counts.finished,
                State::Failed => &mut counts.failed,
                State::Cancelled => &mut counts.cancelled,
            };
            *place = Some(count);
        }
        let totals = totals(reply::pairs(parts.next().unwrap_or(Value::Nil))?)?;
        for (job_type, place) in reply::pairs(parts.next().unwrap_or(Value::Nil))? {
            if let Some(counts) = by_type.get_mut(reply::text(&job_type)?) {
                let place = reply::number(Some(place))?.max(0) as u64;
                counts.oldest_ready = Some(Duration::from_micros(now.saturating_sub(place)));
            }
        }
        Ok(Stats {
            total: Counts::sum(by_type.values()),
            by_type,
            workers: Some(workers),
            totals: Some(totals),
            bill: None,
        })
    }
}

/// `took n` counts attempts of less than 2ⁿ microseconds, and no less than half of that.
fn totals(sums: Vec<(Value, Value)>) -> Result<Totals> {
    let mut totals = Totals::default();
    // Jobs of a chain but for its first.
    let mut linked = 0;
    for (name, sum) in sums {
        let sum = reply::number(Some(sum))?.max(0) as u64;
        match reply::text(&name)? {
            "jobs" => totals.jobs = sum,
            "linked" => linked = sum,
            "attempts" => totals.attempts = sum,
            "failures" => totals.failures = sum,
            "retries" => totals.retries = sum,
            "rescues" => totals.rescues = sum,
            "duration" => totals.duration = Duration::from_micros(sum),
            other => {
                if let Some(power) = other.strip_prefix("took ").and_then(|power| power.parse::<u32>().ok()) {
                    totals.durations.push((Duration::from_micros(1 << power.min(62)), sum));
                }
            }
        }
    }
    totals.chains = totals.jobs.saturating_sub(linked);
    totals.durations.sort_unstable();
    Ok(totals)
}

/// Where jobs in this state are found; in the hash of all jobs when there is no shorter way.
const fn place_of(state: Option<State>) -> &'static str {
    match state {
        Some(State::Running) => "running",
        Some(State::Scheduled) => "due",
        Some(State::Finished) => "finished",
        Some(State::Failed | State::Cancelled) => "failed",
        Some(State::Blocked | State::Ready) | None => "job",
    }
}

fn info(
    id: &Value,
    job: &Value,
    state: &Value,
    record: &Value,
    beat: Value,
    failure: &Value,
) -> Result<JobInfo> {
    let wrong = || unreadable("the state of a job");
    let id = frame::id(reply::bytes(id)?)?;
    let state: State = reply::text(state)?.parse()?;
    let mut words = reply::text(record)?.split(' ');
    // moment, flags, type, started, attempt, rescues, place
    let mut number =
        |skip: usize| words.nth(skip).and_then(|word| word.parse::<u64>().ok()).ok_or_else(wrong);
    let (moment, started, attempt, rescues) = (number(0)?, number(2)?, number(0)?, number(0)?);
    let beat = reply::number(Some(beat))?;
    let failure = reply::bytes(failure)?;
    Ok(JobInfo {
        job: frame::read(id, attempt as u32, reply::bytes(job)?, &mut Types::of(&[]))?,
        state,
        due_at: (state == State::Scheduled).then(|| from_micros(moment)),
        started_at: (started > 0).then(|| from_micros(started)),
        last_beat_at: (state == State::Running).then(|| from_micros(beat.max(0) as u64)),
        finished_at: state.is_final().then(|| from_micros(moment)),
        rescues: rescues as u32,
        failure: (!failure.is_empty()).then(|| Failure::from_json(failure)),
    })
}
