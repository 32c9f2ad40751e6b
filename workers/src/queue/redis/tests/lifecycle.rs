use super::*;

#[tokio::test]
async fn a_run_is_claimed_stashed_replied_and_finished_once() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let (worker, front_door, stop) = (WorkerId::new(), FrontDoorId::new(), CancellationToken::new());
    let mut replies = queue.replies(front_door, stop.clone()).await.unwrap();
    let job = job();
    queue.put_for(&job, front_door).await;
    queue.put_for(&job, front_door).await;
    assert_eq!(queue.stats().await.unwrap().lanes[0].ready, 1);
    assert_eq!(queue.stats().await.unwrap().bytes, u64::try_from(job.encode().len()).unwrap());
    assert_eq!(queue.locate(job.id).await.unwrap(), Some(Sighting { leased: false, started_at: None }));

    let claim = queue.claim_one(worker).await;
    assert_eq!((*claim.job).clone(), job);
    assert_eq!((claim.attempt, claim.target, &claim.work), (1, 0, &Work::Call));
    assert!(queue.claim(worker, 1, &scopes()).await.unwrap().claims.is_empty(), "it is handed out once");
    assert_eq!(
        queue.locate(job.id).await.unwrap(),
        Some(Sighting { leased: true, started_at: Some(claim.started_at) })
    );
    assert_eq!(queue.heartbeat(worker, &[(job.id, claim.fence)]).await.unwrap(), [Renewal::Held]);

    let ending = ending(&claim, worker);
    assert_eq!(queue.stash(&ending).await.unwrap(), Held::Done);
    assert_eq!(queue.stash(&ending).await.unwrap(), Held::Done, "the step may be repeated");
    let Some(Reply::Ended(told)) = soon(replies.recv()).await else { panic!("an ending was sent") };
    assert_eq!(*told, ending);
    let retry = Release::Retry { after: Duration::ZERO, target: 0 };
    assert_eq!(queue.release(job.id, claim.fence, retry).await.unwrap(), Held::Elsewhere, "it has ended");
    assert_eq!(queue.cancel(job.id, Outcome::Cancelled).await.unwrap(), Cancelled::Finished);
    assert_eq!(queue.locate(job.id).await.unwrap(), None);

    queue.finish(&[(job.id, claim.fence)]).await.unwrap();
    assert_eq!(queue.stats().await.unwrap(), QueueStats::default());
    assert!(queue.missing(&[job.id]).await.unwrap().is_empty(), "a tombstone is left");
    queue.put(&job).await;
    assert!(queue.claim(worker, 1, &scopes()).await.unwrap().claims.is_empty(), "a late copy stays dead");
    assert!(replies.try_recv().is_err(), "the ending was sent once");

    stop.cancel();
    assert!(soon(replies.recv()).await.is_none());
}

#[tokio::test]
async fn a_lost_call_is_taken_over_and_its_late_result_refused() {
    let server = Server::start().await;
    let queue = server.hasty_queue().await;
    let (first, second) = (WorkerId::new(), WorkerId::new());
    let job = job();
    queue.put(&job).await;
    let claim = queue.claim_one(first).await;

    let lost = queue.reap_some(second).await.remove(0);
    assert!(lost.fence > claim.fence);
    let call = LostCall { worker: first, fence: claim.fence, attempt: 1, started_at: claim.started_at };
    assert_eq!(lost.work, Work::Lost(call.clone()));
    assert_eq!(queue.stash(&ending(&claim, first)).await.unwrap(), Held::Elsewhere);
    assert_eq!(queue.heartbeat(first, &[(job.id, claim.fence)]).await.unwrap(), [Renewal::Lost]);
    assert_eq!(queue.release(job.id, claim.fence, Release::HandBack).await.unwrap(), Held::Elsewhere);
    queue.finish(&[(job.id, claim.fence)]).await.unwrap();

    // The reaper dies as well: the loss is told again, and not counted again.
    let again = queue.reap_some(first).await.remove(0);
    assert!(again.fence > lost.fence);
    assert_eq!(again.work, Work::Lost(call));

    let retry = Release::Retry { after: Duration::ZERO, target: 0 };
    assert_eq!(queue.release(job.id, again.fence, retry).await.unwrap(), Held::Done);
    let repeated = queue.claim_one(second).await;
    assert_eq!((repeated.attempt, &repeated.work), (2, &Work::Call));
    assert_eq!(repeated.started_at, claim.started_at, "the first start counts");
}

