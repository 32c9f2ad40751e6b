//! Where live events wait for one reader. It holds so much and no more: a reader that is too slow loses its place and reads on
//! in the run's log.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::job::{Ending, Event, Logged};

/// Bytes of events that wait for one reader.
const MOST: usize = 64 * 1024;

/// What one reader of a run's events finds.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    Event(Logged),
    /// The run has ended, and no log said so.
    Ended(Box<Ending>),
    /// Events were lost on the way: they are in the log.
    Missed,
}

#[derive(Clone, Default)]
pub(super) struct Inbox(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    came: Notify,
}

#[derive(Default)]
struct State {
    events: VecDeque<Logged>,
    bytes: usize,
    missed: bool,
    ended: Option<Box<Ending>>,
}

impl Inbox {
    pub(super) fn push(&self, logged: Logged) {
        let mut state = self.lock();
        let bytes = state.bytes + logged.event.size();
        // An event that is larger than the whole inbox still finds its place in an empty one. Once something is missed, all that follows it
        // would be out of turn.
        let has_room = bytes <= MOST || state.events.is_empty();
        if has_room && !state.missed {
            state.bytes = bytes;
            state.events.push_back(logged);
        } else {
            state.miss();
            state.keep_ending(logged.event);
        }
        drop(state);
        self.0.came.notify_one();
    }

    /// The run has ended, whatever its log says.
    pub(super) fn end(&self, ending: Box<Ending>) {
        self.lock().ended = Some(ending);
        self.0.came.notify_one();
    }

    /// Events may have been lost on their way here.
    pub(super) fn miss(&self) {
        self.lock().miss();
        self.0.came.notify_one();
    }

    /// Waits for what comes next. A call that is dropped takes nothing with it.
    pub(super) async fn next(&self) -> News {
        loop {
            if let Some(news) = self.lock().take() {
                return news;
            }
            self.0.came.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn miss(&mut self) {
        self.missed = true;
        if let Some(last) = self.events.pop_back() {
            self.keep_ending(last.event);
        }
        self.events.clear();
        self.bytes = 0;
    }

    /// Nobody says the ending twice, so that it is kept when all else is missed.
    fn keep_ending(&mut self, event: Event) {
        if let Event::Ended(ending) = event {
            self.ended = Some(ending);
        }
    }

    fn take(&mut self) -> Option<News> {
        if std::mem::take(&mut self.missed) {
            return Some(News::Missed);
        }
        if let Some(logged) = self.events.pop_front() {
            self.bytes -= logged.event.size();
            return Some(News::Event(logged));
        }
        self.ended.take().map(News::Ended)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::job::{Fence, Outcome, RunId, UnixMillis, WIRE_VERSION};

    fn delta(seq: u64, bytes: usize) -> Logged {
        Logged { seq, event: Event::Delta("a".repeat(bytes)) }
    }

    #[test]
    fn a_reader_that_is_too_slow_reads_on_in_the_log() {
        let inbox = Inbox::default();
        inbox.push(delta(1, MOST));
        inbox.push(delta(2, 1));
        inbox.push(delta(3, 1));
        assert_eq!(inbox.next().now_or_never(), Some(News::Missed));
        assert_eq!(inbox.next().now_or_never(), None);
        inbox.push(delta(4, 1));
        assert_eq!(inbox.next().now_or_never(), Some(News::Event(delta(4, 1))));
    }

    #[test]
    fn a_large_event_finds_a_place_in_an_empty_inbox() {
        let inbox = Inbox::default();
        inbox.push(delta(1, 2 * MOST));
        assert_eq!(inbox.next().now_or_never(), Some(News::Event(delta(1, 2 * MOST))));
        inbox.push(delta(2, 1));
        assert_eq!(inbox.next().now_or_never(), Some(News::Event(delta(2, 1))));
    }

    fn ending() -> Box<Ending> {
        Box::new(Ending {
            v: WIRE_VERSION,
            run: RunId::new(),
            fence: Fence(1),
            outcome: Outcome::Cancelled,
            model: String::new(),
            started_at: None,
            finished_at: UnixMillis(0),
            queue_ms: 0,
            attempt: None,
            cache: None,
        })
    }

    #[test]
    fn an_ending_is_kept_whatever_is_missed() {
        let ending = ending();
        let last = || Logged { seq: 2, event: Event::Ended(ending.clone()) };
        let check = |fill: &dyn Fn(&Inbox)| {
            let inbox = Inbox::default();
            fill(&inbox);
            assert_eq!(inbox.next().now_or_never(), Some(News::Missed));
            assert_eq!(inbox.next().now_or_never(), Some(News::Ended(ending.clone())));
        };
        // It comes when there is no room, after something was missed, and before that.
        check(&|inbox| {
            inbox.push(delta(1, MOST));
            inbox.push(last());
        });
        check(&|inbox| {
            inbox.miss();
            inbox.push(last());
        });
        check(&|inbox| {
            inbox.push(delta(1, 1));
            inbox.push(last());
            inbox.miss();
        });
    }
}
