//! What can be typed about what signs certificates.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// What signs certificates, and until when; how far a new root has come.
    Status,
    /// The roots that are trusted, as PEM; the one that stays is the last.
    Roots,
    /// Sign with a new intermediate from now on. Certificates under the one before stay good until they end.
    RotateIntermediate,
    /// Bring a new root to the place of the one that there is: begin, switch, finish.
    #[command(subcommand)]
    RotateRoot(RotateRoot),
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum RotateRoot {
    /// Make a new root, and trust it beside the old one, which goes on signing.
    Begin,
    /// Let the new root sign. Refused while a connected node does not trust it yet; --force leaves such a node out.
    Switch,
    /// Trust the old root no more. Refused while a node or an operator has a certificate from it only; --force leaves
    /// them out.
    Finish,
    /// Give the new root up, before the switch. What was given out since the beginning is worth nothing then.
    Abort,
}
