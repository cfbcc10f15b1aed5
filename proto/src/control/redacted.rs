//! How messages that carry a secret are printed: by their name, and nothing else.
//!
//! `build.rs` leaves the derived `Debug` out for these; one that is forgotten there does not compile here.

use std::fmt;

use super::v1;

macro_rules! redacted {
    ($($message:ident: $($shown:ident),*;)*) => {$(
        impl fmt::Debug for v1::$message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))
                    $(.field(stringify!($shown), &self.$shown))*
                    .finish_non_exhaustive()
            }
        }
    )*};
}

redacted! {
    Credential: name, provider, disabled;
    CredentialSpec: name, provider, disabled;
    CreatedKey: key;
    InviteNodeResponse: expires_unix_ms;
    AddedOperator: operator;
    EnrollRequest: node;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_printed() {
        let secret = || "sk-canary".to_owned();
        let headers = [("x-key".to_owned(), secret())];
        let credential = v1::Credential {
            name: "main".to_owned(),
            secret: secret(),
            headers: headers.clone().into(),
            ..v1::Credential::default()
        };
        let event = v1::control_event::Event::Credentials(v1::Credentials {
            credentials: vec![credential],
            ..v1::Credentials::default()
        });
        let spec = v1::CredentialSpec {
            secret: secret(),
            headers: headers.into(),
            ..v1::CredentialSpec::default()
        };
        let plan = v1::Plan {
            credentials: vec![spec],
            ..v1::Plan::default()
        };
        let key = v1::CreatedKey {
            secret: secret(),
            ..v1::CreatedKey::default()
        };
        let invite = v1::InviteNodeResponse {
            token: secret(),
            ..v1::InviteNodeResponse::default()
        };
        let operator = v1::AddedOperator {
            token: secret(),
            ..v1::AddedOperator::default()
        };
        let enrol = v1::EnrollRequest {
            invite: secret(),
            ..v1::EnrollRequest::default()
        };
        let text = format!("{event:?}{plan:?}{key:?}{invite:?}{operator:?}{enrol:#?}");
        assert!(text.contains("main"), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }
}
