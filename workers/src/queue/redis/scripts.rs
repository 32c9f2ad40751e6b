//! The steps: functions in Lua, of one [library](https://redis.io/docs/latest/develop/programmability/functions-intro/) that Redis loads once, and again whenever it
//! has lost it. A script (`EVALSHA`) would build all of its helpers anew with each run: of an enqueue of one run, a
//! quarter of the instructions.
//!
//! The library is named for its text, so that processes of two versions have one each and do not get in each other's way. It stays in Redis, and in its files,
//! until somebody deletes it: 80 KB a version.

use std::{fmt::Write, sync::LazyLock};

use redis::{FromRedisValue, RedisError, ToRedisArgs, aio::MultiplexedConnection};

use super::lines;

/// How the library reads the time.
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

macro_rules! files {
    ($($file:literal)+) => {
        concat!($(include_str!(concat!("../scripts/", $file)), "\n"),+)
    };
}

/// What all steps share, each file after those that it needs.
const SHARED: &str = concat!(
    clock!(),
    "\n",
    files!("common.lua" "record.lua" "loss.lua" "rates.lua" "tokens.lua" "log.lua" "flight.lua" "promote.lua" "withdraw.lua" "admission.lua" "offer.lua" "put.lua")
);

/// A step by its name in the library.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step(&'static str);

/// Steps: their names, their flags, and the files that they are put together from.
///
/// The flags matter when memory is short. Redis then refuses a step that is not allowed to run out of memory as a whole, before its first
/// command: so enqueue and restore fail and change nothing. All steps of runs that are in the queue already go on, because a step that
/// stopped half-way would lose a run, and because finished runs are what frees memory.
macro_rules! steps {
    ($list:ident: $($step:ident = $name:literal, $flags:literal, $($file:literal)+;)+) => {
        $(pub(super) const $step: Step = Step($name);)+
        const $list: &str = concat!(
            $("step('", $name, "', {", $flags, "}, function()\n", files!($($file)+), "end)\n",)+
        );
    };
}

steps! { STEPS:
    ADMIT = "admit", "", "admit.lua";
    ENQUEUE = "enqueue", "", "enqueue.lua";
    RESTORE = "restore", "", "restore.lua";
    CLAIM = "claim", "'allow-oom'", "claiming.lua" "claim.lua";
    HEARTBEAT = "heartbeat", "'allow-oom'", "heartbeat.lua";
    STASH = "stash", "'allow-oom'", "stash.lua";
    FINISH = "finish", "'allow-oom'", "finish.lua";
    RELEASE = "release", "'allow-oom'", "release.lua";
    REAP = "reap", "'allow-oom'", "reap.lua";
    CANCEL = "cancel", "'allow-oom'", "cancel.lua";
    END_WAITING = "end_waiting", "'allow-oom'", "end_waiting.lua";
    APPEND = "append", "", "append.lua";
    FOLLOW = "follow", "", "follow.lua";
    LOCATE = "locate", "'no-writes'", "locate.lua";
    COUNT_LEASED = "count_leased", "'no-writes'", "count_leased.lua";
    RECALL = "recall", "'no-writes'", "recall.lua";
    MISSING = "missing", "'no-writes'", "missing.lua";
    PAUSE_SCOPE = "pause_scope", "'allow-oom'", "pause_scope.lua";
    SET_PAUSED = "set_paused", "'allow-oom'", "set_paused.lua";
    IDLE = "idle", "'allow-oom'", "idle.lua";
    WAS_RESET = "was_reset", "'allow-oom'", "was_reset.lua";
    RESTORED = "restored", "'allow-oom'", "restored.lua";
    CLAIM_SWEEP = "claim_sweep", "'allow-oom'", "claim_sweep.lua";
    STATS = "stats", "'no-writes'", "stats.lua";
}

#[cfg(test)]
steps! { TEST_STEPS:
    SET_CLOCK = "set_clock", "", "../redis/tests/set_clock.lua";
    TELL = "tell", "", "../redis/tests/tell.lua";
    WRITE = "write", "", "../redis/tests/write.lua";
}
#[cfg(not(test))]
const TEST_STEPS: &str = "";

struct Library {
    name: String,
    code: String,
}

static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let text = [SHARED, STEPS, TEST_STEPS].concat();
    let name = format!("prompt_manager_{}", redis::Script::new(&text).get_hash());
    let mut code = String::with_capacity(text.len() + 256);
    // Text goes into a string without fail.
    let _ = write!(code, "#!lua name={name}\nlocal LIBRARY, KEYS, ARGV, call = '{name}', nil, nil, nil\n{text}");
    Library { name, code }
});

/// One run of a step, with its arguments.
#[derive(Clone)]
pub(super) struct Invocation(redis::Cmd);

impl Invocation {
    /// `tag` is the hash tag of the pool: the one key that is declared.
    pub fn new(step: Step, tag: &str) -> Self {
        let mut command = redis::cmd("FCALL");
        command.arg(format!("{}_{}", LIBRARY.name, step.0)).arg(1).arg(tag);
        Self(command)
    }

    pub fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        self.0.arg(argument);
        self
    }
}

impl lines::Step for Invocation {
    async fn ask<T: FromRedisValue + Send>(&self, connection: &mut MultiplexedConnection) -> Result<T, RedisError> {
        match self.0.query_async(connection).await {
            Err(error) if error.detail().is_some_and(|detail| detail.contains("Function not found")) => {
                let mut load = redis::cmd("FUNCTION");
                load.arg("LOAD").arg("REPLACE").arg(&LIBRARY.code);
                load.query_async::<()>(connection).await?;
                self.0.query_async(connection).await
            }
            answer => answer,
        }
    }
}
