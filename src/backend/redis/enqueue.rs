//! New jobs on their way into the queue.

use std::io::Write as _;

use redis::Value;

use super::Durability;
use super::errors;
use super::frame::{self, micros};
use super::keys::Keys;
use super::link::{Connection, Link};
use super::reply;
use super::script::{ADDED, Call, ENQUEUE, PUSH, RESERVE};
use crate::backend::remote::{Answer, Batch, Doing, Insert, PATIENCE};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobId, JobType, NewJob};

/// From so many jobs on, plain ones are stored without a script.
const BULK: usize = 200;
/// Jobs of one command then.
const BULK_PART: usize = 1000;
const DOING: Doing = Doing::Write("enqueueing");

/// The way in.
#[derive(Debug)]
pub(super) struct Entrance {
    pub link: Link,
    pub keys: Keys,
    pub durability: Durability,
}

impl Insert for Entrance {
    const MOST_MERGED: usize = 1000;

    async fn insert(&self, batch: &Batch<'_>) -> Result<Answer> {
        let jobs = batch.jobs;
        let mut ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        let connection = self.link.connection().await?;
        if batch.is_new && jobs.iter().all(|job| is_plain(job)) {
            match jobs.len() {
                ..BULK => drop(self.link.run(DOING, &pushed(jobs, &self.keys)).await?),
                _ => self.insert_bulk(jobs).await?,
            }
        } else {
            let answer = self.link.run(DOING, &described(jobs, batch.is_new, &self.keys)).await?;
            for (number, holder) in reply::pairs(answer)? {
                let number = reply::number(Some(number))? as usize;
                if let Some(id) = ids.get_mut(number.wrapping_sub(1)) {
                    *id = frame::id(reply::bytes(&holder)?)?;
                }
            }
        }
        Ok(self.confirm(connection).await?.map(|()| ids))
    }

    fn is_hopeless(error: &Error) -> bool {
        !error.is_transient() || errors::is_full(error)
    }
}

impl Entrance {
    /// Many plain jobs by the server's own commands, in one transaction: four times as fast as a script.
    async fn insert_bulk(&self, jobs: &[&NewJob]) -> Result<()> {
        let places =
            self.link.run(Doing::Read(DOING.what()), &RESERVE.call(&self.keys).arg(jobs.len())).await?;
        let mut place = reply::number(Some(places))? as u64;
        let mut transaction = redis::pipe();
        transaction.atomic();
        // As in base.lua: while the slot moves, the server refuses the whole of it.
        transaction.cmd("EXISTS").arg(self.keys.nothing()).ignore();
        let mut text = Vec::new();
        let mut lines: Vec<(&JobType, Vec<[u8; 23]>)> = Vec::new();
        for part in jobs.chunks(BULK_PART) {
            let store = transaction.cmd("HSET").arg(self.keys.job());
            for job in part {
                text.clear();
                let _ = write!(text, "{place} ");
                frame::append(job, &mut text);
                store.arg(&job.id.as_bytes()[..]).arg(&text);
                let known = lines.iter().rposition(|(job_type, _)| is_same(job_type, &job.job_type));
                let line = known.unwrap_or_else(|| {
                    lines.push((&job.job_type, Vec::new()));
                    lines.len() - 1
                });
                lines[line].1.push(frame::ticket(place, job.id));
                place += 1;
            }
        }
        for (job_type, tickets) in &lines {
            for part in tickets.chunks(BULK_PART) {
                let join = transaction.cmd("RPUSH").arg(self.keys.fresh(job_type));
                for ticket in part {
                    join.arg(&ticket[..]);
                }
            }
        }
        let added = transaction.cmd("EVAL").arg(ADDED).arg(1).arg(self.keys.job());
        for (job_type, tickets) in &lines {
            added.arg(job_type.as_str()).arg(tickets.len());
        }
        self.link.transaction(DOING, &transaction).await
    }

