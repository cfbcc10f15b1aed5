//! Takes changes of the configuration back: the values of an earlier generation, as a change of its own.
//!
//! It never does what nobody could repair: no credential, account or key goes or comes, none is switched on or off, and
//! secrets and headers stay as they are now. What it leaves as it is for that, it says.

use vector_proto::control::v1::AccountSpec;

use super::{Catalog, Error, Outcome, Registry, StoredCredential, Terms};

impl Registry {
    /// Brings the configuration back to what it was at a generation, or before the last change. Answers with what was not
    /// taken back, in words.
    ///
    /// # Errors
    /// [`Error::Refused`] when the generation is not kept any more; [`Error::Conflict`] when somebody else changed the
    /// configuration meanwhile; [`Error::Invalid`] when what was would not be accepted now.
    pub async fn undo(
        &self,
        mut terms: Terms<'_>,
        generation: Option<u64>,
    ) -> Result<(Outcome, Vec<String>), Error> {
        let mut past = self.past().await?;
        let (then, given_anew) = self.was(&mut past, generation).await?;
        let (next, mut left) = back(&past.now, &then);
        for name in given_anew {
            if next.credentials.contains_key(&name) {
                left.push(format!(
                    "credential {name}: its secret and headers stay as they are now"
                ));
            }
        }
        if terms.base == 0 {
            terms.base = past.now.generation;
        }
        let outcome = self.edit(terms, |draft| draft.become_as(&next)).await?;
        Ok((outcome, left))
    }
}

/// What `now` becomes with the values of `then`, and what of them was not taken. Pure.
fn back(now: &Catalog, then: &Catalog) -> (Catalog, Vec<String>) {
    let mut left = Vec::new();
    let mut next = now.clone();
    next.providers = then.providers.clone();
    next.models = then.models.clone();
    next.default_routes = then.default_routes.clone();
    for (name, stored) in &mut next.credentials {
        match then.credentials.get(name) {
            Some(was) => credential(stored, was, &mut left),
            None => left.push(format!(
                "credential {name}: was added since and stays, for its secret would be lost"
            )),
        }
        let provider = &stored.spec.provider;
        if let Some(spec) = now.providers.get(provider)
            && !next.providers.contains_key(provider)
        {
            left.push(format!(
                "provider {provider}: stays, since credential {name} is its own"
            ));
            next.providers.insert(provider.clone(), spec.clone());
        }
    }
    for (name, account_now) in &mut next.accounts {
        match then.accounts.get(name) {
            Some(was) => account(account_now, was, &mut left),
            None => left.push(format!(
                "account {name}: was added since and stays, for keys and usage belong to it"
            )),
        }
    }
    let gone = then.credentials.keys();
    for name in gone.filter(|name| !now.credentials.contains_key(*name)) {
        left.push(format!(
            "credential {name}: stays away, for its secret is not kept; put it again"
        ));
    }
    let gone = then.accounts.keys();
    for name in gone.filter(|name| !now.accounts.contains_key(*name)) {
        left.push(format!("account {name}: stays away; put it again"));
    }
    (next, left)
}

fn credential(now: &mut StoredCredential, was: &StoredCredential, left: &mut Vec<String>) {
    let name = &was.spec.name;
    if now.spec.provider != was.spec.provider {
        left.push(format!(
            "credential {name}: stays as it is, for its secret was given for provider {}",
            now.spec.provider
        ));
        return;
    }
    if now.spec.disabled != was.spec.disabled {
        left.push(format!(
            "credential {name}: stays switched {}",
            on(now.spec.disabled)
        ));
    }
    let mut spec = was.spec.clone();
    spec.disabled = now.spec.disabled;
    spec.headers = std::mem::take(&mut now.spec.headers);
    now.spec = spec;
}

fn account(now: &mut AccountSpec, was: &AccountSpec, left: &mut Vec<String>) {
    if now.disabled != was.disabled {
        left.push(format!(
            "account {}: stays switched {}",
            was.name,
            on(now.disabled)
        ));
    }
    *now = AccountSpec {
        disabled: now.disabled,
        ..was.clone()
    };
}

const fn on(disabled: bool) -> &'static str {
    if disabled { "off" } else { "on" }
}