#[tokio::test]
async fn a_run_that_kills_its_workers_is_poison() {
    let server = Server::start().await;
    let queue = server.hasty_queue().await;
    let worker = WorkerId::new();
    queue.put(&job()).await;
    for loss in 1..=MAX_LOSSES + 1 {
        let claim = queue.claim_one(worker).await;
        let lost = queue.reap_some(worker).await.remove(0);
        match lost.work {
            Work::Lost(_) => assert!(loss <= MAX_LOSSES),
            Work::Poison(call) => {
                assert_eq!((loss, call.attempt, call.fence), (MAX_LOSSES + 1, claim.attempt, claim.fence));
            }
            other => panic!("{other:?}"),
        }
        let retry = Release::Retry { after: Duration::ZERO, target: 0 };
        queue.release(lost.job.id, lost.fence, retry).await.unwrap();
    }
}

#[tokio::test]
async fn a_stashed_ending_is_recorded_by_the_reaper_and_no_call_is_made() {
    let server = Server::start().await;
    let queue = server.hasty_queue().await;
    let worker = WorkerId::new();
    let job = job();
    queue.put(&job).await;
    let claim = queue.claim_one(worker).await;
    let ending = ending(&claim, worker);
    queue.stash(&ending).await.unwrap();
    let found = queue.reap_some(WorkerId::new()).await.remove(0);
    assert_eq!(found.work, Work::Record(Box::new(ending)));
    queue.finish(&[(job.id, claim.fence)]).await.unwrap();
    assert_eq!(queue.stats().await.unwrap().leased, 1, "an old fence finishes nothing");
    queue.finish(&[(job.id, found.fence)]).await.unwrap();
    assert_eq!(queue.stats().await.unwrap(), QueueStats::default());
}

#[tokio::test]
async fn a_waiting_run_is_cancelled_in_one_step() {
    let server = Server::start().await;
    let queue = server.hasty_queue().await;
    let front_door = FrontDoorId::new();
    let mut replies = queue.replies(front_door, CancellationToken::new()).await.unwrap();
    let job = job();
    queue.put_for(&job, front_door).await;

    let Cancelled::Ended { ending: ended, .. } = queue.cancel(job.id, Outcome::Cancelled).await.unwrap() else {
        panic!()
    };
    assert_eq!((ended.run, &ended.outcome), (job.id, &Outcome::Cancelled));
    let Some(Reply::Ended(told)) = soon(replies.recv()).await else { panic!("an ending was sent") };
    assert_eq!(told, ended);
    assert_eq!(queue.cancel(job.id, Outcome::Cancelled).await.unwrap(), Cancelled::Finished);
    let claimed = queue.claim(WorkerId::new(), 1, &scopes()).await.unwrap();
    assert!(claimed.claims.is_empty());
    assert_eq!(queue.stats().await.unwrap().lanes[0].ready, 0);

    // The canceller dies before it wrote the ending down.
    let found = queue.reap_some(WorkerId::new()).await.remove(0);
    assert_eq!(found.work, Work::Record(ended));
    assert_eq!(queue.cancel(RunId::new(), Outcome::Cancelled).await.unwrap(), Cancelled::Unknown);
}

#[tokio::test]
async fn the_owner_of_a_run_hears_of_its_cancellation_twice() {
    let server = Server::start().await;
    let queue = server.hasty_queue().await;
    let worker = WorkerId::new();
    let mut cancellations = queue.cancellations(CancellationToken::new()).await.unwrap();
    let job = job();
    queue.put(&job).await;
    let claim = queue.claim_one(worker).await;
    assert_eq!(queue.cancel(job.id, Outcome::Cancelled).await.unwrap(), Cancelled::Signalled);
    assert_eq!(soon(cancellations.recv()).await, Some(job.id));
    assert_eq!(queue.heartbeat(worker, &[(job.id, claim.fence)]).await.unwrap(), [Renewal::Cancel]);
    // It is lost before it could end the run.
    let found = queue.reap_some(WorkerId::new()).await.remove(0);
    let Work::Cancel(Some(lost)) = found.work else { panic!("{:?}", found.work) };
    assert_eq!((lost.worker, lost.fence, lost.attempt), (worker, claim.fence, 1));
}

