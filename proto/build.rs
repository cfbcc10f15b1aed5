//! Compiles our .proto files with protox, so that nobody needs `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 3] = [
    "tunnel/v1/tunnel.proto",
    "control/v1/node.proto",
    "control/v1/admin.proto",
];

/// Messages with a secret in them: `src/control/redacted.rs` says how they are printed.
const SECRETIVE: [&str; 6] = [
    "Credential",
    "CredentialSpec",
    "CreatedKey",
    "InviteNodeResponse",
    "AddedOperator",
    "EnrollRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .skip_debug(SECRETIVE.map(|name| format!(".vector.control.v1.{name}")))
        .codec_path("crate::control::codec::Lean")
        .compile_fds(descriptors)?;
    Ok(())
}
