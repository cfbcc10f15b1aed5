//! API keys, and what the ingress nodes say of a change of one.

use vector_proto::control::v1 as pb;

use super::{dash, limit, moment, table, yes};

/// Nodes named in one line; the rest is counted. `--json` has them all.
const NAMED_MAX: usize = 10;

pub(crate) fn keys(views: &[pb::KeyView]) -> String {
    let rows = views.iter().map(|view| {
        let spec = view.spec.clone().unwrap_or_default();
        let models = if spec.models.is_empty() {
            "all".to_owned()
        } else {
            spec.models.join(" ")
        };
        let ends = if spec.expires_unix_ms == 0 {
            "never".to_owned()
        } else {
            moment(spec.expires_unix_ms)
        };
        vec![
            view.id.clone(),
            spec.account,
            dash(spec.name),
            yes(!view.disabled),
            models,
            dash(spec.addresses.join(" ")),
            limit(spec.requests_per_minute.into()),
            ends,
            moment(view.created_unix_ms),
        ]
    });
    table(
        &[
            "key",
            "account",
            "name",
            "on",
            "models",
            "addresses",
            "rpm",
            "ends",
            "created",
        ],
        rows,
    )
}

/// Who confirms, and who does not and why.
pub(crate) fn key_heard(heard: &pb::KeyHeard) -> String {
    let others = [
        (
            &heard.silent,
            "told, but silent for a second; they hear it again when they connect anew",
        ),
        (&heard.older, "told, but of a version that does not confirm"),
        (
            &heard.elsewhere,
            "at other replicas of control only, which tell them; vectorctl asks those that it is told of (--control A,B)",
        ),
        (
            &heard.away,
            "not connected; what they knew of the key holds there until they are back",
        ),
    ];
    let confirmed = heard.confirmed.len();
    let missing: usize = others.iter().map(|(nodes, _)| nodes.len()).sum();
    let mut text = format!(
        "{confirmed} of {} ingress nodes confirm it",
        confirmed + missing
    );
    if confirmed > 0 && heard.silent.is_empty() {
        text += &format!(", within {} ms", heard.took_us.div_ceil(1_000));
    }
    for (nodes, why) in others.iter().filter(|(nodes, _)| !nodes.is_empty()) {
        let named = nodes.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>();
        text += &format!("\n  {}", named.join(", "));
        if nodes.len() > NAMED_MAX {
            text += &format!(" and {} more", nodes.len() - NAMED_MAX);
        }
        text += &format!(": {why}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_counted_and_those_that_do_not_confirm_are_named() {
        let names = |count: usize| (1..=count).map(|at| format!("i-{at}")).collect();
        let mut heard = pb::KeyHeard {
            confirmed: names(2),
            took_us: 11_001,
            ..pb::KeyHeard::default()
        };
        let all = "2 of 2 ingress nodes confirm it, within 12 ms";
        assert_eq!(key_heard(&heard), all);
        heard.silent = names(1);
        heard.away = names(NAMED_MAX + 3);
        let text = key_heard(&heard);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "2 of 16 ingress nodes confirm it");
        assert!(lines[1].starts_with("  i-1: told, but silent"), "{text}");
        assert!(
            lines[2].contains("i-10 and 3 more: not connected"),
            "{text}"
        );
        assert_eq!(lines.len(), 3);
    }
}
