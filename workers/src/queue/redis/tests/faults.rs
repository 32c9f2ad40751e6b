use super::*;

#[tokio::test]
async fn what_redis_forgot_is_restored_under_higher_fences() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let before = queue.was_reset().await.unwrap().expect("it is new");
    assert_eq!(queue.was_reset().await.unwrap(), None);
    let (front_door, stop) = (FrontDoorId::new(), CancellationToken::new());
    let mut replies = queue.replies(front_door, stop.clone()).await.unwrap();
    let (ended, leased, waiting) = (job(), job(), job());
    queue.put(&ended).await;
    let end = queue.claim_one(worker).await;
    queue.put(&leased).await;
    let claim = queue.claim_one(worker).await;
    queue.put(&waiting).await;

    server.command::<()>(&["FLUSHALL"]).await;
    let both = [leased.id, waiting.id];
    assert_eq!(queue.missing(&both).await.unwrap(), both);
    assert_eq!(queue.heartbeat(worker, &[(leased.id, claim.fence)]).await.unwrap(), [Renewal::Lost]);
    assert_eq!(queue.stash(&ending(&end, worker)).await.unwrap(), Held::Unknown);
    let after = queue.was_reset().await.unwrap().expect("it forgot");
    assert_ne!(after, before);
    assert_eq!(queue.was_reset().await.unwrap(), None);
    // Who restored the memory before this one says nothing about this one.
    queue.restored(before).await.unwrap();
    let remembers: bool = server.command(&["EXISTS", &queue.key("unrestored")]).await;
    assert!(remembers);
    assert!(matches!(soon(replies.recv()).await, Some(Reply::Resumed)), "its address was forgotten as well");

    // What has ended is on its way to the ledger, and does not come back.
    let runs =
        [ended, leased, waiting].map(|job| Restored { job: Arc::new(job), attempts: 1, limited: 0, fence: Fence(0) });
    queue.restore(&runs).await.unwrap();
    queue.restore(&runs).await.unwrap();
    let claims = queue.claim(worker, 5, &scopes()).await.unwrap().claims;
    assert_eq!(claims.len(), 2);
    assert!(claims.iter().all(|again| again.fence > claim.fence && again.attempt == 2));
}

#[tokio::test]
async fn a_restored_run_takes_the_result_of_the_worker_that_had_it() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let (worker, job) = (WorkerId::new(), job());
    queue.put(&job).await;
    let claim = queue.claim_one(worker).await;
    server.command::<()>(&["FLUSHALL"]).await;
    queue.restore(&[Restored { job: Arc::new(job.clone()), attempts: 0, limited: 0, fence: Fence(0) }]).await.unwrap();
    assert_eq!(queue.stash(&ending(&claim, worker)).await.unwrap(), Held::Done);
    assert!(queue.claim(worker, 1, &scopes()).await.unwrap().claims.is_empty());
    assert_eq!(queue.heartbeat(worker, &[(job.id, claim.fence)]).await.unwrap(), [Renewal::Held]);
    queue.finish(&[(job.id, claim.fence)]).await.unwrap();
    assert_eq!(queue.stats().await.unwrap(), QueueStats::default());
}

#[tokio::test]
async fn what_was_forgotten_counts_against_the_limits() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let (worker, job) = (WorkerId::new(), job());
    let limited = |slots, requests| {
        let limits = ScopeLimits { max_concurrency: slots, requests_per_minute: requests, ..scopes().remove(0) };
        vec![limits]
    };
    assert!(queue.was_reset().await.unwrap().is_some(), "a new queue forgot nothing");
    queue.put(&job).await;
    assert_eq!(queue.claim(worker, 1, &limited(Some(1), None)).await.unwrap().claims.len(), 1);
    server.command::<()>(&["FLUSHALL"]).await;
    queue.put(&job).await;
    for (limits, least) in [(limited(Some(1), None), 10), (limited(None, Some(1)), 55)] {
        let claimed = queue.claim(worker, 1, &limits).await.unwrap();
        assert!(claimed.claims.is_empty());
        assert!(claimed.next.is_some_and(|next| next > Duration::from_secs(least)), "{:?}", claimed.next);
    }
    assert_eq!(queue.claim(worker, 1, &scopes()).await.unwrap().claims.len(), 1, "without a limit there is no wait");
}

