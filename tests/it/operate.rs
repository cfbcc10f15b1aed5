//! What an operator has at hand in a running network: the doctor, a glance, a backup, and the distance of every edge.

use harness::{INGRESS, Network, http::Request, wait};
use serde_json::Value;

fn rows<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

#[test]
fn the_doctor_finds_nothing_wrong_with_the_nodes() {
    let network = Network::shared();
    // Other tests break providers, and the doctor then says so and ends with 1; its report is the same.
    let report = network.ctl(&["doctor"]).or_else(|refused| {
        assert_eq!(refused.code, Some(1), "{refused:?}");
        serde_json::from_str(&refused.text)
    });
    let report: Value = report.unwrap();
    let of_nodes = [
        "nodes",
        "paths",
        "clock",
        "certificate",
        "version",
        "snapshot",
    ];
    let wrong: Vec<_> = rows(&report, "findings")
        .iter()
        .filter(|found| of_nodes.iter().any(|check| found["check"] == *check))
        // Others start nodes and let them go, which is a warning.
        .filter(|found| found["level"] == "fault")
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn status_shows_paths_and_what_nodes_say_of_their_machine() {
    let status = Network::shared().ctl(&["status"]).unwrap();
    assert!(status["paths"]["up"].as_u64() > Some(0), "{status:#}");
    for node in rows(&status, "nodes")
        .iter()
        .filter(|node| node["connected"] == true)
    {
        assert!(node["disk_bytes"].as_u64() > Some(0), "{node:#}");
        assert!(node["clock_skew_ms"].is_i64(), "{node:#}");
        assert!(
            node["certificate_until_unix_ms"].as_u64() > Some(0),
            "{node:#}"
        );
    }
}

#[test]
fn every_edge_is_told_and_measured() {
    let network = Network::shared();
    let own = network.address(INGRESS[0]);
    let url = |ingress: &str| format!("http://{}", network.address(ingress));
    let told = wait::wait_some("the other edge is measured", || {
        let page = Request::new(own, "GET", "/.well-known/vector-edges").send();
        let told: Value = serde_json::from_str(&page.expect(200).text()).ok()?;
        let other = url(INGRESS[1]);
        let row = rows(&told, "edges")
            .iter()
            .find(|row| row["url"] == *other)?;
        (row["distance_ms"].is_f64() && row["load"].is_u64()).then(|| told.clone())
    });
    assert_eq!(told["region"], "eu");
    assert_eq!(
        rows(&told, "edges")[0]["url"],
        *url(INGRESS[0]),
        "the nearest is this one"
    );

    for from in [None, Some(url(INGRESS[1]))] {
        let mut asked = vec!["edges", "probe", "--times", "2"];
        asked.extend(from.iter().flat_map(|url| ["--from", url]));
        let probed = network.ctl(&asked).unwrap();
        for ingress in INGRESS {
            let url = url(ingress);
            let found = rows(&probed, "edges").iter().find(|row| row["url"] == *url);
            assert!(
                found.is_some_and(|row| row["distance_ms"].is_f64()),
                "{probed:#}"
            );
        }
        assert!(probed["nearest"].is_string(), "{probed:#}");
    }
}

#[test]
fn a_backup_is_a_file_that_is_whole() {
    let network = Network::shared();
    let file = network.dir().join("it.backup");
    let path = file.to_str().unwrap();
    let made = network.ctl(&["backup", path]).unwrap();
    assert!(made["entries"].as_u64() > Some(5), "{made:#}");
    let refused = network.ctl(&["restore", path]).unwrap_err();
    assert_eq!(refused.code, Some(1), "a network is there: {refused:?}");
    let mut bytes = std::fs::read(&file).unwrap();
    let secret = network.env("OPENAI_API_KEY").as_bytes();
    assert!(!bytes.windows(secret.len()).any(|part| part == secret));
    let last = bytes.len() - 1;
    bytes.truncate(last);
    std::fs::write(&file, bytes).unwrap();
    let refused = network.ctl(&["restore", "--force", path]).unwrap_err();
    assert_eq!(
        refused.code,
        Some(2),
        "a cut one is not even sent: {refused:?}"
    );
}
