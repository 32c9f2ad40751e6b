//! Whether this deployment takes new runs: the switch behind `queue drain` and `queue resume`.
//!
//! It is a row of the database, so that it outlives every process, and it moves like a key or a prompt changes, so that every front
//! door sees it within a second. Runs that were accepted before go on.

use sea_orm::{ActiveValue::Set, DatabaseConnection, EntityTrait, QuerySelect, entity::prelude::*};
use serde_json::json;
use workers::job::UnixMillis;

use crate::{
    audit::{self, Actor},
    changes::{self, Changes, Lookups, each_counts_one},
    db::StoreError,
};

/// The switch. Cheap to clone.
#[derive(Clone)]
pub struct Intake {
    db: DatabaseConnection,
    changes: Changes,
    open: Lookups<(), bool>,
}

impl Intake {
    pub fn new(db: DatabaseConnection, changes: Changes) -> Self {
        Self { db, open: Lookups::new(changes.clone(), 1, each_counts_one, 1), changes }
    }

    /// Whether new runs are taken.
    pub async fn is_open(&self) -> Result<bool, StoreError> {
        let open = async || {
            let closed_at = Entity::find_by_id(ROW).select_only().column(Column::ClosedAt);
            Ok(Some(closed_at.into_tuple::<i64>().one(&self.db).await?.is_none()))
        };
        // There is always an answer.
        Ok(self.open.get((), open).await?.unwrap_or(true))
    }

    /// Opens or closes it. Every front door acts on it within a second.
    pub async fn set_open(&self, actor: &Actor, open: bool) -> Result<(), StoreError> {
        let transaction = changes::begin(&self.db).await?;
        let was_closed = Entity::delete_by_id(ROW).exec(&transaction).await?.rows_affected > 0;
        if !open {
            let row = ActiveModel { id: Set(ROW), closed_at: Set(UnixMillis::now().0) };
            Entity::insert(row).exec_without_returning(&transaction).await?;
        }
        if was_closed == open {
            let action = if open { "queue.resume" } else { "queue.drain" };
            let entry = audit::Entry { account: None, actor, action, subject: "intake", detail: json!({}) };
            audit::append(&transaction, entry).await?;
        }
        transaction.commit().await?;
        self.changes.forget();
        Ok(())
    }
}

/// The only row.
const ROW: i32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "intake")]
struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    id: i32,
    closed_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
