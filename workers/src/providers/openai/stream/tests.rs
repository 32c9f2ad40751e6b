//! Streams as they come: cut anywhere, and made of anything.

use bytes::Bytes;
use futures::stream::iter;
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::{
    job::ModelRequest,
    providers::{Call, ProviderKind, ProviderSettings, transport::Patience},
};

/// More than any of the streams here has, but for those that are to be too large.
const MAX_BYTES: usize = 16 * 1024;

#[derive(Default)]
struct Heard(String);

impl DeltaSink for Heard {
    fn delta(&mut self, text: &str) {
        assert!(!text.is_empty());
        self.0.push_str(text);
    }
}

/// Reads a stream that arrives in these chunks; with what was passed on.
fn read_chunks(chunks: Vec<Vec<u8>>) -> (Read, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let minute = Duration::from_secs(60);
        let settings = ProviderSettings {
            name: "one".into(),
            kind: ProviderKind::OpenAi,
            base_url: "http://localhost".into(),
            api_key: None,
            api_key_env: None,
            attempt_timeout: minute,
            idle_timeout: minute,
            connect_timeout: minute,
            max_response_bytes: MAX_BYTES,
            demo_delay: Duration::ZERO,
            requests_per_minute: None,
            tokens_per_minute: None,
            max_concurrency: None,
        };
        let request = ModelRequest::default();
        let call = Call { upstream: "m", request: &request, stream: true, deadline: Instant::now() + minute };
        let patience = Patience::start(&settings, &call).unwrap();
        let context = Context { max_bytes: MAX_BYTES, key: None, call: &call, patience: &patience };
        let body = iter(chunks.into_iter().map(|chunk| Ok::<_, std::io::Error>(Bytes::from(chunk))));
        let response = hyper::Response::new(reqwest::Body::wrap_stream(body));
        let mut heard = Heard::default();
        let read = read(Response::from(response), &context, &mut heard).await;
        (read, heard.0)
    })
}

/// Cuts bytes at these places, as far as they are inside.
fn cut(bytes: &[u8], mut places: Vec<usize>) -> Vec<Vec<u8>> {
    places.sort_unstable();
    let (mut chunks, mut rest, mut at) = (Vec::new(), bytes, 0);
    for place in places.into_iter().filter(|&place| place < bytes.len()) {
        let (chunk, after) = rest.split_at(place - at);
        chunks.push(chunk.to_vec());
        (rest, at) = (after, place);
    }
    chunks.push(rest.to_vec());
    chunks
}

/// A stream as servers write it: comments in between, lines that end in either way, an order of fields.
fn written(pieces: &[String], crlf: bool, comments: bool) -> Vec<u8> {
    let end = if crlf { "\r\n" } else { "\n" };
    let mut text = String::new();
    for piece in pieces {
        if comments {
            text += &format!(": still here{end}{end}");
        }
        let delta = serde_json::json!({ "choices": [{ "index": 0, "delta": { "content": piece } }] });
        text += &format!("data: {delta}{end}{end}");
    }
    text += &format!(
        "data: {{\"choices\":[{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}{end}{end}data: [DONE]{end}{end}"
    );
    text.into_bytes()
}

/// Bytes that are nearly a stream, so that parsers get far with them.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just(b"data: ".to_vec()),
        Just(b"\n\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\r".to_vec()),
        Just(b"[DONE]".to_vec()),
        Just(b"event: error\n".to_vec()),
        Just(b"id: \0\n".to_vec()),
        Just(b"\xef\xbb\xbf".to_vec()),
        Just(br#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#.to_vec()),
        Just(br#"{"choices":[{"index":9,"delta":{"content":"b"},"finish_reason":"stop"}]}"#.to_vec()),
        Just(br#"{"choices":[{"delta":null}],"usage":{"prompt_tokens":-1}}"#.to_vec()),
        Just(br#"{"error":{"message":"ill","code":429}}"#.to_vec()),
        proptest::collection::vec(any::<u8>(), 0..24),
    ];
    proptest::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

fn places() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(0..2_000_usize, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_stream_may_be_cut_anywhere(
        pieces in proptest::collection::vec("[a-zé€🦀\"\\\\\n]{1,12}", 1..12),
        crlf in any::<bool>(),
        comments in any::<bool>(),
        places in places(),
    ) {
        let (read, heard) = read_chunks(cut(&written(&pieces, crlf, comments), places));
        let completion = read.unwrap();
        prop_assert_eq!(&completion.output, &pieces.concat());
        prop_assert_eq!(&completion.finish_reason, &Some("stop".to_owned()));
        prop_assert_eq!(heard, completion.output);
    }

    #[test]
    fn a_stream_that_breaks_off_is_no_completion(
        pieces in proptest::collection::vec("[a-z]{1,12}", 1..6),
        left in any::<prop::sample::Index>(),
    ) {
        let whole = written(&pieces, false, false);
        // Everything before the event that says why the model stopped.
        let end = whole.windows(13).position(|window| window == b"finish_reason").unwrap();
        let (read, heard) = read_chunks(vec![whole[..left.index(end)].to_vec()]);
        prop_assert!(read.is_err(), "{:?}", read);
        prop_assert!(pieces.concat().starts_with(&heard));
    }

    #[test]
    fn anything_else_is_an_error_or_what_was_heard(bytes in nearly(), places in places()) {
        let (read, heard) = read_chunks(cut(&bytes, places));
        if let Ok(completion) = read {
            prop_assert_eq!(heard, completion.output);
        }
    }

    #[test]
    fn what_is_too_large_is_given_up(size in MAX_BYTES + 1..3 * MAX_BYTES, places in places()) {
        let line = [b"data: ".to_vec(), vec![b'a'; size]].concat();
        let (read, heard) = read_chunks(cut(&line, places));
        prop_assert_eq!(read.map_err(|error| error.class).err(), Some(ErrorClass::Garbage));
        prop_assert!(heard.is_empty());
    }
}
