//! Rows as PostgreSQL takes many of them best: an array for each column.
//!
//! A statement that is given arrays has one text, and as many parameters as columns, however many rows it writes: it is written once, and
//! prepared once on each connection. One that is given every value is longer with every row, and another one for each number of them.

use sea_orm::{
    entity::prelude::*,
    sea_query::{InsertStatement, Query},
    sqlx::{
        Arguments, Encode, Postgres, Type,
        error::BoxDynError,
        postgres::{PgArguments, PgBindIterExt, PgHasArrayType},
    },
};

/// Fills columns of one table, each with a parameter.
pub(super) struct Columns<'a, C> {
    parameters: &'a mut PgArguments,
    filled: Filled<C>,
}

/// Columns of one table, with the numbers that a statement knows their parameters by.
pub(super) struct Filled<C>(Vec<(C, usize)>);

impl<'a, C: ColumnTrait> Columns<'a, C> {
    /// Adds to the parameters of a statement, which may have others.
    pub fn new(parameters: &'a mut PgArguments) -> Self {
        Self { parameters, filled: Filled(Vec::new()) }
    }

    /// Gives a column its value in each row. All columns are given those of the same rows, in the same order.
    pub fn fill<'v, T>(&mut self, column: C, values: impl Iterator<Item = T>) -> Result<(), BoxDynError>
    where
        T: Encode<'v, Postgres> + Type<Postgres> + PgHasArrayType,
    {
        Arguments::add(self.parameters, values.bind_iter())?;
        self.filled.0.push((column, self.parameters.len()));
        Ok(())
    }

    pub fn filled(self) -> Filled<C> {
        self.filled
    }
}

impl<C: ColumnTrait> Filled<C> {
    /// The statement that writes the rows, in their order.
    pub fn insert(self, table: impl EntityTrait) -> InsertStatement {
        let mut rows = Query::select();
        for (_, parameter) in &self.0 {
            rows.expr(Expr::cust(format!("unnest(${parameter})")));
        }
        let mut insert = Query::insert();
        insert.into_table(table).columns(self.0.into_iter().map(|(column, _)| column));
        // As many are selected as are named.
        let _same = insert.select_from(rows);
        insert
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::{IntoActiveModel, Iterable};

    use super::*;
    use crate::{
        job::{Job, KeyId},
        ledger::{attempts, runs},
    };

    /// A column that was left out would be NULL, without a word.
    #[test]
    fn every_column_of_a_row_is_written() {
        fn check<C: ColumnTrait + Iterable>(filled: Filled<C>) {
            let mut filled: Vec<_> = filled.0.into_iter().map(|(column, _)| column.as_str().to_owned()).collect();
            let mut all: Vec<_> = C::iter().map(|column| column.as_str().to_owned()).collect();
            filled.sort_unstable();
            all.sort_unstable();
            assert_eq!(filled, all);
        }
        let mut parameters = PgArguments::default();
        check(runs::fill(&mut parameters, &[]).unwrap());
        check(attempts::fill(&mut parameters, &[]).unwrap());
    }

    #[test]
    fn what_is_not_written_of_a_run_that_waits_is_null() {
        let job = crate::tests::job();
        let row = runs::queued(&Job { key: Some(KeyId::new()), ..job }).into_active_model();
        let filled = runs::fill_queued(&mut PgArguments::default(), &[]).unwrap();
        let is_filled = |column: runs::Column| filled.0.iter().any(|(filled, _)| filled.as_str() == column.as_str());
        for column in runs::Column::iter() {
            let value = row.get(column).into_value();
            let is_null = value.as_ref().is_none_or(|value| *value == value.as_null());
            assert_ne!(is_filled(column), is_null, "{column:?}");
        }
    }
}
