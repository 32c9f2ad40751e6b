//! Prompts over both databases: versions, the PRODUCTION pointer, and what other processes see of them.

use prompt_manager::{
    accounts::Account,
    audit::Actor,
    config::DatabaseConfig,
    prompts::{Content, Imported, Promotion, Prompts, Status, VersionWanted, file},
};
use serde_json::{Map, json};
use workers::job::Parameters;

use crate::accounts::{Process, SOON, account, each_database, refusal, until};

struct Author {
    process: Process,
    prompts: Prompts,
    account: Account,
}

impl Author {
    async fn start(config: &DatabaseConfig, name: &str) -> Self {
        let process = Process::start(config).await;
        let account = account(&process, name).await;
        Self { prompts: Prompts::new(process.db.clone(), process.changes.clone()), process, account }
    }

    /// The same author at another process.
    async fn elsewhere(&self, config: &DatabaseConfig) -> Self {
        let process = Process::start(config).await;
        let prompts = Prompts::new(process.db.clone(), process.changes.clone());
        Self { prompts, process, account: self.account.clone() }
    }

    async fn import(&self, name: &str, template: &str, promote: bool) -> Imported {
        let contents = vec![(name.to_owned(), content(template))];
        self.prompts.import(&Actor::cli(), self.account.id, contents, promote).await.unwrap().remove(0)
    }

    async fn promote(&self, name: &str, version: i32) -> Promotion {
        self.prompts.promote(&Actor::cli(), self.account.id, name, version, None).await.unwrap()
    }

    /// The text of a version without variables.
    async fn text(&self, name: &str, version: Option<i32>) -> Option<String> {
        let prompt = self.prompts.resolve(self.account.id, name, version).await.unwrap()?;
        Some(prompt.render(&Map::new(), 1000).unwrap().user)
    }
}

fn content(template: &str) -> Content {
    Content { template: template.into(), model: "gpt-4".into(), ..Content::default() }
}

fn imported(version: i32, created: bool, promoted: bool) -> Imported {
    Imported { name: "hello".into(), version, created, promoted }
}

#[tokio::test]
async fn versions_are_added_promoted_and_rolled_back() {
    each_database(async |config| {
        let author = Author::start(&config, "acme").await;
        assert_eq!(author.text("hello", None).await, None);
        assert_eq!(author.import("hello", "one", false).await, imported(1, true, false));
        assert_eq!(author.text("hello", None).await, None, "no version is PRODUCTION yet");
        assert_eq!(author.text("hello", Some(1)).await.as_deref(), Some("one"));
        assert_eq!(author.import("hello", "one", false).await, imported(1, false, false));
        assert_eq!(author.import("hello", "one", true).await, imported(1, false, true));
        assert_eq!(author.import("hello", "one", true).await, imported(1, false, false));
        assert_eq!(author.import("hello", "two", true).await, imported(2, true, true));
        assert_eq!(author.import("hello", "three", false).await, imported(3, true, false));
        assert_eq!(author.text("hello", None).await.as_deref(), Some("two"));
        assert_eq!(author.text("hello", Some(3)).await.as_deref(), Some("three"));
        assert_eq!(author.text("hello", Some(4)).await, None);
        assert_eq!(author.text("hello", Some(-1)).await, None);

        let statuses = || async {
            let versions = author.prompts.versions(author.account.id, "hello").await.unwrap();
            versions.iter().map(|version| (version.version, version.status)).collect::<Vec<_>>()
        };
        assert_eq!(statuses().await, [(3, Status::Draft), (2, Status::Production), (1, Status::Archived)]);
        assert_eq!(author.promote("hello", 1).await, Promotion::Promoted { before: Some(2) });
        assert_eq!(author.promote("hello", 1).await, Promotion::Unchanged);
        assert_eq!(author.text("hello", None).await.as_deref(), Some("one"));
        assert_eq!(statuses().await, [(3, Status::Draft), (2, Status::Archived), (1, Status::Production)]);

        // Whoever promotes what they saw is told when it is no longer so.
        let steph = Actor::user("steph@example.com");
        let promote = |expected| author.prompts.promote(&steph, author.account.id, "hello", 3, Some(expected));
        assert_eq!(promote(Some(2)).await.unwrap(), Promotion::Moved { now: Some(1) });
        assert_eq!(promote(None).await.unwrap(), Promotion::Moved { now: Some(1) });
        assert_eq!(promote(Some(1)).await.unwrap(), Promotion::Promoted { before: Some(1) });

        let refused = |name, version| {
            let prompts = &author.prompts;
            async move { refusal(prompts.promote(&Actor::cli(), author.account.id, name, version, None).await) }
        };
        assert_eq!(refused("hello", 9).await, "prompt 'hello' has no version 9");
        assert_eq!(refused("nothing", 1).await, "there is no prompt named 'nothing'");
        let list = author.prompts.list(author.account.id).await.unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].production_version, list[0].newest_version), (Some(3), 3));

        let audited =
            |action: &str| format!("SELECT count(*) FROM audit_log WHERE actor = 'cli' AND action = '{action}'");
        assert_eq!(author.process.number(&audited("prompt.add_version")).await, 3);
        assert_eq!(author.process.number(&audited("prompt.promote")).await, 3);
    })
    .await;
}

