//! A ledger for unit tests: SQLite in memory, that can be taken away and brought back.

use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, Schema, TransactionTrait,
};

use super::{Ledger, attempts, idempotency, runs};

pub struct MemoryLedger {
    pub ledger: Ledger,
    db: DatabaseConnection,
}

impl MemoryLedger {
    pub async fn open() -> Self {
        let mut options = ConnectOptions::new("sqlite::memory:");
        // The database is its one connection.
        options.max_connections(1).min_connections(1).idle_timeout(None).max_lifetime(None).sqlx_logging(false);
        let db = Database::connect(options).await.unwrap();
        let schema = Schema::new(db.get_database_backend());
        db.execute(&schema.create_table_from_entity(runs::Entity)).await.unwrap();
        db.execute(&schema.create_table_from_entity(attempts::Entity)).await.unwrap();
        db.execute(&schema.create_table_from_entity(idempotency::Entity)).await.unwrap();
        Self { ledger: Ledger::new(db.clone()), db }
    }

    /// From now on every read and write fails as if there were no database.
    pub async fn go(&self) {
        self.execute("ALTER TABLE attempts RENAME TO away_attempts").await;
        self.execute("ALTER TABLE runs RENAME TO away_runs").await;
    }

    pub async fn come_back(&self) {
        self.execute("ALTER TABLE away_runs RENAME TO runs").await;
        self.execute("ALTER TABLE away_attempts RENAME TO attempts").await;
    }

    /// For as long as this is kept, the database answers nobody.
    pub async fn keep_waiting(&self) -> DatabaseTransaction {
        self.db.begin().await.unwrap()
    }

    /// From now on the database refuses the ending of this model's runs for what is in it.
    pub async fn refuse(&self, model: &str) {
        let refuse = "BEGIN SELECT RAISE(ABORT, 'refused') WHERE NEW.finished_at IS NOT NULL AND NEW.model = ";
        for event in ["INSERT", "UPDATE"] {
            self.execute(&format!("CREATE TRIGGER refuse_{event} BEFORE {event} ON runs {refuse}'{model}'; END")).await;
        }
    }

    async fn execute(&self, sql: &str) {
        self.db.execute_unprepared(sql).await.unwrap();
    }
}
