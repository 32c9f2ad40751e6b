//! Runs that are offered to a worker as they come.

use futures::future::join_all;

use super::*;

const AT_ONCE: Duration = Duration::ZERO;

/// Has a worker claim and wait in such a way that as many runs may be offered as it has executors. It must find nothing to claim.
pub(super) async fn make_room(queue: &RedisQueue, worker: WorkerId, free: usize, scopes: &[ScopeLimits]) {
    for _ in 0..2 {
        assert!(queue.claim(worker, free, scopes).await.unwrap().claims.is_empty());
        queue.rest(worker, AT_ONCE).await.unwrap();
    }
}

pub(super) async fn offered(queue: &RedisQueue, worker: WorkerId, free: usize) -> Vec<Claim> {
    soon(queue.wait(worker, free, Duration::from_secs(20), &CancellationToken::new())).await.unwrap()
}

async fn ready(queue: &RedisQueue) -> u64 {
    queue.stats().await.unwrap().lanes.iter().map(|lane| lane.ready).sum()
}

#[tokio::test]
async fn a_run_that_comes_while_a_worker_waits_is_leased_as_it_comes() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let (worker, front_door) = (WorkerId::new(), FrontDoorId::new());
    let mut replies = queue.replies(front_door, CancellationToken::new()).await.unwrap();
    make_room(&queue, worker, 3, &scopes()).await;
    let job = job();
    queue.put_for(&job, front_door).await;
    queue.put_for(&job, front_door).await;
    assert_eq!(queue.stats().await.unwrap(), QueueStats { leased: 1, ..QueueStats::default() });

    let claims = offered(&queue, worker, 3).await;
    let [claim] = claims.as_slice() else { panic!("it is offered once: {claims:?}") };
    assert_eq!(*claim.job, job);
    assert_eq!((claim.attempt, claim.target, claim.limited, &claim.work, claim.log), (1, 0, 0, &Work::Call, None));
    assert_eq!(
        queue.locate(job.id).await.unwrap(),
        Some(Sighting { leased: true, started_at: Some(claim.started_at) })
    );
    assert!(queue.claim(worker, 2, &scopes()).await.unwrap().claims.is_empty(), "it is handed out once");
    assert_eq!(queue.heartbeat(worker, &[(job.id, claim.fence)]).await.unwrap(), [Renewal::Held]);
    assert_eq!(queue.stash(&ending(claim, worker)).await.unwrap(), Held::Done);
    assert!(matches!(soon(replies.recv()).await, Some(Reply::Ended(_))));
    queue.finish(&[(job.id, claim.fence)]).await.unwrap();
    assert_eq!(queue.stats().await.unwrap(), QueueStats::default());
}

#[tokio::test]
async fn a_run_that_is_put_while_a_worker_blocks_comes_with_its_wait() {
    let server = Server::start().await;
    let queue = Arc::new(server.queue().await);
    let worker = WorkerId::new();
    make_room(&queue, worker, 8, &scopes()).await;
    for _ in 0..3 {
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { offered(&queue, worker, 8).await }
        });
        server.until_blocked().await;
        let job = Job { stream: true, ..job() };
        queue.put(&job).await;
        let claims = soon(waiting).await.unwrap();
        assert_eq!(claims.iter().map(|claim| claim.job.id).collect::<Vec<_>>(), [job.id]);
        assert_eq!(claims[0].log.unwrap().next, 3, "submitted and started");
    }
}

#[tokio::test]
async fn no_more_is_offered_than_its_worker_has_room_for() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    make_room(&queue, worker, 2, &scopes()).await;
    for _ in 0..4 {
        queue.put(&job()).await;
    }
    assert_eq!((queue.stats().await.unwrap().leased, ready(&queue).await), (2, 2));
    assert_eq!(offered(&queue, worker, 2).await.len(), 0, "the others wake it");
    let claimed = queue.claim(worker, 4, &scopes()).await.unwrap().claims;
    assert_eq!(claimed.len(), 4, "offers that nobody took go with the next claim");
}

#[tokio::test]
async fn what_ends_makes_room_for_what_comes_next() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    make_room(&queue, worker, 1, &scopes()).await;
    for _ in 0..3 {
        let job = job();
        queue.put(&job).await;
        let claims = offered(&queue, worker, 1).await;
        assert_eq!(claims.iter().map(|claim| claim.job.id).collect::<Vec<_>>(), [job.id], "no claim was needed");
        assert_eq!(queue.stash(&ending(&claims[0], worker)).await.unwrap(), Held::Done);
        // An answer that was lost, and asked for again, makes no more room.
        assert_eq!(queue.stash(&ending(&claims[0], worker)).await.unwrap(), Held::Done);
    }
    for _ in 0..2 {
        queue.put(&job()).await;
    }
    assert_eq!((queue.stats().await.unwrap().leased, ready(&queue).await), (4, 1), "three that ended, and an offer");
}

