//! The ledger, over SQLite and PostgreSQL alike, and the opening and migrating of both.

mod dead;
mod keys;
mod opening;
mod outbox;
mod results;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prompt_manager::{
    config::DatabaseConfig,
    db::{self, StoreError},
};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement, TryGetable};
use tempfile::TempDir;
use uuid::Uuid;
use workers::{
    job::{
        AccountId, Attempt, AttemptOutcome, Ending, Failure, Fence, Job, KeyId, Lane, ModelRequest, Outcome,
        Parameters, Price, PromptId, RunId, RunState, Target, UnixMillis, Usage, WIRE_VERSION, WorkerId,
    },
    ledger::{Ledger, LedgerError, RunRecord, Settled},
    providers::Secret,
};

use self::dead::{a_dead_run_is_looked_after_once, dead_runs_keep_their_job_until_somebody_has_looked_after_them};
use self::keys::{a_key_stands_for_one_run_for_a_day, of_many_runs_with_one_key_one_is_written};
use self::opening::{migrating_twice_and_at_once_is_harmless, the_schema_is_compared_with_this_version};
use self::outbox::{
    a_delivery_goes_its_way_and_begins_again, a_delivery_is_one_process_s_for_its_lease,
    an_ending_that_won_is_told_of_once,
};
use self::results::{
    a_result_stands_for_its_time_and_its_account, many_may_write_one_result_at_once, only_a_result_of_a_call_is_kept,
};
use crate::support::postgres::{self, PostgresServer};

/// An empty database of either kind.
struct Site {
    url: String,
    _folder: Option<TempDir>,
}

impl Site {
    fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/ledger.db?mode=rwc", folder.path().display());
        Self { url, _folder: Some(folder) }
    }

    async fn postgres() -> Self {
        Self { url: postgres::database().await, _folder: None }
    }

    async fn connect(&self) -> DatabaseConnection {
        db::connect(&config(&self.url)).await.unwrap()
    }

    /// A ledger on a migrated database.
    async fn ledger(&self) -> (Ledger, DatabaseConnection) {
        let db = self.connect().await;
        db::migrate(&db).await.unwrap();
        (Ledger::new(db.clone()), db)
    }
}

fn config(url: &str) -> DatabaseConfig {
    DatabaseConfig { url: Secret::new(url), max_connections: 5, connect_timeout: Duration::from_secs(5) }
}

/// Runs every test once over each database.
macro_rules! over_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Site::sqlite()).await
            })*
        }
        mod postgresql {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Site::postgres().await).await
            })*
        }
    };
}

over_both!(
    a_run_round_trips_from_queued_to_succeeded,
    a_run_that_was_never_inserted_is_written_by_its_ending,
    an_insert_after_the_ending_changes_nothing,
    a_terminal_run_never_changes,
    an_ending_with_an_older_fence_than_a_recorded_call_changes_nothing,
    two_endings_of_one_run_in_a_batch_have_one_winner,
    concurrent_inserts_share_transactions_and_are_all_committed,
    a_row_that_the_database_refuses_fails_alone,
    an_ending_whose_texts_are_refused_is_written_without_them,
    an_ending_that_is_refused_altogether_does_not_fail_the_others,
    characters_that_postgresql_refuses_are_replaced,
    unfinished_runs_come_in_pages_with_their_jobs_and_attempts,
    an_unreadable_job_is_left_out,
    endings_are_rebuilt,
    content_is_not_stored_when_it_is_not_kept,
    a_batch_may_have_more_values_than_a_statement,
    recording_an_attempt_again_changes_nothing,
    the_worker_that_was_thought_lost_has_the_last_word,
    what_was_spent_is_summed_up_over_all_calls,
    dead_runs_keep_their_job_until_somebody_has_looked_after_them,
    a_key_stands_for_one_run_for_a_day,
    of_many_runs_with_one_key_one_is_written,
    a_result_stands_for_its_time_and_its_account,
    only_a_result_of_a_call_is_kept,
    many_may_write_one_result_at_once,
    a_dead_run_is_looked_after_once,
    an_ending_that_won_is_told_of_once,
    a_delivery_is_one_process_s_for_its_lease,
    a_delivery_goes_its_way_and_begins_again,
    a_run_is_found_by_its_own_account_only,
    migrating_twice_and_at_once_is_harmless,
    the_schema_is_compared_with_this_version,
    a_read_only_database_is_told_apart,
    a_writer_that_goes_leaves_nothing_unwritten,
);

