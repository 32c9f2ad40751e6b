//! Streamed runs as their callers see them, told by whichever front door, whatever happens to the processes behind it.

mod appending;
mod breaking;
mod ending;
mod many;
mod resuming;
mod telling;

use serde_json::{Value, json};

use crate::support::{
    app::{App, Mode, Shape},
    load::new_name,
};

/// Short leases and quick retries, so that what was lost goes on soon.
const CONFIG: &str = "[workers]\nslots = 4\nlease_ms = 3000\n[retry]\nmax_attempts = 3\nbase_ms = 50\ncap_ms = 50\n";

/// Two front doors where there can be two, with `more` in the configuration.
async fn app_with(mode: Mode, more: &str, provider: &str) -> App {
    let config = format!("{CONFIG}{more}");
    let app = App::shaped(Shape { front_doors: 2, config, provider: provider.into(), ..Shape::of(mode) }).await;
    app.import_greeting();
    app
}

async fn app(mode: Mode) -> App {
    app_with(mode, "", "").await
}

/// The front door that a run was not sent to, if there are two.
fn other(app: &App) -> usize {
    app.urls().len() - 1
}

/// A greeting with a name of its own.
fn greeting() -> Value {
    json!({ "promptName": "Greeting", "variables": { "name": new_name() } })
}
