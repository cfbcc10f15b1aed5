//! What is secret lies nowhere in clear: not on etcd's disks, not on control's and the nodes' own, in no log, no backup and no
//! answer to an operator; and a new master key changes nothing for anybody.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot look fails, at once and loudly"
)]

use std::{fs, path::Path};

use harness::{INGRESS, Network, Tenant, network::NODES, wait};
use serde_json::{Value, json};

/// Stands in clear everywhere that is searched, so that a search which finds nothing else proves something.
const SHOWN: &str = "a-model-that-everybody-may-see";

const HEADER: &str = "x-organisation";
const ORGANISATION: &str = "organisation-5d21c8-that-nobody-may-see";

const ETCD: [&str; 3] = ["etcd/etcd-1", "etcd/etcd-2", "etcd/etcd-3"];

fn holds(bytes: &[u8], text: &str) -> bool {
    memchr::memmem::find(bytes, text.as_bytes()).is_some()
}

/// All that a file, or a folder with what is below it, holds.
fn read(place: &Path, all: &mut Vec<u8>) {
    if place.is_dir() {
        for entry in fs::read_dir(place).unwrap() {
            read(&entry.unwrap().path(), all);
        }
    } else if let Ok(bytes) = fs::read(place) {
        // What is gone since it was listed was a file for a moment only.
        all.extend(bytes);
    }
}

/// Every place where something is kept or told, with what is there.
fn places(network: &Network) -> Vec<(String, Vec<u8>)> {
    let mut names: Vec<String> = ["control", "log"].map(str::to_owned).into();
    names.extend(ETCD.map(str::to_owned));
    names.extend(NODES.map(|node| format!("node/{node}")));
    let mut places = Vec::new();
    for name in names {
        let mut bytes = Vec::new();
        read(&network.dir().join(&name), &mut bytes);
        places.push((name, bytes));
    }
    let backup = network.dir().join("secrets.backup");
    // Twice: it writes over no file.
    let _absent = fs::remove_file(&backup);
    network.ctl(&["backup", backup.to_str().unwrap()]).unwrap();
    places.push(("a backup".to_owned(), fs::read(&backup).unwrap()));
    let mut told = Vec::new();
    for asked in [
        &["status"][..],
        &["model", "list"],
        &["credential", "list"],
        &["provider", "list"],
        &["audit"],
        &["rollout", "history"],
        &["rollout", "diff", "0", "2"],
        &["secrets", "status"],
        &["usage"],
        &["explain", SHOWN],
    ] {
        told.extend(network.ctl(asked).unwrap().to_string().into_bytes());
        told.extend(network.ctl_text(asked, "").unwrap().into_bytes());
    }
    places.push(("answers to an operator".to_owned(), told));
    places
}

fn nothing_secret_is_in_clear(tenant: &Tenant<'_>) {
    for (place, bytes) in places(tenant.network) {
        assert!(holds(&bytes, SHOWN), "the search finds nothing in {place}");
        for secret in [&tenant.secrets[0], &tenant.key.text, ORGANISATION] {
            assert!(!holds(&bytes, secret), "{secret} is in {place}");
        }
    }
}

/// A request is answered, what came to the provider had the header, and the exchange is on control's disk.
fn serves_with_its_header(tenant: &Tenant<'_>) {
    let client = tenant.client(INGRESS[0]);
    let ask = tenant.chat(&json!({}));
    wait::wait_for("the header comes to the provider", || {
        client.post("/v1/chat/completions", &ask).expect(200);
        holds(tenant.sample.stats().to_string().as_bytes(), ORGANISATION)
    });
    wait::wait_for("the exchange is in the ledger", || {
        let asked = ["usage", "--account", &tenant.name];
        tenant.network.ctl(&asked).unwrap()["exchanges"].as_u64() > Some(0)
    });
}

fn credential(tenant: &Tenant<'_>) -> String {
    format!(
        "[[credential]]\nname = \"{name}-1\"\nprovider = \"{name}\"\nheaders = {{ {HEADER} = \"{ORGANISATION}\" }}\n",
        name = tenant.name
    )
}

/// The keys of `secrets status`: whether each is the current one, and how many secrets need it.
fn keys(network: &Network) -> Vec<(bool, u64)> {
    let status = network.ctl(&["secrets", "status"]).unwrap();
    assert_eq!(status["clear"], 0, "{status}");
    let rows = status["keys"].as_array().unwrap().iter();
    let row = |row: &Value| {
        assert_eq!((&row["held"], &row["direct"]), (&json!(true), &json!(0)));
        (row["current"] == true, row["secrets"].as_u64().unwrap())
    };
    rows.map(row).collect()
}

#[test]
fn secrets_and_headers_lie_nowhere_in_clear_before_and_after_a_new_master_key() {
    let network = Network::own_with(&["--etcd"]);
    let tenant = network.tenant(SHOWN);
    let plan = credential(&tenant);
    let said = network.apply(&plan);
    assert!(
        said.contains(HEADER) && !said.contains(ORGANISATION),
        "{said}"
    );
    let again = network.apply(&plan);
    assert!(again.to_lowercase().contains("no changes"), "{again}");
    let listed = network.ctl(&["credential", "list"]).unwrap();
    let mut rows = listed["credentials"].as_array().unwrap().iter();
    let row = rows.find(|row| row["provider"] == SHOWN).unwrap();
    assert_eq!(row["headers"], json!({ HEADER: null }));
    serves_with_its_header(&tenant);
    nothing_secret_is_in_clear(&tenant);

    // Two credentials with the network's own, one of them with headers; the pepper, the CA and the intermediate.
    assert_eq!(keys(&network), [(true, 6)]);
    let file = network.dir().join("control/master.key");
    let old: String = fs::read(file)
        .unwrap()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    network.kill("control");
    let key = "5c".repeat(32);
    let new = ("VECTOR_CONTROL_MASTER_KEY", key.as_str());
    let others = ("VECTOR_CONTROL_OTHER_MASTER_KEYS", old.as_str());
    let both = network.revive_control("control-with-both", &[new, others]);
    assert_eq!(keys(&network), [(true, 0), (false, 6)]);
    let done = network.ctl(&["secrets", "rotate"]).unwrap();
    assert_eq!(
        (&done["rewrapped"], &done["secrets"]),
        (&json!(6), &json!(6))
    );
    let again = network.ctl_text(&["secrets", "rotate"], "").unwrap();
    assert!(again.starts_with("0 of 6 secrets"), "{again}");
    assert_eq!(keys(&network), [(true, 6), (false, 0)]);
    let table = network.ctl_text(&["secrets", "status"], "").unwrap();
    assert!(table.contains("not needed any more"), "{table}");

    // The old one may go, and what the providers are sent stays.
    drop(both);
    let _alone = network.revive_control("control-with-the-new", &[new]);
    assert_eq!(keys(&network), [(true, 6)]);
    assert!(network.apply(&plan).to_lowercase().contains("no changes"));
    // A value that is left empty is the one that is stored.
    let kept = plan.replace(ORGANISATION, "") + "weight = 2\n";
    let said = network.apply(&kept);
    assert!(
        said.contains("weight: 1 -> 2") && !said.contains("headers"),
        "{said}"
    );
    serves_with_its_header(&tenant);
    nothing_secret_is_in_clear(&tenant);
}
