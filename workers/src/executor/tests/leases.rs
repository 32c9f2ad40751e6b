//! The pool alone: which leases it keeps, and which executions it stops.

use super::*;
use crate::{
    executor::{
        pool::{Cancel, Lease, Leased},
        stop::{Stop, StopReason},
    },
    job::{Fence, RunId},
    queue::self_abort_of,
};

async fn pool() -> Addr<Pool> {
    Pool::new(Arc::new(Rig::new(1).await.shared)).start()
}

/// Gives the pool a lease that was claimed so long ago; returns how its execution is stopped.
async fn lease(pool: &Addr<Pool>, run: RunId, fence: i64, age: Duration) -> Arc<Stop> {
    let stop = Arc::new(Stop::default());
    let claimed = Instant::now() - age;
    let lease = Lease { run, fence: Fence(fence), stop: stop.clone(), claimed };
    pool.send(Leased { leases: vec![lease] }).await.unwrap();
    stop
}

#[actix::test]
async fn a_claim_that_was_answered_too_late_is_never_executed() {
    let pool = pool().await;
    assert_eq!(lease(&pool, RunId::new(), 1, Duration::ZERO).await.reason(), None);
    assert_eq!(lease(&pool, RunId::new(), 1, self_abort_of(LEASE)).await.reason(), Some(StopReason::LeaseLost));
}

#[actix::test]
async fn an_execution_ends_when_its_run_comes_back_under_another_lease() {
    let (pool, run) = (pool().await, RunId::new());
    let before = lease(&pool, run, 1, Duration::ZERO).await;
    let after = lease(&pool, run, 2, Duration::ZERO).await;
    assert_eq!((before.reason(), after.reason()), (Some(StopReason::LeaseLost), None));
}

#[actix::test]
async fn a_cancellation_that_overtakes_the_lease_is_not_forgotten() {
    let (pool, run) = (pool().await, RunId::new());
    pool.send(Cancel { run }).await.unwrap();
    assert_eq!(lease(&pool, run, 1, Duration::ZERO).await.reason(), Some(StopReason::Cancelled));
    assert_eq!(lease(&pool, RunId::new(), 1, Duration::ZERO).await.reason(), None);
}
