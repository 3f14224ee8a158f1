//! One connection to the server, opened when it is first needed and again after it broke.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind as Kind, Pipeline, RedisError, RedisResult, Value};
use tokio::sync::Mutex;

use super::dial::{self, About, Dialer};
use super::errors::{self, explain};
use super::script::Call;
use crate::backend::remote::Doing;
use crate::error::{Error, ErrorKind, Result};

/// A server that says nothing for so long is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How often a call follows a cluster to another node.
const MOST_MOVES: usize = 3;

/// A place for one connection. Calls made at the same time wait for each other on the server, not here.
pub(super) struct Link {
    dialer: Arc<Dialer>,
    connection: Mutex<Option<Connection>>,
}

/// A connection, and whether it is known to be broken.
#[derive(Clone)]
pub(super) struct Connection {
    inner: MultiplexedConnection,
    is_broken: Arc<AtomicBool>,
}

impl Connection {
    pub fn new(inner: MultiplexedConnection) -> Self {
        Self { inner, is_broken: Arc::new(AtomicBool::new(false)) }
    }

    pub async fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self.inner.send_packed_command(command).await? {
            Value::ServerError(error) => Err(error.into()),
            value => Ok(value),
        }
    }
}

impl Link {
    pub fn new(dialer: &Arc<Dialer>) -> Self {
        Self { dialer: Arc::clone(dialer), connection: Mutex::new(None) }
    }

    /// The answer of a script.
    pub async fn run(&self, doing: Doing, call: &Call) -> Result<Value> {
        for _ in 0..MOST_MOVES {
            let mut connection = self.connection().await?;
            let mut result = connection.ask(&call.command).await;
            if result.as_ref().is_err_and(|error| errors::code(error) == "NOSCRIPT") {
                let load = load(call.script.text());
                result = match connection.ask(&load).await {
                    Ok(_) => connection.ask(&call.command).await,
                    failed => failed,
                };
            }
            match result {
                Ok(value) => return Ok(value),
                Err(error) if errors::code(&error) == "MOVED" => {
                    self.dialer.moved(&error);
                    self.give_up(&connection).await;
                }
                Err(error) => return Err(self.failed(doing, error, &connection).await),
            }
        }
        Err(moving(doing))
    }

    /// The same, with less patience than this connection has for others.
    pub async fn run_within(&self, patience: Duration, doing: Doing, call: &Call) -> Result<Value> {
        if let Ok(answer) = tokio::time::timeout(patience, self.run(doing, call)).await {
            return answer;
        }
        // Who opens a new one just now is not kept from it.
        if let Ok(mut open) = self.connection.try_lock() {
            open.take();
        }
        let text = format!("{} failed: the server is silent", doing.what());
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// Commands that happen together or not at all.
    pub async fn transaction(&self, doing: Doing, transaction: &Pipeline) -> Result<()> {
        for _ in 0..MOST_MOVES {
            let mut connection = self.connection().await?;
            match transaction.query_async::<Value>(&mut connection.inner).await {
                Ok(_) => return Ok(()),
                Err(error) if errors::code(&error) == "MOVED" => {
                    self.dialer.moved(&error);
                    self.give_up(&connection).await;
                }
                // The server refused the whole of it at its end, as it does while a slot moves.
                Err(error) if error.kind() == Kind::UnexpectedReturnType => return Err(moving(doing)),
                Err(error) => return Err(self.failed(doing, error, &connection).await),
            }
        }
        Err(moving(doing))
    }

    /// What the server says of itself.
    pub async fn about(&self) -> Result<About> {
        let mut connection = self.connection().await?;
        match dial::about(&mut connection.inner).await {
            Ok(about) => Ok(about),
            Err(error) => Err(self.failed(Doing::Read("looking at the server"), error, &connection).await),
        }
    }

    /// The answer of a single command.
    pub async fn command(&self, doing: Doing, command: &Cmd) -> Result<Value> {
        let mut connection = self.connection().await?;
        match connection.ask(command).await {
            Ok(value) => Ok(value),
            Err(error) => Err(self.failed(doing, error, &connection).await),
        }
    }

    /// The same on a connection that must still be the one in use: what came before went by it.
    pub async fn command_on(&self, mut connection: Connection, doing: Doing, command: &Cmd) -> Result<Value> {
        let is_open = |open: &Connection| Arc::ptr_eq(&open.is_broken, &connection.is_broken);
        if !self.connection.lock().await.as_ref().is_some_and(is_open) {
            let text = format!("{}: the connection broke before the server had confirmed it", doing.what());
            return Err(Error::new(ErrorKind::OutcomeUnknown, text));
        }
        match connection.ask(command).await {
            Ok(value) => Ok(value),
            Err(error) => Err(self.failed(doing, error, &connection).await),
        }
    }

    async fn failed(&self, doing: Doing, error: RedisError, connection: &Connection) -> Error {
        if errors::is_broken(&error) || errors::is_wrong_server(&error) {
            self.give_up(connection).await;
        }
        explain(doing, error)
    }

    /// The next call goes by a new connection, unless somebody has seen to that already.
    async fn give_up(&self, connection: &Connection) {
        connection.is_broken.store(true, Ordering::Relaxed);
        self.connection.lock().await.take_if(|open| open.is_broken.load(Ordering::Relaxed));
    }

    /// The connection, which has been opened if need be.
    pub async fn connection(&self) -> Result<Connection> {
        let mut place = self.connection.lock().await;
        if let Some(open) = &*place {
            return Ok(open.clone());
        }
        // Connecting takes a large future, and hardly ever happens.
        let opened = Connection::new(Box::pin(self.dialer.connect(Some(PATIENCE))).await?);
        Ok(place.insert(opened).clone())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("dialer", &self.dialer).finish_non_exhaustive()
    }
}

fn moving(doing: Doing) -> Error {
    let what = doing.what();
    let text =
        format!("{what} failed: the nodes of the cluster send from one to the other; is it being resharded?");
    Error::new(ErrorKind::Unavailable, text)
}

fn load(text: &str) -> Cmd {
    let mut command = redis::cmd("SCRIPT");
    command.arg("LOAD").arg(text);
    command
}
