//! Which nodes belong to the network: invited once, enrolled, and known until removed.
//!
//! An invite is 256 random bits, stored as SHA-256, bound to roles and region (and to an id where it names
//! one), good for one node and for a short while. The transaction that makes the node binds the invite to the signing
//! request that came with it: whoever lost the answer asks again, and nobody else can.

use bytes::Bytes;
use prost::Message;
use ring::digest::{SHA256, digest};
use vector_proto::{control::v1::Register, id::NodeId};
use zeroize::Zeroizing;

use super::{
    Actor, Error, Fault, Registry, audit::change, catalog::decode, revoke::revoked_before, trust,
};
use crate::{
    coordinate::{Entry, Listing, Revision, Transaction},
    vault,
};

pub(super) const NODES: &str = "/nodes/";
pub(super) const SEEN: &str = "/seen/nodes/";
const INVITES: &str = "/invites/";

/// Invites live this long when nothing else is said: 15 minutes.
const INVITE_TTL_S: u64 = 900;

/// Longest life of an invite: a week.
const INVITE_TTL_S_MAX: u64 = 7 * 86_400;

/// Invites that may wait to be used.
const INVITES_MAX: usize = 1_000;

/// Addresses and URLs a node may say, and the length of each.
const SAID_MAX: usize = 16;
const SAID_BYTES_MAX: usize = 300;

/// The roles there are, in the order in which they are written.
const ROLES: [&str; 3] = ["ingress", "relay", "egress"];

/// A node, as the operator knows it.
#[derive(Clone, PartialEq, Message)]
pub struct NodeSpec {
    /// Its name.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Where it stands.
    #[prost(string, tag = "2")]
    pub region: String,
    /// What it may do; in the order ingress, relay, egress.
    #[prost(string, repeated, tag = "3")]
    pub roles: Vec<String>,
    /// The operator wants no new work on it.
    #[prost(bool, tag = "4")]
    pub draining: bool,
    /// When it was enrolled. Certificates of before are of a node that was replaced.
    #[prost(uint64, tag = "5")]
    pub enrolled_unix_ms: u64,
}

impl NodeSpec {
    /// As it stands in the store.
    ///
    /// # Errors
    /// [`Error::Damaged`] for anything else.
    pub fn read(stored: &Bytes) -> Result<Self, Error> {
        decode(stored)
    }
}

/// What a node said of itself when it connected last.
pub type Seen = Register;

/// A right to enrol one node.
#[derive(Clone, PartialEq, Message)]
pub struct Invite {
    /// Roles the node will have.
    #[prost(string, repeated, tag = "1")]
    pub roles: Vec<String>,
    /// Where it stands.
    #[prost(string, tag = "2")]
    pub region: String,
    /// Its name; empty: the node's choice.
    #[prost(string, tag = "3")]
    pub node: String,
    /// Good until then.
    #[prost(uint64, tag = "4")]
    pub expires_unix_ms: u64,
    /// SHA-256 of the signing request that has used it; empty: none has.
    #[prost(bytes = "bytes", tag = "5")]
    pub used_for: Bytes,
    /// The node that this made, and when.
    #[prost(string, tag = "6")]
    pub made: String,
    /// In milliseconds since 1970.
    #[prost(uint64, tag = "7")]
    pub made_unix_ms: u64,
}

/// What a node asks for when it enrols.
#[derive(Debug)]
pub struct Enrolment<'a> {
    /// Secret of the invite.
    pub secret: &'a str,
    /// Wanted name; may be empty.
    pub node: &'a str,
    /// Its signing request: the same one may ask again.
    pub csr: &'a [u8],
    /// Now.
    pub now_unix_ms: u64,
}

