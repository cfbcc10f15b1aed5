//! Who may call what: every call to `Admin` passes here first.
//!
//! [`MINIMUM`] is the whole truth, one row for each call; one without a row is refused, and a test says that none is missing.
//! The caller's name and role are read from the store at every call, so whoever is removed is out at once.

use std::{
    convert::Infallible,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use http::HeaderMap;
use tonic::{Status, body::Body, server::NamedService};
use tower_service::Service;

use super::{
    Rooms,
    caller::{Caller, Connection},
};
use crate::registry::OperatorRole::{self, Admin, Operator, Viewer};

/// The least that an operator must be, for each call.
const MINIMUM: &[(&str, OperatorRole)] = &[
    // To see; no answer holds a secret.
    ("WhoAmI", Viewer),
    ("Status", Viewer),
    ("ListNodes", Viewer),
    ("ListProviders", Viewer),
    ("ListCredentials", Viewer),
    ("ListModels", Viewer),
    ("ListDefaultRoutes", Viewer),
    ("ListAccounts", Viewer),
    ("ListKeys", Viewer),
    ("ListUsage", Viewer),
    ("ListOperators", Viewer),
    ("ListAudit", Viewer),
    ("ShowRollout", Viewer),
    ("ListGenerations", Viewer),
    ("DiffGenerations", Viewer),
    ("ExplainRoute", Viewer),
    ("ShowScores", Viewer),
    ("ShowSecrets", Viewer),
    ("ShowAuthority", Viewer),
    // To change what is routed and sold.
    ("DrainNode", Operator),
    ("PutProvider", Operator),
    ("RemoveProvider", Operator),
    ("PutCredential", Operator),
    ("RemoveCredential", Operator),
    ("PutModel", Operator),
    ("RemoveModel", Operator),
    ("PutDefaultRoute", Operator),
    ("RemoveDefaultRoute", Operator),
    ("PutAccount", Operator),
    ("CreateKey", Operator),
    ("SetKeyState", Operator),
    ("Apply", Operator),
    ("Undo", Operator),
    ("PauseRollout", Operator),
    // To decide who belongs to the network.
    ("Backup", Admin),
    ("Restore", Admin),
    ("RotateSecrets", Admin),
    ("RotateIntermediate", Admin),
    ("RotateRoot", Admin),
    ("InviteNode", Admin),
    ("RemoveNode", Admin),
    ("AddOperator", Admin),
    ("RemoveOperator", Admin),
];

/// Metadata of a call that means what would be refused as too large a loss: `true`. Not a field, since every change may have it.
const FORCE: &str = "vector-force";

/// A service behind its guard.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    rooms: Rooms,
}

impl<S> Guarded<S> {
    pub(super) fn new(inner: S, rooms: Rooms) -> Self {
        Self { inner, rooms }
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Guarded<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        // The one that said it is ready is the one to call.
        let next = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, next);
        let rooms = self.rooms.clone();
        let call = request.uri().path().rsplit('/').next().unwrap_or_default();
        let call = call.to_owned();
        let token = bearer(request.headers());
        let force = request
            .headers()
            .get(FORCE)
            .is_some_and(|value| value == "true");
        let connection = request.extensions().get::<Connection>().cloned();
        Box::pin(async move {
            match admit(&rooms, &call, token.as_deref(), connection.as_ref()).await {
                Ok(mut caller) => {
                    caller.force = force;
                    request.extensions_mut().insert(caller);
                    inner.call(request).await
                }
                Err(refused) => Ok(refused.into_http()),
            }
        })
    }
}

fn bearer(headers: &HeaderMap) -> Option<zeroize::Zeroizing<String>> {
    let value = headers.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let known = scheme.eq_ignore_ascii_case("bearer");
    known.then(|| zeroize::Zeroizing::new(token.trim().to_owned()))
}

async fn admit(
    rooms: &Rooms,
    call: &str,
    token: Option<&String>,
    connection: Option<&Connection>,
) -> Result<Caller, Status> {
    let caller = rooms.prove(token.map(String::as_str), connection).await?;
    let row = MINIMUM.iter().find(|(name, _)| *name == call);
    let Some((_, least)) = row else {
        return Err(Status::unimplemented(format!("there is no call `{call}`")));
    };
    let operator = &caller.operator;
    if operator.role < *least {
        tracing::warn!(actor = caller.by.name, call, "refused: not the role for it");
        return Err(Status::permission_denied(format!(
            "`{}` is a {}, and {call} needs the role {least}",
            operator.name, operator.role
        )));
    }
    Ok(caller)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_call_of_the_api_has_a_row() {
        let files = FileDescriptorSet::decode(vector_proto::control::DESCRIPTORS).unwrap();
        let services = files.file.iter().flat_map(|file| &file.service);
        let calls: BTreeSet<&str> = services
            .filter(|service| service.name() == "Admin")
            .flat_map(|service| service.method.iter().map(|method| method.name()))
            .collect();
        let rows: BTreeSet<&str> = MINIMUM.iter().map(|(name, _)| *name).collect();
        assert!(calls.len() > 20, "the descriptors hold the API: {calls:?}");
        assert_eq!(calls, rows);
        assert_eq!(rows.len(), MINIMUM.len(), "one row each");
    }
}
