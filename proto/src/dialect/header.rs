//! Which of a client's headers reach a provider.
//!
//! A list of what may, for the ingress that passes them on and the egress that takes nobody's word: nothing of one connection,
//! nothing that tells of the client's network, no key, and no organisation or project, which are the credential's own.

/// Whether a request header of this name, in lower case, is passed on to the provider.
pub fn travels(name: &str) -> bool {
    match name {
        "accept"
        | "accept-language"
        | "content-type"
        | "content-language"
        | "content-disposition"
        | "idempotency-key"
        | "user-agent"
        | "range"
        | "if-range"
        | "if-match"
        | "if-none-match"
        | "if-modified-since"
        | "if-unmodified-since"
        | "last-event-id"
        | "x-client-request-id" => true,
        "openai-organization" | "openai-project" => false,
        "x-openai-organization" | "x-openai-project" => false,
        other => {
            other.starts_with("openai-")
                || other.starts_with("anthropic-")
                || other.starts_with("x-openai-")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_accounts_and_hops_do_not_travel() {
        for name in [
            "authorization",
            "x-api-key",
            "host",
            "connection",
            "te",
            "cookie",
            "forwarded",
            "x-forwarded-for",
            "content-length",
            "openai-organization",
            "openai-project",
            "x-openai-project",
            "x-stainless-lang",
        ] {
            assert!(!travels(name), "{name}");
        }
        for name in [
            "content-type",
            "content-disposition",
            "last-event-id",
            "openai-beta",
            "x-openai-experiment",
            "anthropic-version",
            "idempotency-key",
            "x-client-request-id",
            "user-agent",
        ] {
            assert!(travels(name), "{name}");
        }
    }
}