#[tokio::test]
async fn whoever_has_an_earlier_offer_of_a_run_changes_nothing() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let (worker, job) = (WorkerId::new(), job());
    make_room(&queue, worker, 8, &scopes()).await;
    queue.put(&job).await;
    let earlier = offered(&queue, worker, 8).await.remove(0);
    // Redis forgets it, and its front door sends it once more.
    server.command::<()>(&["FLUSHALL"]).await;
    make_room(&queue, worker, 8, &scopes()).await;
    queue.put(&job).await;
    let claim = offered(&queue, worker, 8).await.remove(0);
    assert!(claim.fence > earlier.fence);

    assert_eq!(queue.stash(&ending(&earlier, worker)).await.unwrap(), Held::Elsewhere);
    queue.finish(&[(job.id, earlier.fence)]).await.unwrap();
    assert_eq!(queue.stash(&ending(&claim, worker)).await.unwrap(), Held::Done);
    queue.finish(&[(job.id, earlier.fence)]).await.unwrap();
    let recalled = queue.recall(job.id).await.unwrap().expect("it is not finished");
    assert_eq!(recalled.ending.map(|ending| ending.fence), Some(claim.fence));
    queue.finish(&[(job.id, claim.fence)]).await.unwrap();
    assert!(queue.recall(job.id).await.unwrap().is_none());
}

/// What most runs cost under load. Whoever makes them cheaper lowers the bounds.
#[tokio::test]
async fn runs_that_are_offered_and_end_together_share_nearly_all_commands() {
    const RUNS: usize = 40;
    let server = Server::start().await;
    let queue = server.queue().await;
    let (worker, front_door) = (WorkerId::new(), FrontDoorId::new());
    make_room(&queue, worker, RUNS, &scopes()).await;
    let of_ours = |command: &str| !["info", "client", "hello"].iter().any(|other| command.starts_with(other));
    let before = (server.calls(of_ours).await, server.calls(|command| command == "fcall").await);
    let jobs: Vec<Job> = (0..RUNS).map(|_| job()).collect();
    join_all(jobs.iter().map(|job| queue.put_for(job, front_door))).await;
    let mut claims = Vec::new();
    while claims.len() < RUNS {
        claims.extend(offered(&queue, worker, RUNS).await);
    }
    join_all(claims.iter().map(|claim| async { queue.stash(&ending(claim, worker)).await.unwrap() })).await;
    queue.finish(&claims.iter().map(|claim| (claim.job.id, claim.fence)).collect::<Vec<_>>()).await.unwrap();
    let after = (server.calls(of_ours).await, server.calls(|command| command == "fcall").await);
    let (commands, steps) = (after.0 - before.0, after.1 - before.1);
    println!("{RUNS} runs: {commands} commands, {steps} steps");
    assert!((1..=5).contains(&steps), "{steps} steps for {RUNS} runs");
    assert!(commands <= 34, "{commands} commands for {RUNS} runs");
}

#[tokio::test]
async fn scopes_share_the_room_of_their_worker() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    make_room(&queue, worker, 3, &[unlimited("one"), unlimited("two")]).await;
    for scope in ["one", "two", "one", "two"] {
        queue.put(&Job { targets: vec![target(scope)], ..job() }).await;
    }
    assert_eq!((queue.stats().await.unwrap().leased, ready(&queue).await), (3, 1));
}

/// Puts a run after something that must keep it from being offered.
async fn check_not_offered(before: impl AsyncFnOnce(&RedisQueue, WorkerId), put: Job, limits: &[ScopeLimits]) {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    make_room(&queue, worker, 8, limits).await;
    before(&queue, worker).await;
    queue.put(&put).await;
    assert_eq!(queue.locate(put.id).await.unwrap(), Some(Sighting { leased: false, started_at: None }));
}

