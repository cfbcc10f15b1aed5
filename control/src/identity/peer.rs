//! Reads who a client certificate names.
//!
//! The chain was verified by rustls before; here only the names are read, and strictly: one URI, of
//! this trust domain, with known roles and a well-formed id.

use std::{fmt, str::FromStr, time::Duration};

use vector_proto::id::NodeId;
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use super::authority::BACKDATE;

/// What a node may do.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Role {
    /// Takes clients.
    Ingress,
    /// Passes exchanges on.
    Relay,
    /// Calls providers.
    Egress,
}

impl Role {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Relay => "relay",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "ingress" => Ok(Self::Ingress),
            "relay" => Ok(Self::Relay),
            "egress" => Ok(Self::Egress),
            _ => Err(UnknownRole),
        }
    }
}

/// Not a role.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a role is `ingress`, `relay` or `egress`")]
pub struct UnknownRole;

/// A node, as its certificate names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its name.
    pub id: NodeId,
    /// What it may do; sorted.
    pub roles: Vec<Role>,
}

impl Peer {
    /// Reads a leaf that rustls has verified. `None` when it names no node of this network.
    #[must_use]
    pub fn of_leaf(der: &[u8], trust_domain: &str) -> Option<Self> {
        Self::of_uri(&only_uri(der)?, trust_domain)
    }

    fn of_uri(uri: &str, trust_domain: &str) -> Option<Self> {
        let rest = uri
            .strip_prefix("spiffe://")?
            .strip_prefix(trust_domain)?
            .strip_prefix("/node/")?;
        let (roles, id) = rest.split_once('/')?;
        let roles: Vec<Role> = roles
            .split('+')
            .map(Role::from_str)
            .collect::<Result<_, _>>()
            .ok()?;
        Some(Self {
            id: id.parse().ok()?,
            roles,
        })
    }
}

/// Whether a leaf names a node, of whatever network.
#[must_use]
pub fn names_a_node(der: &[u8]) -> bool {
    let uri = only_uri(der);
    let rest = uri.as_deref().and_then(|uri| uri.strip_prefix("spiffe://"));
    rest.and_then(|rest| rest.split_once('/'))
        .is_some_and(|(_, path)| path.starts_with("node/"))
}

/// When a leaf that rustls has verified was issued, in seconds since 1970: its validity begins [`BACKDATE`] before that.
#[must_use]
pub fn issued_of_leaf(der: &[u8]) -> Option<Duration> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let begins = u64::try_from(certificate.validity().not_before.timestamp()).ok()?;
    Some(Duration::from_secs(begins) + BACKDATE)
}

/// When a leaf that rustls has verified ended, in seconds since 1970; `None` for one that has not, as seen by a clock that is
/// [`BACKDATE`] slower.
#[must_use]
pub fn ended_of_leaf(der: &[u8], now: Duration) -> Option<Duration> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let ends = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    let ends = Duration::from_secs(ends);
    (now > ends + BACKDATE).then_some(ends)
}

/// The operator whom a leaf names that rustls has verified. `None` when it names none of this network.
#[must_use]
pub fn operator_of_leaf(der: &[u8], trust_domain: &str) -> Option<NodeId> {
    only_uri(der)?
        .strip_prefix("spiffe://")?
        .strip_prefix(trust_domain)?
        .strip_prefix("/operator/")?
        .parse()
        .ok()
}

/// The one URI among the names of a leaf.
fn only_uri(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    let uri = uris.next()?;
    uris.next().is_none().then(|| uri.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_name_of_this_network_is_read() {
        let peer = Peer::of_uri("spiffe://td/node/ingress+egress/n-1", "td").unwrap();
        assert_eq!(peer.id.as_str(), "n-1");
        assert_eq!(peer.roles, [Role::Ingress, Role::Egress]);
        for bad in [
            "spiffe://other/node/ingress/n",
            "spiffe://td.evil/node/ingress/n",
            "spiffe://td/node/king/n",
            "spiffe://td/node/ingress/",
            "spiffe://td/node/ingress/a/b",
            "spiffe://td/control",
            "https://td/node/ingress/n",
        ] {
            assert_eq!(Peer::of_uri(bad, "td"), None, "{bad}");
        }
    }
}
