//! The tables `batches` and `batch_lines`.

use std::{fmt, str::FromStr};

use sea_orm::entity::prelude::*;
use serde::{Serialize, Serializer};
use workers::job::{AccountId, KeyId, RunId, RunState, UnixMillis};

use super::{BatchId, BatchView};

pub(super) mod batches {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "batches")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub account: Uuid,
        pub api_key: Uuid,
        pub state: String,
        pub total: i32,
        pub succeeded: i32,
        pub failed: i32,
        pub cancelled: i32,
        pub next_index: i32,
        pub created_at: i64,
        pub touched_at: i64,
        pub finished_at: Option<i64>,
        pub claimed_by: Option<Uuid>,
        pub claimed_until: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub(super) mod lines {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "batch_lines")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub batch: Uuid,
        #[sea_orm(primary_key, auto_increment = false)]
        pub line_index: i32,
        pub line_number: i32,
        pub state: String,
        pub body: Option<String>,
        pub run: Option<Uuid>,
        pub error_code: Option<String>,
        pub error_message: Option<String>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

macro_rules! words {
    ($(#[$doc:meta])* $vis:vis enum $name:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name { $($(#[$word_doc])* $variant,)* }

        impl $name {
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl FromStr for $name {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($word => Ok(Self::$variant),)* _ => Err(()) }
            }
        }
    };
}

words! {
    /// What a batch is doing.
    pub enum BatchState {
        /// Its body is still arriving: nobody knows it but its own upload.
        Receiving = "receiving",
        Running = "running",
        Completed = "completed",
        /// Cancelled; once it has a `finished_at`, nothing of it goes on.
        Cancelled = "cancelled",
    }
}

impl Serialize for BatchState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

words! {
    /// Where a line is.
    pub(super) enum LineState {
        Waiting = "waiting",
        /// Its run has an id, and is accepted or about to be.
        Fed = "fed",
        Succeeded = "succeeded",
        /// Refused, failed or expired.
        Failed = "failed",
        Cancelled = "cancelled",
    }
}

impl LineState {
    /// `None` while the run has not ended.
    pub(super) fn of(run: RunState) -> Option<Self> {
        match run {
            RunState::Queued | RunState::Running => None,
            RunState::Succeeded => Some(Self::Succeeded),
            RunState::Failed | RunState::Expired => Some(Self::Failed),
            RunState::Cancelled => Some(Self::Cancelled),
        }
    }
}

/// A batch as its feeder sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub account: AccountId,
    pub key: KeyId,
    pub state: BatchState,
    pub finished: bool,
}

impl batches::Model {
    /// Without how many of its runs a worker has.
    pub(super) fn view(&self) -> Result<BatchView, DbErr> {
        let count = |column: i32| u32::try_from(column).unwrap_or_default();
        let (total, succeeded) = (count(self.total), count(self.succeeded));
        let (failed, cancelled) = (count(self.failed), count(self.cancelled));
        Ok(BatchView {
            id: BatchId(self.id),
            state: self.parsed_state()?,
            total,
            queued: total.saturating_sub(succeeded).saturating_sub(failed).saturating_sub(cancelled),
            running: 0,
            succeeded,
            failed,
            cancelled,
            created_at: UnixMillis(self.created_at),
            finished_at: self.finished_at.map(UnixMillis),
        })
    }

    pub(super) fn work(&self) -> Result<Work, DbErr> {
        Ok(Work {
            account: AccountId(self.account),
            key: KeyId(self.api_key),
            state: self.parsed_state()?,
            finished: self.finished_at.is_some(),
        })
    }

    fn parsed_state(&self) -> Result<BatchState, DbErr> {
        self.state.parse().map_err(|()| DbErr::Custom(format!("batch {}: its state cannot be read", self.id)))
    }
}

/// A line whose run has an id.
#[derive(Clone, Debug)]
pub(super) struct FedLine {
    pub index: i32,
    pub number: i32,
    pub run: RunId,
    pub body: String,
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for BatchId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}
