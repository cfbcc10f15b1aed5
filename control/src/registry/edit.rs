//! Changes the configuration: one way for a single `put` and for a whole plan.
//!
//! A change is made to a draft of the whole catalog, checked as a whole, and written in one transaction
//! that compares the generation: nothing is ever half applied, and of two operators who start from the
//! same state one is told.

use std::collections::BTreeMap;

use subtle::ConstantTimeEq as _;
use vector_proto::control::v1::{
    AccountSpec, Change, CredentialSpec, DefaultRouteSpec, ModelSpec, Plan, ProviderSpec,
};
use zeroize::Zeroizing;

use super::{
    Actor, Catalog, Error, Registry, StoredCredential, audit,
    catalog::GENERATION,
    change::Difference,
    check::{self, Faults},
};
use crate::{
    coordinate::{Transaction, WRITES_MAX},
    vault,
};

/// Tries when others change the configuration at the same time.
const TRIES_MAX: u32 = 8;

/// What a change did, or would do.
#[derive(Debug)]
pub struct Outcome {
    /// What is different now. Empty: nothing was written.
    pub changes: Vec<Change>,
    /// Generation of the configuration after it.
    pub generation: u64,
}

impl Outcome {
    /// Whether something of this name went.
    #[must_use]
    pub fn removed(&self, name: &str) -> bool {
        let gone = |change: &Change| change.action == "remove" && change.name == name;
        self.changes.iter().any(gone)
    }

    /// Accounts that are different now: what is cached of their keys is stale.
    pub fn accounts(&self) -> impl Iterator<Item = &str> {
        self.changes
            .iter()
            .filter(|change| change.kind == "account")
            .map(|change| change.name.as_str())
    }
}

/// The catalog as it shall be.
#[derive(Debug)]
pub struct Draft {
    catalog: Catalog,
    secrets: BTreeMap<String, Zeroizing<String>>,
    faults: Faults,
    now_unix_s: u64,
}

impl Draft {
    /// Sets a provider.
    pub fn put_provider(&mut self, mut spec: ProviderSpec) {
        // The same URL always reads the same.
        while spec.base_url.ends_with('/') {
            spec.base_url.pop();
        }
        self.catalog.providers.insert(spec.name.clone(), spec);
    }

    /// Sets a credential. Without a secret it keeps the one it has.
    pub fn put_credential(&mut self, mut spec: CredentialSpec) {
        let secret = Zeroizing::new(std::mem::take(&mut spec.secret));
        let name = spec.name.clone();
        let mut stored = StoredCredential {
            spec,
            ..StoredCredential::default()
        };
        let field = || format!("credentials[{name}].secret");
        match self.catalog.credentials.get(&name) {
            Some(before) if before.spec.provider == stored.spec.provider => {
                stored.sealed = before.sealed.clone();
                stored.hint.clone_from(&before.hint);
            }
            Some(_) if secret.is_empty() => {
                self.faults
                    .push(field(), "must be given anew when the provider changes");
            }
            None if secret.is_empty() => self.faults.push(field(), "is missing"),
            Some(_) | None => {}
        }
        if !secret.is_empty() {
            check::secret(&name, &secret, &mut self.faults);
            self.secrets.insert(name.clone(), secret);
        }
        self.catalog.credentials.insert(name, stored);
    }

    /// Sets a model.
    pub fn put_model(&mut self, mut spec: ModelSpec) {
        let before = self.catalog.models.get(&spec.name);
        spec.created_unix_s = before.map_or(self.now_unix_s, |before| before.created_unix_s);
        self.catalog.models.insert(spec.name.clone(), spec);
    }

    /// Sets a default route.
    pub fn put_default_route(&mut self, spec: DefaultRouteSpec) {
        let routes = &mut self.catalog.default_routes;
        routes.insert(spec.operation.clone(), spec);
    }

    /// Sets an account.
    pub fn put_account(&mut self, spec: AccountSpec) {
        self.catalog.accounts.insert(spec.name.clone(), spec);
    }

    /// Takes a provider away. Whatever still uses it makes this a fault.
    pub fn remove_provider(&mut self, name: &str) {
        self.catalog.providers.remove(name);
    }

    /// Takes a credential away.
    pub fn remove_credential(&mut self, name: &str) {
        self.catalog.credentials.remove(name);
    }

    /// Takes a model away.
    pub fn remove_model(&mut self, name: &str) {
        self.catalog.models.remove(name);
    }

    /// Takes a default route away.
    pub fn remove_default_route(&mut self, operation: &str) {
        self.catalog.default_routes.remove(operation);
    }