fn job() -> Job {
    Job {
        v: WIRE_VERSION,
        id: RunId::new(),
        account: AccountId::new(),
        key: Some(KeyId::new()),
        prompt: PromptId::new(),
        prompt_name: "Email de Bienvenue".into(),
        prompt_version: 3,
        lane: Lane::Batch,
        targets: vec![Target {
            model: "gpt-4".into(),
            provider: "openai".into(),
            upstream: "gpt-4-0613".into(),
            price: Some(Price { input: 2_500_000_000, output: 10_000_000_000 }),
        }],
        request: ModelRequest {
            system: Some("Tu rédiges des courriels.".into()),
            user: "Bonjour Steph".into(),
            parameters: Parameters { temperature: Some(0.7), ..Parameters::default() },
            output_schema: None,
        },
        stream: true,
        metadata: BTreeMap::from([("équipe".to_owned(), "croissance".to_owned())]),
        created_at: UnixMillis(1_700_000_000_000),
        deadline: UnixMillis(1_700_000_030_000),
        keep_content: true,
        tokens: 500,
        repeat_streamed: false,
        webhook_url: None,
        caching: None,
    }
}

fn attempt(number: i32, fence: i64) -> Attempt {
    Attempt {
        number,
        fence: Fence(fence),
        provider: "openai".into(),
        model: "gpt-4-turbo".into(),
        worker: WorkerId::new(),
        started_at: UnixMillis(1_700_000_001_000 + i64::from(number)),
        duration_ms: 1245,
        first_token_ms: Some(310),
        outcome: AttemptOutcome::Succeeded,
        status: Some(200),
        detail: Some("tout va bien".into()),
        usage: Usage { input_tokens: Some(1000), output_tokens: Some(100) },
        cost_nano_usd: Some(3_500_000),
    }
}

fn failed(number: i32, fence: i64) -> Attempt {
    Attempt {
        outcome: AttemptOutcome::RateLimited,
        status: Some(429),
        first_token_ms: None,
        usage: Usage::default(),
        cost_nano_usd: None,
        detail: Some("429 Too Many Requests".into()),
        ..attempt(number, fence)
    }
}

fn ending(job: &Job, outcome: Outcome, fence: i64, attempt: Option<Attempt>) -> Ending {
    Ending {
        v: WIRE_VERSION,
        run: job.id,
        fence: Fence(fence),
        outcome,
        model: "gpt-4-turbo".into(),
        started_at: Some(UnixMillis(1_700_000_001_000)),
        finished_at: UnixMillis(1_700_000_002_500),
        queue_ms: 42,
        attempt,
        cache: None,
    }
}

fn succeeded() -> Outcome {
    Outcome::Succeeded { output: "Bonjour Steph,\n\nBienvenue !".into(), finish_reason: Some("stop".into()) }
}

fn refused() -> Failure {
    Failure { code: "model_failed".into(), message: "The model call failed.".into(), retryable: true }
}

/// The record of a run that waits.
fn queued(job: &Job) -> RunRecord {
    RunRecord {
        id: job.id,
        account: job.account,
        state: RunState::Queued,
        prompt_name: job.prompt_name.clone(),
        prompt_version: job.prompt_version,
        model: "gpt-4".into(),
        lane: job.lane,
        metadata: job.metadata.clone(),
        created_at: job.created_at,
        deadline: job.deadline,
        started_at: None,
        finished_at: None,
        queue_ms: None,
        attempts: vec![],
        output: None,
        finish_reason: None,
        failure: None,
        usage: Usage::default(),
        cost_nano_usd: None,
        cache: None,
        requeued_from: None,
    }
}

/// The record of a run after its ending, with all its attempts.
fn ended(job: &Job, ending: &Ending, attempts: Vec<Attempt>) -> RunRecord {
    let (output, finish_reason, failure) = match ending.outcome.clone() {
        Outcome::Succeeded { output, finish_reason } => (Some(output), finish_reason, None),
        Outcome::Failed(failure) => (None, None, Some(failure)),
        Outcome::Cancelled | Outcome::Expired => (None, None, None),
    };
    RunRecord {
        state: ending.outcome.state(),
        model: ending.model.clone(),
        started_at: ending.started_at,
        finished_at: Some(ending.finished_at),
        queue_ms: Some(ending.queue_ms),
        attempts,
        output,
        finish_reason,
        failure,
        usage: ending.usage(),
        cost_nano_usd: ending.cost_nano_usd(),
        ..queued(job)
    }
}

async fn find(ledger: &Ledger, job: &Job) -> RunRecord {
    ledger.find(job.account, job.id).await.unwrap().expect("the run is in the ledger")
}

