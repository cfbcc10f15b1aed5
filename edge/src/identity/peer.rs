//! Reads who a certificate names.
//!
//! rustls verified the chain before; here only the name is read, and strictly: one URI,
//! `spiffe://TRUST_DOMAIN/node/ROLES/ID`, with known roles and a well-formed id.

use rustls::pki_types::CertificateDer;
use vector_proto::id::NodeId;
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use crate::config::Role;

/// A node, as its certificate names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its name.
    pub id: NodeId,
    /// What it may do; sorted.
    pub roles: Vec<Role>,
    /// Which network it belongs to.
    pub trust_domain: String,
}

/// A certificate that names no node.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the certificate names no node")]
pub struct NotANode;

/// Who a chain names, leaf first.
///
/// # Errors
/// [`NotANode`], whatever is wrong: whoever presents such a certificate is told nothing more.
pub fn peer(chain: &[CertificateDer<'_>]) -> Result<Peer, NotANode> {
    let leaf = chain.first().ok_or(NotANode)?;
    let (_, leaf) =
        x509_parser::certificate::X509Certificate::from_der(leaf).map_err(|_| NotANode)?;
    let names = leaf.subject_alternative_name().map_err(|_| NotANode)?;
    let names = &names.ok_or(NotANode)?.value.general_names;
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => read(uri).ok_or(NotANode),
        _ => Err(NotANode),
    }
}

fn read(uri: &str) -> Option<Peer> {
    let rest = uri.strip_prefix("spiffe://")?;
    let (trust_domain, rest) = rest.split_once("/node/")?;
    let (roles, id) = rest.split_once('/')?;
    let roles = roles.split('+').map(str::parse);
    let mut roles: Vec<Role> = roles.collect::<Result<_, _>>().ok()?;
    roles.sort_unstable();
    roles.dedup();
    if trust_domain.is_empty() || trust_domain.contains('/') {
        return None;
    }
    Some(Peer {
        id: id.parse().ok()?,
        roles,
        trust_domain: trust_domain.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_name_is_read() {
        let peer = read("spiffe://vector.local/node/egress+ingress/n-1").unwrap();
        assert_eq!(peer.id.as_str(), "n-1");
        assert_eq!(peer.roles, [Role::Ingress, Role::Egress]);
        assert_eq!(peer.trust_domain, "vector.local");
        for bad in [
            "spiffe:///node/ingress/n",
            "spiffe://td/x/node/ingress/n",
            "spiffe://td/node/king/n",
            "spiffe://td/node//n",
            "spiffe://td/node/ingress/",
            "spiffe://td/node/ingress/a/b",
            "spiffe://td/node/ingress/A",
            "spiffe://td/control",
            "https://td/node/ingress/n",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn garbage_names_nobody() {
        assert_eq!(peer(&[]), Err(NotANode));
        assert_eq!(
            peer(&[CertificateDer::from(vec![0x30, 0x03, 1, 1, 1])]),
            Err(NotANode)
        );
    }
}
