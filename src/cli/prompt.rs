//! `prompt-manager prompt`.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use sea_orm::DatabaseConnection;
use serde::Serialize;
use workers::job::AccountId;

use super::{
    account::show_moment,
    error::CliError,
    output::{Output, table},
};
use crate::{
    accounts::Accounts,
    audit::Actor,
    changes::Changes,
    config::Config,
    prompts::{Content, Imported, Promotion, PromptRecord, Prompts, VersionWanted, file},
};

#[derive(Debug, clap::Subcommand)]
pub enum PromptCommand {
    /// Add versions from files: all of them, or none if one is wrong
    Import {
        /// TOML files, one prompt each
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Whose
        #[arg(long, value_name = "NAME")]
        account: String,
        /// Make them PRODUCTION
        #[arg(long)]
        promote: bool,
    },
    /// Write prompts as files: the PRODUCTION version, or the newest where there is none
    #[command(disable_version_flag = true)]
    Export {
        /// Only this prompt
        name: Option<String>,
        /// Whose
        #[arg(long, value_name = "NAME")]
        account: String,
        /// This version instead
        #[arg(long = "version", value_name = "NUMBER", requires = "name")]
        number: Option<i32>,
        /// Where the files go; without it, one prompt is written to stdout
        #[arg(long, value_name = "DIRECTORY", required_unless_present = "name")]
        dir: Option<PathBuf>,
    },
    /// List an account's prompts
    List {
        /// Whose
        #[arg(long, value_name = "NAME")]
        account: String,
    },
    /// Make a version PRODUCTION: a newer one, or an older one to roll back
    Promote {
        /// Which prompt
        name: String,
        /// Which of its versions
        #[arg(value_name = "VERSION")]
        number: i32,
        /// Whose
        #[arg(long, value_name = "NAME")]
        account: String,
    },
}

pub async fn run(
    command: PromptCommand,
    db: &DatabaseConnection,
    config: &Config,
    output: Output,
) -> Result<(), CliError> {
    let accounts = Accounts::new(db.clone(), Changes::unwatched());
    let prompts = Prompts::new(db.clone(), Changes::unwatched());
    match command {
        PromptCommand::Import { files, account, promote } => {
            let account = accounts.named(&account).await?;
            let contents = read_files(&files)?;
            let warnings = unconfigured(&contents, |model| config.model(model).is_some());
            let imported = prompts.import(&Actor::cli(), account.id, contents, promote).await?;
            for warning in warnings {
                // Whether anybody reads it changes nothing.
                let _ = writeln!(io::stderr(), "warning: {warning}");
            }
            output.emit(&imported, || imported.iter().map(import_line).collect())
        }
        PromptCommand::Export { name, account, number, dir } => {
            let account = accounts.named(&account).await?;
            let exports = exports(&prompts, account.id, name, number).await?;
            export(&exports, dir.as_deref(), output)
        }
        PromptCommand::List { account } => {
            let account = accounts.named(&account).await?;
            let records = prompts.list(account.id).await?;
            let views: Vec<PromptView> = records.iter().map(PromptView::of).collect();
            output.emit(&views, || list(&records))
        }
        PromptCommand::Promote { name, number, account } => {
            let account = accounts.named(&account).await?;
            let promotion = prompts.promote(&Actor::cli(), account.id, name.trim(), number, None).await?;
            let (before, sentence) = match promotion {
                Promotion::Promoted { before: Some(before) } => {
                    (Some(before), format!("version {number} of '{name}' is PRODUCTION now; it was version {before}"))
                }
                Promotion::Promoted { before: None } => {
                    (None, format!("version {number} of '{name}' is PRODUCTION now, the first one"))
                }
                Promotion::Unchanged => (Some(number), format!("version {number} of '{name}' is PRODUCTION already")),
                Promotion::Moved { now } => {
                    return Err(CliError::Refused(format!("somebody else promoted version {now:?} of '{name}'")));
                }
            };
            output.emit(&PromotedView { name: &name, version: number, before }, || sentence)
        }
    }
}

/// A prompt in a list, as programs see it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PromptView<'a> {
    id: workers::job::PromptId,
    name: &'a str,
    production_version: Option<i32>,
    newest_version: i32,
    created_at: String,
}

