//! Credentials that go out of use where a change is, and nowhere else: a wrong secret, header, base URL or model.
//!
//! An ingress does not count a provider's 401 to 403 against the upstream, since the egress tries the next credential by
//! itself; so the egress nodes among the canaries are asked. One that was out before the change, or is out at a node that
//! does not have it, is not its fault.

use std::collections::{BTreeMap, BTreeSet};

use vector_proto::control::v1::{CredentialState, CredentialStatus};

/// The credentials of one egress.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Standing {
    /// (provider, credential): the provider refuses it, or nothing is left of its balance.
    out: BTreeSet<(String, String)>,
    /// Providers with a credential that is in use, if only after a rest.
    served: BTreeSet<String>,
    /// Providers with a credential.
    known: BTreeSet<String>,
}

impl Standing {
    pub(super) fn of(rows: Vec<CredentialStatus>) -> Self {
        let mut standing = Self::default();
        for row in rows {
            let state = row.state();
            standing.known.insert(row.provider.clone());
            match state {
                CredentialState::Out => {
                    standing.out.insert((row.provider, row.credential));
                }
                CredentialState::Ready | CredentialState::Resting => {
                    standing.served.insert(row.provider);
                }
                CredentialState::Disabled | CredentialState::Unspecified => {}
            }
        }
        standing
    }

    /// Credentials that have gone out since.
    fn newly_out<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a (String, String)> {
        self.out.difference(&before.out)
    }

    /// Providers that had a credential in use, and of whose credentials none is any more.
    fn newly_bare<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a String> {
        let left = before.served.intersection(&self.known);
        left.filter(|provider| !self.served.contains(*provider))
    }

    /// What it has lost and others have not, in words.
    fn lost(&self, before: &Self, others: &BTreeMap<String, Self>) -> Option<String> {
        let kept = |row: &&(String, String)| !others.values().any(|other| other.out.contains(row));
        if let Some((provider, name)) = self.newly_out(before).find(kept) {
            return Some(format!("credential {name} of {provider} is out of use"));
        }
        let served = |row: &&String| {
            others
                .values()
                .any(|other| other.served.contains(row.as_str()))
        };
        let bare = self.newly_bare(before).find(served)?;
        Some(format!("no credential of {bare} is left in use"))
    }
}

/// The first loss of a canary since the change that is none elsewhere. `others` is asked for only when there is a loss. Pure.
pub(super) fn lost(
    before: &BTreeMap<String, Standing>,
    now: &BTreeMap<String, Standing>,
    others: impl FnOnce() -> BTreeMap<String, Standing>,
) -> Option<String> {
    let pairs = now
        .iter()
        .filter_map(|(id, now)| Some((id, before.get(id)?, now)));
    let worse: Vec<_> = pairs
        .filter(|(_, before, now)| {
            now.newly_out(before).next().is_some() || now.newly_bare(before).next().is_some()
        })
        .collect();
    if worse.is_empty() {
        return None;
    }
    let others = others();
    let mut told = worse.into_iter().filter_map(|(id, before, now)| {
        let lost = now.lost(before, &others)?;
        Some(format!("{lost} at {id} since, and not elsewhere"))
    });
    told.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(node: &str, rows: &[(&str, CredentialState)]) -> BTreeMap<String, Standing> {
        let row = |(name, state): &(&str, CredentialState)| CredentialStatus {
            credential: (*name).to_owned(),
            provider: "p".to_owned(),
            state: (*state).into(),
            ..CredentialStatus::default()
        };
        let standing = Standing::of(rows.iter().map(row).collect());
        [(node.to_owned(), standing)].into()
    }

    fn check(
        before: &[(&str, CredentialState)],
        now: &[(&str, CredentialState)],
        other: &[(&str, CredentialState)],
    ) -> Option<String> {
        lost(&at("e-1", before), &at("e-1", now), || at("e-2", other))
    }

    #[test]
    fn a_credential_that_goes_out_where_the_change_is_speaks_against_it() {
        use CredentialState::{Disabled, Out, Ready, Resting};
        let good = [("a", Ready), ("b", Ready)];
        let bad = [("a", Out), ("b", Ready)];
        let told = "credential a of p is out of use at e-1 since, and not elsewhere";
        assert_eq!(check(&good, &bad, &good).as_deref(), Some(told));
        assert_eq!(
            check(&good, &bad, &[]).as_deref(),
            Some(told),
            "nobody else"
        );
        assert_eq!(check(&[], &bad, &[]).as_deref(), Some(told), "it is new");
        assert_eq!(check(&bad, &bad, &good), None, "it was out before");
        assert_eq!(check(&good, &bad, &bad), None, "it is out everywhere");
        let rests = [("a", Resting), ("b", Resting)];
        assert_eq!(check(&good, &rests, &good), None, "it comes back");
        let unheard = lost(&BTreeMap::new(), &at("e-1", &bad), BTreeMap::new);
        assert_eq!(unheard, None, "nobody knows how it was");

        // The change takes away the one that was good.
        let left = [("a", Out)];
        let told = "no credential of p is left in use at e-1 since, and not elsewhere";
        assert_eq!(check(&bad, &left, &bad).as_deref(), Some(told));
        let off = [("a", Out), ("b", Disabled)];
        assert_eq!(check(&bad, &off, &off), None, "off is off everywhere");
        assert_eq!(check(&bad, &[], &bad), None, "the provider goes");
    }
}
