//! When a provider wants to be called again, from all the places where providers say so. Pure.
//!
//! In order of trust: `retry-after-ms` (OpenAI, Azure), `Retry-After` (RFC 9110, section 10.2.3: seconds, or a date),
//! what the body says (a number, or a sentence such as "Please try again in 1.2s"), and last OpenAI's
//! `x-ratelimit-reset-*`, which tell when a limit is whole again and so overstate.
//!
//! Nothing that comes from outside is taken beyond [`MAX_PAUSE`].

use std::time::Duration;

use chrono::DateTime;
use reqwest::header::{DATE, HeaderMap};

use crate::{job::UnixMillis, retry::MAX_PAUSE};

/// What headers and body say. `now` is the wall clock, for a date in an answer that does not carry its own.
pub(super) fn retry_after(headers: &HeaderMap, said_in_body: Option<Duration>, now: UnixMillis) -> Option<Duration> {
    let milliseconds = || seconds(header(headers, "retry-after-ms")?, 0.001);
    let standard = || {
        let value = header(headers, "retry-after")?;
        seconds(value, 1.0).or_else(|| until(value, header(headers, DATE.as_str()), now))
    };
    milliseconds().or_else(standard).or(said_in_body).or_else(|| reset(headers))
}

/// The time that an error message names: "Please try again in 6m0s", "Please retry after 7 seconds".
pub(super) fn in_sentence(message: &str) -> Option<Duration> {
    let message = message.to_ascii_lowercase();
    let tail = ["try again in ", "retry after ", "retry in "]
        .into_iter()
        .find_map(|phrase| message.split_once(phrase).map(|(_, tail)| tail))?;
    let mut words = tail.split_whitespace().map(|word| word.trim_end_matches(['.', ',', ';', ')']));
    let word = words.next()?;
    span(word).or_else(|| seconds(word, named_unit(words.next()?)?))
}

/// A number of seconds, as found in a body.
pub(super) fn in_seconds(number: f64) -> Option<Duration> {
    (number.is_finite() && number >= 0.0).then(|| Duration::from_secs_f64(number.min(MAX_PAUSE.as_secs_f64())))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn seconds(text: &str, unit: f64) -> Option<Duration> {
    in_seconds(text.parse::<f64>().ok()? * unit)
}

/// The time until an HTTP date. The provider's own `Date` is the better clock: ours may be wrong by more than the
/// pause.
fn until(date: &str, date_of_answer: Option<&str>, now: UnixMillis) -> Option<Duration> {
    let parse = |text| DateTime::parse_from_rfc2822(text).ok().map(|date| UnixMillis(date.timestamp_millis()));
    let now = date_of_answer.and_then(parse).unwrap_or(now);
    Some(Duration::from_millis(parse(date)?.since(now)).min(MAX_PAUSE))
}

/// The later reset among the limits that are used up.
fn reset(headers: &HeaderMap) -> Option<Duration> {
    [
        ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
        ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ]
    .into_iter()
    .filter(|(remaining, _)| header(headers, remaining).is_none_or(|left| left == "0"))
    .filter_map(|(_, reset)| {
        let value = header(headers, reset)?;
        span(value).or_else(|| seconds(value, 1.0))
    })
    .max()
}

/// A duration as Go writes it: `1.2s`, `6m0s`, `120ms`, `1h2m3.5s`.
fn span(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    loop {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, next) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        total += number.parse::<f64>().ok()? * short_unit(unit)?;
        if next.is_empty() {
            return in_seconds(total);
        }
        rest = next;
    }
}

/// A unit's length in seconds.
fn short_unit(unit: &str) -> Option<f64> {
    Some(match unit {
        "d" => 86_400.0,
        "h" => 3_600.0,
        "m" => 60.0,
        "s" => 1.0,
        "ms" => 0.001,
        "us" | "µs" => 0.000_001,
        _ => return None,
    })
}