#[tokio::test]
async fn what_could_not_be_claimed_is_not_offered() {
    let nothing = async |_: &RedisQueue, _: WorkerId| {};
    let all = scopes();
    check_not_offered(async |queue, _| queue.set_paused(true).await.unwrap(), job(), &all).await;
    let pause = async |queue: &RedisQueue, _: WorkerId| {
        queue.pause_scope("one", Duration::from_secs(60)).await.unwrap();
    };
    check_not_offered(pause, job(), &all).await;
    // The worker looks again, and the scope is still paused.
    let pause_and_look = async |queue: &RedisQueue, worker: WorkerId| {
        queue.pause_scope("one", Duration::from_secs(60)).await.unwrap();
        make_room(queue, worker, 8, &scopes()).await;
    };
    check_not_offered(pause_and_look, job(), &all).await;
    let elsewhere = Job { targets: vec![target("elsewhere")], ..job() };
    check_not_offered(nothing, elsewhere, &all).await;
    let shared = Job { caching: Some(Caching { digest: "d".into(), ttl_ms: 1_000 }), ..job() };
    check_not_offered(nothing, shared, &all).await;
    let late = Job { deadline: UnixMillis::now(), ..job() };
    check_not_offered(nothing, late, &all).await;
    let large = Job { prompt_name: "x".repeat(300_000), ..job() };
    check_not_offered(nothing, large, &all).await;
    for limits in [
        ScopeLimits { max_concurrency: Some(9), ..unlimited("one") },
        ScopeLimits { requests_per_minute: Some(9), ..unlimited("one") },
        ScopeLimits { tokens_per_minute: Some(9_000), ..unlimited("one") },
        ScopeLimits { at_once: Some(AtOnce { calls: 9, next: Duration::ZERO }), ..unlimited("one") },
    ] {
        check_not_offered(nothing, job(), &[limits]).await;
    }
}

#[tokio::test]
async fn nothing_is_offered_past_a_run_that_waits() {
    let retried = async |queue: &RedisQueue, worker: WorkerId| {
        queue.put(&job()).await;
        let claim = offered(queue, worker, 8).await.remove(0);
        let retry = Release::Retry { after: Duration::ZERO, target: 0 };
        assert_eq!(queue.release(claim.job.id, claim.fence, retry).await.unwrap(), Held::Done);
    };
    check_not_offered(retried, job(), &scopes()).await;
    let restored = async |queue: &RedisQueue, _: WorkerId| {
        let restored = Restored { job: Arc::new(job()), attempts: 1, limited: 0, fence: Fence(0) };
        queue.restore(&[restored]).await.unwrap();
    };
    check_not_offered(restored, job(), &scopes()).await;
    let too_large_to_be_offered = async |queue: &RedisQueue, _: WorkerId| {
        queue.put(&Job { prompt_name: "x".repeat(300_000), ..job() }).await;
    };
    check_not_offered(too_large_to_be_offered, job(), &scopes()).await;
    let shares_its_call = async |queue: &RedisQueue, _: WorkerId| {
        queue.put(&Job { caching: Some(Caching { digest: "d".into(), ttl_ms: 1_000 }), ..job() }).await;
    };
    check_not_offered(shares_its_call, job(), &scopes()).await;
}

#[tokio::test]
async fn nothing_is_offered_after_a_claim_that_filled_its_worker_and_left_some() {
    let limits = [unlimited("one"), ScopeLimits { max_concurrency: Some(9), ..unlimited("two") }];
    let fill = async |queue: &RedisQueue, worker: WorkerId| {
        for _ in 0..2 {
            queue.put(&Job { targets: vec![target("two")], ..job() }).await;
        }
        assert_eq!(queue.claim(worker, 1, &limits).await.unwrap().claims.len(), 1);
    };
    check_not_offered(fill, job(), &limits).await;
}

#[tokio::test]
async fn an_offer_that_nobody_takes_is_claimed_under_a_new_fence() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let (gone, worker) = (WorkerId::new(), WorkerId::new());
    make_room(&queue, gone, 8, &scopes()).await;
    let job = job();
    queue.put(&job).await;
    let offered: Vec<Vec<u8>> = server.command(&["LRANGE", &queue.key("offers:one"), "0", "-1"]).await;
    let before = Fence(wire::parse(offered[0].split(|byte| *byte == b' ').nth(1).unwrap()).unwrap());

    let claim = queue.claim_one(worker).await;
    assert_eq!((claim.job.id, claim.attempt, &claim.work), (job.id, 1, &Work::Call));
    assert!(claim.fence > before);
    assert_eq!(queue.heartbeat(gone, &[(job.id, before)]).await.unwrap(), [Renewal::Lost]);
    assert_eq!(queue.stash(&ending(&claim, worker)).await.unwrap(), Held::Done);
}

