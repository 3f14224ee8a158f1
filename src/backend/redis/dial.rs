//! The way to the primary: directly, as sentinels name it, or as the nodes of a cluster send from one to another.
//!
//! What a server says of itself is looked at on the way in: its version, whether it writes, whether it may throw jobs
//! away when its memory is full, and whether the queue in it is one that this version understands.

use std::collections::{HashMap, VecDeque};
use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind as Kind, RedisError, RedisResult, Value};

use super::address::{Address, Login, Place};
use super::errors::{self, explain, told};
use super::keys::Keys;
use super::{Durability, Settings};
use crate::backend::remote::{Doing, tls::Advice};
use crate::error::{Error, ErrorKind, Result};

/// How long one try to connect may take, with all that is looked at.
const CONNECT: Duration = Duration::from_secs(5);
/// The oldest server with all commands of the scripts (`LPOP key count`).
const OLDEST: (u32, u32) = (6, 2);
/// The version of what `keys.rs` describes.
const FORMAT: &str = "1";
const DOING: Doing = Doing::Read("connecting");
const TLS: Advice = Advice {
    no_tls: "write redis:// instead of rediss://, or name the port that does (tls-port of the server)",
    broken_off: "check sslcert and sslkey, which it may want to see (its tls-ca-cert-file must know the authority that \
                 signed them), and its log",
    other_host: "connect to a name that it has, or give it this name as a subjectAltName",
    unverified: "give the server an X.509 v3 certificate with a subjectAltName that was signed by an authority and not \
                 by itself",
};

/// Opens connections.
pub(super) struct Dialer {
    pub address: Address,
    pub keys: Keys,
    settings: Settings,
    /// Where the queue was found last, or where a node of a cluster said that it is.
    found: Mutex<Option<Place>>,
}

/// What `INFO` says, by name.
#[derive(Debug, Default)]
pub(super) struct About(HashMap<String, String>);

impl About {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        Self(lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Has the user no right to ask?
    pub fn is_unknown(&self) -> bool {
        self.0.is_empty()
    }

    pub fn number(&self, name: &str) -> u64 {
        self.get(name).parse().unwrap_or_default()
    }

    /// Valkey says which Redis it is compatible with.
    pub fn version(&self) -> (u32, u32) {
        let mut numbers =
            self.get("redis_version").split('.').map(|number| number.parse().unwrap_or_default());
        (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
    }

    pub fn name(&self) -> String {
        match self.get("valkey_version") {
            "" => format!("Redis {}", self.get("redis_version")),
            version => format!("Valkey {version}"),
        }
    }
}

impl Dialer {
    pub fn new(address: Address, keys: Keys, settings: Settings) -> Self {
        Self { address, keys, settings, found: Mutex::default() }
    }

    fn found(&self) -> MutexGuard<'_, Option<Place>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node of a cluster named another one: "MOVED 3999 127.0.0.1:6381".
    pub fn moved(&self, error: &RedisError) {
        let Some((host, port)) = error.redirect_node().and_then(|(node, _)| node.rsplit_once(':')) else {
            return;
        };
        let Ok(port) = port.parse() else { return };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut found = self.found();
        *found = match (host, found.take()) {
            // The same host as that of the node which says so.
            ("" | "?", Some(Place::Tcp(host, _))) => Some(Place::Tcp(host, port)),
            ("" | "?", _) => None,
            (host, _) => Some(Place::Tcp(host.to_owned(), port)),
        };
    }

    /// A new connection to a server that takes writes; `patience` is how long it waits for an answer.
    pub async fn connect(&self, patience: Option<Duration>) -> Result<MultiplexedConnection> {
        let mut places = self.candidates().await?;
        let mut tried: Vec<Place> = Vec::new();
        let mut failed = None;
        while let Some(place) = places.pop_front() {
            if tried.contains(&place) {
                continue;
            }
            match within(&place, &self.address, self.connect_to(&place, patience)).await {
                Ok(connection) => {
                    *self.found() = Some(place);
                    return Ok(connection);
                }
                // What is wrong with one server does not get better at the next.
                Err(error) if !error.is_transient() => return Err(error),
                Err(error) => failed = Some(error),
            }
            // A node of a cluster may have named another one just now.
            let named = self.found().clone();
            places.extend(named.into_iter().filter(|named| *named != place));
            tried.push(place);
        }
        *self.found() = None;
        Err(failed.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "there is no server to connect to")))
    }

