//! What a call is labelled with: OpenTelemetry's GenAI attributes, and our own name of the operation beside them.

use prometheus_client::encoding::EncodeLabelSet;

use crate::telemetry::{Exchange, Outcome};

/// The conventions' word for an error that has no series of its own.
const OTHER_ERROR: &str = "_OTHER";

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct CallLabels {
    pub(super) role: &'static str,
    pub(super) gen_ai_operation_name: String,
    pub(super) vector_operation: String,
    pub(super) gen_ai_provider_name: String,
    pub(super) gen_ai_request_model: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct DurationLabels {
    pub(super) role: &'static str,
    pub(super) gen_ai_operation_name: String,
    pub(super) vector_operation: String,
    pub(super) gen_ai_provider_name: String,
    pub(super) gen_ai_request_model: String,
    pub(super) error_type: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct TokenLabels {
    pub(super) gen_ai_operation_name: String,
    pub(super) vector_operation: String,
    pub(super) gen_ai_provider_name: String,
    pub(super) gen_ai_request_model: String,
    pub(super) gen_ai_token_type: &'static str,
}

impl DurationLabels {
    pub(super) fn of(call: &CallLabels, error: ErrorType) -> Self {
        let call = call.clone();
        Self {
            role: call.role,
            gen_ai_operation_name: call.gen_ai_operation_name,
            vector_operation: call.vector_operation,
            gen_ai_provider_name: call.gen_ai_provider_name,
            gen_ai_request_model: call.gen_ai_request_model,
            error_type: error.text(),
        }
    }
}

/// The conventions' word for an operation, where they have one; ours elsewhere, as they allow.
pub(super) fn gen_ai_operation(ours: &str) -> &str {
    match ours {
        "chat.completions.create" | "responses.create" => "chat",
        "completions.create" => "text_completion",
        "embeddings.create" => "embeddings",
        _ => ours,
    }
}

/// What went wrong with an exchange, in one word: its status, or how the answer ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ErrorType {
    /// Nothing.
    None,
    Status(u16),
    Outcome(Outcome),
    /// What has no series of its own.
    Other,
}

impl ErrorType {
    pub(super) const fn of(ended: &Exchange<'_>) -> Self {
        match ended.outcome {
            Outcome::Whole | Outcome::Refused if ended.status < 400 => Self::None,
            Outcome::Whole | Outcome::Refused => Self::Status(ended.status),
            Outcome::Cancelled | Outcome::Broken => Self::Outcome(ended.outcome),
        }
    }

    fn text(self) -> String {
        match self {
            Self::None => String::new(),
            Self::Status(status) => status.to_string(),
            Self::Outcome(outcome) => outcome.as_str().to_owned(),
            Self::Other => OTHER_ERROR.to_owned(),
        }
    }
}
