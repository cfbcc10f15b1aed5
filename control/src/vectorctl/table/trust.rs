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
    let rotation = view.rotation.as_ref();
    let rows = [
        ("root", view.root.as_ref()),
        ("intermediate", view.intermediate.as_ref()),
        ("new root", rotation.and_then(|new| new.root.as_ref())),
        (
            "new intermediate",
            rotation.and_then(|new| new.intermediate.as_ref()),
        ),
    ];
    let rows = rows
        .into_iter()
        .filter_map(|(name, facts)| Some(row(name, facts?)));
    let mut text = table(&["certificate", "pin", "begins", "ends"], rows);
    match rotation {
        Some(rotation) => text += &rotating(rotation),
        None if view.intermediate.is_none() => text.push_str(
            "\n\nthe root signs itself: it is from before there were intermediates. A new one has them: `vectorctl ca \
             rotate-root begin`",
        ),
        None => {}
    }
    text
}

/// How far a new root has come, and what is next.
fn rotating(rotation: &pb::RootRotation) -> String {
    let trusting = rotation.nodes - (rotation.distrusting.len() as u64).min(rotation.nodes);
    let mut text = format!(
        "\n\nthe root is being replaced. The {} one signs; {trusting} of {} nodes trust the new one",
        if rotation.switched { "new" } else { "old" },
        rotation.nodes
    );
    let mut line = |what: &str, names: &[String]| {
        if !names.is_empty() {
            text += &format!("\n  {what}: {}", names.join(", "));
        }
    };
    line("do not trust it yet", &rotation.distrusting);
    if rotation.switched {
        line("nodes with old certificates", &rotation.nodes_before);
    }
    line(
        "operators with old certificates",
        &rotation.operators_before,
    );
    let pin = rotation.root.as_ref().map_or("", |root| &root.pin);
    text += &format!(
        "\n  operators put .{pin} at the end of their tokens, in the place of the old pin"
    );
    text += if rotation.switched {
        "\nnext: `vectorctl ca rotate-root finish`, when nobody has old certificates any more"
    } else {
        "\nnext: `vectorctl ca rotate-root switch`, when all nodes trust it; or `abort`"
    };
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
