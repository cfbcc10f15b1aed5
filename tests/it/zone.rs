//! The zone that control serves, asked with `dig`: clients are sent to the ingress of their region while it can be used.

use std::{fs, net::SocketAddr, process::Command};

use harness::{INGRESS, Network, wait};

const EU: &str = "203.0.113.1";
const US: &str = "198.51.100.1";
const US_V6: &str = "2001:db8::1";

const MAP: &str = "default = [\"us\"]\n[region.eu]\nsubnets = [\"185.0.0.0/8\"]\n";

/// What `dig` prints of a query.
fn dig(zone: SocketAddr, arguments: &[&str]) -> String {
    let asked = Command::new("dig")
        .arg(format!("@{}", zone.ip()))
        .args(["-p", &zone.port().to_string(), "+norecurse", "+tries=1"])
        .args(arguments)
        .output();
    let answered = asked.as_ref().is_ok_and(|asked| asked.status.success());
    assert!(answered, "dig {arguments:?}: {asked:?}");
    asked
        .map(|asked| String::from_utf8_lossy(&asked.stdout).trim().to_owned())
        .unwrap_or_default()
}

/// Where a client of this subnet is sent.
fn sent(zone: SocketAddr, subnet: &str, more: &[&str]) -> String {
    let subnet = format!("+subnet={subnet}");
    dig(
        zone,
        &[&["edge.example.com", "+short", &subnet], more].concat(),
    )
}

#[test]
fn clients_are_sent_to_the_nearest_ingress_that_can_be_used() {
    let network = Network::own();
    let mut edges = Vec::new();
    for (ingress, addresses) in INGRESS.iter().zip([&[EU][..], &[US, US_V6]]) {
        let config = network.dir().join(format!("config/{ingress}.toml"));
        let text = fs::read_to_string(&config).unwrap();
        let told = format!("[ingress]\npublic_addresses = {addresses:?}\n");
        fs::write(&config, text.replace("[ingress]\n", &told)).unwrap();
        let mut edge = network.revive(ingress);
        edge.ready();
        edges.push(edge);
    }
    let map = network.dir().join("regions.toml");
    fs::write(&map, MAP).unwrap();
    let zone = network.free_address();
    network.kill("control");
    let control = network.revive_control(
        "control-with-zone",
        &[
            ("VECTOR_DNS_LISTEN", &zone.to_string()),
            ("VECTOR_DNS_ZONE", "edge.example.com"),
            ("VECTOR_DNS_NS", "ns1.edge.example.com 127.0.0.1"),
            ("VECTOR_DNS_REGIONS_FILE", map.to_str().unwrap()),
        ],
    );

    for over in ["+notcp", "+tcp"] {
        assert_eq!(sent(zone, "185.1.2.0/24", &[over]), EU);
        assert_eq!(sent(zone, "2600:1::/48", &[over]), US, "by default");
        assert_eq!(sent(zone, "2600:1::/48", &["AAAA", over]), US_V6);
        assert_eq!(
            sent(zone, "185.1.2.0/24", &["AAAA", over]),
            "",
            "no way around"
        );
    }
    let whole = dig(zone, &["edge.example.com", "+subnet=185.1.2.0/24"]);
    for part in [
        "status: NOERROR",
        "flags: qr aa;",
        "CLIENT-SUBNET: 185.1.2.0/24/8",
    ] {
        assert!(whole.contains(part), "{whole}");
    }
    let nobody = dig(zone, &["nobody.edge.example.com"]);
    assert!(
        nobody.contains("status: NXDOMAIN") && nobody.contains("SOA"),
        "{nobody}"
    );
    assert!(dig(zone, &["example.org"]).contains("status: REFUSED"));
    assert_eq!(dig(zone, &["eu.edge.example.com", "+short"]), EU);

    network
        .ctl_text(&["node", "drain", INGRESS[0]], "")
        .unwrap();
    let sent_to = |address: &str| sent(zone, "185.1.2.0/24", &[]) == address;
    wait::wait_for("a draining ingress is left out", || sent_to(US));
    network
        .ctl_text(&["node", "undrain", INGRESS[0]], "")
        .unwrap();
    wait::wait_for("it is back", || sent_to(EU));

    edges.remove(0);
    wait::wait_for("a dead ingress is left out", || sent_to(US));
    edges.clear();
    // Nobody can be used: who was there is better than nobody.
    wait::wait_for("all are answered", || sent_to(EU));
    let queries = network.counted(network.admin("control"), "vector_control_dns_queries_total");
    assert!(queries > 10.0, "{queries}");
    drop(control);
}
