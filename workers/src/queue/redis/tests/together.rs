//! Steps of many runs in one: each run gets the answer that it would have got alone.

use futures::future::join_all;

use super::*;
use crate::queue::{AtOnce, RateRule};

async fn steps(server: &Server) -> u64 {
    server.calls(|command| command == "fcall").await
}

/// Enqueues so many runs of one account at once.
async fn enqueue(queue: &RedisQueue, runs: usize, admission: &Admission) -> Vec<Admitted> {
    let account = AccountId::new();
    let entering = (0..runs).map(|_| {
        let job = Arc::new(Job { account, ..job() });
        queue.enqueue(Submission { job, reply_to: None }, Some(admission))
    });
    join_all(entering).await.into_iter().map(Result::unwrap).collect()
}

#[tokio::test]
async fn runs_that_come_at_once_are_counted_one_by_one() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let rule = RateRule { name: "account", subject: "a".into(), per_minute: 60 };
    let admission = Admission { rules: vec![rule], max_depth: 1_000, max_bytes: 1 << 30 };
    let before = steps(&server).await;
    let admitted = enqueue(&queue, 100, &admission).await;
    assert!((1..10).contains(&(steps(&server).await - before)), "they share steps");
    let mut left = Vec::new();
    for admitted in &admitted {
        match admitted {
            Admitted::Yes { rates } => left.push(rates[0].remaining),
            Admitted::Limited { rates, .. } => assert_eq!(rates[0].remaining, 0),
            Admitted::Full { .. } => panic!("there is room"),
        }
    }
    left.sort_unstable();
    assert_eq!(left, (0..60).collect::<Vec<_>>());
    assert_eq!(queue.stats().await.unwrap().lanes[0].ready, 60);
    assert_eq!(queue.claim(WorkerId::new(), 100, &scopes()).await.unwrap().claims.len(), 60);
}

#[tokio::test]
async fn runs_that_come_at_once_fill_the_queue_to_its_depth_and_its_bytes() {
    let server = Server::start().await;
    let size = u64::try_from(job().encode().len()).unwrap();
    for (max_depth, max_bytes) in [(10, 1 << 30), (1_000, 10 * size)] {
        let queue = server.queue().await;
        server.command::<()>(&["FLUSHALL"]).await;
        let admitted = enqueue(&queue, 50, &Admission { rules: vec![], max_depth, max_bytes }).await;
        assert_eq!(admitted.iter().filter(|admitted| matches!(admitted, Admitted::Yes { .. })).count(), 10);
        assert_eq!(queue.stats().await.unwrap().lanes[0].ready, 10);
    }
}

#[tokio::test]
async fn runs_that_come_at_once_wake_as_many_workers_as_there_are_runs() {
    let server = Server::start().await;
    let queue = server.queue().await;
    // Limited, so that nothing is offered.
    let at_once = AtOnce { calls: 9, next: Duration::ZERO };
    let limits = [ScopeLimits { at_once: Some(at_once), ..unlimited("one") }];
    for _ in 0..5 {
        queue.claim(WorkerId::new(), 1, &limits).await.unwrap();
    }
    let admission = Admission { rules: vec![], max_depth: 1_000, max_bytes: 1 << 30 };
    for (runs, tokens) in [(3, 3), (9, 5)] {
        server.command::<()>(&["DEL", "{q:test}:wake:one"]).await;
        enqueue(&queue, runs, &admission).await;
        assert_eq!(server.command::<u32>(&["LLEN", "{q:test}:wake:one"]).await, tokens);
    }
}

#[tokio::test]
async fn endings_that_come_at_once_are_judged_and_told_one_by_one() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let (worker, doors) = (WorkerId::new(), [FrontDoorId::new(), FrontDoorId::new()]);
    let mut replies = Vec::new();
    for door in doors {
        replies.push(queue.replies(door, CancellationToken::new()).await.unwrap());
    }
    for index in 0..60 {
        queue.put_for(&job(), doors[index % 2]).await;
    }
    let claims = queue.claim(worker, 60, &scopes()).await.unwrap().claims;
    let mut endings: Vec<_> = claims.iter().map(|claim| ending(claim, worker)).collect();
    // One has another owner by now, and one was never there.
    endings[7].fence = Fence(endings[7].fence.0 + 1);
    endings[8].run = RunId::at(UnixMillis::now());
    let before = steps(&server).await;
    let held = join_all(endings.iter().map(|ending| queue.stash(ending))).await;
    assert!((1..10).contains(&(steps(&server).await - before)), "they share steps");
    for (index, held) in held.into_iter().enumerate() {
        let expected = [Held::Elsewhere, Held::Unknown].get(index.wrapping_sub(7)).copied().unwrap_or(Held::Done);
        assert_eq!(held.unwrap(), expected, "the {index}th");
    }
    let mut told = Vec::new();
    for _ in 0..29 {
        for replies in &mut replies {
            let Some(Reply::Ended(ending)) = soon(replies.recv()).await else { panic!("an ending was sent") };
            told.push(*ending);
        }
    }
    endings.drain(7..9);
    told.sort_unstable_by_key(|ending| ending.run.0);
    endings.sort_unstable_by_key(|ending| ending.run.0);
    assert_eq!(told, endings);
}

#[tokio::test]
async fn whoever_leaves_takes_nobody_with_it() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let submission = || Submission { job: Arc::new(job()), reply_to: None };
    let (mut first, mut second) = (queue.enqueue(submission(), None), queue.enqueue(submission(), None));
    // Both have asked, and the first one, for which the step is made, leaves.
    assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
    drop(first);
    assert_eq!(soon(second).await.unwrap(), Admitted::Yes { rates: vec![] });
    assert_eq!(queue.stats().await.unwrap().lanes[0].ready, 2);
}

#[tokio::test]
async fn a_store_that_is_away_is_told_to_all_and_to_those_after_them() {
    let mut server = Server::start().await;
    let queue = server.queue().await;
    queue.put(&job()).await;
    server.stop();
    for _ in 0..2 {
        let entering = (0..20).map(|_| queue.enqueue(Submission { job: Arc::new(job()), reply_to: None }, None));
        assert!(join_all(entering).await.iter().all(Result::is_err));
    }
    assert!(server.restart().await);
    eventually(async || queue.ping().await.ok()).await;
    queue.put(&job()).await;
}

#[tokio::test]
async fn a_store_that_does_not_answer_holds_nobody_up_for_the_others() {
    let server = Server::start().await;
    let queue = server.queue().await;
    queue.put(&job()).await;
    server.freeze(true);
    // Ten scripts, had each of them to be given up by itself.
    let entering = (0..500).map(|_| queue.enqueue(Submission { job: Arc::new(job()), reply_to: None }, None));
    assert!(soon(join_all(entering)).await.iter().all(Result::is_err));
    server.freeze(false);
    eventually(async || queue.ping().await.ok()).await;
    queue.put(&job()).await;
}

#[tokio::test]
async fn a_step_that_fails_leaves_nothing_to_the_next_one() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let write = |keys: u32, failure: &str| queue.step(scripts::WRITE).arg(keys).arg(failure);
    let written = async || server.command::<Vec<String>>(&["KEYS", "*:written:*"]).await.len();
    let Unreachable(cause) = queue.run::<()>(write(3, "on purpose")).await.unwrap_err();
    assert!(cause.to_string().contains("on purpose"), "{cause}");
    queue.put(&job()).await;
    assert_eq!(written().await, 0);
    // More than Lua's stack holds.
    queue.run::<()>(write(10_001, "")).await.unwrap();
    assert_eq!(written().await, 10_001);
}
