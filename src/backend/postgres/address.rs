//! Where the servers are and who connects to them: the URL, options, environment and passfile of libpq.
//!
//! An option (also one in the URL's query) wins over the URL's own parts, these over the environment, this
//! over the passfile, and that over the defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::config::{ChannelBinding, Config, Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::passfile;
use super::tls::{Files, Mode};
use crate::backend::Options;
use crate::error::{Error, Result};

const DEFAULT_PORT: u16 = 5432;
/// Where the packages put the server's socket, and where a build from source does.
pub(super) const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const UNREADABLE: &str = "the URL cannot be read as postgresql://USER:PASSWORD@HOST:PORT/DATABASE; a \
                          special character in one of its parts is written %40 for @, %2F for /, %3A for :, \
                          %3F for ?, %25 for %";

/// The checked way to one or several servers. Neither `Debug` nor `Display` shows the password.
pub struct Address {
    pub(super) targets: Vec<Target>,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) tls: MakeRustlsConnect,
    warnings: Vec<String>,
    /// What was given, by the name of the variable that would have said it.
    said: BTreeMap<&'static str, String>,
}

/// One of the servers, with a password of its own: the passfile has one for each.
pub(super) struct Target {
    pub place: String,
    pub config: Config,
}

impl Address {
    /// Reads a `postgresql://` or `postgres://` URL, whose query is in `options` already, and takes from
    /// these: `host`, `port`, `user`, `password`, `dbname`, `passfile`, `sslmode`, `sslrootcert`, `sslcert`,
    /// `sslkey`, `channel_binding`, `options`, `application_name` (default dejq), `target_session_attrs`
    /// (default `read-write` for several hosts, else `any`), `connect_timeout` (seconds for each address,
    /// default 5, 0 for no limit), `keepalives` (default 1), `keepalives_idle`, `keepalives_interval`
    /// (seconds, default 10 and 3), `keepalives_count` (default 3) and `tcp_user_timeout` (milliseconds,
    /// default 10,000, 0 for the system's).
    ///
    /// Certificates and the passfile are read here, once.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for what cannot be understood or used.
    pub fn parse(url: &str, options: &mut Options) -> Result<Self> {
        Self::parse_in(&|name| std::env::var(name).ok(), url, options)
    }

    /// The address of `listen_url`, which has options of its own in its query. What was given for ours, but for host
    /// and port, counts as if it stood in the environment: user, password, database, TLS.
    ///
    /// # Errors
    /// As [`Address::parse`].
    pub fn listener(&self, listen_url: &str) -> Result<Self> {
        let said = |name: &str| self.said.get(name).filter(|_| !matches!(name, "PGHOST" | "PGPORT")).cloned();
        let variable = |name: &str| said(name).or_else(|| std::env::var(name).ok());
        let mut options = Options::default();
        options.add_query(listen_url);
        Self::parse_in(&variable, listen_url, &mut options)
            .and_then(|address| options.finish().map(|()| address))
            .map_err(|error| Error::config(format!("listen_url: {}", error.text())).with_source(error))
    }