async fn finish(ledger: &Ledger, job: &Job, ending: &Ending) -> Settled {
    let settled = ledger.finish(&[(Arc::new(job.clone()), Arc::new(ending.clone()))]).await.unwrap();
    assert_eq!(settled.len(), 1);
    settled[0]
}

/// Makes the database refuse rows of `runs` whose column holds a value.
async fn forbid(db: &DatabaseConnection, column: &str, value: &str) {
    let statements = match db.get_database_backend() {
        DbBackend::Postgres => vec![format!("ALTER TABLE runs ADD CHECK ({column} <> '{value}')")],
        _ => ["INSERT", "UPDATE"]
            .map(|verb| {
                format!(
                    "CREATE TRIGGER refuse_{column}_{verb} BEFORE {verb} ON runs WHEN NEW.{column} = '{value}' \
                     BEGIN SELECT RAISE(ABORT, 'refused'); END"
                )
            })
            .to_vec(),
    };
    for statement in statements {
        db.execute_unprepared(&statement).await.unwrap();
    }
}

/// A value of a run's row, for columns that no record shows.
async fn column<T: TryGetable>(db: &DatabaseConnection, name: &str, run: RunId) -> T {
    let sql = format!("SELECT {name} FROM runs WHERE id = $1");
    let select = Statement::from_sql_and_values(db.get_database_backend(), sql, [run.0.into()]);
    db.query_one_raw(select).await.unwrap().expect("the row").try_get("", name).unwrap()
}

async fn a_run_round_trips_from_queued_to_succeeded(site: Site) {
    let (ledger, db) = site.ledger().await;
    let job = job();
    ledger.insert(Arc::new(job.clone())).await.unwrap();
    assert_eq!(find(&ledger, &job).await, queued(&job));
    assert!(column::<Option<String>>(&db, "job", job.id).await.is_some());

    let first = failed(1, 10);
    ledger.record_attempts(&[(job.id, first.clone())]).await.unwrap();
    let waiting = RunRecord { started_at: Some(first.started_at), attempts: vec![first.clone()], ..queued(&job) };
    assert_eq!(find(&ledger, &job).await, waiting);

    let last = attempt(2, 20);
    let ending = ending(&job, succeeded(), 20, Some(last.clone()));
    assert_eq!(finish(&ledger, &job, &ending).await, Settled::Won);
    let expected = ended(&job, &Ending { started_at: Some(first.started_at), ..ending }, vec![first, last]);
    assert_eq!(find(&ledger, &job).await, expected);

    assert_eq!(column::<Option<String>>(&db, "job", job.id).await, None);
    let input = r#"{"system":"Tu rédiges des courriels.","user":"Bonjour Steph"}"#;
    assert_eq!(column::<Option<String>>(&db, "input", job.id).await.as_deref(), Some(input));
    assert_eq!(column::<Option<String>>(&db, "provider", job.id).await.as_deref(), Some("openai"));
    assert_eq!(column::<i32>(&db, "attempt_count", job.id).await, 2);
    assert_eq!(column::<Option<i64>>(&db, "first_token_ms", job.id).await, Some(310));
    assert_eq!(column::<i64>(&db, "fence", job.id).await, 20);
}

async fn a_run_that_was_never_inserted_is_written_by_its_ending(site: Site) {
    let (ledger, db) = site.ledger().await;
    let job = job();
    let ending = ending(&job, Outcome::Failed(refused()), 7, Some(failed(1, 7)));
    assert_eq!(finish(&ledger, &job, &ending).await, Settled::Won);
    assert_eq!(find(&ledger, &job).await, ended(&job, &ending, ending.attempt.clone().into_iter().collect()));
    assert_eq!(column::<Option<Uuid>>(&db, "api_key", job.id).await, job.key.map(|key| key.0));
    assert_eq!(column::<Uuid>(&db, "prompt", job.id).await, job.prompt.0);
    assert!(column::<bool>(&db, "stream", job.id).await);
}

async fn an_insert_after_the_ending_changes_nothing(site: Site) {
    let (ledger, db) = site.ledger().await;
    let job = job();
    let ending = ending(&job, succeeded(), 7, Some(attempt(1, 7)));
    finish(&ledger, &job, &ending).await;
    let before = find(&ledger, &job).await;
    ledger.insert(Arc::new(job.clone())).await.unwrap();
    assert_eq!(find(&ledger, &job).await, before);
    assert_eq!(column::<Option<String>>(&db, "job", job.id).await, None);
    assert!(ledger.unfinished_ids(None, 10).await.unwrap().is_empty());
    assert!(ledger.unfinished(&[job.id]).await.unwrap().is_empty());
    assert_eq!(ledger.last_unfinished().await.unwrap(), None);
}

