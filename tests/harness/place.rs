//! Where the programs are, and which ports are free.

use std::{
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// Ports of one network: `deploy/local` takes the first 26, extra nodes the last.
pub(crate) const PORTS: u16 = 40;

/// Where networks may be, below what systems give away by themselves.
const FIRST: u16 = 20_000;
const NETWORKS: u16 = 250;

static TAKEN: AtomicU32 = AtomicU32::new(0);

/// The folder of the release binaries: the one that the running test was built into.
pub(crate) fn bin() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let bin = test.ancestors().nth(2).unwrap().to_owned();
    for program in [
        "vector-edge",
        "vector-control",
        "vectorctl",
        "sample-provider",
    ] {
        assert!(
            bin.join(program).is_file(),
            "{program} is not in {}: build it first, with: cargo build --release --workspace --bins",
            bin.display()
        );
    }
    bin
}

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// [`PORTS`] ports in a row that nobody holds. Each is given once a process, and another process begins elsewhere: what is
/// free now may be taken by it a moment later.
pub(crate) fn port_base() -> u16 {
    let from = std::process::id().wrapping_mul(97);
    for _ in 0..NETWORKS {
        let place = from.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % u32::from(NETWORKS);
        let base = FIRST + u16::try_from(place).unwrap() * PORTS;
        if (base..base + PORTS).all(is_free) {
            return base;
        }
    }
    panic!("no {PORTS} free ports in a row");
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
}