    fn parse_in(variable: &dyn Fn(&str) -> Option<String>, url: &str, options: &mut Options) -> Result<Self> {
        let (url, url_ports) = parse_url(url)?;
        let mut given = Given { options, variable, said: BTreeMap::new() };
        let mut warnings = Vec::new();
        let home = given.variable("HOME").map(PathBuf::from);

        let user = given.text("user", url.get_user(), "PGUSER")?;
        let user = user.map_or_else(whoami::username, Ok).map_err(|error| {
            Error::config("the URL names no user and the system does not either: add user=NAME")
                .with_source(error)
        })?;
        let database = given.text("dbname", url.get_dbname(), "PGDATABASE")?.unwrap_or_else(|| user.clone());
        let hosts = given.hosts(url.get_hosts(), &url_ports)?;

        let in_url = url.get_password().map(str::from_utf8).transpose();
        let in_url = in_url.map_err(|error| Error::config(UNREADABLE).with_source(error))?;
        let password = given.text("password", in_url, "PGPASSWORD")?;
        let passfile = given.text("passfile", None, "PGPASSFILE")?;
        let passwords = match (&password, passfile, &home) {
            (None, Some(path), _) => passfile::read(Path::new(&path), true, &mut warnings),
            (None, None, Some(home)) => passfile::read(&home.join(".pgpass"), false, &mut warnings),
            _ => String::new(),
        };

        let files = Files {
            root: given.text("sslrootcert", None, "PGSSLROOTCERT")?,
            certificate: given.text("sslcert", None, "PGSSLCERT")?,
            key: given.text("sslkey", None, "PGSSLKEY")?,
            folder: home.map(|home| home.join(".postgresql")),
        };
        let mode = given.parsed("sslmode", "PGSSLMODE", Mode::NAMES, Mode::parse)?;
        // A socket never leaves the machine, and PostgreSQL offers no TLS on it.
        let is_socket = |host: &str| host.starts_with('/');
        let has_network = hosts.iter().any(|(host, _)| !is_socket(host));
        let mode = if has_network { mode.unwrap_or_else(|| files.default_mode()) } else { Mode::Disable };
        if mode == Mode::Prefer && files.root.is_some() {
            warnings.push(
                "sslrootcert is not used, for sslmode=prefer verifies nothing; set sslmode=verify-full"
                    .to_owned(),
            );
        }

        let mut common = given.common(hosts.len())?;
        common.user(&user).dbname(&database);
        let target = |(host, port): (String, u16)| {
            let mut config = common.clone();
            config.host(&host).port(port);
            config.ssl_mode(if is_socket(&host) { SslMode::Disable } else { mode.negotiation() });
            if let Some(password) = &password {
                config.password(password);
            } else if let Some(password) = passfile::password_for(&passwords, &host, port, &database, &user) {
                config.password(password);
            }
            let place =
                if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            Target { place, config }
        };
        let targets = hosts.into_iter().map(target).collect();
        let said = given.said;
        Ok(Self { targets, user, database, tls: files.connector(mode)?, warnings, said })
    }

    /// What was ignored and should not stay so, as one text each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<_> = self.targets.iter().map(|target| &*target.place).collect();
        write!(f, "{}/{}", places.join(","), self.database)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Address").field(&self.to_string()).field(&self.user).finish()
    }
}

/// Where settings come from, besides the URL.
struct Given<'a> {
    options: &'a mut Options,
    variable: &'a dyn Fn(&str) -> Option<String>,
    said: BTreeMap<&'static str, String>,
}

