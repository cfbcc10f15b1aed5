//! What signs certificates, and its replacement.

use serde_json::{Value, json};
use vector_proto::control::v1 as pb;

use super::{Done, Shown};
use crate::{args, connect::Client, table};

pub(super) async fn ca(mut client: Client, asked: &args::Ca) -> Done {
    let view = match asked {
        args::Ca::Status => client.show_authority(pb::ShowAuthorityRequest {}).await?,
        args::Ca::RotateIntermediate => {
            let asked = pb::RotateIntermediateRequest {};
            client.rotate_intermediate(asked).await?
        }
    }
    .into_inner();
    let value = json!({
        "trust_domain": view.trust_domain, "root": facts(view.root.as_ref()), "intermediate": facts(view.intermediate.as_ref()),
    });
    Ok(Shown::new(value, table::authority(&view)))
}

fn facts(of: Option<&pb::CertificateFacts>) -> Value {
    of.map_or(Value::Null, |facts| {
        json!({ "pin": facts.pin, "begins_unix_s": facts.begins_unix_s, "ends_unix_s": facts.ends_unix_s })
    })
}