#[tokio::test]
async fn what_was_forgotten_counts_also_when_a_new_process_comes_first() {
    let server = Server::start().await;
    let (old, new) = (server.queue().await, server.queue().await);
    let (worker, job) = (WorkerId::new(), job());
    let limited = [ScopeLimits { requests_per_minute: Some(1), ..scopes().remove(0) }];
    old.was_reset().await.unwrap();
    old.put(&job).await;
    assert_eq!(old.claim(worker, 1, &limited).await.unwrap().claims.len(), 1);
    server.command::<()>(&["FLUSHALL"]).await;
    assert!(new.was_reset().await.unwrap().is_some(), "to the new one, the memory is new");
    new.put(&job).await;
    let claimed = old.claim(worker, 1, &limited).await.unwrap();
    assert!(
        claimed.claims.is_empty() && claimed.next.is_some_and(|next| next > Duration::from_secs(55)),
        "{claimed:?}"
    );
    // The one who has heard of the loss tells all others of it.
    assert!(new.claim(worker, 1, &limited).await.unwrap().claims.is_empty());
}

#[tokio::test]
async fn a_finished_run_that_redis_forgot_leaves_a_tombstone() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let job = job();
    queue.finish(&[(job.id, Fence(7))]).await.unwrap();
    queue.restore(&[Restored { job: Arc::new(job.clone()), attempts: 0, limited: 0, fence: Fence(0) }]).await.unwrap();
    assert!(queue.claim(WorkerId::new(), 1, &scopes()).await.unwrap().claims.is_empty());
}

#[tokio::test]
async fn a_run_whose_job_is_gone_holds_nobody_up() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let (evicted, whole) = (job(), job());
    queue.put(&evicted).await;
    queue.put(&whole).await;
    server.command::<u32>(&["DEL", &format!("{{q:test}}:job:{}", evicted.id)]).await;
    let claims = queue.claim(WorkerId::new(), 5, &scopes()).await.unwrap().claims;
    assert_eq!(claims.iter().map(|claim| claim.job.id).collect::<Vec<_>>(), [whole.id]);
    assert_eq!(queue.missing(&[evicted.id]).await.unwrap(), [evicted.id], "the ledger can bring it back");
}

#[tokio::test]
async fn cancellations_come_again_after_a_killed_connection() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let mut cancellations = queue.cancellations(CancellationToken::new()).await.unwrap();
    server.command::<u32>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    eventually(async || {
        let listening: (String, u32) = server.command(&["PUBSUB", "NUMSUB", "{q:test}:cancel"]).await;
        (listening.1 == 1).then_some(())
    })
    .await;
    queue.put(&job()).await;
    let claim = queue.claim_one(WorkerId::new()).await;
    queue.cancel(claim.job.id, Outcome::Cancelled).await.unwrap();
    assert_eq!(soon(cancellations.recv()).await, Some(claim.job.id));
}

#[tokio::test]
async fn a_stopped_redis_is_unreachable_at_once_and_heals_without_a_restart() {
    let mut server = Server::start().await;
    let queue = server.queue().await;
    let (worker, front_door) = (WorkerId::new(), FrontDoorId::new());
    let mut replies = queue.replies(front_door, CancellationToken::new()).await.unwrap();
    queue.ping().await.unwrap();
    queue.rest(worker, Duration::from_millis(1)).await.unwrap();

    server.stop();
    let started = Instant::now();
    assert!(queue.ping().await.is_err());
    assert!(queue.claim(worker, 1, &scopes()).await.is_err());
    assert!(queue.rest(worker, Duration::from_secs(30)).await.is_err());
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());

    assert!(server.restart().await);
    eventually(async || queue.ping().await.ok()).await;
    assert!(matches!(soon(replies.recv()).await, Some(Reply::Resumed)));
    queue.put_for(&job(), front_door).await;
    let claim = queue.claim_one(worker).await;
    queue.stash(&ending(&claim, worker)).await.unwrap();
    loop {
        match soon(replies.recv()).await {
            Some(Reply::Ended(told)) => break assert_eq!(told.run, claim.job.id),
            Some(Reply::Resumed | Reply::Event(..)) => {}
            None => panic!("the reader stopped"),
        }
    }
}

