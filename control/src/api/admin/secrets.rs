//! Which master keys are needed, and the way from one to the next. No answer holds a secret.

use tonic::Status;
use vector_proto::control::v1 as pb;

use super::{super::caller::Caller, Operators};

impl Operators {
    pub(super) async fn secrets(&self) -> Result<pb::ShowSecretsResponse, Status> {
        let status = self.rooms.registry.sealed_under().await?;
        let keys = status.keys.into_iter().map(|row| pb::MasterKeyUse {
            key: row.key,
            current: row.current,
            held: row.held,
            secrets: row.secrets,
            direct: row.direct,
        });
        Ok(pb::ShowSecretsResponse {
            keys: keys.collect(),
            clear: status.clear,
        })
    }

    pub(super) async fn rotated(
        &self,
        caller: &Caller,
    ) -> Result<pb::RotateSecretsResponse, Status> {
        let done = self.rooms.registry.rewrap(&caller.by).await?;
        tracing::info!(
            secrets.rewrapped = done.rewrapped,
            secrets.closed = done.closed.len(),
            "secrets are under the current master key"
        );
        Ok(pb::RotateSecretsResponse {
            key: done.key,
            rewrapped: done.rewrapped,
            secrets: done.secrets,
            closed: done.closed,
        })
    }
}
