//! Queries and answers in bytes, as they go over the wire.

use std::fmt::Write as _;

use domain::{base::iana::Rcode, rdata::AllRecordData};
use proptest::prelude::*;

use super::*;
use crate::{
    health::Usable,
    registry::{NodeSpec, Seen},
};

const EU: &str = "192.0.2.1";
const US: [&str; 4] = [
    "198.51.100.1",
    "198.51.100.2",
    "198.51.100.3",
    "198.51.100.4",
];

fn zone() -> Zone {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("regions.toml");
    let map = "default = [\"us\"]\n[region.eu]\nsubnets = [\"185.0.0.0/8\"]\n[region.us]\nsubnets = [\"2600::/12\"]\n[region.asia]";
    std::fs::write(&file, map).unwrap();
    Zone::new(&config::Dns {
        listen: Vec::new(),
        zone: "edge.example.com".to_owned(),
        ns: vec![
            (
                "ns1.a.edge.example.com".to_owned(),
                vec!["203.0.113.1".parse().unwrap()],
            ),
            ("ns.example.net".to_owned(), Vec::new()),
        ],
        hostmaster: "ops.example.com".to_owned(),
        ttl_s: 20,
        regions_file: Some(file),
        private_addresses: false,
    })
    .unwrap()
}

fn table() -> Table {
    let node = |id: String, region: &str, addresses: &[&str]| {
        let spec = NodeSpec {
            id,
            region: region.to_owned(),
            roles: vec!["ingress".to_owned()],
            ..NodeSpec::default()
        };
        let seen = Seen {
            public_addresses: addresses.iter().map(|&text| text.to_owned()).collect(),
            ..Seen::default()
        };
        (spec, Some(seen))
    };
    let mut nodes = vec![node("eu".to_owned(), "eu", &[EU])];
    for (at, address) in US.iter().enumerate() {
        nodes.push(node(format!("us-{at}"), "us", &[address, "2001:db8::5"]));
    }
    let usable = Usable {
        all: true,
        ..Usable::default()
    };
    Table::of(&nodes, &usable, false)
}

/// A query with what its OPT record says: size, version, subnet.
fn query(name: &str, kind: Rtype, edns: Option<(u16, u8, Option<ClientSubnet>)>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(7);
    builder.header_mut().set_rd(true);
    let mut question = builder.question();
    let name: Name<Vec<u8>> = name.parse().unwrap();
    question.push((name, kind)).unwrap();
    let mut additional = question.additional();
    if let Some((size, version, subnet)) = edns {
        let said = additional.opt(|opt| {
            opt.set_udp_payload_size(size);
            opt.set_version(version);
            match subnet {
                Some(subnet) => opt.push(&subnet),
                None => Ok(()),
            }
        });
        said.unwrap();
    }
    additional.finish()
}

fn subnet(text: &str, length: u8) -> Option<(u16, u8, Option<ClientSubnet>)> {
    Some((
        1232,
        0,
        Some(ClientSubnet::new(length, 0, text.parse().unwrap())),
    ))
}

struct Got {
    outcome: Outcome,
    message: Message<Vec<u8>>,
}

fn ask(query: &[u8], from: &str) -> Got {
    let asked = Asked {
        query,
        from: from.parse().unwrap(),
        tcp: false,
        turn: 0,
    };
    let (outcome, answer) = zone().answer(&table(), asked);
    Got {
        outcome,
        message: Message::from_octets(answer).unwrap(),
    }
}

impl Got {
    /// Every record but OPT, as `SECTION TYPE DATA`.
    fn rows(&self) -> Vec<String> {
        let mut rows = Vec::new();
        let (_, answers, authority, additional) = self.message.sections().unwrap();
        for (place, section) in [
            ("answer", answers),
            ("authority", authority),
            ("additional", additional),
        ] {
            for record in section.limit_to::<AllRecordData<_, _>>() {
                let record = record.unwrap();
                if record.rtype() != Rtype::OPT {
                    let mut row = String::new();
                    write!(row, "{place} {} {}", record.rtype(), record.data()).unwrap();
                    rows.push(row);
                }
            }
        }
        rows
    }

    fn code(&self) -> Rcode {
        self.message.header().rcode()
    }

    /// Lengths of the client's prefix and of the answer's scope.
    fn scope(&self) -> Option<(u8, u8)> {
        let subnet: ClientSubnet = self.message.opt()?.opt().first()?;
        Some((subnet.source_prefix_len(), subnet.scope_prefix_len()))
    }
}

