//! What can be typed about where requests go.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The model a client would name.
    #[arg(default_value = "")]
    pub(crate) model: String,
    /// Instead of a model: an operation that names none, such as files.create.
    #[arg(long, default_value = "")]
    pub(crate) operation: String,
    /// As seen from this region; else from one that has an ingress.
    #[arg(long, default_value = "")]
    pub(crate) region: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Routes {
    /// Where a request for a model would go now, and why.
    Explain(Explain),
}
