//! Server-sent events, read as they come in (the HTML standard, section 9.2.6): a pure parser that is fed bytes, however they are cut.

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// The last `id` so far; empty when there was none.
    pub id: String,
    /// Its `event`; empty when it has none.
    pub name: String,
    pub data: String,
}

/// A line or an event that is larger than the reader will hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

/// What has been read of an event and of a line. It never holds more than `max_bytes` of the two.
#[derive(Debug)]
pub(super) struct Parser {
    max_bytes: usize,
    line: Vec<u8>,
    /// The byte before was a CR that ended a line: a LF after it belongs to it.
    after_cr: bool,
    /// Before the end of the first line, which may begin with a byte order mark.
    first: bool,
    id: String,
    name: String,
    data: String,
    has_data: bool,
}

impl Parser {
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            line: Vec::new(),
            after_cr: false,
            first: true,
            id: String::new(),
            name: String::new(),
            data: String::new(),
            has_data: false,
        }
    }

    /// Takes the next bytes, and adds the events that they complete. What has no blank line after it is no event yet, nor ever if the stream
    /// ends there.
    pub fn feed(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), TooLarge> {
        let mut rest = bytes;
        if let (true, Some((b'\n', after))) = (self.after_cr, rest.split_first()) {
            rest = after;
        }
        if !bytes.is_empty() {
            self.after_cr = false;
        }
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (part, ending) = rest.split_at(end);
            self.hold(part)?;
            self.end_line(events);
            rest = match ending {
                [b'\r', b'\n', after @ ..] => after,
                [b'\r'] => {
                    self.after_cr = true;
                    &[]
                }
                [_, after @ ..] => after,
                [] => &[],
            };
        }
        self.hold(rest)
    }

    fn hold(&mut self, part: &[u8]) -> Result<(), TooLarge> {
        let held = self.line.len() + self.data.len() + self.name.len() + self.id.len();
        if held.saturating_add(part.len()) > self.max_bytes {
            return Err(TooLarge);
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<Event>) {
        // A character may be cut by the network, but never by the end of a line.
        let mut line = self.line.as_slice();
        if std::mem::take(&mut self.first) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            self.line.clear();
            self.dispatch(events);
            return;
        }
        let text = String::from_utf8_lossy(line);
        let (field, value) = text.split_once(':').unwrap_or((&text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.name),
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            // Comments, `retry`, and whatever comes to be.
            _ => {}
        }
        self.line.clear();
    }

    fn dispatch(&mut self, events: &mut Vec<Event>) {
        let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        if std::mem::take(&mut self.has_data) {
            events.push(Event { id: self.id.clone(), name, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(chunks: &[&[u8]], max_bytes: usize) -> Result<Vec<Event>, TooLarge> {
        let (mut parser, mut events) = (Parser::new(max_bytes), Vec::new());
        for chunk in chunks {
            parser.feed(chunk, &mut events)?;
        }
        Ok(events)
    }

    fn event(id: &str, name: &str, data: &str) -> Event {
        Event { id: id.into(), name: name.into(), data: data.into() }
    }

    #[test]
    fn reads_what_the_standard_says() {
        let check = |text: &str, expect: &[Event]| {
            assert_eq!(read(&[text.as_bytes()], 1_000).as_deref(), Ok(expect), "{text:?}");
        };
        check("id: 1\nevent: a\ndata: {}\n\n", &[event("1", "a", "{}")]);
        check("data: a\ndata:b\ndata\n\n", &[event("", "", "a\nb\n")]);
        check("data: a\r\n\r\ndata: b\r\rdata: c\n\n", &["a", "b", "c"].map(|data| event("", "", data)));
        check(": comment\n\n:\n\nretry: 5\nother: x\n\n", &[]);
        check("id: 7\n\ndata: a\n\nid\ndata: b\n\n", &[event("7", "", "a"), event("", "", "b")]);
        check("id: a\0b\ndata:  two\n\n", &[event("", "", " two")]);
        check("event: lost\n\ndata: a\n\n", &[event("", "", "a")]);
        check("\u{feff}data: a\n\n\u{feff}data: b\n\n", &[event("", "", "a")]);
        check("data: half\n", &[]);
        check("data\n\n", &[event("", "", "")]);
    }

    #[test]
    fn characters_that_are_cut_are_put_together() {
        let text = "data: é🦀\n\n".as_bytes();
        for cut in 0..=text.len() {
            let (one, two) = text.split_at(cut);
            assert_eq!(read(&[one, two], 100).unwrap(), [event("", "", "é🦀")], "{cut}");
        }
        assert_eq!(read(&[b"data: \xff\n\n"], 100).unwrap(), [event("", "", "\u{fffd}")]);
    }

    #[test]
    fn what_is_too_large_is_not_held() {
        assert_eq!(read(&[&[b'x'; 101]], 100), Err(TooLarge));
        assert_eq!(read(&[b": ", &[b'x'; 50], &[b'x'; 50]], 100), Err(TooLarge));
        assert_eq!(read(&[b"data: 1234567890\n".repeat(10).as_slice()], 100), Err(TooLarge));
        // The bound is one of an event, not of a stream.
        assert_eq!(read(&[b"data: 1234567890\n\n".repeat(50).as_slice()], 100).unwrap().len(), 50);
        let mut parser = Parser::new(100);
        for _ in 0..1_000 {
            let _ = parser.feed(&[b'x'; 64], &mut Vec::new());
            assert!(parser.line.capacity() <= 256);
        }
    }

    /// Streams that look like some.
    fn streams() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"data: ".to_vec()),
            Just(b"id: 1".to_vec()),
            Just(b"event:x".to_vec()),
            Just(b"\n".to_vec()),
            Just(b"\r".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b":".to_vec()),
            Just("\u{feff}é🦀".as_bytes().to_vec()),
            proptest::collection::vec(any::<u8>(), 0..6),
        ];
        proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn how_a_stream_is_cut_changes_nothing(
            stream in streams(),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..20),
            max_bytes in 1_usize..400,
        ) {
            let whole = read(&[&stream], max_bytes);
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            places.extend([0, stream.len()]);
            places.sort_unstable();
            let chunks: Vec<&[u8]> = places.windows(2).map(|ends| &stream[ends[0]..ends[1]]).collect();
            prop_assert_eq!(read(&chunks, max_bytes), whole.clone());
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            prop_assert_eq!(read(&bytes, max_bytes), whole);
        }

        #[test]
        fn what_was_written_is_read(events in proptest::collection::vec(("[a-z.]{0,9}", "[^\r\n]{1,40}"), 0..9), size in 1_usize..9) {
            let write = |(seq, (name, data)): (usize, &(String, String))| format!("id: {seq}\nevent: {name}\ndata: {data}\n\n");
            let stream: String = events.iter().enumerate().map(write).collect();
            let chunks: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
            let read = read(&chunks, 10_000).unwrap();
            let expect: Vec<Event> =
                events.iter().enumerate().map(|(seq, (name, data))| event(&seq.to_string(), name, data)).collect();
            prop_assert_eq!(read, expect);
        }
    }
}