    /// Where the primary may be, the likeliest first.
    async fn candidates(&self) -> Result<VecDeque<Place>> {
        let Some(name) = &self.address.sentinel else {
            let known = self.found().clone();
            return Ok(known.into_iter().chain(self.address.places.iter().cloned()).collect());
        };
        let mut why = Vec::new();
        let mut is_mistake = true;
        for sentinel in &self.address.places {
            match within(sentinel, &self.address, self.ask_sentinel(sentinel, name)).await {
                Ok(Some(primary)) => return Ok(VecDeque::from([primary])),
                Ok(None) => why.push(format!("{sentinel} knows no primary of this name")),
                Err(error) => {
                    is_mistake &= !error.is_transient();
                    why.push(error.text().to_owned());
                }
            }
        }
        Err(Error::new(
            if is_mistake { ErrorKind::Config } else { ErrorKind::Unavailable },
            format!(
                "no sentinel says where the primary {name:?} is ({}); check that the hosts of the URL are sentinels, and \
                 the name after sentinel= (`SENTINEL MASTERS` lists the names)",
                why.join("; ")
            ),
        ))
    }

    async fn ask_sentinel(&self, sentinel: &Place, name: &str) -> Result<Option<Place>> {
        let mut connection = self.open(sentinel, &self.address.sentinel_login, Some(CONNECT)).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("get-master-addr-by-name").arg(name);
        let found: RedisResult<Option<(String, u16)>> = command.query_async(&mut connection).await;
        let found = found.map_err(|error| {
            if told(&error).contains("unknown command") {
                return Error::config(format!("{sentinel} is no sentinel")).with_source(error);
            }
            self.cannot(sentinel, &self.address.sentinel_login, error)
        })?;
        Ok(found.map(|(host, port)| Place::Tcp(host, port)))
    }

    /// A connection that has made itself known, to whatever is there.
    async fn open(
        &self,
        place: &Place,
        login: &Login,
        patience: Option<Duration>,
    ) -> Result<MultiplexedConnection> {
        let cannot = |error| self.cannot(place, login, error);
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(patience);
        let client = self.address.client(place).map_err(cannot)?;
        let mut connection =
            client.get_multiplexed_async_connection_with_config(&config).await.map_err(cannot)?;
        if let Some(command) = login.command() {
            match ask(&mut connection, &command).await {
                Err(error) if errors::code(&error) == "ERR" && !is_crowded(&error) => {
                    return Err(refused(place, login, error));
                }
                answer => answer.map_err(cannot)?,
            };
        }
        // For people who look at `CLIENT LIST`; nothing depends on it.
        let mut command = redis::cmd("CLIENT");
        command.arg("SETNAME").arg(format!("dejq:{}", self.keys.queue()));
        match ask(&mut connection, &command).await {
            Err(error) if errors::is_broken(&error) => Err(cannot(error)),
            _ => Ok(connection),
        }
    }

    async fn connect_to(&self, place: &Place, patience: Option<Duration>) -> Result<MultiplexedConnection> {
        let cannot = |error| self.cannot(place, &self.address.login, error);
        let mut connection = self.open(place, &self.address.login, patience).await?;
        let db = self.address.db;
        if db > 0 {
            let answer = ask(&mut connection, redis::cmd("SELECT").arg(db)).await;
            answer.map_err(|error| match errors::code(&error) {
                "ERR" => {
                    let told = told(&error);
                    Error::config(format!("{place} has no database {db} ({told}); use another db, or none"))
                        .with_source(error)
                }
                _ => cannot(error),
            })?;
        }
        let about = about(&mut connection).await.map_err(cannot)?;
        self.look_at(&about, place)?;
        self.look_at_queue(&mut connection).await.map_err(cannot)??;
        if self.settings.durability == Durability::Aof {
            self.look_at_disk(&mut connection, &about, place).await?;
        }
        Ok(connection)
    }

