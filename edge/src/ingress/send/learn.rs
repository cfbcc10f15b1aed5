//! What an attempt teaches about its upstream.

use std::time::Instant;

use super::Sending;
use crate::ingress::{
    load::{self, Change, InFlight, Lesson, Scope},
    route::Candidate,
};

impl Sending<'_> {
    /// Takes in how an attempt went, for the next ones of everybody.
    pub(super) fn learn(&self, candidate: &Candidate, in_flight: &mut InFlight, lesson: Lesson) {
        if matches!(lesson, Lesson::Rests(_)) && !self.target.credential.is_empty() {
            // A pinned credential says nothing of the others.
            return;
        }
        let loads = &self.ingress.loads;
        let row = &self.target.row.upstreams[candidate.upstream];
        let upstream = load::Upstream {
            provider: &row.provider,
            model: row.called(self.ask.model.as_deref().unwrap_or_default()),
        };
        let now_us = loads.at(Instant::now());
        let Some(change) = loads.learn(in_flight, upstream, lesson, now_us) else {
            return;
        };
        let model = |scope| {
            if scope == Scope::Model {
                upstream.model
            } else {
                "*"
            }
        };
        let (provider, egress) = (&row.provider.name, &candidate.path.egress);
        match change {
            Change::InUse(scope) => {
                tracing::info!(exchange = %self.exchange, %provider, %egress, model = model(scope), "upstream is in use again");
            }
            Change::Ejected(scope) => {
                tracing::warn!(exchange = %self.exchange, %provider, %egress, model = model(scope), "upstream is ejected");
            }
        }
        self.ingress.control.report_soon();
    }
}
