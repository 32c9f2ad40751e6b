//! An account's monthly budget, as its callers and the operator meet it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    accounts::SOON,
    support::{
        app::{Answer, App, Mode, client},
        provider,
    },
};

const GREETING: &str = "name = \"Greeting\"\nmodel = \"gpt-4\"\ntemplate = \"Greet {{ name }}.\"\n";
/// What one greeting costs: 10 tokens of input at 2.5 USD a million, 5 of output at 10 USD.
const COST: &str = "0.000075";

async fn greet(app: &App, key: &str) -> Answer {
    post(app, key, &json!({ "promptName": "Greeting", "variables": { "name": "Ada" } })).await
}

async fn post(app: &App, key: &str, body: &Value) -> Answer {
    let request = client().post(format!("{}/api/v1/run", app.url())).header("x-api-key", key).json(body);
    Answer::of(request.send().await.unwrap()).await
}

/// Greets until that is answered with a status, and says how long it took.
async fn greet_until(app: &App, key: &str, status: u16) -> (Duration, Answer) {
    let started = Instant::now();
    loop {
        let answer = greet(app, key).await;
        if answer.status == status {
            return (started.elapsed(), answer);
        }
        assert!(matches!(answer.status, 200 | 402), "{answer:?}");
        assert!(started.elapsed() < Duration::from_secs(20), "never {status}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn set_plan(app: &App, budget: &[&str]) -> Value {
    let said = app.cli(&[&["account", "set-plan", "acme", "--json"], budget].concat());
    assert_eq!(said.code, 0, "{said:?}");
    said.json()["monthlyBudgetUsd"].clone()
}

async fn a_spent_budget_refuses_new_runs(mode: Mode) {
    let mut app = App::start(mode).await;
    let (acme, other) = (app.key(), app.account("other", &["--plan", "pro", "--monthly-budget-usd", "5.00"]));
    for account in ["acme", "other"] {
        app.import_prompt_of(account, GREETING);
    }
    app.provider().set_default(provider::Answer::text("Bonjour").usage(10, 5));
    assert_eq!(set_plan(&app, &["--monthly-budget-usd", COST]), json!(0.000075));

    // The first run is answered, and spends it all.
    let first = greet(&app, &acme).await;
    assert_eq!((first.status, &first.body["usage"]["costUsd"]), (200, &json!(0.000075)), "{first:?}");
    let (took, refused) = greet_until(&app, &acme, 402).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    let calls = app.provider().requests().len();
    assert_eq!((&refused.body["success"], &refused.body["code"]), (&json!(false), &json!("budget_spent")));
    assert_eq!((&refused.body["retryable"], refused.header("retry-after")), (&json!(false), None));
    let (month, next) = months();
    let sentence = format!(
        "The budget of this account for {} is spent; new runs are accepted again from {next} 00:00 UTC",
        month.0
    );
    assert_eq!(refused.body["error"], json!(sentence));
    let details = &refused.body["details"];
    assert_eq!((&details["month"], &details["monthlyBudgetUsd"]), (&json!(month.1), &json!(0.000075)));
    assert_eq!(details["resetsAt"], json!(format!("{next}T00:00:00Z")));
    assert!(details["spentUsd"].as_f64().unwrap() >= 0.000075, "{details}");

    // Every way of asking for a run is refused, before its variables are looked at and after its prompt.
    let background = app.post_with(0, &json!({ "promptName": "Greeting" }), &[("prefer", "respond-async")]).await;
    assert_eq!((background.status, &background.body["code"]), (402, &json!("budget_spent")));
    assert_eq!(post(&app, &acme, &json!({ "promptName": "Nope" })).await.status, 404);
    assert_eq!(app.provider().requests().len(), calls, "nothing was called");
    let limited = app.cli(&["account", "set-plan", "gratis", "--monthly-budget-usd", "0"]);
    assert_eq!(limited.code, 0, "{limited:?}");
    assert_eq!(greet(&app, &app.free_key()).await.body["code"], json!("plan_required"), "the plan comes first");
    // What was accepted before can still be looked at, and others go on.
    assert_eq!(app.run(0, first.body["runId"].as_str().unwrap()).await.status, 200);
    assert_eq!(greet(&app, &other).await.status, 200);

    // It is the ledger that knows: a process that has just started refuses at once.
    app.front_doors[0].kill();
    app.restart_front_door(0).await;
    assert_eq!(greet(&app, &acme).await.status, 402);

    // Changes of the budget are seen within a second.
    for (change, shown, status) in [
        (&["--monthly-budget-usd", "1"][..], json!(1), 200),
        (&["--monthly-budget-usd", COST], json!(0.000075), 402),
        (&["--no-monthly-budget"], Value::Null, 200),
        (&["--monthly-budget-usd", "0"], json!(0), 402),
    ] {
        assert_eq!(set_plan(&app, change), shown);
        let (took, _) = greet_until(&app, &acme, status).await;
        assert!(took < SOON, "{change:?}: {took:?}");
    }
}

mod embedded {
    #[tokio::test(flavor = "multi_thread")]
    async fn a_spent_budget_refuses_new_runs() {
        super::a_spent_budget_refuses_new_runs(super::Mode::Embedded).await
    }
}

mod distributed {
    #[tokio::test(flavor = "multi_thread")]
    async fn a_spent_budget_refuses_new_runs() {
        super::a_spent_budget_refuses_new_runs(super::Mode::Distributed).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_reads_amounts_exactly() {
    let app = App::start(Mode::Embedded).await;
    for (amount, shown) in
        [("0.000000001", "0.000000001"), ("+12.50", "12.5"), ("9223372036.854775807", "9223372036.854775807")]
    {
        let said = app.cli(&["account", "set-plan", "acme", "--json", "--monthly-budget-usd", amount]);
        assert!(said.stdout.contains(&format!("\"monthlyBudgetUsd\":{shown}}}")), "{said:?}");
    }
    for no_amount in ["-1", "1,5", "$5", "0.0000000001", "9223372036.854775808", "", "lots"] {
        let said = app.cli(&["account", "set-plan", "acme", &format!("--monthly-budget-usd={no_amount}")]);
        assert_eq!(said.code, 2, "{said:?}");
    }
    let both = app.cli(&["account", "set-plan", "acme", "--monthly-budget-usd", "1", "--no-monthly-budget"]);
    assert_eq!(both.code, 2, "{both:?}");
    let list = app.cli(&["account", "list"]).stdout;
    let acme = list.lines().find(|line| line.starts_with("acme ")).unwrap();
    assert!(acme.contains(" 9223372036.854775807 "), "{list}");
    let accounts = app.cli(&["account", "list", "--json"]).json();
    let budget_of = |name: &str| {
        accounts.as_array().unwrap().iter().find(|account| account["name"] == name).unwrap()["monthlyBudgetUsd"].clone()
    };
    assert_eq!(budget_of("gratis"), Value::Null);
    assert!(budget_of("acme").is_number());
}

/// This month, for people and for programs, and the first day of the next one.
fn months() -> ((String, String), String) {
    use chrono::{Datelike, Months, Utc};
    let today = Utc::now().date_naive();
    let next = today.with_day(1).unwrap() + Months::new(1);
    let this = (today.format("%B %Y").to_string(), today.format("%Y-%m").to_string());
    (this, next.format("%Y-%m-%d").to_string())
}
