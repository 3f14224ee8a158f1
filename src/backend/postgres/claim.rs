//! From the head of the line to a worker.
//!
//! Entries of jobs that are long gone stay at the head of an index until a vacuum, and for as long as somebody holds an old
//! snapshot no vacuum takes them away. So a claim starts where the last one of its type ended. What has come in before that
//! place meanwhile (a job of a lost worker, a transaction that took its time) is found by a look from the very beginning,
//! which may take one part in [`FULL_SHARE`] of the time; when it takes long, it is made beside the claims, on a connection
//! of its own.
//!
//! Each type that is asked for costs a look into the index. Of very many, with more jobs than a claim takes, each claim asks
//! for some in turn, which costs less than finding the oldest job of all.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::time::Instant;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::PostgresBackend;
use super::link::Link;
use super::listen::Wakes;
use super::rows::{self, unreadable};
use super::sql::Sql;
use crate::backend::remote::{Doing, Types, distinct};
use crate::backend::{Claim, Leased, WorkerId};
use crate::error::{ErrorKind, Result};
use crate::job::{JobId, JobType};

/// How often a claim that waits looks by itself.
const POLL: Duration = Duration::from_secs(1);
/// The first look where no notifications come; each next one later by half, up to [`POLL`].
const FIRST_POLL: Duration = Duration::from_millis(100);
/// How long a worker is taken for one that waits after it has said so.
const LISTEN_FOR: Duration = Duration::from_secs(5);
/// A look from the beginning that takes longer than this is not made by a claim.
const QUICK: Duration = Duration::from_millis(20);
/// A look from the beginning may take this part of the time.
const FULL_SHARE: u32 = 20;
/// It is never put off for longer: a look that had to wait for a server which came back says little about the next one.
const LONGEST_BETWEEN_FULL: Duration = Duration::from_secs(5);
/// Of more types than these, a claim asks for so many in turn while there are jobs for more claims than one.
const TYPES_IN_TURN: usize = 64;
/// Up to so many types each may fill the whole claim; more share it by what they gave last.
const FEW_TYPES: usize = 8;

/// Where claims begin, and how far they look.
#[derive(Debug)]
pub(super) struct Marks {
    lines: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    by_type: FxHashMap<JobType, Line>,
    last_full: Option<Instant>,
    full_took: Duration,
    /// Is a look from the beginning under way beside the claims?
    is_sweeping: bool,
    /// Did the last claim get all that it wanted?
    overflows: bool,
    /// Where the next turn begins.
    turn: usize,
}

/// How far a claim looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Some of very many types, from their marks on.
    Turn,
    /// All types, from their marks on.
    Marks,
    /// All types, from the beginning.
    Full,
}

/// The jobs of one type.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    after: i64,
    quota: usize,
}

