//! Callers that go on posting runs whatever happens: some wait for their answers, some leave with a run's id.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde_json::json;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::app::{Answer, App, client};

/// Every run has a name of its own, so that the provider's requests can be told apart.
pub fn new_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("caller {}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Posts until it is stopped.
pub struct Load {
    stop: CancellationToken,
    posting: JoinHandle<Posted>,
}

/// What the callers were told.
#[derive(Debug, Default)]
pub struct Posted {
    /// The ids of all runs that somebody was told of, however they ended.
    pub accepted: Vec<String>,
    /// Answers without a run: 503 with `Retry-After`, and nothing else.
    pub refused: Vec<Answer>,
}

impl Load {
    /// One greeting a period, at all front doors in turn; every second caller waits for its answer.
    pub fn start(app: &App, period: Duration) -> Self {
        let stop = CancellationToken::new();
        let (urls, key, stopped) = (app.urls().to_vec(), app.key(), stop.clone());
        let posting = tokio::spawn(async move {
            let client = client();
            let mut posts = JoinSet::new();
            let mut ticks = tokio::time::interval(period);
            for number in 0_usize.. {
                tokio::select! {
                    () = stopped.cancelled() => break,
                    _ = ticks.tick() => {}
                }
                let body = json!({ "promptName": "Greeting", "variables": { "name": new_name() } });
                let url = format!("{}/api/v1/run", urls[number / 2 % urls.len()]);
                let mut post = client.post(url).header("x-api-key", &key).json(&body);
                if number % 2 == 0 {
                    post = post.header("prefer", "respond-async");
                }
                posts.spawn(async move { Answer::of(post.send().await.unwrap()).await });
            }
            let mut posted = Posted::default();
            while let Some(answer) = posts.join_next().await {
                posted.add(answer.unwrap());
            }
            posted
        });
        Self { stop, posting }
    }

    /// Stops posting, and waits until every caller has its answer.
    pub async fn stop(self) -> Posted {
        self.stop.cancel();
        self.posting.await.unwrap()
    }
}

impl Posted {
    fn add(&mut self, answer: Answer) {
        if let Some(id) = answer.body["runId"].as_str() {
            self.accepted.push(id.to_owned());
        } else {
            assert_refusal(&answer);
            self.refused.push(answer);
        }
    }

    /// Whether anybody was refused with this code.
    pub fn was_refused_with(&self, code: &str) -> bool {
        self.refused.iter().any(|answer| answer.body["code"] == code)
    }
}

/// A 503 that says when to come back.
pub fn assert_refusal(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.body["retryable"], true, "{answer:?}");
    let after = answer.header("retry-after").and_then(|after| after.parse::<u64>().ok());
    assert!(after.is_some_and(|after| after >= 1), "{answer:?}");
}
