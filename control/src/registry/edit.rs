//! Changes the configuration: one way for a single `put` and for a whole plan.
//!
//! A change is made to a draft of the whole catalog, checked as a whole, and written in one transaction
//! that compares the generation: nothing is ever half applied, and of two operators who start from the
//! same state one is told.

use std::collections::BTreeMap;

use prost::Message as _;
use subtle::ConstantTimeEq as _;
use vector_proto::control::v1::{
    AccountSpec, Change, CredentialSpec, DefaultRouteSpec, ModelSpec, Plan, ProviderSpec,
};
use zeroize::Zeroizing;

use super::{
    Actor, Catalog, Error, Fault, Registry, StoredCredential, audit, bounds,
    catalog::GENERATION,
    change::Difference,
    check::{self, Faults},
    headers::Headers,
    history,
    rollout::{self, Rollout, Staged, Staging},
};
use crate::{
    coordinate::{Transaction, WRITES_MAX, Write},
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
    /// Of a dry run: what it would be refused for, unless it is forced.
    pub losses: Vec<Fault>,
}

/// What others than the registry have against a change.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Judgement {
    /// It would do harm.
    pub faults: Vec<Fault>,
    /// It takes so much away that somebody must say it is meant.
    pub losses: Vec<Fault>,
}

/// Looks at what is and what shall be.
pub type Judge<'a> = &'a (dyn Fn(&Catalog, &Catalog) -> Judgement + Send + Sync);

/// On what terms a change is made.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// Who makes it.
    pub by: &'a Actor,
    /// The generation it was meant for; 0: any.
    pub base: u64,
    /// Only tells what would be different.
    pub dry_run: bool,
    /// Losses are meant.
    pub force: bool,
    /// Who has it first.
    pub staging: Staging<'a>,
    /// Says what is against it.
    pub judge: Judge<'a>,
}

impl std::fmt::Debug for Terms<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terms")
            .field("by", self.by)
            .field("base", &self.base)
            .field("dry_run", &self.dry_run)
            .field("force", &self.force)
            .finish_non_exhaustive()
    }
}

impl<'a> Terms<'a> {
    /// To whatever is there, with nobody but the registry against it.
    #[must_use]
    pub fn plain(by: &'a Actor) -> Self {
        Self {
            by,
            base: 0,
            dry_run: false,
            force: false,
            staging: Staging {
                canaries: &[],
                pause_ms: 0,
            },
            judge: &|_, _| Judgement::default(),
        }
    }
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
    headers: BTreeMap<String, Headers>,
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

    /// Sets a credential. Without a secret it keeps the one it has, and so does a header without a value.
    pub fn put_credential(&mut self, mut spec: CredentialSpec) {
        let secret = Zeroizing::new(std::mem::take(&mut spec.secret));
        let headers = Headers::take(&mut spec);
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
        check::header_values(&name, &headers, &mut self.faults);
        self.headers.insert(name.clone(), headers);
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

    /// Makes it what it shall be as a whole. Secrets are sealed in it.
    pub(super) fn become_as(&mut self, catalog: &Catalog) {
        self.catalog = catalog.clone();
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
    /// Lets `alter` change a draft, and makes it so.
    ///
    /// # Errors
    /// [`Error::Invalid`] with every fault; [`Error::Conflict`] when the generation is another than `terms` say.
    pub async fn edit(
        &self,
        terms: Terms<'_>,
        alter: impl Fn(&mut Draft) + Send + Sync,
    ) -> Result<Outcome, Error> {
        let mut tries = 0;
        loop {
            let old = self.catalog().await?;
            let base = terms.base;
            if base != 0 && base != old.generation {
                return Err(Error::Conflict(format!(
                    "the configuration was changed meanwhile (generation {}, expected {base}): look at the difference again",
                    old.generation
                )));
            }
            let new = self.draft(&old, &alter)?;
            let difference = Difference::between(&old, &new);
            let mut outcome = Outcome {
                changes: difference.changes,
                generation: old.generation,
                losses: Vec::new(),
            };
            if difference.writes.is_empty() {
                return Ok(outcome);
            }
            let replaced = history::Stored::new(terms.by, difference.earlier, now_unix_ms());
            let staged = Staged::new(terms.staging, &old, &difference.writes);
            let staged = staged.map(|staged| staged.record(&old));
            let kept = [
                replaced.encoded_len(),
                staged.as_ref().map_or(0, Rollout::encoded_len),
            ];
            let sizes = (difference.writes.as_slice(), kept);
            outcome.losses = judged(&old, &new, sizes, &terms)?;
            if terms.dry_run {
                return Ok(outcome);
            }
            outcome.generation += 1;
            let mut transaction = Transaction::new()
                .when(GENERATION, old.generation_changed)
                .put(GENERATION, outcome.generation.to_be_bytes().to_vec());
            transaction.writes.extend(difference.writes);
            transaction = replaced.with(transaction, outcome.generation);
            if let Some(rollout) = staged {
                transaction = transaction
                    .when(rollout::AT, old.rollout_changed)
                    .put(rollout::AT, rollout.encode_to_vec());
            }
            tries += 1;
            match self.commit(terms.by, &outcome.changes, transaction).await {
                Ok(_) => return Ok(outcome),
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
            headers: BTreeMap::new(),
            faults: Faults::default(),
            now_unix_s: now_unix_s(),
        };
        alter(&mut draft);
        let Draft {
            mut catalog,
            secrets,
            mut headers,
            mut faults,
            ..
        } = draft;
        let mut to_seal = Vec::new();
        for (name, stored) in &mut catalog.credentials {
            if let Some(given) = headers.remove(name) {
                let before = old.credentials.get(name);
                let changed = self.take_up_headers(stored, before, given, &mut faults);
                to_seal.extend(changed.map(|headers| (name.clone(), headers)));
            }
        }
        check::catalog(&catalog, &mut faults);
        bounds::values(old, &catalog, &mut faults);
        if !faults.0.is_empty() {
            return Err(Error::Invalid(faults.0));
        }
        for (name, secret) in secrets {
            if let Some(stored) = catalog.credentials.get_mut(&name) {
                self.seal(stored, &secret)?;
            }
        }
        for (name, headers) in to_seal {
            if let Some(stored) = catalog.credentials.get_mut(&name) {
                self.seal_headers(stored, headers)?;
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

/// What a change would be refused for, unless it is forced; only a dry run hears of it.
fn judged(
    old: &Catalog,
    new: &Catalog,
    (writes, kept): (&[Write], [usize; 2]),
    terms: &Terms<'_>,
) -> Result<Vec<Fault>, Error> {
    let mut faults = Faults::default();
    // With the generation and the rollout.
    let count = writes.len() + 2 + audit::WRITES + history::WRITES;
    if count > WRITES_MAX {
        let why =
            format!("{count} at once are more than the {WRITES_MAX} there may be: apply in parts");
        faults.push("changes".to_owned(), why);
    }
    bounds::sizes(old, new, writes, kept, &mut faults);
    let Judgement {
        faults: others,
        losses,
    } = (terms.judge)(old, new);
    faults.0.extend(others);
    if !terms.force && !terms.dry_run {
        faults.0.extend(losses.iter().cloned());
    }
    if faults.0.is_empty() {
        Ok(losses)
    } else {
        Err(Error::Invalid(faults.0))
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
    now_unix_ms() / 1_000
}

pub(super) fn now_unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
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
