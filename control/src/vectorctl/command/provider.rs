//! Providers and their credentials. A secret comes from a file or standard input, never from a table.

use std::collections::BTreeMap;

use vector_proto::control::v1 as pb;

use super::{Done, Shown, name, pages, read_file, removed, rows};
use crate::{Failure, args, connect::Client, json, plan, table};

pub(super) async fn provider(mut client: Client, provider: args::Provider) -> Done {
    match provider {
        args::Provider::Put {
            name,
            kind,
            base_url,
            allow_private,
            egress,
            unknown_objects,
            balance,
            connect_ms,
            first_byte_ms,
            idle_ms,
            connections_max,
        } => {
            let spec = pb::ProviderSpec {
                name,
                kind,
                base_url,
                egress,
                limits: plan::limits(connect_ms, first_byte_ms, idle_ms, connections_max),
                unknown_objects,
                balance,
                allow_private,
            };
            let spec = client.put_provider(spec).await?.into_inner();
            Ok(Shown::new(
                json::provider(&spec),
                format!("provider {} is set", spec.name),
            ))
        }
        args::Provider::List => {
            let specs = pages(|asked| {
                let mut client = client.clone();
                async move {
                    rows(client.list_providers(asked).await, |page| {
                        (page.providers, page.next_page_token)
                    })
                }
            })
            .await?;
            Ok(Shown::new(
                json::list("providers", &specs, json::provider),
                table::providers(&specs),
            ))
        }
        args::Provider::Remove { name: it } => {
            let gone = client.remove_provider(name(&it)).await?.into_inner();
            removed("provider", &it, &gone)
        }
    }
}

pub(super) async fn credential(mut client: Client, credential: args::Credential) -> Done {
    match credential {
        args::Credential::Put { .. } => Err(Failure::Usage("the secret was not read".to_owned())),
        args::Credential::List => {
            let views = pages(|asked| {
                let mut client = client.clone();
                async move {
                    rows(client.list_credentials(asked).await, |page| {
                        (page.credentials, page.next_page_token)
                    })
                }
            })
            .await?;
            Ok(Shown::new(
                json::list("credentials", &views, json::credential),
                table::credentials(&views),
            ))
        }
        args::Credential::Remove { name: it } => {
            let gone = client.remove_credential(name(&it)).await?.into_inner();
            removed("credential", &it, &gone)
        }
    }
}

pub(super) fn credential_spec(put: args::Credential) -> Result<pb::CredentialSpec, Failure> {
    let args::Credential::Put {
        name,
        provider,
        secret_file,
        secret,
        requests_per_minute,
        tokens_per_minute,
        concurrency,
        weight,
        disabled,
        header,
    } = put
    else {
        return Err(Failure::Usage("not a credential".to_owned()));
    };
    let mut headers = BTreeMap::new();
    for text in header {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| Failure::Usage(format!("--header {text}: write NAME=VALUE")))?;
        headers.insert(name.to_owned(), value.to_owned());
    }
    let secret = match (secret, secret_file) {
        (Some(secret), _) => secret,
        (None, Some(file)) => read_file(&file)?,
        (None, None) => String::new(),
    };
    Ok(pb::CredentialSpec {
        name,
        provider,
        secret: secret.trim().to_owned(),
        disabled,
        requests_per_minute,
        tokens_per_minute,
        concurrency,
        weight,
        headers,
    })
}