impl Registry {
    /// Makes an invite and answers its secret. `invite.expires_unix_ms` is set from `ttl_s`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for unknown roles or malformed names.
    pub async fn invite(
        &self,
        by: &Actor,
        mut invite: Invite,
        ttl_s: u64,
        now_unix_ms: u64,
    ) -> Result<(Zeroizing<String>, Invite), Error> {
        check_invite(&invite, ttl_s)?;
        invite.roles = in_order(&invite.roles);
        let ttl_s = if ttl_s == 0 { INVITE_TTL_S } else { ttl_s };
        invite.expires_unix_ms = now_unix_ms + ttl_s * 1_000;
        let mut put = Transaction::new();
        let mut waiting = 0;
        for entry in self.store.list(INVITES).await?.entries {
            let invite = decode::<Invite>(&entry.value)?;
            if invite.expires_unix_ms <= now_unix_ms {
                put = put.delete(entry.key);
            } else if invite.used_for.is_empty() {
                waiting += 1;
            }
        }
        if waiting >= INVITES_MAX {
            return Err(Error::Refused(format!(
                "{waiting} invites wait to be used already"
            )));
        }
        let secret = Zeroizing::new(vault::hex(&vault::random::<32>()?));
        let put = put.put(invite_key(&secret), invite.encode_to_vec());
        let details = vec![
            format!("roles: {}", invite.roles.join("+")),
            format!("region: {}", invite.region),
        ];
        self.commit(
            by,
            &[change("create", "invite", &invite.node, details)],
            put,
        )
        .await?;
        Ok((secret, invite))
    }

    /// Trades an invite for a node. The invite is then used up, but for the same signing request while its time lasts:
    /// nothing is changed then.
    ///
    /// # Errors
    /// [`Error::BadInvite`] when it is not good for this; [`Error::Refused`] when the name is taken.
    pub async fn enroll(&self, asked: Enrolment<'_>) -> Result<NodeSpec, Error> {
        let at = invite_key(asked.secret);
        let unknown = Error::BadInvite("the invite is unknown or was used already");
        let Some(entry) = self.store.get(&at).await? else {
            return Err(unknown);
        };
        let invite: Invite = decode(&entry.value)?;
        if invite.expires_unix_ms <= asked.now_unix_ms {
            return Err(Error::BadInvite("the invite's time is over"));
        }
        let used_for = Bytes::copy_from_slice(digest(&SHA256, asked.csr).as_ref());
        if !invite.used_for.is_empty() {
            let again = invite.used_for == used_for && ["", &invite.made].contains(&asked.node);
            return match self.node(&invite.made).await {
                // Unless it was invited anew since, and has another key now.
                Ok(spec) if again && spec.enrolled_unix_ms == invite.made_unix_ms => Ok(spec),
                Ok(_) | Err(Error::Unknown { .. }) => Err(unknown),
                Err(error) => Err(error),
            };
        }
        let id = chosen_id(&invite, asked.node)?;
        let node_at = format!("{NODES}{id}");
        let before = self.store.get(&node_at).await?;
        // Only an invite for this very name may give an existing node a new key.
        if before.is_some() && invite.node.is_empty() {
            return Err(Error::Refused(format!(
                "a node named `{id}` exists: invite it by its name, or remove it first"
            )));
        }
        let old: Option<NodeSpec> = before
            .as_ref()
            .map(|entry| decode(&entry.value))
            .transpose()?;
        // Whoever has the key of before is not this node any more.
        let revoked = match &old {
            Some(old) => revoked_before(old.enrolled_unix_ms, asked.now_unix_ms),
            None => self.revoked_of(id.as_str()).await?,
        };
        let spec = NodeSpec {
            id: id.as_str().to_owned(),
            region: invite.region.clone(),
            roles: invite.roles.clone(),
            draining: false,
            enrolled_unix_ms: asked.now_unix_ms.max(revoked * 1_000),
        };
        let used = Invite {
            used_for,
            made: spec.id.clone(),
            made_unix_ms: spec.enrolled_unix_ms,
            ..invite
        };
        let mut trade = Transaction::new()
            .when(at.clone(), entry.changed)
            .when(node_at.clone(), before.map_or(0, |entry| entry.changed))
            .put(at, used.encode_to_vec())
            .put(node_at, spec.encode_to_vec());
        if old.is_some() {
            trade = self
                .revoke(&spec.id, revoked, asked.now_unix_ms, trade)
                .await?;
        }
        let details = vec![
            format!("roles: {}", spec.roles.join("+")),
            format!("region: {}", spec.region),
        ];
        let what = change("enrol", "node", &spec.id, details);
        match self.commit(&Actor::node(&spec.id), &[what], trade).await {
            Ok(_) => Ok(spec),
            Err(Error::Conflict(_)) => Err(unknown),
            Err(error) => Err(error),
        }
    }

