//! The Chat Completions adapter against a scripted provider: every way in which a call can end.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use workers::{
    job::{ModelRequest, Usage},
    providers::{
        Call, CallError, Completion, DeltaSink, ErrorClass, Provider, ProviderKind, ProviderSettings, Secret,
        Unwatched, build,
    },
};

use crate::support::provider::{Act, Answer, End, Gate, Recorded, ScriptedProvider};

const KEY: &str = "sk-planted-0123456789";

fn settings(base_url: &str) -> ProviderSettings {
    ProviderSettings {
        name: "scripted".to_owned(),
        kind: ProviderKind::OpenAi,
        base_url: base_url.to_owned(),
        api_key: Some(Secret::new(KEY)),
        api_key_env: Some("OPENAI_API_KEY".to_owned()),
        attempt_timeout: Duration::from_secs(20),
        idle_timeout: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(5),
        max_response_bytes: 1 << 20,
        demo_delay: Duration::ZERO,
        requests_per_minute: None,
        tokens_per_minute: None,
        max_concurrency: None,
    }
}

fn hello() -> ModelRequest {
    ModelRequest {
        system: Some("Tu es chaleureux.".to_owned()),
        user: "Écris à Steph pour « Prompt Manager »".to_owned(),
        ..ModelRequest::default()
    }
}

async fn ask(provider: &dyn Provider, stream: bool) -> Result<Completion, CallError> {
    ask_until(provider, stream, Duration::from_secs(30)).await
}

async fn ask_until(provider: &dyn Provider, stream: bool, time: Duration) -> Result<Completion, CallError> {
    let request = hello();
    let call = Call { upstream: "gpt-4", request: &request, stream, deadline: Instant::now() + time };
    provider.call(call, &mut Unwatched).await
}

/// Asks a provider that answers in this way, and compares what the call comes to.
#[track_caller]
fn check(answer: Answer, stream: bool, expect: ErrorClass) -> impl Future<Output = CallError> {
    check_with(|_| {}, answer, stream, expect)
}

#[track_caller]
fn check_with(
    change: impl FnOnce(&mut ProviderSettings),
    answer: Answer,
    stream: bool,
    expect: ErrorClass,
) -> impl Future<Output = CallError> {
    let caller = std::panic::Location::caller();
    async move {
        let scripted = ScriptedProvider::start().await;
        scripted.push(answer);
        let mut settings = settings(&scripted.url());
        change(&mut settings);
        let error = match ask(&*build(&settings).unwrap(), stream).await {
            Err(error) => error,
            Ok(answer) => panic!("{caller}: a success, {answer:?}"),
        };
        assert_eq!(error.class, expect, "{caller}: {error:?}");
        assert!(!format!("{error:?}").contains(KEY), "{caller}: {error:?}");
        assert_eq!(scripted.requests().len(), 1, "{caller}: an adapter makes one call");
        error
    }
}

const FAILING: ErrorClass = ErrorClass::Failing { after: None };

#[tokio::test]
async fn an_answer_in_one_piece_is_read() {
    let scripted = ScriptedProvider::start().await;
    scripted.push(Answer::text("Bonjour Steph, « à toi » \u{1f600}").usage(12, 7).finish("length"));
    let answer = ask(&*build(&settings(&scripted.url())).unwrap(), false).await.unwrap();
    let expect = Completion {
        output: "Bonjour Steph, « à toi » \u{1f600}".to_owned(),
        finish_reason: Some("length".to_owned()),
        usage: Usage { input_tokens: Some(12), output_tokens: Some(7) },
        first_token: None,
    };
    assert_eq!(answer, expect);

    let request = scripted.requests().remove(0);
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/v1/chat/completions"));
    assert_eq!(request.header("authorization"), Some(format!("Bearer {KEY}").as_str()));
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert!(request.header("user-agent").unwrap().starts_with("prompt-manager/"));
    assert_eq!(request.body["messages"][1], json!({"role": "user", "content": hello().user}));
    assert_eq!(request.body.get("stream"), None);
}

struct Channel(mpsc::UnboundedSender<String>);

