//! Changes of the configuration: what one does, and the last ones.

use vector_proto::control::v1 as pb;

use super::{moment, table};

/// Changes told in one row of the history; `rollout diff` tells all.
const SHOWN_MAX: usize = 3;

/// As in a diff.
fn mark(change: &pb::Change) -> char {
    match change.action.as_str() {
        "create" => '+',
        "remove" => '-',
        _ => '~',
    }
}

pub(crate) fn changes(changes: &[pb::Change]) -> String {
    if changes.is_empty() {
        return "no changes".to_owned();
    }
    let mut text = String::new();
    for change in changes {
        let mark = mark(change);
        text += &format!("{mark} {} {}\n", change.kind, change.name);
        for detail in &change.details {
            text += &format!("    {detail}\n");
        }
    }
    let count = |action: &str| {
        changes
            .iter()
            .filter(|change| change.action == action)
            .count()
    };
    text + &format!(
        "{} to create, {} to update, {} to remove",
        count("create"),
        count("update"),
        count("remove")
    )
}

pub(crate) fn generations(generations: &[pb::Generation]) -> String {
    let rows = generations.iter().map(|row| {
        let told = row.changes.iter().take(SHOWN_MAX);
        let mut told: Vec<String> = told
            .map(|change| format!("{} {} {}", mark(change), change.kind, change.name))
            .collect();
        if row.changes.len() > SHOWN_MAX {
            told.push(format!("and {} more", row.changes.len() - SHOWN_MAX));
        }
        vec![
            row.generation.to_string(),
            moment(row.unix_ms),
            row.actor.clone(),
            told.join(", "),
        ]
    });
    table(&["generation", "when", "who", "what"], rows)
}

/// How far a change is, in a sentence.
pub(crate) fn rollout(rollout: &pb::Rollout) -> String {
    let (from, to) = (rollout.from, rollout.to);
    let canaries = rollout.canaries.join(" ");
    match rollout.stage.as_str() {
        "none" | "" => "no change was staged".to_owned(),
        "canaries" => format!(
            "generation {to} is with its canaries ({canaries}) since {}, for everybody from {} on; all others have {from}",
            moment(rollout.began_unix_ms),
            moment(rollout.deadline_unix_ms),
        ),
        "paused" => format!(
            "generation {to} is held with its canaries ({canaries}): `vectorctl rollout resume` or `undo`; all others have {from}"
        ),
        "rolled back" => format!(
            "generation {to} was rolled back to {from}: {}",
            rollout.reason
        ),
        stage => format!("generation {to}: {stage}"),
    }
}
