//! Where the programs are, and which ports are free.

use std::{
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, Ordering},
};

/// Ports of one network: `deploy/local` takes the first 26, extra nodes the last.
pub(crate) const PORTS: u16 = 40;

/// Where the search begins, below what systems give away by themselves.
const FIRST: u16 = 20_000;
const LAST: u16 = 29_960;

static NEXT: AtomicU16 = AtomicU16::new(FIRST);

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

/// The first of [`PORTS`] ports in a row that nobody holds. Each is given once a process.
pub(crate) fn port_base() -> u16 {
    loop {
        let base = NEXT.fetch_add(PORTS, Ordering::Relaxed);
        assert!(base <= LAST, "no {PORTS} free ports in a row");
        if (base..base + PORTS).all(is_free) {
            return base;
        }
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
}
