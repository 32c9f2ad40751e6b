//! What crosses the border to the scripts: jobs and admissions in, claims and answers out.

use std::{borrow::Cow, fmt::Write, str::FromStr, sync::Arc, time::Duration};

use redis::{FromRedisValue, Value};

use super::{connect::unreachable, scripts::Invocation, together::Part};
use crate::{
    job::{Ending, Event, Fence, FrontDoorId, Job, Logged, RunId, RunState, UnixMillis, WorkerId},
    queue::{
        Admission, Admitted, Claim, Followed, Held, LogMark, LostCall, NewText, RateLeft, ScopeLimits, Unreachable,
        Work,
    },
};

/// Virtual time is exact up to 2⁵³; no single run may use up a noticeable part of that.
const MAX_TOKENS: u64 = 1_000_000_000;
/// The scope of a run without a target: nobody claims it, and so it expires.
const NO_SCOPE: &str = "-";
/// When to try again while too much waits: about the time in which a busy pool moves on.
const FULL_RETRY: Duration = Duration::from_secs(2);

/// A script answered what it never answers: the code on the two sides does not match.
#[derive(Debug, thiserror::Error)]
#[error("a step of the queue gave an answer that cannot be read: {0}")]
struct Garbled(&'static str);

pub(super) fn garbled(what: &'static str) -> Unreachable {
    unreachable(Garbled(what))
}

/// What the queue is told of a run that was in it before.
#[derive(Default)]
pub(super) struct Before {
    pub attempts: i32,
    pub limited: i32,
    pub fence: Fence,
}

/// Adds one run, as `put.lua` takes it.
pub(super) fn put(
    invocation: Invocation,
    job: &Job,
    bytes: &[u8],
    before: &Before,
    reply_to: Option<FrontDoorId>,
) -> Invocation {
    let scope = job.targets.first().map_or(NO_SCOPE, |target| &target.provider);
    invocation
        .arg(job.id.to_string())
        .arg(head(job, reply_to))
        .arg(scope)
        .arg(job.deadline.0)
        .arg(&*more(job, before))
        .arg(bytes)
}

/// Lanes, numbers and the names of providers have no spaces and no commas.
fn head(job: &Job, reply_to: Option<FrontDoorId>) -> String {
    let mut head = String::with_capacity(128);
    // Text goes into a string without fail.
    let _ = match reply_to {
        Some(front_door) => write!(head, "{front_door} {} ", job.deadline.0),
        None => write!(head, "- {} ", job.deadline.0),
    };
    for (number, target) in job.targets.iter().enumerate() {
        head.push_str(if number > 0 { "," } else { "" });
        head.push_str(&target.provider);
    }
    if job.targets.is_empty() {
        head.push_str(NO_SCOPE);
    }
    let _ = write!(head, " {} {} {}", job.lane.as_str(), job.account, job.tokens.min(MAX_TOKENS));
    head
}

fn more(job: &Job, Before { attempts, limited, fence }: &Before) -> Cow<'static, str> {
    match (job.flight(), attempts, limited, fence.0) {
        (None, 0, 0, 0) => Cow::Borrowed(if job.stream { "l" } else { "" }),
        (flight, ..) => {
            let (log, flight) = (if job.stream { 'l' } else { '-' }, flight.unwrap_or_default());
            Cow::Owned(format!("{log} {attempts} {limited} {} {flight}", fence.0))
        }
    }
}

/// A run that asks whether it may come, as `admit.lua` takes it.
pub(super) struct Asking {
    pub size: usize,
    pub admission: Admission,
}

impl Part for Asking {
    type Answer = Vec<Value>;

    fn bytes(&self) -> usize {
        0
    }

    fn add_to(&self, step: Invocation) -> Invocation {
        admission(step, Some(&self.admission)).arg(self.size)
    }

    fn answers(answer: Value, runs: usize) -> Result<Vec<Vec<Value>>, Unreachable> {
        admissions(answer, runs)
    }
}

/// A run on its way into the queue, as `enqueue.lua` takes it.
pub(super) struct Entering {
    pub job: Arc<Job>,
    pub bytes: Vec<u8>,
    pub reply_to: Option<FrontDoorId>,
    pub admission: Option<Admission>,
}

impl Part for Entering {
    type Answer = Vec<Value>;

    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn add_to(&self, step: Invocation) -> Invocation {
        let step = admission(step, self.admission.as_ref());
        put(step, &self.job, &self.bytes, &Before::default(), self.reply_to)
    }

    fn answers(answer: Value, runs: usize) -> Result<Vec<Vec<Value>>, Unreachable> {
        admissions(answer, runs)
    }
}

/// Text of a call, as `append.lua` takes it.
pub(super) struct Appended {
    pub run: RunId,
    pub fence: Fence,
    pub text: NewText,
}

impl Part for Appended {
    type Answer = Held;

    fn bytes(&self) -> usize {
        self.text.deltas.iter().map(String::len).sum()
    }

    fn add_to(&self, step: Invocation) -> Invocation {
        text(step.arg(self.run.to_string()).arg(self.fence.0), &self.text)
    }

    fn answers(answer: Value, runs: usize) -> Result<Vec<Held>, Unreachable> {
        all_held(answer, runs)
    }
}

fn text(step: Invocation, text: &NewText) -> Invocation {
    let step = step.arg(text.first).arg(text.deltas.len());
    text.deltas.iter().fold(step, |step, delta| step.arg(delta))
}

/// An ending, as `stash.lua` takes it.
pub(super) struct Stashed {
    pub run: RunId,
    pub fence: Fence,
    pub tokens: Option<u64>,
    pub state: RunState,
    pub bytes: Vec<u8>,
    /// What comes before it.
    pub text: NewText,
}

