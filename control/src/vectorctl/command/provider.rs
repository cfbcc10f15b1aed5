//! Providers and their credentials. A secret comes from a file or standard input, never from a table.

use std::{collections::BTreeMap, path::Path};

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
            probe_ms,
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
                probe_ms,
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
        header_file,
    } = put
    else {
        return Err(Failure::Usage("not a credential".to_owned()));
    };
    let files = pairs("--header-file", "FILE", &header_file)?;
    let inputs = files.iter().map(|&(_, file)| Path::new(file));
    let inputs = inputs.chain(secret_file.as_deref());
    if inputs.filter(|file| *file == Path::new("-")).count() > 1 {
        let fault = "standard input can be read for one of --secret-file and --header-file only";
        return Err(Failure::Usage(fault.to_owned()));
    }
    let headers = headers(pairs("--header", "VALUE", &header)?, files)?;
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

/// `NAME=what` of each, as an option took them.
fn pairs<'a>(
    option: &str,
    what: &str,
    given: &'a [String],
) -> Result<Vec<(&'a str, &'a str)>, Failure> {
    let pair = |text: &'a String| {
        let fault = || Failure::Usage(format!("{option} {text}: write NAME={what}"));
        text.split_once('=').ok_or_else(fault)
    };
    given.iter().map(pair).collect()
}

/// Those that were typed, and those whose values lie in files.
fn headers(
    typed: Vec<(&str, &str)>,
    files: Vec<(&str, &str)>,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut headers: BTreeMap<String, String> = typed
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    for (name, file) in files {
        let text = read_file(Path::new(file))?;
        let value = text.trim();
        // It would keep the stored value, which is not what a file that was filled by nobody means.
        if value.is_empty() {
            return Err(Failure::Usage(format!(
                "--header-file {name}={file}: it is empty"
            )));
        }
        if headers.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(Failure::Usage(format!("header {name} is given twice")));
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    /// What `credential put openai --provider openai` with these options would send, or what it says is wrong.
    fn put(options: &[&str]) -> Result<pb::CredentialSpec, String> {
        let words = [
            "vectorctl",
            "credential",
            "put",
            "openai",
            "--provider",
            "openai",
        ];
        let typed = args::Arguments::try_parse_from(words.iter().chain(options)).unwrap();
        let args::Command::Credential(put) = typed.command else {
            panic!("another command");
        };
        credential_spec(put).map_err(|fault| fault.parts().1.to_owned())
    }

    #[test]
    fn a_headers_value_comes_from_a_file_without_what_surrounds_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("header");
        std::fs::write(&file, "\norg=secret \n").unwrap();
        let option = format!("x-secret={}", file.display());
        let spec = put(&["--header", "x-open=a=b", "--header-file", &option]).unwrap();
        let sent: Vec<_> = spec
            .headers
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        assert_eq!(sent, [("x-open", "a=b"), ("x-secret", "org=secret")]);

        let fault = put(&["--header", "x-secret=", "--header-file", &option]).unwrap_err();
        assert_eq!(fault, "header x-secret is given twice");
        std::fs::write(&file, " \n").unwrap();
        let fault = put(&["--header-file", &option]).unwrap_err();
        assert_eq!(fault, format!("--header-file {option}: it is empty"));
    }

    #[test]
    fn a_header_that_cannot_be_read_is_told_with_its_reason() {
        for (options, reason) in [
            ("--header-file x-secret", "write NAME=FILE"),
            ("--header x-open", "write NAME=VALUE"),
            (
                "--header-file x-secret=/nowhere/at/all",
                "/nowhere/at/all: No such file",
            ),
            ("--header-file x-a=- --header-file x-b=-", "standard input"),
            ("--header-file x-a=- --secret-file -", "standard input"),
        ] {
            let options: Vec<_> = options.split(' ').collect();
            let fault = put(&options).unwrap_err();
            assert!(fault.contains(reason), "{fault}");
        }
    }
}