async fn a_terminal_run_never_changes(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let job = job();
    ledger.insert(Arc::new(job.clone())).await.unwrap();
    let first = ending(&job, succeeded(), 10, Some(attempt(1, 10)));
    assert_eq!(finish(&ledger, &job, &first).await, Settled::Won);
    assert_eq!(finish(&ledger, &job, &first).await, Settled::AlreadyEnded);
    let before = find(&ledger, &job).await;
    assert_eq!(before, ended(&job, &first, first.attempt.clone().into_iter().collect()));

    let late = ending(&job, Outcome::Failed(refused()), 30, Some(failed(2, 30)));
    assert_eq!(finish(&ledger, &job, &late).await, Settled::AlreadyEnded);
    ledger.record_attempts(&[(job.id, failed(3, 40))]).await.unwrap();
    let mut after = find(&ledger, &job).await;
    let numbers: Vec<i32> = after.attempts.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, [1, 2, 3], "what was paid for is recorded");
    after.attempts.truncate(1);
    assert_eq!(after, before);
}

async fn an_ending_with_an_older_fence_than_a_recorded_call_changes_nothing(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let job = job();
    ledger.insert(Arc::new(job.clone())).await.unwrap();
    ledger.record_attempts(&[(job.id, failed(2, 20))]).await.unwrap();
    let stale = ending(&job, succeeded(), 10, Some(attempt(1, 10)));
    assert_eq!(finish(&ledger, &job, &stale).await, Settled::AlreadyEnded);
    let run = find(&ledger, &job).await;
    assert_eq!((run.state, run.finished_at, run.attempts.len()), (RunState::Queued, None, 2));

    let same = ending(&job, Outcome::Expired, 20, None);
    assert_eq!(finish(&ledger, &job, &same).await, Settled::Won);
    assert_eq!(find(&ledger, &job).await.state, RunState::Expired);
}

async fn two_endings_of_one_run_in_a_batch_have_one_winner(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let (one, other) = (Arc::new(job()), Arc::new(job()));
    let entry =
        |job: &Arc<Job>, outcome, fence| (job.clone(), Arc::new(ending(job, outcome, fence, Some(attempt(1, fence)))));
    let batch =
        [entry(&one, succeeded(), 10), entry(&other, Outcome::Cancelled, 11), entry(&one, Outcome::Expired, 12)];
    let settled = ledger.finish(&batch).await.unwrap();
    assert_eq!(settled, [Settled::Won, Settled::Won, Settled::AlreadyEnded]);
    let run = find(&ledger, &one).await;
    assert_eq!((run.state, run.attempts.len()), (RunState::Succeeded, 2));
}

async fn concurrent_inserts_share_transactions_and_are_all_committed(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let jobs: Vec<Arc<Job>> = (0..500).map(|_| Arc::new(job())).collect();
    let inserts = jobs.iter().map(|job| {
        let (ledger, job) = (ledger.clone(), job.clone());
        tokio::spawn(async move { ledger.insert(job).await })
    });
    for insert in inserts.collect::<Vec<_>>() {
        insert.await.unwrap().unwrap();
    }
    let mut expected: Vec<RunId> = jobs.iter().map(|job| job.id).collect();
    expected.sort_unstable();
    assert_eq!(ledger.unfinished_ids(None, 1000).await.unwrap(), expected);
    let stats = ledger.stats();
    assert_eq!(stats.inserts, 500);
    assert!(stats.insert_commits < 100, "{stats:?}");
}

async fn a_row_that_the_database_refuses_fails_alone(site: Site) {
    let (ledger, db) = site.ledger().await;
    forbid(&db, "prompt_name", "poison").await;
    let jobs: Vec<Arc<Job>> = (0..100)
        .map(|index| Arc::new(Job { prompt_name: if index == 40 { "poison" } else { "fine" }.into(), ..job() }))
        .collect();
    let results = futures::future::join_all(jobs.iter().map(|job| ledger.insert(job.clone()))).await;
    for (index, result) in results.into_iter().enumerate() {
        match result {
            Ok(()) => assert_ne!(index, 40),
            Err(LedgerError::Refused(_)) => assert_eq!(index, 40),
            Err(error) => panic!("run {index}: {error:?}"),
        }
    }
    assert_eq!(ledger.unfinished_ids(None, 1000).await.unwrap().len(), 99);
}

