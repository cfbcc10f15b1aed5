//! Does what was typed: one call to control each, shown as a table or as JSON.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    io::{self, Read as _, Write as _},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tonic::{Response, Status};
use vector_proto::control::v1 as pb;

use crate::{
    Failure,
    args::{self, Arguments, Command},
    connect::{Client, connect},
    json, plan, table,
};

/// Rows asked for at once.
const PAGE: u32 = 1_000;

/// Largest file read: a plan or a secret.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// An answer, not shown yet.
struct Shown {
    json: Value,
    text: String,
}

impl Shown {
    fn new(json: Value, text: impl Into<String>) -> Self {
        Self {
            json,
            text: text.into(),
        }
    }
}

type Done = Result<Shown, Failure>;

pub(crate) async fn run(arguments: Arguments) -> Result<String, Failure> {
    let Arguments {
        control,
        token,
        json,
        command,
    } = arguments;
    // What can be wrong with a file is told before anything is dialled.
    let command = Ready::from(command)?;
    let client = connect(&control, &token).await?;
    let shown = command.run(client).await?;
    if json {
        serde_json::to_string_pretty(&shown.json)
            .map_err(|error| Failure::Refused(error.to_string()))
    } else {
        Ok(shown.text)
    }
}

/// A command whose files are read.
enum Ready {
    Plain(Command),
    Credential(Box<pb::CredentialSpec>),
    Apply {
        plan: pb::Plan,
        prune: bool,
        dry_run: bool,
        exit_code: bool,
    },
}

impl Ready {
    fn from(command: Command) -> Result<Self, Failure> {
        Ok(match command {
            Command::Apply(args::Apply {
                file,
                prune,
                dry_run,
            }) => Self::Apply {
                plan: read_plan(&file)?,
                prune,
                dry_run,
                exit_code: false,
            },
            Command::Diff(args::Diff {
                file,
                prune,
                exit_code,
            }) => Self::Apply {
                plan: read_plan(&file)?,
                prune,
                dry_run: true,
                exit_code,
            },
            Command::Credential(put @ args::Credential::Put { .. }) => {
                Self::Credential(Box::new(credential_spec(put)?))
            }
            other => Self::Plain(other),
        })
    }

    async fn run(self, mut client: Client) -> Done {
        match self {
            Self::Apply {
                plan,
                prune,
                dry_run,
                exit_code,
            } => apply(client, plan, prune, dry_run, exit_code).await,
            Self::Credential(spec) => {
                let view = client.put_credential(*spec).await?.into_inner();
                let name = view.spec.as_ref().map_or("", |spec| &spec.name);
                Ok(Shown::new(
                    json::credential(&view),
                    format!("credential {name} is set ({})", view.hint),
                ))
            }
            Self::Plain(command) => plain(client, command).await,
        }
    }
}

async fn plain(mut client: Client, command: Command) -> Done {
    match command {
        Command::Status => {
            let status = client.status(pb::StatusRequest {}).await?.into_inner();
            Ok(Shown::new(json::status(&status), table::status(&status)))
        }
        Command::Node(node) => self::node(client, node).await,
        Command::Provider(provider) => self::provider(client, provider).await,
        Command::Credential(credential) => self::credential(client, credential).await,
        Command::Model(model) => self::model(client, model).await,
        Command::DefaultRoute(route) => default_route(client, route).await,
        Command::Account(account) => self::account(client, account).await,
        Command::Key(key) => self::key(client, key).await,
        Command::Explain(asked) => explain(client, asked).await,
        Command::Usage(asked) => usage(client, asked).await,
        Command::Apply(_) | Command::Diff(_) | Command::Completion { .. } => {
            Err(Failure::Usage("this command needs no control".to_owned()))
        }
    }
}

