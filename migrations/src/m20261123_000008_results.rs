//! Results that runs share: which ended run of an account has the result of a call, and until when it stands. Times are Unix milliseconds.
//!
//! A row of `results` is written in the transaction that ends its run. Like the ledger it has no foreign key: a run that is gone
//! leaves a row that says nothing.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let results = Table::create()
            .table("results")
            .col(ColumnDef::new("account").uuid().not_null())
            // What the call depended on, as a digest.
            .col(ColumnDef::new("digest").text().not_null())
            .col(ColumnDef::new("run").uuid().not_null())
            .col(ColumnDef::new("expires_at").big_integer().not_null())
            .primary_key(Index::create().col("account").col("digest"))
            .take();
        manager.create_table(results).await?;
        let expired = Index::create().name("results_by_expiry").table("results").col("expires_at").take();
        manager.create_index(expired).await?;
        // Where a run's output came from: `hit`, `miss`, `joined`; null for one that shares nothing.
        let cache = Table::alter().table("runs").add_column(ColumnDef::new("cache").text()).take();
        manager.alter_table(cache).await?;
        // How long a version's results stand, in milliseconds; null when each of its runs is called for itself.
        let ttl =
            Table::alter().table("prompt_versions").add_column(ColumnDef::new("cache_ttl_ms").big_integer()).take();
        manager.alter_table(ttl).await
    }
}
