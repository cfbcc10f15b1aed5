//! Puts in force what control sends and what is written to disk as well: snapshots and credentials, one after the other.

use std::sync::Arc;

use bytes::Bytes;
use vector_proto::control::v1::{self, Applied, Rejected, WholeWanted, node_event::Event};

use super::{
    super::{
        Held,
        seats::Offer,
        snapshot::{self, Checked, News, Parts},
    },
    Node,
};

/// The snapshot that is in force.
#[derive(Default)]
pub(super) struct InForce {
    /// Empty before the first one: what was read from disk is not known to be control's.
    digest: Bytes,
    /// The next delta is for it.
    encoded: Bytes,
}

/// What is to be put in force next: whole things replace those before them.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) credentials: Option<v1::Credentials>,
    pub(super) routes: Option<News>,
    /// The pieces of a snapshot that have come.
    pub(super) parts: Parts,
}

/// What is put in force.
pub(super) enum Next {
    Credentials(v1::Credentials),
    Routes(News),
}

impl Waiting {
    /// Credentials first: control sends those of a snapshot before it.
    pub(super) fn next(&mut self) -> Option<Next> {
        let credentials = self.credentials.take().map(Next::Credentials);
        credentials.or_else(|| self.routes.take().map(Next::Routes))
    }
}

impl Node<'_> {
    /// Puts in force what is written to disk as well; answers what control is to hear of it.
    pub(super) async fn put_to_use(&self, stream: usize, next: Next) -> Option<Event> {
        match next {
            Next::Routes(news) => Some(self.put_in_force(stream, news).await),
            Next::Credentials(credentials) => {
                self.use_credentials(stream, credentials).await;
                None
            }
        }
    }

    async fn use_credentials(&self, stream: usize, credentials: v1::Credentials) {
        let offer = Offer {
            generation: credentials.generation,
            revision: credentials.revision,
        };
        // One after the other, so that the newer ones are the last on disk too.
        let _turn = self.in_force.lock().await;
        if !self.seats.lock().credentials(stream, offer) {
            tracing::info!(revision = offer.revision, "older credentials set aside");
            return;
        }
        tracing::info!(
            credentials = credentials.credentials.len(),
            "credentials received"
        );
        let credentials = Arc::new(Held::new(credentials));
        self.control
            .0
            .credentials
            .send_replace(Arc::clone(&credentials));
        self.put_away(credentials).await;
    }

    /// For a start without control.
    async fn put_away(&self, credentials: Arc<Held>) {
        let (control, dir) = (self.control.clone(), self.registration.state_dir.clone());
        let kept = tokio::task::spawn_blocking(move || {
            let safe = control.0.safe.as_ref();
            safe.map_or(Ok(()), |safe| safe.put(&dir, &credentials))
        });
        if let Ok(Err(error)) = kept.await {
            tracing::error!(%error, "credentials could not be kept on disk; a restart without control would use older ones");
        }
    }

    async fn put_in_force(&self, stream: usize, news: News) -> Event {
        let inner = &self.control.0;
        let (revision, digest) = match news.target() {
            Ok(target) => target,
            Err(unreadable) => return self.rejected(0, unreadable.to_owned()),
        };
        let mut in_force = self.in_force.lock().await;
        let offer = Offer {
            generation: 0,
            revision,
        };
        let newest = self.seats.lock().snapshot(stream, offer);
        if !newest || in_force.digest == digest {
            // The other replica was quicker.
            let revision = inner.routes.load().revision;
            return Event::Applied(Applied { revision });
        }
        let snapshot = match news.after(&in_force.encoded) {
            Ok(snapshot) => snapshot,
            Err(misfit) => {
                let revision = inner.routes.load().revision;
                tracing::info!(revision, %misfit, "asking for the whole snapshot");
                return Event::WholeWanted(WholeWanted { revision });
            }
        };
        let region = &self.registration.register.region;
        match snapshot::check(&snapshot, region) {
            Ok(Checked { routes, encoded }) => {
                inner.routes.store(routes.into());
                in_force.digest = snapshot.digest;
                in_force.encoded = encoded.clone();
                inner.revision.send_replace(revision);
                tracing::info!(revision, "routes in force");
                let dir = self.registration.state_dir.clone();
                let saved =
                    tokio::task::spawn_blocking(move || snapshot::save(&dir, &encoded)).await;
                if let Ok(Err(error)) = saved {
                    tracing::error!(%error, revision, "the snapshot could not be kept on disk; a restart without control would route by an older one");
                }
                Event::Applied(Applied { revision })
            }
            Err(rejection) => self.rejected(revision, rejection.to_string()),
        }
    }

    fn rejected(&self, revision: u64, reason: String) -> Event {
        let kept = self.control.0.routes.load().revision;
        tracing::error!(revision, kept, reason, "routes rejected");
        Event::Rejected(Rejected {
            revision,
            reason,
            kept,
        })
    }
}
