//! Newline-delimited JSON, cut into lines as its bytes come in. Pure.
//!
//! A line ends with `\n` or `\r\n`; the last one may end with the body. Blank lines are counted and left out. What is held is never more than
//! one line at its limit and the bytes that were pushed last.

use bytes::{Bytes, BytesMut};

/// Cuts a body into lines.
#[derive(Debug)]
pub(super) struct Lines {
    max_bytes: usize,
    held: BytesMut,
    /// Bytes of `held` that hold no line break.
    searched: usize,
    /// Lines that ended so far.
    count: u32,
}

/// One line that is not blank, without its line break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// From 1, as editors count.
    pub number: u32,
    pub bytes: Bytes,
}

/// A line is longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong {
    pub number: u32,
}

impl Lines {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, held: BytesMut::new(), searched: 0, count: 0 }
    }

    /// Takes the next bytes of the body. Their lines are to be taken before more is pushed.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next line; `None` when more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<Line>, TooLong> {
        loop {
            let unsearched = self.held.get(self.searched..).unwrap_or_default();
            let Some(at) = unsearched.iter().position(|&byte| byte == b'\n') else {
                self.searched = self.held.len();
                // One byte more than allowed may be the first half of a line break.
                let is_too_long = self.held.len() > self.max_bytes.saturating_add(1);
                return if is_too_long { Err(TooLong { number: self.count.saturating_add(1) }) } else { Ok(None) };
            };
            let mut line = self.held.split_to(self.searched + at + 1);
            self.searched = 0;
            line.truncate(line.len() - 1);
            if let Some(line) = self.ended(line)? {
                return Ok(Some(line));
            }
        }
    }

    /// The last line, when the body has ended without a line break.
    pub(super) fn last(mut self) -> Result<Option<Line>, TooLong> {
        let line = self.held.split();
        if line.is_empty() { Ok(None) } else { self.ended(line) }
    }

    /// `None` for a blank line.
    fn ended(&mut self, mut line: BytesMut) -> Result<Option<Line>, TooLong> {
        self.count = self.count.saturating_add(1);
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        if line.len() > self.max_bytes {
            return Err(TooLong { number: self.count });
        }
        let is_blank = line.trim_ascii().is_empty();
        Ok((!is_blank).then(|| Line { number: self.count, bytes: line.freeze() }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All lines of a body that comes in these pieces.
    fn read(pieces: &[&[u8]], max_bytes: usize) -> Result<Vec<(u32, Vec<u8>)>, TooLong> {
        let mut lines = Lines::new(max_bytes);
        let mut found = Vec::new();
        for piece in pieces {
            lines.push(piece);
            while let Some(line) = lines.next()? {
                found.push((line.number, line.bytes.to_vec()));
            }
            assert!(lines.held.len() <= max_bytes + 1, "more than a line is held");
        }
        found.extend(lines.last()?.map(|line| (line.number, line.bytes.to_vec())));
        Ok(found)
    }

    fn check(body: &str, expect: &[(u32, &str)]) {
        let expect: Vec<_> = expect.iter().map(|(number, text)| (*number, text.as_bytes().to_vec())).collect();
        assert_eq!(read(&[body.as_bytes()], 4), Ok(expect), "{body:?}");
    }

    #[test]
    fn lines_end_with_a_break_or_with_the_body() {
        check("", &[]);
        check("\n\r\n \t\n", &[]);
        check("a", &[(1, "a")]);
        check("a\n", &[(1, "a")]);
        check("a\r\nb\r", &[(1, "a"), (2, "b")]);
        check("a\n\n\nb\n", &[(1, "a"), (4, "b")]);
        check("abcd\nabcd\r\nabcd", &[(1, "abcd"), (2, "abcd"), (3, "abcd")]);
    }

    #[test]
    fn a_line_that_is_too_long_is_named() {
        let check = |pieces: &[&str], number| {
            let pieces: Vec<_> = pieces.iter().map(|piece| piece.as_bytes()).collect();
            assert_eq!(read(&pieces, 4), Err(TooLong { number }), "{pieces:?}");
        };
        check(&["a\nabcde"], 2);
        check(&["abcde\n"], 1);
        check(&["abcde", "\n"], 1);
        check(&["\n\nabcdef"], 3);
        check(&["     "], 1);
    }

    proptest! {
        #[test]
        fn the_pieces_that_a_body_comes_in_change_nothing(
            body in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b' '), any::<u8>()], 0..200),
            cuts in proptest::collection::vec(0_usize..200, 0..20),
            max_bytes in 1_usize..40,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).chain([0, body.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(&pieces, max_bytes), read(&[&body], max_bytes));
        }
    }
}
