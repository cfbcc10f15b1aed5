//! Nodes: invited, listed, drained, removed.

use serde_json::json;
use vector_proto::control::v1 as pb;

use super::{Done, Shown, name, pages, removed, rows};
use crate::{args, connect::Client, json, table};

pub(super) async fn node(mut client: Client, node: args::Node) -> Done {
    match node {
        args::Node::Invite {
            role,
            region,
            node,
            minutes,
        } => {
            let asked = pb::InviteNodeRequest {
                roles: role,
                region,
                node,
                ttl_s: minutes.saturating_mul(60),
            };
            let invite = client.invite_node(asked).await?.into_inner();
            let value = json!({ "token": invite.token, "expires_unix_ms": invite.expires_unix_ms });
            let text = format!(
                "{}\n\nGive this to the node as control.invite (or VECTOR_CONTROL_INVITE); it works once, for {minutes} minutes.",
                invite.token
            );
            Ok(Shown::new(value, text))
        }
        args::Node::List => {
            let nodes = pages(|asked| {
                let mut client = client.clone();
                async move {
                    rows(client.list_nodes(asked).await, |page| {
                        (page.nodes, page.next_page_token)
                    })
                }
            })
            .await?;
            Ok(Shown::new(
                json::list("nodes", &nodes, json::node),
                table::nodes(&nodes),
            ))
        }
        args::Node::Drain { node } => drain(client, node, true).await,
        args::Node::Undrain { node } => drain(client, node, false).await,
        args::Node::Remove { node } => {
            let gone = client.remove_node(name(&node)).await?.into_inner();
            removed("node", &node, &gone)
        }
    }
}

async fn drain(mut client: Client, node: String, on: bool) -> Done {
    let view = client
        .drain_node(pb::DrainNodeRequest { node, on })
        .await?
        .into_inner();
    Ok(Shown::new(
        json::node(&view),
        table::nodes(std::slice::from_ref(&view)),
    ))
}