async fn node(mut client: Client, node: args::Node) -> Done {
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

async fn provider(mut client: Client, provider: args::Provider) -> Done {
    match provider {
        args::Provider::Put {
            name,
            kind,
            base_url,
            egress,
            unknown_objects,
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

async fn credential(mut client: Client, credential: args::Credential) -> Done {
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

async fn model(mut client: Client, model: args::Model) -> Done {
    match model {
        args::Model::Put {
            name,
            upstream,
            owned_by,
        } => {
            let spec = pb::ModelSpec {
                name,
                upstreams: upstreams(&upstream),
                owned_by,
                created_unix_s: 0,
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

async fn default_route(mut client: Client, route: args::DefaultRoute) -> Done {
    match route {
        args::DefaultRoute::Put {
            operation,
            upstream,
        } => {
            let spec = pb::DefaultRouteSpec {
                operation,
                upstreams: upstreams(&upstream),
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

async fn account(mut client: Client, account: args::Account) -> Done {
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

async fn key(mut client: Client, key: args::Key) -> Done {
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
        args::Key::Disable { id } => set_key(client, id, true).await,
        args::Key::Enable { id } => set_key(client, id, false).await,
    }
}

async fn set_key(mut client: Client, id: String, disabled: bool) -> Done {
    let view = client
        .set_key_state(pb::SetKeyStateRequest { id, disabled })
        .await?
        .into_inner();
    let state = if view.disabled {
        "off at every edge"
    } else {
        "on"
    };
    Ok(Shown::new(
        json::key(&view),
        format!("key {} is {state}", view.id),
    ))
}

/// Brings control to the plan, or only shows what that would change.
async fn apply(
    mut client: Client,
    plan: pb::Plan,
    prune: bool,
    dry_run: bool,
    exit_code: bool,
) -> Done {
    let asked = pb::ApplyRequest {
        plan: Some(plan),
        dry_run,
        prune,
        base_revision: 0,
    };
    let response = client.apply(asked).await?.into_inner();
    if exit_code && !response.changes.is_empty() {
        let _ = writeln!(io::stdout().lock(), "{}", table::changes(&response));
        return Err(Failure::Refused(String::new()));
    }
    let mut text = table::changes(&response);
    if !dry_run && !response.changes.is_empty() {
        text = text
            .replace(" to create", " created")
            .replace(" to update", " updated")
            .replace(" to remove", " removed");
    }
    Ok(Shown::new(json::changes(&response), text))
}

async fn explain(mut client: Client, asked: args::Explain) -> Done {
    if asked.model.is_empty() && asked.operation.is_empty() {
        return Err(Failure::Usage(
            "say a model, or --operation for calls that name none".to_owned(),
        ));
    }
    let asked = pb::ExplainRouteRequest {
        model: asked.model,
        operation: asked.operation,
        region: asked.region,
    };
    let response = client.explain_route(asked).await?.into_inner();
    Ok(Shown::new(
        json::explanation(&response),
        table::explanation(&response),
    ))
}

async fn usage(mut client: Client, asked: args::Usage) -> Done {
    let asked = pb::ListUsageRequest {
        account: asked.account,
        key: asked.key,
        from_unix_ms: asked.hours.map_or(0, |hours| {
            unix_ms().saturating_sub(hours.saturating_mul(3_600_000))
        }),
        until_unix_ms: 0,
        page_size: asked.rows,
        page_token: String::new(),
    };
    let response = client.list_usage(asked).await?.into_inner();
    Ok(Shown::new(json::usage(&response), table::usage(&response)))
}

/// Asks until there are no more pages.
async fn pages<T, F>(mut ask: impl FnMut(pb::ListRequest) -> F) -> Result<Vec<T>, Failure>
where
    F: Future<Output = Result<(Vec<T>, String), Status>>,
{
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let asked = pb::ListRequest {
            page_size: PAGE,
            page_token,
        };
        let (page, next) = ask(asked).await?;
        all.extend(page);
        if next.is_empty() {
            return Ok(all);
        }
        page_token = next;
    }
}

fn rows<P, T>(
    answer: Result<Response<P>, Status>,
    parts: impl FnOnce(P) -> (Vec<T>, String),
) -> Result<(Vec<T>, String), Status> {
    answer.map(|response| parts(response.into_inner()))
}

fn name(name: &str) -> pb::NameRequest {
    pb::NameRequest {
        name: name.to_owned(),
    }
}

fn removed(kind: &str, name: &str, gone: &pb::Removed) -> Done {
    if gone.existed {
        Ok(Shown::new(
            json!({ "removed": true }),
            format!("{kind} {name} is removed"),
        ))
    } else {
        Err(Failure::Refused(format!("there is no {kind} named {name}")))
    }
}

fn upstreams(texts: &[String]) -> Vec<pb::Upstream> {
    texts
        .iter()
        .map(|text| plan::typed_upstream(text))
        .collect()
}

fn credential_spec(put: args::Credential) -> Result<pb::CredentialSpec, Failure> {
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

fn read_plan(file: &Path) -> Result<pb::Plan, Failure> {
    let text = read_file(file)?;
    let outside = plan::Outside {
        folder: file.parent().unwrap_or(Path::new(".")),
        env: &|name| std::env::var(name).ok(),
    };
    plan::read(&text, &outside)
        .map_err(|faults| Failure::Usage(format!("{}:\n{}", file.display(), faults.join("\n"))))
}

/// A whole file, or standard input for `-`.
fn read_file(file: &Path) -> Result<String, Failure> {
    let told = |error: io::Error| Failure::Usage(format!("{}: {error}", file.display()));
    let mut text = String::new();
    if file == Path::new("-") {
        io::stdin()
            .take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(told)?;
    } else {
        let opened = fs::File::open(file).map_err(told)?;
        opened
            .take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(told)?;
    }
    Ok(text)
}

fn unix_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
