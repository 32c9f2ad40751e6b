use super::*;
use crate::queue::RateRule;

fn rule(subject: &str, per_minute: u32) -> RateRule {
    RateRule { name: "account", subject: subject.into(), per_minute }
}

fn admission(rules: Vec<RateRule>) -> Admission {
    Admission { rules, max_depth: 1000, max_bytes: 1 << 20 }
}

/// Two processes that claim as fast as they can, until both find nothing more.
async fn claim_all(server: &Server, limits: ScopeLimits) -> Vec<Claim> {
    let mut workers = Vec::new();
    for _ in 0..2 {
        let queue = server.queue().await;
        let limits = limits.clone();
        workers.push(tokio::spawn(async move {
            let worker = WorkerId::new();
            let mut claims = Vec::new();
            loop {
                let claimed = queue.claim(worker, 3, std::slice::from_ref(&limits)).await.unwrap();
                if claimed.claims.is_empty() {
                    return claims;
                }
                claims.extend(claimed.claims);
            }
        }));
    }
    let mut claims = Vec::new();
    for worker in workers {
        claims.extend(worker.await.unwrap());
    }
    claims
}

#[tokio::test]
async fn limits_are_exact_over_workers_that_claim_at_the_same_time() {
    let server = Server::start().await;
    let queue = server.queue().await;
    for scope in ["requests", "slots", "tokens"] {
        for _ in 0..40 {
            queue.put(&Job { targets: vec![target(scope)], ..job() }).await;
        }
    }
    let requests = ScopeLimits { requests_per_minute: Some(17), ..unlimited("requests") };
    assert_eq!(claim_all(&server, requests).await.len(), 17);
    let slots = ScopeLimits { max_concurrency: Some(11), ..unlimited("slots") };
    assert_eq!(claim_all(&server, slots).await.len(), 11);
    // Every run reserves ten.
    let tokens = ScopeLimits { tokens_per_minute: Some(139), ..unlimited("tokens") };
    assert_eq!(claim_all(&server, tokens).await.len(), 13);
}

#[tokio::test]
async fn a_held_back_run_says_when_it_could_go() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    for _ in 0..2 {
        queue.put(&job()).await;
    }
    let limits = [ScopeLimits { requests_per_minute: Some(1), ..unlimited("one") }];
    let claimed = queue.claim(worker, 2, &limits).await.unwrap();
    assert_eq!(claimed.claims.len(), 1);
    let next = claimed.next.expect("one is held back");
    assert!(next > Duration::from_secs(59) && next <= Duration::from_millis(60_001), "{next:?}");
    let all = [ScopeLimits { tokens_per_minute: Some(10), ..unlimited("one") }];
    assert_eq!(queue.claim(worker, 2, &all).await.unwrap().claims.len(), 1, "another limit, not yet used");
}

#[tokio::test]
async fn tokens_are_settled_by_real_usage_and_a_giant_goes_alone() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let limits = [ScopeLimits { tokens_per_minute: Some(10), ..unlimited("one") }];
    for tokens in [10, 9, 5_000] {
        queue.put(&Job { tokens, account: AccountId(Uuid::nil()), ..job() }).await;
    }
    let claim = queue.claim(worker, 3, &limits).await.unwrap().claims.remove(0);
    assert!(queue.claim(worker, 3, &limits).await.unwrap().claims.is_empty());
    // It used two of ten.
    queue.stash(&ending(&claim, worker)).await.unwrap();
    let small = Job { tokens: 8, lane: Lane::Default, ..job() };
    queue.put(&small).await;
    let claims = queue.claim(worker, 3, &limits).await.unwrap().claims;
    assert_eq!(claims.iter().map(|claim| claim.job.id).collect::<Vec<_>>(), [small.id], "nine do not fit, eight do");

    let alone = [ScopeLimits { tokens_per_minute: Some(10), ..unlimited("two") }];
    queue.put(&Job { tokens: 5_000, targets: vec![target("two")], ..job() }).await;
    assert_eq!(queue.claim(worker, 3, &alone).await.unwrap().claims.len(), 1);
}

