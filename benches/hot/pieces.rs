//! The pure pieces that every run goes through, each as one step that can be repeated: for the wall clock (`criterion.rs`) and for
//! instruction counts (`instructions.rs`).

use std::{collections::BTreeMap, convert::Infallible, hint::black_box, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use futures::{StreamExt, stream};
use prompt_manager::{
    keys::KeyText,
    prompts::{Content, ResolvedPrompt},
};
use serde_json::{Map, Value, json};
use tokio::{runtime::Runtime, time::Instant};
use workers::{
    job::{
        AccountId, Attempt, AttemptOutcome, Ending, Fence, FrontDoorId, Job, KeyId, Lane, ModelRequest, Outcome,
        Parameters, Price, PromptId, RunId, Target, UnixMillis, Usage, WIRE_VERSION, WorkerId,
    },
    providers::{Call, ProviderKind, ProviderSettings, Unwatched, openai::OpenAi},
    queue::{
        Claim, Queue, ScopeLimits, Submission,
        embedded::{EmbeddedQueue, EmbeddedSettings},
    },
};

/// A step that does the same however often it is repeated.
pub type Step = Box<dyn FnMut() -> anyhow::Result<()>>;

/// What makes a piece ready to be repeated.
type Prepare = fn() -> anyhow::Result<Step>;

/// All pieces by their names. Each is prepared only when it is asked for.
pub const PIECES: [(&str, Prepare); 7] = [
    ("prompt_render", prompt_render),
    ("job_encode", job_encode),
    ("job_decode", job_decode),
    ("ending_round_trip", ending_round_trip),
    ("stream_read", stream_read),
    ("key_check", key_check),
    ("queue_cycle", queue_cycle),
];

fn step(step: impl FnMut() -> anyhow::Result<()> + 'static) -> anyhow::Result<Step> {
    Ok(Box::new(step))
}

/// A prompt of two texts, four variables, a loop and a condition.
fn prompt_render() -> anyhow::Result<Step> {
    let content = Content {
        system: Some("Tu rédiges des courriels brefs pour {{ nom_service }}, sur un ton {{ ton }}.".to_owned()),
        template: "Écris un courriel à {{ nom_utilisateur }} pour {{ nom_service }}.\n{% for point in points %}- {{ point.titre }} : \
                   {{ point.texte }}\n{% endfor %}{% if ton == 'vif' %}Sois bref.{% endif %}"
            .to_owned(),
        model: "demo".to_owned(),
        ..Content::default()
    };
    let prompt = ResolvedPrompt::new(PromptId::new(), "Email".to_owned(), 1, content)?;
    let points: Vec<Value> =
        (0..8).map(|number| json!({ "titre": format!("point {number}"), "texte": "quelques mots de plus" })).collect();
    let Value::Object(variables) =
        json!({ "nom_utilisateur": "Steph", "nom_service": "Prompt Manager", "ton": "vif", "points": points })
    else {
        bail!("an object was written");
    };
    step(move || {
        let variables: &Map<String, Value> = black_box(&variables);
        black_box(prompt.render(variables, 1 << 20)?);
        Ok(())
    })
}

fn job_encode() -> anyhow::Result<Step> {
    let job = job(AccountId::new());
    step(move || {
        black_box(black_box(&job).encode());
        Ok(())
    })
}

fn job_decode() -> anyhow::Result<Step> {
    let bytes = job(AccountId::new()).encode();
    step(move || {
        black_box(Job::decode(black_box(&bytes))?);
        Ok(())
    })
}

fn ending_round_trip() -> anyhow::Result<Step> {
    let ending = ending(RunId::new(), Fence(1), UnixMillis(1_790_000_000_000));
    step(move || {
        let bytes = black_box(&ending).encode();
        black_box(Ending::decode(black_box(&bytes))?);
        Ok(())
    })
}

/// A provider's stream of 100 pieces, each in a chunk of its own, as bytes that are there already.
fn stream_read() -> anyhow::Result<Step> {
    let mut events: Vec<String> = (0..100)
        .map(|number| {
            format!(r#"{{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o","choices":[{{"index":0,"delta":{{"content":"mot {number} "}},"finish_reason":null}}]}}"#)
        })
        .collect();
    events.push(r#"{"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#.to_owned());
    events.push(r#"{"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":40,"completion_tokens":200}}"#.to_owned());
    events.push("[DONE]".to_owned());
    let chunks: Vec<String> = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    // A client is built, and no connection is made.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let provider = OpenAi::new(&ProviderSettings {
        name: "mock".to_owned(),
        kind: ProviderKind::OpenAi,
        base_url: "http://127.0.0.1:9/v1".to_owned(),
        api_key: None,
        api_key_env: None,
        attempt_timeout: Duration::from_secs(3600),
        idle_timeout: Duration::from_secs(3600),
        connect_timeout: Duration::from_secs(5),
        max_response_bytes: 1 << 22,
        demo_delay: Duration::ZERO,
        requests_per_minute: None,
        tokens_per_minute: None,
        max_concurrency: None,
    })?;
    let runtime = runtime()?;
    let request = request();
    step(move || {
        let pieces = stream::iter(chunks.clone()).map(Ok::<_, Infallible>);
        let answer = http::Response::builder()
            .header("content-type", "text/event-stream")
            .body(reqwest::Body::wrap_stream(pieces))?;
        let completion = runtime.block_on(async {
            let deadline = Instant::now() + Duration::from_secs(3600);
            let call = Call { upstream: "gpt-4o", request: &request, stream: true, deadline };
            provider.read_answer(reqwest::Response::from(answer), &call, &mut Unwatched).await
        });
        let completion = completion.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        anyhow::ensure!(completion.finish_reason.as_deref() == Some("stop"), "the stream was read to its end");
        black_box(completion);
        Ok(())
    })
}

/// Characters, checksum and the hash under which the cache knows the key.
fn key_check() -> anyhow::Result<Step> {
    let text = KeyText::mint(&mut rand::rng()).expose().to_owned();
    step(move || {
        let key = KeyText::parse(black_box(&text)).context("a key that was just minted")?;
        black_box(key.digest());
        Ok(())
    })
}

/// One run through the embedded queue: in, claimed among a thousand others of 50 accounts, ended, forgotten.
fn queue_cycle() -> anyhow::Result<Step> {
    let queue = EmbeddedQueue::new(EmbeddedSettings::default());
    let (worker, front_door) = (WorkerId::new(), FrontDoorId::new());
    let scopes = [ScopeLimits::unlimited("openai"), ScopeLimits::unlimited("mistral")];
    let accounts: Vec<AccountId> = (0..50).map(|_| AccountId::new()).collect();
    let mut others = accounts.into_iter().cycle();
    let mut other = move || others.next().unwrap_or_default();
    let runtime = runtime()?;
    runtime.block_on(async {
        for _ in 0..1000 {
            enqueue(&queue, other(), None).await?;
        }
        anyhow::Ok(())
    })?;
    step(move || {
        runtime.block_on(async {
            enqueue(&queue, other(), Some(front_door)).await?;
            let claimed = queue.claim(worker, 1, &scopes).await?;
            let claim: &Claim = claimed.claims.first().context("a run to claim")?;
            queue.stash(&ending(claim.job.id, claim.fence, claim.started_at)).await?;
            queue.finish(&[(claim.job.id, claim.fence)]).await?;
            Ok(())
        })
    })
}

async fn enqueue(queue: &EmbeddedQueue, account: AccountId, reply_to: Option<FrontDoorId>) -> anyhow::Result<()> {
    let job = Job { deadline: UnixMillis::now().plus(3_600_000), ..job(account) };
    black_box(queue.enqueue(Submission { job: Arc::new(job), reply_to }, None).await?);
    Ok(())
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_time().build()?)
}

fn request() -> ModelRequest {
    ModelRequest {
        system: Some("Tu rédiges des courriels brefs et chaleureux pour Prompt Manager.".to_owned()),
        user: "Écris un courriel de bienvenue à Steph pour Prompt Manager.\nParle de :\n- prix\n- délai\n- qualité\n"
            .repeat(8),
        parameters: Parameters { temperature: Some(0.7), max_tokens: Some(400), ..Parameters::default() },
        output_schema: None,
    }
}

fn job(account: AccountId) -> Job {
    let price = Some(Price { input: 2_500_000_000, output: 10_000_000_000 });
    let target = |model: &str| Target {
        model: model.to_owned(),
        provider: "openai".to_owned(),
        upstream: model.to_owned(),
        price,
    };
    Job {
        v: WIRE_VERSION,
        id: RunId::new(),
        account,
        key: Some(KeyId::new()),
        prompt: PromptId::new(),
        prompt_name: "Email de Bienvenue".to_owned(),
        prompt_version: 3,
        lane: Lane::Interactive,
        targets: vec![target("gpt-4o"), target("gpt-4o-mini")],
        request: request(),
        stream: false,
        metadata: BTreeMap::from([("order".to_owned(), "17".to_owned()), ("client".to_owned(), "été".to_owned())]),
        created_at: UnixMillis(1_790_000_000_000),
        deadline: UnixMillis(1_790_000_030_000),
        keep_content: true,
        tokens: 700,
        repeat_streamed: false,
        webhook_url: None,
        caching: None,
    }
}

fn ending(run: RunId, fence: Fence, started_at: UnixMillis) -> Ending {
    let attempt = Attempt {
        number: 1,
        fence,
        provider: "openai".to_owned(),
        model: "gpt-4o".to_owned(),
        worker: WorkerId::new(),
        started_at,
        duration_ms: 812,
        first_token_ms: None,
        outcome: AttemptOutcome::Succeeded,
        status: Some(200),
        detail: None,
        usage: Usage { input_tokens: Some(120), output_tokens: Some(240) },
        cost_nano_usd: Some(2_700_000),
    };
    Ending {
        v: WIRE_VERSION,
        run,
        fence,
        outcome: Outcome::Succeeded {
            output: "Bonjour Steph, bienvenue chez Prompt Manager. ".repeat(20),
            finish_reason: Some("stop".to_owned()),
        },
        model: "gpt-4o".to_owned(),
        started_at: Some(started_at),
        finished_at: started_at.plus(812),
        queue_ms: 3,
        attempt: Some(attempt),
        cache: None,
    }
}