impl Given<'_> {
    /// As everywhere in libpq, empty means not set.
    fn variable(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|text| !text.is_empty())
    }

    fn text(
        &mut self,
        option: &'static str,
        in_url: Option<&str>,
        variable: &'static str,
    ) -> Result<Option<String>> {
        let given = self.options.take(option, "text", |text| Some(text.to_owned()))?;
        let given = given.filter(|text| !text.is_empty());
        let in_url = in_url.filter(|text| !text.is_empty()).map(str::to_owned);
        Ok(self.said(variable, given.or(in_url)).or_else(|| self.variable(variable)))
    }

    fn parsed<T>(
        &mut self,
        option: &'static str,
        variable: &'static str,
        must_be: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut text = None;
        let given = self.options.take(option, must_be, |given| {
            text = Some(given.to_owned());
            parse(given)
        })?;
        self.said(variable, text);
        if given.is_some() {
            return Ok(given);
        }
        let Some(text) = self.variable(variable) else { return Ok(None) };
        let wrong = || Error::config(format!("environment variable {variable}={text:?} must be {must_be}"));
        parse(&text).ok_or_else(wrong).map(Some)
    }

    fn said(&mut self, variable: &'static str, text: Option<String>) -> Option<String> {
        self.said.extend(text.clone().map(|text| (variable, text)));
        text
    }

    fn hosts(&mut self, in_url: &[Host], url_ports: &str) -> Result<Vec<(String, u16)>> {
        let names = in_url.iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(folder) => folder.to_string_lossy().into_owned(),
        });
        let in_url = names.collect::<Vec<_>>().join(",");
        let hosts = self.text("host", Some(&in_url), "PGHOST")?.unwrap_or_default();
        let hosts: Vec<_> = hosts.split(',').map(str::trim).collect();
        let text = self.text("port", Some(url_ports), "PGPORT")?.unwrap_or_default();
        let port = |port: &str| match port {
            "" => Some(DEFAULT_PORT),
            port => port.trim().parse().ok().filter(|port| *port > 0),
        };
        let ports: Option<Vec<u16>> = text.split(',').map(port).collect();
        let ports =
            ports.filter(|ports| ports.len() == 1 || ports.len() == hosts.len()).ok_or_else(|| {
                let hosts = hosts.len();
                Error::config(format!(
                    "port={text:?} must be one number from 1 to 65535, or as many as hosts ({hosts})"
                ))
            })?;
        let ports = ports.iter().cycle().copied();
        Ok(hosts.into_iter().zip(ports).map(|(host, port)| (named_or_default(host, port), port)).collect())
    }

    /// What is the same for all servers. A dead one is noticed after 20 s: a job's lease is not much longer.
    fn common(&mut self, hosts: usize) -> Result<Config> {
        let mut config = Config::new();
        let name = self.text("application_name", None, "PGAPPNAME")?;
        config.application_name(name.unwrap_or_else(|| "dejq".to_owned()));

        if let Some(options) = self.text("options", None, "PGOPTIONS")? {
            config.options(options);
        }
        let must_be = "disable, prefer or require";
        let binding = self.parsed("channel_binding", "PGCHANNELBINDING", must_be, |text| match text {
            "disable" => Some(ChannelBinding::Disable),
            "prefer" => Some(ChannelBinding::Prefer),
            "require" => Some(ChannelBinding::Require),
            _ => None,
        })?;
        config.channel_binding(binding.unwrap_or(ChannelBinding::Prefer));

        let must_be = "any, read-write, primary (the same here) or read-only";
        let wanted =
            self.parsed("target_session_attrs", "PGTARGETSESSIONATTRS", must_be, |text| match text {
                "any" => Some(TargetSessionAttrs::Any),
                "read-write" | "primary" => Some(TargetSessionAttrs::ReadWrite),
                "read-only" => Some(TargetSessionAttrs::ReadOnly),
                _ => None,
            })?;
        // Of several servers all but one are standbys as a rule, and these take no jobs.
        let default = if hosts > 1 { TargetSessionAttrs::ReadWrite } else { TargetSessionAttrs::Any };
        config.target_session_attrs(wanted.unwrap_or(default));

        let must_be = "a number of seconds, or 0 for no limit";
        let seconds = |text: &str| text.parse().ok().and_then(|it| Duration::try_from_secs_f64(it).ok());
        let limit = self.parsed("connect_timeout", "PGCONNECT_TIMEOUT", must_be, seconds)?;
        let limit = limit.unwrap_or(Duration::from_secs(5));
        if !limit.is_zero() {
            config.connect_timeout(limit);
        }

        let least = Duration::from_secs(1);
        let alive = self.options.take("keepalives", "0 or 1", |text| match text {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        })?;
        let idle = self.options.take_seconds("keepalives_idle", least)?;
        let interval = self.options.take_seconds("keepalives_interval", least)?;
        let count = self.options.take_number("keepalives_count", 1)?;
        let unacknowledged = self.options.take_number("tcp_user_timeout", 0)?;
        config
            .keepalives(alive.unwrap_or(true))
            .keepalives_idle(idle.unwrap_or(Duration::from_secs(10)))
            .keepalives_interval(interval.unwrap_or(Duration::from_secs(3)))
            .keepalives_retries(count.unwrap_or(3))
            .tcp_user_timeout(Duration::from_millis(unacknowledged.unwrap_or(10_000)));
        Ok(config)
    }
}

