//! Prompts and their immutable versions.
//!
//! `prompts.production_version` is the only truth about which version is PRODUCTION. `promoted_at` of a version says
//! that it once was; a version that was and is not is ARCHIVED, one that never was is a DRAFT.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table(Prompts::Table)
                    .col(ColumnDef::new(Prompts::Id).uuid().not_null().primary_key())
                    .col(ColumnDef::new(Prompts::Account).uuid().not_null())
                    .col(ColumnDef::new(Prompts::Name).text().not_null())
                    .col(ColumnDef::new(Prompts::ProductionVersion).integer().null())
                    .col(ColumnDef::new(Prompts::CreatedAt).big_integer().not_null())
                    .foreign_key(ForeignKey::create().from(Prompts::Table, Prompts::Account).to("accounts", "id"))
                    .to_owned(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("prompts_by_name")
                    .table(Prompts::Table)
                    .col(Prompts::Account)
                    .col(Prompts::Name)
                    .unique()
                    .to_owned(),
            )
            .await?;

        manager
            .create_table(
                Table::create()
                    .table(PromptVersions::Table)
                    .col(ColumnDef::new(PromptVersions::Id).uuid().not_null().primary_key())
                    .col(ColumnDef::new(PromptVersions::Prompt).uuid().not_null())
                    .col(ColumnDef::new(PromptVersions::Version).integer().not_null())
                    .col(ColumnDef::new(PromptVersions::System).text().null())
                    .col(ColumnDef::new(PromptVersions::Template).text().not_null())
                    .col(ColumnDef::new(PromptVersions::Variables).text().not_null())
                    .col(ColumnDef::new(PromptVersions::Model).text().not_null())
                    .col(ColumnDef::new(PromptVersions::Fallbacks).text().not_null())
                    .col(ColumnDef::new(PromptVersions::Parameters).text().not_null())
                    .col(ColumnDef::new(PromptVersions::OutputSchema).text().null())
                    .col(ColumnDef::new(PromptVersions::RepeatStreamed).boolean().not_null())
                    .col(ColumnDef::new(PromptVersions::Note).text().not_null())
                    .col(ColumnDef::new(PromptVersions::CreatedAt).big_integer().not_null())
                    .col(ColumnDef::new(PromptVersions::PromotedAt).big_integer().null())
                    .foreign_key(
                        ForeignKey::create()
                            .from(PromptVersions::Table, PromptVersions::Prompt)
                            .to(Prompts::Table, Prompts::Id),
                    )
                    .to_owned(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("prompt_versions_by_number")
                    .table(PromptVersions::Table)
                    .col(PromptVersions::Prompt)
                    .col(PromptVersions::Version)
                    .unique()
                    .to_owned(),
            )
            .await
    }
}

#[derive(DeriveIden)]
enum Prompts {
    Table,
    Id,
    Account,
    Name,
    ProductionVersion,
    CreatedAt,
}

#[derive(DeriveIden)]
enum PromptVersions {
    Table,
    Id,
    Prompt,
    Version,
    System,
    Template,
    Variables,
    Model,
    Fallbacks,
    Parameters,
    OutputSchema,
    RepeatStreamed,
    Note,
    CreatedAt,
    PromotedAt,
}