#[tokio::test]
async fn an_offer_that_nobody_took_in_time_waits_again_and_counts_as_no_loss() {
    let server = Server::start().await;
    let queue = server.hasty_queue().await;
    let (gone, worker) = (WorkerId::new(), WorkerId::new());
    make_room(&queue, gone, 8, &scopes()).await;
    let job = job();
    queue.put(&job).await;
    eventually(async || {
        assert!(queue.reap(worker, 10).await.unwrap().is_empty(), "there is nothing to take over");
        (ready(&queue).await == 1).then_some(())
    })
    .await;
    assert_eq!(queue.stats().await.unwrap().bytes, job.encode().len() as u64);
    let claim = queue.claim_one(worker).await;
    assert_eq!((claim.job.id, claim.attempt, &claim.work), (job.id, 1, &Work::Call));
}

#[tokio::test]
async fn an_offer_that_was_taken_and_lost_is_a_lost_call() {
    let server = Server::start().await;
    let queue = server.hasty_queue().await;
    let (first, second) = (WorkerId::new(), WorkerId::new());
    for heard_of in [false, true] {
        make_room(&queue, first, 8, &scopes()).await;
        queue.put(&job()).await;
        let claim = offered(&queue, first, 8).await.remove(0);
        if heard_of {
            assert_eq!(queue.heartbeat(first, &[(claim.job.id, claim.fence)]).await.unwrap(), [Renewal::Held]);
        }
        let lost = queue.reap_some(second).await.remove(0);
        assert!(lost.fence > claim.fence);
        assert_eq!(lost.queue_ms, 0);
        let worker = if heard_of { first } else { WorkerId::UNKNOWN };
        let call = LostCall { worker, fence: claim.fence, attempt: 1, started_at: claim.started_at };
        assert_eq!(lost.work, Work::Lost(call));
        assert_eq!(queue.stash(&ending(&claim, first)).await.unwrap(), Held::Elsewhere);
        queue.finish(&[(claim.job.id, lost.fence)]).await.unwrap();
    }
}

#[tokio::test]
async fn an_offer_that_nobody_has_taken_is_cancelled_and_expires_at_once() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    make_room(&queue, worker, 8, &scopes()).await;
    for outcome in [Outcome::Cancelled, Outcome::Expired] {
        make_room(&queue, worker, 8, &scopes()).await;
        let job = job();
        queue.put(&job).await;
        let cancelled = queue.cancel(job.id, outcome.clone()).await.unwrap();
        let Cancelled::Ended { ending, .. } = cancelled else { panic!("nobody has it: {cancelled:?}") };
        assert_eq!((ending.outcome, ending.started_at), (outcome, None));
        queue.finish(&[(job.id, ending.fence)]).await.unwrap();
        assert_eq!(queue.stats().await.unwrap(), QueueStats::default());
        assert!(offered(&queue, worker, 8).await.is_empty(), "it was woken for the run that waited again");
    }
}

#[tokio::test]
async fn an_offer_that_nobody_takes_before_its_deadline_was_never_called() {
    let server = Server::start().await;
    let queue = server.hasty_queue().await;
    let worker = WorkerId::new();
    make_room(&queue, worker, 8, &scopes()).await;
    let job = Job { deadline: queue.now().plus(100), ..job() };
    queue.put(&job).await;
    eventually(async || (queue.now() > job.deadline.plus(10)).then_some(())).await;
    let claim = queue.claim_one(worker).await;
    assert_eq!((claim.attempt, &claim.work), (1, &Work::Expire(None)));
    assert_eq!(queue.locate(job.id).await.unwrap(), Some(Sighting { leased: true, started_at: None }));
    let again = queue.reap_some(worker).await.remove(0);
    assert_eq!((again.attempt, &again.work), (1, &Work::Expire(None)));
}

#[tokio::test]
async fn a_pause_takes_back_what_nobody_has_taken() {
    for scope_only in [false, true] {
        let server = Server::start().await;
        let queue = server.queue().await;
        let worker = WorkerId::new();
        make_room(&queue, worker, 8, &scopes()).await;
        queue.put(&job()).await;
        if scope_only {
            queue.pause_scope("one", Duration::from_secs(60)).await.unwrap();
        } else {
            queue.set_paused(true).await.unwrap();
        }
        assert_eq!((queue.stats().await.unwrap().leased, ready(&queue).await), (0, 1));
        assert!(queue.claim(worker, 8, &scopes()).await.unwrap().claims.is_empty());
    }
}

