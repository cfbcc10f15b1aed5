//! Does what was typed: one call to control each, shown as a table or as JSON.

use std::{
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
    connect::{Client, Proof, connect_to},
    doctor, json, plan, sight, table,
};

mod account;
mod apply;
mod audit;
mod backup;
mod ca;
pub(crate) mod edges;
mod key_state;
mod model;
mod node;
mod operator;
mod provider;
mod rollout;
mod scores;
mod secrets;

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
        token_file,
        certificate,
        json,
        force,
        command,
    } = arguments;
    let token = match token_file {
        Some(file) if token.is_empty() => read_file(&file)?,
        _ => token,
    };
    let proof = match certificate {
        Some(file) => Proof::Certificate(read_file(&file)?.into()),
        None => Proof::Token(token.into()),
    };
    if matches!(command, Command::Doctor) {
        return examined(&control, &proof, json).await;
    }
    let shown = match command {
        Command::Edges(args::Edges::Probe(asked)) => edges::probe(&control, &proof, asked).await?,
        Command::Key(args::Key::Disable { id }) => {
            key_state::set(&control, &proof, (id, true)).await?
        }
        Command::Key(args::Key::Enable { id }) => {
            key_state::set(&control, &proof, (id, false)).await?
        }
        command => {
            // What can be wrong with a file is told before anything is dialled.
            let command = Ready::from(command, force)?;
            let client = connect_to(&control, &proof, force).await?;
            command.run(client, &control).await?
        }
    };
    if json {
        serde_json::to_string_pretty(&shown.json)
            .map_err(|error| Failure::Refused(error.to_string()))
    } else {
        Ok(shown.text)
    }
}

/// The doctor's report. It stands on standard output whatever was found, and code 1 says that something is broken.
async fn examined(control: &str, proof: &Proof, as_json: bool) -> Result<String, Failure> {
    let (value, text, bad) = doctor::run(control, proof).await;
    let report = if as_json {
        serde_json::to_string_pretty(&value).map_err(|error| Failure::Refused(error.to_string()))?
    } else {
        text
    };
    if bad {
        let _ = writeln!(io::stdout().lock(), "{report}");
        return Err(Failure::Refused(String::new()));
    }
    Ok(report)
}

/// A command whose files are read.
enum Ready {
    Plain(Command),
    Restore {
        parts: Vec<pb::BackupPart>,
        force: bool,
    },
    Credential(Box<pb::CredentialSpec>),
    Apply(Box<apply::Asked>),
}

impl Ready {
    fn from(command: Command, force: bool) -> Result<Self, Failure> {
        Ok(match command {
            Command::Apply(args::Apply {
                file,
                prune,
                base,
                dry_run,
            }) => Self::Apply(Box::new(apply::Asked {
                plan: read_plan(&file)?,
                file,
                prune,
                dry_run,
                base,
                exit_code: false,
            })),
            Command::Diff(args::Diff {
                file,
                prune,
                exit_code,
            }) => Self::Apply(Box::new(apply::Asked {
                plan: read_plan(&file)?,
                file,
                prune,
                dry_run: true,
                base: None,
                exit_code,
            })),
            Command::Credential(put @ args::Credential::Put { .. }) => {
                Self::Credential(Box::new(provider::credential_spec(put)?))
            }
            Command::Restore { file } => Self::Restore {
                parts: backup::read(&file)?,
                force,
            },
            other => Self::Plain(other),
        })
    }

    async fn run(self, mut client: Client, control: &str) -> Done {
        match self {
            Self::Apply(asked) => apply::apply(client, control, *asked).await,
            Self::Credential(spec) => {
                let view = client.put_credential(*spec).await?.into_inner();
                let name = view.spec.as_ref().map_or("", |spec| &spec.name);
                Ok(Shown::new(
                    json::credential(&view),
                    format!("credential {name} is set ({})", view.hint),
                ))
            }
            Self::Restore { parts, force } => backup::restore(client, parts, force).await,
            Self::Plain(command) => plain(client, command).await,
        }
    }
}

async fn plain(client: Client, command: Command) -> Done {
    match command {
        Command::Status => {
            let sight = sight::gather(&client).await?;
            let findings = doctor::examine(&sight);
            Ok(Shown::new(
                json::glance(&sight, &findings),
                table::glance(&sight, &findings),
            ))
        }
        Command::Node(it) => node::node(client, it).await,
        Command::Nodes => node::node(client, args::Node::List).await,
        Command::Provider(it) => provider::provider(client, it).await,
        Command::Credential(it) => provider::credential(client, it).await,
        Command::Model(it) => model::model(client, it).await,
        Command::DefaultRoute(it) => model::default_route(client, it).await,
        Command::Account(it) => account::account(client, it).await,
        Command::Key(it) => account::key(client, it).await,
        Command::Operator(it) => operator::operator(client, it).await,
        Command::Audit(asked) => audit::audit(client, asked).await,
        Command::Ca(it) => ca::ca(client, &it).await,
        Command::Secrets(it) => secrets::secrets(client, &it).await,
        Command::Rollout(it) => rollout::rollout(client, it).await,
        Command::Explain(asked) | Command::Routes(args::Routes::Explain(asked)) => {
            explain(client, asked).await
        }
        Command::Usage(asked) => usage(client, asked).await,
        Command::Upstreams => scores::upstreams(client).await,
        Command::Paths => scores::paths(client).await,
        Command::Watch(asked) => scores::watch(client, asked).await,
        Command::Backup { file } => backup::backup(client, &file).await,
        Command::Apply(_)
        | Command::Diff(_)
        | Command::Restore { .. }
        | Command::Doctor
        | Command::Edges(_)
        | Command::Completion { .. } => {
            Err(Failure::Usage("this command is done elsewhere".to_owned()))
        }
    }
}

/// What a change did, or would do.
fn done(response: &pb::ApplyResponse, dry_run: bool) -> String {
    let mut text = table::changes(&response.changes);
    if dry_run {
        for loss in &response.losses {
            text += &format!("\nwould be refused: {loss}");
        }
        text += &format!("\ngeneration {}", response.revision);
    } else if !response.changes.is_empty() {
        text = text
            .replace(" to create", " created")
            .replace(" to update", " updated")
            .replace(" to remove", " removed");
    }
    text
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
pub(crate) async fn pages<T, F>(
    mut ask: impl FnMut(pb::ListRequest) -> F,
) -> Result<Vec<T>, Failure>
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

pub(crate) fn rows<P, T>(
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

pub(crate) fn unix_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
