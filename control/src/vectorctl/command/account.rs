//! Accounts and their keys. The text of a key is shown when it is made, and never again.

use vector_proto::control::v1 as pb;

use super::{Done, Shown, pages, rows, unix_ms};
use crate::{Failure, args, connect::Client, json, table};

pub(super) async fn account(mut client: Client, account: args::Account) -> Done {
    match account {
        args::Account::Put {
            name,
            title,
            time_zone,
            disabled,
        } => {
            let spec = pb::AccountSpec {
                name,
                title,
                time_zone,
                disabled,
            };
            let spec = client.put_account(spec).await?.into_inner();
            let state = if spec.disabled {
                "set, and off: its keys have stopped"
            } else {
                "set"
            };
            Ok(Shown::new(
                json::account(&spec),
                format!("account {} is {state}", spec.name),
            ))
        }
        args::Account::List => {
            let specs = pages(|asked| {
                let mut client = client.clone();
                async move {
                    rows(client.list_accounts(asked).await, |page| {
                        (page.accounts, page.next_page_token)
                    })
                }
            })
            .await?;
            Ok(Shown::new(
                json::list("accounts", &specs, json::account),
                table::accounts(&specs),
            ))
        }
    }
}

pub(super) async fn key(mut client: Client, key: args::Key) -> Done {
    match key {
        args::Key::Create {
            account,
            name,
            model,
            address,
            requests_per_minute,
            tokens_per_minute,
            concurrency,
            days,
        } => {
            let spec = pb::KeySpec {
                account,
                name,
                models: model,
                addresses: address,
                requests_per_minute,
                tokens_per_minute,
                concurrency,
                expires_unix_ms: days.map_or(0, |days| {
                    unix_ms().saturating_add(days.saturating_mul(86_400_000))
                }),
            };
            let created = client.create_key(spec).await?.into_inner();
            let mut value = json::key(&created.key.clone().unwrap_or_default());
            value["secret"] = created.secret.clone().into();
            let text = format!(
                "{}\n\nThis is shown once. Clients send it as their API key.",
                created.secret
            );
            Ok(Shown::new(value, text))
        }
        args::Key::List { account } => {
            let views = pages(|asked: pb::ListRequest| {
                let mut client = client.clone();
                let asked = pb::ListKeysRequest {
                    account: account.clone(),
                    page_size: asked.page_size,
                    page_token: asked.page_token,
                };
                async move {
                    rows(client.list_keys(asked).await, |page| {
                        (page.keys, page.next_page_token)
                    })
                }
            })
            .await?;
            Ok(Shown::new(
                json::list("keys", &views, json::key),
                table::keys(&views),
            ))
        }
        args::Key::Disable { .. } | args::Key::Enable { .. } => {
            Err(Failure::Usage("this command is done elsewhere".to_owned()))
        }
    }
}