    /// Sets all that a plan names; with `prune`, takes away the rest. Accounts are never taken away: keys
    /// and usage belong to them.
    pub fn apply(&mut self, plan: Plan, prune: bool) {
        if prune {
            let catalog = &mut self.catalog;
            catalog
                .providers
                .retain(|name, _| plan.providers.iter().any(|spec| spec.name == *name));
            catalog
                .credentials
                .retain(|name, _| plan.credentials.iter().any(|spec| spec.name == *name));
            catalog
                .models
                .retain(|name, _| plan.models.iter().any(|spec| spec.name == *name));
            catalog.default_routes.retain(|name, _| {
                plan.default_routes
                    .iter()
                    .any(|spec| spec.operation == *name)
            });
        }
        self.named_once("providers", plan.providers.iter().map(|spec| &spec.name));
        self.named_once(
            "credentials",
            plan.credentials.iter().map(|spec| &spec.name),
        );
        self.named_once("models", plan.models.iter().map(|spec| &spec.name));
        self.named_once(
            "default_routes",
            plan.default_routes.iter().map(|spec| &spec.operation),
        );
        self.named_once("accounts", plan.accounts.iter().map(|spec| &spec.name));
        plan.providers
            .into_iter()
            .for_each(|spec| self.put_provider(spec));
        plan.credentials
            .into_iter()
            .for_each(|spec| self.put_credential(spec));
        plan.models
            .into_iter()
            .for_each(|spec| self.put_model(spec));
        plan.default_routes
            .into_iter()
            .for_each(|spec| self.put_default_route(spec));
        plan.accounts
            .into_iter()
            .for_each(|spec| self.put_account(spec));
    }

    fn named_once<'a>(&mut self, kind: &str, names: impl Iterator<Item = &'a String>) {
        let mut seen = std::collections::HashSet::new();
        for name in names {
            if !seen.insert(name) {
                self.faults
                    .push(format!("{kind}[{name}]"), "stands there twice");
            }
        }
    }
}

impl Registry {
    /// Lets `alter` change a draft, and makes it so. `base` is the generation it was meant for; 0: any.
    ///
    /// # Errors
    /// [`Error::Invalid`] with every fault; [`Error::Conflict`] when the generation is another.
    pub async fn edit(
        &self,
        by: &Actor,
        base: u64,
        dry_run: bool,
        alter: impl Fn(&mut Draft) + Send + Sync,
    ) -> Result<Outcome, Error> {
        let mut tries = 0;
        loop {
            let old = self.catalog().await?;
            if base != 0 && base != old.generation {
                return Err(Error::Conflict(format!(
                    "the configuration was changed meanwhile (generation {}, expected {base}): look at the difference again",
                    old.generation
                )));
            }
            let new = self.draft(&old, &alter)?;
            let difference = Difference::between(&old, &new);
            let generation = old.generation + 1;
            if difference.writes.is_empty() || dry_run {
                return Ok(Outcome {
                    changes: difference.changes,
                    generation: old.generation,
                });
            }
            if difference.writes.len() + 1 + audit::WRITES > WRITES_MAX {
                return Err(Error::Refused(format!(
                    "{} changes at once are more than the {WRITES_MAX} there may be: apply in parts",
                    difference.writes.len()
                )));
            }
            let mut transaction = Transaction::new()
                .when(GENERATION, old.generation_changed)
                .put(GENERATION, generation.to_be_bytes().to_vec());
            transaction.writes.extend(difference.writes);
            tries += 1;
            match self.commit(by, &difference.changes, transaction).await {
                Ok(_) => {
                    return Ok(Outcome {
                        changes: difference.changes,
                        generation,
                    });
                }
                // Somebody else's change came in between. Without a base it is made to what is there now.
                Err(Error::Conflict(_)) if tries < TRIES_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The catalog that `alter` makes, checked and with its secrets sealed.
    fn draft(&self, old: &Catalog, alter: &impl Fn(&mut Draft)) -> Result<Catalog, Error> {
        let mut draft = Draft {
            catalog: old.clone(),
            secrets: BTreeMap::new(),
            faults: Faults::default(),
            now_unix_s: now_unix_s(),
        };
        alter(&mut draft);
        let Draft {
            mut catalog,
            secrets,
            mut faults,
            ..
        } = draft;
        check::catalog(&catalog, &mut faults);
        if !faults.0.is_empty() {
            return Err(Error::Invalid(faults.0));
        }
        for (name, secret) in secrets {
            if let Some(stored) = catalog.credentials.get_mut(&name) {
                self.seal(stored, &secret)?;
            }
        }
        Ok(catalog)
    }

    /// Seals a secret, unless it is the one that is there: the same plan twice is no change.
    fn seal(&self, stored: &mut StoredCredential, secret: &str) -> Result<(), vault::Error> {
        let name = StoredCredential::sealed_for(&stored.spec);
        if !stored.sealed.is_empty()
            && let Ok(before) = self.vault.open_sealed(&name, &stored.sealed)
            && bool::from(before.ct_eq(secret.as_bytes()))
        {
            return Ok(());
        }
        stored.sealed = self.vault.seal(&name, secret.as_bytes())?.into();
        stored.hint = hint(secret);
        Ok(())
    }
}

/// Enough of a secret to know it again, far too little to use it: a third of it at most.
fn hint(secret: &str) -> String {
    let letters: Vec<char> = secret.chars().collect();
    let shown = (letters.len() / 6).min(4);
    let first: String = letters[..shown.min(3)].iter().collect();
    let last: String = letters[letters.len() - shown..].iter().collect();
    format!("{first}…{last}")
}

fn now_unix_s() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_never_tell_a_secret() {
        assert_eq!(hint("sk-proj-abcdefghijklmnop9f3a"), "sk-…9f3a");
        assert_eq!(hint("short"), "…");
        assert_eq!(hint(""), "…");
    }
}