impl Marks {
    pub fn new() -> Self {
        Self {
            lines: Mutex::new(Lines {
                by_type: FxHashMap::default(),
                last_full: None,
                full_took: Duration::ZERO,
                is_sweeping: false,
                overflows: false,
                turn: 0,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may be anywhere: the next claim looks from the beginning.
    pub fn forget(&self) {
        self.lock().last_full = None;
    }

    /// A job has come in at this place.
    pub fn lower(&self, job_type: &str, seq: i64) {
        if let Some(line) = self.lock().by_type.get_mut(job_type) {
            line.after = line.after.min(seq - 1);
        }
    }
}

impl Lines {
    /// When a look from the beginning is allowed again.
    fn next_full(&self) -> Option<Instant> {
        self.last_full.map(|last| last + (self.full_took * FULL_SHARE).min(LONGEST_BETWEEN_FULL))
    }

    fn is_due(&self) -> bool {
        self.next_full().is_none_or(|next| next <= Instant::now())
    }

    fn line(&mut self, job_type: &JobType) -> &mut Line {
        // Twice looked up, but cloned only once ever.
        if !self.by_type.contains_key(job_type) {
            self.by_type.insert(job_type.clone(), Line::default());
        }
        self.by_type.entry(job_type.clone()).or_default()
    }
}

/// What one claim asks the server.
struct Question<'a> {
    types: Vec<&'a str>,
    after: Vec<i64>,
    quota: Vec<i32>,
    reach: Reach,
}

/// What a claim brought.
enum Answer {
    Jobs(Vec<Leased>),
    /// Nothing is ready; when something may be, and whether the server has just noted that we wait.
    Nothing {
        until: Option<Instant>,
        is_new: bool,
    },
}

impl PostgresBackend {
    pub(super) async fn claim_jobs(&self, want: &Claim<'_>) -> Result<Vec<Leased>> {
        if want.types.is_empty() && want.wait.is_zero() {
            return Ok(Vec::new());
        }
        // Nothing is taken for which there would be no beats, or no way to tell how it ended.
        tokio::try_join!(self.beats.session(), self.settling.session())?;
        let deadline = Instant::now() + want.wait;
        let types = distinct(want.types);
        let want = &Claim { types: &types, ..*want };
        let mut poll = FIRST_POLL;
        let _waiting = (!want.wait.is_zero()).then(|| {
            self.start_listening();
            self.wakes.waiting(want.types)
        });
        loop {
            // Registered before the look, so that nothing in between is missed.
            let mut woken = std::pin::pin!(self.wakes.notified());
            woken.as_mut().enable();
            let (until, is_new) = match self.look(want).await? {
                Answer::Jobs(jobs) => return Ok(jobs),
                Answer::Nothing { until, is_new } => (until, is_new),
            };
            let now = Instant::now();
            if want.stop.is_cancelled() || now >= deadline {
                return Ok(Vec::new());
            }
            if is_new {
                // Who enqueued before the server noted that we wait did not tell us.
                continue;
            }
            if self.wakes.listens() {
                poll = POLL;
            }
            let next_look = now + poll.mul_f64(0.9 + 0.2 * fastrand::f64());
            poll = (poll + poll / 2).min(POLL);
            let until = until.map_or(next_look, |until| until.min(next_look)).min(deadline);
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(until) => {}
                () = want.stop.cancelled() => {}
            }
        }
    }

    /// Looks further for as long as there is not enough.
    async fn look(&self, want: &Claim<'_>) -> Result<Answer> {
        // Who does not wait looks for itself, however long that takes.
        if !want.wait.is_zero()
            && let Some((types, marks)) = self.marks.begin_sweep()
        {
            let sweep = Sweep {
                link: Arc::clone(&self.sweeping),
                sql: Arc::clone(&self.sql),
                marks: Arc::clone(&self.marks),
                wakes: Arc::clone(&self.wakes),
            };
            tokio::spawn(sweep.run(types, marks));
        }
        let mut jobs = Vec::new();
        let mut answer = Answer::Nothing { until: None, is_new: false };
        for reach in [Reach::Turn, Reach::Marks, Reach::Full] {
            if jobs.len() < want.limit
                && let Some(question) = self.marks.question(want, reach)
            {
                let (more, nothing) = self.ask(want, &question, want.limit - jobs.len()).await?;
                jobs.extend(more);
                answer = nothing;
            }
        }
        if jobs.is_empty() { Ok(answer) } else { Ok(Answer::Jobs(jobs)) }
    }

    async fn ask(
        &self,
        want: &Claim<'_>,
        question: &Question<'_>,
        limit: usize,
    ) -> Result<(Vec<Leased>, Answer)> {
        let token = new_token();
        let (worker, lease) = (*want.worker.0.as_uuid(), want.lease.as_secs_f64());
        let listen_for = if want.wait.is_zero() { 0.0 } else { LISTEN_FOR.as_secs_f64() };
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let start = Instant::now();
        let doing = Doing::Write("claiming jobs");
        let rows = self
            .work
            .query(
                doing,
                &self.sql.claim,
                &[
                    (&worker, Type::UUID),
                    (&self.name, Type::TEXT),
                    (&lease, Type::FLOAT8),
                    (&token, Type::INT8),
                    (&question.types, Type::TEXT_ARRAY),
                    (&question.after, Type::INT8_ARRAY),
                    (&question.quota, Type::INT4_ARRAY),
                    (&limit, Type::INT4),
                    (&listen_for, Type::FLOAT8),
                ],
            )
            .await
            .inspect_err(|error| self.maybe_stranded(want.worker, token, error))?;
        let mut nothing = Answer::Nothing { until: None, is_new: false };
        let mut jobs: Vec<(i64, Leased)> = Vec::with_capacity(rows.len());
        let mut types = Types::of(want.types);
        for row in &rows {
            let id: Option<Uuid> = row.try_get(0).map_err(unreadable)?;
            if let Some(id) = id {
                let leased = rows::leased(row, 1, id, &mut types, token, start)?;
                jobs.push((row.try_get(10).map_err(unreadable)?, leased));
            } else {
                let due_in: Option<f64> = row.try_get(11).map_err(unreadable)?;
                let until = due_in.map(|seconds| {
                    Instant::now() + Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(POLL).min(POLL)
                });
                nothing = Answer::Nothing { until, is_new: row.try_get(12).map_err(unreadable)? };
            }
        }
        jobs.sort_unstable_by_key(|(seq, _)| *seq);
        self.marks.answered(question, &jobs, jobs.len() >= limit as usize, start.elapsed());
        if let Answer::Nothing { until, .. } = &mut nothing
            && question.reach != Reach::Full
            && let Some(full) = self.marks.lock().next_full()
        {
            *until = Some(until.map_or(full, |until| until.min(full)));
        }
        Ok((jobs.into_iter().map(|(_, leased)| leased).collect(), nothing))
    }

    /// The answer to a claim was lost, and the jobs with it: the next beats give them back.
    pub(super) fn maybe_stranded(&self, worker: WorkerId, token: i64, error: &crate::error::Error) {
        if *error.kind() == ErrorKind::OutcomeUnknown {
            self.stranded.push(worker, token as u64);
        }
    }
}

/// A look from the beginning, beside the claims. It takes nothing, but lets the next claim begin where something is.
struct Sweep {
    link: Arc<Link>,
    sql: Arc<Sql>,
    marks: Arc<Marks>,
    wakes: Arc<Wakes>,
}

impl Sweep {
    async fn run(self, types: Vec<String>, marks: Vec<i64>) {
        let start = Instant::now();
        let params = [(&types as _, Type::TEXT_ARRAY), (&marks as _, Type::INT8_ARRAY)];
        let doing = Doing::Read("looking for jobs that claims passed over");
        let found = self.link.query(doing, &self.sql.passed_over, &params).await;
        self.marks.end_sweep(start.elapsed());
        // Who cannot ask now asks again.
        for row in found.iter().flatten() {
            if let (Ok(name), Ok(seq)) = (row.try_get(0), row.try_get(1)) {
                self.marks.lower(name, seq);
            }
        }
        if found.is_ok_and(|found| !found.is_empty()) {
            self.wakes.all();
        }
    }
}

impl Marks {
    /// The marks to look before, when that is due and takes too long for a claim.
    fn begin_sweep(&self) -> Option<(Vec<String>, Vec<i64>)> {
        let mut lines = self.lock();
        if lines.is_sweeping || lines.full_took < QUICK || !lines.is_due() {
            return None;
        }
        (lines.is_sweeping, lines.last_full) = (true, Some(Instant::now()));
        let marked = lines.by_type.iter().filter(|(_, line)| line.after > 0);
        Some(marked.map(|(job_type, line)| (job_type.to_string(), line.after)).unzip())
    }

    fn end_sweep(&self, took: Duration) {
        let mut lines = self.lock();
        (lines.is_sweeping, lines.last_full, lines.full_took) = (false, Some(Instant::now()), took);
    }

    /// What to ask with this reach; `None` when that is not for now.
    fn question<'a>(&self, want: &Claim<'a>, reach: Reach) -> Option<Question<'a>> {
        let mut lines = self.lock();
        let all = want.types.len();
        // Who does not wait asks once, and takes the answer for what is there.
        let asks_once = want.wait.is_zero();
        let looks_back = lines.is_due() && (asks_once || lines.full_took < QUICK);
        let is_wanted = match reach {
            Reach::Turn => lines.overflows && all > TYPES_IN_TURN && !looks_back,
            Reach::Marks => !looks_back,
            Reach::Full => looks_back || asks_once,
        };
        if !is_wanted {
            return None;
        }
        let (first, types) = if reach == Reach::Turn {
            let first = lines.turn % all;
            lines.turn = first + TYPES_IN_TURN;
            (first, TYPES_IN_TURN)
        } else {
            (0, all)
        };
        let share = (2 * want.limit / types.max(1)).max(1);
        let mut question = Question { types: Vec::new(), after: Vec::new(), quota: Vec::new(), reach };
        for job_type in want.types.iter().cycle().skip(first).take(types) {
            let line = lines.line(job_type);
            let quota = match reach {
                Reach::Turn => share,
                _ if all <= FEW_TYPES => want.limit,
                _ => line.quota.clamp(share, want.limit.max(share)),
            };
            question.types.push(job_type.as_str());
            question.after.push(if reach == Reach::Full { 0 } else { line.after });
            question.quota.push(i32::try_from(quota).unwrap_or(i32::MAX));
        }
        Some(question)
    }

