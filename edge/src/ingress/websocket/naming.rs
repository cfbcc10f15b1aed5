//! What the model of a conversation is called on both sides, and its name in the messages of both.
//!
//! Where the handshake names the model, or is about a call that was made with one, both names are known from the start. Where
//! only messages name it, each message of the client that does says which one its answers are of: such conversations have one
//! response at a time. The provider stays the one that the handshake went to, whatever its messages name.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use memchr::memmem;
use parking_lot::Mutex;
use vector_proto::dialect::{
    json::Peek,
    rename::{Rename, escaped},
};

use crate::{
    control_plane::{ControlPlane, Routes, UpstreamRow},
    ingress::{
        peek::Ask,
        record::Record,
        route::{Names, Target},
    },
};

static MODEL_KEY: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new("\"model\""));

/// See the module's head.
#[derive(Debug)]
pub(in crate::ingress) enum Naming {
    /// Known from the start.
    Fixed(Names),
    /// As messages have it.
    Told {
        control: ControlPlane,
        provider: Arc<str>,
        /// Those of the model that the client named last, if they differ.
        last: Mutex<Option<Names>>,
    },
}

impl Naming {
    /// What follows from the handshake; `None` where no message can need another name.
    pub(in crate::ingress) fn of(
        control: &ControlPlane,
        target: &Target,
        ask: &Ask,
        record: &Record,
    ) -> Option<Self> {
        let upstream = target.row.upstreams.get(record.upstream)?;
        match (ask.model.as_deref(), &target.names) {
            (Some(asked), _) => names(upstream, asked).map(Self::Fixed),
            (None, Some(names)) => Some(Self::Fixed(names.clone())),
            (None, None) => {
                let provider = &upstream.provider.name;
                renames(&control.routes(), provider).then(|| Self::Told {
                    control: control.clone(),
                    provider: Arc::clone(provider),
                    last: Mutex::default(),
                })
            }
        }
    }

    /// A client's message with the provider's name for the model, if it names one that has another.
    pub(super) fn upward(&self, text: &Bytes) -> Option<Vec<Bytes>> {
        MODEL_KEY.find(text)?;
        let mut peek = Peek::new();
        let _progress = peek.feed_until(text, |fields| fields.model_span.is_some());
        let (model, span) = (peek.fields().model()?, peek.fields().model_span?);
        let names = match self {
            Self::Fixed(names) => Some(names.clone()).filter(|names| *names.public == *model),
            Self::Told {
                control,
                provider,
                last,
            } => {
                let names = names_at(&control.routes(), provider, model);
                last.lock().clone_from(&names);
                names
            }
        }?;
        let (start, end) = (span.start as usize, span.end as usize);
        Some(vec![
            text.slice(..start),
            escaped(&names.upstream),
            text.slice(end..),
        ])
    }

    /// A provider's message with the public name of the model, if it names one.
    pub(super) fn downward(&self, text: Bytes) -> Option<Vec<Bytes>> {
        MODEL_KEY.find(&text)?;
        let mut rename = match self {
            Self::Fixed(names) => Rename::json(&names.public),
            Self::Told { last, .. } => Rename::json(&last.lock().as_ref()?.public),
        };
        let mut pieces = Vec::with_capacity(3);
        rename.feed(text, &mut pieces);
        (pieces.len() > 1).then_some(pieces)
    }
}

/// Both names, if they differ.
fn names(upstream: &UpstreamRow, asked: &str) -> Option<Names> {
    (upstream.called(asked) != asked).then(|| Names {
        public: asked.into(),
        upstream: Arc::clone(&upstream.model),
    })
}

/// Both names of a model at a provider, if it is served there and they differ.
fn names_at(routes: &Routes, provider: &str, model: &str) -> Option<Names> {
    let mut upstreams = routes.model(model)?.upstreams.iter();
    let upstream = upstreams.find(|upstream| *upstream.provider.name == *provider)?;
    names(upstream, model)
}

/// Whether a provider calls any model otherwise than clients.
fn renames(routes: &Routes, provider: &str) -> bool {
    let mut rows = routes.models.values().chain(&routes.any_model);
    rows.any(|row| {
        let at = |upstream: &&UpstreamRow| *upstream.provider.name == *provider;
        let mut upstreams = row.upstreams.iter().filter(at);
        upstreams.any(|upstream| upstream.called(&row.name) != &*row.name)
    })
}
