//! Being told about new jobs. Claims poll all the same, so a notification that is lost costs a second at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use rustc_hash::FxHashMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client};
use tokio_util::sync::CancellationToken;

use super::errors::explain;
use super::link::{Link, Server};
use crate::backend::remote::Doing;
use crate::error::Result;
use crate::job::JobType;
use crate::log::{self, Verbosity};

/// How long a notification to ourselves may take before we believe that none will ever come.
const ECHO: Duration = Duration::from_secs(2);
/// How often we look whether our session is given to others too.
const LOOKS: usize = 8;
/// Waits between tries to connect: the first, doubled up to the last.
const RECONNECT: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// Stands for all types.
const ALL: &str = "*";

/// Who waits for jobs, and what wakes them.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    wake: Notify,
    waiting: Mutex<FxHashMap<JobType, usize>>,
    /// Do notifications reach us?
    listens: AtomicBool,
}

/// Somebody who waits for these types.
pub(super) struct Waiting<'a> {
    wakes: &'a Wakes,
    types: &'a [JobType],
}

impl Wakes {
    /// What becomes ready when somebody changes something.
    pub fn notified(&self) -> tokio::sync::futures::Notified<'_> {
        self.wake.notified()
    }

    /// Notes who waits until the result is dropped.
    pub fn waiting<'a>(&'a self, types: &'a [JobType]) -> Waiting<'a> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for job_type in types {
            *waiting.entry(job_type.clone()).or_default() += 1;
        }
        Waiting { wakes: self, types }
    }

    /// Wakes everybody who waits.
    pub fn all(&self) {
        self.wake.notify_waiters();
    }

    /// Wakes those who wait, if any of them waits for one of these types.
    pub fn about<'a>(&self, types: impl IntoIterator<Item = &'a str>) {
        let is_awaited = {
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            !waiting.is_empty() && types.into_iter().any(|name| name == ALL || waiting.contains_key(name))
        };
        if is_awaited {
            self.all();
        }
    }

    pub fn listens(&self) -> bool {
        self.listens.load(Ordering::Relaxed)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.wakes.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for job_type in self.types {
            if let Some(count) = waiting.get_mut(job_type) {
                *count -= 1;
                if *count == 0 {
                    waiting.remove(job_type);
                }
            }
        }
    }
}

/// Listens until `ended`, or until it is clear that nothing can be heard here.
pub(super) async fn run(server: Arc<Server>, link: Arc<Link>, wakes: Arc<Wakes>, ended: CancellationToken) {
    let mut pause = RECONNECT[0];
    loop {
        let heard = tokio::select! {
            heard = listen(&server, &link, &wakes, &mut pause) => heard,
            () = ended.cancelled() => return,
        };
        wakes.listens.store(false, Ordering::Relaxed);
        match heard {
            Ok(Heard::Nothing) => {
                log::write(Verbosity::Errors, None, || {
                    "notifications do not reach this client, as behind PgBouncer in transaction mode: it polls, which \
                     finds a job within a second; to be told at once, give listen_url=… with the address \
                     of the server itself, or listen=false to say that this is fine"
                        .to_owned()
                });
                return;
            }
            Ok(Heard::End) => {}
            Err(error) => {
                // Nobody else uses this address, so nobody else would say that it is wrong.
                let is_news = server.listener.is_some() && pause == RECONNECT[0];
                let level = if is_news { Verbosity::Errors } else { Verbosity::Worker };
                log::write(level, None, || {
                    format!("listening for jobs failed, so this client polls until it can: {error}")
                });
            }
        }
        tokio::select! {
            () = sleep(pause.mul_f64(0.75 + 0.5 * fastrand::f64())) => {}
            () = ended.cancelled() => return,
        }
        pause = (pause * 2).min(RECONNECT[1]);
    }
}

enum Heard {
    /// The connection ended.
    End,
    /// Not even ourselves.
    Nothing,
}

/// Is the session that was ours given to others, as by a pooler in transaction mode? LISTEN would go on in it, for them.
async fn is_shared(server: &Server, client: &Client, link: &Link, doing: Doing) -> Result<bool> {
    let sql = include_str!("sql/backend.sql");
    let mut before = None;
    for _ in 0..LOOKS {
        let rows = client.query_typed(sql, &[]).await;
        let rows = rows.map_err(|error| explain(&server.schema, doing, error))?;
        let ours = rows.first().map(|row| row.get::<_, String>(0));
        let others = link.query_one(doing, sql, &[]).await?.get::<_, String>(0);
        if ours.as_ref() == Some(&others) || before.is_some_and(|before| before != ours) {
            return Ok(true);
        }
        before = Some(ours);
    }
    Ok(false)
}

async fn listen(server: &Server, link: &Link, wakes: &Wakes, pause: &mut Duration) -> Result<Heard> {
    let address = server.listener.as_ref().unwrap_or(&server.address);
    let (client, mut connection) = address.connect(None).await?;
    let (heard, mut payloads) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let next = |cx: &mut std::task::Context<'_>| connection.poll_message(cx);
        let mut messages = futures_util::stream::poll_fn(next);
        while let Ok(Some(message)) = messages.try_next().await {
            if let AsyncMessage::Notification(notification) = message
                && heard.send(notification.payload().to_owned()).is_err()
            {
                break;
            }
        }
    });
    let doing = Doing::Read("listening for jobs");
    if is_shared(server, &client, link, doing).await? {
        return Ok(Heard::Nothing);
    }
    let sql = server.schema.sql(include_str!("sql/listen.sql"));
    client.batch_execute(&sql).await.map_err(|error| explain(&server.schema, doing, error))?;
    // From another connection: behind a pooler an own notification may reach us although others do not.
    let echo = format!("?{:x}", fastrand::u64(..));
    let sql = server.schema.sql(include_str!("sql/notify.sql"));
    link.query(doing, &sql, &[(&echo, Type::TEXT)]).await?;
    let came_back = timeout(ECHO, async {
        while let Some(payload) = payloads.recv().await {
            if payload == echo {
                return true;
            }
        }
        false
    });
    match came_back.await {
        Ok(true) => {}
        Ok(false) => return Ok(Heard::End),
        Err(_) => return Ok(Heard::Nothing),
    }
    wakes.listens.store(true, Ordering::Relaxed);
    *pause = RECONNECT[0];
    // What came before we listened has not been heard.
    wakes.all();
    while let Some(payload) = payloads.recv().await {
        if !payload.starts_with('?') {
            wakes.about([payload.as_str()]);
        }
    }
    Ok(Heard::End)
}
