//! What one test needs of a network: an account with a key, models of its own, and a provider that serves only them.

use serde_json::{Value, json};

use crate::{CANARY, Client, Network, Sample};

/// One test's place in a network. Everything in it carries the test's name.
#[derive(Debug)]
pub struct Tenant<'n> {
    /// Where it is.
    pub network: &'n Network,
    /// Its provider.
    pub sample: Sample,
    /// The name of its provider, model and account.
    pub name: String,
    /// The provider's keys; credential `NAME-1` has the first.
    pub secrets: Vec<String>,
    /// An API key of its account.
    pub key: Key,
}

/// An API key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its id.
    pub id: String,
    /// Its text.
    pub text: String,
}

impl Network {
    /// A place for a test, whose provider answers quickly.
    pub fn tenant(&self, name: &str) -> Tenant<'_> {
        self.tenant_of(name, 1, &["--first-ms", "0", "--token-ms", "2"])
    }

    /// A place with so many credentials, and a provider of this pace.
    pub fn tenant_of(&self, name: &str, credentials: usize, pace: &[&str]) -> Tenant<'_> {
        let secrets: Vec<String> = (1..=credentials)
            .map(|at| format!("sk-{CANARY}-{name}-{at}"))
            .collect();
        let sample = Sample::start(&secrets, pace);
        let mut plan = format!(
            "[[provider]]\nname = \"{name}\"\nkind = \"openai\"\nbase_url = \"http://{}/v1\"\nallow_private = true\n\
             [[model]]\nname = \"{name}\"\nupstreams = [{{ provider = \"{name}\" }}]\n[[account]]\nname = \"{name}\"\n",
            sample.address
        );
        for (at, secret) in secrets.iter().enumerate() {
            plan += &format!(
                "[[credential]]\nname = \"{name}-{}\"\nprovider = \"{name}\"\nsecret = \"{secret}\"\n",
                at + 1
            );
        }
        self.apply(&plan);
        let key = self.create_key(name, &[]);
        Tenant {
            network: self,
            sample,
            name: name.to_owned(),
            secrets,
            key,
        }
    }

    /// A new key of an account, with limits such as `--concurrency 1`.
    pub fn create_key(&self, account: &str, limits: &[&str]) -> Key {
        let arguments = [&["key", "create", "--account", account], limits].concat();
        let made = self.ctl(&arguments).unwrap();
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        Key {
            id: text("id"),
            text: text("secret"),
        }
    }
}

impl Tenant<'_> {
    /// A client of its key at an ingress.
    pub fn client(&self, ingress: &str) -> Client {
        Client::new(self.network.address(ingress), &self.key.text)
    }

    /// A chat for its model. `more` adds to the body or changes it.
    pub fn chat(&self, more: &Value) -> Value {
        chat(&self.name, more)
    }
}

/// A chat body for a model. `more` adds to it or changes it.
pub fn chat(model: &str, more: &Value) -> Value {
    let mut body = json!({
        "model": model,
        "messages": [{"role": "user", "content": format!("Say {CANARY}")}],
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}
