//! The same step of many runs in one script. A step goes at once when none of its kind is under way; those that come meanwhile go together as soon
//! as it has been answered. What a script costs by itself, and what its runs have in common, is paid once then.

use std::{
    collections::VecDeque,
    error::Error,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::Value;
use tokio::sync::oneshot;

use super::{
    connect::{Connections, unreachable},
    millis,
    parts::{Appended, Asking, Entering, Stashed},
    scripts::{self, Invocation},
    wire::garbled,
};
use crate::queue::{LOG_BYTES, Unreachable};

/// Runs, and bytes of them, in one script: it keeps Redis busy for about a millisecond, in which it answers nobody else.
const MOST: usize = 50;
const MOST_BYTES: usize = 1 << 20;

/// What a step takes of one run.
pub(super) trait Part: Send + Sync + 'static {
    /// What it is answered.
    type Answer: Send + 'static;

    /// About how large it is.
    fn bytes(&self) -> usize;
    /// Adds its arguments.
    fn add_to(&self, step: Invocation) -> Invocation;
    /// Reads the answer of a step of so many runs; one for each of them.
    fn answers(answer: Value, runs: usize) -> Result<Vec<Self::Answer>, Unreachable>;
}

/// The steps that go together.
pub(super) struct Steps {
    pub admissions: Together<Asking>,
    pub enqueues: Together<Entering>,
    pub appends: Together<Appended>,
    pub stashes: Together<Stashed>,
}

impl Steps {
    /// Of runs with leases of this length.
    pub fn new(connections: &Connections, tag: &str, lease: Duration) -> Self {
        let stash = Invocation::new(scripts::STASH, tag).arg(millis(lease)).arg(LOG_BYTES);
        Self {
            admissions: Together::new(connections.clone(), Invocation::new(scripts::ADMIT, tag)),
            enqueues: Together::new(connections.clone(), Invocation::new(scripts::ENQUEUE, tag)),
            appends: Together::new(connections.clone(), Invocation::new(scripts::APPEND, tag).arg(LOG_BYTES)),
            stashes: Together::new(connections.clone(), stash),
        }
    }
}

/// Gathers the parts of one kind of step.
pub(super) struct Together<P: Part>(Arc<Inner<P>>);

struct Inner<P: Part> {
    connections: Connections,
    begin: Invocation,
    gathered: Mutex<Gathered<P>>,
}

/// Whoever asked is told there.
type Answered<P> = oneshot::Sender<Result<<P as Part>::Answer, Unreachable>>;

struct Gathered<P: Part> {
    parts: VecDeque<(P, Answered<P>)>,
    /// Somebody takes what is gathered.
    is_served: bool,
}

impl<P: Part> Together<P> {
    /// `begin` is the step without a part.
    pub fn new(connections: Connections, begin: Invocation) -> Self {
        let gathered = Mutex::new(Gathered { parts: VecDeque::new(), is_served: false });
        Self(Arc::new(Inner { connections, begin, gathered }))
    }

    /// The answer for one run.
    pub async fn ask(&self, part: P) -> Result<P::Answer, Unreachable> {
        let (send, answer) = oneshot::channel();
        if !self.0.gather(part, send) {
            // In a task of its own: whoever came first may leave before the others are answered.
            tokio::spawn(Service { inner: self.0.clone(), has_ended: false }.run());
        }
        answer.await.unwrap_or_else(|_| Err(garbled("a step was not made")))
    }
}

impl<P: Part> Inner<P> {
    /// Answers whether there is a service; from now on there is to be one.
    fn gather(&self, part: P, sender: Answered<P>) -> bool {
        let mut gathered = self.lock();
        gathered.parts.push_back((part, sender));
        mem::replace(&mut gathered.is_served, true)
    }

    fn lock(&self) -> MutexGuard<'_, Gathered<P>> {
        // Nothing panics while it holds the lock.
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes what is gathered, until nothing is.
struct Service<P: Part> {
    inner: Arc<Inner<P>>,
    has_ended: bool,
}

impl<P: Part> Service<P> {
    async fn run(mut self) {
        loop {
            let (parts, senders) = self.next();
            if parts.is_empty() {
                return;
            }
            let step = parts.iter().fold(self.inner.begin.clone(), |step, part| part.add_to(step));
            let answer = match self.inner.connections.ask(&step).await {
                Ok(answer) => answer,
                // Whoever has gathered meanwhile is not made to wait for as long again.
                Err(error) => {
                    fail::<P>(senders.into_iter().chain(self.take_all()), error);
                    continue;
                }
            };
            match P::answers(answer, parts.len()) {
                Ok(answers) if answers.len() == parts.len() => {
                    for (sender, answer) in senders.into_iter().zip(answers) {
                        // Whoever left needs no answer.
                        let _ = sender.send(Ok(answer));
                    }
                }
                Ok(_) => fail::<P>(senders, garbled("a step without an answer for every run")),
                Err(error) => fail::<P>(senders, error),
            }
        }
    }

    /// The next parts that go together. When there are none, the service has ended with this.
    fn next(&mut self) -> (Vec<P>, Vec<Answered<P>>) {
        let mut gathered = self.inner.lock();
        let mut bytes = 0;
        let fits = |(part, _): &&(P, _)| {
            let before = bytes;
            bytes += part.bytes();
            before < MOST_BYTES
        };
        let taken = gathered.parts.iter().take(MOST).take_while(fits).count();
        self.has_ended = taken == 0;
        gathered.is_served = taken > 0;
        gathered.parts.drain(..taken).unzip()
    }
}

impl<P: Part> Service<P> {
    /// Those whose parts have not been sent, and will not be.
    fn take_all(&self) -> Vec<Answered<P>> {
        self.inner.lock().parts.drain(..).map(|(_, sender)| sender).collect()
    }
}

impl<P: Part> Drop for Service<P> {
    /// A service that was cut off, with its runtime or by a panic, is not waited for.
    fn drop(&mut self) {
        if !self.has_ended {
            let mut gathered = self.inner.lock();
            gathered.is_served = false;
            gathered.parts.clear();
        }
    }
}

/// Tells all of them of one failure.
fn fail<P: Part>(senders: impl IntoIterator<Item = Answered<P>>, error: Unreachable) {
    let error: Arc<dyn Error + Send + Sync> = Arc::from(error.0);
    for sender in senders {
        // Whoever left needs no answer.
        let _ = sender.send(Err(unreachable(error.clone())));
    }
}
