//! What follows from one call of a webhook. Pure.

use std::time::Duration;

use workers::{
    job::UnixMillis,
    ledger::{Delivery, Verdict},
};

use crate::config::WebhookConfig;

/// How a call of a webhook went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The status of its answer.
    Answered(u16),
    /// There was no answer, for this reason.
    Unanswered(String),
    /// It was not made, and never can be, for this reason.
    Impossible(String),
}

impl Outcome {
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Outcome::Answered(status) => Some(*status),
            _ => None,
        }
    }

    /// Why it counts as failed; `None` when it does not.
    pub(super) fn error(&self) -> Option<String> {
        match self {
            Outcome::Answered(200..=299) => None,
            Outcome::Answered(GONE) => Some("the receiver wants no more of these (410)".to_owned()),
            Outcome::Answered(300..=399) => Some("redirects are not followed".to_owned()),
            Outcome::Answered(status) => Some(format!("the receiver answered {status}")),
            Outcome::Unanswered(reason) | Outcome::Impossible(reason) => Some(reason.clone()),
        }
    }
}

/// The answer that ends all trying, by the standard.
const GONE: u16 = 410;

/// Whether and when the call is made again. `dice` is from 0 up to 1.
pub(super) fn next(
    outcome: &Outcome,
    delivery: &Delivery,
    now: UnixMillis,
    settings: &WebhookConfig,
    dice: f64,
) -> Verdict {
    match outcome {
        Outcome::Answered(200..=299) => return Verdict::Delivered,
        Outcome::Answered(GONE) | Outcome::Impossible(_) => return Verdict::GivenUp,
        Outcome::Answered(_) | Outcome::Unanswered(_) => {}
    }
    let due_at = now.plus(millis(pause(delivery.tries, settings, dice)));
    if due_at.since(delivery.queued_at) > millis(settings.give_up_after) {
        return Verdict::GivenUp;
    }
    Verdict::Again { due_at }
}

/// The pause after so many failures and one more: it doubles up to its cap, and is a fifth shorter or longer by the dice, so that receivers that
/// come back are not called by everybody at once.
fn pause(failures: u32, settings: &WebhookConfig, dice: f64) -> Duration {
    let doubled = settings.retry_base.saturating_mul(2_u32.saturating_pow(failures));
    doubled.min(settings.retry_cap).mul_f64(0.8 + 0.4 * dice.clamp(0.0, 1.0))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use workers::{
        job::{AccountId, DeliveryId, RunId},
        ledger::DeliveryState,
    };

    use super::*;

    fn settings() -> WebhookConfig {
        WebhookConfig {
            allow: Vec::new(),
            timeout: Duration::from_secs(15),
            retry_base: Duration::from_secs(30),
            retry_cap: Duration::from_secs(1800),
            give_up_after: Duration::from_secs(3 * 24 * 3600),
            secret_overlap: Duration::from_secs(24 * 3600),
        }
    }

    fn delivery(tries: u32) -> Delivery {
        Delivery {
            id: DeliveryId::new(),
            account: AccountId::new(),
            run: RunId::new(),
            url: "https://example.com/".into(),
            event: "run.completed".into(),
            state: DeliveryState::Pending,
            created_at: UnixMillis(0),
            queued_at: UnixMillis(1_000),
            due_at: None,
            tries,
            finished_at: None,
        }
    }

    fn check(outcome: Outcome, tries: u32, now: i64, dice: f64, expect: Verdict) {
        let verdict = next(&outcome, &delivery(tries), UnixMillis(now), &settings(), dice);
        assert_eq!(verdict, expect, "{outcome:?} after {tries} failures");
    }

    #[test]
    fn the_standard_s_answers() {
        let again = Verdict::Again { due_at: UnixMillis(1_000 + 30_000) };
        for status in [200, 204, 299] {
            check(Outcome::Answered(status), 0, 1_000, 0.5, Verdict::Delivered);
        }
        check(Outcome::Answered(410), 0, 1_000, 0.5, Verdict::GivenUp);
        check(Outcome::Impossible("no".into()), 0, 1_000, 0.5, Verdict::GivenUp);
        for status in [100, 301, 307, 400, 404, 429, 500, 503] {
            check(Outcome::Answered(status), 0, 1_000, 0.5, again);
        }
        check(Outcome::Unanswered("no".into()), 0, 1_000, 0.5, again);
    }

    #[test]
    fn pauses_double_up_to_their_cap_and_are_spread() {
        let pauses = |dice: f64| (0..9).map(move |tries| pause(tries, &settings(), dice).as_secs()).collect::<Vec<_>>();
        assert_eq!(pauses(0.5), [30, 60, 120, 240, 480, 960, 1800, 1800, 1800]);
        assert_eq!(pauses(0.0)[..3], [24, 48, 96]);
        assert_eq!(pauses(1.0)[7], 2160);
        assert_eq!(pause(u32::MAX, &settings(), 0.5).as_secs(), 1800);
    }

    #[test]
    fn a_delivery_is_given_up_after_its_time_and_not_before() {
        let days = 3 * 24 * 3600 * 1000;
        let last = days - 1_800_000 + 1_000;
        check(Outcome::Answered(500), 150, last, 0.5, Verdict::Again { due_at: UnixMillis(days + 1_000) });
        check(Outcome::Answered(500), 150, last + 1, 0.5, Verdict::GivenUp);
    }
}