    /// Waits until what was written is as safe as was asked for. A server says that of what a connection wrote: by
    /// another one it would be an empty promise.
    async fn confirm(&self, connection: Connection) -> Result<Result<()>> {
        let mut command;
        let wanted = match self.durability {
            Durability::Memory => return Ok(Ok(())),
            Durability::Aof => {
                command = redis::cmd("WAITAOF");
                command.arg(1).arg(0);
                1
            }
            Durability::Replicas(replicas) => {
                command = redis::cmd("WAIT");
                command.arg(replicas);
                i64::from(replicas)
            }
        };
        command.arg(PATIENCE.as_millis() as u64);
        let confirmed = match self.link.command_on(connection, DOING, &command).await {
            // Before 7.2 the server was seen to sync each write before it answers.
            Err(error) if self.durability == Durability::Aof && errors::is_unknown_command(&error) => {
                return Ok(Ok(()));
            }
            answer => match answer? {
                Value::Array(mut counts) if !counts.is_empty() => reply::number(Some(counts.swap_remove(0)))?,
                count => reply::number(Some(count))?,
            },
        };
        if confirmed >= wanted {
            return Ok(Ok(()));
        }
        let seconds = PATIENCE.as_secs();
        let risk = match self.durability {
            Durability::Replicas(replicas) => format!(
                "only {confirmed} of {replicas} replicas said so within {seconds} s; a failover may lose them"
            ),
            _ => format!(
                "the server did not say within {seconds} s that they are on disk; a crash of its machine may lose them"
            ),
        };
        Ok(Err(Error::new(ErrorKind::OutcomeUnknown, format!("enqueueing: the jobs are stored, but {risk}"))))
    }
}

/// The call that stores these jobs, in runs of jobs that are alike; see `enqueue.lua`.
fn described(jobs: &[&NewJob], is_new: bool, keys: &Keys) -> Call {
    let mut call = ENQUEUE.call(keys).arg(if is_new { "new" } else { "" });
    let mut text = Vec::new();
    let mut rest = jobs;
    while let Some(first) = rest.first() {
        let n = if first.chain.length > 1 {
            let n = rest.iter().take_while(|job| job.chain.id == first.chain.id).count();
            call.push("c");
            call.push(frame::hex(first.chain.id));
            call.push(n);
            for job in &rest[..n] {
                frame::write(job, &mut text);
                call.push(job.job_type.as_str());
                call.push(&job.id.as_bytes()[..]);
                call.push(&text);
                call.push(micros(job.delay));
            }
            n
        } else if is_plain(first) {
            call.push("p");
            push_alike(&mut call, rest, &mut text)
        } else {
            frame::write(first, &mut text);
            call.push("s");
            call.push(first.job_type.as_str());
            call.push(&first.id.as_bytes()[..]);
            call.push(&text);
            call.push(micros(first.delay));
            call.push(first.unique.as_deref().unwrap_or_default());
            1
        };
        rest = &rest[n..];
    }
    call
}

/// The call that stores these plain jobs, none of which is stored yet; see `push.lua`.
fn pushed(jobs: &[&NewJob], keys: &Keys) -> Call {
    let mut call = PUSH.call(keys);
    let mut text = Vec::new();
    let mut rest = jobs;
    while !rest.is_empty() {
        rest = &rest[push_alike(&mut call, rest, &mut text)..];
    }
    call
}

/// Plain jobs of one type, as many as follow each other here; returns their number.
fn push_alike(call: &mut Call, jobs: &[&NewJob], text: &mut Vec<u8>) -> usize {
    let job_type = &jobs[0].job_type;
    let n = jobs.iter().take_while(|job| is_plain(job) && is_same(&job.job_type, job_type)).count();
    call.push(job_type.as_str());
    call.push(n);
    for job in &jobs[..n] {
        frame::write(job, text);
        call.push(&job.id.as_bytes()[..]);
        call.push(&*text);
    }
    n
}

fn is_plain(job: &NewJob) -> bool {
    job.chain.length == 1 && job.delay.is_zero() && job.unique.is_none()
}

fn is_same(one: &JobType, other: &JobType) -> bool {
    one.same(other) || one == other
}
