//! `vector-edge`: one node of the network.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use vector_edge::{admin, config::Config, node, telemetry::Telemetry};

// Allocates and frees across threads all the time, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One node of the network: takes clients, passes exchanges on, or calls providers.
#[derive(Debug, Parser)]
#[command(name = "vector-edge", version)]
struct Arguments {
    /// Settings, in TOML. Every key can also be set by VECTOR_<SECTION>_<KEY>.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only says whether the settings are good.
    #[arg(long)]
    check: bool,
    /// Only asks the node that runs with these settings whether it is ready: 0 if it is.
    #[arg(long, conflicts_with = "check")]
    ready: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            // With nobody to read it there is nothing more to be done.
            let _ = writeln!(std::io::stderr(), "vector-edge: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config =
        Config::load(&arguments.config).with_context(|| arguments.config.display().to_string())?;
    if arguments.check {
        return Ok(());
    }
    if arguments.ready {
        return Ok(admin::ask_ready(config.admin.listen)?);
    }
    // Fails only when it was done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime
        .worker_threads(config.node.workers)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (telemetry, flush) = Telemetry::start(&config.telemetry)?;
        let result = node::run(config, telemetry).await;
        if let Err(error) = &result {
            tracing::error!(%error, "node failed");
        }
        drop(flush);
        Ok(result?)
    })
}