#[tokio::test]
async fn a_call_that_used_no_tokens_leaves_the_minute_like_any_other() {
    let server = Server::start().await;
    let set_clock = async |second: u64| {
        server
            .command::<()>(&["SET", "{q:test}:clock", &(1_700_000_000_000_000 + second * 1_000_000).to_string()])
            .await;
    };
    set_clock(0).await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let limits = [ScopeLimits { tokens_per_minute: Some(10), ..unlimited("one") }];
    queue.put(&job()).await;
    let claim = queue.claim(worker, 1, &limits).await.unwrap().claims.remove(0);
    let mut ending = ending(&claim, worker);
    ending.attempt.as_mut().unwrap().usage = Usage { input_tokens: Some(0), output_tokens: Some(0) };
    assert_eq!(queue.stash(&ending).await.unwrap(), Held::Done);
    queue.put(&job()).await;
    set_clock(61).await;
    assert_eq!(queue.claim(worker, 1, &limits).await.unwrap().claims.len(), 1);
}

#[tokio::test]
async fn slots_come_back_when_a_call_ends_and_when_its_worker_is_lost() {
    let server = Server::start().await;
    let queue = server.hasty_queue().await;
    let worker = WorkerId::new();
    for _ in 0..3 {
        queue.put(&job()).await;
    }
    let limits = [ScopeLimits { max_concurrency: Some(1), ..unlimited("one") }];
    let claim = queue.claim(worker, 3, &limits).await.unwrap().claims.remove(0);
    let held = queue.claim(worker, 3, &limits).await.unwrap();
    assert!(held.claims.is_empty() && held.next.is_some());
    queue.stash(&ending(&claim, worker)).await.unwrap();
    soon(queue.rest(worker, Duration::from_secs(20))).await.unwrap();
    assert_eq!(queue.claim(worker, 3, &limits).await.unwrap().claims.len(), 1);
    // Nobody ends that one, and nobody reaps.
    let healed = eventually(async || queue.claim(worker, 3, &limits).await.unwrap().claims.pop()).await;
    assert_eq!(healed.work, Work::Call);
}

#[tokio::test]
async fn a_paused_scope_holds_only_its_own_runs_back() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    queue.put(&job()).await;
    let other = Job { targets: vec![target("two")], ..job() };
    queue.put(&other).await;
    queue.pause_scope("one", Duration::from_millis(300)).await.unwrap();
    queue.pause_scope("one", Duration::from_millis(1)).await.unwrap();
    let both = [unlimited("one"), unlimited("two")];
    let claimed = queue.claim(worker, 5, &both).await.unwrap();
    assert_eq!(claimed.claims.iter().map(|claim| claim.job.id).collect::<Vec<_>>(), [other.id]);
    assert!(claimed.next.unwrap() <= Duration::from_millis(301));
    eventually(async || queue.claim(worker, 5, &both).await.unwrap().claims.pop()).await;
}

#[tokio::test]
async fn lanes_share_eight_to_three_to_one() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    for lane in Lane::ALL {
        for _ in 0..30 {
            queue.put(&Job { lane, ..job() }).await;
        }
    }
    let mut counts = BTreeMap::new();
    for _ in 0..24 {
        *counts.entry(queue.claim_one(worker).await.job.lane.as_str()).or_insert(0) += 1;
    }
    assert_eq!(counts, BTreeMap::from([("interactive", 16), ("default", 6), ("batch", 2)]));
}

/// Makes a run look as if it had waited for long.
async fn age(server: &Server, run: RunId) {
    let ready = UnixMillis(UnixMillis::now().0 - 120_000).0.to_string();
    server.set_ready(run, &ready).await;
}

