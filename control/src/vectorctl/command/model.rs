//! Models and default routes: what is asked for, and who serves it.

use vector_proto::control::v1 as pb;

use super::{Done, Shown, name, pages, removed, rows};
use crate::{args, connect::Client, json, plan, table};

pub(super) async fn model(mut client: Client, model: args::Model) -> Done {
    match model {
        args::Model::Put {
            name,
            upstream,
            owned_by,
            redundant,
        } => {
            let spec = pb::ModelSpec {
                name,
                upstreams: upstreams(&upstream),
                owned_by,
                created_unix_s: 0,
                redundant,
            };
            let spec = client.put_model(spec).await?.into_inner();
            Ok(Shown::new(
                json::model(&spec),
                format!("model {} is set", spec.name),
            ))
        }
        args::Model::List => {
            let specs = pages(|asked| {
                let mut client = client.clone();
                async move {
                    rows(client.list_models(asked).await, |page| {
                        (page.models, page.next_page_token)
                    })
                }
            })
            .await?;
            Ok(Shown::new(
                json::list("models", &specs, json::model),
                table::models(&specs),
            ))
        }
        args::Model::Remove { name: it } => {
            let gone = client.remove_model(name(&it)).await?.into_inner();
            removed("model", &it, &gone)
        }
    }
}

pub(super) async fn default_route(mut client: Client, route: args::DefaultRoute) -> Done {
    match route {
        args::DefaultRoute::Put {
            operation,
            upstream,
            redundant,
        } => {
            let spec = pb::DefaultRouteSpec {
                operation,
                upstreams: upstreams(&upstream),
                redundant,
            };
            let spec = client.put_default_route(spec).await?.into_inner();
            Ok(Shown::new(
                json::route(&spec),
                format!("default route {} is set", spec.operation),
            ))
        }
        args::DefaultRoute::List => {
            let specs = pages(|asked| {
                let mut client = client.clone();
                async move {
                    rows(client.list_default_routes(asked).await, |page| {
                        (page.routes, page.next_page_token)
                    })
                }
            })
            .await?;
            Ok(Shown::new(
                json::list("default_routes", &specs, json::route),
                table::routes(&specs),
            ))
        }
        args::DefaultRoute::Remove { operation } => {
            let gone = client
                .remove_default_route(name(&operation))
                .await?
                .into_inner();
            removed("default route", &operation, &gone)
        }
    }
}

fn upstreams(texts: &[String]) -> Vec<pb::Upstream> {
    texts
        .iter()
        .map(|text| plan::typed_upstream(text))
        .collect()
}
