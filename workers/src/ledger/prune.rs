//! Dropping rows whose time is over.

use sea_orm::{
    DbErr, EntityTrait, IntoSimpleExpr, QueryFilter,
    entity::prelude::*,
    sea_query::{ExprTrait, Query, SimpleExpr},
};

use super::{LedgerError, store::Store};

/// Rows that are dropped by one statement, so that it holds nobody up.
const AT_ONCE: u64 = 1_000;

/// Drops some of the rows that are `old`; returns how many. `key` are the columns of the table's primary key.
pub(super) async fn prune<E: EntityTrait>(
    store: &Store,
    key: [E::Column; 2],
    old: SimpleExpr,
) -> Result<u64, LedgerError> {
    let rows = Query::select().columns(key).from(E::default()).and_where(old).limit(AT_ONCE).take();
    let drop_some = async || -> Result<u64, DbErr> {
        let _turn = store.turn().await;
        let of_key = Expr::tuple(key.map(IntoSimpleExpr::into_simple_expr));
        Ok(E::delete_many().filter(of_key.in_subquery(rows.clone())).exec(store.db()).await?.rows_affected)
    };
    Ok(store.answered(drop_some).await?)
}
