//! Opening a database, migrating it, and what is said when that fails.

use std::sync::Arc;

use prompt_manager::db::{self, SchemaState, StoreError};
use sea_orm::{ConnectionTrait, DbBackend, Statement};

use super::{Site, config, job};
use crate::support::postgres;

pub(super) async fn migrating_twice_and_at_once_is_harmless(site: Site) {
    let starts = (0..4).map(|_| {
        let url = site.url.clone();
        // Each with a pool of its own, as processes that start together.
        tokio::spawn(async move { db::migrate(&db::connect(&config(&url)).await?).await })
    });
    for start in starts.collect::<Vec<_>>() {
        start.await.unwrap().unwrap();
    }
    let (ledger, db) = site.ledger().await;
    assert_eq!(db::schema_state(&db).await.unwrap(), SchemaState::Current);
    ledger.insert(Arc::new(job())).await.unwrap();
}

pub(super) async fn the_schema_is_compared_with_this_version(site: Site) {
    let db = site.connect().await;
    let SchemaState::Behind { pending } = db::schema_state(&db).await.unwrap() else { panic!("the database is empty") };
    assert!(pending.contains(&"m20261123_000003_runs".to_owned()), "{pending:?}");
    assert!(pending.is_sorted());
    db::migrate(&db).await.unwrap();
    assert_eq!(db::schema_state(&db).await.unwrap(), SchemaState::Current);

    let newer = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m29991231_000001_newer', 0)";
    db.execute_unprepared(newer).await.unwrap();
    let unknown = vec!["m29991231_000001_newer".to_owned()];
    assert_eq!(db::schema_state(&db).await.unwrap(), SchemaState::Ahead { unknown });
    let Err(StoreError::Refused(sentence)) = db::migrate(&db).await else { panic!("a newer schema was migrated") };
    assert!(sentence.contains("m29991231_000001_newer"), "{sentence}");
}

#[tokio::test]
async fn sqlite_is_opened_so_that_a_commit_survives_a_power_cut() {
    let db = Site::sqlite();
    let db = db.connect().await;
    let check = async |pragma: &str, expect: &str| {
        let statement = Statement::from_string(
            DbBackend::Sqlite,
            format!("SELECT CAST({pragma} AS TEXT) AS value FROM pragma_{pragma}"),
        );
        let value: String = db.query_one_raw(statement).await.unwrap().unwrap().try_get("", "value").unwrap();
        assert_eq!(value, expect, "{pragma}");
    };
    check("journal_mode", "wal").await;
    check("synchronous", "2").await;
    check("foreign_keys", "1").await;
}

#[tokio::test]
async fn writers_that_read_first_take_turns_on_sqlite() {
    let site = Site::sqlite();
    let db = site.connect().await;
    db.execute_unprepared("CREATE TABLE counter (n INTEGER NOT NULL)").await.unwrap();
    db.execute_unprepared("INSERT INTO counter VALUES (0)").await.unwrap();
    let select = Statement::from_string(DbBackend::Sqlite, "SELECT n FROM counter");
    let add = async || -> Result<(), sea_orm::DbErr> {
        let transaction = db::begin(&db).await?;
        let n: i64 = transaction.query_one_raw(select.clone()).await?.unwrap().try_get("", "n")?;
        transaction.execute_unprepared(&format!("UPDATE counter SET n = {}", n + 1)).await?;
        transaction.commit().await
    };
    for result in futures::future::join_all((0..20).map(|_| add())).await {
        result.unwrap();
    }
    let n: i64 = db.query_one_raw(select).await.unwrap().unwrap().try_get("", "n").unwrap();
    assert_eq!(n, 20);
}

#[tokio::test]
async fn a_commit_counts_after_sqlite_ended_a_transaction_by_itself() {
    let site = Site::sqlite();
    let (db, other) = (site.connect().await, site.connect().await);
    db.execute_unprepared("CREATE TABLE names (name TEXT NOT NULL)").await.unwrap();
    // As after a full disk: the transaction is over, and the driver does not know.
    for _ in 0..20 {
        let transaction = db::begin(&db).await.unwrap();
        transaction.execute_unprepared("ROLLBACK").await.unwrap();
        drop(transaction);
    }
    for name in 0..20 {
        let transaction = db::begin(&db).await.unwrap();
        // What fails inside a savepoint leaves the transaction around it open.
        transaction.execute_unprepared("INSERT INTO names VALUES (NULL)").await.unwrap_err();
        drop(transaction);
        let transaction = db::begin(&db).await.unwrap();
        transaction.execute_unprepared(&format!("INSERT INTO names VALUES ('{name}')")).await.unwrap();
        transaction.commit().await.unwrap();
    }
    let count = Statement::from_string(DbBackend::Sqlite, "SELECT COUNT(*) AS n FROM names");
    let n: i64 = other.query_one_raw(count).await.unwrap().unwrap().try_get("", "n").unwrap();
    assert_eq!(n, 20, "what was committed is there for everybody");
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_is_one_sentence_without_the_password() {
    let check = async |url: &str, expect: &str| {
        let error = db::connect(&config(url)).await.unwrap_err();
        assert!(error.to_string().starts_with(expect), "{error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    check(
        &format!("sqlite://{path}/no/folder.db?mode=rwc"),
        &format!("the folder {path}/no of the database does not exist"),
    )
    .await;
    check(
        &format!("sqlite://{path}/absent.db"),
        &format!("the database file {path}/absent.db does not exist (it is created when its URL ends in ?mode=rwc)"),
    )
    .await;
    std::fs::write(folder.path().join("text.db"), "not a database, but long enough to be looked at".repeat(100))
        .unwrap();
    check(&format!("sqlite://{path}/text.db"), &format!("the database file {path}/text.db cannot be opened as")).await;
    check("sqlite::memory:", "a SQLite database in memory").await;
    check("mysql://root:s3cret@localhost/db", "the database URL must start with").await;
    // Port 1 is nobody's.
    check("postgres://me:s3cret@127.0.0.1:1/runs", "the PostgreSQL database runs at 127.0.0.1:1 cannot be reached: ")
        .await;
    let absent = postgres::database().await.replace("/test_", "/absent_").replace("postgres@", "postgres:s3cret@");
    check(&absent, "the PostgreSQL database absent_").await;
}

#[tokio::test]
async fn is_unique_violation_knows_one() {
    for site in [Site::sqlite(), Site::postgres().await] {
        let db = site.connect().await;
        db.execute_unprepared("CREATE TABLE names (name TEXT NOT NULL UNIQUE)").await.unwrap();
        let insert = "INSERT INTO names VALUES ('a')";
        db.execute_unprepared(insert).await.unwrap();
        assert!(db::is_unique_violation(&db.execute_unprepared(insert).await.unwrap_err()));
        assert!(!db::is_unique_violation(&db.execute_unprepared("INSERT INTO names VALUES (NULL)").await.unwrap_err()));
    }
}