#[tokio::test]
async fn a_lane_whose_runs_wait_too_long_has_twice_its_share() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    for _ in 0..20 {
        queue.put(&job()).await;
        let old = Job { lane: Lane::Batch, ..job() };
        queue.put(&old).await;
        age(&server, old.id).await;
    }
    let claims = queue.claim(worker, 10, &scopes()).await.unwrap().claims;
    assert_eq!(claims.iter().filter(|claim| claim.job.lane == Lane::Batch).count(), 2);
}

#[tokio::test]
async fn tokens_are_saved_up_for_a_run_that_waits_too_long() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let limits = [ScopeLimits { tokens_per_minute: Some(10), ..unlimited("one") }];
    queue.put(&Job { tokens: 5, ..job() }).await;
    assert_eq!(queue.claim(worker, 1, &limits).await.unwrap().claims.len(), 1);
    let large = Job { tokens: 9, lane: Lane::Batch, ..job() };
    queue.put(&large).await;
    queue.put(&Job { tokens: 1, ..job() }).await;
    queue.put(&Job { tokens: 1, ..job() }).await;
    assert_eq!(queue.claim(worker, 1, &limits).await.unwrap().claims.len(), 1, "the small one passes by");
    age(&server, large.id).await;
    assert!(queue.claim(worker, 1, &limits).await.unwrap().claims.is_empty(), "and then no more");
}

/// What the last minute holds after Redis's clock was set back by an hour.
async fn what_a_minute_holds_blocks_nobody_for_longer(limits: ScopeLimits, age: &[&str]) {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    queue.put(&Job { tokens: 10, ..job() }).await;
    let limits = [limits];
    let claim = queue.claim(worker, 1, &limits).await.unwrap().claims.remove(0);
    queue.put(&Job { tokens: 10, ..job() }).await;
    let member = format!("{}:{}", claim.job.id, claim.fence.0);
    let later = queue.now().plus(3_600_000).0.to_string();
    let words: Vec<&str> = age
        .iter()
        .map(|word| word.replace("LATER", &later).replace("CALL", &member))
        .map(|word| &*word.leak())
        .collect();
    let _: redis::Value = server.command(&words).await;
    let claimed = queue.claim(worker, 1, &limits).await.unwrap();
    assert!(claimed.claims.is_empty(), "the limit holds");
    let next = claimed.next.expect("it says when");
    assert!((50..=61).contains(&next.as_secs()), "{next:?}");
}

#[tokio::test]
async fn requests_of_a_clock_that_was_set_back_count_for_a_minute() {
    let limits = ScopeLimits { requests_per_minute: Some(1), ..unlimited("one") };
    what_a_minute_holds_blocks_nobody_for_longer(limits, &["LSET", "{q:test}:requests:one", "0", "LATER"]).await;
}

#[tokio::test]
async fn tokens_of_a_clock_that_was_set_back_count_for_a_minute() {
    let limits = ScopeLimits { tokens_per_minute: Some(10), ..unlimited("one") };
    what_a_minute_holds_blocks_nobody_for_longer(limits, &["ZADD", "{q:test}:tokens:one", "LATER", "CALL"]).await;
}

#[tokio::test]
async fn accounts_take_turns_by_cost_and_a_backlog_delays_nobody() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let (busy, cheap, dear) = (AccountId::new(), AccountId::new(), AccountId::new());
    for _ in 0..300 {
        queue.put(&Job { account: busy, ..job() }).await;
    }
    assert_eq!(queue.claim(worker, 150, &scopes()).await.unwrap().claims.len(), 150, "in more than one script");
    queue.put(&Job { account: cheap, ..job() }).await;
    let next = [queue.claim_one(worker).await, queue.claim_one(worker).await];
    assert!(next.iter().any(|claim| claim.job.account == cheap), "a new account goes at once");

    for _ in 0..40 {
        queue.put(&Job { account: cheap, tokens: 10, ..job() }).await;
        queue.put(&Job { account: dear, tokens: 30, ..job() }).await;
    }
    let claims = queue.claim(worker, 35, &scopes()).await.unwrap().claims;
    let count = |account| claims.iter().filter(|claim| claim.job.account == account).count();
    assert!((14..=16).contains(&count(busy)), "{}", count(busy));
    assert!((14..=16).contains(&count(cheap)), "{}", count(cheap));
    assert!((4..=6).contains(&count(dear)), "{}", count(dear));
}

