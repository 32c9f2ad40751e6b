//! Who may enqueue how much.

use std::{sync::Arc, time::Duration};

use workers::{
    job::Job,
    queue::{Admission, Admitted, RateLeft, RateRule, Submission},
};

use super::bench::{Bench, LONG, Spec, Store, run};

fn rule(name: &'static str, subject: &str, per_minute: u32) -> RateRule {
    RateRule { name, subject: subject.into(), per_minute }
}

fn rules(rules: &[RateRule]) -> Admission {
    Admission { rules: rules.to_vec(), max_depth: 1_000, max_bytes: 1 << 30 }
}

async fn enqueue(bench: &Bench, job: &Arc<Job>, admission: &Admission) -> Admitted {
    let submission = Submission { job: Arc::clone(job), reply_to: None };
    bench.queue.enqueue(submission, Some(admission)).await.unwrap()
}

/// What is left of each rule; panics unless admitted.
fn left(admitted: Admitted) -> Vec<u32> {
    let Admitted::Yes { rates } = admitted else { panic!("refused: {admitted:?}") };
    remaining(&rates)
}

fn remaining(rates: &[RateLeft]) -> Vec<u32> {
    for rate in rates {
        assert!(rate.reset <= Duration::from_millis(60_001), "{rate:?}");
    }
    rates.iter().map(|rate| rate.remaining).collect()
}

async fn depth(bench: &Bench) -> u64 {
    bench.queue.stats().await.unwrap().lanes.iter().map(|lane| lane.ready).sum()
}

pub async fn every_rule_is_charged_or_none<S: Store>() {
    let bench = S::open(LONG).await;
    let both = rules(&[rule("account", "a", 5), rule("key", "k", 2)]);
    assert_eq!(left(enqueue(&bench, &run().job(), &both).await), [4, 1]);
    assert_eq!(left(enqueue(&bench, &run().job(), &both).await), [3, 0]);
    for _ in 0..2 {
        let Admitted::Limited { rule, after, rates } = enqueue(&bench, &run().job(), &both).await else {
            panic!("the key has no request left");
        };
        assert_eq!(rule, "key");
        assert!(after > Duration::from_secs(1) && after <= Duration::from_millis(60_001), "{after:?}");
        assert_eq!(remaining(&rates), [3, 0]);
        assert_eq!(
            rates.iter().map(|rate| (rate.name, rate.per_minute)).collect::<Vec<_>>(),
            [("account", 5), ("key", 2)]
        );
        assert!(rates.iter().all(|rate| !rate.reset.is_zero()));
    }
    assert_eq!(depth(&bench).await, 2);
    assert_eq!(left(enqueue(&bench, &run().job(), &rules(&[rule("account", "a", 5)])).await), [2]);
}

pub async fn subjects_do_not_share_their_minute<S: Store>() {
    let bench = S::open(LONG).await;
    for subject in ["a", "b"] {
        let admission = rules(&[rule("account", subject, 1)]);
        assert_eq!(left(enqueue(&bench, &run().job(), &admission).await), [0]);
        let again = enqueue(&bench, &run().job(), &admission).await;
        assert!(matches!(again, Admitted::Limited { rule: "account", .. }), "{again:?}");
    }
}

pub async fn admitting_charges_without_enqueueing<S: Store>() {
    let bench = S::open(LONG).await;
    let admission = rules(&[rule("account", "a", 2)]);
    let jobs = [run().job(), run().job(), run().job()];
    assert_eq!(left(bench.queue.admit(&jobs[0], &admission).await.unwrap()), [1]);
    assert_eq!(depth(&bench).await, 0);
    assert_eq!(left(enqueue(&bench, &jobs[1], &admission).await), [0]);
    let refused = bench.queue.admit(&jobs[2], &admission).await.unwrap();
    assert!(matches!(refused, Admitted::Limited { .. }), "{refused:?}");
    // It was admitted before; its row is committed, and nothing refuses it any more.
    bench.enqueue(&jobs[0]).await;
    assert_eq!(depth(&bench).await, 2);
}

pub async fn a_known_run_is_not_charged_again<S: Store>() {
    let bench = S::open(LONG).await;
    let admission = rules(&[rule("account", "a", 2)]);
    let job = run().job();
    for _ in 0..3 {
        assert_eq!(left(enqueue(&bench, &job, &admission).await), [1]);
    }
    assert_eq!(depth(&bench).await, 1);
}

pub async fn a_full_queue_refuses_and_charges_nothing<S: Store>() {
    let bench = S::open(LONG).await;
    let admission = Admission { max_depth: 2, ..rules(&[rule("account", "a", 5)]) };
    let jobs = [run().job(), run().job(), run().job()];
    enqueue(&bench, &jobs[0], &admission).await;
    enqueue(&bench, &jobs[1], &admission).await;
    // Delayed runs wait as well.
    let claim = bench.claim(1).await.remove(0);
    bench.retry(&claim, Duration::from_secs(60)).await;
    for refused in [enqueue(&bench, &jobs[2], &admission).await, bench.queue.admit(&jobs[2], &admission).await.unwrap()]
    {
        let Admitted::Full { after } = refused else { panic!("two runs wait: {refused:?}") };
        assert!(!after.is_zero());
    }
    // Running work goes on, and makes room.
    bench.take().await;
    assert_eq!(left(enqueue(&bench, &jobs[2], &admission).await), [2]);
}

pub async fn bytes_of_waiting_runs_are_bounded<S: Store>() {
    let bench = S::open(LONG).await;
    let large = Spec { text: "é".repeat(20_000), ..run() };
    let admission = Admission { max_bytes: 60_000, ..rules(&[]) };
    left(enqueue(&bench, &large.job(), &admission).await);
    let refused = enqueue(&bench, &large.job(), &admission).await;
    assert!(matches!(refused, Admitted::Full { .. }), "{refused:?}");
    left(enqueue(&bench, &run().job(), &admission).await);
    assert_eq!(bench.claim(2).await.len(), 2);
    left(enqueue(&bench, &large.job(), &admission).await);
}
