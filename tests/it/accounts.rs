//! Accounts, users and keys, over both databases, as several processes see them.

use std::time::{Duration, Instant};

use prompt_manager::{
    accounts::{Account, Accounts, NewAccount, NewUser, Plan, PlanChange, Role},
    audit::Actor,
    changes::{Changes, TRUST},
    config::DatabaseConfig,
    db::{self, StoreError},
    keys::{KeyError, KeyText, Keys, MintedKey, NewKey, Principal, Revocation},
    money::Usd,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use tokio_util::sync::{CancellationToken, DropGuard};
use workers::{
    job::{KeyId, UnixMillis},
    providers::Secret,
};

use crate::support::postgres::{self, PostgresServer};

/// How soon every process must know of a change.
pub const SOON: Duration = Duration::from_secs(1);

/// Runs a test on a fresh SQLite file, then on a fresh PostgreSQL database.
pub async fn each_database(test: impl AsyncFn(DatabaseConfig)) {
    let dir = tempfile::tempdir().unwrap();
    let file = config(format!("sqlite://{}/test.db?mode=rwc", dir.path().display()));
    db::migrate(&db::connect(&file).await.unwrap()).await.unwrap();
    test(file).await;
    let server = config(postgres::database().await);
    db::migrate(&db::connect(&server).await.unwrap()).await.unwrap();
    test(server).await;
}

fn config(url: String) -> DatabaseConfig {
    DatabaseConfig { url: Secret::new(url), max_connections: 4, connect_timeout: Duration::from_secs(2) }
}

/// One process: connections of its own, and a memory that it trusts.
pub struct Process {
    pub db: DatabaseConnection,
    pub changes: Changes,
    _stop: DropGuard,
}

impl Process {
    pub async fn start(config: &DatabaseConfig) -> Self {
        let db = db::connect(config).await.unwrap();
        let stop = CancellationToken::new();
        let (changes, _task) = Changes::watch(db.clone(), stop.clone());
        until(|| async { changes.generation().is_some() }).await;
        Self { db, changes, _stop: stop.drop_guard() }
    }

    fn accounts(&self) -> Accounts {
        Accounts::new(self.db.clone(), self.changes.clone())
    }

    fn keys(&self) -> Keys {
        Keys::new(self.db.clone(), None, self.changes.clone())
    }

    /// One number, of a query without parameters.
    pub async fn number(&self, sql: &str) -> i64 {
        let query = Statement::from_string(self.db.get_database_backend(), sql);
        self.db.query_one_raw(query).await.unwrap().unwrap().try_get_by_index(0).unwrap()
    }

    /// A write that no other process is told of.
    pub async fn behind_the_back(&self, sql: &str) {
        self.db.execute_unprepared(sql).await.unwrap();
    }
}

/// Waits for a condition, and says how long that took.
pub async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) -> Duration {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < Duration::from_secs(20), "the condition never came true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    started.elapsed()
}

pub async fn account(process: &Process, name: &str) -> Account {
    let new = NewAccount {
        name: name.into(),
        plan: Plan::Pro,
        plan_ends: None,
        allowed_models: vec![],
        monthly_budget: None,
    };
    process.accounts().create(&Actor::cli(), new).await.unwrap()
}

async fn key(keys: &Keys, account: &Account, expires_at: Option<UnixMillis>) -> MintedKey {
    let new = NewKey { account: account.id, name: "App".into(), environment: "dev".into(), expires_at };
    keys.create(&Actor::cli(), new).await.unwrap()
}

#[track_caller]
pub fn refusal<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Refused(sentence)) => sentence,
        other => panic!("not refused: {other:?}"),
    }
}