#[tokio::test]
async fn an_account_that_is_served_in_one_scope_has_had_its_turn_in_another() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let (both_scopes, second_only) = (AccountId::new(), AccountId::new());
    let two = || vec![target("two")];
    queue.put(&Job { account: both_scopes, ..job() }).await;
    queue.put(&Job { account: both_scopes, targets: two(), ..job() }).await;
    queue.put(&Job { account: second_only, targets: two(), ..job() }).await;
    queue.claim_one(worker).await;
    let next = queue.claim(worker, 1, &[unlimited("two")]).await.unwrap().claims.remove(0);
    assert_eq!(next.job.account, second_only);
}

#[tokio::test]
async fn an_account_that_was_held_back_does_not_make_up_for_it() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let (served, held_back) = (AccountId::new(), AccountId::new());
    for _ in 0..40 {
        queue.put(&Job { account: served, ..job() }).await;
        queue.put(&Job { account: held_back, targets: vec![target("two")], ..job() }).await;
    }
    assert_eq!(queue.claim(worker, 30, &scopes()).await.unwrap().claims.len(), 30);
    let claims = queue.claim(worker, 10, &[unlimited("one"), unlimited("two")]).await.unwrap().claims;
    let caught_up = claims.iter().filter(|claim| claim.job.account == held_back).count();
    assert!((5..=6).contains(&caught_up), "{caught_up} of 10");
}

#[tokio::test]
async fn admission_charges_all_rules_or_none() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let rules = admission(vec![rule("a", 2), RateRule { name: "key", subject: "k".into(), per_minute: 1 }]);
    let submission = Submission { job: Arc::new(job()), reply_to: None };
    let Admitted::Yes { rates } = queue.enqueue(submission.clone(), Some(&rules)).await.unwrap() else { panic!() };
    assert_eq!(rates.iter().map(|rate| (rate.name, rate.remaining)).collect::<Vec<_>>(), [("account", 1), ("key", 0)]);
    assert!(
        rates.iter().all(|rate| rate.reset > Duration::from_secs(59) && rate.reset <= Duration::from_millis(60_001))
    );

    let Admitted::Yes { rates } = queue.enqueue(submission, Some(&rules)).await.unwrap() else { panic!() };
    assert_eq!(rates[0].remaining, 1, "a repeated enqueue is not charged again");

    let Admitted::Limited { rule: name, after, rates } = queue.admit(&job(), &rules).await.unwrap() else { panic!() };
    assert_eq!(name, "key");
    assert!(after > Duration::from_secs(59));
    assert_eq!(rates[0].remaining, 1, "the account was not charged");
    let other = admission(vec![rule("a", 2)]);
    assert!(matches!(queue.admit(&job(), &other).await.unwrap(), Admitted::Yes { .. }));
    assert!(matches!(queue.admit(&job(), &other).await.unwrap(), Admitted::Limited { rule: "account", .. }));
}

#[tokio::test]
async fn a_full_queue_takes_no_more_and_charges_nothing() {
    let server = Server::start().await;
    let queue = server.queue().await;
    queue.put(&job()).await;
    let no_depth = Admission { max_depth: 1, ..admission(vec![rule("a", 5)]) };
    let no_bytes = Admission { max_bytes: 10, ..admission(vec![rule("a", 5)]) };
    for full in [no_depth, no_bytes] {
        let submission = Submission { job: Arc::new(job()), reply_to: None };
        assert!(matches!(queue.enqueue(submission, Some(&full)).await.unwrap(), Admitted::Full { .. }));
    }
    let Admitted::Yes { rates } = queue.admit(&job(), &admission(vec![rule("a", 5)])).await.unwrap() else { panic!() };
    assert_eq!(rates[0].remaining, 4);
}