impl<'a> PromptView<'a> {
    fn of(record: &'a PromptRecord) -> Self {
        Self {
            id: record.id,
            name: &record.name,
            production_version: record.production_version,
            newest_version: record.newest_version,
            created_at: show_moment(record.created_at),
        }
    }
}

#[derive(Serialize)]
struct PromotedView<'a> {
    name: &'a str,
    version: i32,
    /// The version that was PRODUCTION until then.
    before: Option<i32>,
}

/// One prompt on its way out.
#[derive(Serialize)]
struct Export {
    name: String,
    version: i32,
    /// The text of the file.
    toml: String,
    /// Where it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
}

/// Reads all files before anything is written, and tells what is wrong with any of them.
fn read_files(files: &[PathBuf]) -> Result<Vec<(String, Content)>, CliError> {
    let mut contents = Vec::with_capacity(files.len());
    let mut errors = Vec::new();
    let mut file_of = BTreeMap::new();
    for path in files {
        let shown = path.display().to_string();
        let parsed = match fs::read_to_string(path) {
            Ok(text) => file::parse(&shown, &text).map_err(|error| error.to_string()),
            Err(error) => Err(format!("{shown}: the file cannot be read: {error}")),
        };
        match parsed {
            Ok((name, content)) => match file_of.insert(name.clone(), shown.clone()) {
                Some(other) => errors.push(format!("{shown}: prompt '{name}' is in {other} too")),
                None => contents.push((name, content)),
            },
            Err(sentence) => errors.push(sentence),
        }
    }
    if errors.is_empty() { Ok(contents) } else { Err(CliError::Refused(errors.join("\n"))) }
}

/// Prompts whose models this configuration does not have. That is no error: another process's may, or this one's tomorrow.
fn unconfigured(contents: &[(String, Content)], is_configured: impl Fn(&str) -> bool) -> Vec<String> {
    let models = |content: &Content| -> Vec<String> {
        let named = std::iter::once(&content.model).chain(&content.fallbacks);
        named.filter(|model| !is_configured(model)).map(|model| format!("'{model}'")).collect()
    };
    let missing =
        contents.iter().map(|(name, content)| (name, models(content))).filter(|(_, models)| !models.is_empty());
    missing
        .map(|(name, models)| format!("prompt '{name}' names a model that is not configured: {}", models.join(", ")))
        .collect()
}

fn import_line(imported: &Imported) -> String {
    let what = if imported.created { "added" } else { "unchanged," };
    let promoted = if imported.promoted { ", PRODUCTION now" } else { "" };
    format!("{}: {what} version {}{promoted}\n", imported.name, imported.version)
}

async fn exports(
    prompts: &Prompts,
    account: AccountId,
    name: Option<String>,
    number: Option<i32>,
) -> Result<Vec<Export>, CliError> {
    let names = match name {
        Some(name) => vec![name.trim().to_owned()],
        None => prompts.list(account).await?.into_iter().map(|prompt| prompt.name).collect(),
    };
    let mut exports = Vec::with_capacity(names.len());
    for name in names {
        let found = match number {
            Some(number) => prompts.read(account, &name, VersionWanted::Number(number)).await?,
            None => match prompts.read(account, &name, VersionWanted::Production).await? {
                Some(found) => Some(found),
                None => prompts.read(account, &name, VersionWanted::Newest).await?,
            },
        };
        let Some((_, version, content)) = found else {
            let version = number.map_or(String::new(), |number| format!(" with a version {number}"));
            return Err(CliError::Refused(format!("there is no prompt named '{name}'{version}")));
        };
        let toml = file::write(&name, &content).map_err(|error| CliError::Software(error.to_string()))?;
        exports.push(Export { name, version, toml, file: None });
    }
    Ok(exports)
}

