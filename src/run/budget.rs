//! Whether an account has spent its monthly budget.
//!
//! It is a soft limit. What was spent is what the ledger holds of the calls of the runs that were accepted in this calendar month (UTC),
//! the failed ones too; a run is refused once that has reached the budget. Runs that were accepted before go on, so that an account can
//! pass its budget by what is in flight, and by what it starts in the seconds for which a sum is remembered. What has no known cost counts
//! nothing: a model without a price, a call whose provider did not say what it used. While the ledger cannot be read, and nothing is
//! remembered, accounts with a budget are refused like everybody whose key or prompt cannot be read.
//!
//! An account without a budget costs nothing here. The month of another one is summed up day by day, so that no query is long. The sum of a
//! day whose runs have ended is remembered for an hour. That of the present day is read again after [`FRESH`], once for all requests; when
//! the reading itself took long, after so much longer that it takes up a twentieth of the time at most.

use std::{
    iter::successors,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Datelike, Months, NaiveDate, NaiveTime};
use moka::{Expiry, future::Cache};
use workers::{
    Engine,
    job::{AccountId, UnixMillis},
    ledger::LedgerError,
};

use super::RunError;
use crate::{accounts::Account, money::Usd};

/// How long the sum of a day is remembered whose runs may still call models.
const FRESH: Duration = Duration::from_secs(2);
/// How many times as long as its reading took, at least.
const FRESH_FACTOR: u32 = 20;
/// How long the sum of an earlier day is remembered: not for ever, because a run may outlast [`LAST_CALLS`], and a call be recorded late.
const SETTLED: Duration = Duration::from_secs(3600);
/// How long after the end of a day its runs may call models; longer than any timeout that is not unusual.
const LAST_CALLS: u64 = 2 * 3_600_000;
/// In UTC every day is as long, leap seconds or not.
const DAY: u64 = 24 * 3_600_000;
/// Sums that a process remembers: a month of some thousand accounts.
const MAX_REMEMBERED: u64 = 100_000;

/// A calendar month, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Month {
    first: NaiveDate,
    next: NaiveDate,
}

impl Month {
    pub(super) fn of(moment: UnixMillis) -> Self {
        // No clock shows a moment that the calendar does not reach.
        let day = DateTime::from_timestamp_millis(moment.0).unwrap_or_default().date_naive();
        let first = day.with_day(1).unwrap_or(day);
        Self { first, next: first.checked_add_months(Months::new(1)).unwrap_or(first) }
    }

    fn start(self) -> UnixMillis {
        UnixMillis(self.first.and_time(NaiveTime::MIN).and_utc().timestamp_millis())
    }

    /// The beginnings of its days, up to the one of a moment.
    fn days(self, until: UnixMillis) -> impl Iterator<Item = UnixMillis> {
        const MOST: usize = 31;
        let days = successors(Some(self.start()), |day| Some(day.plus(DAY)));
        days.take(MOST).take_while(move |day| *day <= until)
    }

    /// For people: `November 2026`.
    pub(super) fn name(self) -> String {
        self.first.format("%B %Y").to_string()
    }

    /// For programs: `2026-11`.
    pub(super) fn number(self) -> String {
        self.first.format("%Y-%m").to_string()
    }

    /// The first day of the next month: `2026-12-01`.
    pub(super) fn next(self) -> String {
        self.next.format("%Y-%m-%d").to_string()
    }
}

/// What accounts have spent. Cheap to clone.
#[derive(Clone)]
pub(super) struct Budgets {
    engine: Engine,
    /// By account and beginning of the day.
    days: Cache<(AccountId, UnixMillis), Sum>,
}

#[derive(Clone, Copy)]
struct Sum {
    nanos: i64,
    /// How long it is good for.
    keep: Duration,
}

impl Budgets {
    pub(super) fn new(engine: Engine) -> Self {
        let days = Cache::builder().max_capacity(MAX_REMEMBERED).expire_after(AsItSays).build();
        Self { engine, days }
    }

