//! Requests that start no run: every 4xx of the contract, and the shape of errors on every route.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::{EMAIL_DE_BIENVENUE, assert_refused, configured, email, get, greeting, import_email, send, started};
use crate::support::app::{Answer, App, Mode};

crate::support::in_both_modes!(
    a_bad_request_is_400_and_says_what_is_wrong,
    a_bad_key_is_401,
    a_plan_or_a_model_that_is_not_allowed_is_403,
    an_unknown_prompt_is_404_in_the_contract_s_words,
    a_body_of_the_wrong_size_or_type_is_413_or_415,
    every_route_answers_in_the_same_shape,
    a_caller_s_own_limit_is_429,
    a_full_queue_is_503,
);

async fn post_text(app: &App, content_type: Option<&str>, body: impl Into<reqwest::Body>) -> Answer {
    let mut request = app.client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", app.key()).body(body);
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    Answer::of(request.send().await.unwrap()).await
}

async fn a_bad_request_is_400_and_says_what_is_wrong(mode: Mode) {
    let app = started(mode).await;
    import_email(&app);
    let check = async |body: &str, code: &str, words: &[&str]| {
        let answer = post_text(&app, Some("application/json"), body.to_owned()).await;
        assert_refused(&answer, 400, code);
        for word in words {
            assert!(answer.body["error"].as_str().unwrap().contains(word), "{word}: {answer:?}");
        }
        answer.body["details"].clone()
    };
    let details = check("{\"promptName\": \"a\",\n  oops}", "invalid_json", &["line 2", "column 3"]).await;
    assert_eq!(details, json!({ "line": 2, "column": 3 }));
    check("", "invalid_json", &["empty"]).await;
    check("[]", "invalid_request", &["object"]).await;
    check("{}", "invalid_request", &["'promptName' is required"]).await;
    check(r#"{"promptName":1,"stream":"no"}"#, "invalid_request", &["'promptName'", "'stream'", "a boolean"]).await;
    check(r#"{"promptName":"a","model":"x","temperature":1}"#, "invalid_request", &["'model'", "'temperature'"]).await;
    check(r#"{"promptName":"a","timeoutMs":3600001}"#, "invalid_request", &["3600000"]).await;
    check(r#"{"promptName":"a","cache":1}"#, "invalid_request", &["'cache' must be a boolean"]).await;
    let hook = r#"{"promptName":"a","webhookUrl":"http://example.com"}"#;
    check(hook, "invalid_request", &["'webhookUrl' must be an https URL"]).await;
    check(r#"{"promptName":"a","webhookUrl":"https://example.com"}"#, "webhook_secret_missing", &["secret"]).await;

    let missing = json!({ "promptName": EMAIL_DE_BIENVENUE, "variables": { "extra": 1 } }).to_string();
    let details = check(&missing, "missing_variables", &["nom_utilisateur", "nom_service"]).await;
    assert_eq!(details, json!({ "missing": ["nom_utilisateur", "nom_service"] }));
    let nothing = json!({ "promptName": EMAIL_DE_BIENVENUE }).to_string();
    check(&nothing, "missing_variables", &["nom_utilisateur", "nom_service"]).await;

    app.import_prompt(
        "name = \"Long\"\nmodel = \"gpt-4\"\ntemplate = \"{% for n in range(900) %}{{ text }}{% endfor %}\"\n",
    );
    let long = json!({ "promptName": "Long", "variables": { "text": "x".repeat(2048) } }).to_string();
    check(&long, "input_too_large", &["1048576 bytes"]).await;
    assert!(app.provider().requests().is_empty(), "nothing of this reaches a provider");
}

async fn a_bad_key_is_401(mode: Mode) {
    let app = started(mode).await;
    app.import_greeting();
    let post = async |headers: &[(&str, &str)]| {
        let mut request = app.client().post(format!("{}/api/v1/run", app.url())).json(&greeting());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(request.send().await.unwrap()).await
    };
    let (key, other) = (app.key(), app.new_key("acme"));
    let bearer = format!("Bearer {key}");
    // One character from a real key: its check characters are wrong.
    let damaged = format!("{}{}", &key[..key.len() - 1], if key.ends_with('0') { '1' } else { '0' });
    let refused: &[&[(&str, &str)]] = &[
        &[("x-api-key", "")],
        &[("x-api-key", "sk_votre_cle_api_ici")],
        &[("x-api-key", "not a key at all")],
        &[("x-api-key", &damaged)],
        &[("authorization", "Bearer sk_votre_cle_api_ici")],
        &[("authorization", &bearer), ("x-api-key", &other)],
        &[("x-api-key", &key), ("x-api-key", &key)],
    ];
    for headers in refused {
        let answer = post(headers).await;
        assert_refused(&answer, 401, "invalid_api_key");
        assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"));
    }
    assert_refused(&post(&[]).await, 401, "missing_api_key");
    assert_refused(&post(&[("authorization", "Basic dTpw")]).await, 401, "missing_api_key");

    for headers in [&[("x-api-key", key.as_str())][..], &[("authorization", &bearer)]] {
        assert_eq!(post(headers).await.status, 200);
    }
    assert_eq!(post(&[("authorization", &bearer), ("x-api-key", &key)]).await.status, 200);

    let made = app.cli(&["key", "create", "temporary", "--account", "acme", "--json"]).json();
    let (id, text) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert_eq!(post(&[("x-api-key", text)]).await.status, 200);
    assert_eq!(app.cli(&["key", "revoke", id]).code, 0);
    // Every process knows within a second; the rest is a slow machine's.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while post(&[("x-api-key", text)]).await.status == 200 {
        assert!(tokio::time::Instant::now() < deadline, "a revoked key still works");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_refused(&post(&[("x-api-key", text)]).await, 401, "invalid_api_key");
}

async fn a_plan_or_a_model_that_is_not_allowed_is_403(mode: Mode) {
    let app = started(mode).await;
    app.import_greeting();
    let post = async |key: &str, body: &Value| {
        let request = app.client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", key).json(body);
        Answer::of(request.send().await.unwrap()).await
    };
    assert_refused(&post(&app.free_key(), &greeting()).await, 403, "plan_required");
    assert_refused(&post(&app.expired_key(), &greeting()).await, 403, "subscription_expired");

    app.import_prompt("name = \"Free\"\nmodel = \"gpt-free\"\ntemplate = \"Hi\"\n");
    assert_refused(&post(&app.key(), &json!({ "promptName": "Free" })).await, 403, "model_not_allowed");

    let narrow = app.account("narrow", &["--plan", "pro", "--allow-model", "gpt-4-fallback"]);
    app.import_prompt_of("narrow", "name = \"Greeting\"\nmodel = \"gpt-4\"\ntemplate = \"Hi\"\n");
    assert_refused(&post(&narrow, &json!({ "promptName": "Greeting" })).await, 403, "model_not_allowed");

    app.import_prompt("name = \"Unknown model\"\nmodel = \"gpt-unknown\"\ntemplate = \"Hi\"\n");
    assert_refused(&post(&app.key(), &json!({ "promptName": "Unknown model" })).await, 500, "model_not_configured");
    assert!(app.provider().requests().is_empty());
}

async fn an_unknown_prompt_is_404_in_the_contract_s_words(mode: Mode) {
    let app = started(mode).await;
    let response =
        app.client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", app.key()).json(&email()).send();
    let response = response.await.unwrap();
    assert_eq!(response.status().as_u16(), 404);
    let text = response.text().await.unwrap();
    let contract = r#"{"success":false,"error":"Prompt 'Email de Bienvenue' not found or has no PRODUCTION version""#;
    assert!(text.starts_with(contract), "{text}");

    // A prompt of another account is as absent as one that nobody has.
    let other = app.account("other", &["--plan", "pro"]);
    app.import_prompt_of("other", "name = \"Email de Bienvenue\"\nmodel = \"gpt-4\"\ntemplate = \"Hi\"\n");
    assert_refused(&app.post(&email()).await, 404, "prompt_not_found");
    let theirs = send_run(&app, &other, &json!({ "promptName": EMAIL_DE_BIENVENUE })).await;
    assert_eq!(theirs.status, 200, "{theirs:?}");

    import_email(&app);
    let version = |version: i32| json!({ "promptName": EMAIL_DE_BIENVENUE, "version": version, "variables": email()["variables"] });
    let absent = app.post(&version(9)).await;
    assert_refused(&absent, 404, "version_not_found");
    assert_eq!(absent.body["error"], "Prompt 'Email de Bienvenue' not found or has no version 9");
    let second = app.post(&version(2)).await;
    assert_eq!((second.status, &second.body["promptVersion"]), (200, &json!(2)), "{second:?}");
}

async fn send_run(app: &App, key: &str, body: &Value) -> Answer {
    let request = app.client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", key).json(body);
    Answer::of(request.send().await.unwrap()).await
}

async fn a_body_of_the_wrong_size_or_type_is_413_or_415(mode: Mode) {
    let app = started(mode).await;
    app.import_greeting();
    let large = json!({ "promptName": "Greeting", "variables": { "name": "x".repeat(4096) } }).to_string();
    let answer = post_text(&app, Some("application/json"), large).await;
    assert_refused(&answer, 413, "body_too_large");
    assert_eq!(answer.body["details"]["maxBytes"], 4096);
    for content_type in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let answer = post_text(&app, content_type, greeting().to_string()).await;
        assert_refused(&answer, 415, "unsupported_media_type");
    }
    let answer = post_text(&app, Some("application/json; charset=UTF-8"), greeting().to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

async fn every_route_answers_in_the_same_shape(mode: Mode) {
    let app = started(mode).await;
    let key = app.key();
    for path in ["/", "/api", "/api/v1/nothing", "/api/v1/run/", "/api/v1/runs/a/b/c", "/%ff"] {
        assert_refused(&send(&app, Method::GET, path, Some(&key)).await, 404, "not_found");
        assert_refused(&send(&app, Method::POST, path, None).await, 404, "not_found");
    }
    let id = "00000000-0000-7000-8000-000000000000";
    let (run, status, cancel) = ("/api/v1/run", format!("/api/v1/runs/{id}"), format!("/api/v1/runs/{id}/cancel"));
    for (method, path, allow) in [
        (Method::GET, run, "POST"),
        (Method::DELETE, run, "POST"),
        (Method::POST, status.as_str(), "GET,HEAD"),
        (Method::GET, cancel.as_str(), "POST"),
        (Method::POST, "/healthz", "GET,HEAD"),
        (Method::PUT, "/readyz", "GET,HEAD"),
    ] {
        let answer = send(&app, method, path, Some(&key)).await;
        assert_refused(&answer, 405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some(allow), "{path}");
    }
    for path in [status.as_str(), "/api/v1/runs/1", "/api/v1/runs/%ff"] {
        assert_refused(&get(&app, path).await, 404, "run_not_found");
        assert_refused(&send(&app, Method::GET, path, None).await, 401, "missing_api_key");
    }
    assert_refused(&send(&app, Method::POST, &cancel, Some(&key)).await, 404, "run_not_found");
    assert_refused(&send(&app, Method::POST, &cancel, None).await, 401, "missing_api_key");

    let head = app.client().head(format!("{}{status}", app.url())).header("x-api-key", &key).send().await.unwrap();
    assert_eq!(head.status().as_u16(), 404);
    assert_eq!(head.bytes().await.unwrap().len(), 0);

    for path in ["/healthz", "/readyz"] {
        let answer = send(&app, Method::GET, path, None).await;
        assert_eq!((answer.status, &answer.body), (200, &json!({ "status": "ok" })));
    }

    let with_id = async |id: &str| {
        let request = app.client().get(format!("{}/healthz", app.url())).header("x-request-id", id);
        Answer::of(request.send().await.unwrap()).await.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(with_id("order-17/retry:2").await, "order-17/retry:2");
    assert_ne!(with_id("two words").await, "two words");
    assert_ne!(with_id("two words").await, with_id("two words").await);
}

async fn a_caller_s_own_limit_is_429(mode: Mode) {
    let app = configured(mode, "[limits]\naccount_requests_per_minute = 3\nkey_requests_per_minute = 2\n").await;
    app.import_greeting();
    let first = app.post(&greeting()).await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(first.header("ratelimit-policy"), Some(r#""account";q=3;w=60, "key";q=2;w=60"#));
    assert!(first.header("ratelimit").unwrap().starts_with(r#""account";r=2;t="#), "{first:?}");
    assert_eq!(app.post(&greeting()).await.status, 200);

    let limited = app.post(&greeting()).await;
    assert_refused(&limited, 429, "rate_limited");
    assert_eq!(limited.body["details"]["limit"], "key");
    assert!(limited.header("ratelimit").unwrap().contains(r#""key";r=0;t="#), "{limited:?}");
    assert!((1..=60).contains(&limited.header("retry-after").unwrap().parse::<u64>().unwrap()));

    // The account has one left, for another of its keys; then none.
    let other = app.new_key("acme");
    assert_eq!(send_run(&app, &other, &greeting()).await.status, 200);
    let limited = send_run(&app, &other, &greeting()).await;
    assert_refused(&limited, 429, "rate_limited");
    assert_eq!(limited.body["details"]["limit"], "account");
    // A refused request starts nothing, and reading is not counted.
    assert_eq!(app.provider().requests().len(), 3);
    let run = first.body["runId"].as_str().unwrap();
    assert_eq!(get(&app, &format!("/api/v1/runs/{run}")).await.status, 200);
}

async fn a_full_queue_is_503(mode: Mode) {
    use crate::support::provider::{Answer as Script, Gate};

    let app = configured(mode, "[workers]\nslots = 1\n[queue]\nmax_depth = 2\n").await;
    app.import_greeting();
    let gate = Gate::new();
    app.provider().set_default(Script::text("late").held(&gate));
    let running = app.post_async(0).await;
    app.provider().wait_for_requests(1).await;
    let waiting = [app.post_async(0).await, app.post_async(0).await];
    assert_refused(&app.post(&greeting()).await, 503, "queue_full");
    let refused = app.post_with(0, &greeting(), &[("prefer", "respond-async")]).await;
    assert_refused(&refused, 503, "queue_full");
    gate.open();
    for id in waiting.iter().chain([&running]) {
        assert_eq!(app.ended(0, id, Duration::from_secs(20)).await["state"], "succeeded");
    }
    assert_eq!(app.post(&greeting()).await.status, 200, "there is room again");
}
