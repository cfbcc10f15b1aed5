//! The one table from a room's error to a gRPC status. A new error does not compile without a row.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{coordinate, identity, ledger, registry};

impl From<registry::Error> for Status {
    fn from(error: registry::Error) -> Self {
        let text = error.to_string();
        match error {
            registry::Error::Invalid(faults) => by_field(text, &faults),
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

/// Bytes of fields in a refusal's details: they travel in a header, and clients take 16 KiB of those.
const DETAILS_BYTES_MAX: usize = 4 << 10;

/// Every fault with its field, as `google.rpc.BadRequest` for programs and as text for people. What does not fit in
/// the details stands in the text.
fn by_field(text: String, faults: &[registry::Fault]) -> Status {
    let mut room = DETAILS_BYTES_MAX;
    let fitting = faults.iter().take_while(|fault| {
        let bytes = fault.field.len() + fault.why.len();
        let fits = bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    });
    let fields: Vec<FieldViolation> = fitting
        .map(|fault| FieldViolation::new(&fault.field, &fault.why))
        .collect();
    let details = ErrorDetails::with_bad_request(fields);
    Status::with_error_details(Code::InvalidArgument, text, details)
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
            // Said by the ledger itself, once for as long as it lasts.
            ledger::Error::Unavailable(_) => Self::unavailable(text),
            ledger::Error::Database(_) | ledger::Error::Refused(_) | ledger::Error::Settings(_) => {
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
            identity::Error::NoIntermediate => Self::failed_precondition(text),
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
