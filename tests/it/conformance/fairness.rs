//! Whose turn it is.

use workers::job::Lane;

use super::bench::{Bench, LONG, Spec, Store, ids, run};

/// How many of the next claims, one by one, go to each lane.
pub async fn shares(bench: &Bench, claims: usize) -> [usize; 3] {
    let mut counts = [0; 3];
    for _ in 0..claims {
        let claim = bench.claim(1).await.remove(0);
        counts[Lane::ALL.iter().position(|&lane| lane == claim.job.lane).unwrap()] += 1;
        bench.end(&claim).await;
    }
    counts
}

pub async fn lanes_share_by_weight<S: Store>() {
    let bench = S::open(LONG).await;
    for lane in Lane::ALL {
        bench.flood(&Spec { lane, ..run() }, 100).await;
    }
    let [interactive, default, batch] = shares(&bench, 120).await;
    assert!(interactive.abs_diff(80) <= 2, "{interactive} of 120");
    assert!(default.abs_diff(30) <= 2, "{default} of 120");
    assert!(batch.abs_diff(10) <= 2, "{batch} of 120");
}

pub async fn a_lane_alone_gets_every_turn<S: Store>() {
    let bench = S::open(LONG).await;
    bench.flood(&Spec { lane: Lane::Batch, ..run() }, 30).await;
    assert_eq!(bench.claim(30).await.len(), 30);
    // It has not used up turns that it owes to those that come now, nor do they have any to catch up on.
    for lane in Lane::ALL {
        bench.flood(&Spec { lane, ..run() }, 40).await;
    }
    let [interactive, default, batch] = shares(&bench, 24).await;
    assert!(interactive.abs_diff(16) <= 2 && default.abs_diff(6) <= 2 && batch.abs_diff(2) <= 1);
}

pub async fn runs_of_an_account_go_in_order<S: Store>() {
    let bench = S::open(LONG).await;
    let jobs = bench.flood(&run(), 10).await;
    let mut claims = bench.claim(3).await;
    claims.extend(bench.claim(7).await);
    assert_eq!(ids(&claims), jobs.iter().map(|job| job.id).collect::<Vec<_>>());
}

pub async fn a_flood_of_one_account_does_not_delay_another<S: Store>() {
    let bench = S::open(LONG).await;
    let flood = run();
    bench.flood(&flood, 100).await;
    let first = bench.flood(&run(), 1).await;
    assert!(ids(&bench.claim(2).await).contains(&first[0].id));
    // Nor one that comes when the flood has been served for a while.
    assert_eq!(bench.claim(40).await.len(), 40);
    let late = bench.flood(&run(), 1).await;
    assert!(ids(&bench.claim(2).await).contains(&late[0].id));
}

pub async fn accounts_share_by_cost<S: Store>() {
    let bench = S::open(LONG).await;
    let (dear, cheap) = (Spec { tokens: 100, ..run() }, Spec { tokens: 10, ..run() });
    bench.flood(&dear, 50).await;
    bench.flood(&cheap, 50).await;
    let mut counts = [0, 0];
    for claim in bench.claim(44).await {
        counts[usize::from(claim.job.account == cheap.account)] += 1;
    }
    // Each has had as many tokens: ten cheap runs for a dear one.
    assert!((3..=5).contains(&counts[0]), "{counts:?}");
}
