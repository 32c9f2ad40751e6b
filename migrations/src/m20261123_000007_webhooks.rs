//! Webhooks: what is to be told, how telling it went, and the secrets that sign it. Times are Unix milliseconds.
//!
//! A row of `webhook_outbox` is written in the transaction that ends its run. Like the ledger it has no foreign key.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(outbox()).await?;
        // What is left to do: small, however long the history grows.
        let due = Index::create()
            .name("webhook_outbox_due")
            .table("webhook_outbox")
            .col("due_at")
            .cond_where(Expr::col("state").eq("pending"))
            .take();
        manager.create_index(due).await?;
        // A run ends once, and is told of once.
        let by_run = Index::create().name("webhook_outbox_by_run").table("webhook_outbox").col("run").unique().take();
        manager.create_index(by_run).await?;
        let by_account =
            Index::create().name("webhook_outbox_by_account").table("webhook_outbox").col("account").col("id").take();
        manager.create_index(by_account).await?;
        manager.create_table(attempts()).await?;
        let of_delivery =
            Index::create().name("webhook_attempts_of").table("webhook_attempts").col("delivery").col("id").take();
        manager.create_index(of_delivery).await?;
        manager.create_table(secrets()).await?;
        let of_account = Index::create().name("webhook_secrets_of").table("webhook_secrets").col("account").take();
        manager.create_index(of_account).await
    }
}

fn outbox() -> TableCreateStatement {
    Table::create()
        .table("webhook_outbox")
        .col(ColumnDef::new("id").uuid().not_null().primary_key())
        .col(ColumnDef::new("account").uuid().not_null())
        .col(ColumnDef::new("run").uuid().not_null())
        .col(ColumnDef::new("url").text().not_null())
        .col(ColumnDef::new("event").text().not_null())
        .col(ColumnDef::new("state").text().not_null())
        .col(ColumnDef::new("created_at").big_integer().not_null())
        // When this round of tries began: a redelivery begins another one.
        .col(ColumnDef::new("queued_at").big_integer().not_null())
        .col(ColumnDef::new("due_at").big_integer().not_null())
        .col(ColumnDef::new("tries").integer().not_null())
        // The lease of whoever sends it, and its name; a passed lease is nobody's.
        .col(ColumnDef::new("claimed_until").big_integer().not_null())
        .col(ColumnDef::new("claim").uuid())
        .col(ColumnDef::new("finished_at").big_integer())
        .take()
}

fn attempts() -> TableCreateStatement {
    Table::create()
        .table("webhook_attempts")
        .col(ColumnDef::new("id").uuid().not_null().primary_key())
        .col(ColumnDef::new("delivery").uuid().not_null())
        .col(ColumnDef::new("at").big_integer().not_null())
        .col(ColumnDef::new("duration_ms").big_integer().not_null())
        .col(ColumnDef::new("status").integer())
        .col(ColumnDef::new("error").text())
        .take()
}

fn secrets() -> TableCreateStatement {
    Table::create()
        .table("webhook_secrets")
        .col(ColumnDef::new("id").uuid().not_null().primary_key())
        .col(ColumnDef::new("account").uuid().not_null())
        // Which of the operator's keys sealed it.
        .col(ColumnDef::new("key_id").text().not_null())
        .col(ColumnDef::new("sealed").binary().not_null())
        .col(ColumnDef::new("created_at").big_integer().not_null())
        // Set when it was replaced: until then it signs beside its successor.
        .col(ColumnDef::new("valid_until").big_integer())
        .take()
}
