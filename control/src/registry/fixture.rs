//! What tests of these rooms begin with.

use std::{path::Path, sync::Arc};

use vector_proto::control::v1::ProviderSpec;

use super::{Actor, Registry};
use crate::{coordinate::Embedded, vault::Vault};

/// A provider's secret, to be found wherever it must not be.
pub(super) const SECRET: &str = "sk-provider-secret-0123456789";

/// A registry on the embedded store, in a folder that may hold one already.
pub(super) async fn registry(dir: &Path) -> Registry {
    let store = Embedded::open(&dir.join("store")).await.unwrap();
    let vault = Vault::open(&dir.join("master.key")).unwrap();
    Registry::open(Arc::new(store), vault).await.unwrap()
}

/// An operator.
pub(super) fn by() -> Actor {
    Actor::operator("eve", String::new())
}

/// A provider that may be called.
pub(super) fn provider(name: &str) -> ProviderSpec {
    ProviderSpec {
        name: name.to_owned(),
        kind: "openai".to_owned(),
        base_url: "https://api.example.com/v1".to_owned(),
        ..ProviderSpec::default()
    }
}
