//! Every node's certificate ends while control is away: they go on believing each other, and renew by themselves once it is
//! back.
#![expect(
    clippy::unwrap_used,
    reason = "what this test's own steps use may fail it"
)]

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use harness::{
    Answer, INGRESS, Network,
    network::{Extra, NODES},
    wait::wait_for,
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use vector_proto::control::BACKDATE_S;

/// Time for nodes to start with a certificate that is still good.
const LIFE: Duration = Duration::from_secs(4);

/// Puts a certificate of this root that ends so soon in the place of the one that a node has. Control itself gives none
/// for less than a day.
fn shorten(node: &Path, (name, role): (&str, &str), root: &Issuer<'_, KeyPair>, now: Duration) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![
        SanType::URI(
            format!("spiffe://vector.local/node/{role}/{name}")
                .try_into()
                .unwrap(),
        ),
        SanType::DnsName(format!("{name}.node.vector.local").try_into().unwrap()),
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(Duration::from_secs(BACKDATE_S));
    params.not_after = epoch + now + LIFE;
    let key = KeyPair::from_pem(&fs::read_to_string(node.join("identity.key")).unwrap()).unwrap();
    let leaf = params.signed_by(&key, root).unwrap();
    fs::write(node.join("identity.pem"), leaf.pem()).unwrap();
}

/// All nodes' certificates end so soon.
fn shorten_all(network: &Network, from: Duration) {
    let ca = network.dir().join("control/ca");
    let read = |name: &str| fs::read_to_string(ca.join(name)).unwrap();
    let key = KeyPair::from_pem(&read("root.key")).unwrap();
    let root = Issuer::from_ca_cert_pem(&read("root.pem"), key).unwrap();
    for name in NODES {
        let (role, _) = name.split_once('-').unwrap();
        let node = network.dir().join("node").join(name);
        shorten(&node, (name, role), &root, from);
    }
}

/// Starts an ingress and an egress anew, whose links are then made anew, and waits until answers come through both ingress
/// nodes again.
fn restart_some(nodes: &mut [Extra], answers: impl Fn() -> [Answer; 2]) {
    for node in nodes {
        node.restart("KILL");
        node.ready();
    }
    wait_for("nodes that started anew serve", || {
        answers().iter().all(|answer| answer.status == 200)
    });
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

#[test]
fn nodes_whose_certificates_ended_without_control_serve_on_and_renew_when_it_is_back() {
    let network = Network::own();
    let tenant = network.tenant("ended");
    let chat = tenant.chat(&json!({}));
    let clients = INGRESS.map(|ingress| tenant.client(ingress));
    let answers = || {
        let client = clients.each_ref();
        client.map(|client| client.post("/v1/chat/completions", &chat))
    };
    let serve = || answers().map(|answer| answer.expect(200));
    serve();

    for name in ["control"].iter().chain(&NODES) {
        network.kill(name);
    }
    let from = now();
    shorten_all(&network, from);
    let mut nodes = NODES.map(|name| network.revive(name));
    for node in &mut nodes {
        node.ready();
    }
    wait_for("every certificate has ended", || {
        now() > from + LIFE + Duration::from_secs(1)
    });
    restart_some(&mut nodes[1..3], answers);
    serve();
    let renewed = |node: &Extra| node.log().contains("certificate renewed");
    assert!(!nodes.iter().any(renewed));

    let _control = network.revive_control("control-revived", &[]);
    wait_for("every node has renewed", || {
        serve();
        nodes.iter().all(renewed)
    });
    let tomorrow = u64::try_from((from + Duration::from_secs(23 * 3_600)).as_millis()).unwrap();
    wait_for("control hears all, with certificates for a day", || {
        let told = network.ctl(&["node", "list"]).unwrap();
        let told = told["nodes"].as_array().unwrap();
        let lasts = |until: &Value| until.as_u64() > Some(tomorrow);
        let is_well =
            |node: &Value| node["connected"] == true && lasts(&node["certificate_until_unix_ms"]);
        told.len() == NODES.len() && told.iter().all(is_well)
    });
    // What a node renewed is what it starts with.
    restart_some(&mut nodes[1..3], answers);
    for node in &nodes[1..3] {
        assert!(!node.log().contains("not renewed"), "{}", node.log());
    }
}
