//! Text on its way into the logs of runs.

use futures::future::join_all;

use super::{
    offers::{make_room, offered},
    *,
};

fn text(first: u64, before: u64, deltas: &[&str]) -> NewText {
    NewText { first, before, deltas: deltas.iter().map(|&delta| delta.to_owned()).collect() }
}

async fn streaming(queue: &RedisQueue, worker: WorkerId, runs: usize) -> Vec<Claim> {
    make_room(queue, worker, runs, &scopes()).await;
    let front_door = FrontDoorId::new();
    let jobs: Vec<Job> = (0..runs).map(|_| Job { stream: true, ..job() }).collect();
    join_all(jobs.iter().map(|job| queue.put_for(job, front_door))).await;
    let mut claims = Vec::new();
    while claims.len() < runs {
        claims.extend(offered(queue, worker, runs).await);
    }
    claims
}

/// What streams cost while models write. Whoever makes them cheaper lowers the bounds.
#[tokio::test]
async fn text_is_noted_and_nothing_else_is_written() {
    const RUNS: usize = 20;
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let claims = streaming(&queue, worker, RUNS).await;
    let say = async |text: &NewText| {
        let said = join_all(claims.iter().map(|claim| queue.append(claim.job.id, claim.fence, text))).await;
        assert!(said.into_iter().all(|said| said.unwrap() == Held::Done));
    };
    say(&text(3, 0, &["Bon"])).await;
    let runs: Vec<RunId> = claims.iter().map(|claim| claim.job.id).collect();
    assert_eq!(queue.count_leased(&runs).await.unwrap(), RUNS, "also those that were offered");
    for heard_of in [false, true] {
        if heard_of {
            let held: Vec<_> = claims.iter().map(|claim| (claim.job.id, claim.fence)).collect();
            assert_eq!(queue.heartbeat(worker, &held).await.unwrap(), [Renewal::Held; RUNS]);
        }
        let of_ours = |command: &str| !["info", "client", "hello"].iter().any(|other| command.starts_with(other));
        let writes = |command: &str| ["set", "mset", "hset", "zadd"].contains(&command);
        let counts = async || (server.calls(of_ours).await, server.calls(writes).await);
        let before = counts().await;
        say(&text(4 + u64::from(heard_of), 3, &["jour"])).await;
        let after = counts().await;
        let commands = after.0 - before.0;
        println!("{RUNS} runs: {commands} commands");
        assert_eq!(after.1, before.1, "records are written");
        assert!(commands <= 2 * RUNS as u64 + 20, "{commands} commands for {RUNS} runs");
    }
    join_all(claims.iter().map(|claim| async { queue.stash(&ending(claim, worker)).await.unwrap() })).await;
    queue.finish(&claims.iter().map(|claim| (claim.job.id, claim.fence)).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(queue.stats().await.unwrap(), QueueStats::default());
}

#[tokio::test]
async fn an_offer_that_has_said_something_is_handed_back() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    for heard_of in [false, true] {
        let claim = streaming(&queue, worker, 1).await.remove(0);
        let (run, fence) = (claim.job.id, claim.fence);
        assert_eq!(queue.append(run, fence, &text(3, 0, &["Bon"])).await.unwrap(), Held::Done);
        if heard_of {
            assert_eq!(queue.heartbeat(worker, &[(run, fence)]).await.unwrap(), [Renewal::Held]);
        }
        assert_eq!(queue.append(run, fence, &text(4, 3, &["jour"])).await.unwrap(), Held::Done);
        assert_eq!(queue.release(run, fence, Release::HandBack).await.unwrap(), Held::Done);
        let again = queue.claim_one(worker).await;
        // Queued, started, twice text, retrying and started again were before.
        assert_eq!((again.attempt, again.log), (1, Some(LogMark { next: 7, streamed: false })));
        assert_eq!(queue.append(run, fence, &text(7, 7, &["late"])).await.unwrap(), Held::Elsewhere);
        assert_eq!(queue.stash(&ending(&again, worker)).await.unwrap(), Held::Done);
        queue.finish(&[(run, again.fence)]).await.unwrap();
    }
}