#[tokio::test]
async fn a_version_keeps_all_that_it_says() {
    each_database(async |config| {
        let author = Author::start(&config, "acme").await;
        let full = Content {
            system: Some("Tu es {{ ton | default('bref') }}.".into()),
            template: "Bonjour {{ nom }} !\n".into(),
            model: "gpt-4".into(),
            fallbacks: vec!["a".into(), "b".into()],
            parameters: Parameters {
                temperature: Some(0.1 + 0.2),
                top_p: Some(1.0),
                max_tokens: Some(u32::MAX),
                stop: vec!["\n".into()],
                seed: Some(i64::MIN),
            },
            output_schema: Some(json!({"type": ["object", "null"], "maximum": u64::MAX, "default": null})),
            repeat_streamed: true,
            cache_ttl_ms: Some(600_000),
            note: "première".into(),
        };
        let steph = Actor::user("steph@example.com");
        let import = |content: &Content| {
            author.prompts.import(&steph, author.account.id, vec![("hello".into(), content.clone())], true)
        };
        assert_eq!(import(&full).await.unwrap(), [imported(1, true, true)]);
        assert_eq!(import(&full).await.unwrap(), [imported(1, false, false)]);
        let (_, version, read) =
            author.prompts.read(author.account.id, "hello", VersionWanted::Production).await.unwrap().unwrap();
        assert_eq!((version, &read), (1, &full));

        // Out to a file and in again is no change.
        let (name, from_file) = file::parse("f", &file::write("hello", &read).unwrap()).unwrap();
        assert_eq!((name.as_str(), &from_file), ("hello", &full));
        assert_eq!(import(&from_file).await.unwrap(), [imported(1, false, false)]);

        let resolved = author.prompts.resolve(author.account.id, "hello", None).await.unwrap().unwrap();
        let variables: Vec<_> = resolved.variables().iter().map(|v| (v.name.as_str(), v.required)).collect();
        assert_eq!(variables, [("ton", false), ("nom", true)]);
        let stored = author.prompts.versions(author.account.id, "hello").await.unwrap().remove(0).variables;
        assert_eq!(stored, resolved.variables());
        let rendered = resolved.render(&Map::from_iter([("nom".to_owned(), json!("Steph"))]), 100).unwrap();
        assert_eq!(rendered.system.as_deref(), Some("Tu es bref."));
        assert_eq!(rendered.user, "Bonjour Steph !");
        assert_eq!((&resolved.parameters, &resolved.output_schema), (&full.parameters, &full.output_schema));

        // Each thing said makes a version of its own when it changes.
        let changes: [fn(&mut Content); 9] = [
            |content| content.system = None,
            |content| content.template.push('!'),
            |content| content.model.push('o'),
            |content| content.fallbacks.reverse(),
            |content| content.parameters.temperature = Some(0.3),
            |content| content.output_schema = None,
            |content| content.repeat_streamed = false,
            |content| content.cache_ttl_ms = None,
            |content| content.note.clear(),
        ];
        let mut content = full;
        for (version, change) in (2..).zip(changes) {
            change(&mut content);
            assert_eq!(import(&content).await.unwrap(), [imported(version, true, true)]);
        }
    })
    .await;
}