impl DeltaSink for Channel {
    fn delta(&mut self, text: &str) {
        let _ = self.0.send(text.to_owned());
    }
}

#[tokio::test]
async fn a_stream_is_passed_on_as_it_comes() {
    let scripted = ScriptedProvider::start().await;
    let gate = Gate::new();
    scripted.push(Answer::pieces(["Bon", "jour", " Steph"]).usage(12, 3).held_after(2, &gate));
    let provider = build(&settings(&scripted.url())).unwrap();
    let (sender, mut pieces) = mpsc::unbounded_channel();
    let call = tokio::spawn(async move {
        let request = hello();
        let deadline = Instant::now() + Duration::from_secs(30);
        let call = Call { upstream: "gpt-4", request: &request, stream: true, deadline };
        provider.call(call, &mut Channel(sender)).await
    });
    assert_eq!(pieces.recv().await.as_deref(), Some("Bon"));
    assert_eq!(pieces.recv().await.as_deref(), Some("jour"));
    // The provider holds the rest back, so these two were passed on before the answer's end.
    gate.open();
    assert_eq!(pieces.recv().await.as_deref(), Some(" Steph"));
    assert_eq!(pieces.recv().await, None);

    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.output, "Bonjour Steph");
    assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
    assert_eq!(answer.usage, Usage { input_tokens: Some(12), output_tokens: Some(3) });
    assert!(answer.first_token.is_some());
    assert_eq!(scripted.requests()[0].body["stream_options"], json!({"include_usage": true}));
}

