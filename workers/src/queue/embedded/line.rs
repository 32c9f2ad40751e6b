//! The ready runs of one lane and one scope. Accounts take turns by the cost of what they ran.
//!
//! This is start-time fair queueing: every account has a virtual time that its runs' costs move on, the account that is least far is
//! next, and the line's own clock is where the last one stood. An account that comes (back) starts at the clock, or
//! where it stood if that is further, so that nobody gains by emptying and refilling its list.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::time::Instant;

use crate::job::{AccountId, RunId};

/// Where in its account's list a run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Front,
    Back,
}

#[derive(Debug, Default)]
pub(super) struct Line {
    accounts: HashMap<AccountId, Account>,
    /// Accounts with ready runs, by virtual time.
    turns: BTreeSet<(u64, AccountId)>,
    /// Accounts without one that are still ahead of the clock. Forgotten when it has caught up.
    resting: BTreeSet<(u64, AccountId)>,
    clock: u64,
    /// All runs by when they became ready.
    ages: BTreeSet<(Instant, RunId)>,
    /// The turn in which this line was last served; the scopes of a lane go round by it.
    pub(super) served: u64,
}

#[derive(Debug)]
struct Account {
    time: u64,
    /// By place in the list; the front grows downwards.
    runs: BTreeMap<i64, RunId>,
}

impl Line {
    pub(super) fn len(&self) -> usize {
        self.ages.len()
    }

    /// When the run that waits longest became ready.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.ages.first().map(|&(since, _)| since)
    }

    /// The run that is next.
    pub(super) fn head(&self) -> Option<RunId> {
        let (_, account) = self.turns.first()?;
        self.accounts.get(account)?.runs.first_key_value().map(|(_, &run)| run)
    }

    /// Adds a run, and returns its place in its account's list.
    pub(super) fn insert(&mut self, account: AccountId, run: RunId, since: Instant, end: End) -> i64 {
        self.ages.insert((since, run));
        self.change(account, |account| {
            let order = match end {
                End::Front => account.runs.first_key_value().map_or(0, |(first, _)| first - 1),
                End::Back => account.runs.last_key_value().map_or(0, |(last, _)| last + 1),
            };
            account.runs.insert(order, run);
            order
        })
    }

    pub(super) fn remove(&mut self, account: AccountId, order: i64, run: RunId, since: Instant) {
        self.ages.remove(&(since, run));
        self.change(account, |account| {
            account.runs.remove(&order);
        });
    }

    /// Moves an account on by the cost of the run it gets now, before that run is removed.
    pub(super) fn charge(&mut self, account: AccountId, cost: u64) {
        let start = self.change(account, |account| {
            let start = account.time;
            account.time = account.time.saturating_add(cost);
            start
        });
        self.advance(start);
    }

    /// Gives an account its turn back: the run that it paid for was not run.
    pub(super) fn refund(&mut self, account: AccountId, cost: u64) {
        self.change(account, |account| account.time = account.time.saturating_sub(cost));
    }

    /// Sets the clock to where the account stood that was served, and forgets who is behind it.
    fn advance(&mut self, start: u64) {
        self.clock = self.clock.max(start);
        while let Some(&(time, account)) = self.resting.first() {
            if time > self.clock {
                break;
            }
            self.resting.pop_first();
            self.accounts.remove(&account);
        }
    }

    /// Changes an account and files it where it then belongs.
    fn change<T>(&mut self, id: AccountId, change: impl FnOnce(&mut Account) -> T) -> T {
        let mut account =
            self.accounts.remove(&id).unwrap_or_else(|| Account { time: self.clock, runs: BTreeMap::new() });
        self.turns.remove(&(account.time, id));
        self.resting.remove(&(account.time, id));
        let answer = change(&mut account);
        if !account.runs.is_empty() {
            self.turns.insert((account.time, id));
            self.accounts.insert(id, account);
        } else if account.time > self.clock && !self.turns.is_empty() {
            self.resting.insert((account.time, id));
            self.accounts.insert(id, account);
        }
        if self.turns.is_empty() {
            // Nobody competes, so nobody is ahead of anybody.
            self.accounts.clear();
            self.resting.clear();
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(line: &mut Line, owners: &HashMap<RunId, (AccountId, i64)>, since: Instant, cost: u64) -> AccountId {
        let run = line.head().unwrap();
        let (account, order) = owners[&run];
        line.charge(account, cost);
        line.remove(account, order, run, since);
        account
    }

    #[test]
    fn an_account_that_comes_later_is_served_next_and_gains_nothing_by_leaving() {
        let (since, flood, other) = (Instant::now(), AccountId::new(), AccountId::new());
        let mut line = Line::default();
        let mut owners = HashMap::new();
        let mut add = |line: &mut Line, account| {
            let run = RunId::new();
            owners.insert(run, (account, line.insert(account, run, since, End::Back)));
            owners.clone()
        };
        let mut known = HashMap::new();
        for _ in 0..20 {
            known = add(&mut line, flood);
        }
        for _ in 0..5 {
            assert_eq!(serve(&mut line, &known, since, 10), flood);
        }
        // One run at a time, refilled whenever it was served: still no more than half of the turns.
        let mut turns = Vec::new();
        for _ in 0..10 {
            if !line.turns.iter().any(|&(_, account)| account == other) {
                known = add(&mut line, other);
            }
            turns.push(serve(&mut line, &known, since, 10));
        }
        assert!(turns[..2].contains(&other));
        assert_eq!(turns.iter().filter(|&&account| account == other).count(), 5);
    }

    #[test]
    fn accounts_are_forgotten_when_they_have_nothing_ahead() {
        let since = Instant::now();
        let mut line = Line::default();
        let mut owners = HashMap::new();
        for _ in 0..100 {
            let (account, run) = (AccountId::new(), RunId::new());
            owners.insert(run, (account, line.insert(account, run, since, End::Back)));
        }
        for _ in 0..100 {
            serve(&mut line, &owners, since, 1);
        }
        assert!(line.accounts.is_empty() && line.turns.is_empty() && line.resting.is_empty());
        assert_eq!(line.len(), 0);
    }
}
