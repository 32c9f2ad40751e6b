//! What of a streamed text is on stdout, and what is still to be written there: pure decisions.
//!
//! A call that broke off is made again, and its text begins anew. A terminal can be told so. What went into a pipe or a file cannot be taken
//! back: the repetition is followed silently as far as it says the same, and goes on from there. When it says something else, nothing more is
//! written until the end, and the whole text then comes after what does not count.

/// What is on stdout of one run.
#[derive(Debug)]
pub(super) struct Transcript {
    /// Somebody reads along and can be told that the text starts over.
    starts_over: bool,
    /// What is on stdout since the text last started over.
    shown: String,
    place: Place,
    seq: u64,
}

/// Where the text that comes stands to what is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At its end.
    Live,
    /// It was the same so far, up to this byte.
    Repeating(usize),
    /// It is something else, or parts of it are missing. The end has it all.
    Held,
}

/// What becomes of the text when a call is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeated {
    /// Nothing was shown.
    Unseen,
    /// What was shown does not count; new text follows.
    StartsOver,
    /// What was shown cannot be taken back.
    Stays,
}

/// What is still to be written of a whole output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remainder<'a> {
    Rest(&'a str),
    /// What was shown is something else.
    Whole(&'a str),
}

impl Transcript {
    pub fn new(starts_over: bool) -> Self {
        Self { starts_over, shown: String::new(), place: Place::Live, seq: 0 }
    }

    pub fn starts_over(&self) -> bool {
        self.starts_over
    }

    /// The number of the last event: a broken stream goes on after it.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Notes an event's number. Numbers that are missing are text that the log did not keep.
    pub fn event(&mut self, seq: u64) {
        if seq != self.seq.saturating_add(1) && self.seq != 0 {
            self.place = Place::Held;
        }
        self.seq = seq;
    }

    /// What of more text is to be written now.
    pub fn delta<'a>(&mut self, delta: &'a str) -> &'a str {
        let new = match self.place {
            Place::Live => delta,
            Place::Held => "",
            Place::Repeating(at) => {
                let ahead = self.shown.get(at..).unwrap_or_default();
                if let Some(new) = delta.strip_prefix(ahead) {
                    self.place = Place::Live;
                    new
                } else if ahead.starts_with(delta) {
                    self.place = Place::Repeating(at + delta.len());
                    ""
                } else {
                    self.place = Place::Held;
                    ""
                }
            }
        };
        self.shown.push_str(new);
        new
    }

    /// The call is made again, and its text comes from the beginning.
    pub fn retrying(&mut self) -> Repeated {
        if self.shown.is_empty() {
            self.place = Place::Live;
            Repeated::Unseen
        } else if self.starts_over {
            self.shown.clear();
            self.place = Place::Live;
            Repeated::StartsOver
        } else {
            self.place = Place::Repeating(0);
            Repeated::Stays
        }
    }

    /// What the whole output adds.
    pub fn completed<'a>(&self, output: &'a str) -> Remainder<'a> {
        output.strip_prefix(self.shown.as_str()).map_or(Remainder::Whole(output), Remainder::Rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Follows a run whose calls say these pieces, to the end of the last one; answers with what was written, and what was missing.
    fn follow(starts_over: bool, calls: &[&[&str]]) -> (String, String, bool) {
        let (mut transcript, mut written, mut seq) = (Transcript::new(starts_over), String::new(), 0);
        for (number, call) in calls.iter().enumerate() {
            seq += 1;
            transcript.event(seq);
            if number > 0 && transcript.retrying() == Repeated::StartsOver {
                written.push('|');
            }
            for piece in *call {
                seq += 1;
                transcript.event(seq);
                written.push_str(transcript.delta(piece));
            }
        }
        let output = calls.last().unwrap().concat();
        match transcript.completed(&output) {
            Remainder::Rest(rest) => (written, rest.to_owned(), true),
            Remainder::Whole(whole) => (written, whole.to_owned(), false),
        }
    }

    #[test]
    fn text_is_written_as_it_comes() {
        assert_eq!(follow(false, &[&["one ", "two"]]), ("one two".into(), String::new(), true));
        // A run that was not started as a stream has its output only.
        let transcript = Transcript::new(false);
        assert_eq!(transcript.completed("all"), Remainder::Rest("all"));
    }

    #[test]
    fn a_terminal_starts_over() {
        assert_eq!(follow(true, &[&["one "], &["eins"]]), ("one |eins".into(), String::new(), true));
        assert_eq!(follow(true, &[&[], &["eins"]]), ("eins".into(), String::new(), true));
    }

    #[test]
    fn what_is_in_a_pipe_is_continued_or_held() {
        let same: &[&[&str]] = &[&["one ", "tw"], &["on", "e two", " three"]];
        assert_eq!(follow(false, same), ("one two three".into(), String::new(), true));
        assert_eq!(follow(false, &[&["one "], &["o", "ne ", "two"]]), ("one two".into(), String::new(), true));
        assert_eq!(follow(false, &[&["one "], &["on", "ly"]]), ("one ".into(), "only".into(), false));
        assert_eq!(follow(false, &[&["one "], &["eins"], &["one two"]]), ("one two".into(), String::new(), true));
        assert_eq!(follow(false, &[&["one "], &["on"]]), ("one ".into(), "on".into(), false));
    }

    #[test]
    fn text_after_a_gap_waits_for_the_end() {
        let mut transcript = Transcript::new(true);
        // Whoever begins in the middle misses nothing that it knows of.
        transcript.event(5);
        assert_eq!(transcript.delta("one "), "one ");
        transcript.event(8);
        assert_eq!(transcript.delta("three"), "");
        assert_eq!(transcript.completed("one two three"), Remainder::Rest("two three"));
        assert_eq!(transcript.retrying(), Repeated::StartsOver);
        assert_eq!(transcript.delta("new"), "new");
    }

    proptest! {
        #[test]
        fn a_pipe_has_the_output_or_it_is_known_not_to(calls in proptest::collection::vec(proptest::collection::vec("[aé]{0,3}", 0..4), 1..4)) {
            let calls: Vec<Vec<&str>> = calls.iter().map(|call| call.iter().map(String::as_str).collect()).collect();
            let calls: Vec<&[&str]> = calls.iter().map(Vec::as_slice).collect();
            let output = calls.last().unwrap().concat();
            let (written, missing, fits) = follow(false, &calls);
            if fits {
                prop_assert_eq!(written + &missing, output);
            } else {
                prop_assert_eq!(missing, output.clone());
                prop_assert!(!output.starts_with(&written));
            }
        }
    }
}
