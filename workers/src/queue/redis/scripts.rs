//! The steps: one Lua script each, run by its digest and loaded again whenever Redis has forgotten it.

use std::sync::LazyLock;

use redis::{ErrorKind, FromRedisValue, RedisError, Script, ServerErrorKind, ToRedisArgs, aio::MultiplexedConnection};

use super::lines::Step;

/// What every script begins with: how it reads the time.
#[cfg(not(test))]
macro_rules! clock {
    () => {
        include_str!("../scripts/clock.lua")
    };
}
/// The same, for tests that move the time.
#[cfg(test)]
macro_rules! clock {
    () => {
        include_str!("tests/clock.lua")
    };
}

/// A script: its flags, and the files that it is put together from.
///
/// The flags matter when memory is short. Redis then refuses a script that is not allowed to run out of memory as a whole, before its first
/// command: so enqueue and restore fail and change nothing. All steps of runs that are in the queue already go on, because a step that
/// stopped half-way would lose a run, and because finished runs are what frees memory.
macro_rules! script {
    ($name:ident, $flags:literal, $($file:literal),+) => {
        pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!("#!lua", $flags, "\n", clock!(), "\n", include_str!("../scripts/common.lua"), $("\n", include_str!(concat!("../scripts/", $file))),+))
        });
    };
}

script!(ADMIT, "", "rates.lua", "admission.lua", "admit.lua");
script!(ENQUEUE, "", "log.lua", "flight.lua", "offer.lua", "put.lua", "rates.lua", "admission.lua", "enqueue.lua");
script!(RESTORE, "", "log.lua", "flight.lua", "offer.lua", "put.lua", "restore.lua");
script!(
    CLAIM,
    " flags=allow-oom",
    "flight.lua",
    "promote.lua",
    "log.lua",
    "rates.lua",
    "tokens.lua",
    "loss.lua",
    "claiming.lua",
    "claim.lua"
);
script!(HEARTBEAT, " flags=allow-oom", "heartbeat.lua");
script!(STASH, " flags=allow-oom", "log.lua", "tokens.lua", "stash.lua");
script!(FINISH, " flags=allow-oom", "flight.lua", "finish.lua");
script!(RELEASE, " flags=allow-oom", "log.lua", "release.lua");
script!(REAP, " flags=allow-oom", "flight.lua", "promote.lua", "log.lua", "withdraw.lua", "reap.lua");
script!(CANCEL, " flags=allow-oom", "withdraw.lua", "cancel.lua");
script!(END_WAITING, " flags=allow-oom", "log.lua", "end_waiting.lua");
script!(APPEND, "", "log.lua", "append.lua");
script!(FOLLOW, "", "log.lua", "follow.lua");
script!(LOCATE, " flags=no-writes", "locate.lua");
script!(RECALL, " flags=no-writes", "recall.lua");
script!(MISSING, " flags=no-writes", "missing.lua");
script!(PAUSE_SCOPE, " flags=allow-oom", "withdraw.lua", "pause_scope.lua");
script!(SET_PAUSED, " flags=allow-oom", "withdraw.lua", "set_paused.lua");
script!(IDLE, " flags=allow-oom", "idle.lua");
script!(WAS_RESET, " flags=allow-oom", "loss.lua", "was_reset.lua");
script!(RESTORED, " flags=allow-oom", "restored.lua");
script!(STATS, " flags=allow-oom", "stats.lua");

/// One run of a script, with its arguments.
#[derive(Clone)]
pub(super) struct Invocation {
    script: &'static Script,
    command: redis::Cmd,
}

impl Invocation {
    /// `tag` is the hash tag of the pool: the one key that is declared.
    pub fn new(script: &'static Script, tag: &str) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(1).arg(tag);
        Self { script, command }
    }

    pub fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        self.command.arg(argument);
        self
    }
}

impl Step for Invocation {
    /// As [`Script`] runs itself, but without a copy of the arguments: they hold whole jobs.
    async fn ask<T: FromRedisValue + Send>(&self, connection: &mut MultiplexedConnection) -> Result<T, RedisError> {
        match self.command.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.script.load_async(connection).await?;
                self.command.query_async(connection).await
            }
            answer => answer,
        }
    }
}
