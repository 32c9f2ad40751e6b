//! What the command line asks for, as the body of a request.

use std::{
    fs,
    io::{self, Read},
    time::Duration,
};

use reqwest::header::HeaderValue;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::RunArgs;
use crate::cli::error::CliError;

/// One run to ask for.
#[derive(Debug)]
pub(super) struct Call {
    pub body: Value,
    /// The `Idempotency-Key`.
    pub key: Option<HeaderValue>,
    pub timeout: Option<Duration>,
}

impl Call {
    pub fn of(args: &RunArgs) -> Result<Self, CliError> {
        let mut body = Map::new();
        body.insert("promptName".to_owned(), json!(args.name));
        body.insert("variables".to_owned(), Value::Object(variables(args)?));
        let timeout = args.timeout.as_deref().map(seconds).transpose()?;
        let millis = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let metadata = metadata(&args.metadata)?;
        let fields = [
            ("version", args.version.map(Value::from)),
            ("timeoutMs", millis.map(Value::from)),
            ("priority", args.priority.map(|priority| Value::from(priority.word()))),
            ("cache", args.cache.map(Value::from)),
            ("metadata", (!metadata.is_empty()).then_some(Value::Object(metadata))),
            ("stream", args.stream.then_some(Value::Bool(true))),
            // A stream whose connection breaks is taken up again. Ctrl-C cancels it by its id.
            ("onDisconnect", args.stream.then(|| Value::from("continue"))),
        ];
        body.extend(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        let key = match &args.idempotency_key {
            Some(key) => Some(
                HeaderValue::from_str(key)
                    .ok()
                    .filter(|value| value.to_str().is_ok_and(|key| !key.is_empty()))
                    .ok_or_else(|| CliError::Usage("--idempotency-key wants visible ASCII characters".to_owned()))?,
            ),
            // A run that outlives its connection can be found by it, so that an interrupt cancels it before its id has come, and a request that
            // was not answered can be sent again.
            None if args.stream || args.respond_async => {
                HeaderValue::from_str(&format!("prompt-manager-run-{}", Uuid::new_v4())).ok()
            }
            None => None,
        };
        Ok(Self { body: Value::Object(body), key, timeout })
    }
}

fn variables(args: &RunArgs) -> Result<Map<String, Value>, CliError> {
    let mut variables = Map::new();
    let mut stdin = Stdin::default();
    let texts = args.texts.iter().map(|text| ("--var", text));
    for (flag, assignment) in texts.chain(args.values.iter().map(|value| ("--var-json", value))) {
        let (name, text) = split(flag, assignment)?;
        let (name, is_json) = match name.strip_suffix(':').filter(|name| flag == "--var" && !name.is_empty()) {
            Some(name) => (name, true),
            None => (name, flag == "--var-json"),
        };
        // What `--var-json` is given is JSON already, and no JSON begins like this.
        let text = if flag == "--var" { content(name, text, &mut stdin)? } else { text.to_owned() };
        let value = if is_json {
            serde_json::from_str(&text)
                .map_err(|error| CliError::Usage(format!("{flag} {name} is not JSON: {error}")))?
        } else {
            Value::from(text)
        };
        if variables.insert(name.to_owned(), value).is_some() {
            return Err(CliError::Usage(format!("the variable {name} is given twice")));
        }
    }
    Ok(variables)
}

/// `@FILE` is what the file holds, `@-` what stdin says, and `@@text` is `@text`.
fn content(name: &str, text: &str, stdin: &mut Stdin) -> Result<String, CliError> {
    let unreadable =
        |from: &str, error: io::Error| CliError::Usage(format!("--var {name}: {from} cannot be read: {error}"));
    match text.strip_prefix('@') {
        None => Ok(text.to_owned()),
        Some("-") => stdin.take(name)?.map_err(|error| unreadable("stdin", error)),
        Some(rest) if rest.starts_with('@') => Ok(rest.to_owned()),
        Some(file) => fs::read_to_string(file).map_err(|error| unreadable(file, error)),
    }
}

/// It can be read once.
#[derive(Default)]
struct Stdin {
    taken: bool,
}

impl Stdin {
    fn take(&mut self, name: &str) -> Result<io::Result<String>, CliError> {
        if std::mem::replace(&mut self.taken, true) {
            return Err(CliError::Usage(format!("--var {name}: stdin was read for another variable")));
        }
        let mut text = String::new();
        Ok(io::stdin().read_to_string(&mut text).map(|_| text))
    }
}

fn metadata(entries: &[String]) -> Result<Map<String, Value>, CliError> {
    let mut metadata = Map::new();
    for entry in entries {
        let (name, value) = split("--metadata", entry)?;
        if metadata.insert(name.to_owned(), Value::from(value)).is_some() {
            return Err(CliError::Usage(format!("the metadata {name} is given twice")));
        }
    }
    Ok(metadata)
}

fn split<'a>(flag: &str, assignment: &'a str) -> Result<(&'a str, &'a str), CliError> {
    assignment
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| CliError::Usage(format!("{flag} wants NAME=VALUE, but is {assignment:?}")))
}

