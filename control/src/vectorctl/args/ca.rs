//! What can be typed about what signs certificates.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// What signs certificates, and until when.
    Status,
    /// Sign with a new intermediate from now on. Certificates under the one before stay good until they end.
    RotateIntermediate,
}
