//! One connection to the server, opened when it is first needed and again after it broke.
//!
//! Statements are prepared, once per connection, where the connection leads to one session of the server. A pooler such as
//! PgBouncer may run each statement in another session, and a name that was given in one may stand for something else in
//! the next: there every statement is sent whole. Either way it needs nothing else of the session.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use futures_util::TryStreamExt;
use rustc_hash::FxHashMap;
use tokio::sync::Mutex;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use super::address::Address;
use super::dial::Connection;
use super::errors::{self, explain};
use super::schema::Schema;
use crate::backend::remote::Doing;
use crate::error::Result;

/// A value and its type in the statement.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// What all links of a backend share.
#[derive(Debug)]
pub(super) struct Server {
    pub address: Address,
    /// Where to listen instead, past a pooler.
    pub listener: Option<Address>,
    pub schema: Schema,
    /// Has this client seen that the schema is one that it can work with?
    checked: AtomicBool,
    /// Has the way to the server refused the options that would tell a session from a pool of them?
    refuses_options: AtomicBool,
}

impl Server {
    pub fn new(address: Address, listener: Option<Address>, schema: Schema) -> Arc<Self> {
        Arc::new(Self {
            address,
            listener,
            schema,
            checked: AtomicBool::new(false),
            refuses_options: AtomicBool::new(false),
        })
    }

    /// A new connection, and whether it leads to a session of its own.
    async fn connect(&self) -> Result<(Client, Connection, Mark)> {
        let mark = Mark::new();
        if !self.refuses_options.load(Ordering::Relaxed) {
            match self.address.connect(Some(&mark.option())).await {
                Ok((client, connection)) => return Ok((client, connection, mark)),
                Err(error) if errors::is_option_refused(&error) => {
                    self.refuses_options.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        let (client, connection) = self.address.connect(None).await?;
        Ok((client, connection, mark))
    }

    /// A connection whose messages nobody needs but the statements themselves.
    pub async fn open(&self) -> Result<Session> {
        let (client, connection, mark) = self.connect().await?;
        tokio::spawn(async move {
            // Errors come out of the statements that they belong to.
            let _ = connection.await;
        });
        let is_own = mark
            .is_seen(&client)
            .await
            .map_err(|error| explain(&self.schema, Doing::Read("connecting"), error))?;
        Ok(Session { client, is_own, prepared: SyncMutex::default() })
    }
}

/// A setting that is asked for on the way in, and shows whether what comes after arrives in the same session.
pub(super) struct Mark(String);

impl Mark {
    fn new() -> Self {
        Self(format!("{:016x}", fastrand::u64(..)))
    }

    fn option(&self) -> String {
        format!("-c dejq.session={}", self.0)
    }

    async fn is_seen(&self, client: &Client) -> Result<bool, tokio_postgres::Error> {
        let rows = client.query_typed(include_str!("sql/session.sql"), &[]).await?;
        Ok(rows.first().is_some_and(|row| row.get::<_, Option<&str>>(0) == Some(&self.0)))
    }
}

/// An open connection.
pub(super) struct Session {
    pub client: Client,
    pub is_own: bool,
    prepared: SyncMutex<FxHashMap<String, Statement>>,
}

impl Session {
    async fn query(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, tokio_postgres::Error> {
        if !self.is_own {
            let owned = params.iter().map(|(value, kind)| (*value, kind.clone()));
            return self.client.query_typed_raw(sql, owned).await?.try_collect().await;
        }
        let statement = self.prepare(sql, params).await?;
        let values = params.iter().map(|(value, _)| *value);
        self.client.query_raw(&statement, values).await?.try_collect().await
    }

    async fn prepare(&self, sql: &str, params: &[Param<'_>]) -> Result<Statement, tokio_postgres::Error> {
        let prepared = || self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(statement) = prepared().get(sql) {
            return Ok(statement.clone());
        }
        let kinds: Vec<Type> = params.iter().map(|(_, kind)| kind.clone()).collect();
        let statement = self.client.prepare_typed(sql, &kinds).await?;
        prepared().insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

/// A place for one connection. Statements sent at the same time wait for each other on the server, not here.
pub(super) struct Link {
    server: Arc<Server>,
    session: Mutex<Option<Arc<Session>>>,
}

impl Link {
    pub fn new(server: &Arc<Server>) -> Self {
        Self { server: Arc::clone(server), session: Mutex::new(None) }
    }

    /// The rows of one statement.
    pub async fn query(&self, doing: Doing, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>> {
        let session = self.session().await?;
        self.answer(doing, session.query(sql, params).await).await
    }

    /// The only row of one statement.
    pub async fn query_one(&self, doing: Doing, sql: &str, params: &[Param<'_>]) -> Result<Row> {
        let rows = self.query(doing, sql, params).await?;
        rows.into_iter().next().ok_or_else(|| errors::no_row(doing))
    }

    /// The connection, which has been opened if need be and has seen the right schema.
    pub async fn session(&self) -> Result<Arc<Session>> {
        let mut place = self.session.lock().await;
        if let Some(session) = place.as_ref().filter(|session| !session.client.is_closed()) {
            return Ok(Arc::clone(session));
        }
        // Connecting takes a large future, and hardly ever happens.
        let session = Arc::new(Box::pin(self.server.open()).await?);
        if !self.server.checked.load(Ordering::Relaxed) {
            self.server.schema.check(&session.client).await?;
            self.server.checked.store(true, Ordering::Relaxed);
        }
        Ok(Arc::clone(place.insert(session)))
    }

    /// The next statement goes by a new connection.
    pub async fn abandon(&self) {
        *self.session.lock().await = None;
    }

    /// Explains an error, and gives up a connection that leads to a server which cannot do what was asked: the next
    /// call looks for the right one again.
    pub async fn answer<T>(&self, doing: Doing, result: Result<T, tokio_postgres::Error>) -> Result<T> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                if errors::is_wrong_server(&error) {
                    *self.session.lock().await = None;
                }
                Err(explain(&self.server.schema, doing, error))
            }
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("server", &self.server).finish_non_exhaustive()
    }
}