#[tokio::test]
async fn a_cancelled_run_that_is_released_is_handed_out_to_be_ended() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    queue.put(&job()).await;
    let claim = queue.claim_one(worker).await;
    queue.cancel(claim.job.id, Outcome::Cancelled).await.unwrap();
    let later = Release::Retry { after: Duration::from_secs(60), target: 0 };
    assert_eq!(queue.release(claim.job.id, claim.fence, later).await.unwrap(), Held::Done);
    assert_eq!(queue.claim_one(worker).await.work, Work::Cancel(None));
}

#[tokio::test]
async fn a_missed_deadline_is_found_by_a_claim_and_by_the_reaper() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let late = Job { deadline: UnixMillis::now(), ..job() };
    queue.put(&late).await;
    let found = queue.claim_one(worker).await;
    assert_eq!((found.job.id, found.work), (late.id, Work::Expire(None)));

    let delayed = Job { deadline: UnixMillis::now().plus(300), ..job() };
    queue.put(&delayed).await;
    let claim = queue.claim_one(worker).await;
    let later = Release::Retry { after: Duration::from_secs(60), target: 0 };
    queue.release(claim.job.id, claim.fence, later).await.unwrap();
    assert_eq!(queue.stats().await.unwrap().delayed, 1);
    let found = queue.reap_some(worker).await.remove(0);
    assert_eq!((found.job.id, found.work), (delayed.id, Work::Expire(None)));
    assert_eq!(queue.stats().await.unwrap().delayed, 0);
}

#[tokio::test]
async fn a_retry_waits_its_time_and_goes_to_its_target() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    queue.put(&Job { targets: vec![target("one"), target("two")], ..job() }).await;
    let claim = queue.claim_one(worker).await;
    let retry = Release::Retry { after: Duration::from_millis(200), target: 1 };
    let released = Instant::now();
    queue.release(claim.job.id, claim.fence, retry).await.unwrap();
    let next = queue.claim(worker, 1, &scopes()).await.unwrap().next.expect("a delayed run is due");
    assert!(next <= Duration::from_millis(201), "{next:?}");
    let both = [unlimited("one"), unlimited("two")];
    let again = eventually(async || queue.claim(worker, 1, &both).await.unwrap().claims.pop()).await;
    assert!(released.elapsed() >= Duration::from_millis(199));
    assert_eq!((again.attempt, again.target), (2, 1));
    assert!(again.queue_ms < 200, "the pause is not waiting time: {}", again.queue_ms);
}

#[tokio::test]
async fn a_run_that_is_handed_back_is_first_again_and_uncounted() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let first = job();
    let other = job();
    queue.put(&first).await;
    queue.put(&Job { id: RunId::new(), ..first.clone() }).await;
    queue.put(&other).await;
    let claim = queue.claim_one(worker).await;
    assert_eq!(claim.job.id, first.id);
    assert_eq!(queue.release(first.id, claim.fence, Release::HandBack).await.unwrap(), Held::Done);
    let again = queue.claim_one(WorkerId::new()).await;
    assert_eq!((again.job.id, again.attempt), (first.id, 1));
    assert!(again.fence > claim.fence);
}

#[tokio::test]
async fn a_run_of_another_version_is_left_to_others_and_holds_nobody_up() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let foreign = Job { v: WIRE_VERSION + 1, ..job() };
    let ours = job();
    queue.put(&foreign).await;
    queue.put(&ours).await;
    let claimed = queue.claim(worker, 10, &scopes()).await.unwrap();
    assert_eq!(claimed.claims.iter().map(|claim| claim.job.id).collect::<Vec<_>>(), [ours.id]);
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.delayed, stats.leased), (1, 1));
    assert_eq!(queue.cancel(foreign.id, Outcome::Cancelled).await.unwrap(), Cancelled::Signalled);
}