fn named_unit(unit: &str) -> Option<f64> {
    Some(match unit {
        "day" | "days" => 86_400.0,
        "hour" | "hours" => 3_600.0,
        "minute" | "minutes" => 60.0,
        "second" | "seconds" | "sec" | "secs" => 1.0,
        "millisecond" | "milliseconds" => 0.001,
        _ => return short_unit(unit),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000_000_000_000);

    #[track_caller]
    fn check(headers: &[(&'static str, &'static str)], body: Option<u64>, expect: Option<u64>) {
        let map = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let got = retry_after(&map, body.map(Duration::from_millis), NOW);
        assert_eq!(got, expect.map(Duration::from_millis), "{headers:?} {body:?}");
    }

    #[test]
    fn headers_are_read_in_order_of_trust() {
        check(&[], None, None);
        check(&[("retry-after-ms", "1500"), ("retry-after", "9")], Some(7), Some(1_500));
        check(&[("retry-after", "2")], Some(7), Some(2_000));
        check(&[("retry-after", "0.25")], None, Some(250));
        check(&[("retry-after", "soon"), ("x-ratelimit-reset-requests", "3s")], Some(7), Some(7));
        check(&[("retry-after", "soon"), ("x-ratelimit-reset-requests", "3s")], None, Some(3_000));
    }

    #[test]
    fn a_date_is_measured_by_the_clock_of_the_answer() {
        // 1,000,000,000,000 ms is Sun, 09 Sep 2001 01:46:40 GMT.
        check(&[("retry-after", "Sun, 09 Sep 2001 01:46:50 GMT")], None, Some(10_000));
        check(&[("retry-after", "Sun, 09 Sep 2001 01:46:30 GMT")], None, Some(0));
        check(
            &[("retry-after", "Wed, 21 Oct 2015 07:28:05 GMT"), ("date", "Wed, 21 Oct 2015 07:28:00 GMT")],
            None,
            Some(5_000),
        );
        check(&[("retry-after", "Tue, 31 Dec 2999 23:59:59 GMT")], None, Some(600_000));
    }

    #[test]
    fn resets_count_only_for_limits_that_are_used_up() {
        check(&[("x-ratelimit-reset-requests", "120ms"), ("x-ratelimit-reset-tokens", "6m0s")], None, Some(360_000));
        check(
            &[
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", "8.64s"),
                ("x-ratelimit-remaining-tokens", "1200"),
                ("x-ratelimit-reset-tokens", "1m"),
            ],
            None,
            Some(8_640),
        );
    }

    #[test]
    fn absurd_numbers_are_bounded_or_ignored() {
        check(&[("retry-after", "31536000")], None, Some(600_000));
        check(&[("retry-after", "99999999999999999999999999")], None, Some(600_000));
        for bad in ["-1", "NaN", "inf", "1e999", "", "1 2", "9999999999999-99"] {
            let map = [("retry-after".parse().unwrap(), bad.parse().unwrap())].into_iter().collect();
            assert_eq!(retry_after(&map, None, NOW), None, "{bad:?}");
        }
    }

    #[test]
    fn sentences_are_understood() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(in_sentence(text), expect.map(Duration::from_millis), "{text:?}");
        };
        check("Rate limit reached for gpt-4. Please try again in 1.2s. Visit https://…", Some(1_200));
        check("Please try again in 20ms.", Some(20));
        check("Please try again in 6m0s.", Some(360_000));
        check("Please try again in 1h2m3.5s", Some(600_000));
        check("Please retry after 7 seconds.", Some(7_000));
        check("Please retry after 1 minute, or ask for more", Some(60_000));
        check("try again in 300 milliseconds", Some(300));
        check("TRY AGAIN IN 2 Secs", Some(2_000));
        check("Please try again in a while", None);
        check("Please try again in", None);
        check("Please try again in 7", None);
        check("Please try again in é5s", None);
        check("no hint at all", None);
    }
}
