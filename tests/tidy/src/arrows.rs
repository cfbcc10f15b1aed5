//! Arrows go one way: which room may use which.
//!
//! [`ARROWS`] is the whole truth, one row for each room. A new arrow is a changed line in it,
//! seen in review. Arrows between crates are told by the manifests ([`CRATES`]).

use crate::{
    tree::{File, Tree},
    words::{Use, uses},
};

/// Which of our crates a crate may name in its manifest.
const CRATES: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("proto/fuzz", &["vector-proto"]),
    // Its tests put emulated lines between nodes.
    ("edge", &["vector-proto", "vector-wan"]),
    ("control", &["vector-proto"]),
    (
        "tests",
        &[
            "vector-proto",
            "vector-edge",
            "vector-control",
            "vector-wan",
        ],
    ),
    ("tests/emulator", &[]),
    ("tests/tidy", &[]),
];

/// A row: the crate's folder, the room, and the rooms of the same crate it may use.
type Row = (&'static str, &'static str, &'static [&'static str]);

/// What a role, and whatever else sits on the network's floor, stands on.
const FLOOR: &[&str] = &[
    "tunnel",
    "control_plane",
    "identity",
    "limit",
    "telemetry",
    "config",
    "lookup",
];

/// What control's doors open on.
const DOOR: &[&str] = &[
    "routing",
    "health",
    "ledger",
    "registry",
    "identity",
    "coordinate",
    "vault",
    "telemetry",
    "config",
];

/// What control's server puts together.
const SERVER: &[&str] = &[
    "api",
    "console",
    "dns",
    "routing",
    "health",
    "ledger",
    "registry",
    "identity",
    "coordinate",
    "vault",
    "sqlite",
    "telemetry",
    "config",
];

/// Who may use whom. Rooms that are not built yet have their row already.
const ARROWS: &[Row] = &[
    // The words: no room knows what travels in it.
    ("proto", "id", &[]),
    ("proto", "amount", &[]),
    ("proto", "price", &["amount"]),
    ("proto", "refusal", &[]),
    ("proto", "reach", &[]),
    ("proto", "dialect", &["id", "refusal"]),
    ("proto", "tunnel", &["id", "refusal"]),
    ("proto", "control", &["id", "tunnel"]),
    // A node: `node` puts it together; a role never uses a role.
    ("edge", "main", &["node", "admin", "config", "telemetry"]),
    (
        "edge",
        "node",
        &[
            "ingress",
            "relay",
            "egress",
            "admin",
            "tunnel",
            "control_plane",
            "identity",
            "limit",
            "telemetry",
            "config",
        ],
    ),
    ("edge", "ingress", FLOOR),
    ("edge", "relay", FLOOR),
    ("edge", "egress", FLOOR),
    ("edge", "admin", &["telemetry", "config"]),
    (
        "edge",
        "tunnel",
        &["identity", "limit", "telemetry", "config", "lookup"],
    ),
    (
        "edge",
        "control_plane",
        &["identity", "limit", "telemetry", "config", "lookup"],
    ),
    ("edge", "identity", &["telemetry", "config"]),
    ("edge", "limit", &["telemetry", "config", "lookup"]),
    ("edge", "telemetry", &["config", "lookup"]),
    ("edge", "config", &[]),
    ("edge", "lookup", &[]),
    // Control: `server` puts it together; its doors know the rooms, no room knows a door.
    ("control", "main", &["server", "telemetry", "config"]),
    ("control", "server", SERVER),
    ("control", "api", DOOR),
    ("control", "console", DOOR),
    (
        "control",
        "routing",
        &["health", "registry", "coordinate", "telemetry", "config"],
    ),
    (
        "control",
        "dns",
        &["health", "registry", "coordinate", "telemetry", "config"],
    ),
    (
        "control",
        "ledger",
        &["registry", "coordinate", "sqlite", "telemetry", "config"],
    ),
    (
        "control",
        "health",
        &["registry", "coordinate", "telemetry", "config"],
    ),
    (
        "control",
        "registry",
        &["identity", "coordinate", "vault", "telemetry", "config"],
    ),
    (
        "control",
        "identity",
        &["coordinate", "vault", "telemetry", "config"],
    ),
    ("control", "coordinate", &["sqlite", "telemetry", "config"]),
    ("control", "vault", &[]),
    ("control", "sqlite", &[]),
    ("control", "telemetry", &["config"]),
    ("control", "config", &[]),
    // The operator's command speaks gRPC like anybody else; it only shares how to dial control.
    ("control", "vectorctl", &["dial"]),
    ("control", "dial", &[]),
];

