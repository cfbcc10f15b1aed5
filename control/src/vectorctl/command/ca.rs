//! What signs certificates, and its replacement.

use serde_json::{Value, json};
use vector_proto::control::v1 as pb;

use super::{Done, Shown, operator::armoured};
use crate::{args, connect::Client, table};

pub(super) async fn ca(mut client: Client, asked: &args::Ca) -> Done {
    let asked_for = pb::ShowAuthorityRequest {};
    let view = match asked {
        args::Ca::Status => client.show_authority(asked_for).await?,
        args::Ca::Roots => return Ok(roots(&client.show_authority(asked_for).await?.into_inner())),
        args::Ca::RotateIntermediate => {
            let asked = pb::RotateIntermediateRequest {};
            client.rotate_intermediate(asked).await?
        }
        args::Ca::RotateRoot(step) => {
            let step = pb::RotateRootRequest {
                step: wire(*step).into(),
            };
            client.rotate_root(step).await?
        }
    }
    .into_inner();
    let value = json!({
        "trust_domain": view.trust_domain, "root": facts(view.root.as_ref()), "intermediate": facts(view.intermediate.as_ref()),
        "rotation": view.rotation.as_ref().map_or(Value::Null, rotation),
    });
    let mut text = table::authority(&view);
    if let args::Ca::RotateRoot(args::RotateRoot::Finish) = asked {
        text += &format!("\n\n{}", finished(&view));
    }
    Ok(Shown::new(value, text))
}

const fn wire(step: args::RotateRoot) -> pb::RootStep {
    match step {
        args::RotateRoot::Begin => pb::RootStep::Begin,
        args::RotateRoot::Switch => pb::RootStep::Switch,
        args::RotateRoot::Finish => pb::RootStep::Finish,
        args::RotateRoot::Abort => pb::RootStep::Abort,
    }
}

fn finished(view: &pb::AuthorityView) -> String {
    let pin = view.root.as_ref().map_or("", |root| &root.pin);
    format!(
        "the old root is not trusted any more: from now on tokens work only with .{pin} at their end. Copy ca/ of control's \
         data_dir and take a backup: those of before do not fit any more"
    )
}

fn roots(view: &pb::AuthorityView) -> Shown {
    let pems: Vec<String> = view.roots.iter().map(|der| armoured(der)).collect();
    let text = pems.concat();
    Shown::new(json!({ "roots": pems }), text.trim_end())
}

fn facts(of: Option<&pb::CertificateFacts>) -> Value {
    of.map_or(Value::Null, |facts| {
        json!({ "pin": facts.pin, "begins_unix_s": facts.begins_unix_s, "ends_unix_s": facts.ends_unix_s })
    })
}

fn rotation(of: &pb::RootRotation) -> Value {
    json!({
        "root": facts(of.root.as_ref()), "intermediate": facts(of.intermediate.as_ref()), "switched": of.switched, "nodes": of.nodes,
        "distrusting": of.distrusting, "distrusting_connected": of.distrusting_connected,
        "nodes_before": of.nodes_before, "operators_before": of.operators_before,
    })
}
