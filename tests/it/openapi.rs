//! The OpenAPI document and the page that shows it, as a caller finds them.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use crate::support::{
    app::{App, Mode, client},
    process,
};

const COMMAND: &str = "cargo run --locked -- openapi > docs/openapi.json";

fn committed() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json")).unwrap()
}

fn document() -> Value {
    serde_json::from_str(&committed()).unwrap()
}

/// Every operation, with its path and its method.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().iter().map(|(method, operation)| (path.as_str(), method.as_str(), operation))
        })
        .collect()
}

#[test]
fn the_committed_document_is_that_of_the_code() {
    let folder = tempfile::tempdir().unwrap();
    let said = process::run(folder.path(), &["openapi"], &[], "");
    assert!(said.stdout == committed(), "docs/openapi.json is not what the code says; `{COMMAND}` writes it");
    let one_line = process::run(folder.path(), &["openapi", "--json"], &[], "");
    assert_eq!(serde_json::from_str::<Value>(&one_line.stdout).unwrap(), document());
    assert_eq!(one_line.stdout.lines().count(), 1);
}

#[test]
fn every_reference_leads_somewhere() {
    fn check(value: &Value, document: &Value, found: &mut usize) {
        match value {
            Value::Object(map) => {
                if let Some(reference) = map.get("$ref") {
                    let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{reference}");
                    *found += 1;
                }
                map.values().for_each(|value| check(value, document, found));
            }
            Value::Array(list) => list.iter().for_each(|value| check(value, document, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = 0;
    check(&document, &document, &mut found);
    assert!(found > 50, "{found} references");
}

#[test]
fn every_operation_is_told_in_full() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let tags: BTreeSet<_> =
        document["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).map(Value::as_str).collect();
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let name = format!("{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{name}: its id is another's");
        assert!(operation["summary"].is_string(), "{name}: no summary");
        assert_eq!(operation["tags"].as_array().unwrap().len(), 1, "{name}");
        assert!(tags.contains(&operation["tags"][0].as_str()), "{name}: an unknown tag");
        let answers = operation["responses"].as_object().unwrap();
        assert_eq!(answers.contains_key("401"), operation.get("security").is_none(), "{name}: who needs a key");
        for (status, answer) in answers {
            let name = format!("{name} {status}");
            assert!(!answer["description"].as_str().unwrap().is_empty(), "{name}");
            let headers = answer["headers"].as_object().unwrap();
            assert!(headers.contains_key("x-request-id"), "{name}");
            assert_eq!(headers.contains_key("Retry-After"), ["429", "503"].contains(&status.as_str()), "{name}");
            if status.as_str() >= "400" {
                let schema = &answer["content"]["application/json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/Error", "{name}");
            }
        }
        let placeholders: BTreeSet<_> =
            path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let described: BTreeSet<_> =
            parameters.filter(|one| one["in"] == "path").map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(placeholders, described, "{name}");
    }
}

/// Every described address takes its method, and asks for a key as it is described. That no other is served follows from the
/// way routes are made: of their descriptions.
#[tokio::test]
async fn every_operation_is_served() {
    let app = App::start(Mode::Embedded).await;
    let document = document();
    for (path, method, operation) in operations(&document) {
        let url = format!("{}{}", app.url(), path.replace("{id}", "01a20928-9a61-7603-89d4-84c3557942af"));
        let method = reqwest::Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let answer = client().request(method.clone(), &url).send().await.unwrap();
        let status = answer.status().as_u16();
        if operation.get("security").is_some() {
            assert_eq!(status, 200, "{method} {path}");
        } else {
            assert_eq!(status, 401, "{method} {path}");
        }
        let other = client().patch(&url).send().await.unwrap();
        assert_eq!(other.status(), 405, "{path} is served, and takes no PATCH");
        let allowed = other.headers()["allow"].to_str().unwrap();
        let described = document["paths"][path].as_object().unwrap();
        for method in allowed.split(',').filter(|method| *method != "HEAD") {
            assert!(described.contains_key(&method.to_lowercase()), "{method} {path} is not described");
        }
    }
}

#[test]
fn routes_are_made_of_descriptions_alone() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http.rs");
    let text = std::fs::read_to_string(sources).unwrap();
    for stray in [".route(", ".route_service(", ".nest(", ".nest_service("] {
        assert!(
            !text.contains(stray),
            "`{stray}` makes a route that the document does not know; `.routes(routes!(…))` does"
        );
    }
}

#[tokio::test]
async fn the_document_and_its_page_are_served_to_anybody() {
    let app = App::start(Mode::Embedded).await;
    let get = async |path: &str| client().get(format!("{}{path}", app.url())).send().await.unwrap();
    let answer = get("/api/openapi.json").await;
    assert_eq!(answer.headers()["content-type"], "application/json");
    let served = serde_json::from_slice::<Value>(&answer.bytes().await.unwrap()).unwrap();
    // Not `assert_eq!`: that would print both.
    assert!(served == document(), "what is served is not docs/openapi.json; `{COMMAND}` writes it");

    let answer = get("/api/docs").await;
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(
        policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe") && !policy.contains("script"),
        "{policy}"
    );
    assert!(!policy.contains("http"), "{policy}");
    let html = answer.text().await.unwrap();
    check_page(&html);

    let answer = get("/api/docs/style.css").await;
    assert_eq!(answer.headers()["content-type"], "text/css; charset=utf-8");
    let style = answer.text().await.unwrap();
    assert!(!style.contains("url(") && !style.contains("@import"));
}

/// Nothing that the policy would refuse, nothing from elsewhere, every operation and schema, and links that lead to something.
fn check_page(html: &str) {
    for word in ["<script", "<iframe", "style=", " onclick", "src=", "http://", "https://", "//cdn"] {
        assert!(!html.contains(word), "{word}");
    }
    let ids: Vec<_> = attributes(html, "id=\"").collect();
    assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "an id is there twice");
    for link in attributes(html, "href=\"") {
        match link.strip_prefix('#') {
            Some(id) => assert!(ids.contains(&id), "#{id} leads nowhere"),
            None => assert!(["/api/openapi.json", "/api/docs/style.css"].contains(&link), "{link}"),
        }
    }
    let document = document();
    for (_, _, operation) in operations(&document) {
        assert!(ids.contains(&operation["operationId"].as_str().unwrap()));
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(ids.contains(&format!("schema-{name}").as_str()), "{name}");
    }
}

fn attributes<'a>(html: &'a str, start: &str) -> impl Iterator<Item = &'a str> {
    html.split(start).skip(1).filter_map(|rest| rest.split('"').next())
}