    /// What kept a connection from being made.
    fn cannot(&self, place: &Place, login: &Login, error: RedisError) -> Error {
        if let Some((why, fix)) = error.source().and_then(|error| TLS.explain(error)) {
            return Error::config(format!("cannot connect to {place}: {why}; {fix}")).with_source(error);
        }
        if error.kind() == Kind::InvalidClientConfig {
            let text = format!(
                "cannot connect to {place}: sslcert and sslkey cannot be used together ({}); is it the key of that \
                 certificate?",
                told(&error)
            );
            return Error::config(text).with_source(error);
        }
        if error.kind() == Kind::Parse {
            let text = format!(
                "cannot connect to {place}: what answers there is no Redis; check host and port{}",
                hint(&self.address)
            );
            return Error::new(ErrorKind::Unavailable, text).with_source(error);
        }
        if errors::is_broken(&error) {
            let text = format!(
                "cannot connect to {place}: {}; check that Redis runs there, and that host, port and firewall let it be \
                 reached{}",
                told(&error),
                if error.is_connection_refusal() { "" } else { hint(&self.address) }
            );
            return Error::new(ErrorKind::Unavailable, text).with_source(error);
        }
        if is_crowded(&error) {
            let text = format!(
                "cannot connect to {place}: {}; raise maxclients there, or end clients that nobody needs (`CLIENT LIST`)",
                told(&error)
            );
            return Error::new(ErrorKind::Unavailable, text).with_source(error);
        }
        if matches!(errors::code(&error), "NOAUTH" | "WRONGPASS") {
            return refused(place, login, error);
        }
        explain(DOING, error)
    }

