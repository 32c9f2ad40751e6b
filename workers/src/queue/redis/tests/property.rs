//! The queue in Redis against the model of all queues, on one server for all cases.
//!
//! The time of a case is `clock.lua`'s: it stands still until the model moves it, and what has a time to live ends by it.

use futures::StreamExt;
use tokio::runtime::Runtime;

use super::*;
use crate::queue::{
    property::{self, Driver, Ways, wall},
    redis::{
        clock::{Sample, Shown},
        message,
        wake::OFFER_STANDS,
    },
};

struct Distributed<'a> {
    runtime: &'a Runtime,
    queue: RedisQueue,
    front_door: redis::aio::PubSub,
    now: u64,
}

impl<'a> Distributed<'a> {
    fn new(runtime: &'a Runtime, server: &Server) -> Self {
        let queue = runtime.block_on(server.queue());
        let channel = queue.key(&format!("reply:{}", property::FRONT_DOOR));
        let front_door = runtime.block_on(async {
            let mut front_door = queue.connections.pubsub().await.unwrap();
            front_door.subscribe(channel).await.unwrap();
            front_door
        });
        let mut new = Self { runtime, queue, front_door, now: 0 };
        new.forget();
        new
    }

    fn ask<T>(&self, question: impl Future<Output = Result<T, Unreachable>>) -> T {
        self.runtime.block_on(question).unwrap()
    }

    fn command<T: FromRedisValue + Send>(&self, command: &redis::Cmd) -> T {
        self.ask(self.queue.connections.ask(command))
    }

    /// `None` when the key may be there although no run is.
    fn left_of(&self, key: &str) -> Option<String> {
        let name = key.strip_prefix(&self.queue.key("")).unwrap_or_else(|| panic!("a key outside of the pool: {key}"));
        match name.split(':').next()? {
            "meta" => {
                let bytes: Option<i64> = self.command(redis::cmd("HGET").arg(key).arg("bytes"));
                bytes.filter(|&bytes| bytes != 0).map(|bytes| format!("{bytes} bytes are counted as waiting"))
            }
            "room" | "room_until" | "virtual" | "scopes" | "epoch" | "clock" => None,
            _ => Some(key.to_owned()),
        }
    }
}

impl Driver for Distributed<'_> {
    const WAYS: Ways = Ways {
        asked_runs_wait: true,
        work_handed_back_is_kept: true,
        workers_outlive_memory: true,
        minute: 60_001,
        // In the set of its minute, and through the next one.
        buried_until: |ended| ended + 120_000 - wall(ended).since(UnixMillis(0)) % 60_000,
        buried_again: true,
        offers: true,
        offers_stand: OFFER_STANDS,
        looks: 2,
    };

    fn set_clock(&mut self, now: u64) {
        self.now = now;
        self.ask(self.queue.run::<()>(self.queue.step(scripts::SET_CLOCK).arg(wall(now).0)));
    }

    fn forget(&mut self) {
        self.command::<()>(&redis::cmd("FLUSHALL"));
    }

    fn enqueue(&mut self, submission: Submission, admission: Option<&Admission>) -> Admitted {
        self.ask(self.queue.enqueue(submission, admission))
    }

    fn claim(&mut self, worker: WorkerId, free: usize, scopes: &[ScopeLimits]) -> Claimed {
        self.ask(self.queue.claim(worker, free, scopes))
    }

    fn wait(&mut self, worker: WorkerId, free: usize) -> Vec<Claim> {
        // Nothing comes while it waits, so it does not when nothing is there.
        let mut lists = redis::cmd("EXISTS");
        for list in ["wake:tight", "wake:loose", "wake:open", "offers:open"] {
            lists.arg(self.queue.key(list));
        }
        let at_most = if self.command::<u64>(&lists) > 0 { PATIENCE } else { Duration::ZERO };
        // The process's clock goes on; it has to show this moment to tell how old an offer is.
        let (at, shown) = (Instant::now(), Shown(wall(self.now).0 * 1_000));
        self.queue.clock.learn(Sample { asked: at, shown, answered: at });
        self.ask(self.queue.wait(worker, free, at_most, &CancellationToken::new()))
    }

    fn heartbeat(&mut self, worker: WorkerId, held: &[(RunId, Fence)]) -> Vec<Renewal> {
        self.ask(self.queue.heartbeat(worker, held))
    }

    fn stash(&mut self, ending: &Ending) -> Held {
        self.ask(self.queue.stash(ending))
    }

    fn finish(&mut self, run: RunId, fence: Fence) {
        self.ask(self.queue.finish(&[(run, fence)]));
    }

    fn release(&mut self, run: RunId, fence: Fence, how: Release) -> Held {
        self.ask(self.queue.release(run, fence, how))
    }

    fn reap(&mut self, worker: WorkerId, limit: usize) -> Vec<Claim> {
        self.ask(self.queue.reap(worker, limit))
    }

    fn cancel(&mut self, run: RunId, outcome: Outcome) -> Cancelled {
        self.ask(self.queue.cancel(run, outcome))
    }

    fn pause_scope(&mut self, scope: &str, millis: u64) {
        self.ask(self.queue.pause_scope(scope, Duration::from_millis(millis)));
    }

    fn set_paused(&mut self, paused: bool) {
        self.ask(self.queue.set_paused(paused));
    }

    fn missing(&mut self, runs: &[RunId]) -> Vec<RunId> {
        self.ask(self.queue.missing(runs))
    }

    fn restore(&mut self, runs: &[Restored]) {
        self.ask(self.queue.restore(runs));
    }

    fn was_reset(&mut self) -> Option<Epoch> {
        self.ask(self.queue.was_reset())
    }

    fn restored(&mut self, epoch: Epoch) {
        self.ask(self.queue.restored(epoch));
    }

    fn locate(&mut self, run: RunId) -> Option<Sighting> {
        self.ask(self.queue.locate(run))
    }

    fn recall(&mut self, run: RunId) -> Option<Recalled> {
        self.ask(self.queue.recall(run))
    }

    fn stats(&mut self) -> QueueStats {
        self.ask(self.queue.stats())
    }

    /// What the one front door that the model has was told meanwhile.
    fn sent(&mut self) -> Vec<Ending> {
        // What was published before an empty message has come when that has.
        const LAST: &[u8] = b"\x90";
        let channel = self.queue.key(&format!("reply:{}", property::FRONT_DOOR));
        assert_eq!(self.command::<u64>(redis::cmd("PUBLISH").arg(channel).arg(LAST)), 1);
        let mut replies = Vec::new();
        self.runtime.block_on(async {
            let mut heard = self.front_door.on_message();
            loop {
                let message = soon(heard.next()).await.expect("a connection");
                if message.get_payload_bytes() == LAST {
                    return;
                }
                message::add_replies(message.get_payload_bytes(), &mut replies).expect("a message of this version");
            }
        });
        let ending = |reply| match reply {
            Reply::Ended(ending) => *ending,
            other => panic!("{other:?}"),
        };
        replies.into_iter().map(ending).collect()
    }

    fn weight(&self, job: &Job) -> u64 {
        job.encode().len() as u64
    }

    fn check(&mut self) {}

    fn left_over(&mut self) -> Vec<String> {
        let keys: Vec<String> = self.command(redis::cmd("KEYS").arg("*"));
        keys.iter().filter_map(|key| self.left_of(key)).collect()
    }
}

#[test]
fn any_order_of_steps_keeps_the_promises() {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(Server::start());
    property::check(64, || Distributed::new(&runtime, &server));
}