/// The URL without its query as the driver reads it, and the ports as they stand in it: the driver's list
/// does not tell 5432 from none.
fn parse_url(url: &str) -> Result<(Config, String)> {
    let (url, query) = url.split_once('?').unwrap_or((url, ""));
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    // A password's bare @, / or ? would end up in a host, database or option, and be shown as such. Of a password
    // with a ? the @ after it is in the query, so there none may be bare, although libpq would take it.
    let at = |text: &str| text.matches('@').count();
    let is_url = url.starts_with("postgres://") || url.starts_with("postgresql://");
    if !is_url || at(rest) > 1 || at(rest) != at(authority) || at(query) > 0 {
        return Err(Error::config(UNREADABLE));
    }
    let config =
        url.parse().map_err(|error: tokio_postgres::Error| Error::config(UNREADABLE).with_source(error))?;
    let hosts = authority.rsplit('@').next().unwrap_or_default().split(',');
    let after_name = |host: &str| host.rsplit(']').next()?.split_once(':').map(|(_, port)| port.to_owned());
    let ports: Vec<_> = hosts.map(|host| after_name(host).unwrap_or_default()).collect();
    Ok((config, if ports.iter().all(String::is_empty) { String::new() } else { ports.join(",") }))
}

/// No host is a socket on this machine when there is one, as it is for psql.
fn named_or_default(host: &str, port: u16) -> String {
    let has_socket = |folder: &&&str| Path::new(folder).join(format!(".s.PGSQL.{port}")).exists();
    match host {
        "" => (*SOCKET_FOLDERS.iter().find(has_socket).unwrap_or(&"localhost")).to_owned(),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn parse(url: &str, options: Variables<'_>, variables: Variables<'_>) -> Result<Address> {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut options = Options::new(options);
        options.add_query(url); // as `connect` does it
        let variable = |name: &str| {
            let found = variables.iter().find(|(given, _)| *given == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let address = Address::parse_in(&variable, url, &mut options)?;
        options.finish()?;
        Ok(address)
    }

    fn good(url: &str, options: Variables<'_>, variables: Variables<'_>) -> Address {
        parse(url, options, variables).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    fn passwords(address: &Address) -> Vec<&str> {
        let all = address.targets.iter().map(|target| target.config.get_password().unwrap_or_default());
        all.map(|password| str::from_utf8(password).unwrap_or("not UTF-8")).collect()
    }

    #[test]
    fn a_url_is_read_as_libpq_reads_it() {
        let environment: Variables<'_> =
            &[("PGUSER", "env"), ("PGPORT", "7"), ("PGHOST", "penv"), ("PGDATABASE", "")];
        for (url, user, password, place) in [
            ("postgresql://", "env", "", "penv:7/env"),
            ("postgres:///jobs", "env", "", "penv:7/jobs"),
            ("postgresql://u@/jobs", "u", "", "penv:7/jobs"),
            ("postgresql://u@:8/jobs", "u", "", "penv:8/jobs"),
            ("postgresql://h", "env", "", "h:7/env"),
            ("postgresql://u:p@h:6000/d", "u", "p", "h:6000/d"),
            ("postgresql://u%40x:a%2Fb%3A%25%20+@h/d%2Fe", "u@x", "a/b:% +", "h:7/d/e"),
            ("postgresql://h/d?user=u&password=p%26+%20&dbname=e&port=9&host=i", "u", "p&+ ", "i:9/e"),
            ("postgresql://a,b:2,[::1]:3/d", "env", "", "a:5432,b:2,[::1]:3/d"),
            ("postgresql://a,b/d", "env", "", "a:7,b:7/d"),
            ("postgresql://[fe80::1]/d", "env", "", "[fe80::1]:7/d"),
            ("postgresql:///d?host=a,b&port=1,", "env", "", "a:1,b:5432/d"),
            ("postgresql:///d?host=/run/pg", "env", "", "/run/pg:7/d"),
            ("postgresql://%2Frun%2Fpg:8/d", "env", "", "/run/pg:8/d"),
        ] {
            let address = good(url, &[], environment);
            assert_eq!(address.to_string(), place, "{url}");
            assert_eq!(address.user, user, "{url}");
            assert_eq!(passwords(&address)[0], password, "{url}");
        }
        assert_eq!(good("postgres://u@", &[("port", "1")], &[]).to_string(), "localhost:1/u");
    }

    #[test]
    fn what_is_not_understood_is_refused_without_the_password() {
        for (url, part) in [
            ("postgresql://u:hunter2@x@h/d", "%40 for @"),
            ("postgresql://u:hun/ter2@h/d", "%2F for /"),
            ("postgresql://u:hun?ter2@h/d", "%3F for ?"),
            ("postgresql://u:12?hunter2=x@h/d", "%3F for ?"),
            ("postgresql://u:1/2?hunter2=x@h/d", "%3F for ?"),
            ("postgresql://u:p@s?hunter2=x@h/d", "%3F for ?"),
            ("postgresql://u:p:hunter2@h:x/d", "cannot be read"),
            ("postgresql://u:hunter2@h:0/d", "from 1 to 65535"),
            ("postgresql://u:hunter2@a,b,c/d?port=1,2", "as many as hosts (3)"),
            ("postgresql://u:hunter2@h/d?sslmode=on", "sslmode=\"on\" must be disable"),
            ("postgresql://u:hunter2@h/d?sslmode=verify-ca", "set sslrootcert"),
            ("postgresql://u:hunter2@h/d?sslmode=require&sslrootcert=system", "verify-full"),
            ("postgresql://u:hunter2@h/d?sslmode=verify-full&sslrootcert=/nowhere", "sslrootcert=/nowhere"),
            ("postgresql://u:hunter2@h/d?sslkey=/nowhere", "without sslcert"),
            ("postgresql://u:hunter2@h/d?target_session_attrs=standby", "must be any"),
            ("postgresql://u:hunter2@h/d?keepalives_idle=0", "at least 1"),
            ("postgresql://u:hunter2@h/d?pasword=hunter2", "no option \"pasword\""),
        ] {
            let text =
                parse(url, &[], &[]).map_or_else(|error| format!("{error} {error:?}"), |it| it.to_string());
            assert!(text.contains("DEJQ-E100") && text.contains(part), "{url}: {text}");
            assert!(!text.contains("hunter2") && !text.contains("ter2"), "{url}: {text}");
        }
        let text = parse("postgresql://h", &[], &[("PGSSLMODE", "on")])
            .map_or_else(|error| error.to_string(), |_| String::new());
        assert!(text.contains("environment variable PGSSLMODE=\"on\" must be"), "{text}");
        let shown = format!("{0} {0:?}", good("postgresql://u:hunter2@h/d", &[], &[]));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn options_win_over_the_url_the_environment_and_the_defaults() {
        let environment: Variables<'_> = &[
            ("PGPASSWORD", "env"),
            ("PGAPPNAME", "env"),
            ("PGSSLMODE", "require"),
            ("PGCONNECT_TIMEOUT", "2"),
            ("PGTARGETSESSIONATTRS", "read-only"),
        ];
        let config = |url, options, variables| good(url, options, variables).targets.remove(0).config;
        let plain = config("postgresql://u@h", &[], &[]);
        assert_eq!(plain.get_application_name(), Some("dejq"));
        assert_eq!(plain.get_connect_timeout(), Some(&Duration::from_secs(5)));
        assert_eq!(plain.get_ssl_mode(), SslMode::Prefer);
        assert_eq!(plain.get_target_session_attrs(), TargetSessionAttrs::Any);
        assert_eq!(plain.get_keepalives_idle(), Duration::from_secs(10));
        assert_eq!(plain.get_tcp_user_timeout(), Some(&Duration::from_secs(10)));
        let several = config("postgresql://u@h,i", &[], &[]);
        assert_eq!(several.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);

        let from_env = config("postgresql://u@h", &[], environment);
        assert_eq!(from_env.get_password(), Some(&b"env"[..]));
        assert_eq!(from_env.get_application_name(), Some("env"));
        assert_eq!(from_env.get_connect_timeout(), Some(&Duration::from_secs(2)));
        assert_eq!(from_env.get_ssl_mode(), SslMode::Require);
        assert_eq!(from_env.get_target_session_attrs(), TargetSessionAttrs::ReadOnly);

        let options = &[("password", "given"), ("connect_timeout", "0"), ("sslmode", "disable")];
        let chosen = config("postgresql://u:url@h?application_name=query", options, environment);
        assert_eq!(chosen.get_password(), Some(&b"given"[..]));
        assert_eq!(chosen.get_application_name(), Some("query"));
        assert_eq!(chosen.get_connect_timeout(), None);
        assert_eq!(chosen.get_ssl_mode(), SslMode::Disable);
        let in_url = config("postgresql://u:url@h", &[], environment);
        assert_eq!(in_url.get_password(), Some(&b"url"[..]));
        let socket = config("postgresql://u@%2Frun", &[], environment);
        assert_eq!(socket.get_ssl_mode(), SslMode::Disable);
        good("postgresql://u@%2Frun?sslmode=verify-full&sslrootcert=/nowhere", &[], &[]);
    }

    #[test]
    fn a_listener_has_its_own_host_and_takes_over_what_its_url_leaves_out() {
        let url = "postgresql://u:hunter2@bouncer:6432/d?sslmode=require&target_session_attrs=read-only";
        let address = good(url, &[("application_name", "mine")], &[]);
        let listener = |url: &str| address.listener(url).unwrap_or_else(|error| panic!("{error}"));
        let taken_over = listener("postgresql://db");
        assert_eq!(taken_over.to_string(), "db:5432/d");
        assert_eq!((&*taken_over.user, passwords(&taken_over)), ("u", vec!["hunter2"]));
        let config = &taken_over.targets[0].config;
        assert_eq!(config.get_application_name(), Some("mine"));
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
        assert_eq!(config.get_target_session_attrs(), TargetSessionAttrs::ReadOnly);
        let own = listener("postgres://v:w@db:7/e?sslmode=disable");
        assert_eq!((own.to_string(), &*own.user, passwords(&own)), ("db:7/e".to_owned(), "v", vec!["w"]));
        assert_eq!(own.targets[0].config.get_ssl_mode(), SslMode::Disable);
        for (url, part) in [
            ("db", "cannot be read"),
            ("host=db", "cannot be read"),
            ("postgresql://v:hunter2@w@db", "%40 for @"),
            ("postgresql://v:hunter2@db?shema=x", "no option \"shema\""),
        ] {
            let text =
                address.listener(url).map_or_else(|error| format!("{error} {error:?}"), |it| it.to_string());
            assert!(text.contains("listen_url: ") && text.contains(part), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{url}: {text}");
        }
    }

    #[test]
    fn a_passfile_that_others_may_read_is_ignored_with_a_warning() {
        let home = std::env::temp_dir().join(format!("dejq-passfile-{}", std::process::id()));
        std::fs::create_dir_all(&home).unwrap_or_else(|error| panic!("{error}"));
        let path = home.join(".pgpass");
        let write = |mode| {
            std::fs::write(&path, "a:*:*:*:of-a\nb:*:*:*:of-b\n")?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
        };
        let home = home.to_string_lossy();
        let parse = |url| good(url, &[], &[("HOME", &home)]);

        write(0o600).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(passwords(&parse("postgresql://u@a,b,c/d")), ["of-a", "of-b", ""]);
        assert_eq!(passwords(&parse("postgresql://u:url@a,b/d")), ["url", "url"]);
        write(0o640).unwrap_or_else(|error| panic!("{error}"));
        let address = parse("postgresql://u@a/d");
        assert_eq!(passwords(&address), [""]);
        assert!(address.warnings()[0].contains("chmod 0600"), "{:?}", address.warnings());
        std::fs::remove_dir_all(&*home).unwrap_or_else(|error| panic!("{error}"));

        assert!(parse("postgresql://u@a/d").warnings().is_empty(), "the default one need not be there");
        let named = good("postgresql://u@a/d", &[("passfile", "/nowhere")], &[]);
        assert!(named.warnings()[0].contains("/nowhere"), "{:?}", named.warnings());
    }
}
