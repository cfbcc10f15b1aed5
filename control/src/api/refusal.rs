//! The one table from a room's error to a gRPC status. A new error does not compile without a row.

use tonic::Status;

use crate::{coordinate, identity, ledger, registry};

impl From<registry::Error> for Status {
    fn from(error: registry::Error) -> Self {
        let text = error.to_string();
        match error {
            registry::Error::Invalid(_) => Self::invalid_argument(text),
            registry::Error::Unknown { .. } => Self::not_found(text),
            registry::Error::Refused(_) => Self::failed_precondition(text),
            registry::Error::BadInvite(_) => Self::permission_denied(text),
            registry::Error::Conflict(_) => Self::aborted(text),
            registry::Error::Damaged(_) | registry::Error::Vault(_) => {
                tracing::error!(error = %text, "what is stored cannot be read");
                Self::data_loss(text)
            }
            registry::Error::Store(error) => of_store(&error),
        }
    }
}

fn of_store(error: &coordinate::Error) -> Status {
    let text = error.to_string();
    match error {
        coordinate::Error::Conflict(_) => Status::aborted(text),
        coordinate::Error::Refused(_) => Status::failed_precondition(text),
        coordinate::Error::Compacted
        | coordinate::Error::SessionEnded
        | coordinate::Error::Unavailable(_) => {
            tracing::error!(error = %text, "the store failed");
            Status::unavailable(text)
        }
    }
}

impl From<ledger::Error> for Status {
    fn from(error: ledger::Error) -> Self {
        let text = error.to_string();
        match error {
            ledger::Error::Invalid(_) => Self::invalid_argument(text),
            ledger::Error::Database(_) => {
                tracing::error!(error = %text, "the ledger failed");
                Self::unavailable(text)
            }
        }
    }
}

impl From<identity::Error> for Status {
    fn from(error: identity::Error) -> Self {
        let text = error.to_string();
        match error {
            identity::Error::Request(_) => Self::invalid_argument(text),
            identity::Error::File(_)
            | identity::Error::Stored(_)
            | identity::Error::Sign(_)
            | identity::Error::Random(_) => {
                tracing::error!(error = %text, "no certificate could be issued");
                Self::internal("no certificate could be issued")
            }
        }
    }
}