    /// Refuses a server that cannot keep the promises.
    fn look_at(&self, about: &About, place: &Place) -> Result<()> {
        if about.is_unknown() {
            return Ok(());
        }
        let name = about.name();
        if about.version() < OLDEST {
            return Err(Error::config(format!(
                "{place} is {name}, and dejq needs Redis 6.2 or Valkey; upgrade the server"
            )));
        }
        if !about.get("sentinel_masters").is_empty() {
            return Err(Error::config(format!(
                "{place} is a sentinel; add ?sentinel=NAME, with the name that it knows the primary by (`SENTINEL MASTERS` \
                 lists the names)"
            )));
        }
        if about.get("role") == "slave" {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{place} is a replica and only reads; name the primary in the URL, or the sentinels with \
                     ?sentinel=NAME, which follows a failover"
                ),
            ));
        }
        // The other policies throw only keys away that have a time to live, as none of ours has.
        let policy = about.get("maxmemory_policy");
        if !self.settings.allows_eviction && policy.starts_with("allkeys") {
            return Err(Error::config(format!(
                "{place} has maxmemory-policy {policy}, so it throws jobs away when its memory is full; set it to \
                 noeviction there (`CONFIG SET maxmemory-policy noeviction`), or pass allow_eviction=true if this queue may \
                 lose jobs"
            )));
        }
        Ok(())
    }

    /// Can the server say when a write is on disk? Before `WAITAOF`, only `appendfsync always` is as much as that.
    async fn look_at_disk(
        &self,
        connection: &mut MultiplexedConnection,
        about: &About,
        place: &Place,
    ) -> Result<()> {
        let Err(error) = ask(connection, redis::cmd("WAITAOF").arg(1).arg(0).arg(1)).await else {
            return Ok(());
        };
        if told(&error).contains("appendonly is disabled") {
            return Err(keeps_none(place));
        }
        if !told(&error).contains("unknown command") {
            return Err(self.cannot(place, &self.address.login, error));
        }
        let found = redis::cmd("CONFIG").arg("GET").arg("append*").query_async(connection).await;
        let found: HashMap<String, String> = match found {
            Err(error) if errors::code(&error) != "NOPERM" => {
                return Err(self.cannot(place, &self.address.login, error));
            }
            found => found.unwrap_or_default(),
        };
        let said = |name: &str| found.get(name).map(String::as_str);
        if said("appendonly") == Some("no") {
            return Err(keeps_none(place));
        }
        if said("appendfsync") == Some("always") {
            return Ok(());
        }
        Err(Error::config(format!(
            "durability=aof is not possible on {place}, which is {} with appendfsync {}: only from 7.2 on a server says when \
             a write is on disk; set appendfsync always there, upgrade it, or use durability=memory",
            about.name(),
            said("appendfsync").unwrap_or("unknown (this user may not ask by CONFIG GET)")
        )))
    }

    /// Is what is there of this version? An empty queue becomes so.
    async fn look_at_queue(&self, connection: &mut MultiplexedConnection) -> RedisResult<Result<()>> {
        let meta = self.keys.meta();
        let first = ask(connection, redis::cmd("HSETNX").arg(&meta).arg("format").arg(FORMAT)).await;
        match first {
            // With no memory left, nothing is written; what is there can be read all the same.
            Err(error) if errors::code(&error) == "OOM" => {}
            Err(error) => {
                self.moved(&error);
                return Err(error);
            }
            Ok(_) => {}
        }
        let found: Option<String> =
            redis::cmd("HGET").arg(&meta).arg("format").query_async(connection).await?;
        match found {
            Some(found) if found != FORMAT => Ok(Err(Error::new(
                ErrorKind::SchemaOutdated,
                format!(
                    "the queue {:?} has format {found} and this dejq knows {FORMAT}; use the dejq that it was made with, or \
                     a newer one (`pip install -U dejq`), or another queue",
                    self.keys.queue()
                ),
            ))),
            _ => Ok(Ok(())),
        }
    }
}

fn keeps_none(place: &Place) -> Error {
    Error::config(format!(
        "durability=aof waits until a job is in the append-only file, and {place} keeps none; set appendonly yes there \
         (`CONFIG SET appendonly yes`), or use durability=memory"
    ))
}

fn refused(place: &Place, login: &Login, error: RedisError) -> Error {
    let text = format!(
        "{place} does not let {login} in ({}); check user and password, written redis://USER:PASSWORD@HOST, where \
         redis://:PASSWORD@HOST is the default user",
        told(&error)
    );
    Error::config(text).with_source(error)
}

fn is_crowded(error: &RedisError) -> bool {
    told(error).contains("max number of clients")
}

/// What else may be the reason that a server does not answer.
fn hint(address: &Address) -> &'static str {
    if address.is_tls() {
        "; if that port does not speak TLS, write redis:// instead of rediss://, and if the server wants to see a certificate, \
         set sslcert and sslkey to one that it knows the authority of"
    } else {
        "; if that port speaks TLS, write rediss:// instead of redis://"
    }
}

/// Who says nothing is given up.
async fn within<T>(place: &Place, address: &Address, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(CONNECT, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "cannot connect to {place}: no answer within {} s; check that Redis runs there, and that host, port and \
                 firewall let it be reached{}",
                CONNECT.as_secs(),
                hint(address)
            ),
        )),
    }
}

/// The answer to a command.
async fn ask(connection: &mut MultiplexedConnection, command: &Cmd) -> RedisResult<Value> {
    command.query_async(connection).await
}

/// What the server says of itself; nothing when the user may not ask.
pub(super) async fn about(connection: &mut MultiplexedConnection) -> redis::RedisResult<About> {
    match redis::cmd("INFO").query_async::<String>(connection).await {
        Ok(text) => Ok(About::parse(&text)),
        Err(error) if errors::code(&error) == "NOPERM" => Ok(About::default()),
        Err(error) => Err(error),
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("address", &self.address)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}
