//! Where the server is and who connects to it: the URL and options.

use std::fmt;
use std::path::Path;

use percent_encoding::percent_decode_str;
use redis::{
    ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo,
    TlsCertificates,
};

use crate::backend::Options;
use crate::error::{Error, Result};

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_SENTINEL_PORT: u16 = 26379;
const UNREADABLE: &str = "the URL cannot be read as redis://USER:PASSWORD@HOST:PORT/DB (rediss:// for TLS, \
                          redis+unix:///path/to/socket for a socket, [::1]:6379 for IPv6, several hosts with commas \
                          between them); a special character in user or password is written %40 for @, %2F for /, %3A \
                          for :, %3F for ?, %23 for #, %25 for %";

/// The checked way to a server, or to several of which one is the primary. Neither `Debug` nor `Display` shows a
/// password.
pub(super) struct Address {
    pub places: Vec<Place>,
    /// The places are sentinels, which know the primary by this name.
    pub sentinel: Option<String>,
    pub login: Login,
    pub sentinel_login: Login,
    pub db: u32,
    tls: Option<TlsCertificates>,
}

/// Who connects.
#[derive(Default)]
pub(super) struct Login {
    user: Option<String>,
    password: Option<String>,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Tcp(String, u16),
    Socket(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Socket(path) => f.write_str(path),
        }
    }
}

impl Login {
    /// How it makes itself known, if it has to. A user without a password may be one who needs none.
    pub fn command(&self) -> Option<Cmd> {
        let mut command = redis::cmd("AUTH");
        match (&self.user, &self.password) {
            (None, None) => return None,
            (None, Some(password)) => command.arg(password),
            (Some(user), password) => command.arg(user).arg(password.as_deref().unwrap_or_default()),
        };
        Some(command)
    }
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.user, &self.password) {
            (Some(user), Some(_)) => write!(f, "user {user:?} with this password"),
            (Some(user), None) => write!(f, "user {user:?} without a password"),
            (None, Some(_)) => f.write_str("the default user with this password"),
            (None, None) => f.write_str("anybody without a password"),
        }
    }
}

impl Address {
    /// Reads a URL of the scheme `redis`, `valkey` (plain), `rediss`, `valkeys` (TLS, verified), `redis+unix` or
    /// `valkey+unix`, whose query is in `options` already, and takes from these: `username`, `password`, `db` (default
    /// 0), `sentinel` (the name of the primary; the hosts are then sentinels), `sentinel_username`,
    /// `sentinel_password`, `sslrootcert` (a PEM file; default: what this system trusts), `sslcert` and `sslkey` (PEM
    /// files of the client).
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for what cannot be understood or used.
    pub fn parse(url: &str, options: &mut Options) -> Result<Self> {
        let unreadable = || Error::config(UNREADABLE);
        let (scheme, rest) = url.split_once("://").ok_or_else(unreadable)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A password with a ? or # in it ends the URL too early: what is left of it must not be shown as a name.
        let is_cut = |pair: &str| pair.split('=').next().is_some_and(|name| name.contains('@'));
        if rest.contains('#') || query.split('&').any(is_cut) {
            return Err(unreadable());
        }
        let (login, place) =
            rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
        let (user, password) = match login {
            None => (None, None),
            Some(login) => {
                let (user, password) =
                    login.split_once(':').map_or((login, None), |(user, rest)| (user, Some(rest)));
                (Some(decoded(user)?), password.map(decoded).transpose()?)
            }
        };
        let mut text = |name, given: Option<String>| -> Result<Option<String>> {
            let option = options.take(name, "text", |text| Some(text.to_owned()))?;
            Ok(option.or(given).filter(|text| !text.is_empty()))
        };
        let login = Login { user: text("username", user)?, password: text("password", password)? };
        let sentinel = text("sentinel", None)?;
        let sentinel_login =
            Login { user: text("sentinel_username", None)?, password: text("sentinel_password", None)? };
        if sentinel.is_none() && sentinel_login.command().is_some() {
            return Err(Error::config(
                "sentinel_username and sentinel_password are for sentinels, and this URL names a server; add sentinel=NAME \
                 if its hosts are sentinels, or write username and password",
            ));
        }
        let files = [text("sslrootcert", None)?, text("sslcert", None)?, text("sslkey", None)?];
        let db = options.take_number("db", 0_u32)?;
        let is_tls = matches!(scheme, "rediss" | "valkeys");
        let (places, db_in_url) = if scheme.ends_with("+unix") {
            let path = decoded(place)?;
            if !path.starts_with('/') {
                return Err(unreadable());
            }
            (vec![Place::Socket(path)], None)
        } else {
            let (hosts, db) = place.split_once('/').unwrap_or((place, ""));
            let port = if sentinel.is_some() { DEFAULT_SENTINEL_PORT } else { DEFAULT_PORT };
            let places =
                hosts.split(',').map(|host| tcp(host, port).ok_or_else(unreadable)).collect::<Result<_>>()?;
            let db = (!db.is_empty()).then(|| db.parse().map_err(|_| unreadable())).transpose()?;
            (places, db)
        };
        let db = db.or(db_in_url).unwrap_or_default();
        Ok(Self { places, sentinel, login, sentinel_login, db, tls: certificates(is_tls, files)? })
    }

