//! The real binary killed, stopped, slowed and failed at every step of a run, by the fail points of debug builds.
//!
//! Each check arms one process of a deployment with one point, keeps callers of both kinds busy until the process has
//! died or stopped, brings it back, and asks for everything that was promised.

mod scene;

use std::{ops::RangeInclusive, time::Duration};

use self::scene::{Scene, Who};
use crate::support::{
    app::Mode,
    eventually,
    process::Process,
    provider::{Answer, Gate},
};

/// What becomes of the process at its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It ends without a word, as by `kill -9`.
    Dies,
    /// SIGSTOP; SIGCONT once others have taken over what it held.
    Sleeps,
}

/// One process dies or sleeps at one point; `lost` is how many calls that may cost.
async fn check(scene: &mut Scene, who: Who, point: &str, fate: Fate, lost: RangeInclusive<usize>) {
    let action = if fate == Fate::Dies { "abort" } else { "stop" };
    let (name, passage) = point.split_once('@').unwrap_or((point, "2"));
    let points = format!("{name}={action}@{passage}");
    eprintln!("--- {:?} {who:?} {points}", scene.app.mode);
    if name.starts_with("attempt") || name.starts_with("release") {
        // Only a run that is to be tried again passes here.
        (0..40).for_each(|_| scene.app.provider().push(Answer::error(500, "ill")));
    }
    if name.starts_with("insert_beside") {
        // The row of a run that ends at once is not written beside it.
        let slow = Answer::echo().delay(Duration::from_millis(300));
        (0..40).for_each(|_| scene.app.provider().push(slow.clone()));
    }
    scene.arm(who, &points);
    let load = scene.load();
    match fate {
        Fate::Dies => scene.until_hit(who, &points, |process| !process.is_running()).await,
        Fate::Sleeps => scene.until_hit(who, &points, |process| process.is_stopped()).await,
    }
    if scene.app.mode == Mode::Distributed {
        load.goes_on(5).await;
    } else {
        // Nobody else is there.
        scene.disarm(who).await;
        load.goes_on(2).await;
    }
    let mut promised = load.end().await;
    if fate == Fate::Sleeps {
        for run in &promised {
            scene.app.ended(1, &run.id, Duration::from_secs(30)).await;
        }
        let before = scene.endings().await;
        scene.armed(who).signal("CONT");
        let load = scene.load();
        load.goes_on(5).await;
        promised.extend(load.end().await);
        let after = scene.endings().await;
        assert!(before.iter().all(|ending| after.contains(ending)), "what had ended has changed");
    }
    if scene.app.mode == Mode::Distributed {
        scene.disarm(who).await;
    }
    scene.assert_all_ended(&promised, lost).await;
}