async fn an_ending_whose_texts_are_refused_is_written_without_them(site: Site) {
    let (ledger, db) = site.ledger().await;
    forbid(&db, "output", "poison").await;
    let jobs: Vec<Arc<Job>> = (0..10).map(|_| Arc::new(job())).collect();
    let batch: Vec<_> = jobs
        .iter()
        .enumerate()
        .map(|(index, job)| {
            let output = if index == 4 { "poison" } else { "fine" }.to_owned();
            let outcome = Outcome::Succeeded { output, finish_reason: None };
            (job.clone(), Arc::new(ending(job, outcome, 5, Some(attempt(1, 5)))))
        })
        .collect();
    assert_eq!(ledger.finish(&batch).await.unwrap(), [Settled::Won; 10]);
    for (index, job) in jobs.iter().enumerate() {
        let run = find(&ledger, job).await;
        assert_eq!(run.state, RunState::Succeeded);
        assert_eq!(run.output.as_deref(), (index != 4).then_some("fine"));
        assert_eq!(run.cost_nano_usd, Some(3_500_000));
    }
}

async fn an_ending_that_is_refused_altogether_does_not_fail_the_others(site: Site) {
    let (ledger, db) = site.ledger().await;
    forbid(&db, "prompt_name", "poison").await;
    let jobs = ["fine", "poison", "fine"].map(|name| Arc::new(Job { prompt_name: name.into(), ..job() }));
    let batch = jobs.clone().map(|job| {
        let ending = ending(&job, succeeded(), 5, None);
        (job, Arc::new(ending))
    });
    assert!(matches!(ledger.finish(&batch).await, Err(LedgerError::Refused(_))));
    for (job, expect) in jobs.iter().zip([true, false, true]) {
        assert_eq!(ledger.find(job.account, job.id).await.unwrap().is_some(), expect);
    }
}

async fn characters_that_postgresql_refuses_are_replaced(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let job = Job {
        prompt_name: "a\0b".into(),
        metadata: BTreeMap::from([("clé\0".to_owned(), "\0".to_owned())]),
        request: ModelRequest { user: "nul: \0".into(), ..ModelRequest::default() },
        ..job()
    };
    ledger.insert(Arc::new(job.clone())).await.unwrap();
    assert_eq!(*ledger.unfinished(&[job.id]).await.unwrap()[0].job, job, "a job is restored as it was");
    let outcome = Outcome::Succeeded { output: "avant\0après".into(), finish_reason: Some("\0".into()) };
    let call = Attempt { detail: Some("\0".into()), ..attempt(1, 5) };
    assert_eq!(finish(&ledger, &job, &ending(&job, outcome, 5, Some(call))).await, Settled::Won);
    let run = find(&ledger, &job).await;
    assert_eq!(run.output.as_deref(), Some("avant\u{fffd}après"));
    assert_eq!(run.prompt_name, "a\u{fffd}b");
    assert_eq!(run.metadata, job.metadata);
    assert_eq!(run.attempts[0].detail.as_deref(), Some("\u{fffd}"));
}

async fn unfinished_runs_come_in_pages_with_their_jobs_and_attempts(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let mut jobs: Vec<Job> = (0..5).map(|_| job()).collect();
    jobs.sort_unstable_by_key(|job| job.id);
    // The attempt of a run may be known before its row.
    let broken = Attempt { outcome: AttemptOutcome::ProviderError, ..failed(2, 2) };
    let calls = [failed(1, 1), broken, failed(3, 3)].map(|attempt| (jobs[0].id, attempt));
    ledger.record_attempts(&calls).await.unwrap();
    for job in &jobs {
        ledger.insert(Arc::new(job.clone())).await.unwrap();
    }
    finish(&ledger, &jobs[2], &ending(&jobs[2], Outcome::Cancelled, 1, None)).await;

    let first = ledger.unfinished_ids(None, 3).await.unwrap();
    let rest = ledger.unfinished_ids(Some(first[2]), 3).await.unwrap();
    assert_eq!(ledger.last_unfinished().await.unwrap(), rest.last().copied());
    assert_eq!([&first[..], &rest].concat(), [0, 1, 3, 4].map(|index| jobs[index].id));
    let asked: Vec<RunId> = jobs.iter().map(|job| job.id).chain([RunId::new()]).collect();
    let found = ledger.unfinished(&asked).await.unwrap();
    let found: Vec<(Job, i32, i32, i64)> =
        found.iter().map(|run| ((*run.job).clone(), run.attempts, run.limited, run.fence.0)).collect();
    let expected = [(0, 3, 2, 3), (1, 0, 0, 0), (3, 0, 0, 0), (4, 0, 0, 0)]
        .map(|(index, attempts, limited, fence)| (jobs[index].clone(), attempts, limited, fence));
    assert_eq!(found, expected);
}