    /// Does it ask for TLS?
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// How to reach the server at this place. Who connects is said afterwards, when there is an answer to read.
    pub fn client(&self, place: &Place) -> redis::RedisResult<redis::Client> {
        let addr = match place {
            Place::Socket(path) => ConnectionAddr::Unix(path.into()),
            Place::Tcp(host, port) if self.tls.is_some() => {
                ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
            }
            Place::Tcp(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
        };
        let plain = RedisConnectionInfo::default().set_skip_set_lib_name();
        let info: ConnectionInfo = addr.into_connection_info()?.set_redis_settings(plain);
        match &self.tls {
            Some(certificates) if matches!(place, Place::Tcp(..)) => {
                redis::Client::build_with_tls(info, certificates.clone())
            }
            _ => redis::Client::open(info),
        }
    }
}

fn tcp(text: &str, default_port: u16) -> Option<Place> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(default_port), |port| port.parse().ok().filter(|port| *port > 0))?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte);
    let host = if host.is_empty() { "localhost" } else { host };
    host.bytes().all(is_name).then(|| Place::Tcp(host.to_owned(), port))
}

fn decoded(text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|error| Error::config(UNREADABLE).with_source(error))
}

fn certificates(
    is_tls: bool,
    [root, certificate, key]: [Option<String>; 3],
) -> Result<Option<TlsCertificates>> {
    if !is_tls {
        if root.is_some() || certificate.is_some() || key.is_some() {
            return Err(Error::config(
                "sslrootcert, sslcert and sslkey are for TLS, and this URL asks for none; write rediss:// (or valkeys://)",
            ));
        }
        return Ok(None);
    }
    let client_tls = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(ClientTlsConfig {
            client_cert: read("sslcert", &certificate)?,
            client_key: read("sslkey", &key)?,
        }),
        (None, None) => None,
        _ => {
            return Err(Error::config(
                "sslcert and sslkey belong together: the first is the client's certificate, the second its key",
            ));
        }
    };
    let root_cert = root.map(|path| read("sslrootcert", &path)).transpose()?;
    let certificates = TlsCertificates { client_tls, root_cert };
    let anywhere = ConnectionAddr::TcpTls { host: String::new(), port: 0, insecure: false, tls_params: None };
    let tried = anywhere
        .into_connection_info()
        .and_then(|info| redis::Client::build_with_tls(info, certificates.clone()));
    match tried {
        Ok(_) => Ok(Some(certificates)),
        Err(error) => Err(Error::config(format!("sslrootcert, sslcert or sslkey cannot be used: {error}"))
            .with_source(error)),
    }
}

