//! The switch that closes the intake of new runs: a row is there while it is closed.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let intake = Table::create()
            .table("intake")
            .col(ColumnDef::new("id").integer().not_null().primary_key())
            .col(ColumnDef::new("closed_at").big_integer().not_null())
            .take();
        manager.create_table(intake).await
    }
}
