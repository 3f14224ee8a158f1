//! The schema: its name in statements, its version, and the migrations that make it.

use tokio_postgres::Client;

use super::errors::{explain, missing, outdated, too_new};
use crate::backend::remote::Doing;
use crate::error::{Error, Result};

/// Longest name that Postgres keeps whole.
const MAX_NAME_BYTES: usize = 63;
/// What stands before the schema's name in that of the channel of its notifications.
const CHANNEL: &str = "dejq:";

/// What brings a schema up to date, in order. The number of a file is the version that it leads to.
const MIGRATIONS: [Migration; 2] = [
    Migration::new("001_create_tables", include_str!("../../../migrations/postgres/001_create_tables.sql")),
    Migration::new(
        "002_create_functions",
        include_str!("../../../migrations/postgres/002_create_functions.sql"),
    ),
];

struct Migration {
    name: &'static str,
    sql: &'static str,
}

impl Migration {
    const fn new(name: &'static str, sql: &'static str) -> Self {
        Self { name, sql }
    }

    /// Does it leave clients of the version before unable to work?
    fn is_breaking(&self) -> bool {
        self.sql.starts_with("-- breaking: yes")
    }
}

/// A schema by name.
#[derive(Debug, Clone)]
pub(super) struct Schema {
    name: String,
    quoted: String,
}

impl Schema {
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for a name that Postgres would refuse or shorten.
    pub fn new(name: &str) -> Result<Self> {
        let most = MAX_NAME_BYTES - CHANNEL.len();
        // The name stands in statements, in texts, in bodies of functions and between quotes.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_- ".contains(&byte);
        if name.is_empty() || name.len() > most || !name.bytes().all(is_plain) || name.starts_with("pg_") {
            return Err(Error::config(format!(
                "schema={name:?} cannot be the name of a schema: it needs 1 to {most} of A-Z a-z 0-9 _ - and space, and no \"pg_\" in front, \
                 which Postgres keeps for itself; leave it out for \"dejq\""
            )));
        }
        Ok(Self { name: name.to_owned(), quoted: format!("\"{name}\"") })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A statement as it is in its file, for this schema.
    pub fn sql(&self, template: &str) -> String {
        template
            .replace("dejq:schema", &format!("{CHANNEL}{}", self.name))
            .replace("dejq.", &format!("{}.", self.quoted))
    }

    /// All migrations, for people who apply them by themselves.
    pub fn script(&self) -> String {
        let mut script = self.sql(include_str!("sql/prepare.sql"));
        for (version, migration) in (1..).zip(&MIGRATIONS) {
            script.extend([
                "\n-- ",
                migration.name,
                "\n\n",
                &self.sql(migration.sql),
                &self.note(version, migration),
            ]);
        }
        script
    }

    fn note(&self, version: i32, migration: &Migration) -> String {
        self.sql(include_str!("sql/note.sql"))
            .replace("$1", &version.to_string())
            .replace("$2", &format!("'{}'", migration.name))
            .replace("$3", &migration.is_breaking().to_string())
    }

    /// # Errors
    /// [`ErrorKind::SchemaMissing`](crate::error::ErrorKind::SchemaMissing) and
    /// [`ErrorKind::SchemaOutdated`](crate::error::ErrorKind::SchemaOutdated), with what to type.
    pub async fn check(&self, client: &Client) -> Result<()> {
        let (version, breaking) = self.version(client).await?;
        let known = MIGRATIONS.len() as i32;
        match version {
            0 => Err(missing(self)),
            version if version < known => Err(outdated(self, version, known)),
            _ if breaking.is_some_and(|breaking| breaking > known) => Err(too_new(self, version, known)),
            _ => Ok(()),
        }
    }

    /// The version in the database (0: none) and the latest that broke with older clients.
    async fn version(&self, client: &Client) -> Result<(i32, Option<i32>)> {
        let doing = Doing::Read("looking at the version of the schema");
        let explained = |error| explain(self, doing, error);
        let sql = self.sql(include_str!("sql/version.sql"));
        match client.query_typed(&sql, &[]).await {
            Ok(rows) => Ok(rows.first().map_or((0, None), |row| (row.get(0), row.get(1)))),
            Err(error) if super::errors::is_undefined(&error) => Ok((0, None)),
            Err(error) => Err(explained(error)),
        }
    }

    /// Applies what is missing, each file in a transaction of its own; says what was done. Of several who do it at
    /// the same time each waits for the one before.
    pub async fn migrate(&self, client: &Client) -> Result<Vec<String>> {
        let doing = Doing::Write("migrating the schema");
        let explained = |error| explain(self, doing, error);
        let mut done = Vec::new();
        loop {
            // One round trip: a transaction that has ended holds no lock while this one thinks.
            let begin = self.sql(include_str!("sql/prepare.sql"));
            client.batch_execute(&format!("BEGIN;\n{begin}")).await.map_err(explained)?;
            let applied = match self.version(client).await {
                Ok((version, _)) => self.apply_next(client, version).await,
                Err(error) => Err(error),
            };
            let end = if applied.is_ok() { "COMMIT" } else { "ROLLBACK" };
            let ended = client.batch_execute(end).await.map_err(explained);
            match applied? {
                Some(what) => done.push(what),
                None => return Ok(done),
            }
            ended?;
        }
    }

    async fn apply_next(&self, client: &Client, version: i32) -> Result<Option<String>> {
        let Some(migration) = MIGRATIONS.get(version as usize) else { return Ok(None) };
        let sql = format!("{};\n{}", self.sql(migration.sql), self.note(version + 1, migration));
        let doing = Doing::Write("migrating the schema");
        client.batch_execute(&sql).await.map_err(|error| explain(self, doing, error))?;
        Ok(Some(format!("{} in schema {}", migration.name, self.name)))
    }
}
