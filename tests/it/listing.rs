//! `GET /api/v1/runs`: an account's runs, filtered, a page at a time.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    app::{Answer, App, Mode, Shape, client},
    eventually, invariants,
    provider::{Answer as Scripted, Gate},
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn list(app: &App, front_door: usize, query: &str) -> Answer {
    let url = format!("{}/api/v1/runs?{query}", app.urls()[front_door]);
    Answer::of(client().get(url).header("x-api-key", app.key()).send().await.unwrap()).await
}

fn ids(answer: &Answer) -> Vec<String> {
    assert_eq!((answer.status, &answer.body["success"]), (200, &json!(true)), "{answer:?}");
    let runs = answer.body["runs"].as_array().unwrap();
    runs.iter().map(|run| run["runId"].as_str().unwrap().to_owned()).collect()
}

async fn runs_are_listed_newest_first_and_filtered(mode: Mode) {
    let shape = Shape { front_doors: 2, provider: "max_concurrency = 1".into(), ..Shape::of(mode) };
    let app = App::shaped(shape).await;
    app.import_greeting();
    app.import_prompt("name = \"Other\"\nmodel = \"gpt-4\"\ntemplate = \"Other.\"\n");
    let last = app.urls().len() - 1;
    assert_eq!(ids(&list(&app, 0, "").await), Vec::<String>::new());

    let mut ended = Vec::new();
    for _ in 0..3 {
        let id = app.accept_named(1).await.remove(0);
        app.ended(0, &id, PATIENCE).await;
        ended.push(id);
    }
    app.provider().push(Scripted::error(400, "no"));
    let failed = app.post(&json!({ "promptName": "Other", "priority": "batch" })).await;
    let failed = failed.body["runId"].as_str().unwrap().to_owned();
    let gate = Gate::new();
    app.provider().set_default(Scripted::text("late").held(&gate));
    let running = app.accept_named(1).await.remove(0);
    let queued = app.accept_named(1).await.remove(0);
    app.provider().wait_for_requests(5).await;
    let newest_first = [&queued, &running, &failed, &ended[2], &ended[1], &ended[0]].map(String::clone);

    // A run that is answered at once is listed when its row has been written, with others.
    eventually("its row is there", async || !ids(&list(&app, last, "state=failed").await).is_empty()).await;
    let all = list(&app, last, "limit=100").await;
    assert_eq!((ids(&all), &all.body["nextCursor"]), (newest_first.to_vec(), &Value::Null));
    let states: Vec<_> =
        all.body["runs"].as_array().unwrap().iter().map(|run| run["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["queued", "running", "failed", "succeeded", "succeeded", "succeeded"]);
    // The same object as the run's own status, but for what may be large.
    let shown = &all.body["runs"][3];
    let mut own = app.run(0, &ended[2]).await.body;
    assert!(own.as_object_mut().unwrap().remove("output").is_some());
    assert_eq!(*shown, own);

    let filtered = async |query: &str| ids(&list(&app, last, query).await);
    assert_eq!(filtered("state=succeeded").await, newest_first[3..]);
    assert_eq!(filtered("state=failed").await, [failed.as_str()]);
    assert_eq!(filtered("state=running").await, [running.as_str()]);
    assert_eq!(filtered("state=queued").await, [queued.as_str()]);
    assert_eq!(filtered("state=expired").await, Vec::<String>::new());
    assert_eq!(filtered("promptName=Other").await, [failed.as_str()]);
    assert_eq!(filtered("priority=batch&model=gpt-4").await, [failed.as_str()]);
    let created = app.run(0, &ended[1]).await.body["createdAt"].as_str().unwrap().to_owned();
    assert_eq!(filtered(&format!("createdBefore={created}")).await, [ended[0].as_str()]);
    assert_eq!(filtered(&format!("createdAfter={created}&state=succeeded")).await, newest_first[3..5]);

    // Page after page, each run once.
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = list(&app, paged.len() % app.urls().len(), &format!("limit=2{cursor}")).await;
        paged.extend(ids(&page));
        let Some(next) = page.body["nextCursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(paged, newest_first);

    for query in
        ["state=dead", "limit=0", "limit=101", "cursor=x", "createdAfter=x", "page=2", "state=failed&state=failed"]
    {
        let refused = list(&app, 0, query).await;
        assert_eq!((refused.status, &refused.body["code"]), (400, &json!("invalid_request")), "{query}: {refused:?}");
    }

    // Nobody else's.
    let stranger = app.account("stranger", &["--plan", "pro"]);
    let request = client().get(format!("{}/api/v1/runs", app.url())).header("x-api-key", stranger);
    assert_eq!(ids(&Answer::of(request.send().await.unwrap()).await), Vec::<String>::new());

    gate.open();
    app.provider().set_default(Scripted::echo());
    eventually("they have ended", async || filtered("state=succeeded").await.len() == 5).await;
    invariants::hold(&app, &newest_first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_listed_newest_first_and_filtered_embedded() {
    runs_are_listed_newest_first_and_filtered(Mode::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_listed_newest_first_and_filtered_distributed() {
    runs_are_listed_newest_first_and_filtered(Mode::Distributed).await;
}
