//! The ledger: `runs` and `attempts`. Times are Unix milliseconds, money is nano-dollars.
//!
//! Neither table has a foreign key. They are written several times for every run, and a check of the account or of the run at
//! each write would lock rows that everybody shares; what they refer to is checked when the run is accepted. Besides, the attempt
//! of a run may be recorded before the run's own row, which a waiting caller does not wait for.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(runs()).await?;
        // What a restarted queue is rebuilt from: small, however long the history grows.
        let unfinished = Index::create()
            .name("runs_unfinished")
            .table("runs")
            .col("id")
            .cond_where(Expr::col("finished_at").is_null())
            .take();
        manager.create_index(unfinished).await?;
        // Ids are ordered by time, so that this index lists an account's runs, newest first, and bounds them by date.
        let by_account = Index::create().name("runs_by_account").table("runs").col("account").col("id").take();
        manager.create_index(by_account).await?;
        let dead = Index::create()
            .name("runs_dead")
            .table("runs")
            .col("id")
            .cond_where(Expr::col("error_code").eq("poison").and(Expr::col("job").is_not_null()))
            .take();
        manager.create_index(dead).await?;
        manager.create_table(attempts()).await
    }
}

fn runs() -> TableCreateStatement {
    Table::create()
        .table("runs")
        .col(ColumnDef::new("id").uuid().not_null().primary_key())
        .col(ColumnDef::new("account").uuid().not_null())
        .col(ColumnDef::new("api_key").uuid())
        .col(ColumnDef::new("prompt").uuid().not_null())
        .col(ColumnDef::new("prompt_name").text().not_null())
        .col(ColumnDef::new("prompt_version").integer().not_null())
        .col(ColumnDef::new("lane").text().not_null())
        .col(ColumnDef::new("state").text().not_null())
        .col(ColumnDef::new("model").text().not_null())
        .col(ColumnDef::new("provider").text())
        // The whole job while the run has not ended, so that the queue can be rebuilt; then NULL. A dead run keeps it until somebody has
        // looked after it.
        .col(ColumnDef::new("job").text())
        .col(ColumnDef::new("metadata").text().not_null())
        .col(ColumnDef::new("stream").boolean().not_null())
        .col(ColumnDef::new("created_at").big_integer().not_null())
        .col(ColumnDef::new("deadline").big_integer().not_null())
        .col(ColumnDef::new("started_at").big_integer())
        .col(ColumnDef::new("finished_at").big_integer())
        .col(ColumnDef::new("queue_ms").big_integer())
        .col(ColumnDef::new("first_token_ms").big_integer())
        .col(ColumnDef::new("fence").big_integer().not_null())
        .col(ColumnDef::new("attempt_count").integer().not_null())
        // What the model was asked and what it answered, for accounts that keep content.
        .col(ColumnDef::new("input").text())
        .col(ColumnDef::new("output").text())
        .col(ColumnDef::new("finish_reason").text())
        .col(ColumnDef::new("error_code").text())
        .col(ColumnDef::new("error_message").text())
        .col(ColumnDef::new("error_retryable").boolean())
        .col(ColumnDef::new("input_tokens").big_integer())
        .col(ColumnDef::new("output_tokens").big_integer())
        .col(ColumnDef::new("cost_nano_usd").big_integer())
        // The dead run that an operator has started again as this one.
        .col(ColumnDef::new("requeued_from").uuid())
        .take()
}

fn attempts() -> TableCreateStatement {
    Table::create()
        .table("attempts")
        .col(ColumnDef::new("run").uuid().not_null())
        // A fence is given out once, for one call at most: with it a repeated write finds its first one.
        .col(ColumnDef::new("fence").big_integer().not_null())
        .col(ColumnDef::new("number").integer().not_null())
        .col(ColumnDef::new("provider").text().not_null())
        .col(ColumnDef::new("model").text().not_null())
        .col(ColumnDef::new("worker").uuid().not_null())
        .col(ColumnDef::new("started_at").big_integer().not_null())
        .col(ColumnDef::new("duration_ms").big_integer().not_null())
        .col(ColumnDef::new("first_token_ms").big_integer())
        .col(ColumnDef::new("outcome").text().not_null())
        .col(ColumnDef::new("status").integer())
        .col(ColumnDef::new("detail").text())
        .col(ColumnDef::new("input_tokens").big_integer())
        .col(ColumnDef::new("output_tokens").big_integer())
        .col(ColumnDef::new("cost_nano_usd").big_integer())
        .primary_key(Index::create().col("run").col("fence"))
        .take()
}
