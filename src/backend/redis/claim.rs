//! From the head of the line to a worker.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::RedisBackend;
use super::errors::{self, unreadable};
use super::frame::{self, micros};
use super::link::Connection;
use super::reply;
use super::script::CLAIM;
use crate::backend::remote::{Doing, Types, distinct};
use crate::backend::{Claim, Leased, Token, WorkerId};
use crate::error::{Error, ErrorKind, Result};
use crate::job::JobType;

/// How often a claim that waits looks by itself: a hint may have been lost with somebody's connection.
const POLL: Duration = Duration::from_secs(1);
/// What a server may round a time-out to.
const LEAST_WAIT: Duration = Duration::from_millis(1);
/// Of more types than these, a claim asks for so many in turn while there are jobs for more claims than one.
const TYPES_IN_TURN: usize = 64;
/// Most jobs of one call: how long the server may be busy with it.
const MOST_AT_ONCE: usize = 1000;

/// Which of very many types are asked for next.
#[derive(Debug, Default)]
pub(super) struct Turn {
    next: usize,
    /// Did the last claim get all that it wanted?
    overflows: bool,
}

/// Connections that wait for hints, as many as there are claims that wait at the same time.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<Vec<Connection>>);

impl RedisBackend {
    pub(super) async fn claim_jobs(&self, want: &Claim<'_>) -> Result<Vec<Leased>> {
        let deadline = Instant::now() + want.wait;
        if want.types.is_empty() {
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => {}
                () = want.stop.cancelled() => {}
            }
            return Ok(Vec::new());
        }
        // Nothing is taken for which there would be no beats, or no way to tell how it ended.
        tokio::try_join!(self.beats.connection(), self.settling.connection())?;
        let types = distinct(want.types);
        loop {
            let (jobs, due_in) = self.look(want, &types).await?;
            if !jobs.is_empty() || want.stop.is_cancelled() {
                return Ok(jobs);
            }
            // More stood in the way than one call looks through.
            if due_in == Some(Duration::ZERO) {
                continue;
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(jobs);
            }
            let until = due_in.map_or(POLL, |due| due.min(POLL)).min(deadline - now).max(LEAST_WAIT);
            tokio::select! {
                biased;
                () = want.stop.cancelled() => return Ok(jobs),
                waited = self.wait(&types, until) => waited?,
            }
        }
    }

    /// What is ready now, or how long until the next scheduled job is due.
    async fn look(&self, want: &Claim<'_>, types: &[JobType]) -> Result<(Vec<Leased>, Option<Duration>)> {
        let limit = want.limit.min(MOST_AT_ONCE);
        let mut jobs = Vec::new();
        let turn = || self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let in_turn = {
            let mut turn = turn();
            let first = turn.next % types.len();
            let takes_turns = turn.overflows && types.len() > TYPES_IN_TURN;
            turn.next = if takes_turns { first + TYPES_IN_TURN } else { first };
            takes_turns.then_some(first)
        };
        if let Some(first) = in_turn {
            let some = types.iter().cycle().skip(first).take(TYPES_IN_TURN);
            (jobs, _) = self.ask(want, some, limit).await?;
        }
        let mut due_in = None;
        if jobs.len() < limit {
            let (more, due) = self.ask(want, types.iter(), limit - jobs.len()).await?;
            jobs.extend(more);
            due_in = due;
        }
        turn().overflows = jobs.len() >= limit;
        Ok((jobs, due_in))
    }

    async fn ask(
        &self,
        want: &Claim<'_>,
        types: impl Iterator<Item = &JobType>,
        limit: usize,
    ) -> Result<(Vec<Leased>, Option<Duration>)> {
        let token = self.tokens.draw(want.worker);
        let mut call = CLAIM
            .call(&self.keys)
            .arg(want.worker.0.to_string())
            .arg(&self.name)
            .arg(micros(want.lease))
            .arg(token.to_string())
            .arg(limit);
        for job_type in types {
            call.push(job_type.as_str());
        }
        let since = Instant::now();
        let answer = self.work.run(Doing::Write("claiming jobs"), &call).await;
        let answer = answer.inspect_err(|error| self.maybe_stranded(want.worker, token, error))?;
        let mut values = reply::list(answer)?.into_iter();
        let due_in = reply::number(values.next())?;
        let mut names = Types::of(want.types);
        let mut jobs: Vec<(u64, Leased)> = Vec::with_capacity(limit);
        while let (Some(attempt), Some(place), Some(ids), Some(frames)) =
            (values.next(), values.next(), values.next(), values.next())
        {
            let (attempt, place) = (reply::number(Some(attempt))?, reply::number(Some(place))? as u64);
            for (id, job) in reply::list(ids)?.iter().zip(reply::list(frames)?) {
                let own = if place == 0 { frame::place(reply::bytes(&job)?) } else { place };
                jobs.push((own, leased(id, attempt, &job, &mut names, token, since)?));
            }
        }
        if !jobs.is_sorted_by_key(|(place, _)| *place) {
            jobs.sort_by_key(|(place, _)| *place);
        }
        let jobs = jobs.into_iter().map(|(_, leased)| leased).collect();
        Ok((jobs, u64::try_from(due_in).ok().map(Duration::from_micros)))
    }

    /// Waits for a hint that one of these types may have a job.
    async fn wait(&self, types: &[JobType], until: Duration) -> Result<()> {
        let doing = Doing::Read("waiting for jobs");
        let idle = self.waiters.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // A wait that is cut short takes its connection along: the server would go on waiting on it.
        let mut connection = match idle {
            Some(connection) => connection,
            None => Connection::new(Box::pin(self.dialer.connect(None)).await?),
        };
        let mut command = redis::cmd("BLPOP");
        for job_type in types {
            command.arg(self.keys.wake(job_type));
        }
        command.arg(until.as_secs_f64());
        // The server may be gone without a word.
        let answer = tokio::time::timeout(until + super::link::PATIENCE, connection.ask(&command));
        match answer.await {
            Ok(Ok(_)) => self.waiters.0.lock().unwrap_or_else(PoisonError::into_inner).push(connection),
            Ok(Err(error)) if errors::code(&error) == "MOVED" => self.dialer.moved(&error),
            Ok(Err(error)) => return Err(errors::explain(doing, error)),
            Err(_) => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "waiting for jobs failed: the server is silent",
                ));
            }
        }
        Ok(())
    }

    /// The answer to a claim was lost, and the jobs with it, or its script has failed half-way: the next beats give them
    /// back.
    pub(super) fn maybe_stranded(&self, worker: WorkerId, token: u64, error: &Error) {
        if *error.kind() != ErrorKind::Unavailable {
            self.stranded.push(worker, token);
        }
    }
}