impl Part for Stashed {
    type Answer = Held;

    fn bytes(&self) -> usize {
        self.bytes.len() + self.text.deltas.iter().map(String::len).sum::<usize>()
    }

    fn add_to(&self, step: Invocation) -> Invocation {
        let has_text = !self.text.deltas.is_empty();
        let mut how = if has_text { "t".to_owned() } else { String::new() };
        // Text goes into a string without fail.
        let _ = match self.tokens {
            Some(tokens) => write!(how, "{tokens} {}", self.state.as_str()),
            None => write!(how, "- {}", self.state.as_str()),
        };
        let step = step.arg(self.run.to_string()).arg(self.fence.0).arg(how).arg(&self.bytes);
        if has_text { text(step, &self.text) } else { step }
    }

    fn answers(answer: Value, runs: usize) -> Result<Vec<Held>, Unreachable> {
        all_held(answer, runs)
    }
}

/// Adds an admission, as `admission.lua` takes it.
fn admission(invocation: Invocation, admission: Option<&Admission>) -> Invocation {
    let Some(Admission { max_depth, max_bytes, rules }) = admission else { return invocation.arg("").arg("") };
    let mut text = String::new();
    for rule in rules {
        // Text goes into a string without fail.
        let _ = write!(text, "{}:{} {} ", rule.name, rule.subject, rule.per_minute);
    }
    invocation.arg(format!("{max_depth} {max_bytes}")).arg(text)
}

/// Adds the limits of a scope, as `claim.lua` takes them. What the same claim got before has left already.
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

/// Adds runs, each with the fence that somebody has.
pub(super) fn with_fences(mut step: Invocation, runs: &[(RunId, Fence)]) -> Invocation {
    for (run, fence) in runs {
        step = step.arg(run.to_string()).arg(fence.0);
    }
    step
}

/// A limit as the scripts take it: empty when there is none.
pub(super) fn optional(limit: Option<impl ToString>) -> String {
    limit.map(|limit| limit.to_string()).unwrap_or_default()
}

/// Reads the answers of `admission.lua`. A single `yes` is that of all.
fn admissions(answer: Value, runs: usize) -> Result<Vec<Vec<Value>>, Unreachable> {
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

/// Reads the answer of `stash.lua` and `append.lua`: a letter for each run, the first one of what `held` reads, or one for all.
fn all_held(answer: Value, runs: usize) -> Result<Vec<Held>, Unreachable> {
    let letters: Vec<u8> = redis::from_redis_value(answer).map_err(unreachable)?;
    let letters = if letters.len() == 1 { vec![letters[0]; runs] } else { letters };
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

/// A claim as the scripts hand it out: fifteen strings.
pub(super) type Row = Vec<Vec<u8>>;

/// A row, read.
pub(super) enum Read {
    Claim(Box<Claim>),
    /// Its job or ending was written by another version.
    Foreign {
        run: RunId,
        fence: Fence,
    },
}

pub(super) fn claim(row: Row) -> Result<Read, Unreachable> {
    let row: [Vec<u8>; 15] = row.try_into().map_err(|_| garbled("a claim has another length"))?;
    let [id, job, fence, attempt, limited, target, waited, started, work, lost @ .., ending, log] = row;
    let run = parse(&id)?;
    let fence = Fence(parse(&fence)?);
    let Ok(job) = Job::decode(&job) else { return Ok(Read::Foreign { run, fence }) };
    let work = match work.as_slice() {
        b"call" => Work::Call,
        b"answer" => Work::Answer,
        b"expire" => Work::Expire(lost_before(&lost)?),
        b"cancel" => Work::Cancel(lost_before(&lost)?),
        b"lost" => Work::Lost(lost_call(&lost)?),
        b"poison" => Work::Poison(lost_call(&lost)?),
        b"record" => match Ending::decode(&ending) {
            Ok(ending) => Work::Record(Box::new(ending)),
            Err(_) => return Ok(Read::Foreign { run, fence }),
        },
        _ => return Err(garbled("an unknown kind of work")),
    };
    // A front door's reading of this clock may be ahead by the way of its messages.
    let started_at = UnixMillis(parse(&started)?).max(job.created_at);
    Ok(Read::Claim(Box::new(Claim {
        job: Arc::new(job),
        fence,
        attempt: parse(&attempt)?,
        limited: parse(&limited)?,
        target: parse(&target)?,
        queue_ms: parse(&waited)?,
        started_at,
        log: log_mark(&log)?,
        work,
    })))
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

/// Reads the answer of `mark` in `log.lua`.
fn log_mark(mark: &[u8]) -> Result<Option<LogMark>, Unreachable> {
    let (next, streamed) = match mark {
        [] => return Ok(None),
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

/// The fields are empty when no call was lost.
fn lost_before(fields: &[Vec<u8>; 4]) -> Result<Option<LostCall>, Unreachable> {
    if fields.iter().all(Vec::is_empty) { Ok(None) } else { lost_call(fields).map(Some) }
}

fn lost_call([worker, fence, attempt, taken]: &[Vec<u8>; 4]) -> Result<LostCall, Unreachable> {
    Ok(LostCall {
        worker: if worker.is_empty() { WorkerId::UNKNOWN } else { parse(worker)? },
        fence: Fence(parse(fence)?),
        attempt: parse(attempt)?,
        started_at: UnixMillis(parse(taken)?),
    })
}

pub(super) fn parse<T: FromStr>(bytes: &[u8]) -> Result<T, Unreachable> {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| garbled("a field is not what it should be"))
}