    /// All nodes with what they said of themselves last, by id.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn nodes(&self) -> Result<Vec<(NodeSpec, Option<Seen>)>, Error> {
        let seen = self.store.list(SEEN).await?;
        Ok(self.nodes_with(&seen).await?.0)
    }

    /// All nodes, each with what is listed of it, and the revision at which they were.
    pub(super) async fn nodes_with(
        &self,
        seen: &Listing,
    ) -> Result<(Vec<(NodeSpec, Option<Seen>)>, Revision), Error> {
        let seen = &seen.entries;
        let seen_of = |id: &str| -> Result<Option<Seen>, Error> {
            let found = seen.binary_search_by(|entry| entry.key[SEEN.len()..].cmp(id));
            found.ok().map(|at| decode(&seen[at].value)).transpose()
        };
        let nodes = self.store.list(NODES).await?;
        let with = nodes.entries.iter().map(|entry| {
            let spec: NodeSpec = decode(&entry.value)?;
            let seen = seen_of(&spec.id)?;
            Ok((spec, seen))
        });
        Ok((with.collect::<Result<_, Error>>()?, nodes.revision))
    }

    /// One node.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is none.
    pub async fn node(&self, id: &str) -> Result<NodeSpec, Error> {
        decode(&self.node_entry(id).await?.value)
    }

    pub(super) async fn node_entry(&self, id: &str) -> Result<Entry, Error> {
        let entry = self.store.get(&format!("{NODES}{id}")).await?;
        entry.ok_or_else(|| Error::Unknown {
            kind: "node",
            name: id.to_owned(),
        })
    }

    /// Keeps what a node says of itself. Writes nothing when it says the same as before.
    ///
    /// # Errors
    /// [`Error::Invalid`] for absurd addresses.
    pub async fn keep_seen(&self, id: &str, mut seen: Seen) -> Result<(), Error> {
        check_seen(&seen)?;
        // These change with every connection and decide nothing.
        (seen.revision, seen.keys_revision) = (0, 0);
        (seen.deltas, seen.delta_parts) = (false, false);
        let at = format!("{SEEN}{id}");
        let value = seen.encode_to_vec();
        let before = self.store.get(&at).await?;
        if before.is_some_and(|entry| entry.value == value) {
            return Ok(());
        }
        let node = self.node_entry(id).await?;
        let put = Transaction::new()
            .when(node.key, node.changed)
            .put(at, value);
        self.store.commit(put).await?;
        Ok(())
    }

    /// Wants no new work on a node, or wants it again.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is none.
    pub async fn drain_node(&self, by: &Actor, id: &str, on: bool) -> Result<NodeSpec, Error> {
        let entry = self.node_entry(id).await?;
        let mut spec: NodeSpec = decode(&entry.value)?;
        if spec.draining != on {
            spec.draining = on;
            let put = Transaction::new()
                .when(entry.key.clone(), entry.changed)
                .put(entry.key, spec.encode_to_vec());
            let details = vec![format!("draining: {} -> {on}", !on)];
            self.commit(by, &[change("update", "node", id, details)], put)
                .await?;
        }
        Ok(spec)
    }

    /// Takes a node out of the network: its certificate is worth nothing from now on, with nobody.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn remove_node(&self, by: &Actor, id: &str, now_unix_ms: u64) -> Result<bool, Error> {
        let at = format!("{NODES}{id}");
        let Some(entry) = self.store.get(&at).await? else {
            return Ok(false);
        };
        let spec: NodeSpec = decode(&entry.value)?;
        let before = revoked_before(spec.enrolled_unix_ms, now_unix_ms);
        let gone = Transaction::new()
            .when(at.clone(), entry.changed)
            .delete(at)
            .delete(format!("{SEEN}{id}"))
            .delete(trust::at(id));
        let gone = self.revoke(id, before, now_unix_ms, gone).await?;
        self.commit(by, &[change("remove", "node", id, Vec::new())], gone)
            .await?;
        Ok(true)
    }
}

fn invite_key(secret: &str) -> String {
    format!(
        "{INVITES}{}",
        vault::hex(digest(&SHA256, secret.as_bytes()).as_ref())
    )
}

fn in_order(roles: &[String]) -> Vec<String> {
    ROLES
        .iter()
        .filter(|role| roles.iter().any(|wanted| wanted == *role))
        .map(|&role| role.to_owned())
        .collect()
}