    /// Refuses a run of an account that has spent its budget.
    pub(super) async fn admit(&self, account: &Account, now: UnixMillis) -> Result<(), RunError> {
        let Some(budget) = account.monthly_budget else { return Ok(()) };
        let month = Month::of(now);
        let mut spent = Usd(0);
        for day in month.days(now) {
            // Boxed, because most accounts have no budget, and their runs no use for the room that a reading needs.
            let sum = Box::pin(self.days.try_get_with((account.id, day), self.read(account.id, day, now)));
            let sum = sum.await.map_err(Arc::unwrap_or_clone)?;
            spent = Usd(spent.0.saturating_add(sum.nanos));
        }
        if spent < budget { Ok(()) } else { Err(RunError::BudgetSpent { month, budget, spent }) }
    }

    async fn read(&self, account: AccountId, day: UnixMillis, now: UnixMillis) -> Result<Sum, LedgerError> {
        let started = Instant::now();
        let nanos = self.engine.spent(account, day..day.plus(DAY)).await?;
        Ok(Sum { nanos, keep: keep(day, now, started.elapsed()) })
    }
}

/// How long the sum of a day is good for whose reading took so long.
fn keep(day: UnixMillis, now: UnixMillis, took: Duration) -> Duration {
    if now >= day.plus(DAY + LAST_CALLS) { SETTLED } else { took.saturating_mul(FRESH_FACTOR).max(FRESH) }
}

struct AsItSays;

impl<K> Expiry<K, Sum> for AsItSays {
    fn expire_after_create(&self, _key: &K, sum: &Sum, _created_at: Instant) -> Option<Duration> {
        Some(sum.keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(moment: &str) -> UnixMillis {
        UnixMillis(DateTime::parse_from_rfc3339(moment).unwrap().timestamp_millis())
    }

    #[test]
    fn months_are_those_of_the_calendar_in_utc() {
        let check = |moment: &str, expect: [&str; 4]| {
            let month = Month::of(at(moment));
            let start = DateTime::from_timestamp_millis(month.start().0).unwrap().to_rfc3339();
            let got = [month.name(), month.number(), month.next(), start];
            assert_eq!(got, expect, "{moment}");
        };
        let november = ["November 2026", "2026-11", "2026-12-01", "2026-11-01T00:00:00+00:00"];
        check("2026-11-01T00:00:00Z", november);
        check("2026-11-23T12:34:56.789Z", november);
        check("2026-11-30T23:59:59.999Z", november);
        check("2026-12-01T01:00:00+02:00", november);
        let december = ["December 2026", "2026-12", "2027-01-01", "2026-12-01T00:00:00+00:00"];
        check("2026-12-01T00:00:00Z", december);
        check("2026-12-31T23:59:59.999Z", december);
        check("2028-02-29T08:00:00Z", ["February 2028", "2028-02", "2028-03-01", "2028-02-01T00:00:00+00:00"]);
    }

    #[test]
    fn a_month_has_the_days_that_have_begun() {
        let check = |now: &str, days: usize| {
            let now = at(now);
            let all: Vec<UnixMillis> = Month::of(now).days(now).collect();
            assert_eq!(all.len(), days, "{now:?}");
            assert_eq!(all[0], Month::of(now).start());
            assert!(now.since(all[days - 1]) < DAY);
        };
        check("2026-11-01T00:00:00Z", 1);
        check("2026-11-01T23:59:59.999Z", 1);
        check("2026-11-02T00:00:00Z", 2);
        check("2026-11-30T23:59:59.999Z", 30);
        check("2026-12-31T23:59:59.999Z", 31);
        for no_moment in [i64::MIN, i64::MAX] {
            assert!(Month::of(UnixMillis(no_moment)).days(UnixMillis(no_moment)).count() <= 31);
        }
    }

    #[test]
    fn a_day_is_remembered_for_long_once_its_runs_have_ended() {
        let check = |now: &str, took, expect| {
            assert_eq!(keep(at("2026-11-23T00:00:00Z"), at(now), took), expect, "{now}");
        };
        check("2026-11-23T00:00:00Z", Duration::ZERO, FRESH);
        check("2026-11-24T01:59:59.999Z", Duration::from_millis(100), FRESH);
        check("2026-11-23T12:00:00Z", Duration::from_secs(3), Duration::from_secs(60));
        check("2026-11-24T02:00:00Z", Duration::from_secs(3), SETTLED);
        check("2026-11-30T00:00:00Z", Duration::ZERO, SETTLED);
    }
}
