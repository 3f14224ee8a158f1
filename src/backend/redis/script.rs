//! The scripts in `lua/`, which change and read the state of jobs. Each begins with `base.lua`.
//!
//! The server knows a script by its hash and forgets it at a restart, a failover or `SCRIPT FLUSH`; it is then sent once
//! more.

use once_cell::race::OnceBox;
use redis::{Cmd, ToRedisArgs};

use super::keys::Keys;

/// One of them.
#[derive(Debug)]
pub(super) struct Script {
    parts: &'static [&'static str],
    /// Of a race to be the first, both make it. A lock would stay locked for ever in a child that is forked while another
    /// thread of its parent holds it.
    made: OnceBox<Made>,
}

#[derive(Debug)]
struct Made {
    text: String,
    hash: String,
}

impl Script {
    const fn new(parts: &'static [&'static str]) -> Self {
        Self { parts, made: OnceBox::new() }
    }

    fn made(&self) -> &Made {
        self.made.get_or_init(|| {
            let text = self.parts.join("\n");
            let hash = redis::Script::new(&text).get_hash().to_owned();
            Box::new(Made { text, hash })
        })
    }

    /// What the server is sent that does not know it.
    pub fn text(&self) -> &str {
        &self.made().text
    }

    /// A call of it for this queue.
    pub fn call(&'static self, keys: &Keys) -> Call {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.made().hash).arg(1).arg(keys.job());
        Call { script: self, command }
    }
}

/// A script with its arguments.
#[derive(Debug)]
pub(super) struct Call {
    pub script: &'static Script,
    pub command: Cmd,
}

impl Call {
    #[must_use]
    pub fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        self.command.arg(argument);
        self
    }

    pub fn push(&mut self, argument: impl ToRedisArgs) {
        self.command.arg(argument);
    }
}

macro_rules! scripts {
    ($($name:ident = $($file:literal)+;)*) => {$(
        pub(super) static $name: Script = Script::new(&[include_str!("lua/base.lua"), $(include_str!($file)),+]);
    )*};
}

/// The only one without `base.lua`.
pub(super) static PUSH: Script = Script::new(&[include_str!("lua/push.lua")]);

scripts! {
    ENQUEUE = "lua/enqueue.lua";
    RESERVE = "lua/reserve.lua";
    CLAIM = "lua/state.lua" "lua/claim.lua";
    EXTEND = "lua/extend.lua";
    SETTLE = "lua/state.lua" "lua/settle.lua";
    UNSTRAND = "lua/state.lua" "lua/unstrand.lua";
    RESCUE = "lua/state.lua" "lua/rescue.lua";
    LEAVE = "lua/leave.lua";
    OPERATE = "lua/state.lua" "lua/operate.lua";
    INFO = "lua/state.lua" "lua/info.lua";
    SCAN = "lua/state.lua" "lua/scan.lua";
    STATS = "lua/state.lua" "lua/stats.lua";
    DELETE = "lua/state.lua" "lua/delete.lua";
    BOOKS = "lua/books.lua";
    AUDIT = "lua/state.lua" "lua/audit.lua";
    PROMOTE = "lua/state.lua" "lua/promote.lua";
}

/// A script that runs inside a transaction, which cannot send a script that the server does not know: so it goes whole.
pub(super) const ADDED: &str = include_str!("lua/added.lua");
