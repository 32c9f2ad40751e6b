//! The table `webhook_outbox`.

use sea_orm::entity::prelude::*;

use super::{AccountId, Delivery, DeliveryId, DeliveryState, LedgerError, RunId, UnixMillis, unreadable};

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "webhook_outbox")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub account: Uuid,
    pub run: Uuid,
    pub url: String,
    pub event: String,
    pub state: String,
    pub created_at: i64,
    pub queued_at: i64,
    /// 0 is at once, whatever the clock says.
    pub due_at: i64,
    pub tries: i32,
    pub claimed_until: i64,
    pub claim: Option<Uuid>,
    pub finished_at: Option<i64>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    pub(super) fn read(self) -> Result<Delivery, LedgerError> {
        let state = self.state.parse().map_err(|()| unreadable(self.run, "delivery"))?;
        Ok(Delivery {
            id: DeliveryId(self.id),
            account: AccountId(self.account),
            run: RunId(self.run),
            url: self.url,
            event: self.event,
            state,
            created_at: UnixMillis(self.created_at),
            queued_at: UnixMillis(self.queued_at),
            due_at: (state == DeliveryState::Pending).then(|| UnixMillis(self.due_at.max(self.queued_at))),
            tries: u32::try_from(self.tries).unwrap_or(0),
            finished_at: self.finished_at.map(UnixMillis),
        })
    }
}
