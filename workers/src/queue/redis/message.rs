//! What is published to a front door: all that one script tells it, in the order in which it happened.
//!
//! It is the ending itself when nothing else is told, and otherwise what `cmsgpack.pack` makes of what `news_for` in `common.lua` has gathered: an array of [MessagePack](https://msgpack.org), of texts and of whole
//! numbers that are not negative.

use super::wire::parse;
use crate::{
    job::{Ending, Event, Logged},
    queue::Reply,
};

/// Adds what a message tells: endings, and events with their run and their place. `None` when a part of it cannot be read; the others are added.
pub(super) fn add_replies(message: &[u8], replies: &mut Vec<Reply>) -> Option<()> {
    // An ending that is told alone is the message. It is a short array as well, and begins with the number of its version (`job/wire.rs`).
    if let [0x90..=0x9f, ..=0x7f, ..] = message {
        replies.push(ended(message)?);
        return Some(());
    }
    let fields = fields(message)?;
    let (mut left, mut all) = (fields.as_slice(), Some(()));
    loop {
        let reply;
        (reply, left) = match left {
            [] => return all,
            [Field::Text(b"ending"), Field::Text(ending), left @ ..] => (ended(ending), left),
            [
                Field::Text(b"run"),
                Field::Text(run),
                Field::Text(b"seq"),
                Field::Number(seq),
                Field::Text(b"event"),
                Field::Text(event),
                left @ ..,
            ] => (happened(run, *seq, event), left),
            _ => return None,
        };
        match reply {
            Some(reply) => replies.push(reply),
            None => all = None,
        }
    }
}

fn ended(ending: &[u8]) -> Option<Reply> {
    Some(Reply::Ended(Box::new(Ending::decode(ending).ok()?)))
}

fn happened(run: &[u8], seq: u64, event: &[u8]) -> Option<Reply> {
    Some(Reply::Event(parse(run).ok()?, Logged { seq, event: Event::decode(event).ok()? }))
}

#[derive(Debug, PartialEq)]
enum Field<'a> {
    Text(&'a [u8]),
    Number(u64),
}

/// Reads an array to its last byte.
fn fields(message: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut left = Left(message);
    let length = match left.byte()? {
        length @ 0x90..=0x9f => u64::from(length & 0xf),
        0xdc => left.number(2)?,
        0xdd => left.number(4)?,
        _ => return None,
    };
    let fields = (0..length).map(|_| left.field()).collect::<Option<Vec<_>>>()?;
    left.0.is_empty().then_some(fields)
}

/// What has not been read yet.
struct Left<'a>(&'a [u8]);

impl<'a> Left<'a> {
    fn field(&mut self) -> Option<Field<'a>> {
        Some(match self.byte()? {
            number @ ..=0x7f => Field::Number(number.into()),
            0xcc => Field::Number(self.number(1)?),
            0xcd => Field::Number(self.number(2)?),
            0xce => Field::Number(self.number(4)?),
            0xcf => Field::Number(self.number(8)?),
            length @ 0xa0..=0xbf => Field::Text(self.bytes((length & 0x1f).into())?),
            0xd9 => self.text(1)?,
            0xda => self.text(2)?,
            0xdb => self.text(4)?,
            _ => return None,
        })
    }

    /// A text whose length takes so many bytes.
    fn text(&mut self, length: usize) -> Option<Field<'a>> {
        let length = self.number(length)?;
        Some(Field::Text(self.bytes(usize::try_from(length).ok()?)?))
    }

    fn number(&mut self, bytes: usize) -> Option<u64> {
        Some(self.bytes(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, left) = self.0.split_at_checked(length)?;
        self.0 = left;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the MessagePack specification writes them.
    #[test]
    fn texts_and_numbers_of_all_sizes_are_read() {
        let check = |bytes: &[u8], expect: Field<'_>| {
            let message = [&[0x91], bytes].concat();
            assert_eq!(fields(&message), Some(vec![expect]));
            for end in 0..message.len() {
                assert_eq!(fields(&message[..end]), None, "{end} bytes of {message:x?}");
            }
            assert_eq!(fields(&[&message[..], &[0]].concat()), None, "more than {message:x?}");
        };
        check(&[0x7f], Field::Number(127));
        check(&[0xcc, 0x80], Field::Number(128));
        check(&[0xcd, 1, 2], Field::Number(0x102));
        check(&[0xce, 1, 2, 3, 4], Field::Number(0x1020304));
        check(&[0xcf, 1, 2, 3, 4, 5, 6, 7, 8], Field::Number(0x102030405060708));
        check(&[0xa0], Field::Text(b""));
        check(&[0xa2, 0, 0xff], Field::Text(&[0, 0xff]));
        check(&[0xd9, 1, 7], Field::Text(&[7]));
        check(&[0xda, 0, 1, 7], Field::Text(&[7]));
        check(&[0xdb, 0, 0, 0, 1, 7], Field::Text(&[7]));
    }

    #[test]
    fn an_array_says_how_long_it_is() {
        for message in [&[0x92, 1, 2][..], &[0xdc, 0, 2, 1, 2], &[0xdd, 0, 0, 0, 2, 1, 2]] {
            assert_eq!(fields(message), Some(vec![Field::Number(1), Field::Number(2)]));
        }
        assert_eq!(fields(&[0xdd, 0xff, 0xff, 0xff, 0xff]), None, "nothing is set aside for what is not there");
    }

    #[test]
    fn what_another_version_wrote_hides_only_itself() {
        let run = crate::job::RunId::new();
        let text = |text: &str| [&[0xd9, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        let event = |event: &str| {
            let fields = [text("run"), text(&run.to_string()), text("seq"), vec![3], text("event"), text(event)];
            fields.concat()
        };
        let check = |parts: &[Vec<u8>], length: u8, expect: (Option<()>, usize)| {
            let mut replies = Vec::new();
            let read = add_replies(&[&[0x90 | length], &parts.concat()[..]].concat(), &mut replies);
            assert_eq!((read, replies.len()), expect);
            assert!(replies.iter().all(|reply| matches!(reply, Reply::Event(of, told) if *of == run && told.seq == 3)));
        };
        check(&[], 0, (Some(()), 0));
        check(&[event("r")], 6, (Some(()), 1));
        check(&[event("?"), event("r")], 12, (None, 1));
        check(&[event("r"), text("ending"), text("{}"), event("r")], 14, (None, 2));
        // What an unknown word is followed by is not known.
        check(&[event("r"), text("word"), text("event")], 8, (None, 1));
    }
}
