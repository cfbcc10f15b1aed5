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
            text += &format!(
                "        {} {} {}\n",
                change.action, change.kind, change.name
            );
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
