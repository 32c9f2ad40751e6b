//! What a step takes of each run that goes with it: runs on their way in, text and endings.

use std::{borrow::Cow, fmt::Write, sync::Arc};

use redis::Value;

use super::{
    connect::unreachable,
    depth::Waiting,
    scripts::Invocation,
    together::Part,
    wire::{admissions, all_held},
};
use crate::{
    job::{Fence, FrontDoorId, Job, RunId, RunState},
    queue::{Admission, Held, NewText, Unreachable},
};

/// Virtual time is exact up to 2⁵³; no single run may use up a noticeable part of that.
const MAX_TOKENS: u64 = 1_000_000_000;
/// The scope of a run without a target: nobody claims it, and so it expires. It is no name of a provider.
const NO_SCOPE: &str = "?";

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
    let mut head = String::with_capacity(160);
    let (deadline, tokens, lane) = (job.deadline.0, job.tokens.min(MAX_TOKENS), job.lane.as_str());
    // Text goes into a string without fail.
    let _ = match reply_to {
        Some(front_door) => write!(head, "{front_door}"),
        None => write!(head, "-"),
    };
    let _ = write!(head, " {deadline} {tokens} {lane} {} ", job.account);
    for (number, target) in job.targets.iter().enumerate() {
        head.push_str(if number > 0 { "," } else { "" });
        head.push_str(&target.provider);
    }
    if job.targets.is_empty() {
        head.push_str(NO_SCOPE);
    }
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
    /// Also what waits.
    type Answer = (Vec<Value>, Waiting);

    fn bytes(&self) -> usize {
        0
    }

    fn add_to(&self, step: Invocation) -> Invocation {
        admission(step, Some(&self.admission)).arg(self.size)
    }

    fn answers(answer: Value, runs: usize) -> Result<Vec<Self::Answer>, Unreachable> {
        let (answers, waiting, bytes) = redis::from_redis_value(answer).map_err(unreachable)?;
        let waiting = Waiting { runs: waiting, bytes };
        Ok(admissions(answers, runs)?.into_iter().map(|answer| (answer, waiting)).collect())
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
    let step = step.arg(text.first).arg(text.before).arg(text.deltas.len());
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
        let tokens = self.tokens.map_or_else(|| "-".to_owned(), |tokens| tokens.to_string());
        let how = format!("{}{tokens} {}", if has_text { "t" } else { "" }, self.state.as_str());
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
