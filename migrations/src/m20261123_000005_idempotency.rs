//! Which run an account's `Idempotency-Key` stands for, and since when. A key is written in the transaction that accepts its run.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let keys = Table::create()
            .table("idempotency_keys")
            .col(ColumnDef::new("account").uuid().not_null())
            .col(ColumnDef::new("key").text().not_null())
            // What was asked: SHA-256 of the request.
            .col(ColumnDef::new("digest").binary().not_null())
            .col(ColumnDef::new("run").uuid().not_null())
            .col(ColumnDef::new("created_at").big_integer().not_null())
            .primary_key(Index::create().col("account").col("key"))
            .take();
        manager.create_table(keys).await?;
        let by_age = Index::create().name("idempotency_keys_by_age").table("idempotency_keys").col("created_at").take();
        manager.create_index(by_age).await
    }
}
