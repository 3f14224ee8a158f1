//! Telling those who wait about jobs that have become ready: in this process at once, and in others by a notification.
//! What comes while one is under way goes with the next, and nobody waits for it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_postgres::types::Type;

use super::link::Link;
use super::listen::Wakes;
use super::sql::Sql;
use crate::backend::remote::Doing;

#[derive(Debug)]
pub(super) struct Notifier {
    link: Arc<Link>,
    sql: Arc<Sql>,
    wakes: Arc<Wakes>,
    news: Mutex<News>,
}

#[derive(Debug, Default)]
struct News {
    types: BTreeSet<String>,
    is_told: bool,
}

impl Notifier {
    pub fn new(link: &Arc<Link>, sql: &Arc<Sql>, wakes: &Arc<Wakes>) -> Arc<Self> {
        let (link, sql, wakes) = (Arc::clone(link), Arc::clone(sql), Arc::clone(wakes));
        Arc::new(Self { link, sql, wakes, news: Mutex::default() })
    }

    /// Jobs of these types have become ready, or soon will.
    pub fn tell<'a>(self: &Arc<Self>, types: impl IntoIterator<Item = &'a str>) {
        // Neighbours often have the same one, and a set remembers few of many.
        let mut last = None;
        let types: BTreeSet<&str> =
            types.into_iter().filter(|name| last.replace(*name) != Some(*name)).collect();
        if types.is_empty() {
            return;
        }
        self.wakes.about(types.iter().copied());
        let is_told = {
            let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
            news.types.extend(types.into_iter().map(str::to_owned));
            std::mem::replace(&mut news.is_told, true)
        };
        if !is_told {
            let notifier = Arc::clone(self);
            tokio::spawn(async move {
                // A claim of this process that was just woken sends its statement first, on the same connection.
                tokio::task::yield_now().await;
                while let Some(types) = notifier.next() {
                    let types: Vec<&str> = types.iter().map(String::as_str).collect();
                    // Who is not told polls.
                    let _ = notifier
                        .link
                        .query(
                            Doing::Read("waking workers"),
                            &notifier.sql.wake,
                            &[(&types, Type::TEXT_ARRAY)],
                        )
                        .await;
                }
            });
        }
    }

    fn next(&self) -> Option<BTreeSet<String>> {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let types = std::mem::take(&mut news.types);
        news.is_told = !types.is_empty();
        news.is_told.then_some(types)
    }
}