/// `30` or `0.5`: at least a millisecond.
fn seconds(text: &str) -> Result<Duration, CliError> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|timeout| timeout.as_millis() > 0)
        .ok_or_else(|| CliError::Usage(format!("--timeout wants seconds, such as 30 or 0.5, but is {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(more: &[&str]) -> RunArgs {
        use clap::Parser;

        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: RunArgs,
        }
        Line::try_parse_from(["run", "Greeting"].iter().chain(more)).unwrap_or_else(|error| panic!("{error}")).args
    }

    #[test]
    fn a_call_says_what_was_asked_and_nothing_else() {
        let check = |more: &[&str], expect: Value| assert_eq!(Call::of(&args(more)).unwrap().body, expect, "{more:?}");
        check(&[], json!({ "promptName": "Greeting", "variables": {} }));
        check(
            &["--var", "a=@@x=1", "--var", "b:=[1]", "--var", ":=x", "--var-json", "c=true"],
            json!({ "promptName": "Greeting", "variables": { "a": "@x=1", "b": [1], ":": "x", "c": true } }),
        );
        check(
            &["--version", "3", "--timeout", "1.5", "--priority", "batch", "--metadata", "order=1=7", "--stream"],
            json!({
                "promptName": "Greeting", "variables": {}, "version": 3, "timeoutMs": 1500, "priority": "batch",
                "metadata": { "order": "1=7" }, "stream": true, "onDisconnect": "continue",
            }),
        );
        check(&["--cache"], json!({ "promptName": "Greeting", "variables": {}, "cache": true }));
        check(&["--cache=false"], json!({ "promptName": "Greeting", "variables": {}, "cache": false }));
    }

    #[test]
    fn values_come_from_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"é\": 1}\n").unwrap();
        let path = file.path().display();
        let (text, value) = (format!("a=@{path}"), format!("b:=@{path}"));
        let body = Call::of(&args(&["--var", &text, "--var", &value])).unwrap().body;
        assert_eq!(body["variables"], json!({ "a": "{\"é\": 1}\n", "b": { "é": 1 } }));
        let missing = Call::of(&args(&["--var", "a=@/none"])).unwrap_err();
        assert!(missing.to_string().starts_with("--var a: /none cannot be read: "), "{missing}");
    }

    #[test]
    fn runs_that_outlive_their_connection_have_a_key() {
        let key = |more: &[&str]| Call::of(&args(more)).unwrap().key.map(|key| key.to_str().unwrap().to_owned());
        assert_eq!(key(&[]), None);
        assert_eq!(key(&["--idempotency-key", "order 17"]).as_deref(), Some("order 17"));
        assert!(key(&["--stream"]).is_some() && key(&["--stream"]) != key(&["--stream"]));
        assert!(key(&["--async"]).is_some());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let check = |more: &[&str], expect: &str| {
            assert_eq!(Call::of(&args(more)).unwrap_err(), CliError::Usage(expect.to_owned()), "{more:?}");
        };
        for wrong in ["0", "soon", "-1", "1e99", "NaN"] {
            let expect = format!("--timeout wants seconds, such as 30 or 0.5, but is {wrong:?}");
            check(&[&format!("--timeout={wrong}")], &expect);
        }
        check(&["--metadata", "order"], "--metadata wants NAME=VALUE, but is \"order\"");
        check(&["--metadata", "a=1", "--metadata", "a=2"], "the metadata a is given twice");
        check(&["--var", "a=1", "--var", "a:=2"], "the variable a is given twice");
        check(&["--idempotency-key", "é"], "--idempotency-key wants visible ASCII characters");
        check(&["--idempotency-key", ""], "--idempotency-key wants visible ASCII characters");
    }
}
