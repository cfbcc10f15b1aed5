//! What an attempt asks for.

use bytes::Bytes;
use vector_proto::tunnel::v1;

use super::Sending;
use crate::ingress::{head, replay, route::Candidate, tries::Tries, upload::Upload, websocket};

impl Sending<'_> {
    /// The OPEN of the attempt that comes next.
    pub(super) fn open(&self, candidate: &Candidate, tries: &Tries) -> v1::Open {
        let left = self
            .ingress
            .config
            .request
            .saturating_sub(self.start.elapsed());
        v1::Open {
            exchange: Bytes::copy_from_slice(&self.exchange.to_bytes()),
            egress: candidate.path.egress.as_ref().to_owned(),
            // A conversation lasts as long as both sides want it to.
            deadline_ms: if self.found.operation.websocket {
                0
            } else {
                left.as_millis() as u64
            },
            attempt: tries.number(),
            request: Some(self.request_head(candidate, tries)),
            redundant: self.target.row.redundant,
            repeatable: tries.twice,
            keep: self.keeps.then_some(v1::Keep {
                kept_ms: replay::KEPT_MS,
            }),
            ..v1::Open::default()
        }
    }

    fn request_head(&self, candidate: &Candidate, tries: &Tries) -> v1::RequestHead {
        let upstream = &self.target.row.upstreams[candidate.upstream];
        let asked = self.ask.model.as_deref();
        let rename = asked
            .filter(|asked| !upstream.model.is_empty() && **asked != *upstream.model)
            .map(|_| &*upstream.model);
        let (model, upstream_model) = self.target.called(asked, rename);
        let span = self.ask.span;
        let offers = if self.found.operation.websocket {
            websocket::offers(&self.parts.headers)
        } else {
            None
        };
        v1::RequestHead {
            method: self.parts.method.as_str().to_owned(),
            path: head::below_base(
                self.found,
                self.parts.uri.path(),
                self.parts.uri.query(),
                rename,
            ),
            headers: head::travelling(&self.parts.headers, offers),
            operation: self.found.operation.name.to_owned(),
            provider: upstream.provider.name.as_ref().to_owned(),
            credential: self.target.credential.as_ref().to_owned(),
            model: model.to_owned(),
            upstream_model: upstream_model.to_owned(),
            model_start: span.map_or(0, |span| span.start),
            model_end: span.map_or(0, |span| span.end),
            body_bytes: tries.upload.as_ref().and_then(Upload::total),
            account: self.policy.account.clone(),
            key: self.policy.key.clone(),
            websocket: self.found.operation.websocket,
            traceparent: self.traceparent.clone(),
            affinity: tries.affinity,
        }
    }
}
