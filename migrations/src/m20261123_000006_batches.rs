//! Batches and their lines. Times are Unix milliseconds of the queue's clock.
//!
//! A line has no foreign key, for the same reason as runs: it is written by the thousand, and a batch is deleted line by line before its row.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(batches()).await?;
        // What front doors look for work in: small, however long the history grows.
        let open = Index::create()
            .name("batches_open")
            .table("batches")
            .col("id")
            .cond_where(Expr::col("finished_at").is_null())
            .take();
        manager.create_index(open).await?;
        manager.create_table(lines()).await?;
        // The lines whose runs are on their way: a thousand at most, of a hundred thousand.
        let fed = Index::create()
            .name("batch_lines_fed")
            .table("batch_lines")
            .col("batch")
            .col("line_index")
            .cond_where(Expr::col("state").eq("fed"))
            .take();
        manager.create_index(fed).await
    }
}

fn batches() -> TableCreateStatement {
    Table::create()
        .table("batches")
        .col(ColumnDef::new("id").uuid().not_null().primary_key())
        .col(ColumnDef::new("account").uuid().not_null())
        .col(ColumnDef::new("api_key").uuid().not_null())
        // `receiving` until the whole body is there, then `running`, then `completed` or `cancelled`.
        .col(ColumnDef::new("state").text().not_null())
        .col(ColumnDef::new("total").integer().not_null())
        // Counts of lines that have ended; each moves in the transaction that ends the line.
        .col(ColumnDef::new("succeeded").integer().not_null())
        .col(ColumnDef::new("failed").integer().not_null())
        .col(ColumnDef::new("cancelled").integer().not_null())
        // No line before this one waits.
        .col(ColumnDef::new("next_index").integer().not_null())
        .col(ColumnDef::new("created_at").big_integer().not_null())
        // When its body last grew.
        .col(ColumnDef::new("touched_at").big_integer().not_null())
        .col(ColumnDef::new("finished_at").big_integer())
        // Which front door feeds it, and until when it has the right to.
        .col(ColumnDef::new("claimed_by").uuid())
        .col(ColumnDef::new("claimed_until").big_integer().not_null())
        .take()
}

fn lines() -> TableCreateStatement {
    Table::create()
        .table("batch_lines")
        .col(ColumnDef::new("batch").uuid().not_null())
        // From 0, over the lines that are not blank.
        .col(ColumnDef::new("line_index").integer().not_null())
        // From 1, over all lines of the body, as editors count them.
        .col(ColumnDef::new("line_number").integer().not_null())
        // `waiting`, `fed` (its run has an id), then `succeeded`, `failed` or `cancelled`.
        .col(ColumnDef::new("state").text().not_null())
        // The body of the run; NULL once the line has ended.
        .col(ColumnDef::new("body").text())
        .col(ColumnDef::new("run").uuid())
        // Of a line that never became a run.
        .col(ColumnDef::new("error_code").text())
        .col(ColumnDef::new("error_message").text())
        .primary_key(Index::create().col("batch").col("line_index"))
        .take()
}
