//! Trusts the roots that control tells, in every handshake from then on.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vector_proto::control::v1::Roots;

use crate::identity::Identity;

/// After a failure of the disk.
const RETRY: Duration = Duration::from_secs(10);

/// Until `stop`.
///
/// Cancel safety: dropping it follows nothing more; what is trusted stays trusted.
pub async fn follow(
    identity: Identity,
    mut told: watch::Receiver<Option<Arc<Roots>>>,
    stop: CancellationToken,
) {
    loop {
        let roots = told.borrow_and_update().clone();
        let kept = match roots {
            Some(roots) => trust(&identity, roots).await,
            None => true,
        };
        let again = async {
            if kept {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(RETRY).await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = told.changed() => if changed.is_err() {
                return;
            },
            () = again => {}
        }
    }
}

/// False when it is to be tried again.
async fn trust(identity: &Identity, roots: Arc<Roots>) -> bool {
    let identity = identity.clone();
    let kept = tokio::task::spawn_blocking(move || identity.trust(&roots)).await;
    match kept {
        Ok(Ok(changed)) => {
            if changed {
                tracing::info!("other roots are trusted");
            }
            true
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "the roots that control tells are not trusted yet");
            false
        }
        // The process ends.
        Err(_) => true,
    }
}