#[tokio::test]
async fn a_redis_that_hangs_is_unreachable_within_seconds() {
    let server = Server::start().await;
    let queue = server.queue().await;
    queue.ping().await.unwrap();
    server.command::<()>(&["CLIENT", "PAUSE", "60000", "ALL"]).await;
    let started = Instant::now();
    assert!(queue.ping().await.is_err());
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    let started = Instant::now();
    assert!(matches!(RedisQueue::connect(server.settings()).await, Err(ConnectError::Unreachable { .. })));
    assert!(started.elapsed() < Duration::from_secs(7), "{:?}", started.elapsed());
}

#[tokio::test]
async fn full_memory_refuses_new_runs_and_lets_the_others_end() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    for _ in 0..3 {
        queue.put(&job()).await;
    }
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    let refused = job();
    let submission = Submission { job: Arc::new(refused.clone()), reply_to: None };
    assert!(queue.enqueue(submission, None).await.is_err());
    assert_eq!(queue.missing(&[refused.id]).await.unwrap(), [refused.id], "nothing of it is left");
    let claims = queue.claim(worker, 5, &scopes()).await.unwrap().claims;
    assert_eq!(claims.len(), 3);
    for claim in &claims {
        assert_eq!(queue.stash(&ending(claim, worker)).await.unwrap(), Held::Done);
    }
    queue.finish(&claims.iter().map(|claim| (claim.job.id, claim.fence)).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(queue.stats().await.unwrap(), QueueStats::default());
}

#[tokio::test]
async fn a_queued_run_costs_little_more_than_its_payload() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let used = async || -> usize {
        let info: redis::InfoDict = server.command(&["INFO", "memory"]).await;
        info.get("used_memory").unwrap()
    };
    let job = Job { account: AccountId::new(), ..job() };
    let payload = job.encode().len();
    let runs: Vec<Restored> = (0..5_000)
        .map(|_| Arc::new(Job { id: RunId::new(), ..job.clone() }))
        .map(|job| Restored { job, attempts: 0, limited: 0, fence: Fence(0) })
        .collect();
    let before = used().await;
    queue.restore(&runs).await.unwrap();
    let each = (used().await - before) / runs.len();
    assert!(each - payload <= 2048, "{} bytes beside a payload of {payload}", each - payload);
}

#[tokio::test]
async fn the_operator_reads_what_is_wrong_and_no_password() {
    let connect = async |url: &str| {
        let settings = RedisSettings { url: Secret::new(url), pool: "test".into(), max_connections: 1 };
        match RedisQueue::connect(settings).await {
            Ok(_) => panic!("{url} was accepted"),
            Err(error) => {
                let shown = format!("{error} {error:?}");
                assert!(!shown.contains("hunter2"), "{shown}");
                error
            }
        }
    };
    assert!(matches!(connect("http://x:hunter2@localhost").await, ConnectError::Malformed));
    assert!(matches!(connect("redis://:hunter2@localhost:notaport").await, ConnectError::Malformed));
    let error = connect("redis://:hunter2@127.0.0.1:1").await;
    assert_eq!(error.to_string(), "Redis at 127.0.0.1:1 does not answer");

    let server = Server::with(&["--requirepass", "right", "--maxmemory-policy", "allkeys-lru"]).await;
    let error = connect(&format!("redis://:hunter2@127.0.0.1:{}", server.port)).await;
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
    let error = connect(&format!("redis://127.0.0.1:{}", server.port)).await;
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");

    let url = Secret::new(format!("redis://:right@127.0.0.1:{}", server.port));
    let settings = RedisSettings { url, ..server.settings() };
    let queue = RedisQueue::connect(settings).await.unwrap();
    let [warning] = queue.warnings() else { panic!("{:?}", queue.warnings()) };
    assert!(warning.contains("maxmemory-policy allkeys-lru"), "{warning}");
}

#[tokio::test]
async fn a_user_that_may_not_ask_about_the_server_may_still_use_it() {
    let server = Server::start().await;
    let connect = async |user: &str, forbidden: &[&str]| {
        let words =
            [&["ACL", "SETUSER", user, "on", ">right", "~{q:test}*", "&{q:test}:*", "+@all"], forbidden].concat();
        server.command::<()>(&words).await;
        let url = Secret::new(format!("redis://{user}:right@127.0.0.1:{}", server.port));
        let queue = RedisQueue::connect(RedisSettings { url, ..server.settings() }).await.unwrap();
        let (front_door, worker) = (FrontDoorId::new(), WorkerId::new());
        let mut replies = queue.replies(front_door, CancellationToken::new()).await.unwrap();
        queue.put_for(&job(), front_door).await;
        queue.stash(&ending(&queue.claim_one(worker).await, worker)).await.unwrap();
        assert!(matches!(soon(replies.recv()).await, Some(Reply::Ended(_))));
        queue.cancellations(CancellationToken::new()).await.unwrap();
        queue.warnings().len()
    };
    assert_eq!(connect("quiet", &["-config"]).await, 0, "INFO says it too");
    assert_eq!(connect("silent", &["-config", "-info"]).await, 2, "version and policy are not known");
}

