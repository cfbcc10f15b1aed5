//! `vector-control --config control.toml`: reads the settings, begins to log, serves until told to stop.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use vector_control::{
    config::Config,
    server::{self, Server},
    telemetry,
};

/// A thousand streams live long beside short work: the system's allocator keeps what that leaves free.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The control plane of Vector Engine.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Settings in TOML. Without it, defaults and VECTOR_<SECTION>_<KEY> of the environment.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Only say whether the settings are good.
    #[arg(long)]
    check: bool,
    /// Only ask the control that runs with these settings whether it is ready: 0 if it is.
    #[arg(long, conflicts_with = "check")]
    ready: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let text = match &arguments.config {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?,
        None => String::new(),
    };
    let config = Config::read(&text, &|key| std::env::var(key).ok())
        .context("the settings cannot be used")?;
    if arguments.check {
        return Ok(());
    }
    if arguments.ready {
        return Ok(server::ask_ready(config.admin_listen)?);
    }
    telemetry::log(&config.log, config.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run(&config))
}

async fn run(config: &Config) -> anyhow::Result<()> {
    let server = Server::bind(config).await?;
    tracing::info!(address = %server.address()?, probes = %server.probe_address()?, "listening");
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let serving = server.serve(stop.clone());
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => return Ok(served?),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
    Ok(serving.await?)
}