async fn accepts(keys: &Keys, text: &KeyText) -> bool {
    match keys.authenticate(text.expose()).await {
        Ok(_) => true,
        Err(KeyError::Invalid) => false,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn an_account_and_its_plan() {
    each_database(async |config| {
        let process = Process::start(&config).await;
        let accounts = process.accounts();
        let zoe = account(&process, "  Zoé & Cie ").await;
        account(&process, "acme").await;
        assert_eq!(zoe.name, "Zoé & Cie");
        assert_eq!(accounts.named("Zoé & Cie").await.unwrap(), zoe);
        let names: Vec<String> = accounts.list().await.unwrap().into_iter().map(|account| account.name).collect();
        assert_eq!(names, ["Zoé & Cie", "acme"]);

        let new = NewAccount {
            name: "acme".into(),
            plan: Plan::Free,
            plan_ends: None,
            allowed_models: vec![],
            monthly_budget: None,
        };
        assert_eq!(
            refusal(accounts.create(&Actor::cli(), new.clone()).await),
            "there is already an account named 'acme'"
        );
        let empty = NewAccount { name: " ".into(), ..new };
        assert_eq!(refusal(accounts.create(&Actor::cli(), empty).await), "the name of an account must not be empty");
        assert_eq!(refusal(accounts.named("nobody").await), "there is no account named 'nobody'");

        let ends = UnixMillis(1_900_000_000_123);
        let change = PlanChange {
            plan_ends: Some(Some(ends)),
            allowed_models: Some(vec!["gpt-4".into(), "é".into()]),
            ..PlanChange::default()
        };
        let changed = accounts.set_plan(&Actor::cli(), zoe.id, change.clone()).await.unwrap();
        assert_eq!((changed.plan, changed.plan_ends), (Plan::Pro, Some(ends)));
        assert_eq!(accounts.find(zoe.id).await.unwrap().unwrap(), changed);
        assert_eq!(changed.allowed_models, ["gpt-4", "é"]);
        accounts.set_plan(&Actor::cli(), zoe.id, change).await.unwrap();
        let change = PlanChange { plan: Some(Plan::Free), plan_ends: Some(None), ..PlanChange::default() };
        let changed = accounts.set_plan(&Actor::cli(), zoe.id, change).await.unwrap();
        assert_eq!((changed.plan, changed.plan_ends, changed.allowed_models.len()), (Plan::Free, None, 2));
        for budget in [Some(Usd(12_500_000_001)), None] {
            let change = PlanChange { monthly_budget: Some(budget), ..PlanChange::default() };
            let changed = accounts.set_plan(&Actor::cli(), zoe.id, change).await.unwrap();
            assert_eq!((changed.plan, changed.monthly_budget), (Plan::Free, budget));
            assert_eq!(accounts.find(zoe.id).await.unwrap().unwrap(), changed);
        }

        // What was refused, or changed nothing, left no trace: two creations and four changes did.
        assert_eq!(process.number("SELECT count(*) FROM audit_log").await, 6);
        assert_eq!(process.number("SELECT counter FROM changes").await, 6);
        let told = "SELECT count(*) FROM audit_log WHERE detail LIKE '%\"monthlyBudgetUsd\":12.500000001%'";
        assert_eq!(process.number(told).await, 2, "as the new fact, and then as the old one");
    })
    .await;
}

#[tokio::test]
async fn users_sign_in_by_their_address() {
    each_database(async |config| {
        let process = Process::start(&config).await;
        let accounts = process.accounts();
        let acme = account(&process, "acme").await;
        let other = account(&process, "other").await;
        let password = || Secret::new("correct horse battery staple");
        let new = |email: &str, password: Secret| NewUser {
            email: email.into(),
            account: acme.id,
            role: Role::Owner,
            password,
        };
        let steph = accounts.create_user(&Actor::cli(), new(" Steph@Example.COM", password())).await.unwrap();
        assert_eq!(steph.email, "steph@example.com");
        assert_eq!(accounts.users(acme.id).await.unwrap(), std::slice::from_ref(&steph));
        assert_eq!(accounts.users(other.id).await.unwrap(), []);

        let again = NewUser { account: other.id, ..new("steph@example.com", password()) };
        assert_eq!(
            refusal(accounts.create_user(&Actor::cli(), again).await),
            "there is already a user with the address steph@example.com"
        );
        let weak = accounts.create_user(&Actor::cli(), new("a@b", Secret::new("short"))).await;
        assert_eq!(refusal(weak), "the password must have at least 15 characters");
        for wrong in ["", "a", "@b", "a@", "a b@c", "a@b@c"] {
            let refused = refusal(accounts.create_user(&Actor::cli(), new(wrong, password())).await);
            assert_eq!(refused, format!("'{wrong}' is not an e-mail address"));
        }

        assert_eq!(accounts.sign_in("STEPH@example.com ", password()).await.unwrap(), Some(steph));
        assert_eq!(accounts.sign_in("steph@example.com", Secret::new("wrong")).await.unwrap(), None);
        assert_eq!(accounts.sign_in("nobody@example.com", password()).await.unwrap(), None);
        let leaked =
            "SELECT count(*) FROM users WHERE password_hash NOT LIKE '$argon2id$%' OR password_hash LIKE '%horse%'";
        assert_eq!(process.number(leaked).await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_key_from_creation_to_revocation() {
    each_database(async |config| {
        let process = Process::start(&config).await;
        let keys = process.keys();
        let acme = account(&process, "acme").await;
        let other = account(&process, "other").await;
        let minted = key(&keys, &acme, None).await;
        let text = minted.text.expose();
        let (hidden, shown) = text.split_at(text.len() - 6);
        assert_eq!(minted.record.mask, format!("sk_***{shown}"));
        let principal: Principal = (*keys.authenticate(text).await.unwrap()).clone();
        assert_eq!((principal.account, principal.key), (acme.clone(), minted.record.id));

        // Only what is shown, and a hash, are stored.
        assert_eq!(keys.list(acme.id).await.unwrap(), std::slice::from_ref(&minted.record));
        assert_eq!(keys.list(other.id).await.unwrap(), []);
        let hidden = hidden.trim_start_matches("sk_");
        for (table, column) in [("api_keys", "hash"), ("api_keys", "mask"), ("audit_log", "detail")] {
            let sql = format!("SELECT count(*) FROM {table} WHERE {column} LIKE '%{hidden}%'");
            assert_eq!(process.number(&sql).await, 0, "{table}.{column}");
        }

        let gone = key(&keys, &other, None).await;
        process.behind_the_back(&format!("DELETE FROM api_keys WHERE mask = '{}'", gone.record.mask)).await;
        assert!(!accepts(&keys, &gone.text).await, "well-formed, and nobody's");
        for bad in ["", "sk_votre_cle_api_ici", &text.to_uppercase(), text.split_at(text.len() - 1).0] {
            assert!(matches!(keys.authenticate(bad).await, Err(KeyError::Invalid)), "{bad}");
        }
        let spare = key(&keys, &acme, None).await;
        let steph = Actor::user("steph@example.com");
        let revoke = |account, id| keys.revoke(&steph, account, id);
        assert_eq!(revoke(Some(other.id), minted.record.id).await.unwrap(), Revocation::NotFound);
        assert_eq!(revoke(None, KeyId::new()).await.unwrap(), Revocation::NotFound);
        assert!(accepts(&keys, &minted.text).await);
        assert_eq!(revoke(Some(acme.id), minted.record.id).await.unwrap(), Revocation::Revoked);
        // In the process that did it, at once.
        assert!(!accepts(&keys, &minted.text).await);
        assert!(matches!(revoke(None, minted.record.id).await.unwrap(), Revocation::RevokedBefore(_)));
        let listed = keys.list(acme.id).await.unwrap();
        assert!(listed[0].revoked_at.is_some() && listed[1] == spare.record);

        let late = NewKey {
            account: acme.id,
            name: "late".into(),
            environment: String::new(),
            expires_at: Some(UnixMillis(1)),
        };
        let refused = refusal(keys.create(&Actor::cli(), late).await);
        assert_eq!(refused, "the key would be expired from the start");
    })
    .await;
}

#[tokio::test]
async fn keys_outlive_the_day_a_secret_is_configured() {
    each_database(async |config| {
        let process = Process::start(&config).await;
        let acme = account(&process, "acme").await;
        let with =
            |secret: Option<&str>| Keys::new(process.db.clone(), secret.map(Secret::new), process.changes.clone());
        let before = key(&with(None), &acme, None).await.text;
        let after = key(&with(Some("secret")), &acme, None).await.text;
        assert!(accepts(&with(Some("secret")), &before).await);
        assert!(accepts(&with(Some("secret")), &after).await);
        assert!(!accepts(&with(Some("another")), &after).await, "the hash is keyed");
        assert!(!accepts(&with(None), &after).await);
    })
    .await;
}

#[tokio::test]
async fn a_remembered_key_is_forgotten_in_every_process_within_a_second() {
    each_database(async |config| {
        let (here, there) = (Process::start(&config).await, Process::start(&config).await);
        let acme = account(&here, "acme").await;
        let minted = key(&here.keys(), &acme, None).await;
        let kept = key(&here.keys(), &acme, None).await;
        let keys = there.keys();
        until(|| accepts(&keys, &minted.text)).await;

        // It is remembered: what nobody was told of is not seen.
        tokio::time::sleep(SOON).await;
        assert!(accepts(&keys, &minted.text).await);
        there.behind_the_back("UPDATE api_keys SET revoked_at = 1").await;
        assert!(accepts(&keys, &minted.text).await);
        there.behind_the_back("UPDATE api_keys SET revoked_at = NULL").await;

        here.keys().revoke(&Actor::cli(), None, minted.record.id).await.unwrap();
        let took = until(|| async { !accepts(&keys, &minted.text).await }).await;
        assert!(took < SOON, "{took:?}");
        assert!(accepts(&keys, &kept.text).await);

        // A plan is a fact of the principal, and follows in the same way.
        let change = PlanChange { plan: Some(Plan::Free), ..PlanChange::default() };
        here.accounts().set_plan(&Actor::cli(), acme.id, change).await.unwrap();
        let took =
            until(|| async { keys.authenticate(kept.text.expose()).await.unwrap().account.plan == Plan::Free }).await;
        assert!(took < SOON, "{took:?}");
    })
    .await;
}

#[tokio::test]
async fn a_key_expires_on_time_even_when_it_is_remembered() {
    each_database(async |config| {
        let process = Process::start(&config).await;
        let acme = account(&process, "acme").await;
        let keys = process.keys();
        let end = UnixMillis::now().plus(700);
        let minted = key(&keys, &acme, Some(end)).await;
        assert!(accepts(&keys, &minted.text).await);
        until(|| async { !accepts(&keys, &minted.text).await }).await;
        let late = UnixMillis::now().since(end);
        assert!(UnixMillis::now() >= end && late < 500, "{late} ms late");
    })
    .await;
}

#[tokio::test]
async fn the_last_use_is_written_behind_the_request_and_at_the_end() {
    each_database(async |config| {
        let process = Process::start(&config).await;
        let acme = account(&process, "acme").await;
        let keys = process.keys();
        let minted = key(&keys, &acme, None).await;
        let stop = CancellationToken::new();
        let recorder = keys.record_uses(stop.clone());
        let last_used = || async { keys.list(acme.id).await.unwrap()[0].last_used_at };
        let before = UnixMillis::now();
        assert!(accepts(&keys, &minted.text).await);
        until(|| async { last_used().await.is_some() }).await;
        let first = last_used().await.unwrap();
        assert!(first >= before && first <= UnixMillis::now());

        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(accepts(&keys, &minted.text).await);
        stop.cancel();
        recorder.await.unwrap();
        assert!(last_used().await.unwrap() > first, "nothing is lost at the end");
        // A use is no change: nobody forgets anything for it.
        assert_eq!(process.number("SELECT counter FROM changes").await, 2);
    })
    .await;
}

#[tokio::test]
async fn without_the_database_memory_is_trusted_for_a_while_only() {
    let server = PostgresServer::start();
    let config = config(server.database().await);
    db::migrate(&db::connect(&config).await.unwrap()).await.unwrap();
    let process = Process::start(&config).await;
    let acme = account(&process, "acme").await;
    let keys = process.keys();
    let minted = key(&keys, &acme, None).await;
    until(|| accepts(&keys, &minted.text)).await;
    tokio::time::sleep(SOON).await;
    assert!(accepts(&keys, &minted.text).await);

    server.stop();
    let stopped = Instant::now();
    assert!(accepts(&keys, &minted.text).await, "a short outage is not seen");
    until(|| async { keys.authenticate(minted.text.expose()).await.is_err() }).await;
    // The first look-up that fails waits for a connection, as long as it may.
    let trusted = stopped.elapsed();
    assert!(trusted > TRUST - SOON && trusted < TRUST + config.connect_timeout + SOON, "{trusted:?}");
    let error = keys.authenticate(minted.text.expose()).await.unwrap_err();
    assert!(matches!(error, KeyError::Store(StoreError::Unavailable { .. })), "{error:?}");

    server.restart();
    until(|| async { keys.authenticate(minted.text.expose()).await.is_ok() }).await;
}
