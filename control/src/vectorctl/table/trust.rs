//! Operators and what they did, for people.

use vector_proto::control::v1 as pb;

use super::{dash, moment, table};

pub(crate) fn operators(operators: &[pb::OperatorView]) -> String {
    let rows = operators.iter().map(|view| {
        let until = if view.expires_unix_ms == 0 {
            "no end".to_owned()
        } else {
            moment(view.expires_unix_ms)
        };
        vec![
            view.name.clone(),
            view.role.clone(),
            view.by.clone(),
            until,
            dash(view.created_by.clone()),
        ]
    });
    table(&["name", "role", "proof", "until", "made by"], rows)
}

pub(crate) fn authority(view: &pb::AuthorityView) -> String {
    let row = |name: &str, facts: &pb::CertificateFacts| {
        vec![
            name.to_owned(),
            facts.pin.clone(),
            moment(facts.begins_unix_s * 1_000),
            moment(facts.ends_unix_s * 1_000),
        ]
    };
    let rows = [("root", &view.root), ("intermediate", &view.intermediate)];
    let rows = rows
        .into_iter()
        .filter_map(|(name, facts)| Some(row(name, facts.as_ref()?)));
    let mut text = table(&["certificate", "pin", "begins", "ends"], rows);
    if view.intermediate.is_none() {
        text.push_str("\n\nthe root signs itself: it is from before there were intermediates");
    }
    text
}

pub(crate) fn audit(entries: &[pb::AuditEntry]) -> String {
    let mut text = String::new();
    for entry in entries {
        let from = if entry.address.is_empty() {
            String::new()
        } else {
            format!(" from {}", entry.address)
        };
        text += &format!(
            "{:>6}  {}  {}{from}\n",
            entry.seq,
            moment(entry.unix_ms),
            entry.actor
        );
        for change in &entry.changes {
            let what = format!("{} {} {}", change.action, change.kind, change.name);
            // There is but one of some kinds, and it has no name.
            text += &format!("        {}\n", what.trim_end());
            for detail in &change.details {
                text += &format!("            {detail}\n");
            }
        }
    }
    if text.is_empty() {
        text.push_str("none");
    }
    text
}