#[tokio::test]
async fn an_import_is_all_or_nothing() {
    each_database(async |config| {
        let author = Author::start(&config, "acme").await;
        let contents = vec![("good".to_owned(), content("one")), ("bad".to_owned(), content("\n{{ a | b }}"))];
        let refused = refusal(author.prompts.import(&Actor::cli(), author.account.id, contents, true).await);
        assert_eq!(refused, "prompt 'bad': template, line 2: there is no filter named 'b'");
        assert_eq!(author.prompts.list(author.account.id).await.unwrap(), []);
        assert_eq!(author.process.number("SELECT count(*) FROM prompts").await, 0);
    })
    .await;
}

#[tokio::test]
async fn every_process_follows_a_promotion_within_a_second() {
    each_database(async |config| {
        let here = Author::start(&config, "acme").await;
        let there = here.elsewhere(&config).await;
        // That it is absent is remembered too, and forgotten when it comes.
        assert_eq!(there.text("hello", None).await, None);
        here.import("hello", "one", true).await;
        let took = until(|| async { there.text("hello", None).await.is_some() }).await;
        assert!(took < SOON, "{took:?}");

        here.import("hello", "two", false).await;
        tokio::time::sleep(SOON).await;
        assert_eq!(there.text("hello", None).await.as_deref(), Some("one"));
        there.process.behind_the_back("UPDATE prompt_versions SET template = 'gone' WHERE version = 1").await;
        assert_eq!(there.text("hello", None).await.as_deref(), Some("one"), "it is remembered");

        here.promote("hello", 2).await;
        assert_eq!(here.text("hello", None).await.as_deref(), Some("two"), "at once where it was done");
        let took = until(|| async { there.text("hello", None).await.as_deref() == Some("two") }).await;
        assert!(took < SOON, "{took:?}");
    })
    .await;
}

#[tokio::test]
async fn accounts_do_not_see_each_other() {
    each_database(async |config| {
        let (one, other) = (Author::start(&config, "one").await, Author::start(&config, "other").await);
        one.import("hello", "one", true).await;
        assert_eq!(other.text("hello", None).await, None);
        assert_eq!(other.prompts.list(other.account.id).await.unwrap(), []);
        assert_eq!(other.import("hello", "other", true).await, imported(1, true, true));
        assert_eq!(one.text("hello", None).await.as_deref(), Some("one"));
        assert_eq!(other.text("hello", None).await.as_deref(), Some("other"));
    })
    .await;
}

#[tokio::test]
async fn processes_that_import_at_once_take_turns() {
    each_database(async |config| {
        let here = Author::start(&config, "acme").await;
        let there = here.elsewhere(&config).await;
        let import = async |author: &Author, who: &str| {
            for n in 0..10 {
                author.import("hello", &format!("{who} {n}"), true).await;
            }
        };
        tokio::join!(import(&here, "here"), import(&there, "there"));
        let versions = here.prompts.versions(here.account.id, "hello").await.unwrap();
        let numbers: Vec<i32> = versions.iter().rev().map(|version| version.version).collect();
        assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
        assert_eq!(versions[0].status, Status::Production);
    })
    .await;
}
