//! The contract of `Backend` as a list of jobs: slow, obvious, and written from its prose alone.

use std::time::Duration;

use dejq::backend::{Lease, Outcome, Rescued, Token};
use dejq::error::ErrorKind;
use dejq::job::{JobId, NewJob, OnFailure, State};

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // four facts that do not exclude each other
pub struct Job {
    pub new: NewJob,
    pub state: State,
    pub attempt: u32,
    pub rescues: u32,
    /// The current lease's, while it runs.
    pub token: Option<Token>,
    pub cancel_asked: bool,
    /// Starts in the order of enqueueing: no delay, no retry, not requeued.
    pub in_order: bool,
    pub deleted: bool,
    /// A handler may have seen it.
    started: bool,
    due: Duration,
    last_beat: Duration,
    ended: Duration,
    cancelled_with: Option<JobId>,
}

#[derive(Debug)]
pub struct Reference {
    /// Every job that ever was, in the order of enqueueing.
    pub jobs: Vec<Job>,
    pub now: Duration,
    pub lease: Duration,
}

impl Reference {
    pub fn enqueue(&mut self, call: &[NewJob]) -> Vec<JobId> {
        let mut ids = Vec::new();
        for new in call {
            let holder = self.holder(new);
            ids.push(holder.unwrap_or(new.id));
            if holder.is_none() && self.jobs.iter().all(|job| job.new.id != new.id) {
                self.jobs.push(Job {
                    state: State::Blocked,
                    in_order: new.delay.is_zero(),
                    new: new.clone(),
                    attempt: 0,
                    rescues: 0,
                    token: None,
                    cancel_asked: false,
                    deleted: false,
                    started: false,
                    due: Duration::ZERO,
                    last_beat: Duration::ZERO,
                    ended: Duration::ZERO,
                    cancelled_with: None,
                });
            }
        }
        self.settle_down();
        ids
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.settle_down();
    }

    pub fn start(&mut self, job: usize, token: Token) {
        let now = self.now;
        let job = &mut self.jobs[job];
        (job.state, job.token, job.last_beat) = (State::Running, Some(token), now);
        job.attempt += 1;
    }

    /// The job of a lease that is current.
    pub fn held(&self, lease: Lease) -> Option<usize> {
        self.jobs.iter().position(|job| job.new.id == lease.id && job.token == Some(lease.token))
    }

    pub fn beat(&mut self, job: usize) {
        self.jobs[job].last_beat = self.now;
    }

    pub fn settle(&mut self, job: usize, outcome: &Outcome) {
        self.let_go(job);
        match outcome {
            Outcome::Finished => self.end(job, State::Finished),
            Outcome::Failed(_) => self.end(job, State::Failed),
            Outcome::Retry { after, .. } if !self.jobs[job].cancel_asked => self.wait(job, *after),
            Outcome::Interrupted if !self.jobs[job].cancel_asked => self.back_in_line(job),
            Outcome::Retry { .. } | Outcome::Interrupted | Outcome::Cancelled(_) => {
                self.end(job, State::Cancelled);
            }
        }
        self.settle_down();
    }

    pub fn give_back(&mut self, job: usize) {
        let had_started = self.jobs[job].started;
        self.let_go(job);
        self.jobs[job].started = had_started;
        self.back_in_line(job);
        if self.jobs[job].cancel_asked {
            self.end(job, State::Cancelled);
        }
        self.settle_down();
    }

    pub fn rescue(&mut self, max_rescues: u32) -> Rescued {
        let mut rescued = Rescued::default();
        for job in 0..self.jobs.len() {
            let lost = self.jobs[job].token.is_some() && self.now > self.jobs[job].last_beat + self.lease;
            if !lost {
                continue;
            }
            self.let_go(job);
            if self.jobs[job].cancel_asked {
                self.end(job, State::Cancelled);
            } else if self.jobs[job].rescues < max_rescues {
                rescued.requeued += 1;
                self.jobs[job].rescues += 1;
                self.back_in_line(job);
            } else {
                rescued.failed += 1;
                self.end(job, State::Failed);
            }
        }
        self.settle_down();
        rescued
    }

    pub fn finish(&mut self, job: usize) -> Result<(), ErrorKind> {
        self.refuse_if(job, |job| job.state.is_final())?;
        self.let_go(job);
        self.end(job, State::Finished);
        self.settle_down();
        Ok(())
    }

    pub fn cancel(&mut self, job: usize) -> Result<(), ErrorKind> {
        self.refuse_if(job, |job| job.state.is_final())?;
        if self.jobs[job].state == State::Running {
            self.jobs[job].cancel_asked = true;
        } else {
            self.end(job, State::Cancelled);
        }
        self.settle_down();
        Ok(())
    }

