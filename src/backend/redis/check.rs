//! What `dejq doctor` says about a server and the queue in it.

use std::time::SystemTime;

use super::dial::About;
use super::frame::from_micros;
use super::{Durability, RedisBackend};
use crate::backend::remote::clocks;
use crate::backend::{Finding, Level};
use crate::error::Result;

/// Of `maxmemory`, in percent: from there on there is not much left.
const NEARLY_FULL: u64 = 80;

impl RedisBackend {
    pub(super) async fn findings(&self) -> Result<Vec<Finding>> {
        let mut findings = self.server_findings(&self.work.about().await?);
        let asked = SystemTime::now();
        let server = from_micros(self.now().await?);
        findings.extend(clocks(asked, server, SystemTime::now()));
        findings.push(self.balance().await?);
        Ok(findings)
    }

    fn server_findings(&self, about: &About) -> Vec<Finding> {
        let finding = |level, name: &str, text: String, fix: Option<&str>| Finding {
            level,
            name: name.to_owned(),
            text,
            fix: fix.map(str::to_owned),
        };
        let mut findings = vec![finding(Level::Ok, "connection", self.dialer.address.to_string(), None)];
        if about.is_unknown() {
            let text =
                "its user may not ask for INFO, so that version, memory and persistence were not looked at";
            let fix = "ACL SETUSER … +info";
            findings.push(finding(Level::Warn, "server", text.to_owned(), Some(fix)));
            return findings;
        }
        findings.push(finding(Level::Ok, "server", about.name(), None));
        if self.settings.allows_eviction && about.get("maxmemory_policy").starts_with("allkeys") {
            let text = format!(
                "maxmemory-policy is {}: a full server throws jobs away",
                about.get("maxmemory_policy")
            );
            let fix = "CONFIG SET maxmemory-policy noeviction";
            findings.push(finding(Level::Warn, "memory", text, Some(fix)));
        }
        let (used, most) = (about.number("used_memory"), about.number("maxmemory"));
        if most > 0 && used * 100 > most * NEARLY_FULL {
            let percent = used * 100 / most;
            let text = format!("{percent} % of maxmemory are in use; a full server refuses every enqueue");
            let fix = "raise maxmemory, or start more workers";
            findings.push(finding(Level::Warn, "memory", text, Some(fix)));
        }
        if about.number("aof_enabled") == 0 {
            let text = match self.settings.durability {
                Durability::Replicas(_) => "there is no append-only file: jobs are as safe as the replicas",
                _ => {
                    "there is no append-only file: a crash of the server loses what came after its last snapshot"
                }
            };
            let fix = "CONFIG SET appendonly yes (docs/redis.md: what is kept when something breaks)";
            findings.push(finding(Level::Warn, "durability", text.to_owned(), Some(fix)));
        }
        for (name, what) in [
            ("aof_last_write_status", "the last write to the append-only file failed"),
            ("aof_last_bgrewrite_status", "the last rewrite of the append-only file failed"),
            ("rdb_last_bgsave_status", "the last snapshot failed"),
        ] {
            if !matches!(about.get(name), "" | "ok") {
                let fix = "look into the log of the server; is its disk full, or not writable?";
                findings.push(finding(Level::Error, "durability", what.to_owned(), Some(fix)));
            }
        }
        findings
    }
}