#[test]
fn a_client_is_sent_to_its_region() {
    let got = ask(
        &query("Edge.example.COM", Rtype::A, subnet("185.1.2.0", 24)),
        "198.51.100.77",
    );
    assert_eq!(got.rows(), [format!("answer A {EU}")]);
    assert_eq!(got.scope(), Some((24, 8)));
    let header = got.message.header();
    assert!(header.qr() && header.aa() && header.rd() && !header.ra() && !header.tc());
    assert_eq!(header.id(), 7);
    assert_eq!(got.outcome, Outcome::Answered);

    let resolver = ask(&query("edge.example.com", Rtype::A, None), "185.9.9.9");
    assert_eq!(
        resolver.rows(),
        [format!("answer A {EU}")],
        "known by its resolver"
    );
    assert!(resolver.message.opt().is_none());

    let nobody = ask(
        &query("edge.example.com", Rtype::A, subnet("0.0.0.0", 0)),
        "185.9.9.9",
    );
    assert_eq!(
        (nobody.rows(), nobody.scope()),
        (vec![format!("answer A {EU}")], Some((0, 0)))
    );

    let elsewhere = ask(
        &query("edge.example.com", Rtype::A, subnet("8.8.8.0", 24)),
        "185.9.9.9",
    );
    let three: Vec<String> = US[..3]
        .iter()
        .map(|address| format!("answer A {address}"))
        .collect();
    assert_eq!(
        (elsewhere.rows(), elsewhere.scope()),
        (three, Some((24, 1)))
    );
}

#[test]
fn what_is_not_there_is_said_with_the_zones_authority() {
    let soa = "authority SOA ns1.a.edge.example.com. ops.example.com. 1 86400 3600 86400 20";
    let six = ask(
        &query("edge.example.com", Rtype::AAAA, subnet("185.1.2.0", 24)),
        "::1",
    );
    assert_eq!(
        (six.code(), six.rows(), six.scope()),
        (Rcode::NOERROR, vec![soa.to_owned()], Some((24, 8)))
    );
    for (name, kind, code) in [
        ("edge.example.com", Rtype::TXT, Rcode::NOERROR),
        ("a.edge.example.com", Rtype::A, Rcode::NOERROR),
        ("asia.edge.example.com", Rtype::A, Rcode::NOERROR),
        ("mars.edge.example.com", Rtype::A, Rcode::NXDOMAIN),
        ("x.eu.edge.example.com", Rtype::A, Rcode::NXDOMAIN),
    ] {
        let got = ask(&query(name, kind, None), "185.9.9.9");
        assert_eq!(
            (got.code(), got.rows()),
            (code, vec![soa.to_owned()]),
            "{name}"
        );
        assert!(got.message.header().aa());
    }
}

#[test]
fn a_region_and_the_zone_itself_can_be_asked_for() {
    let rows = |name, kind| ask(&query(name, kind, None), "8.8.8.8").rows();
    assert_eq!(
        rows("EU.edge.example.com", Rtype::A),
        [format!("answer A {EU}")]
    );
    assert_eq!(
        rows("us.edge.example.com", Rtype::AAAA),
        ["answer AAAA 2001:db8::5"]
    );
    assert_eq!(
        rows("ns1.a.edge.example.com", Rtype::A),
        ["answer A 203.0.113.1"]
    );
    assert_eq!(
        rows("edge.example.com", Rtype::NS),
        [
            "answer NS ns1.a.edge.example.com.",
            "answer NS ns.example.net.",
            "additional A 203.0.113.1"
        ]
    );
    assert!(rows("edge.example.com", Rtype::SOA)[0].starts_with("answer SOA ns1.a."));
    assert_eq!(
        rows("eu.edge.example.com", Rtype::ANY),
        [format!("answer A {EU}")]
    );
}

