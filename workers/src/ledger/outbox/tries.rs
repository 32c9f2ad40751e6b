//! The table `webhook_attempts`: every time that a webhook was called.

use sea_orm::{
    ActiveValue::Set, ConnectionTrait, DbErr, EntityTrait, QueryFilter, QueryOrder, entity::prelude::*,
    sea_query::OnConflict,
};

use super::{super::storable, DeliveryId, UnixMillis};

/// One call of a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    pub id: Uuid,
    pub at: UnixMillis,
    pub duration_ms: u64,
    /// What was answered, if anything was.
    pub status: Option<u16>,
    /// Why it counts as failed, for people; `None` when it does not.
    pub error: Option<String>,
}

impl Try {
    pub(super) fn ended_at(&self) -> UnixMillis {
        self.at.plus(self.duration_ms)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "webhook_attempts")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub delivery: Uuid,
    pub at: i64,
    pub duration_ms: i64,
    pub status: Option<i32>,
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// Repeating it changes nothing.
pub(super) async fn insert(db: &impl ConnectionTrait, delivery: DeliveryId, made: &Try) -> Result<(), DbErr> {
    let row = ActiveModel {
        id: Set(made.id),
        delivery: Set(delivery.0),
        at: Set(made.at.0),
        duration_ms: Set(super::super::signed(made.duration_ms)),
        status: Set(made.status.map(i32::from)),
        error: Set(made.error.as_deref().map(storable)),
    };
    let again = OnConflict::column(Column::Id).do_nothing().to_owned();
    Entity::insert(row).on_conflict(again).exec_without_returning(db).await?;
    Ok(())
}

pub(super) async fn of(db: &impl ConnectionTrait, delivery: DeliveryId) -> Result<Vec<Try>, DbErr> {
    let rows = Entity::find()
        .filter(Column::Delivery.eq(delivery.0))
        .order_by_asc(Column::At)
        .order_by_asc(Column::Id)
        .all(db);
    let tries = rows.await?.into_iter().map(|row| Try {
        id: row.id,
        at: UnixMillis(row.at),
        duration_ms: super::super::unsigned(row.duration_ms),
        status: row.status.and_then(|status| u16::try_from(status).ok()),
        error: row.error,
    });
    Ok(tries.collect())
}
