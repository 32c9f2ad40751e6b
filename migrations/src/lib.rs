//! The database schema, one file a step. A step is frozen once it is released; it imports no entity.

use sea_orm_migration::prelude::*;

mod m20261123_000001_accounts;
mod m20261123_000002_prompts;
mod m20261123_000003_runs;
mod m20261123_000004_intake;
mod m20261123_000005_idempotency;
mod m20261123_000006_batches;
mod m20261123_000007_webhooks;
mod m20261123_000008_results;

pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261123_000001_accounts::Migration),
            Box::new(m20261123_000002_prompts::Migration),
            Box::new(m20261123_000003_runs::Migration),
            Box::new(m20261123_000004_intake::Migration),
            Box::new(m20261123_000005_idempotency::Migration),
            Box::new(m20261123_000006_batches::Migration),
            Box::new(m20261123_000007_webhooks::Migration),
            Box::new(m20261123_000008_results::Migration),
        ]
    }
}