#[tokio::test]
async fn runs_behind_one_of_another_version_keep_their_turn() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let foreign = Job { v: WIRE_VERSION + 1, ..job() };
    let behind = [(); 2].map(|()| Job { account: foreign.account, ..job() });
    for job in [&foreign, &behind[0], &behind[1]] {
        queue.put(job).await;
    }
    // That was the first one, and is put back for others.
    assert_eq!(queue.claim_one(worker).await.job.id, behind[0].id);
    // It never comes back to give the last one its turn.
    queue.cancel(foreign.id, Outcome::Cancelled).await.unwrap();
    assert_eq!(queue.claim_one(worker).await.job.id, behind[1].id);
}

#[tokio::test]
async fn large_jobs_come_in_several_answers_and_all_of_them() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let request = ModelRequest { user: "x".repeat(1 << 20), ..ModelRequest::default() };
    for _ in 0..12 {
        queue.put(&Job { request: request.clone(), ..job() }).await;
    }
    assert_eq!(queue.claim(WorkerId::new(), 50, &scopes()).await.unwrap().claims.len(), 12);
}

#[tokio::test]
async fn an_address_that_comes_late_still_gets_the_ending() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let (worker, front_door) = (WorkerId::new(), FrontDoorId::new());
    let mut replies = queue.replies(front_door, CancellationToken::new()).await.unwrap();
    let job = job();
    queue.restore(&[Restored { job: Arc::new(job.clone()), attempts: 2, limited: 0, fence: Fence(0) }]).await.unwrap();
    let claim = queue.claim_one(worker).await;
    assert_eq!(claim.attempt, 3);
    queue.stash(&ending(&claim, worker)).await.unwrap();
    queue.put_for(&job, front_door).await;
    assert!(matches!(soon(replies.recv()).await, Some(Reply::Ended(_))));
}

#[tokio::test]
async fn an_idle_worker_is_woken_by_work_of_its_scopes_and_only_one_for_one_run() {
    let server = Server::start().await;
    let queue = Arc::new(server.queue().await);
    let (first, second) = (WorkerId::new(), WorkerId::new());
    for worker in [first, second] {
        queue.claim(worker, 1, &scopes()).await.unwrap();
    }
    queue.put(&Job { targets: vec![target("elsewhere")], ..job() }).await;
    queue.put(&job()).await;
    assert_eq!(server.command::<u32>(&["LLEN", "{q:test}:wake:one"]).await, 1);
    let started = Instant::now();
    queue.rest(first, Duration::from_secs(10)).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    queue.rest(second, Duration::from_millis(50)).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(50));
    // Whoever waits after its claim would be offered the next one.
    queue.claim_one(WorkerId::new()).await;

    // Blocked already when the work comes.
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.rest(second, Duration::from_secs(20)).await }
    });
    server.until_blocked().await;
    queue.put(&job()).await;
    soon(waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_paused_queue_hands_nothing_out_and_wakes_its_workers_afterwards() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    queue.set_paused(true).await.unwrap();
    queue.put(&job()).await;
    assert!(queue.claim(worker, 1, &scopes()).await.unwrap().claims.is_empty());
    assert!(queue.stats().await.unwrap().paused);
    queue.set_paused(false).await.unwrap();
    soon(queue.rest(worker, Duration::from_secs(20))).await.unwrap();
    queue.claim_one(worker).await;
}

#[tokio::test]
async fn the_log_of_a_run_that_has_ended_goes_with_time() {
    let server = Server::start().await;
    let queue = server.queue().await;
    let worker = WorkerId::new();
    let lives = async |job: &Job| server.command::<i64>(&["PTTL", &queue.key(&format!("events:{}", job.id))]).await;
    // It ended as it should, and its ending could not be stashed.
    for stashed in [true, false] {
        let job = Job { stream: true, ..job() };
        queue.put(&job).await;
        let claim = queue.claim_one(worker).await;
        assert_eq!(lives(&job).await, -1, "for as long as the run is there");
        if stashed {
            queue.stash(&ending(&claim, worker)).await.unwrap();
        }
        queue.finish(&[(job.id, claim.fence)]).await.unwrap();
        let most = i64::try_from(crate::queue::LOG_RETENTION.as_millis()).unwrap();
        assert!((1..=most).contains(&lives(&job).await), "stashed: {stashed}");
    }
}