    pub fn requeue(&mut self, job: usize) -> Result<(), ErrorKind> {
        let holder = self.holder(&self.jobs[job].new);
        let overtaken =
            self.after(job).any(|later| self.jobs[later].started || self.jobs[later].token.is_some());
        self.refuse_if(job, |job| {
            matches!(job.state, State::Finished | State::Ready | State::Blocked)
                || overtaken
                || holder.is_some_and(|holder| holder != job.new.id)
        })?;
        let cause = self.jobs[job].cancelled_with.take().unwrap_or(self.jobs[job].new.id);
        for later in self.after(job).collect::<Vec<_>>() {
            let later = &mut self.jobs[later];
            if !later.deleted && (!later.state.is_final() || later.cancelled_with == Some(cause)) {
                (later.state, later.cancelled_with) = (State::Blocked, None);
            }
        }
        self.let_go(job);
        let state = if self.waits_for_another(job) { State::Blocked } else { State::Ready };
        let job = &mut self.jobs[job];
        (job.state, job.attempt, job.rescues, job.cancel_asked, job.in_order) = (state, 0, 0, false, false);
        Ok(())
    }

    pub fn delete_finished(&mut self, older_than: Duration) -> u64 {
        let mut deleted = 0;
        for job in self.jobs.iter_mut().filter(|job| job.state.is_final() && !job.deleted) {
            job.deleted = job.ended + older_than <= self.now;
            deleted += u64::from(job.deleted);
        }
        deleted
    }

    /// The jobs after this one in its chain.
    pub fn after(&self, job: usize) -> impl Iterator<Item = usize> {
        (job + 1..self.jobs.len())
            .filter(move |later| self.jobs[*later].new.chain.id == self.jobs[job].new.chain.id)
    }

    // ---- rules -------------------------------------------------------------------------------------

    /// What waits for a job that is final, or for a time that has come, waits no longer.
    fn settle_down(&mut self) {
        for job in 0..self.jobs.len() {
            if self.jobs[job].state == State::Blocked && !self.waits_for_another(job) {
                self.jobs[job].due = self.now + self.jobs[job].new.delay;
                self.jobs[job].state = State::Scheduled;
            }
            if self.jobs[job].state == State::Scheduled && self.jobs[job].due <= self.now {
                self.jobs[job].state = State::Ready;
            }
        }
    }

    fn waits_for_another(&self, job: usize) -> bool {
        let chain = self.jobs[job].new.chain.id;
        self.jobs[..job].iter().any(|before| before.new.chain.id == chain && !before.state.is_final())
    }

    fn end(&mut self, job: usize, state: State) {
        (self.jobs[job].state, self.jobs[job].ended) = (state, self.now);
        if state == State::Finished || self.jobs[job].new.on_failure == OnFailure::Continue {
            return;
        }
        let cause = self.jobs[job].new.id;
        for later in self.after(job).collect::<Vec<_>>() {
            let later = &mut self.jobs[later];
            if later.state == State::Blocked {
                (later.state, later.ended, later.cancelled_with) = (State::Cancelled, self.now, Some(cause));
            }
        }
    }

    fn wait(&mut self, job: usize, after: Duration) {
        let job = &mut self.jobs[job];
        (job.state, job.due, job.in_order) = (State::Scheduled, self.now + after, false);
    }

    /// The attempt does not count.
    fn back_in_line(&mut self, job: usize) {
        self.jobs[job].state = State::Ready;
        self.jobs[job].attempt -= 1;
    }

    fn let_go(&mut self, job: usize) {
        let job = &mut self.jobs[job];
        job.started |= job.token.take().is_some();
    }

    /// Who has the unique key of this job.
    fn holder(&self, new: &NewJob) -> Option<JobId> {
        let key = new.unique.as_ref()?;
        let holds = |job: &&Job| job.new.unique.as_ref() == Some(key) && job.new.job_type == new.job_type;
        self.jobs.iter().filter(holds).find(|job| !job.state.is_final()).map(|job| job.new.id)
    }

    fn refuse_if(&self, job: usize, is_wrong: impl Fn(&Job) -> bool) -> Result<(), ErrorKind> {
        let job = &self.jobs[job];
        match (job.deleted, is_wrong(job)) {
            (true, _) => Err(ErrorKind::UnknownJob),
            (false, true) => Err(ErrorKind::WrongState),
            (false, false) => Ok(()),
        }
    }
}
