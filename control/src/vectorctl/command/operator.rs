//! Operators: made, listed, taken away.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use serde_json::json;
use vector_proto::control::v1 as pb;
use zeroize::Zeroizing;

use super::{Done, Shown, name, pages, removed, rows};
use crate::{Failure, args, connect::Client, json, table};

pub(super) async fn operator(mut client: Client, operator: args::Operator) -> Done {
    match operator {
        args::Operator::Add {
            name,
            role,
            certificate_out,
            days,
        } => {
            let asked = pb::AddOperatorRequest {
                name,
                role,
                ttl_s: days.saturating_mul(86_400),
                ..pb::AddOperatorRequest::default()
            };
            match certificate_out {
                Some(file) => with_certificate(client, asked, &file).await,
                None => with_token(client, asked).await,
            }
        }
        args::Operator::List => {
            let operators = pages(|asked| {
                let mut client = client.clone();
                async move {
                    rows(client.list_operators(asked).await, |page| {
                        (page.operators, page.next_page_token)
                    })
                }
            })
            .await?;
            Ok(Shown::new(
                json::list("operators", &operators, json::operator),
                table::operators(&operators),
            ))
        }
        args::Operator::Remove { name: gone } => {
            let answer = client.remove_operator(name(&gone)).await?.into_inner();
            removed("operator", &gone, &answer)
        }
        args::Operator::Me => {
            let me = client.who_am_i(pb::WhoAmIRequest {}).await?.into_inner();
            Ok(Shown::new(
                json::operator(&me),
                table::operators(std::slice::from_ref(&me)),
            ))
        }
    }
}

async fn with_token(mut client: Client, asked: pb::AddOperatorRequest) -> Done {
    let added = client.add_operator(asked).await?.into_inner();
    let view = added.operator.unwrap_or_default();
    let mut value = json::operator(&view);
    value["token"] = json!(added.token);
    let text = format!(
        "{}\n\nThe token of {}, a {}: shown this once. They set it as VECTOR_ADMIN_TOKEN.",
        added.token, view.name, view.role
    );
    Ok(Shown::new(value, text))
}

async fn with_certificate(
    mut client: Client,
    mut asked: pb::AddOperatorRequest,
    out: &Path,
) -> Done {
    let told = |error: std::io::Error| Failure::Usage(format!("{}: {error}", out.display()));
    let made = |error: rcgen::Error| Failure::Usage(format!("key: {error}"));
    // A file that cannot be written is told before the operator is there.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)
        .map_err(told)?;
    let key = rcgen::KeyPair::generate().map_err(made)?;
    // Names in a request are ignored: control knows who this is.
    let request = rcgen::CertificateParams::default().serialize_request(&key);
    asked.csr = request.map_err(made)?.der().to_vec().into();
    let added = match client.add_operator(asked).await {
        Ok(added) => added.into_inner(),
        Err(status) => {
            let _ = fs::remove_file(out);
            return Err(status.into());
        }
    };
    let mut pem = Zeroizing::new(key.serialize_pem());
    for der in added.certificate_chain.iter().chain([&added.root]) {
        pem.push_str(&armoured(der));
    }
    file.write_all(pem.as_bytes()).map_err(told)?;
    file.sync_all().map_err(told)?;
    let view = added.operator.unwrap_or_default();
    let text = format!(
        "{} holds the key and certificate of {}, a {}: set VECTOR_ADMIN_CERTIFICATE to it",
        out.display(),
        view.name,
        view.role
    );
    Ok(Shown::new(json::operator(&view), text))
}

/// A certificate as PEM.
pub(super) fn armoured(der: &[u8]) -> String {
    use base64::Engine as _;
    let letters = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in letters.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}
