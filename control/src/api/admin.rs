//! What operators ask. `guard` has looked at who calls and what they may before anything here runs.

use tonic::{Request, Response, Status, Streaming};
use vector_proto::control::v1 as pb;

use super::{Rooms, unix_ms};
use crate::{ledger::UsageQuery, registry::Draft};

mod backup;
mod ca;
mod change;
mod explain;
mod keys;
mod nodes;
mod operators;
mod pages;
mod rollout;
mod scores;
mod secrets;

mod view;

#[derive(Debug)]
pub(super) struct Operators {
    rooms: Rooms,
}

impl Operators {
    pub(super) fn new(rooms: Rooms) -> Self {
        Self { rooms }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl pb::admin_server::Admin for Operators {
    async fn status(&self, request: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        self.rooms.operator(&request)?;
        let catalog = self.rooms.registry.catalog().await?;
        let keys = self.rooms.registry.keys("").await?;
        Ok(Response::new(pb::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.rooms.authority.trust_domain().to_owned(),
            revision: self.rooms.publisher.current().snapshot.revision,
            uptime_s: self.rooms.started.elapsed().as_secs(),
            nodes: self.node_views().await?,
            providers: catalog.providers.len() as u64,
            credentials: catalog.credentials.len() as u64,
            models: catalog.models.len() as u64,
            accounts: catalog.accounts.len() as u64,
            keys: keys.len() as u64,
            rollout: Some(rollout::shown(&catalog.rollout)),
        }))
    }

    async fn invite_node(
        &self,
        request: Request<pb::InviteNodeRequest>,
    ) -> Answer<pb::InviteNodeResponse> {
        let caller = self.rooms.operator(&request)?;
        let invited = self.invited(&caller, request.into_inner()).await?;
        Ok(Response::new(invited))
    }

    async fn list_nodes(&self, request: Request<pb::ListRequest>) -> Answer<pb::ListNodesResponse> {
        self.rooms.operator(&request)?;
        let views = self.node_views().await?;
        let name = |view: &pb::NodeView| {
            view.record
                .as_ref()
                .map_or(String::new(), |record| record.id.clone())
        };
        let (nodes, next_page_token) = pages::page(views, &request.into_inner(), name);
        Ok(Response::new(pb::ListNodesResponse {
            nodes,
            next_page_token,
        }))
    }

    async fn drain_node(&self, request: Request<pb::DrainNodeRequest>) -> Answer<pb::NodeView> {
        let caller = self.rooms.operator(&request)?;
        let view = self.drained(&caller, request.into_inner()).await?;
        Ok(Response::new(view))
    }

    async fn remove_node(&self, request: Request<pb::NameRequest>) -> Answer<pb::Removed> {
        let caller = self.rooms.operator(&request)?;
        let name = request.into_inner().name;
        self.removed(&caller, &name).await.map(Response::new)
    }

    async fn put_provider(&self, request: Request<pb::ProviderSpec>) -> Answer<pb::ProviderSpec> {
        let caller = self.rooms.operator(&request)?;
        let spec = request.into_inner();
        self.edit(&caller, |draft| draft.put_provider(spec.clone()))
            .await?;
        let mut catalog = self.rooms.registry.catalog().await?;
        Ok(Response::new(
            catalog.providers.remove(&spec.name).unwrap_or(spec),
        ))
    }

    async fn list_providers(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Answer<pb::ListProvidersResponse> {
        self.rooms.operator(&request)?;
        let catalog = self.rooms.registry.catalog().await?;
        let specs = catalog.providers.into_values().collect();
        let (providers, next_page_token) =
            pages::page(specs, &request.into_inner(), |spec| spec.name.clone());
        Ok(Response::new(pb::ListProvidersResponse {
            providers,
            next_page_token,
        }))
    }

    async fn remove_provider(&self, request: Request<pb::NameRequest>) -> Answer<pb::Removed> {
        let caller = self.rooms.operator(&request)?;
        let name = request.into_inner().name;
        let outcome = self
            .edit(&caller, |draft| draft.remove_provider(&name))
            .await?;
        let existed = outcome.removed(&name);
        Ok(Response::new(pb::Removed { existed }))
    }

    async fn put_credential(
        &self,
        request: Request<pb::CredentialSpec>,
    ) -> Answer<pb::CredentialView> {
        let caller = self.rooms.operator(&request)?;
        let spec = request.into_inner();
        self.edit(&caller, |draft| draft.put_credential(spec.clone()))
            .await?;
        let catalog = self.rooms.registry.catalog().await?;
        let stored = catalog.credentials.get(&spec.name).cloned();
        let stored =
            stored.ok_or_else(|| Status::aborted("the credential was removed meanwhile"))?;
        Ok(Response::new(view::credential(stored, &[])))
    }

    async fn list_credentials(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Answer<pb::ListCredentialsResponse> {
        self.rooms.operator(&request)?;
        let catalog = self.rooms.registry.catalog().await?;
        let nodes = self.node_views().await?;
        let views = catalog
            .credentials
            .into_values()
            .map(|stored| view::credential(stored, &nodes))
            .collect();
        let name = |view: &pb::CredentialView| {
            view.spec
                .as_ref()
                .map_or(String::new(), |spec| spec.name.clone())
        };
        let (credentials, next_page_token) = pages::page(views, &request.into_inner(), name);
        Ok(Response::new(pb::ListCredentialsResponse {
            credentials,
            next_page_token,
        }))
    }

    async fn remove_credential(&self, request: Request<pb::NameRequest>) -> Answer<pb::Removed> {
        let caller = self.rooms.operator(&request)?;
        let name = request.into_inner().name;
        let outcome = self
            .edit(&caller, |draft| draft.remove_credential(&name))
            .await?;
        let existed = outcome.removed(&name);
        Ok(Response::new(pb::Removed { existed }))
    }

    async fn put_model(&self, request: Request<pb::ModelSpec>) -> Answer<pb::ModelSpec> {
        let caller = self.rooms.operator(&request)?;
        let spec = request.into_inner();
        self.edit(&caller, |draft| draft.put_model(spec.clone()))
            .await?;
        let mut catalog = self.rooms.registry.catalog().await?;
        Ok(Response::new(
            catalog.models.remove(&spec.name).unwrap_or(spec),
        ))
    }

    async fn list_models(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Answer<pb::ListModelsResponse> {
        self.rooms.operator(&request)?;
        let catalog = self.rooms.registry.catalog().await?;
        let specs = catalog.models.into_values().collect();
        let (models, next_page_token) =
            pages::page(specs, &request.into_inner(), |spec| spec.name.clone());
        Ok(Response::new(pb::ListModelsResponse {
            models,
            next_page_token,
        }))
    }

    async fn remove_model(&self, request: Request<pb::NameRequest>) -> Answer<pb::Removed> {
        let caller = self.rooms.operator(&request)?;
        let name = request.into_inner().name;
        let outcome = self
            .edit(&caller, |draft| draft.remove_model(&name))
            .await?;
        let existed = outcome.removed(&name);
        Ok(Response::new(pb::Removed { existed }))
    }

    async fn put_default_route(
        &self,
        request: Request<pb::DefaultRouteSpec>,
    ) -> Answer<pb::DefaultRouteSpec> {
        let caller = self.rooms.operator(&request)?;
        let spec = request.into_inner();
        self.edit(&caller, |draft| draft.put_default_route(spec.clone()))
            .await?;
        Ok(Response::new(spec))
    }

    async fn list_default_routes(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Answer<pb::ListDefaultRoutesResponse> {
        self.rooms.operator(&request)?;
        let catalog = self.rooms.registry.catalog().await?;
        let specs = catalog.default_routes.into_values().collect();
        let (routes, next_page_token) =
            pages::page(specs, &request.into_inner(), |spec| spec.operation.clone());
        Ok(Response::new(pb::ListDefaultRoutesResponse {
            routes,
            next_page_token,
        }))
    }

    async fn remove_default_route(&self, request: Request<pb::NameRequest>) -> Answer<pb::Removed> {
        let caller = self.rooms.operator(&request)?;
        let name = request.into_inner().name;
        let outcome = self
            .edit(&caller, |draft| draft.remove_default_route(&name))
            .await?;
        let existed = outcome.removed(&name);
        Ok(Response::new(pb::Removed { existed }))
    }

    async fn put_account(&self, request: Request<pb::AccountSpec>) -> Answer<pb::AccountSpec> {
        let caller = self.rooms.operator(&request)?;
        let spec = request.into_inner();
        self.edit(&caller, |draft| draft.put_account(spec.clone()))
            .await?;
        Ok(Response::new(spec))
    }

    async fn list_accounts(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Answer<pb::ListAccountsResponse> {
        self.rooms.operator(&request)?;
        let catalog = self.rooms.registry.catalog().await?;
        let specs = catalog.accounts.into_values().collect();
        let (accounts, next_page_token) =
            pages::page(specs, &request.into_inner(), |spec| spec.name.clone());
        Ok(Response::new(pb::ListAccountsResponse {
            accounts,
            next_page_token,
        }))
    }

    async fn create_key(&self, request: Request<pb::KeySpec>) -> Answer<pb::CreatedKey> {
        let caller = self.rooms.operator(&request)?;
        let created = self.key_created(&caller, request.into_inner()).await?;
        Ok(Response::new(created))
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> Answer<pb::ListKeysResponse> {
        self.rooms.operator(&request)?;
        let listed = self.keys(request.into_inner()).await?;
        Ok(Response::new(listed))
    }

    async fn set_key_state(&self, request: Request<pb::SetKeyStateRequest>) -> Answer<pb::KeyView> {
        let caller = self.rooms.operator(&request)?;
        let view = self.key_state_set(&caller, request.into_inner()).await?;
        Ok(Response::new(view))
    }

    async fn apply(&self, request: Request<pb::ApplyRequest>) -> Answer<pb::ApplyResponse> {
        let caller = self.rooms.operator(&request)?;
        let asked = request.into_inner();
        let plan = asked.plan.unwrap_or_default();
        let alter = |draft: &mut Draft| draft.apply(plan.clone(), asked.prune);
        let (base, dry_run) = (asked.base_revision, asked.dry_run);
        let outcome = self.edit_on(&caller, base, dry_run, alter).await?;
        Ok(Response::new(pb::ApplyResponse {
            losses: outcome.losses.iter().map(ToString::to_string).collect(),
            changes: outcome.changes,
            revision: outcome.generation,
        }))
    }

    async fn list_generations(
        &self,
        request: Request<pb::ListGenerationsRequest>,
    ) -> Answer<pb::ListGenerationsResponse> {
        self.rooms.operator(&request)?;
        let listed = self.generations(request.into_inner()).await?;
        Ok(Response::new(listed))
    }

    async fn diff_generations(
        &self,
        request: Request<pb::DiffGenerationsRequest>,
    ) -> Answer<pb::DiffGenerationsResponse> {
        self.rooms.operator(&request)?;
        let asked = request.into_inner();
        let changes = self.rooms.registry.between(asked.from, asked.to).await?;
        Ok(Response::new(pb::DiffGenerationsResponse { changes }))
    }

    async fn undo(&self, request: Request<pb::UndoRequest>) -> Answer<pb::UndoResponse> {
        let caller = self.rooms.operator(&request)?;
        let undone = self.undone(&caller, request.into_inner()).await?;
        Ok(Response::new(undone))
    }

    async fn show_rollout(&self, request: Request<pb::ShowRolloutRequest>) -> Answer<pb::Rollout> {
        self.rooms.operator(&request)?;
        let catalog = self.rooms.registry.catalog().await?;
        Ok(Response::new(rollout::shown(&catalog.rollout)))
    }

    async fn pause_rollout(
        &self,
        request: Request<pb::PauseRolloutRequest>,
    ) -> Answer<pb::Rollout> {
        let caller = self.rooms.operator(&request)?;
        let rollout = self.paused(&caller, request.into_inner().on).await?;
        Ok(Response::new(rollout))
    }

    async fn explain_route(
        &self,
        request: Request<pb::ExplainRouteRequest>,
    ) -> Answer<pb::ExplainRouteResponse> {
        self.rooms.operator(&request)?;
        let explained = self.explained(request.get_ref()).await?;
        Ok(Response::new(explained))
    }

    async fn show_scores(
        &self,
        request: Request<pb::ShowScoresRequest>,
    ) -> Answer<pb::ShowScoresResponse> {
        self.rooms.operator(&request)?;
        Ok(Response::new(scores::scores(&self.node_views().await?)))
    }

    async fn list_usage(
        &self,
        request: Request<pb::ListUsageRequest>,
    ) -> Answer<pb::ListUsageResponse> {
        self.rooms.operator(&request)?;
        let asked = request.into_inner();
        let query = UsageQuery {
            rows: pages::size(asked.page_size),
            behind: pages::usage_token(&asked.page_token)?,
            account: asked.account,
            key: asked.key,
            from_unix_ms: asked.from_unix_ms,
            until_unix_ms: asked.until_unix_ms,
        };
        let page = self.rooms.ledger.usage(query).await?;
        let last = page.records.last().filter(|_| page.more);
        Ok(Response::new(pb::ListUsageResponse {
            next_page_token: last.map(pages::usage_token_of).unwrap_or_default(),
            total: Some(page.total),
            exchanges: page.exchanges,
            records: page.records,
        }))
    }

    type BackupStream = backup::Parts;

    async fn backup(&self, request: Request<pb::BackupRequest>) -> Answer<Self::BackupStream> {
        self.rooms.operator(&request)?;
        backup::take(&self.rooms).await.map(Response::new)
    }

    async fn restore(
        &self,
        request: Request<Streaming<pb::RestorePart>>,
    ) -> Answer<pb::RestoreResponse> {
        let caller = self.rooms.operator(&request)?;
        let restored = backup::put(&self.rooms, &caller.by, request.into_inner()).await?;
        Ok(Response::new(restored))
    }

    async fn show_secrets(
        &self,
        request: Request<pb::ShowSecretsRequest>,
    ) -> Answer<pb::ShowSecretsResponse> {
        self.rooms.operator(&request)?;
        self.secrets().await.map(Response::new)
    }

    async fn rotate_secrets(
        &self,
        request: Request<pb::RotateSecretsRequest>,
    ) -> Answer<pb::RotateSecretsResponse> {
        let caller = self.rooms.operator(&request)?;
        self.rotated(&caller).await.map(Response::new)
    }

    async fn show_authority(
        &self,
        request: Request<pb::ShowAuthorityRequest>,
    ) -> Answer<pb::AuthorityView> {
        self.rooms.operator(&request)?;
        self.authority().await.map(Response::new)
    }

    async fn rotate_intermediate(
        &self,
        request: Request<pb::RotateIntermediateRequest>,
    ) -> Answer<pb::AuthorityView> {
        let caller = self.rooms.operator(&request)?;
        self.intermediate_rotated(&caller).await.map(Response::new)
    }

    async fn rotate_root(
        &self,
        request: Request<pb::RotateRootRequest>,
    ) -> Answer<pb::AuthorityView> {
        let caller = self.rooms.operator(&request)?;
        let step = request.into_inner().step();
        self.root_rotated(&caller, step).await.map(Response::new)
    }

    async fn who_am_i(&self, request: Request<pb::WhoAmIRequest>) -> Answer<pb::OperatorView> {
        let caller = self.rooms.operator(&request)?;
        self.myself(&caller).await.map(Response::new)
    }

    async fn add_operator(
        &self,
        request: Request<pb::AddOperatorRequest>,
    ) -> Answer<pb::AddedOperator> {
        let caller = self.rooms.operator(&request)?;
        let added = self.add(&caller, request.into_inner()).await?;
        Ok(Response::new(added))
    }

    async fn list_operators(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Answer<pb::ListOperatorsResponse> {
        self.rooms.operator(&request)?;
        let views = self.rooms.registry.operators().await?;
        let (operators, next_page_token) =
            pages::page(views, &request.into_inner(), |view| view.name.clone());
        Ok(Response::new(pb::ListOperatorsResponse {
            operators,
            next_page_token,
        }))
    }

    async fn remove_operator(&self, request: Request<pb::NameRequest>) -> Answer<pb::Removed> {
        let caller = self.rooms.operator(&request)?;
        let name = request.into_inner().name;
        let registry = &self.rooms.registry;
        let existed = registry.remove_operator(&caller.by, &name).await?;
        Ok(Response::new(pb::Removed { existed }))
    }

    async fn list_audit(
        &self,
        request: Request<pb::ListAuditRequest>,
    ) -> Answer<pb::ListAuditResponse> {
        self.rooms.operator(&request)?;
        let asked = request.into_inner();
        let rows = pages::size(asked.page_size);
        let registry = &self.rooms.registry;
        let page = registry.audit(asked.after_seq, rows, asked.newest).await?;
        Ok(Response::new(pb::ListAuditResponse {
            records: page.records,
            head: Some(page.head),
            head_proven: page.proven,
        }))
    }
}
