//! Several processes as one: each reports to its supervisor over a socket, and the supervisor adds up. Counters of a
//! process that has ended stay in the sum, so that no sum ever goes backwards.
//!
//! The supervisor sends a byte, the process answers with its page: four bytes of length, big-endian, and the text. Before
//! it ends, it sends its last page without being asked.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::families as f;
use super::page::Page;
use super::{Source, Wanted};

const OWN: u8 = b'o';
const WITH_STORE: u8 = b's';
/// A process answers within two seconds, even if its store does not.
const PATIENCE: Duration = Duration::from_secs(3);
/// What a process that has ended has sent is in the socket already.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Far above what 100 types need.
const MOST_BYTES: u32 = 16 << 20;

/// The supervisor's processes.
#[derive(Debug, Default)]
pub struct Team {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    members: BTreeMap<u32, Arc<Member>>,
    /// What is left of those that have ended.
    left: Page,
    restarts: u64,
}

#[derive(Debug)]
struct Member {
    asks: tokio::sync::Mutex<OwnedWriteHalf>,
    latest: watch::Receiver<Page>,
    has_answered: AtomicBool,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Team {
    /// Takes up a process, whose [`Reporter`] has the other end. `number` must be free.
    pub fn add(&self, runtime: &Handle, number: u32, socket: StdStream) -> Result<()> {
        let _inside = runtime.enter();
        let (from, to) = connect(socket)?.into_split();
        let (sender, latest) = watch::channel(Page::default());
        let member = Member {
            asks: tokio::sync::Mutex::new(to),
            latest,
            has_answered: AtomicBool::new(false),
            reader: Mutex::new(Some(runtime.spawn(read(from, sender)))),
        };
        self.state().members.insert(number, Arc::new(member));
        Ok(())
    }

    /// A process has ended. Its counters stay.
    pub async fn remove(&self, number: u32) {
        let Some(member) = self.state().members.get(&number).cloned() else { return };
        let reader = member.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut reader) = reader
            && timeout(LAST_WORDS, &mut reader).await.is_err()
        {
            // A child of its own holds the socket open.
            reader.abort();
        }
        let mut state = self.state();
        if state.members.remove(&number).is_some() {
            let last = member.latest.borrow().clone().without_gauges();
            state.left.merge(&last);
        }
    }

    /// A process was started in place of another.
    pub fn restarted(&self) {
        self.state().restarts += 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Source for Team {
    async fn page(&self, wanted: Wanted) -> Page {
        let members: Vec<_> =
            self.state().members.iter().map(|(number, member)| (*number, Arc::clone(member))).collect();
        // The store is the same for all: one of them asks it, and not one that is known to hang.
        let has_answered = |(_, member): &(u32, Arc<Member>)| member.has_answered.load(Ordering::Relaxed);
        let asker = members.iter().position(has_answered).unwrap_or(0);
        let mut asking = JoinSet::new();
        for (place, (number, member)) in members.into_iter().enumerate() {
            let ask = if wanted == Wanted::WithStore && place == asker { WITH_STORE } else { OWN };
            asking.spawn(async move { member.ask(ask).await.then_some(number) });
        }
        let answered: Vec<u32> = asking.join_all().await.into_iter().flatten().collect();
        let state = self.state();
        let mut sum = state.left.clone();
        for (number, member) in &state.members {
            let latest = member.latest.borrow();
            if answered.contains(number) {
                sum.merge(&latest);
            } else {
                // Its counters are not lost, but what it once said about a moment is over.
                sum.merge(&latest.clone().without_gauges());
            }
        }
        sum.add(&f::RESTARTS, "", state.restarts as f64);
        sum
    }
}

impl Member {
    /// Has it answered?
    async fn ask(&self, ask: u8) -> bool {
        let answer = async {
            let mut latest = self.latest.clone();
            latest.mark_unchanged();
            self.asks.lock().await.write_all(&[ask]).await.is_ok() && latest.changed().await.is_ok()
        };
        let has_answered = timeout(PATIENCE, answer).await.unwrap_or(false);
        self.has_answered.store(has_answered, Ordering::Relaxed);
        has_answered
    }
}

async fn read(mut from: OwnedReadHalf, latest: watch::Sender<Page>) {
    while let Ok(text) = read_text(&mut from).await {
        latest.send_replace(Page::from_text(&text));
    }
}

async fn read_text(from: &mut OwnedReadHalf) -> Result<String> {
    let length = from.read_u32().await?;
    if length > MOST_BYTES {
        return Err(Error::from(ErrorKind::InvalidData));
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes).await?;
    String::from_utf8(bytes).map_err(Error::other)
}

/// A process's side: answers its supervisor.
#[derive(Debug)]
pub struct Reporter {
    is_over: CancellationToken,
    answering: Mutex<Option<JoinHandle<()>>>,
}

impl Reporter {
    /// Answers until the supervisor is gone.
    pub fn start(runtime: &Handle, socket: StdStream, source: Arc<dyn Source>) -> Result<Self> {
        let _inside = runtime.enter();
        let (from, to) = connect(socket)?.into_split();
        let is_over = CancellationToken::new();
        let answering = runtime.spawn(answer(from, to, source, is_over.clone()));
        Ok(Self { is_over, answering: Mutex::new(Some(answering)) })
    }

    /// Sends the last page: nothing will be counted any more.
    pub async fn finish(&self) {
        self.is_over.cancel();
        let answering = self.answering.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(answering) = answering {
            // A supervisor that does not read any more is no reason to stay.
            let _ = timeout(PATIENCE, answering).await;
        }
    }
}

async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    source: Arc<dyn Source>,
    is_over: CancellationToken,
) {
    let mut asked = [0; 64];
    loop {
        let (wanted, is_last) = tokio::select! {
            read = from.read(&mut asked) => match read {
                Ok(count) if asked[..count].contains(&WITH_STORE) => (Wanted::WithStore, false),
                Ok(1..) => (Wanted::Own, false),
                _ => return,
            },
            () = is_over.cancelled() => (Wanted::Own, true),
        };
        let text = source.page(wanted).await.text();
        if write_text(&mut to, &text).await.is_err() || is_last {
            return;
        }
    }
}

async fn write_text(to: &mut OwnedWriteHalf, text: &str) -> Result<()> {
    to.write_u32(text.len() as u32).await?;
    to.write_all(text.as_bytes()).await
}

/// Call it inside the runtime.
fn connect(socket: StdStream) -> Result<UnixStream> {
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}