/// A job that was just leased.
pub(super) fn leased(
    id: &Value,
    attempt: i64,
    job: &Value,
    types: &mut Types<'_>,
    token: u64,
    since: Instant,
) -> Result<Leased> {
    let id = frame::id(reply::bytes(id)?)?;
    let attempt = u32::try_from(attempt).map_err(|_| unreadable("an attempt"))?;
    let job = frame::read(id, attempt, reply::bytes(job)?, types)?;
    Ok(Leased { job, token: Token::bound(id, token), since })
}

/// Numbers of claims, each with a mark of the worker that made it: a lease tells whose it is.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<Drawn>);

#[derive(Debug, Default)]
struct Drawn {
    workers: Vec<(u32, WorkerId)>,
    last: u32,
}

impl Tokens {
    /// A number that no claim of this worker had before.
    pub fn draw(&self, worker: WorkerId) -> u64 {
        let mut drawn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = drawn.workers.iter().find(|(_, known)| *known == worker).map(|(mark, _)| *mark);
        let mark = known.unwrap_or_else(|| {
            let is_free = |mark: &u32| drawn.workers.iter().all(|(other, _)| other != mark);
            let mark = std::iter::repeat_with(|| fastrand::u32(1..)).find(is_free).unwrap_or(1);
            drawn.workers.push((mark, worker));
            mark
        });
        drawn.last = drawn.last.wrapping_add(1);
        u64::from(mark) << 32 | u64::from(drawn.last)
    }

    /// The worker whose number it is, if it is one of ours.
    pub fn worker(&self, token: u64) -> Option<WorkerId> {
        let drawn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = (token >> 32) as u32;
        drawn.workers.iter().find(|(known, _)| *known == mark).map(|(_, worker)| *worker)
    }

    /// This worker has left.
    pub fn forget(&self, worker: WorkerId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).workers.retain(|(_, known)| *known != worker);
    }
}