/// Several points of one deployment, one after the other; deployments side by side, as most of their time is waiting.
async fn check_all(mode: Mode, who: Who, fate: Fate, groups: Vec<Vec<(&'static str, RangeInclusive<usize>)>>) {
    let deployments = groups.into_iter().map(async |points| {
        let mut scene = Scene::start(mode).await;
        for (point, lost) in points {
            check(&mut scene, who, point, fate, lost).await;
        }
    });
    futures::future::join_all(deployments).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_may_die_at_every_step() {
    let groups = vec![
        // Before the ending is stashed, the run that it held is lost, and says so.
        vec![
            ("claim.before@9", 0..=0),
            ("claim.after", 1..=1),
            ("leased", 1..=1),
            ("call.before", 1..=1),
            ("call.after", 1..=1),
            ("stash.before", 1..=1),
        ],
        // From the stash on it is never called again; its executor may have had the next run in its hands.
        vec![
            ("stash.after", 0..=0),
            ("hand_over", 0..=0),
            ("record.before", 0..=1),
            ("record.after", 0..=1),
            ("finish.before", 0..=1),
            ("finish.after", 0..=1),
        ],
        vec![
            ("attempt.before@1", 1..=1),
            ("attempt.after@1", 0..=1),
            ("release.before@1", 0..=1),
            ("release.after@1", 0..=1),
            ("heartbeat.before", 0..=1),
            ("heartbeat.after", 0..=1),
        ],
    ];
    check_all(Mode::Distributed, Who::Worker, Fate::Dies, groups).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_door_may_die_at_every_step() {
    let groups = vec![
        vec![("insert.before", 0..=0), ("insert.after", 0..=0), ("enqueue.before", 0..=0), ("enqueue.after", 0..=0)],
        vec![
            ("accepted", 0..=0),
            ("insert_beside.before", 0..=0),
            ("insert_beside.after", 0..=0),
            ("reply.before", 0..=0),
            ("reply.after", 0..=0),
        ],
    ];
    check_all(Mode::Distributed, Who::FrontDoor, Fate::Dies, groups).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_server_may_die_at_every_step() {
    // How often it called for a run before it died is not in the ledger, so nothing is said about that here.
    let any = 0..=usize::MAX;
    let points = |names: &[&'static str]| names.iter().map(|name| (*name, any.clone())).collect::<Vec<_>>();
    let groups = vec![
        points(&["insert.before", "insert.after", "enqueue.before", "enqueue.after", "accepted"]),
        points(&["insert_beside.before", "insert_beside.after", "reply.before", "reply.after"]),
        points(&[
            "claim.before@9",
            "claim.after",
            "leased",
            "call.before",
            "call.after",
            "stash.before",
            "stash.after",
        ]),
        points(&["hand_over", "record.before", "record.after", "finish.before", "finish.after"]),
        points(&["attempt.before@1", "attempt.after@1", "release.before@1", "release.after@1", "heartbeat.after"]),
    ];
    check_all(Mode::Embedded, Who::Worker, Fate::Dies, groups).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_may_sleep_past_its_lease_at_every_step() {
    let groups = vec![
        vec![("claim.after", 0..=1), ("leased", 0..=1), ("call.before", 0..=1), ("call.after", 0..=1)],
        vec![("stash.before", 0..=1), ("stash.after", 0..=1), ("hand_over", 0..=1), ("heartbeat.before", 0..=1)],
        vec![("record.before", 0..=1), ("record.after", 0..=1), ("finish.before", 0..=1), ("finish.after", 0..=1)],
    ];
    check_all(Mode::Distributed, Who::Worker, Fate::Sleeps, groups).await;
}

/// All points act in one worker under load, the only one or one of two; nobody dies.
async fn check_errors(alone: bool, points: &[&str]) {
    let mut scene = Scene::start(Mode::Distributed).await;
    if alone {
        scene.app.workers[1].kill();
    }
    scene.arm(Who::Worker, &points.join(";"));
    (0..60).for_each(|_| scene.app.provider().push(Answer::error(500, "ill")));
    let load = scene.load();
    let all = points.len();
    let acted = |process: &mut Process| process.said().matches("a fail point acts").count() >= all;
    scene.until_hit(Who::Worker, "one of them", acted).await;
    load.goes_on(5).await;
    let promised = load.end().await;
    if alone {
        scene.app.restart_worker(1);
    }
    scene.assert_all_ended(&promised, 0..=usize::MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_may_fail_at_every_step_of_a_worker() {
    let points = [
        "claim.before=error@5",
        "claim.after=error@3",
        "stash.before=error@3",
        "stash.after=error@6",
        "record.before=error@2",
        "record.after=error@5",
        "finish.before=error@3",
        "finish.after=error@6",
        "attempt.before=error@1",
        "attempt.after=error@2",
        "release.before=error@1",
        "release.after=error@1",
        "heartbeat.before=error@1",
        "heartbeat.after=error@2",
    ];
    check_errors(true, &points).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_a_worker_may_take_longer_than_its_lease() {
    let points = [
        "claim.after=delay:3500@2",
        "leased=delay:3500@3",
        "call.before=delay:3500@4",
        "stash.before=delay:3500@5",
        "stash.after=delay:3500@6",
        "hand_over=delay:3500@7",
        "record.before=delay:3500@4",
        "finish.before=delay:3500@6",
        "heartbeat.before=delay:3500@2",
        "heartbeat.after=delay:3500@5",
    ];
    check_errors(false, &points).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_over_may_die_too() {
    let mut scene = Scene::start(Mode::Distributed).await;
    let load = scene.load();
    load.goes_on(5).await;
    scene.arm(Who::Worker, "reap.after=abort@1");
    load.goes_on(2).await;
    // What this one held, the armed one takes over, and dies of it.
    scene.app.workers[1].kill();
    scene.until_hit(Who::Worker, "reap.after", |process| !process.is_running()).await;
    scene.disarm(Who::Worker).await;
    load.goes_on(2).await;
    let promised = load.end().await;
    scene.app.restart_worker(1);
    scene.assert_all_ended(&promised, 1..=9).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_may_die_while_it_restores_what_redis_forgot() {
    let mut scene = Scene::start(Mode::Distributed).await;
    for point in ["missing.after", "restore.before", "restore.after"] {
        scene.app.workers.iter_mut().for_each(Process::kill);
        let load = scene.load();
        load.goes_on(4).await;
        scene.app.redis.as_ref().unwrap().cli(&["FLUSHALL"]);
        scene.arm(Who::Worker, &format!("{point}=abort@1"));
        scene.until_hit(Who::Worker, point, |process| !process.is_running()).await;
        scene.disarm(Who::Worker).await;
        scene.app.restart_worker(1);
        let promised = load.end().await;
        scene.assert_all_ended(&promised, 0..=2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_may_die_while_it_drains() {
    let mut scene = Scene::start(Mode::Distributed).await;
    for point in ["drain.before", "drain.after"] {
        scene.arm(Who::Worker, &format!("{point}=abort@1"));
        let load = scene.load();
        load.goes_on(5).await;
        scene.armed(Who::Worker).signal("TERM");
        scene.until_hit(Who::Worker, point, |process| !process.is_running()).await;
        let promised = load.end().await;
        scene.disarm(Who::Worker).await;
        scene.assert_all_ended(&promised, 0..=1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_one_run_fails_that_run_alone() {
    for mode in [Mode::Embedded, Mode::Distributed] {
        let mut scene = Scene::start(mode).await;
        scene.app.workers.iter_mut().for_each(Process::kill);
        scene.arm(Who::Worker, "call.before=panic@3;call.after=panic@6");
        let client = scene.app.client();
        let readyz = format!("{}/readyz", scene.app.url());
        let is_ready = async || client.get(&readyz).send().await.is_ok_and(|answer| answer.status().is_success());
        eventually("it is ready", is_ready).await;
        let mut states = Vec::new();
        for id in scene.app.accept(12).await {
            let run = scene.app.ended(0, &id, Duration::from_secs(30)).await;
            if run["state"] == "failed" {
                assert_eq!(run["code"], "internal_error", "{run}");
                assert_eq!(run["attempts"][0]["outcome"], "internal", "{run}");
            }
            states.push(run["state"].as_str().unwrap().to_owned());
        }
        let count = |state: &str| states.iter().filter(|other| *other == state).count();
        assert_eq!((count("failed"), count("succeeded")), (2, 10), "{states:?}");
    }
}

/// The worker sleeps with a finished answer in its hands, another one answers in its place, and then it wakes.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_result_is_discarded_and_its_usage_recorded() {
    let mut scene = Scene::start(Mode::Distributed).await;
    scene.app.workers[1].kill();
    scene.arm(Who::Worker, "call.after=stop@1");
    scene.app.provider().push(Answer::text("late").usage(1000, 200));
    let gate = Gate::new();
    scene.app.provider().push(Answer::text("in time").usage(10, 5).held(&gate));
    let id = scene.app.post_async(0).await;
    scene.until_hit(Who::Worker, "call.after", |process| process.is_stopped()).await;
    scene.app.restart_worker(1);
    scene.app.provider().wait_for_requests(2).await;
    gate.open();
    let ended = scene.app.ended(0, &id, Duration::from_secs(30)).await;
    assert_eq!((&ended["state"], &ended["output"]), (&"succeeded".into(), &"in time".into()), "{ended}");
    assert_eq!(ended["attempts"][0]["outcome"], "worker_lost", "{ended}");
    scene.armed(Who::Worker).signal("CONT");
    let late = async || scene.app.run(0, &id).await.body["attempts"][0]["usage"]["inputTokens"] == 1000;
    eventually("the usage of the late answer is recorded", late).await;
    let now = scene.app.run(0, &id).await.body;
    for field in ["state", "output", "finishedAt", "usage"] {
        assert_eq!(now[field], ended[field], "{field} has changed: {now}");
    }
    assert_eq!(now["attempts"].as_array().unwrap().len(), 2, "{now}");
    assert_eq!(now["usage"]["inputTokens"], 10, "{now}");
}