fn check_invite(invite: &Invite, ttl_s: u64) -> Result<(), Error> {
    let mut faults = Vec::new();
    let mut fault = |field: &str, why: String| {
        faults.push(Fault {
            field: field.to_owned(),
            why,
        });
    };
    if invite.roles.is_empty() {
        fault("roles", format!("at least one of: {}", ROLES.join(", ")));
    }
    for role in invite
        .roles
        .iter()
        .filter(|role| !ROLES.contains(&role.as_str()))
    {
        fault(
            "roles",
            format!("`{role}` is none of: {}", ROLES.join(", ")),
        );
    }
    if let Err(error) = invite.region.parse::<NodeId>() {
        fault("region", error.to_string());
    }
    if !invite.node.is_empty()
        && let Err(error) = invite.node.parse::<NodeId>()
    {
        fault("node", error.to_string());
    }
    if ttl_s > INVITE_TTL_S_MAX {
        fault("ttl_s", format!("at most {INVITE_TTL_S_MAX}, a week"));
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid(faults))
    }
}

/// The name of the node that enrols: the invite's, else its own wish, else one that tells what it is.
fn chosen_id(invite: &Invite, wanted: &str) -> Result<NodeId, Error> {
    if !invite.node.is_empty() && !wanted.is_empty() && wanted != invite.node {
        return Err(Error::BadInvite("the invite is for a node of another name"));
    }
    let text = match (invite.node.as_str(), wanted) {
        ("", "") => {
            let role = invite.roles.first().map_or("node", String::as_str);
            let tail = vault::random_letters(6)?.to_ascii_lowercase();
            let region: String = invite.region.chars().take(40).collect();
            format!("{role}-{region}-{tail}")
        }
        ("", wanted) => wanted.to_owned(),
        (named, _) => named.to_owned(),
    };
    text.parse().map_err(|error: vector_proto::id::BadId| {
        Error::Invalid(vec![Fault {
            field: "node".to_owned(),
            why: error.to_string(),
        }])
    })
}

fn check_seen(seen: &Seen) -> Result<(), Error> {
    let mut faults = Vec::new();
    for (field, said) in [
        ("tunnel_addresses", &seen.tunnel_addresses),
        ("client_urls", &seen.client_urls),
        ("public_addresses", &seen.public_addresses),
    ] {
        if said.len() > SAID_MAX || said.iter().any(|text| text.len() > SAID_BYTES_MAX) {
            faults.push(Fault {
                field: field.to_owned(),
                why: format!("at most {SAID_MAX}, each of at most {SAID_BYTES_MAX} bytes"),
            });
        }
    }
    if seen.version.len() > SAID_BYTES_MAX {
        faults.push(Fault {
            field: "version".to_owned(),
            why: "too long".to_owned(),
        });
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid(faults))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::fixture;

    #[tokio::test]
    async fn an_invite_is_good_until_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let registry = fixture::registry(dir.path()).await;
        let by = fixture::by();
        let invite = Invite {
            roles: vec!["egress".to_owned(), "ingress".to_owned()],
            region: "eu".to_owned(),
            ..Invite::default()
        };
        let asked = |secret, now_unix_ms| Enrolment {
            secret,
            node: "n-1",
            csr: b"request",
            now_unix_ms,
        };
        let (secret, made) = registry
            .invite(&by, invite.clone(), 60, 1_000)
            .await
            .unwrap();
        assert_eq!(made.roles, ["ingress", "egress"], "roles have one order");
        let late = registry.enroll(asked(&secret, 61_000)).await;
        assert!(matches!(late, Err(Error::BadInvite(_))));
        let (secret, _) = registry.invite(&by, invite, 60, 1_000).await.unwrap();
        assert_eq!(
            registry.enroll(asked(&secret, 60_999)).await.unwrap().id,
            "n-1"
        );

        let bad = Invite {
            roles: vec!["king".to_owned()],
            region: "EU".to_owned(),
            ..Invite::default()
        };
        let Err(Error::Invalid(faults)) = registry.invite(&by, bad, 60, 0).await else {
            panic!("a bad invite is refused");
        };
        assert_eq!(faults.len(), 2, "all faults at once");
    }
}
