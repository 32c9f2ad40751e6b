//! The text that the reader of a stream was told: at the end it is the output, whatever was lost on the way.

use sha2::{Digest, Sha256};
use workers::job::{Event, Logged, Outcome};

/// What a reader was told since it was last told to forget. A digest stands for the text, so that a long one takes no memory.
#[derive(Default)]
pub(super) struct Told {
    bytes: usize,
    digest: Sha256,
}

impl Told {
    /// Takes the next event, and returns what the reader is to be told: before the end of a run that succeeded, what it has not heard of the output
    /// yet. (Text may be lost with the memory of the queue, or come too late for its log; the ending has all of it.)
    pub(super) fn hear(&mut self, logged: Logged) -> Vec<Logged> {
        match &logged.event {
            Event::Delta(text) => {
                self.bytes += text.len();
                self.digest.update(text);
            }
            Event::Retrying => *self = Self::default(),
            Event::Ended(ending) => {
                if let Outcome::Succeeded { output, .. } = &ending.outcome {
                    let before = self.missing(output);
                    let seqs = logged.seq..;
                    return seqs
                        .zip(before.into_iter().chain([logged.event]))
                        .map(|(seq, event)| Logged { seq, event })
                        .collect();
                }
            }
            Event::Queued | Event::Started { .. } | Event::Skipped => {}
        }
        vec![logged]
    }

    fn missing(&self, output: &str) -> Vec<Event> {
        match output.split_at_checked(self.bytes) {
            Some((heard, rest)) if Sha256::digest(heard) == self.digest.clone().finalize() => {
                if rest.is_empty() {
                    Vec::new()
                } else {
                    vec![Event::Delta(rest.to_owned())]
                }
            }
            // Something in the middle was lost: the reader begins again.
            _ => vec![Event::Retrying, Event::Delta(output.to_owned())],
        }
    }
}

#[cfg(test)]
mod tests {
    use workers::job::{Ending, Fence, RunId, UnixMillis, WIRE_VERSION};

    use super::*;

    fn ended(output: &str) -> Event {
        Event::Ended(Box::new(Ending {
            v: WIRE_VERSION,
            run: RunId::new(),
            fence: Fence(1),
            outcome: Outcome::Succeeded { output: output.into(), finish_reason: None },
            model: "demo".into(),
            started_at: None,
            finished_at: UnixMillis(0),
            queue_ms: 0,
            attempt: None,
            cache: None,
        }))
    }

    #[test]
    fn at_the_end_the_reader_has_the_output() {
        let check = |heard: &[&str], output: &str, expect: &[Event]| {
            let mut told = Told::default();
            for (seq, text) in (1..).zip(heard) {
                let event = if *text == "again" { Event::Retrying } else { Event::Delta((*text).into()) };
                assert_eq!(told.hear(Logged { seq, event }).len(), 1);
            }
            let mut last = told.hear(Logged { seq: 9, event: ended(output) });
            assert!(matches!(last.pop(), Some(Logged { event: Event::Ended(_), seq }) if seq == 9 + last.len() as u64));
            let events: Vec<_> = last.into_iter().map(|logged| logged.event).collect();
            assert_eq!(events, expect, "{heard:?}");
        };
        let delta = |text: &str| Event::Delta(text.into());
        check(&["Bon", "jour"], "Bonjour", &[]);
        check(&["Bon"], "Bonjour", &[delta("jour")]);
        check(&[], "Bonjour", &[delta("Bonjour")]);
        check(&["Bon", "again", "Bonjour"], "Bonjour", &[]);
        check(&["Bon", "ur"], "Bonjour", &[Event::Retrying, delta("Bonjour")]);
        check(&["Bonjour, Steph"], "Bonjour", &[Event::Retrying, delta("Bonjour")]);
        check(&[], "", &[]);
        // The cut is no place between two characters of this output.
        check(&["a"], "é", &[Event::Retrying, delta("é")]);
    }
}