/// Arrows in the source that no row allows.
pub fn faults(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for file in tree.files().filter(|file| file.is_rust()) {
        let Some(place) = Place::of(file) else {
            continue;
        };
        // A room's tests may bring a second room to the table; what ships may not.
        if place.room == "lib" || file.is_tests() {
            continue;
        }
        let Some(allowed) = row(place.home, place.room) else {
            faults.push(format!(
                "{}: room `{}` has no row in ARROWS",
                file.path, place.room
            ));
            continue;
        };
        faults.extend(file_faults(file, &place, allowed));
    }
    faults.dedup();
    faults
}

fn file_faults(file: &File, place: &Place<'_>, allowed: &[&str]) -> Vec<String> {
    let own_crate = format!("vector_{}", place.home);
    let used = uses(&file.text, &[&own_crate])
        .into_iter()
        .filter_map(|used| place.room_used(&used, &own_crate));
    let mut faults = Vec::new();
    for room in used {
        if room == place.room || allowed.contains(&room) {
            continue;
        }
        if row(place.home, room).is_some() {
            faults.push(format!(
                "{}: `{}` may not use `{room}`",
                file.path, place.room
            ));
        } else {
            faults.push(format!(
                "{}: `{room}` is no room; the root of a crate offers rooms only",
                file.path
            ));
        }
    }
    faults
}

fn row(home: &str, room: &str) -> Option<&'static [&'static str]> {
    let found = ARROWS.iter().find(|row| row.0 == home && row.1 == room);
    found.map(|row| row.2)
}

/// Where a source file stands.
struct Place<'a> {
    /// The crate's folder.
    home: &'a str,
    /// The room it belongs to; the name of the binary for a binary's own files.
    room: &'a str,
    /// How many `super` lead from the file's module to the root of its crate.
    depth: usize,
    /// Whether its `crate` is a binary of its own, not the library.
    binary: bool,
}

impl<'a> Place<'a> {
    fn of(file: &'a File) -> Option<Self> {
        let (home, inside) = file.path.split_once("/src/")?;
        if !["proto", "edge", "control"].contains(&home) {
            return None;
        }
        let module = inside.strip_suffix(".rs")?;
        let room = module.split('/').next()?;
        Some(Self {
            home,
            room,
            depth: module.split('/').count(),
            binary: module == "main" || module.starts_with("vectorctl"),
        })
    }

    /// The room that a path leads to, if it leads to one.
    fn room_used<'u>(&self, used: &Use<'u>, own_crate: &str) -> Option<&'u str> {
        let from_root = match used.root {
            root if root == own_crate => true,
            "super" => !self.binary && used.ups == self.depth + used.inline_modules,
            _ => !self.binary,
        };
        (from_root && used.first != "self").then_some(used.first)
    }
}

