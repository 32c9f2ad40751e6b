//! The samples of the contract, taken from its text and run as they stand: only the host and the key are filled in.

use std::process::Command;

use super::{EMAIL_DE_BIENVENUE, import_email, started};
use crate::support::{
    app::{App, Mode},
    provider::Answer as Script,
};

crate::support::in_both_modes!(the_curl_sample_runs, the_node_sample_runs, the_python_sample_runs);

const CONTRACT: &str = include_str!("api-integration.fr.mdx");
const HOST: &str = "https://votre-domaine.com";
const OUTPUT: &str = "Bonjour Steph,\n\nBienvenue sur Prompt Manager!...";

/// The first block of code in a language after a heading.
fn sample(heading: &str, language: &str, app: &App) -> String {
    let (_, section) = CONTRACT.split_once(&format!("{heading}\n")).unwrap();
    let (_, block) = section.split_once(&format!("```{language}\n")).unwrap();
    let (code, _) = block.split_once("```").unwrap();
    assert!(code.contains(HOST), "{code}");
    code.replace(HOST, &app.url())
}

/// What became of a sample.
#[derive(Debug)]
struct Ran {
    succeeded: bool,
    stdout: String,
    stderr: String,
}

/// Runs a program without the surroundings' proxies; `None`, and a line that says so, when this machine cannot.
async fn run(app: &App, program: &str, probe: &[&str], args: &[&str]) -> Option<Ran> {
    let command = |args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).env("PROMPT_MANAGER_API_KEY", app.key()).env("NO_PROXY", "*").env("no_proxy", "*");
        command
    };
    if !command(probe).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: `{program} {}` does not work on this machine", probe.join(" "));
        return None;
    }
    let mut command = command(args);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    Some(Ran {
        succeeded: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    })
}

async fn with_email(mode: Mode) -> App {
    let app = started(mode).await;
    import_email(&app);
    app.provider().set_default(Script::text(OUTPUT));
    app
}

async fn the_curl_sample_runs(mode: Mode) {
    let app = with_email(mode).await;
    let code = sample("### Exemple de Requête", "bash", &app).replace("sk_votre_cle_api_ici", &app.key());
    let Some(ran) = run(&app, "bash", &["-c", "command -v curl"], &["-c", &code]).await else { return };
    assert!(ran.succeeded, "{ran:?}");
    let body: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(body["output"], OUTPUT, "{ran:?}");
}

async fn the_node_sample_runs(mode: Mode) {
    let app = with_email(mode).await;
    let file = app.folder.path().join("sample.mjs");
    std::fs::write(&file, sample("### Node.js", "javascript", &app)).unwrap();
    let file = file.display().to_string();
    let Some(ran) = run(&app, "node", &["-e", "fetch"], &[&file]).await else { return };
    assert!(ran.succeeded, "{ran:?}");
    assert_eq!(ran.stdout, format!("{OUTPUT}\n"));

    let other = std::fs::read_to_string(&file).unwrap().replace(EMAIL_DE_BIENVENUE, "Inconnu");
    std::fs::write(&file, other).unwrap();
    let ran = run(&app, "node", &["-e", "fetch"], &[&file]).await.unwrap();
    let sentence = "Error: Prompt 'Inconnu' not found or has no PRODUCTION version";
    assert!(!ran.succeeded && ran.stderr.contains(sentence), "{ran:?}");
}

async fn the_python_sample_runs(mode: Mode) {
    let app = with_email(mode).await;
    let file = app.folder.path().join("sample.py");
    std::fs::write(&file, sample("### Python", "python", &app)).unwrap();
    let file = file.display().to_string();
    let Some(ran) = run(&app, "python3", &["-c", "import requests"], &[&file]).await else { return };
    assert!(ran.succeeded, "{ran:?}");
    assert_eq!(ran.stdout, format!("{OUTPUT}\n"));

    let other = std::fs::read_to_string(&file).unwrap().replace(EMAIL_DE_BIENVENUE, "Inconnu");
    std::fs::write(&file, other).unwrap();
    let ran = run(&app, "python3", &["-c", "import requests"], &[&file]).await.unwrap();
    assert!(!ran.succeeded && ran.stderr.contains("404"), "{ran:?}");
}
