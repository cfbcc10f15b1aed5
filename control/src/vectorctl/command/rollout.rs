//! What was changed, and the way back.

use serde_json::json;
use vector_proto::control::v1 as pb;

use super::{Done, Shown, done};
use crate::{args, connect::Client, json, table};

pub(super) async fn rollout(mut client: Client, rollout: args::Rollout) -> Done {
    match rollout {
        args::Rollout::Status => {
            let asked = pb::ShowRolloutRequest {};
            let rollout = client.show_rollout(asked).await?.into_inner();
            Ok(shown(&rollout))
        }
        args::Rollout::Pause => pause(client, true).await,
        args::Rollout::Resume => pause(client, false).await,
        args::Rollout::History { rows } => {
            let asked = pb::ListGenerationsRequest { page_size: rows };
            let listed = client.list_generations(asked).await?.into_inner();
            Ok(Shown::new(
                json::generations(&listed),
                table::generations(&listed.generations),
            ))
        }
        args::Rollout::Diff { from, to } => {
            let asked = pb::DiffGenerationsRequest { from, to };
            let changes = client.diff_generations(asked).await?.into_inner().changes;
            let rows: Vec<_> = changes.iter().map(json::change).collect();
            Ok(Shown::new(
                json!({ "from": from, "to": to, "changes": rows }),
                table::changes(&changes),
            ))
        }
        args::Rollout::Undo {
            generation,
            base,
            dry_run,
        } => {
            let asked = pb::UndoRequest {
                generation,
                dry_run,
                base_revision: base,
            };
            undo(client, asked).await
        }
    }
}

async fn pause(mut client: Client, on: bool) -> Done {
    let asked = pb::PauseRolloutRequest { on };
    let rollout = client.pause_rollout(asked).await?.into_inner();
    Ok(shown(&rollout))
}

fn shown(rollout: &pb::Rollout) -> Shown {
    Shown::new(json::rollout(rollout), table::rollout(rollout))
}

async fn undo(mut client: Client, asked: pb::UndoRequest) -> Done {
    let dry_run = asked.dry_run;
    let undone = client.undo(asked).await?.into_inner();
    let response = pb::ApplyResponse {
        changes: undone.changes,
        revision: undone.revision,
        losses: undone.losses,
    };
    let mut text = done(&response, dry_run);
    for line in &undone.left {
        text += &format!("\nnot taken back: {line}");
    }
    let mut value = json::changes(&response);
    value["left"] = json!(undone.left);
    Ok(Shown::new(value, text))
}
