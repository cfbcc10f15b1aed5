//! Dashboards and alert rules name series that the processes of a running network really show.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use harness::{Network, http::Request, network::NODES, wait};

/// How the names of our series and of their labels begin.
const BEGINNINGS: [&str; 3] = ["vector_", "gen_ai_", "process_"];

/// Shown only where a provider tells balances, which the sample provider does not.
const NOT_HERE: &[&str] = &["vector_credential_balance"];

/// Every series that some process has, and every label.
fn shown(network: &Network) -> BTreeSet<String> {
    let mut shown = BTreeSet::new();
    for name in NODES.into_iter().chain(["control"]) {
        let page = Request::new(network.admin(name), "GET", "/metrics").send();
        for line in page.expect(200).text().lines() {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                    let ends: &[&str] = match kind {
                        "counter" => &["_total"],
                        "histogram" => &["_bucket", "_sum", "_count"],
                        _ => &[""],
                    };
                    shown.extend(ends.iter().map(|end| format!("{name}{end}")));
                }
                _ => shown.extend(labels(line)),
            }
        }
    }
    shown
}

/// Names of the labels in one line of a sample.
fn labels(line: &str) -> impl Iterator<Item = String> {
    let inside = line.split_once('{').map_or("", |(_, rest)| rest);
    inside
        .split('"')
        .step_by(2)
        .filter_map(|part| part.trim_start_matches([',', '}']).strip_suffix('='))
        .map(str::to_owned)
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn every_series_that_is_watched_exists() {
    let tenant = Network::shared().tenant("watched");
    for ingress in harness::INGRESS {
        let chat = tenant.chat(&serde_json::json!({}));
        let client = tenant.client(ingress);
        client.post("/v1/chat/completions", &chat).expect(200);
    }
    let mut watchers = Vec::new();
    let grafana = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana");
    files(&grafana, &mut watchers);
    let mut watched = BTreeSet::new();
    for path in watchers {
        let text = fs::read_to_string(&path).unwrap();
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        watched.extend(
            words
                .filter(|word| BEGINNINGS.iter().any(|start| word.starts_with(start)))
                .map(str::to_owned),
        );
    }
    assert!(watched.len() > 30, "{watched:?}");
    for name in NOT_HERE {
        assert!(watched.remove(*name), "nobody watches {name}");
    }
    // Links are read once a second.
    let deadline = Instant::now() + wait::PATIENCE;
    wait::wait_for("every series that is watched is shown", || {
        let shown = shown(tenant.network);
        let missing: Vec<_> = watched.difference(&shown).collect();
        // Told by name once there is no more time.
        let late = Instant::now() + Duration::from_secs(1) > deadline;
        assert!(missing.is_empty() || !late, "nobody shows {missing:?}");
        missing.is_empty()
    });
}