/// A PEM file.
fn read(option: &str, path: &str) -> Result<Vec<u8>> {
    let text = std::fs::read(Path::new(path)).map_err(|error| {
        Error::config(format!("{option}={path:?} cannot be read: {error}")).with_source(error)
    })?;
    if text.windows(11).any(|part| part == b"-----BEGIN ") {
        return Ok(text);
    }
    let what = if option == "sslkey" { "PRIVATE KEY" } else { "CERTIFICATE" };
    Err(Error::config(format!(
        "{option}={path:?} is no PEM file: it has no line -----BEGIN {what}-----; `openssl x509 -in FILE -out FILE` (or \
         `openssl pkey`) makes one"
    )))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<_> = self.places.iter().map(Place::to_string).collect();
        match &self.sentinel {
            None => f.write_str(&places.join(",")),
            Some(name) => write!(f, "{name:?} of the sentinels {}", places.join(",")),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Address").field(&self.to_string()).field(&self.login.user).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<Address> {
        let mut options = Options::default();
        options.add_query(url);
        let address = Address::parse(url, &mut options)?;
        options.finish().map(|()| address)
    }

    #[test]
    fn a_url_names_places_and_who_connects() {
        let tcp = |host: &str, port| Place::Tcp(host.to_owned(), port);
        for (url, places, user, password, db) in [
            ("redis://", vec![tcp("localhost", 6379)], None, None, 0),
            ("redis://h", vec![tcp("h", 6379)], None, None, 0),
            ("valkey://h:7/3", vec![tcp("h", 7)], None, None, 3),
            ("redis://:p%40@h", vec![tcp("h", 6379)], None, Some("p@"), 0),
            ("redis://u:p@q@h", vec![tcp("h", 6379)], Some("u"), Some("p@q"), 0),
            ("redis://h?username=u&password=p&db=2", vec![tcp("h", 6379)], Some("u"), Some("p"), 2),
            ("redis://a,b:1,[::1]:2/4", vec![tcp("a", 6379), tcp("b", 1), tcp("::1", 2)], None, None, 4),
            ("redis://a,b/4?sentinel=m", vec![tcp("a", 26379), tcp("b", 26379)], None, None, 4),
            ("redis+unix:///run/r.sock?db=1", vec![Place::Socket("/run/r.sock".to_owned())], None, None, 1),
        ] {
            let address = parsed(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(address.places, places, "{url}");
            let Login { user: found, password: given } = &address.login;
            assert_eq!((found.as_deref(), given.as_deref()), (user, password), "{url}");
            assert_eq!(address.db, db, "{url}");
            assert!(!format!("{address} {address:?}").contains("p@"), "{url}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for (url, part) in [
            ("redis://h:port", "cannot be read"),
            ("redis://h:0", "cannot be read"),
            ("redis://h/zero", "cannot be read"),
            ("redis://h/-1", "cannot be read"),
            ("redis://h h", "cannot be read"),
            ("redis://::1", "cannot be read"),
            ("redis://[::1]x", "cannot be read"),
            ("redis://u:12?34@h", "cannot be read"),
            ("redis://u:12#34@h", "cannot be read"),
            ("redis+unix://r.sock", "cannot be read"),
            ("redis://h?sentinel_password=p", "add sentinel=NAME"),
            ("redis://h?db=-1", "db=\"-1\""),
            ("redis://h?sslrootcert=/x", "write rediss://"),
            ("rediss://h?sslrootcert=/nowhere", "cannot be read"),
            ("rediss://h?sslcert=/x", "belong together"),
            ("redis://h?sentinal=m", "did you mean \"sentinel\""),
        ] {
            let error = parsed(url).map(|_| ()).map_err(|error| error.to_string());
            assert!(error.as_ref().is_err_and(|text| text.contains(part)), "{url}: {error:?}");
        }
    }
}
