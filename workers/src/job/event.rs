//! What happens to a run, as its log keeps it and as those who follow it are told.

use super::{Ending, Unreadable};

/// One event of a run. Its place in the run's log is its sequence number, from 1.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The run was accepted.
    Queued,
    /// A worker makes the call with this number.
    Started { attempt: i32 },
    /// The model said more.
    Delta(String),
    /// A call failed and is made again: what was streamed before does not count.
    Retrying,
    /// The run has ended. Nothing comes after it.
    Ended(Box<Ending>),
    /// Text that the log did not keep, because it was full: the output of the ending has it.
    Skipped,
}

impl Event {
    /// The bytes that the log keeps: a letter for the kind, then what belongs to it.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Event::Queued => b"q".to_vec(),
            Event::Started { attempt } => format!("s{attempt}").into_bytes(),
            Event::Delta(text) => [b"d", text.as_bytes()].concat(),
            Event::Retrying => b"r".to_vec(),
            Event::Ended(ending) => Self::ended(&ending.encode()),
            Event::Skipped => b"x".to_vec(),
        }
    }

    /// The same for an ending that is encoded already.
    pub fn ended(ending: &[u8]) -> Vec<u8> {
        [b"e", ending].concat()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let (kind, rest) = bytes.split_first().ok_or(Unreadable(None))?;
        let text = || std::str::from_utf8(rest).map_err(|_| Unreadable(None));
        Ok(match kind {
            b'q' => Event::Queued,
            b's' => Event::Started { attempt: text()?.parse().map_err(|_| Unreadable(None))? },
            b'd' => Event::Delta(text()?.to_owned()),
            b'r' => Event::Retrying,
            b'e' => Event::Ended(Box::new(Ending::decode(rest)?)),
            b'x' => Event::Skipped,
            _ => return Err(Unreadable(None)),
        })
    }

    /// What the event takes of a buffer, near enough.
    pub fn size(&self) -> usize {
        let text = match self {
            Event::Delta(text) => text.len(),
            Event::Ended(ending) => match &ending.outcome {
                super::Outcome::Succeeded { output, .. } => output.len(),
                _ => 0,
            },
            _ => 0,
        };
        size_of::<Self>() + text
    }
}

/// An event with its place in the log of its run.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    pub seq: u64,
    pub event: Event,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Fence, Outcome, RunId, UnixMillis, WIRE_VERSION};

    #[test]
    fn events_survive_the_wire() {
        let ending = Ending {
            v: WIRE_VERSION,
            run: RunId::new(),
            fence: Fence(7),
            outcome: Outcome::Succeeded { output: "Bonjour".into(), finish_reason: None },
            model: "demo".into(),
            started_at: None,
            finished_at: UnixMillis(1),
            queue_ms: 0,
            attempt: None,
            cache: None,
        };
        for event in [
            Event::Queued,
            Event::Started { attempt: 2 },
            Event::Delta("é\n".into()),
            Event::Delta(String::new()),
            Event::Retrying,
            Event::Ended(Box::new(ending)),
            Event::Skipped,
        ] {
            assert_eq!(Event::decode(&event.encode()).unwrap(), event);
        }
    }

    #[test]
    fn what_another_version_wrote_is_refused() {
        for bytes in [&b""[..], b"?", b"s", b"sx", b"e{}", b"d\xff"] {
            assert!(Event::decode(bytes).is_err(), "{bytes:?}");
        }
    }
}