#[tokio::test]
async fn a_pause_takes_offers_back_in_a_queue_that_lost_its_memory() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    make_room(&queue, worker, 8, &scopes()).await;
    assert!(queue.claim(worker, 8, &scopes()).await.unwrap().claims.is_empty());
    server.command::<()>(&["FLUSHALL"]).await;
    assert!(queue.claim(worker, 8, &scopes()).await.unwrap().claims.is_empty());
    queue.put(&job()).await;
    assert_eq!((queue.stats().await.unwrap().leased, ready(&queue).await), (1, 0));
    queue.set_paused(true).await.unwrap();
    assert_eq!((queue.stats().await.unwrap().leased, ready(&queue).await), (0, 1));
}

#[tokio::test]
async fn an_offer_that_stood_for_a_while_is_put_back_for_a_claim() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    make_room(&queue, worker, 8, &scopes()).await;
    let job = job();
    queue.put(&job).await;
    let located = queue.locate(job.id).await.unwrap().unwrap();
    let stood = async || (queue.now().since(located.started_at.unwrap()) > 200).then_some(());
    eventually(stood).await;
    assert!(offered(&queue, worker, 8).await.is_empty());
    assert_eq!(queue.locate(job.id).await.unwrap(), Some(Sighting { leased: false, started_at: None }));
    assert_eq!(queue.claim_one(worker).await.attempt, 1);
}

#[tokio::test]
async fn an_offer_is_handed_back_uncounted() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    make_room(&queue, worker, 8, &scopes()).await;
    queue.put(&job()).await;
    let claim = offered(&queue, worker, 8).await.remove(0);
    assert_eq!(queue.release(claim.job.id, claim.fence, Release::HandBack).await.unwrap(), Held::Done);
    let again = queue.claim_one(worker).await;
    assert_eq!((again.job.id, again.attempt), (claim.job.id, 1));
    assert!(again.fence > claim.fence);
}

#[tokio::test]
async fn a_wait_that_is_told_to_stop_ends_at_once_and_loses_nothing() {
    let server = Server::start().await;
    let queue = Arc::new(server.queue().await);
    let worker = WorkerId::new();
    make_room(&queue, worker, 8, &scopes()).await;
    let stop = CancellationToken::new();
    let waiting = tokio::spawn({
        let (queue, stop) = (queue.clone(), stop.clone());
        async move { queue.wait(worker, 8, Duration::from_secs(30), &stop).await }
    });
    server.until_blocked().await;
    stop.cancel();
    assert!(soon(waiting).await.unwrap().unwrap().is_empty());
    queue.put(&job()).await;
    assert!(queue.wait(worker, 8, Duration::from_secs(30), &stop).await.unwrap().is_empty(), "it does not begin");
    assert_eq!(queue.claim(worker, 8, &scopes()).await.unwrap().claims.len(), 1);
}

#[tokio::test]
async fn an_offer_whose_job_another_version_wrote_is_left_to_it() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    make_room(&queue, worker, 8, &scopes()).await;
    let job = Job { v: WIRE_VERSION + 1, ..job() };
    queue.put(&job).await;
    assert!(offered(&queue, worker, 8).await.is_empty());
    assert_eq!(queue.stats().await.unwrap().delayed, 1);
}

#[tokio::test]
async fn a_redis_that_forgot_that_an_offer_was_taken_takes_it_from_nobody() {
    for ended in [false, true] {
        let server = Server::start().await;
        let queue = server.queue().await;
        let worker = WorkerId::new();
        make_room(&queue, worker, 8, &scopes()).await;
        queue.put(&job()).await;
        let offer: Vec<Vec<u8>> = server.command(&["LRANGE", "{q:test}:offers:one", "0", "-1"]).await;
        let claim = offered(&queue, worker, 8).await.remove(0);
        let held = [(claim.job.id, claim.fence)];
        assert_eq!(queue.heartbeat(worker, &held).await.unwrap(), [Renewal::Held]);
        if ended {
            assert_eq!(queue.stash(&ending(&claim, worker)).await.unwrap(), Held::Done);
            queue.finish(&held).await.unwrap();
        }
        server.command::<u32>(&[&b"RPUSH"[..], b"{q:test}:offers:one", &offer[0], &offer[1]]).await;
        queue.set_paused(true).await.unwrap();
        assert_eq!(server.command::<u32>(&["LLEN", "{q:test}:offers:one"]).await, 0);
        let leased = u64::from(!ended);
        assert_eq!(queue.stats().await.unwrap(), QueueStats { leased, paused: true, ..QueueStats::default() });
        let renewal = if ended { Renewal::Lost } else { Renewal::Held };
        assert_eq!(queue.heartbeat(worker, &held).await.unwrap(), [renewal]);
    }
}
