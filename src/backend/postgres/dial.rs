//! Opening a session: the servers of an address in turn, each by the addresses of its name, and what it means when
//! none lets us in.

use std::error::Error as StdError;
use std::io;

use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_postgres::config::{Config, Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::{Address, Target};
use super::tls;
use crate::error::{Error, ErrorKind, Result};

/// A session's other half, with TLS or without: whoever opens it drives it by `poll_message`.
pub type Connection =
    tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

type Failure = Box<dyn StdError + Send + Sync>;

impl Address {
    /// Opens a session with the first server in the given order that can be reached and has the wanted
    /// `target_session_attrs`. `extra_options` are switches for the server, like `-c enable_seqscan=off`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when a server refuses the user, the password, the database or TLS; the servers
    /// after it are not tried then. [`ErrorKind::Unavailable`] when none can be reached.
    pub async fn connect(&self, extra_options: Option<&str>) -> Result<(Client, Connection)> {
        let mut texts = Vec::new();
        let mut last = None;
        for target in &self.targets {
            let failure = match target.open(&self.tls, extra_options).await {
                Ok(session) => return Ok(session),
                Err(failure) => failure,
            };
            let (kind, what, fix) = reason(&*failure);
            let (place, database, user) = (&target.place, &self.database, &self.user);
            let text = format!("cannot connect to {place}/{database} as user {user:?}: {what}; {fix}");
            if kind == ErrorKind::Config {
                return Err(Error::new(kind, text).with_source(failure));
            }
            texts.push(text);
            last = Some(failure);
        }
        let error = Error::new(ErrorKind::Unavailable, texts.join("; "));
        Err(last.into_iter().fold(error, Error::with_source))
    }
}

impl Target {
    /// Tries the addresses of the host's name one after the other, as long as waiting might help.
    async fn open(
        &self,
        tls: &MakeRustlsConnect,
        extra_options: Option<&str>,
    ) -> Result<(Client, Connection), Failure> {
        let mut config = self.config.clone();
        if let Some(extra) = extra_options {
            config.options(format!("{} {extra}", config.get_options().unwrap_or_default()).trim_start());
        }
        let ([Host::Tcp(name)], [port]) = (self.config.get_hosts(), self.config.get_ports()) else {
            return open_one(&config, tls).await;
        };
        let mut last: Failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address").into();
        for address in within(&config, lookup_host((&**name, *port))).await? {
            let mut one = config.clone();
            one.hostaddr(address.ip());
            match open_one(&one, tls).await {
                Err(failure) if reason(&*failure).0 == ErrorKind::Unavailable => last = failure,
                end => return end,
            }
        }
        Err(last)
    }
}

async fn open_one(config: &Config, tls: &MakeRustlsConnect) -> Result<(Client, Connection), Failure> {
    let failure = match within(config, config.connect(tls.clone())).await {
        Err(failure) if config.get_ssl_mode() == SslMode::Prefer => failure,
        end => return end,
    };
    // "If the server offers it" includes a server that offers it and cannot do it, or does not want it from
    // this user.
    if !is_about_tls(&*failure) && sqlstate(&*failure) != Some("28000") {
        return Err(failure);
    }
    let mut plain = config.clone();
    plain.ssl_mode(SslMode::Disable);
    within(config, plain.connect(tls.clone())).await.or(Err(failure))
}

/// The driver's own limit ends with the TCP handshake; a server that accepts and then says nothing needs
/// this one.
async fn within<T, E: Into<Failure>>(
    config: &Config,
    opening: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    let Some(limit) = config.get_connect_timeout() else { return opening.await.map_err(Into::into) };
    let late = |_| {
        let text = format!("no answer within connect_timeout={}", limit.as_secs_f64());
        io::Error::new(io::ErrorKind::TimedOut, text)
    };
    timeout(*limit, opening).await.map_err(late)?.map_err(Into::into)
}

fn sqlstate<'a>(failure: &'a (dyn StdError + 'static)) -> Option<&'a str> {
    failure.downcast_ref::<tokio_postgres::Error>()?.code().map(SqlState::code)
}

/// The driver has the kinds of its errors in their texts only.
fn is_about_tls(failure: &(dyn StdError + 'static)) -> bool {
    tls::ADVICE.explain(failure).is_some() || failure.to_string() == "error performing TLS handshake"
}

/// May it help to try again, what is wrong, and what to do.
fn reason(failure: &(dyn StdError + 'static)) -> (ErrorKind, String, &'static str) {
    use ErrorKind::{Config, Unavailable};
    if let Some((what, fix)) = tls::ADVICE.explain(failure) {
        return (Config, what, fix);
    }
    if let Some(error) =
        failure.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::as_db_error)
    {
        let (kind, fix) = match error.code().code() {
            "28P01" => (Config, "check user and password in the URL, PGUSER, PGPASSWORD and the passfile"),
            "28000" => (
                Config,
                "check that the role may log in, and that pg_hba.conf on the server lets it in from here in \
                 this way (sslmode, sslcert)",
            ),
            "3D000" => (Config, "correct the database in the URL, or create it: createdb NAME"),
            "42501" => (Config, "grant the role what it lacks: GRANT CONNECT ON DATABASE … TO …"),
            "53300" => {
                (Unavailable, "raise max_connections or the role's CONNECTION LIMIT, or use fewer clients")
            }
            "57P03" => (Unavailable, "it starts, stops or recovers, and may take connections soon"),
            // PgBouncer has this one code for all it says, and most of it passes.
            "08P01" if error.message().contains("startup parameter") => {
                (Config, "add the parameter to ignore_startup_parameters of PgBouncer, or connect past it")
            }
            code if ["0A", "22", "42"].iter().any(|class| code.starts_with(class)) => {
                (Config, "check the options it was given")
            }
            _ => (Unavailable, "see the server's log"),
        };
        return (kind, format!("the server says: {} ({})", error.message(), error.code().code()), fix);
    }
    let cause = failure.source();
    let what = cause.map_or_else(|| failure.to_string(), |cause| format!("{failure}: {cause}"));
    let io = failure.downcast_ref().or_else(|| cause?.downcast_ref::<io::Error>());
    match (&*failure.to_string(), io.map(io::Error::kind)) {
        ("invalid configuration", _) => {
            (Config, what, "put the password into the URL, PGPASSWORD or the passfile (chmod 0600)")
        }
        ("authentication error", _) => {
            (Config, what, "the driver knows SCRAM, MD5 and plain passwords: check pg_hba.conf on the server")
        }
        ("error performing TLS handshake", None) => {
            (Config, what, "set ssl=on on the server, or sslmode=prefer to do without when it is off")
        }
        ("error performing TLS handshake", Some(io::ErrorKind::InvalidInput)) => {
            (Config, what, "a certificate can only be for a host name or an IP address: correct host")
        }
        ("error connecting to server", Some(io::ErrorKind::PermissionDenied))
            if cause.is_some_and(is_own) =>
        {
            (
                Unavailable,
                what,
                "wait for the failover to end, name all servers, or change target_session_attrs",
            )
        }
        _ => (
            Unavailable,
            what,
            "check that PostgreSQL runs there, and that host, port and firewall let it be reached",
        ),
    }
}

/// An error that the driver made up and not the operating system.
fn is_own(error: &(dyn StdError + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.raw_os_error().is_none())
}