async fn an_unreadable_job_is_left_out(site: Site) {
    let (ledger, db) = site.ledger().await;
    let mut jobs: Vec<Job> = (0..5).map(|_| job()).collect();
    jobs.sort_unstable_by_key(|job| job.id);
    jobs[0].v = WIRE_VERSION + 1;
    for job in &jobs {
        ledger.insert(Arc::new(job.clone())).await.unwrap();
    }
    let newer = jobs[4].to_text().replacen('{', r#"{"a_field_of_a_later_version":1,"#, 1);
    for (job, text) in [(&jobs[2], "garbage"), (&jobs[4], &newer)] {
        let update = "UPDATE runs SET job = $1 WHERE id = $2";
        let values = [text.into(), job.id.0.into()];
        db.execute_raw(Statement::from_sql_and_values(db.get_database_backend(), update, values)).await.unwrap();
    }
    let asked: Vec<RunId> = jobs.iter().map(|job| job.id).collect();
    assert_eq!(ledger.unfinished_ids(None, 10).await.unwrap(), asked, "its row is unfinished all the same");
    let found = ledger.unfinished(&asked).await.unwrap();
    assert_eq!(found.iter().map(|run| run.job.as_ref()).collect::<Vec<_>>(), [&jobs[1], &jobs[3]]);
}

async fn endings_are_rebuilt(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let outcomes = [succeeded(), Outcome::Failed(refused()), Outcome::Cancelled, Outcome::Expired];
    let mut expected = vec![];
    for (index, outcome) in (1..).zip(outcomes) {
        let job = job();
        ledger.record_attempts(&[(job.id, failed(1, index))]).await.unwrap();
        let ending = ending(&job, outcome, 10 + index, Some(attempt(2, 10 + index)));
        finish(&ledger, &job, &ending).await;
        expected.push(ending);
    }
    let untouched = Job { targets: vec![], ..job() };
    expected.push(ending(&untouched, Outcome::Cancelled, 3, None));
    finish(&ledger, &untouched, &expected[4]).await;
    let secret = Job { keep_content: false, ..job() };
    finish(&ledger, &secret, &ending(&secret, succeeded(), 9, None)).await;
    let waiting = job();
    ledger.insert(Arc::new(waiting.clone())).await.unwrap();

    let mut ids: Vec<RunId> = expected.iter().map(|ending| ending.run).collect();
    ids.extend([waiting.id, secret.id, RunId::new()]);
    let mut found = ledger.endings(&ids).await.unwrap();
    found.sort_unstable_by_key(|ending| ids.iter().position(|id| *id == ending.run));
    let lost = found.pop().unwrap();
    assert_eq!(found, expected);
    let Outcome::Failed(failure) = lost.outcome else { panic!("{lost:?}") };
    assert_eq!((lost.run, failure.code.as_str()), (secret.id, "output_not_kept"));
    assert!(ledger.endings(&[]).await.unwrap().is_empty());
}

async fn content_is_not_stored_when_it_is_not_kept(site: Site) {
    let (ledger, db) = site.ledger().await;
    let job = Job { keep_content: false, ..job() };
    ledger.insert(Arc::new(job.clone())).await.unwrap();
    finish(&ledger, &job, &ending(&job, succeeded(), 5, Some(attempt(1, 5)))).await;
    let run = find(&ledger, &job).await;
    assert_eq!((run.state, run.output, run.finish_reason.as_deref()), (RunState::Succeeded, None, Some("stop")));
    for name in ["job", "input", "output"] {
        assert_eq!(column::<Option<String>>(&db, name, job.id).await, None, "{name}");
    }
}

async fn a_batch_may_have_more_values_than_a_statement(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let batch: Vec<_> = (0..2500)
        .map(|_| {
            let job = Arc::new(job());
            let ending = ending(&job, succeeded(), 5, Some(attempt(1, 5)));
            (job, Arc::new(ending))
        })
        .collect();
    assert_eq!(ledger.finish(&batch).await.unwrap(), vec![Settled::Won; 2500]);
    let ids: Vec<RunId> = batch.iter().map(|(job, _)| job.id).collect();
    assert_eq!(ledger.endings(&ids).await.unwrap().len(), 2500);
}

async fn recording_an_attempt_again_changes_nothing(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let job = job();
    ledger.insert(Arc::new(job.clone())).await.unwrap();
    let first = failed(1, 10);
    let again = Attempt { detail: Some("again".into()), ..first.clone() };
    ledger.record_attempts(&[(job.id, first.clone()), (job.id, again.clone())]).await.unwrap();
    let before = find(&ledger, &job).await;
    assert_eq!(before.attempts, std::slice::from_ref(&first));
    ledger.record_attempts(&[(job.id, again)]).await.unwrap();
    assert_eq!(find(&ledger, &job).await, before);
    ledger.record_attempts(&[]).await.unwrap();
}

async fn the_worker_that_was_thought_lost_has_the_last_word(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let job = job();
    ledger.insert(Arc::new(job.clone())).await.unwrap();
    let told = attempt(1, 10);
    let guess = Attempt {
        outcome: AttemptOutcome::WorkerLost,
        usage: Usage::default(),
        cost_nano_usd: None,
        status: None,
        ..told.clone()
    };
    ledger.record_attempts(&[(job.id, guess.clone())]).await.unwrap();
    ledger.record_attempts(&[(job.id, told.clone())]).await.unwrap();
    assert_eq!(find(&ledger, &job).await.attempts, std::slice::from_ref(&told));
    ledger.record_attempts(&[(job.id, guess)]).await.unwrap();
    assert_eq!(find(&ledger, &job).await.attempts, [told]);
}

async fn what_was_spent_is_summed_up_over_all_calls(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let account = AccountId::new();
    let accepted_at = |moment: i64| {
        let first = RunId::first_at(UnixMillis(moment)).0.as_u128();
        Job { id: RunId(Uuid::from_u128(first + (RunId::new().0.as_u128() & 0xffff_ffff))), account, ..job() }
    };
    let spent = async |from, until| ledger.spent(account, UnixMillis(from)..UnixMillis(until)).await.unwrap();
    assert_eq!(spent(0, i64::MAX >> 16).await, 0);

    // Failed calls are billed too, and some cost nothing that is known.
    let one = accepted_at(2_000);
    let paid = |number, fence, nanos| Attempt { cost_nano_usd: Some(nanos), ..failed(number, fence) };
    ledger.insert(Arc::new(one.clone())).await.unwrap();
    let calls = [paid(1, 1, 100), failed(2, 2), paid(3, 3, 20)].map(|call| (one.id, call));
    ledger.record_attempts(&calls).await.unwrap();
    assert_eq!(spent(0, 10_000).await, 120, "of a run that goes on, too");
    ledger.record_attempts(&calls).await.unwrap();
    finish(&ledger, &one, &ending(&one, succeeded(), 4, Some(paid(4, 4, 3)))).await;
    assert_eq!(spent(0, 10_000).await, 123);
    // The usage of a worker that lost the run is recorded, and was paid for.
    finish(&ledger, &one, &ending(&one, succeeded(), 5, Some(paid(5, 5, 1_000)))).await;
    assert_eq!(spent(0, 10_000).await, 1_123);

    // A run counts where it was accepted, and with its own account.
    let later = accepted_at(3_000);
    let big = i64::from(i32::MAX) * 1_000;
    finish(&ledger, &later, &ending(&later, Outcome::Failed(refused()), 1, Some(paid(1, 1, big)))).await;
    let other = Job { account: AccountId::new(), ..accepted_at(2_500) };
    finish(&ledger, &other, &ending(&other, succeeded(), 1, Some(paid(1, 1, 7)))).await;
    assert_eq!(spent(0, 10_000).await, big + 1_123);
    assert_eq!(spent(2_000, 3_000).await, 1_123);
    assert_eq!(spent(2_001, 3_000).await, 0);
    assert_eq!(spent(2_001, 3_001).await, big);
    assert_eq!(spent(3_001, 10_000).await, 0);
}

async fn a_run_is_found_by_its_own_account_only(site: Site) {
    let (ledger, _db) = site.ledger().await;
    let job = job();
    ledger.insert(Arc::new(job.clone())).await.unwrap();
    assert_eq!(ledger.find(AccountId::new(), job.id).await.unwrap(), None);
    assert_eq!(ledger.find(job.account, RunId::new()).await.unwrap(), None);
    ledger.ping().await.unwrap();
}

async fn a_read_only_database_is_told_apart(site: Site) {
    let (_, db) = site.ledger().await;
    let read_only = match db.get_database_backend() {
        DbBackend::Postgres => {
            let name = site.url.rsplit('/').next().unwrap();
            db.execute_unprepared(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on"))
                .await
                .unwrap();
            site.connect().await
        }
        _ => db::connect(&config(&site.url.replace("rwc", "ro"))).await.unwrap(),
    };
    let ledger = Ledger::new(read_only);
    let Err(LedgerError::Full(reason)) = ledger.insert(Arc::new(job())).await else { panic!("it was written") };
    assert_eq!(reason, "it is read-only");
    let job = job();
    let ending = ending(&job, succeeded(), 1, None);
    let finished = ledger.finish(&[(Arc::new(job), Arc::new(ending))]).await;
    assert!(matches!(finished, Err(LedgerError::Full(_))), "{finished:?}");
}

async fn a_writer_that_goes_leaves_nothing_unwritten(site: Site) {
    let (ledger, db) = site.ledger().await;
    let jobs: Vec<Arc<Job>> = (0..50).map(|_| Arc::new(job())).collect();
    let inserts = jobs.iter().map(|job| {
        let (ledger, job) = (ledger.clone(), job.clone());
        tokio::spawn(async move { ledger.insert(job).await })
    });
    let inserts: Vec<_> = inserts.collect();
    drop(ledger);
    for insert in inserts {
        insert.await.unwrap().unwrap();
    }
    assert_eq!(Ledger::new(db).unfinished_ids(None, 100).await.unwrap().len(), 50);
}

/// Everything may be awaited in a task of its own: this compiles or it does not.
#[tokio::test]
async fn its_futures_may_move_between_threads() {
    fn movable<T: Send>(_: &T) {}
    let (ledger, db) = Site::sqlite().ledger().await;
    movable(&ledger.insert(Arc::new(job())));
    movable(&ledger.finish(&[]));
    movable(&ledger.record_attempts(&[]));
    movable(&ledger.find(AccountId::new(), RunId::new()));
    movable(&ledger.unfinished_ids(None, 1));
    movable(&ledger.unfinished(&[]));
    movable(&ledger.endings(&[]));
    movable(&ledger.spent(AccountId::new(), UnixMillis(0)..UnixMillis(1)));
    movable(&ledger.ping());
    movable(&db::migrate(&db));
    movable(&db::schema_state(&db));
    movable(&db::begin(&db));
    movable(&db::connect(&config("")));
}

#[tokio::test]
async fn a_full_disk_is_told_apart() {
    let site = Site::sqlite();
    let one = DatabaseConfig { max_connections: 1, ..config(&site.url) };
    let db = db::connect(&one).await.unwrap();
    db::migrate(&db).await.unwrap();
    // The file may not grow any more: SQLite then answers as on a full disk.
    db.execute_unprepared("PRAGMA max_page_count = 1").await.unwrap();
    let ledger = Ledger::new(db.clone());
    let big = Job { request: ModelRequest { user: "x".repeat(1 << 20), ..ModelRequest::default() }, ..job() };
    let Err(LedgerError::Full(reason)) = ledger.insert(Arc::new(big)).await else { panic!("it was written") };
    assert_eq!(reason, "the disk is full");
    let error = StoreError::from(LedgerError::Full(reason));
    assert_eq!(error.to_string(), "the database cannot store more: the disk is full");
    db.execute_unprepared("PRAGMA max_page_count = 100000").await.unwrap();
    ledger.insert(Arc::new(job())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_postgresql_is_noticed_and_got_over() {
    let server = PostgresServer::start();
    let url = server.database().await;
    let brief = DatabaseConfig { connect_timeout: Duration::from_secs(1), ..config(&url) };
    let db = db::connect(&brief).await.unwrap();
    db::migrate(&db).await.unwrap();
    let ledger = Ledger::new(db);
    let kept = job();
    ledger.insert(Arc::new(kept.clone())).await.unwrap();

    // Its connections broke and new ones work: no caller sees that.
    server.crash();
    server.restart();
    assert_eq!(find(&ledger, &kept).await, queued(&kept));

    server.stop();
    let (refused, lost) = (job(), ending(&kept, succeeded(), 5, Some(attempt(1, 5))));
    assert!(matches!(ledger.insert(Arc::new(refused.clone())).await, Err(LedgerError::Unreachable(_))));
    let entry = (Arc::new(kept.clone()), Arc::new(lost));
    assert!(matches!(ledger.finish(std::slice::from_ref(&entry)).await, Err(LedgerError::Unreachable(_))));
    assert!(matches!(ledger.ping().await, Err(LedgerError::Unreachable(_))));

    server.restart();
    ledger.insert(Arc::new(refused)).await.unwrap();
    assert_eq!(ledger.finish(&[entry]).await.unwrap(), [Settled::Won]);

    // A server that keeps its connections and says nothing is as good as gone, after a while.
    server.pause();
    let paused = ledger.insert(Arc::new(job())).await;
    server.resume();
    assert!(matches!(paused, Err(LedgerError::Unreachable(_))), "{paused:?}");
    ledger.insert(Arc::new(job())).await.unwrap();
}
