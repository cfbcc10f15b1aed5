//! Which master key the secrets need, and the way to a new one.

use serde_json::json;
use vector_proto::control::v1 as pb;

use super::{Done, Shown};
use crate::{Failure, args, connect::Client, table};

pub(super) async fn secrets(mut client: Client, asked: &args::Secrets) -> Done {
    match asked {
        args::Secrets::Status => {
            let shown = client.show_secrets(pb::ShowSecretsRequest {}).await?;
            let pb::ShowSecretsResponse { keys, clear } = shown.into_inner();
            let value = |row: &pb::MasterKeyUse| {
                json!({
                    "key": row.key, "current": row.current, "held": row.held, "secrets": row.secrets, "direct": row.direct,
                })
            };
            Ok(Shown::new(
                json!({ "keys": keys.iter().map(value).collect::<Vec<_>>(), "clear": clear }),
                table::master_keys(&keys, clear),
            ))
        }
        args::Secrets::Rotate => {
            let done = client.rotate_secrets(pb::RotateSecretsRequest {}).await?;
            told(&done.into_inner())
        }
    }
}

/// Secrets that stay closed are a failure: the key that opens them may not go.
fn told(done: &pb::RotateSecretsResponse) -> Done {
    if !done.closed.is_empty() {
        return Err(Failure::Refused(format!(
            "{} of {} secrets are under {} now; no key at hand opens: {}. Name theirs in control.other_master_key_files, \
             or set them anew, and repeat",
            done.secrets - done.closed.len() as u64,
            done.secrets,
            done.key,
            done.closed.join(", ")
        )));
    }
    Ok(Shown::new(
        json!({ "key": done.key, "rewrapped": done.rewrapped, "secrets": done.secrets, "closed": done.closed }),
        format!(
            "{} of {} secrets were wrapped anew; all are under {} now",
            done.rewrapped, done.secrets, done.key
        ),
    ))
}