/// Manifests that name a crate of ours they may not, or that leave the lint wall.
pub fn manifest_faults(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for file in tree.files() {
        let Some(home) = file.path.strip_suffix("/Cargo.toml") else {
            continue;
        };
        let Some((_, allowed)) = CRATES.iter().find(|row| row.0 == home) else {
            faults.push(format!("{}: this crate has no row in CRATES", file.path));
            continue;
        };
        let named = |line: &&str| line.starts_with("vector-") && line.contains(['=', '.']);
        for line in file.text.lines().filter(named) {
            let ours = line.split([' ', '.', '=']).next().unwrap_or(line);
            if !allowed.contains(&ours) {
                faults.push(format!("{}: `{home}` may not use `{ours}`", file.path));
            }
        }
        // The fuzz targets are a workspace of their own, since their linker flags are.
        if home != "proto/fuzz" && !file.text.contains("[lints]\nworkspace = true") {
            faults.push(format!(
                "{}: [lints] workspace = true is missing",
                file.path
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::{ARROWS, faults, manifest_faults};
    use crate::tree::Tree;

    fn check(path: &str, source: &str, wanted: &[&str]) {
        assert_eq!(faults(&Tree::of(&[(path, source)])), wanted);
    }

    #[test]
    fn a_role_never_uses_a_role() {
        check(
            "edge/src/egress/meter.rs",
            "use crate::ingress::Ask;",
            &["edge/src/egress/meter.rs: `egress` may not use `ingress`"],
        );
        check(
            "edge/src/relay.rs",
            "use super::egress;",
            &["edge/src/relay.rs: `relay` may not use `egress`"],
        );
        check(
            "edge/src/relay/forward.rs",
            "mod tests { fn f() { super::super::super::egress::go() } }",
            &["edge/src/relay/forward.rs: `relay` may not use `egress`"],
        );
    }

    #[test]
    fn allowed_arrows_pass() {
        check(
            "edge/src/egress/meter.rs",
            "use crate::{tunnel::Pool, egress::task};",
            &[],
        );
        check(
            "edge/src/egress/meter.rs",
            "use super::{task, provider};",
            &[],
        );
        check(
            "edge/src/main.rs",
            "use vector_edge::{config, node}; mod x; use crate::x;",
            &[],
        );
        check("control/src/vectorctl/main.rs", "use crate::table;", &[]);
        check("tests/it/main.rs", "use crate::anything;", &[]);
    }

    #[test]
    fn tests_may_bring_another_room() {
        check("edge/src/tunnel/tests.rs", "use crate::relay;", &[]);
        check(
            "edge/src/tunnel/test.rs",
            "use crate::relay;",
            &["edge/src/tunnel/test.rs: `tunnel` may not use `relay`"],
        );
    }

    #[test]
    fn doors_and_binaries_are_held_too() {
        check(
            "control/src/registry/key.rs",
            "use crate::api;",
            &["control/src/registry/key.rs: `registry` may not use `api`"],
        );
        check(
            "control/src/vectorctl/main.rs",
            "use vector_control::registry;",
            &["control/src/vectorctl/main.rs: `vectorctl` may not use `registry`"],
        );
        check(
            "edge/src/attic.rs",
            "",
            &["edge/src/attic.rs: room `attic` has no row in ARROWS"],
        );
        check(
            "edge/src/node.rs",
            "use crate::Everything;",
            &["edge/src/node.rs: `Everything` is no room; the root of a crate offers rooms only"],
        );
    }

    #[test]
    fn the_table_has_no_circle() {
        for &(home, room, allowed) in ARROWS {
            let mut seen = vec![room];
            let mut next = allowed.to_vec();
            while let Some(step) = next.pop() {
                assert_ne!(step, room, "{home}: `{room}` leads back to itself");
                if seen.contains(&step) {
                    continue;
                }
                seen.push(step);
                let row = ARROWS.iter().find(|row| row.0 == home && row.1 == step);
                next.extend(
                    row.unwrap_or_else(|| panic!("{home}: `{step}` has no row"))
                        .2,
                );
            }
        }
    }

    #[test]
    fn manifests_keep_the_crates_apart() {
        let tree = Tree::of(&[
            (
                "edge/Cargo.toml",
                "vector-control = { path = \"../control\" }\n[lints]\nworkspace = true",
            ),
            (
                "proto/Cargo.toml",
                "[dependencies]\nbytes = { workspace = true }",
            ),
            ("attic/Cargo.toml", ""),
        ]);
        assert_eq!(
            manifest_faults(&tree),
            [
                "edge/Cargo.toml: `edge` may not use `vector-control`",
                "proto/Cargo.toml: [lints] workspace = true is missing",
                "attic/Cargo.toml: this crate has no row in CRATES",
            ]
        );
    }
}
