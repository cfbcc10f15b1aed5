//! A certificate that signs itself, for the names of a lab's hosts.

use std::path::PathBuf;

use clap::Args;

/// What to make.
#[derive(Args, Debug)]
pub(crate) struct Ask {
    /// Names and addresses it is for.
    #[arg(required = true)]
    names: Vec<String>,
    /// Where `cert.pem` and `key.pem` go.
    #[arg(long)]
    dir: PathBuf,
}

impl Ask {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let made = rcgen::generate_simple_self_signed(self.names)?;
        std::fs::write(self.dir.join("cert.pem"), made.cert.pem())?;
        std::fs::write(self.dir.join("key.pem"), made.signing_key.serialize_pem())?;
        Ok(())
    }
}