#[tokio::test]
async fn whoever_may_not_load_the_steps_is_told_why() {
    let check = async |forbidden: &[&str], maxmemory: &str, expect: &str| {
        let server = Server::start().await;
        let words = [&["ACL", "SETUSER", "default", "+@all"], forbidden].concat();
        server.command::<()>(&["CONFIG", "SET", "maxmemory", maxmemory]).await;
        server.command::<()>(&words).await;
        let queue = server.queue().await;
        let [warning] = queue.warnings() else { panic!("{:?}", queue.warnings()) };
        assert!(warning.contains("steps of the queue") && warning.contains(expect), "{warning}");
        // What was missing is there now: the next step loads them.
        server.command::<()>(&["ACL", "SETUSER", "default", "+@all"]).await;
        server.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
        queue.put(&job()).await;
    };
    check(&["-fcall"], "0", "fcall").await;
    check(&["-function|load"], "0", "function|load").await;
    check(&[], "1", "maxmemory").await;
}

/// A leader that is gone without having been finished (evicted, or deleted by hand) keeps nobody waiting.
#[tokio::test]
async fn who_waits_behind_nobody_leads_after_a_while() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let at = async |millis: i64| server.command::<()>(&["SET", &queue.key("clock"), &format!("{millis}000")]).await;
    let caching = Some(Caching { digest: "f".into(), ttl_ms: 1 });
    let (began, worker) = (1_700_000_000_000, WorkerId::new());
    let [leader, second, third] =
        [(); 3].map(|()| Job { caching: caching.clone(), deadline: UnixMillis(began + 3_600_000), ..job() });
    at(began).await;
    for job in [&leader, &second, &third] {
        queue.put(job).await;
    }
    queue.claim_one(worker).await;
    // It is there: they wait on.
    at(began + 15_000).await;
    assert!(queue.claim(worker, 5, &scopes()).await.unwrap().claims.is_empty());
    server.command::<()>(&["DEL", &queue.key(&format!("run:{}", leader.id))]).await;
    at(began + 30_000).await;
    let claim = queue.claim_one(worker).await;
    assert_eq!((claim.job.id, &claim.work), (second.id, &Work::Call));
    queue.stash(&ending(&claim, worker)).await.unwrap();
    queue.finish(&[(second.id, claim.fence)]).await.unwrap();
    let answer = queue.reap_some(worker).await.into_iter().find(|claim| claim.job.id == third.id);
    assert_eq!(answer.map(|claim| claim.work), Some(Work::Answer));
}

#[tokio::test]
async fn a_run_whose_record_cannot_be_read_is_restored() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let (worker, runs) = (WorkerId::new(), [job(), job(), job()]);
    for job in &runs {
        queue.put(job).await;
    }
    let record = |job: &Job| queue.key(&format!("run:{}", job.id));
    server.command::<()>(&["SET", &record(&runs[0]), "r nonsense"]).await;
    server.command::<()>(&["DEL", &record(&runs[1])]).await;
    server.command::<()>(&["HSET", &record(&runs[1]), "state", "ready"]).await;

    assert_eq!(queue.missing(&runs.each_ref().map(|job| job.id)).await.unwrap(), [runs[0].id, runs[1].id]);
    assert_eq!(queue.claim_one(worker).await.job.id, runs[2].id, "it holds nobody up");
    let restored = runs.each_ref().map(|job| Restored {
        job: Arc::new(job.clone()),
        attempts: 0,
        limited: 0,
        fence: Fence::default(),
    });
    queue.restore(&restored).await.unwrap();
    let claims = queue.claim(worker, 3, &scopes()).await.unwrap().claims;
    assert_eq!(claims.iter().map(|claim| claim.job.id).collect::<Vec<_>>(), [runs[0].id, runs[1].id]);
}
