//! What `dejq doctor` says about a database.

use std::time::SystemTime;

use super::PostgresBackend;
use super::rows::unreadable;
use crate::backend::remote::{Doing, clocks};
use crate::backend::{Finding, Level};
use crate::error::{ErrorKind, Result};

/// The oldest server that the schema is tested on.
const OLDEST: i32 = 130_000;
/// Dead rows that vacuum should have taken away long ago.
const MANY_DEAD: i64 = 500_000;

impl PostgresBackend {
    pub(super) async fn findings(&self) -> Result<Vec<Finding>> {
        let finding = |level, name: &str, text: String, fix: Option<&str>| Finding {
            level,
            name: name.to_owned(),
            text,
            fix: fix.map(str::to_owned),
        };
        let session = self.server.open().await?;
        let client = &session.client;
        let address = &self.server.address;
        let mut findings = vec![finding(Level::Ok, "connection", address.to_string(), None)];
        findings.extend(
            address.warnings().iter().map(|text| finding(Level::Warn, "connection", text.clone(), None)),
        );
        match self.server.schema.check(client).await {
            Ok(()) => {
                findings.push(finding(
                    Level::Ok,
                    "schema",
                    format!("{:?} is up to date", self.server.schema.name()),
                    None,
                ));
            }
            Err(error) if matches!(error.kind(), ErrorKind::SchemaMissing | ErrorKind::SchemaOutdated) => {
                findings.push(finding(Level::Error, "schema", error.text().to_owned(), Some("dejq migrate")));
            }
            Err(error) => return Err(error),
        }
        let doing = Doing::Read("looking at the server");
        let asked = SystemTime::now();
        let row = client.query_typed(&self.sql.check, &[]).await;
        let answered = SystemTime::now();
        let rows = self.work.answer(doing, row).await?;
        let Some(row) = rows.first() else { return Ok(findings) };
        let version: &str = row.try_get(0).map_err(unreadable)?;
        let is_old = row.try_get::<_, i32>(1).map_err(unreadable)? < OLDEST;
        findings.push(finding(
            if is_old { Level::Error } else { Level::Ok },
            "server",
            format!("PostgreSQL {version}"),
            is_old.then_some("use PostgreSQL 13 or newer"),
        ));
        if !row.try_get::<_, bool>(2).map_err(unreadable)? {
            findings.push(finding(
                Level::Warn,
                "durability",
                "fsync or synchronous_commit is off, so that a crash of the server loses jobs it has confirmed".to_owned(),
                Some("ALTER ROLE … SET synchronous_commit = on, and fsync = on in postgresql.conf"),
            ));
        }
        if !row.try_get::<_, bool>(3).map_err(unreadable)? {
            findings.push(finding(
                Level::Warn,
                "autovacuum",
                "autovacuum is off, so that the table of jobs grows without end".to_owned(),
                Some("autovacuum = on and track_counts = on in postgresql.conf"),
            ));
        }
        let snapshots: i64 = row.try_get(4).map_err(unreadable)?;
        if snapshots > 0 {
            findings.push(finding(
                Level::Warn,
                "snapshots",
                format!("{snapshots} transactions have been open for more than 10 minutes; nothing that ended since can be cleaned up"),
                Some("look for them in pg_stat_activity, and set idle_in_transaction_session_timeout"),
            ));
        }
        let dead: Option<i64> = row.try_get(5).map_err(unreadable)?;
        if dead.is_some_and(|dead| dead > MANY_DEAD) {
            findings.push(finding(
                Level::Warn,
                "dead rows",
                format!("{} rows wait for a vacuum", dead.unwrap_or_default()),
                Some("client.vacuum(), and look for what keeps autovacuum away"),
            ));
        }
        findings.extend(clocks(asked, row.try_get(6).map_err(unreadable)?, answered));
        findings.extend(rights(row.try_get(7).map_err(unreadable)?, row.try_get(8).map_err(unreadable)?));
        // A listener of its own goes past the pooler, and without any there is nothing to lose.
        let is_pooled = !session.is_own && self.options.listen && self.server.listener.is_none();
        if is_pooled || self.listener_is_deaf() {
            findings.push(finding(
                Level::Warn,
                "notifications",
                "notifications do not reach this client (PgBouncer?), so that a waiting worker finds a job within a second".to_owned(),
                Some("give listen_url=… with the address of the server itself, or listen=false to say that this is fine"),
            ));
        }
        Ok(findings)
    }
}

/// What the user may do; nothing of a schema that is not there.
fn rights(may_enqueue: Option<bool>, may_work: Option<bool>) -> Option<Finding> {
    let (level, text, fix) = match (may_enqueue?, may_work?) {
        (true, true) => (Level::Ok, "its user may enqueue and work jobs", None),
        // As a producer should.
        (true, false) => (Level::Ok, "its user may enqueue jobs, not work them", None),
        (false, _) => (
            Level::Error,
            "its user may not enqueue jobs",
            Some("grant what docs/postgres.md lists under \"Least privilege\""),
        ),
    };
    Some(Finding { level, name: "rights".to_owned(), text: text.to_owned(), fix: fix.map(str::to_owned) })
}
