//! Why an attempt at the database failed, and whether another may do better.

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

/// An attempt that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{}", story(.0))]
    Query(#[from] tokio_postgres::Error),
    #[error("no connection in time")]
    NoConnection,
    #[error("the connection is gone")]
    Gone,
    /// The tables are not those this control knows.
    #[error(
        "schema version {found} was made by a newer control, this one knows {known}: upgrade this one"
    )]
    Newer {
        /// In the database.
        found: i32,
        /// Here.
        known: i32,
    },
    /// A row of ours that cannot be so.
    #[error("a row cannot be read: {0}")]
    Damaged(&'static str),
    /// Others changed the same row every time.
    #[error("others change the same row all the time")]
    Contended,
}

impl From<PoolError> for Fault {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => Self::Query(error),
            PoolError::Timeout(_) => Self::NoConnection,
            PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
                Self::Gone
            }
        }
    }
}

impl Fault {
    /// Whether the same attempt may end well a little later.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::NoConnection | Self::Gone | Self::Contended => true,
            Self::Newer { .. } | Self::Damaged(_) => false,
            Self::Query(error) => error.code().is_none_or(code_passes),
        }
    }

    /// Whether the settings must be changed, or the database, before anything goes.
    pub(super) fn is_for_ever(&self) -> bool {
        match self {
            Self::Newer { .. } => true,
            Self::Query(error) => error.code().is_some_and(|code| {
                // Wrong user or password, no such database, no rights there.
                code.code().starts_with("28")
                    || *code == SqlState::INVALID_CATALOG_NAME
                    || *code == SqlState::INSUFFICIENT_PRIVILEGE
            }),
            _ => false,
        }
    }
}

/// Errors that say nothing about what was asked: lost races, a server that goes, comes, or is not the primary.
fn code_passes(code: &SqlState) -> bool {
    let classes = ["08", "40", "53", "57", "58"];
    classes.iter().any(|class| code.code().starts_with(class))
        || *code == SqlState::LOCK_NOT_AVAILABLE
        || *code == SqlState::READ_ONLY_SQL_TRANSACTION
}

/// What the server said, or else the whole chain: tokio-postgres' own text is "db error".
fn story(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return format!("{} ({})", said.message(), said.code().code());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_races_and_servers_that_go_pass_and_what_was_asked_wrongly_does_not() {
        for passing in [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::TOO_MANY_CONNECTIONS,
            SqlState::READ_ONLY_SQL_TRANSACTION,
            SqlState::QUERY_CANCELED,
            SqlState::DISK_FULL,
        ] {
            assert!(code_passes(&passing), "{passing:?}");
        }
        for lasting in [
            SqlState::INVALID_PASSWORD,
            SqlState::UNDEFINED_TABLE,
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            SqlState::NOT_NULL_VIOLATION,
        ] {
            assert!(!code_passes(&lasting), "{lasting:?}");
        }
    }
}