#[test]
fn what_is_not_ours_or_no_good_query_is_refused() {
    let refused = [
        ("example.com", Rtype::A),
        ("edge.example.com", Rtype::AXFR),
        ("edgeexample.com", Rtype::A),
    ];
    for (name, kind) in refused {
        let got = ask(&query(name, kind, subnet("185.1.2.0", 24)), "8.8.8.8");
        assert_eq!(
            (got.code(), got.rows().len()),
            (Rcode::REFUSED, 0),
            "{name} {kind}"
        );
        assert!(!got.message.header().aa());
    }
    let other = ask(
        &query("edge.example.com", Rtype::A, Some((1232, 1, None))),
        "8.8.8.8",
    );
    let opt = other.message.opt().unwrap();
    assert_eq!(opt.rcode(other.message.header()), OptRcode::BADVERS);

    let good = query("edge.example.com", Rtype::A, subnet("185.1.2.0", 24));
    let code = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bad = good.clone();
        change(&mut bad);
        ask(&bad, "8.8.8.8").code()
    };
    let scope_at = good.len() - 4;
    assert_eq!(code(&|_| {}), Rcode::NOERROR);
    assert_eq!(code(&|bad| bad[scope_at] = 8), Rcode::FORMERR, "a scope");
    assert_eq!(
        code(&|bad| bad[scope_at - 1] = 33),
        Rcode::FORMERR,
        "a prefix too long"
    );
    assert_eq!(
        code(&|bad| bad[scope_at - 2] = 3),
        Rcode::FORMERR,
        "a family that there is not"
    );
    assert_eq!(
        code(&|bad| bad.truncate(bad.len() - 2)),
        Rcode::FORMERR,
        "cut"
    );
    assert_eq!(
        code(&|bad| bad[5] = 2),
        Rcode::FORMERR,
        "two questions said"
    );
    assert_eq!(code(&|bad| bad[2] |= 0x28), Rcode::NOTIMP, "an update");
    assert_eq!(
        code(&|bad| bad[2] |= 0x02),
        Rcode::FORMERR,
        "a query that is cut"
    );
}

#[test]
fn an_answer_is_never_answered() {
    let mut answer = query("edge.example.com", Rtype::A, None);
    answer[2] |= 0x80;
    let asked = Asked {
        query: &answer,
        from: "8.8.8.8".parse().unwrap(),
        tcp: false,
        turn: 0,
    };
    assert_eq!(
        zone().answer(&table(), asked),
        (Outcome::Ignored, Vec::new())
    );
    assert!(Zone::cut(&answer).is_empty());
    let cut = Zone::cut(&query("edge.example.com", Rtype::A, None));
    let cut = Message::from_octets(cut).unwrap();
    assert!(cut.header().tc() && cut.header().qr() && cut.header_counts().ancount() == 0);
}

/// Many name servers, each with a name and an address of its own.
fn crowded() -> Zone {
    let mut zone = zone();
    for at in 0..30_u8 {
        let name = format!("a-long-name-of-a-server-{at}.edge.example.com")
            .parse()
            .unwrap();
        zone.servers.push((name, vec![[203, 0, 113, at].into()]));
    }
    zone
}

#[test]
fn what_does_not_fit_is_cut_and_whole_over_tcp() {
    let zone = crowded();
    let asked = |query, tcp| {
        let asked = Asked {
            query,
            from: "8.8.8.8".parse().unwrap(),
            tcp,
            turn: 0,
        };
        Message::from_octets(zone.answer(&table(), asked).1).unwrap()
    };
    let plain = query("edge.example.com", Rtype::NS, None);
    let cut = asked(&plain, false);
    assert!(cut.header().tc() && cut.as_slice().len() <= 512);
    let whole = asked(&plain, true);
    assert!(!whole.header().tc() && whole.header_counts().ancount() == 32);
    let large = asked(
        &query("edge.example.com", Rtype::NS, Some((4096, 0, None))),
        false,
    );
    assert!(large.as_slice().len() <= 1232 && large.as_slice().len() > 512);
}

proptest! {
    #[test]
    fn no_bytes_do_any_harm(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..96),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        whole in any::<bool>(), tcp in any::<bool>(),
    ) {
        if whole {
            bytes = query("eu.edge.example.com", Rtype::A, subnet("185.1.2.0", 24));
        }
        if !bytes.is_empty() {
            for (place, bits) in flips {
                let at = place.index(bytes.len());
                bytes[at] ^= bits;
            }
        }
        let asked = Asked { query: &bytes, from: "8.8.8.8".parse().unwrap(), tcp, turn: 1 };
        let (outcome, answer) = zone().answer(&table(), asked);
        if outcome == Outcome::Ignored {
            prop_assert!(answer.is_empty());
        } else {
            prop_assert!(answer.len() >= 12 && (tcp || answer.len() <= 1232));
            let answer = Message::from_octets(answer).unwrap();
            prop_assert!(answer.header().qr() && answer.header().id() == u16::from_be_bytes([bytes[0], bytes[1]]));
            // Small in, small out.
            prop_assert!(answer.as_slice().len() <= bytes.len() + 220);
        }
    }
}