    fn answered(&self, question: &Question<'_>, jobs: &[(i64, Leased)], overflows: bool, took: Duration) {
        let mut lines = self.lock();
        lines.overflows = overflows;
        if question.reach == Reach::Full {
            (lines.last_full, lines.full_took) = (Some(Instant::now()), took);
        }
        // Those of few types fill the claim, and those of a turn share it.
        let learns = question.types.len() > FEW_TYPES && question.reach != Reach::Turn;
        let mut got: FxHashMap<&str, usize> = FxHashMap::default();
        for (seq, leased) in jobs {
            let line = lines.line(&leased.job.job_type);
            line.after = if question.reach == Reach::Full { *seq } else { line.after.max(*seq) };
            if learns {
                *got.entry(leased.job.job_type.as_str()).or_default() += 1;
            }
        }
        if !learns {
            return;
        }
        for (name, asked) in question.types.iter().zip(&question.quota) {
            let (asked, got) = (*asked as usize, got.get(name).copied().unwrap_or_default());
            if let Some(line) = lines.by_type.get_mut(*name) {
                line.quota = match got {
                    got if got >= asked => asked * 2,
                    got if got * 4 < asked => asked / 2,
                    _ => asked,
                };
            }
        }
    }
}

/// A token that no claim has had before, for all that chance allows: 62 random bits, compared only with those of the
/// same job.
pub(super) fn new_token() -> i64 {
    (JobId::generate().as_uuid().as_u64_pair().1 & i64::MAX as u64) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_from_the_beginning_takes_one_part_of_the_time_but_is_put_off_for_seconds_at_most() {
        let marks = Marks::new();
        let mut lines = marks.lock();
        assert!(lines.is_due()); // there was none
        let last = Instant::now();
        lines.last_full = Some(last);
        lines.full_took = Duration::from_millis(30);
        assert_eq!(lines.next_full(), Some(last + Duration::from_millis(600)));
        lines.full_took = Duration::from_secs(60); // it waited for a server that came back
        assert_eq!(lines.next_full(), Some(last + LONGEST_BETWEEN_FULL));
    }
}
