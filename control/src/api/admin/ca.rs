//! What signs certificates, and its replacement. No answer holds a key.

use tonic::Status;
use vector_proto::control::v1 as pb;

use super::{super::caller::Caller, Operators};
use crate::{api::unix_now, identity::Facts};

impl Operators {
    pub(super) fn authority(&self) -> pb::AuthorityView {
        let authority = &self.rooms.authority;
        let signing = authority.intermediate();
        pb::AuthorityView {
            trust_domain: authority.trust_domain().to_owned(),
            root: Some(told(authority.root_facts())),
            intermediate: signing.map(|signing| told(signing.facts())),
        }
    }

    pub(super) async fn intermediate_rotated(
        &self,
        caller: &Caller,
    ) -> Result<pb::AuthorityView, Status> {
        let authority = &self.rooms.authority;
        let facts = self
            .rooms
            .registry
            .rotate_intermediate(authority, &caller.by, unix_now())
            .await?;
        tracing::info!(pin = facts.pin, "another intermediate signs");
        Ok(self.authority())
    }
}

fn told(facts: &Facts) -> pb::CertificateFacts {
    pb::CertificateFacts {
        pin: facts.pin.clone(),
        begins_unix_s: facts.begins.as_secs(),
        ends_unix_s: facts.ends.as_secs(),
    }
}
