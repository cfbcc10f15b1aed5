//! Where a call goes that is about an object: to the provider and credential that made it, with the names of the model that it
//! was made with.
//!
//! Such a call rarely names a model, and its answer often does. Nothing is chosen or counted by the names found here: they
//! only let the answer call the model what the client does.

use std::sync::Arc;

use vector_proto::{
    control::v1::Object,
    dialect::operation::{self, IdAt},
    refusal::{Code, Refusal},
};

use super::{Target, one_provider};
use crate::{
    control_plane::{ProviderRow, Routes},
    ingress::peek::Ask,
};

/// What a model is called on both sides.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::ingress) struct Names {
    /// By clients.
    pub(in crate::ingress) public: Box<str>,
    /// By the provider.
    pub(in crate::ingress) upstream: Arc<str>,
}

impl Target {
    /// What the client and the provider call the model that the answer may name. `asked`: the one that the request names, which
    /// the provider calls `rename` if otherwise.
    pub(in crate::ingress) fn called<'a>(
        &'a self,
        asked: Option<&'a str>,
        rename: Option<&'a str>,
    ) -> (&'a str, &'a str) {
        match (asked, &self.names) {
            (None, Some(names)) => (&names.public, &names.upstream),
            _ => (
                asked.unwrap_or_default(),
                rename.or(asked).unwrap_or_default(),
            ),
        }
    }
}

/// To the provider and credential that made the object.
pub(super) fn pinned(routes: &Routes, made: &Object, ask: &Ask) -> Result<Target, Refusal> {
    let Some(provider) = routes.providers.get(made.provider.as_str()) else {
        return Err(Refusal::new(
            Code::NoRoute,
            "the provider that made this object is no longer configured",
        ));
    };
    let named = ask.model.as_deref().and_then(|model| routes.model(model));
    let known = named.and_then(|row| {
        row.upstreams
            .iter()
            .find(|upstream| upstream.provider.name == provider.name)
    });
    let model = known
        .map(|upstream| Arc::clone(&upstream.model))
        .unwrap_or_default();
    let row = one_provider(provider, model, named.is_some_and(|row| row.redundant));
    Ok(Target {
        row: Arc::new(row),
        credential: made.credential.as_str().into(),
        names: names(routes, provider, made),
    })
}

/// The names of the model that an object was made with, where its provider calls that otherwise.
fn names(routes: &Routes, provider: &ProviderRow, made: &Object) -> Option<Names> {
    // What an answer only told of, and a thread with its runs, may be of other models than the call that names one.
    let row = operation::all()
        .iter()
        .find(|row| *row.name == *made.operation);
    let other = row.is_some_and(|row| matches!(row.id_at, IdAt::Field(field) if field != "id"));
    if made.model.is_empty() || made.told || other {
        return None;
    }
    let mut upstreams = routes.model(&made.model)?.upstreams.iter();
    let renamed = upstreams.find(|upstream| {
        upstream.provider.name == provider.name
            && !upstream.model.is_empty()
            && *upstream.model != *made.model
    })?;
    Some(Names {
        public: made.model.as_str().into(),
        upstream: Arc::clone(&renamed.model),
    })
}
