//! What crosses the border to the steps: limits and fences in (`parts.rs` has the rest), claims and answers out.

use std::{str::FromStr, sync::Arc, time::Duration};

use redis::{FromRedisValue, Value};

use super::{connect::unreachable, scripts::Invocation};
use crate::{
    job::{Ending, Event, Fence, Job, Logged, RunId, UnixMillis, WorkerId},
    queue::{
        Admission, Admitted, Claim, Followed, Held, LogMark, LostCall, RateLeft, Renewal, ScopeLimits, Unreachable,
        Work,
    },
};

/// When to try again while too much waits: about the time in which a busy pool moves on.
const FULL_RETRY: Duration = Duration::from_secs(2);

/// A script answered what it never answers: the code on the two sides does not match.
#[derive(Debug, thiserror::Error)]
#[error("a step of the queue gave an answer that cannot be read: {0}")]
struct Garbled(&'static str);

pub(super) fn garbled(what: &'static str) -> Unreachable {
    unreachable(Garbled(what))
}

/// Adds the limits of a scope, as `claiming.lua` takes them. What the same claim got before has left already.
pub(super) fn limits(invocation: Invocation, limits: &ScopeLimits, before: &[Claim]) -> Invocation {
    let left = limits.at_once.map(|at_once| {
        let called = |claim: &&Claim| claim.work == Work::Call && claim.scope() == Some(limits.scope.as_str());
        u64::from(at_once.calls).saturating_sub(before.iter().filter(called).count() as u64)
    });
    invocation
        .arg(&limits.scope)
        .arg(optional(limits.max_concurrency))
        .arg(optional(limits.requests_per_minute))
        .arg(optional(limits.tokens_per_minute))
        .arg(optional(left))
        // Rounded up: who comes back too early has to come back again.
        .arg(optional(limits.at_once.map(|at_once| super::millis(at_once.next).saturating_add(1))))
}

/// Adds runs.
pub(super) fn with_runs(step: Invocation, runs: &[RunId]) -> Invocation {
    runs.iter().fold(step, |step, run| step.arg(run.to_string()))
}

/// Adds runs, each with the fence that somebody has.
pub(super) fn with_fences(mut step: Invocation, runs: &[(RunId, Fence)]) -> Invocation {
    for (run, fence) in runs {
        step = step.arg(run.to_string()).arg(fence.0);
    }
    step
}

/// What a heartbeat answers, for each of the runs that were asked for.
pub(super) fn renewals(answers: Vec<u8>, asked: usize) -> Result<impl Iterator<Item = Renewal>, Unreachable> {
    if answers.len() != asked {
        return Err(garbled("a heartbeat without an answer for every run"));
    }
    Ok(answers.into_iter().map(|answer| match answer {
        0 => Renewal::Held,
        1 => Renewal::Cancel,
        _ => Renewal::Lost,
    }))
}

/// A limit as the scripts take it: empty when there is none.
pub(super) fn optional(limit: Option<impl ToString>) -> String {
    limit.map(|limit| limit.to_string()).unwrap_or_default()
}

/// Reads the answers of `admission.lua`. A single `yes` is that of all.
pub(super) fn admissions(answer: Value, runs: usize) -> Result<Vec<Vec<Value>>, Unreachable> {
    match answer {
        Value::Array(_) => redis::from_redis_value(answer).map_err(unreachable),
        yes => Ok(vec![vec![yes]; runs]),
    }
}

/// Reads what `admission.lua` answers for one run.
pub(super) fn admitted(answer: Vec<Value>, admission: Option<&Admission>) -> Result<Admitted, Unreachable> {
    let rules = admission.map(|admission| admission.rules.as_slice()).unwrap_or_default();
    let mut answer = answer.into_iter();
    let limited = match next::<String>(&mut answer)?.as_str() {
        "yes" => None,
        "limited" => Some((next::<usize>(&mut answer)?, next(&mut answer)?)),
        "full" => return Ok(Admitted::Full { after: FULL_RETRY }),
        _ => return Err(garbled("an unknown admission")),
    };
    let mut rates = Vec::with_capacity(rules.len());
    for rule in rules {
        let remaining = next(&mut answer)?;
        let reset = Duration::from_millis(next(&mut answer)?);
        rates.push(RateLeft { name: rule.name, per_minute: rule.per_minute, remaining, reset });
    }
    let Some((index, after)) = limited else { return Ok(Admitted::Yes { rates }) };
    let rule = rules.get(index).ok_or_else(|| garbled("an unknown rule"))?.name;
    Ok(Admitted::Limited { rule, after: Duration::from_millis(after), rates })
}

fn next<T: FromRedisValue>(answer: &mut impl Iterator<Item = Value>) -> Result<T, Unreachable> {
    let value = answer.next().ok_or_else(|| garbled("a part is missing"))?;
    redis::from_redis_value(value).map_err(unreachable)
}

/// Reads the answer of `stash.lua` and `append.lua`: a letter for each run, the first one of what `held` reads, or `d` for all.
pub(super) fn all_held(answer: Value, runs: usize) -> Result<Vec<Held>, Unreachable> {
    let letters: Vec<u8> = redis::from_redis_value(answer).map_err(unreachable)?;
    let letters = if letters == b"d" { vec![b'd'; runs] } else { letters };
    let held = |letter| match letter {
        b'd' => Ok(Held::Done),
        b'e' => Ok(Held::Elsewhere),
        b'u' => Ok(Held::Unknown),
        _ => Err(garbled("an unknown answer about a lease")),
    };
    letters.into_iter().map(held).collect()
}

/// Reads the answer of `release.lua`.
pub(super) fn held(answer: &str) -> Result<Held, Unreachable> {
    match answer {
        "done" => Ok(Held::Done),
        "elsewhere" => Ok(Held::Elsewhere),
        "unknown" => Ok(Held::Unknown),
        _ => Err(garbled("an unknown answer about a lease")),
    }
}

/// A claim, read.
pub(super) enum Read {
    Claim(Box<Claim>),
    /// Its job or ending was written by another version.
    Foreign {
        run: RunId,
        fence: Fence,
    },
}

/// Reads claims as `claimed` in `claiming.lua` and `take_over` in `reap.lua` hand them out.
pub(super) fn claims(handed_out: Vec<Vec<u8>>) -> Result<Vec<Read>, Unreachable> {
    let mut claims = Vec::with_capacity(handed_out.len() / 2);
    let mut texts = handed_out.into_iter();
    while let Some(head) = texts.next() {
        let mut text = || texts.next().ok_or_else(|| garbled("a claim without all of its texts"));
        let job = text()?;
        claims.push(claim(&head, &job, text)?);
    }
    Ok(claims)
}

fn claim(head: &[u8], job: &[u8], ending: impl FnOnce() -> Result<Vec<u8>, Unreachable>) -> Result<Read, Unreachable> {
    let mut words = head.split(|byte| *byte == b' ');
    let mut word = || words.next().ok_or_else(|| garbled("a claim without all of its words"));
    let (run, fence) = (parse(word()?)?, Fence(parse(word()?)?));
    let (attempt, limited, target) = (parse(word()?)?, parse(word()?)?, parse(word()?)?);
    let (queue_ms, started, work, log) = (parse(word()?)?, UnixMillis(parse(word()?)?), word()?, log_mark(word()?)?);
    let lost = words.collect::<Vec<_>>();
    // It is read in any case: the next claim stands behind it.
    let ending = if work == b"record" { Some(ending()?) } else { None };
    let Ok(job) = Job::decode(job) else { return Ok(Read::Foreign { run, fence }) };
    let work = match (work, ending) {
        (b"call", _) => Work::Call,
        (b"answer", _) => Work::Answer,
        (b"expire", _) => Work::Expire(lost_before(&lost, &job)?),
        (b"cancel", _) => Work::Cancel(lost_before(&lost, &job)?),
        (b"lost", _) => Work::Lost(lost_call(&lost, &job)?),
        (b"poison", _) => Work::Poison(lost_call(&lost, &job)?),
        (_, Some(ending)) => match Ending::decode(&ending) {
            Ok(ending) => Work::Record(Box::new(ending)),
            Err(_) => return Ok(Read::Foreign { run, fence }),
        },
        _ => return Err(garbled("an unknown kind of work")),
    };
    // A front door's reading of this clock may be ahead by the way of its messages.
    let started_at = started.max(job.created_at);
    let job = Arc::new(job);
    Ok(Read::Claim(Box::new(Claim { job, fence, attempt, limited, target, queue_ms, started_at, log, work })))
}

/// A run that was leased as it came, and when that was.
pub(super) struct Offer {
    pub offered: UnixMillis,
    pub read: Read,
}

/// Reads two entries of the list that `offer.lua` writes.
pub(super) fn offer(entries: &[Vec<u8>]) -> Result<Offer, Unreachable> {
    let [head, job] = entries else { return Err(garbled("an offer without its job")) };
    let mut parts = head.splitn(4, |byte| *byte == b' ');
    let mut part = || parts.next().ok_or_else(|| garbled("an offer without all of its parts"));
    let (run, fence, offered, log) = (part()?, part()?, part()?, part()?);
    let (run, fence, offered) = (parse(run)?, Fence(parse(fence)?), UnixMillis(parse(offered)?));
    let Ok(job) = Job::decode(job) else { return Ok(Offer { offered, read: Read::Foreign { run, fence } }) };
    let started_at = offered.max(job.created_at);
    let claim = Claim {
        job: Arc::new(job),
        fence,
        attempt: 1,
        limited: 0,
        target: 0,
        queue_ms: 0,
        started_at,
        log: log_mark(log)?,
        work: Work::Call,
    };
    Ok(Offer { offered, read: Read::Claim(Box::new(claim)) })
}

/// Reads the answer of `mark` in `log.lua`; `-` stands for none among words.
fn log_mark(mark: &[u8]) -> Result<Option<LogMark>, Unreachable> {
    let (next, streamed) = match mark {
        [] | [b'-'] => return Ok(None),
        [next @ .., b'd'] => (next, true),
        next => (next, false),
    };
    Ok(Some(LogMark { next: parse(next)?, streamed }))
}

/// Reads the answer of `follow.lua`. Events of another version are passed over: their readers have the ending.
pub(super) fn followed(answer: &[Vec<u8>], after: u64) -> Result<Followed, Unreachable> {
    let [length, first, events @ ..] = answer else { return Err(garbled("a log without its length")) };
    let length = parse(length)?;
    if length == 0 {
        return Ok(Followed::Unknown);
    }
    let logged = |(seq, event): (u64, &Vec<u8>)| Logged { seq, event: Event::decode(event).unwrap_or(Event::Skipped) };
    let began = match first.split_first() {
        Some((b'q', [])) => 0,
        Some((b'q', began)) => parse(began)?,
        // Its beginning is gone: it is none of those that a reader may know.
        _ => u64::MAX,
    };
    Ok(Followed::Log { events: (after + 1..).zip(events).map(logged).collect(), length, began })
}

/// There are no words when no call was lost.
fn lost_before(words: &[&[u8]], job: &Job) -> Result<Option<LostCall>, Unreachable> {
    if words.is_empty() { Ok(None) } else { lost_call(words, job).map(Some) }
}

fn lost_call(words: &[&[u8]], job: &Job) -> Result<LostCall, Unreachable> {
    let &[worker, fence, attempt, taken] = words else { return Err(garbled("a lost call without all of its words")) };
    Ok(LostCall {
        worker: if worker == b"-" { WorkerId::UNKNOWN } else { parse(worker)? },
        fence: Fence(parse(fence)?),
        attempt: parse(attempt)?,
        started_at: UnixMillis(parse(taken)?).max(job.created_at),
    })
}

pub(super) fn parse<T: FromStr>(bytes: &[u8]) -> Result<T, Unreachable> {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| garbled("a field is not what it should be"))
}
