//! What a database error means for whoever made the write.

use sea_orm::{DbErr, RuntimeErr, sqlx};

/// The class of a database error: what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The database takes no writes, for the reason given; trying again at once is useless.
    Full(&'static str),
    /// No answer, or no connection. Nothing is known about what was done.
    Unreachable {
        /// A connection that was open broke: a new one may work at once.
        broken: bool,
    },
    /// The database refused what a row holds: another row may pass.
    Data,
    /// Anything else: a missing table, a missing right.
    Other,
}

impl Fault {
    pub fn of(error: &DbErr) -> Self {
        match error {
            DbErr::ConnectionAcquire(_) => Fault::Unreachable { broken: false },
            DbErr::Conn(RuntimeErr::SqlxError(error))
            | DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => of_driver(error),
            DbErr::Conn(_) => Fault::Unreachable { broken: false },
            _ => Fault::Other,
        }
    }

    /// Whether SQLite answered that another connection holds the lock.
    pub fn is_locked(error: &DbErr) -> bool {
        match error {
            DbErr::Conn(RuntimeErr::SqlxError(error))
            | DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => match error.as_ref() {
                sqlx::Error::Database(error) => {
                    sqlite_code(error.as_ref()).is_some_and(|code| matches!(code, SQLITE_BUSY | SQLITE_LOCKED))
                }
                _ => false,
            },
            _ => false,
        }
    }
}

// Primary result codes: https://www.sqlite.org/rescode.html
const SQLITE_BUSY: u32 = 5;
const SQLITE_LOCKED: u32 = 6;

fn of_driver(error: &sqlx::Error) -> Fault {
    match error {
        sqlx::Error::Database(error) => match sqlite_code(error.as_ref()) {
            Some(code) => of_sqlite(code),
            None => of_postgres(&error.code().unwrap_or_default()),
        },
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => Fault::Unreachable { broken: false },
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            Fault::Unreachable { broken: true }
        }
        // A value that the driver cannot even send.
        sqlx::Error::Encode(_) => Fault::Data,
        _ => Fault::Other,
    }
}

/// The primary result code, when the error is SQLite's: the extended one carries it in its low byte.
fn sqlite_code(error: &dyn sqlx::error::DatabaseError) -> Option<u32> {
    error.try_downcast_ref::<sqlx::sqlite::SqliteError>()?;
    error.code()?.parse::<u32>().ok().map(|code| code & 0xff)
}

fn of_sqlite(code: u32) -> Fault {
    match code {
        SQLITE_BUSY | SQLITE_LOCKED => Fault::Unreachable { broken: false },
        8 => Fault::Full("it is read-only"),
        10 => Fault::Full("the disk reports errors"),
        13 => Fault::Full("the disk is full"),
        // TOOBIG, CONSTRAINT, MISMATCH, RANGE.
        18 | 19 | 20 | 25 => Fault::Data,
        _ => Fault::Other,
    }
}

/// SQLSTATE: <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn of_postgres(state: &str) -> Fault {
    match state {
        "25006" => Fault::Full("it is read-only"),
        "53100" => Fault::Full("the disk is full"),
        "58030" => Fault::Full("the disk reports errors"),
        // A server that stops or starts ends the connection along with its answer.
        "57P01" | "57P02" | "57P03" => Fault::Unreachable { broken: true },
        // Out of connections or memory; deadlock, serialisation failure, or a lock or statement that took too long.
        "53000" | "53200" | "53300" | "40001" | "40P01" | "55P03" | "57014" => Fault::Unreachable { broken: false },
        _ if state.starts_with("08") => Fault::Unreachable { broken: true },
        // Data exception, integrity constraint violation, program limit exceeded.
        _ if ["22", "23", "54"].iter().any(|class| state.starts_with(class)) => Fault::Data,
        _ => Fault::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_postgres_are_classed_by_what_to_do_next() {
        let check = |state, expect| assert_eq!(of_postgres(state), expect, "{state}");
        check("53100", Fault::Full("the disk is full"));
        check("25006", Fault::Full("it is read-only"));
        check("57P01", Fault::Unreachable { broken: true });
        check("08006", Fault::Unreachable { broken: true });
        check("40P01", Fault::Unreachable { broken: false });
        check("22021", Fault::Data);
        check("23514", Fault::Data);
        check("42P01", Fault::Other);
    }

    #[test]
    fn answers_of_sqlite_are_classed_by_what_to_do_next() {
        let check = |code, expect| assert_eq!(of_sqlite(code), expect, "{code}");
        check(13, Fault::Full("the disk is full"));
        check(8, Fault::Full("it is read-only"));
        check(SQLITE_BUSY, Fault::Unreachable { broken: false });
        check(19, Fault::Data);
        check(1, Fault::Other);
    }

    #[test]
    fn a_pool_that_ran_out_is_unreachable() {
        let error = DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::Timeout);
        assert_eq!(Fault::of(&error), Fault::Unreachable { broken: false });
    }
}