#[tokio::test]
async fn streams_are_read_as_servers_write_them() {
    let text = |text: &str| json!({"choices": [{"index": 0, "delta": {"content": text}}]}).to_string();
    let finish = r#"{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}"#;
    let unusual = format!(
        "\u{feff}: comment\r\n\r\nretry: 10\r\nevent: message\r\ndata:{}\r\n\r\n: ping\r\n\r\ndata: {}\r\n\r\ndata: {finish}\r\n\r\ndata: [DONE]\r\n\r\n",
        text("Été, "),
        text("\u{1f600}"),
    );
    let cases = [
        // Every byte in a chunk of its own: line ends and characters are cut everywhere.
        Answer::event_stream(unusual.as_bytes().chunks(1)),
        Answer::event_stream([&unusual]),
        // A second choice is not ours, parts may be missing.
        Answer::event_stream([
            format!("data: {}\n\n", r#"{"choices": [], "prompt_filter_results": []}"#),
            format!("data: {}\n\n", r#"{"choices": [{"index": 1, "delta": {"content": "no"}}]}"#),
            format!(
                "data: {}\n\n",
                r#"{"choices": [{"delta": {"content": "Été, "}, "finish_reason": null}], "usage": null}"#
            ),
            format!(
                "data: {}\n\n",
                r#"{"choices": [{"index": 0, "delta": {"content": "😀"}, "finish_reason": "stop"}]}"#
            ),
        ]),
        // The whole instead of a stream.
        Answer::status(200).json(&json!({"choices": [{"message": {"content": "Été, 😀"}, "finish_reason": "stop"}]})),
    ];
    for (number, answer) in cases.into_iter().enumerate() {
        let scripted = ScriptedProvider::start().await;
        scripted.push(answer);
        let (sender, mut pieces) = mpsc::unbounded_channel();
        let request = hello();
        let deadline = Instant::now() + Duration::from_secs(30);
        let call = Call { upstream: "gpt-4", request: &request, stream: true, deadline };
        let answer = build(&settings(&scripted.url())).unwrap().call(call, &mut Channel(sender)).await;
        let answer = answer.unwrap_or_else(|error| panic!("case {number}: {error:?}"));
        assert_eq!(answer.output, "Été, 😀", "case {number}");
        assert_eq!(answer.finish_reason.as_deref(), Some("stop"), "case {number}");
        assert_eq!(answer.usage, Usage::default(), "case {number}");
        let mut passed_on = String::new();
        while let Some(piece) = pieces.recv().await {
            passed_on += &piece;
        }
        assert_eq!(passed_on, answer.output, "case {number}");
    }
}

#[tokio::test]
async fn a_stream_has_ended_only_when_it_says_so() {
    let scripted = ScriptedProvider::start().await;
    let provider = build(&settings(&scripted.url())).unwrap();
    scripted.push(Answer::text("Bonjour").without_done());
    assert_eq!(ask(&*provider, true).await.unwrap().output, "Bonjour", "a finish reason and a clean end");
    scripted.push(Answer::text("Bonjour").without_finish());
    assert_eq!(ask(&*provider, true).await.unwrap().finish_reason, None, "[DONE]");

    let truncated = ErrorClass::Truncated;
    let begun = || Answer::text("Bonjour Steph");
    let error = check(begun().without_finish().without_done(), true, truncated.clone()).await;
    assert_eq!(error.status, Some(200));
    assert!(error.first_token.is_some());
    check(begun().then_after(1, Act::Close), true, truncated.clone()).await;
    check(begun().then_after(2, Act::Close), true, truncated.clone()).await;
    check(begun().then_after(0, Act::Close), true, truncated.clone()).await;
    check(Answer::event_stream::<&str>([]), true, truncated.clone()).await;
    // The end is in sight, and then the connection breaks.
    let finish = "data: {\"choices\": [{\"delta\": {\"content\": \"x\"}, \"finish_reason\": \"stop\"}]}\n\n";
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 1000\r\n\r\n";
    let acts = [Act::Send(format!("{head}{finish}").into_bytes()), Act::Close];
    check(Answer::acts(acts), true, truncated).await;
}

#[tokio::test]
async fn what_was_counted_before_a_stream_broke_is_kept() {
    let usage = "data: {\"choices\": [{\"delta\": {\"content\": \"x\"}}], \"usage\": {\"prompt_tokens\": 9, \"completion_tokens\": 1}}\n\n";
    let error = check(Answer::event_stream([usage]), true, ErrorClass::Truncated).await;
    assert_eq!(error.usage, Usage { input_tokens: Some(9), output_tokens: Some(1) });
}

#[tokio::test]
async fn an_error_inside_an_answer_is_an_error() {
    let event = |error: Value| {
        let begun = json!({"choices": [{"delta": {"content": "Bon"}}]});
        Answer::event_stream([format!("data: {begun}\n\ndata: {}\n\ndata: [DONE]\n\n", json!({"error": error}))])
    };
    check(event(json!({"message": "The server had an error", "type": "server_error"})), true, FAILING).await;
    check(event(json!({"message": "Provider returned error", "code": 502})), true, FAILING).await;
    let limited = ErrorClass::Limited { after: Some(Duration::from_millis(1_500)) };
    check(event(json!({"message": "Try again in 1.5s", "code": "rate_limit_exceeded"})), true, limited).await;
    let told = check(event(json!({"message": format!("bad key {KEY}"), "code": 401})), true, ErrorClass::Unauthorized);
    assert_eq!(told.await.detail, "error in the answer: bad key [secret]");
    let whole = Answer::status(200).json(&json!({"error": {"message": "overloaded", "code": 529}}));
    check(whole, false, FAILING).await;
}

#[tokio::test]
async fn each_status_ends_as_its_class() {
    for status in [401, 403] {
        check(Answer::error(status, &format!("Incorrect key {KEY}")), false, ErrorClass::Unauthorized).await;
    }
    for status in [400, 402, 404, 413, 422] {
        check(Answer::error(status, "no"), true, ErrorClass::Rejected).await;
    }
    for status in [408, 409, 425, 500, 502, 503, 529] {
        check(Answer::error(status, "ill"), false, FAILING).await;
    }
    for status in [301, 307, 308] {
        let redirect = Answer::status(status).header("location", "http://127.0.0.1:1/elsewhere");
        let error = check(redirect, false, ErrorClass::Rejected).await;
        assert!(error.detail.contains("base_url"), "{error:?}");
    }
    let quota = json!({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}});
    let error = check(Answer::status(429).json(&quota), false, ErrorClass::Rejected).await;
    assert_eq!(error.status, Some(429));
    assert_eq!(error.detail, "429 Too Many Requests: You exceeded your current quota (insufficient_quota)");
}

#[tokio::test]
async fn a_limit_says_when_to_come_back() {
    let limited = |millis| ErrorClass::Limited { after: Some(Duration::from_millis(millis)) };
    let error = |message| Answer::error(429, message);
    check(error("slow down"), false, ErrorClass::Limited { after: None }).await;
    check(Answer::limited(7), false, limited(7_000)).await;
    check(error("").header("retry-after-ms", "250").header("retry-after", "1"), false, limited(250)).await;
    check(error("Please try again in 1.2s."), false, limited(1_200)).await;
    check(error("").header("x-ratelimit-reset-tokens", "6s"), false, limited(6_000)).await;
    let date = "Wed, 21 Oct 2015 07:28:09 GMT";
    let dated = error("").header("date", "Wed, 21 Oct 2015 07:28:00 GMT").header("retry-after", date);
    check(dated, false, limited(9_000)).await;
    check(error("").header("retry-after", "99999999999"), false, limited(600_000)).await;
    let ill = Answer::error(503, "overloaded").header("retry-after", "2");
    check(ill, true, ErrorClass::Failing { after: Some(Duration::from_secs(2)) }).await;
}

#[tokio::test]
async fn nonsense_is_garbage() {
    let garbage = || ErrorClass::Garbage;
    for stream in [false, true] {
        check(Answer::garbage(), stream, garbage()).await;
        let error = check(Answer::html(), stream, garbage()).await;
        assert!(error.detail.contains("text/html"), "{error:?}");
        check(Answer::status(200).json(&json!({"choices": []})), stream, garbage()).await;
        check(Answer::status(200).json(&json!({"hello": "world"})), stream, garbage()).await;
        check(Answer::status(200).json(&json!([1, 2])), stream, garbage()).await;
        check(Answer::not_http(), stream, garbage()).await;
    }
    check(Answer::event_stream(["data: }{\n\n"]), true, garbage()).await;
    // The parser quotes what it did not expect.
    let quoted = json!({"choices": KEY.to_owned() + &"x".repeat(5_000)});
    for answer in [Answer::status(200).json(&quoted), Answer::event_stream([format!("data: {quoted}\n\n")])] {
        let error = check(answer, true, garbage()).await;
        assert!(error.detail.len() < 500, "{error:?}");
    }
    check(Answer::event_stream([b"data: \xff\xfe\n\n"]), true, garbage()).await;
    check(Answer::event_stream(["data: [DONE]\n\n"]), true, garbage()).await;
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_not_read() {
    let small = |settings: &mut ProviderSettings| settings.max_response_bytes = 10_000;
    check_with(small, Answer::huge(20_000), false, ErrorClass::Garbage).await;
    check_with(small, Answer::text(&"x".repeat(20_000)), false, ErrorClass::Garbage).await;
    check_with(small, Answer::text(&"mot ".repeat(5_000)), true, ErrorClass::Garbage).await;
    check_with(small, Answer::event_stream([format!("data: {}", "x".repeat(20_000))]), true, ErrorClass::Garbage).await;
    // Of an error only the beginning is read; its status says what to do.
    check(Answer::status(500).body("text/plain", vec![b'x'; 1 << 20]), false, FAILING).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_truncated() {
    for stream in [false, true] {
        check(Answer::cut_short(), stream, ErrorClass::Truncated).await;
        check(Answer::cut_chunks(), stream, ErrorClass::Truncated).await;
        check(Answer::reset_mid_body(), stream, ErrorClass::Truncated).await;
    }
    // Without a length, only the JSON tells that the end is missing.
    let unframed =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{\"choices\": [{\"mess";
    check(Answer::acts([Act::Send(unframed.to_vec()), Act::Close]), false, ErrorClass::Truncated).await;
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_unreachable() {
    check(Answer::reset(), false, ErrorClass::Unreachable).await;
    check(Answer::acts([Act::Close]), true, ErrorClass::Unreachable).await;

    let scripted = ScriptedProvider::start().await;
    let settings = settings(&scripted.url());
    drop(scripted);
    let error = ask(&*build(&settings).unwrap(), false).await.unwrap_err();
    assert_eq!((error.class, error.status), (ErrorClass::Unreachable, None));
    assert!(error.detail.contains("refused"), "{}", error.detail);
}

#[tokio::test]
async fn silence_ends_a_call() {
    let attempt = |settings: &mut ProviderSettings| settings.attempt_timeout = Duration::from_millis(500);
    let idle = |settings: &mut ProviderSettings| settings.idle_timeout = Duration::from_millis(500);
    for stream in [false, true] {
        let error = check_with(attempt, Answer::hang(), stream, ErrorClass::Timeout).await;
        assert_eq!(error.status, None);
        let error = check_with(idle, Answer::hang_mid_body(), stream, ErrorClass::Timeout).await;
        assert!(error.detail.contains("stopped for 500ms"), "{error:?}");
        check_with(attempt, Answer::hang_mid_body(), stream, ErrorClass::Timeout).await;
    }
    check_with(idle, Answer::text("Bonjour Steph").then_after(1, Act::Hang), true, ErrorClass::Timeout).await;
    // A stream that is never silent and never ends.
    let error = check_with(attempt, Answer::drip(Duration::from_millis(20)), true, ErrorClass::Timeout).await;
    assert!(error.detail.contains("within 500ms"), "{error:?}");
}

#[tokio::test]
async fn comments_keep_a_stream_alive() {
    let scripted = ScriptedProvider::start().await;
    let text =
        "data: {\"choices\": [{\"delta\": {\"content\": \"x\"}, \"finish_reason\": \"stop\"}]}\n\ndata: [DONE]\n\n";
    let mut acts =
        vec![Act::Send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".to_vec())];
    for _ in 0..8 {
        acts.extend([Act::Wait(Duration::from_millis(300)), Act::Send(b": PROCESSING\n\n".to_vec())]);
    }
    acts.extend([Act::Send(text.as_bytes().to_vec()), Act::Close]);
    scripted.push(Answer::acts(acts));
    let settings = ProviderSettings { idle_timeout: Duration::from_secs(2), ..settings(&scripted.url()) };
    assert_eq!(ask(&*build(&settings).unwrap(), true).await.unwrap().output, "x");
}

#[tokio::test]
async fn no_call_outlives_its_run() {
    let scripted = ScriptedProvider::start().await;
    // No other limit of the call comes before the run's.
    let hour = Duration::from_secs(3_600);
    let settings = ProviderSettings { attempt_timeout: hour, idle_timeout: hour, ..settings(&scripted.url()) };
    let provider = build(&settings).unwrap();
    for answer in [Answer::hang(), Answer::hang_mid_body(), Answer::text("a b").then_after(1, Act::Hang)] {
        scripted.push(answer);
        let call = ask_until(&*provider, true, Duration::from_millis(500));
        let error = tokio::time::timeout(Duration::from_secs(20), call).await.unwrap().unwrap_err();
        assert_eq!(error.class, ErrorClass::Expired, "{error:?}");
    }
    let error = ask_until(&*provider, true, Duration::ZERO).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Expired);
    assert_eq!(scripted.requests().len(), 3, "a run whose time is over is not sent");
    scripted.wait_until("all three to be hung up on", |all| all.iter().all(|request| request.hung_up())).await;
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection() {
    let scripted = ScriptedProvider::start().await;
    let provider = build(&settings(&scripted.url())).unwrap();
    let answers = [Answer::hang(), Answer::hang_mid_body(), Answer::text("a b c").then_after(2, Act::Hang)];
    for (number, answer) in answers.into_iter().enumerate() {
        scripted.push(answer);
        let provider: Arc<dyn Provider> = provider.clone();
        let call = tokio::spawn(async move { ask(&*provider, true).await });
        scripted.wait_for_requests(number + 1).await;
        assert_eq!(scripted.requests()[number].end, None);
        call.abort();
        scripted.wait_until("the client to hang up", |all| all[number].hung_up()).await;
    }
    assert_eq!(scripted.concurrency(), 0);
}

#[tokio::test]
async fn connections_are_used_again() {
    let scripted = ScriptedProvider::start().await;
    let provider = build(&settings(&scripted.url())).unwrap();
    for number in 0..20 {
        match number % 4 {
            // An error is no reason to connect anew.
            3 => assert!({
                scripted.push(Answer::limited(1));
                ask(&*provider, false).await.is_err()
            }),
            _ => assert!(ask(&*provider, number % 2 == 0).await.is_ok()),
        }
    }
    assert_eq!((scripted.requests().len(), scripted.connections()), (20, 1));
}

#[tokio::test]
async fn calls_do_not_wait_for_each_other() {
    let scripted = ScriptedProvider::start().await;
    let (gate, last) = (Gate::new(), Gate::new());
    scripted.set_default(Answer::text("for anybody").held(&gate));
    scripted.set_for_model("gpt-4", Answer::echo().held(&gate));
    scripted.push_for("gpt-4", Answer::text("first").held(&last));
    let provider = build(&settings(&scripted.url())).unwrap();
    let ask_one = async || ask(&*provider, true).await.unwrap().output;
    let others = async {
        scripted.wait_for_requests(1).await;
        let others = futures::future::join_all((0..9).map(|_| ask_one()));
        let release = async {
            scripted.wait_for_requests(10).await;
            gate.open();
        };
        let (others, ()) = tokio::join!(others, release);
        assert!(others.iter().all(|output| *output == hello().user), "{others:?}");
        let sent = |requests: &[Recorded]| requests.iter().filter(|request| request.end == Some(End::Sent)).count();
        scripted.wait_until("nine answers", |requests| sent(requests) == 9).await;
        assert_eq!((scripted.max_concurrency(), scripted.concurrency()), (10, 1));
        last.open();
    };
    let (first, ()) = tokio::join!(ask_one(), others);
    assert_eq!(first, "first");
    // The same port again, for tests that take a provider away. Its connections are gone, so they are made anew.
    let url = scripted.url();
    drop(scripted);
    let scripted = ScriptedProvider::start_at(&url).await;
    let answer = ask(&*build(&settings(&url)).unwrap(), true).await.unwrap();
    assert_eq!((answer.output, scripted.requests().len()), (hello().user, 1));
}

#[tokio::test]
async fn azure_is_called_by_its_url_and_its_header() {
    let scripted = ScriptedProvider::start().await;
    let base_url = scripted.url().replace("/v1", "/openai/deployments/my-gpt?api-version=2024-10-21");
    let settings = ProviderSettings { kind: ProviderKind::AzureOpenAi, ..settings(&base_url) };
    ask(&*build(&settings).unwrap(), false).await.unwrap();
    let request = scripted.requests().remove(0);
    assert_eq!(request.target, "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21");
    assert_eq!((request.header("api-key"), request.header("authorization")), (Some(KEY), None));
}

#[tokio::test]
async fn a_key_is_needed_only_where_one_is_named() {
    let scripted = ScriptedProvider::start().await;
    for key in [None, Some(Secret::new("")), Some(Secret::new(" \n"))] {
        let settings = ProviderSettings { api_key: key, ..settings(&scripted.url()) };
        let error = ask(&*build(&settings).unwrap(), false).await.unwrap_err();
        assert_eq!(error, CallError::new(ErrorClass::Unauthorized, "no API key: set OPENAI_API_KEY"));
    }
    let settings = settings(&scripted.url());
    let broken = ProviderSettings { api_key: Some(Secret::new("sk-a\nb")), ..settings.clone() };
    let error = ask(&*build(&broken).unwrap(), false).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Unauthorized);
    assert!(scripted.requests().is_empty(), "nothing is sent without a key");

    // A local server wants none; a key from a file ends in a line break.
    let local = ProviderSettings { api_key: None, api_key_env: None, ..settings.clone() };
    ask(&*build(&local).unwrap(), false).await.unwrap();
    let filed = ProviderSettings { api_key: Some(Secret::new(format!("{KEY}\n"))), ..settings };
    ask(&*build(&filed).unwrap(), false).await.unwrap();
    let sent: Vec<Option<String>> =
        scripted.requests().iter().map(|request| request.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [None, Some(format!("Bearer {KEY}"))]);
}
