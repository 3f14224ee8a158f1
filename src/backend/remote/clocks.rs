//! What `dejq doctor` says when this machine and the server do not agree about the time.

use std::time::{Duration, SystemTime};

use crate::backend::{Finding, Level};

/// Clocks that somebody keeps are never so far apart.
const FAR: Duration = Duration::from_secs(2);

/// A warning when the server's clock was not between the two times at which it was asked and had answered, or near them.
pub fn clocks(asked: SystemTime, server: SystemTime, answered: SystemTime) -> Option<Finding> {
    let (apart, which) = match (server.duration_since(answered), asked.duration_since(server)) {
        (Ok(behind), _) => (behind, "behind"),
        (_, Ok(ahead)) => (ahead, "ahead of"),
        _ => return None,
    };
    (apart > FAR).then(|| Finding {
        level: Level::Warn,
        name: "clocks".to_owned(),
        text: format!(
            "the clock of this machine is {} s {which} the server's; leases and delays go by the server's, but ids begin with \
             the time of whoever enqueues, so that lists are out of order and ages wrong",
            apart.as_secs()
        ),
        fix: Some("let both keep time by NTP (chronyd, systemd-timesyncd)".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_are_further_apart_than_an_answer_takes_are_a_warning() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let text =
            |asked, server, answered| clocks(at(asked), at(server), at(answered)).map(|found| found.text);
        assert_eq!(text(100, 100, 100), None);
        assert_eq!(text(100, 102, 100), None);
        // A slow answer says nothing about clocks.
        assert_eq!(text(100, 130, 160), None);
        assert!(text(100, 160, 100).is_some_and(|text| text.contains("is 60 s behind the server's")));
        assert!(text(100, 40, 100).is_some_and(|text| text.contains("is 60 s ahead of the server's")));
    }
}
