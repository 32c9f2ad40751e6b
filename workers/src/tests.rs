//! What the unit tests of several modules share: jobs, a ledger in memory, a queue that fails when it is told to.

mod faulty;

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep};

pub use self::faulty::{FaultyQueue, Loss, Step};
use crate::job::{AccountId, Job, Lane, ModelRequest, PromptId, RunId, Target, UnixMillis, WIRE_VERSION};
pub use crate::ledger::tests::MemoryLedger;

/// How long a test waits for what must happen, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// A run of the provider `one` with a minute left.
pub fn job() -> Job {
    let now = UnixMillis::now();
    Job {
        v: WIRE_VERSION,
        id: RunId::new(),
        account: AccountId::new(),
        key: None,
        prompt: PromptId::new(),
        prompt_name: "Greeting".into(),
        prompt_version: 1,
        lane: Lane::Interactive,
        targets: vec![Target { model: "gpt-4".into(), provider: "one".into(), upstream: "m".into(), price: None }],
        request: ModelRequest { user: "Hello".into(), ..ModelRequest::default() },
        stream: false,
        metadata: BTreeMap::new(),
        created_at: now,
        deadline: now.plus(60_000),
        keep_content: true,
        tokens: 10,
        repeat_streamed: false,
        webhook_url: None,
        caching: None,
    }
}

/// Waits until a look finds something.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