fn export(exports: &[Export], dir: Option<&Path>, output: Output) -> Result<(), CliError> {
    let Some(dir) = dir else {
        return output.emit(&exports, || exports.iter().map(|export| export.toml.as_str()).collect());
    };
    let unwritten = |path: &Path, error| CliError::Refused(format!("{} cannot be written: {error}", path.display()));
    fs::create_dir_all(dir).map_err(|error| unwritten(dir, error))?;
    let mut written: Vec<Export> = Vec::with_capacity(exports.len());
    for export in exports {
        let stem = file::stem(&export.name);
        // Two names may have the same words.
        let path = (1..)
            .map(|n: u32| dir.join(if n == 1 { format!("{stem}.toml") } else { format!("{stem}-{n}.toml") }))
            .find(|path| written.iter().all(|other| other.file.as_ref() != Some(path)))
            .unwrap_or_else(|| dir.join("prompt.toml"));
        fs::write(&path, &export.toml).map_err(|error| unwritten(&path, error))?;
        written.push(Export {
            file: Some(path),
            name: export.name.clone(),
            version: export.version,
            toml: export.toml.clone(),
        });
    }
    output.emit(&written, || {
        let line = |export: &Export| {
            let path = export.file.as_deref().unwrap_or(dir);
            format!("{}: version {} of '{}'\n", path.display(), export.version, export.name)
        };
        written.iter().map(line).collect()
    })
}

fn list(records: &[PromptRecord]) -> String {
    let rows = records.iter().map(|record| {
        [
            record.name.clone(),
            record.production_version.map_or("none".to_owned(), |version| version.to_string()),
            record.newest_version.to_string(),
            show_moment(record.created_at),
        ]
    });
    if records.is_empty() { String::new() } else { table(["NAME", "PRODUCTION", "NEWEST", "CREATED"], rows) }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    /// The commands as they hang in the tree, which gives each a `--version` of its own.
    #[derive(Debug, Parser)]
    #[command(version, propagate_version = true)]
    struct Tree {
        #[command(subcommand)]
        command: PromptCommand,
    }

    #[test]
    fn a_version_is_a_number_here() {
        Tree::command().debug_assert();
        let tree = Tree::try_parse_from(["p", "export", "a", "--account", "b", "--version", "3"]).unwrap();
        assert!(matches!(tree.command, PromptCommand::Export { number: Some(3), .. }), "{tree:?}");
        let tree = Tree::try_parse_from(["p", "promote", "a", "3", "--account", "b"]).unwrap();
        assert!(matches!(tree.command, PromptCommand::Promote { number: 3, .. }), "{tree:?}");
        assert!(Tree::try_parse_from(["p", "export", "--account", "b"]).is_err(), "all of them need a directory");
    }

    #[test]
    fn wrong_files_are_all_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let good = "name = 'a'\nmodel = 'm'\ntemplate = 't'\n";
        let files =
            [write("1.toml", good), write("2.toml", good), write("3.toml", "nam = 1\n"), dir.path().join("4.toml")];
        let CliError::Refused(sentences) = read_files(&files).unwrap_err() else { panic!() };
        let sentences: Vec<&str> = sentences.lines().collect();
        let shown = dir.path().display();
        assert_eq!(sentences.len(), 3);
        assert_eq!(sentences[0], format!("{shown}/2.toml: prompt 'a' is in {shown}/1.toml too"));
        assert!(sentences[1].starts_with(&format!("{shown}/3.toml:1: unknown field `nam`")));
        assert!(sentences[2].starts_with(&format!("{shown}/4.toml: the file cannot be read: ")));
        assert_eq!(read_files(&files[..1]).unwrap().len(), 1);
    }

    #[test]
    fn models_that_are_not_configured_are_told_for_each_prompt() {
        let read = |model: &str| {
            let text = format!("name = 'a'\nmodel = '{model}'\nfallback = ['known', 'lost']\ntemplate = 't'\n");
            file::parse("a.toml", &text).unwrap()
        };
        let contents = [read("gone"), read("known")];
        assert_eq!(
            unconfigured(&contents, |model| model == "known"),
            [
                "prompt 'a' names a model that is not configured: 'gone', 'lost'",
                "prompt 'a' names a model that is not configured: 'lost'"
            ]
        );
        assert!(unconfigured(&contents, |_| true).is_empty());
    }

    #[test]
    fn exported_files_have_names_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let one = |name: &str| Export { name: name.to_owned(), version: 1, toml: name.to_owned(), file: None };
        export(&[one("A b"), one("a-B"), one("a / b")], Some(dir.path()), Output { json: true }).unwrap();
        for (file, text) in [("a-b.toml", "A b"), ("a-b-2.toml", "a-B"), ("a-b-3.toml", "a / b")] {
            assert_eq!(fs::read_to_string(dir.path().join(file)).unwrap(), text);
        }
    }
}
