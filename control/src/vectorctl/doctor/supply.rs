//! What may be wrong between a model's name and the provider that shall answer.

use std::collections::BTreeSet;

use vector_proto::control::v1 as pb;

use super::Findings;
use crate::sight::{Sight, id};

/// Providers that nobody may call.
pub(super) fn providers(sight: &Sight, found: &mut Findings) {
    for provider in &sight.providers {
        let name = &provider.name;
        let allowed: Vec<_> = egress(sight, provider).collect();
        if allowed.is_empty() && sight.with_role("egress").next().is_some() {
            found.fault(
                "provider",
                format!(
                    "provider {name} may be called from {} only, and no egress stands there",
                    provider.egress.join(", ")
                ),
                "name regions or nodes that exist (vectorctl node list), or invite an egress there",
            );
        } else if !allowed.is_empty() && !allowed.iter().any(|view| view.connected) {
            let names: Vec<&str> = allowed.iter().map(|view| id(view)).collect();
            found.fault(
                "provider",
                format!(
                    "no egress that may call provider {name} is connected: {}",
                    names.join(", ")
                ),
                "start them, or let others call it: `egress` of the provider",
            );
        }
    }
}

/// Egress nodes that may call a provider.
fn egress<'a>(
    sight: &'a Sight,
    provider: &'a pb::ProviderSpec,
) -> impl Iterator<Item = &'a pb::NodeView> {
    sight.with_role("egress").filter(|view| {
        let record = view.record.as_ref();
        provider.egress.is_empty()
            || record.is_some_and(|record| {
                provider.egress.contains(&record.id) || provider.egress.contains(&record.region)
            })
    })
}

/// Providers whose keys are missing, off, out or resting.
pub(super) fn credentials(sight: &Sight, found: &mut Findings) {
    for provider in &sight.providers {
        let own: Vec<_> = of_provider(sight, &provider.name).collect();
        let on: Vec<_> = own.iter().copied().filter(|view| is_on(view)).collect();
        let name = &provider.name;
        if own.is_empty() {
            found.fault(
                "credential",
                format!("provider {name} has no credential"),
                format!("vectorctl credential put NAME --provider {name} --secret-file FILE"),
            );
        } else if on.is_empty() {
            found.fault(
                "credential",
                format!("every credential of provider {name} is disabled"),
                "apply one of them with disabled = false",
            );
        } else {
            states(name, &on, found);
        }
    }
}

fn of_provider<'a>(
    sight: &'a Sight,
    provider: &'a str,
) -> impl Iterator<Item = &'a pb::CredentialView> {
    sight.credentials.iter().filter(move |view| {
        view.spec
            .as_ref()
            .is_some_and(|spec| spec.provider == provider)
    })
}

fn is_on(view: &pb::CredentialView) -> bool {
    view.spec.as_ref().is_some_and(|spec| !spec.disabled)
}

/// How the credentials of one provider fare at the egress nodes that say so.
fn states(provider: &str, on: &[&pb::CredentialView], found: &mut Findings) {
    let told: Vec<(&str, &pb::CredentialStatus)> = on
        .iter()
        .flat_map(|view| view.at.iter())
        .filter_map(|at| Some((at.egress.as_str(), at.status.as_ref()?)))
        .collect();
    let is = |state: pb::CredentialState| {
        move |row: &&(&str, &pb::CredentialStatus)| row.1.state() == state
    };
    let out: Vec<_> = told.iter().filter(is(pb::CredentialState::Out)).collect();
    let ready = told
        .iter()
        .any(|row| row.1.state() == pb::CredentialState::Ready);
    for (egress, status) in &out {
        let reason = if status.reason.is_empty() {
            "no reason told"
        } else {
            &status.reason
        };
        let what = format!(
            "credential {} of provider {provider} is out of use at {egress}: {reason}",
            status.credential
        );
        let cure = "see it at the provider (revoked, unpaid, no right for the model); give a new secret with vectorctl credential put";
        found.warning("credential", what, cure);
    }
    if told.is_empty() || ready {
        return;
    }
    if out.len() == told.len() {
        found.fault(
            "credential",
            format!("every credential of provider {provider} is out of use"),
            "give a good secret with vectorctl credential put",
        );
        return;
    }
    let rests_ms = told
        .iter()
        .filter(is(pb::CredentialState::Resting))
        .map(|row| row.1.rests_ms)
        .min();
    found.fault(
        "credential",
        format!(
            "every credential of provider {provider} rests, the first for {} s more",
            rests_ms.unwrap_or_default().div_ceil(1_000)
        ),
        "requests wait or get a 429: add credentials, or raise the limits at the provider and in the configuration",
    );
}

/// Models and routes that lead to nobody.
pub(super) fn models(sight: &Sight, found: &mut Findings) {
    if sight.models.is_empty() && sight.routes.is_empty() {
        found.fault(
            "model",
            "no model and no default route is configured".to_owned(),
            "vectorctl apply -f network.toml",
        );
    }
    let served = served(sight);
    let dead = |upstreams: &[pb::Upstream]| {
        !upstreams
            .iter()
            .any(|upstream| served.contains(upstream.provider.as_str()))
    };
    let named = sight
        .models
        .iter()
        .map(|spec| ("model", &spec.name, &spec.upstreams))
        .chain(
            sight
                .routes
                .iter()
                .map(|spec| ("default route", &spec.operation, &spec.upstreams)),
        );
    for (kind, name, upstreams) in named {
        if upstreams.is_empty() {
            found.fault(
                "model",
                format!("{kind} {name} has no upstream"),
                "give it one in network.toml and apply it",
            );
        } else if dead(upstreams) {
            found.fault(
                "model",
                format!("{kind} {name} has no upstream whose provider can be called now"),
                "mend one of its providers (they are told beside this), or add another upstream",
            );
        }
    }
}

/// Providers with a credential that is on and a connected egress that may call them.
fn served(sight: &Sight) -> BTreeSet<&str> {
    sight
        .providers
        .iter()
        .filter(|provider| of_provider(sight, &provider.name).any(is_on))
        .filter(|provider| egress(sight, provider).any(|view| view.connected))
        .map(|provider| provider.name.as_str())
        .collect()
}

/// Nobody can call without a key.
pub(super) fn keys(sight: &Sight, found: &mut Findings) {
    if sight.status.keys == 0 {
        found.warning(
            "key",
            "there is no API key: no client can call".to_owned(),
            "vectorctl key create --account ACCOUNT",
        );
    }
}

/// The last change, if canaries spoke against it.
pub(super) fn change(sight: &Sight, found: &mut Findings) {
    let last = sight.status.rollout.as_ref();
    if let Some(last) = last.filter(|last| last.stage == "rolled back") {
        found.warning(
            "change",
            format!(
                "the last change was rolled back to generation {}: {}",
                last.from, last.reason
            ),
            "all nodes have what they had before; mend the change and apply it again",
        );
    }
}
