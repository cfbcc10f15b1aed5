//! A sound network has no findings; each mistake has its own.

use vector_proto::control::v1::{
    self as pb, CredentialState, CredentialStatus, LinkState, LinkStatus,
};

use super::{Level, examine, reach};
use crate::{Failure, sight::Sight};

const DAY_MS: u64 = 86_400_000;

fn node(id: &str, role: &str, region: &str, links: &[(&str, LinkState)]) -> pb::NodeView {
    let links = links.iter().map(|(peer, state)| LinkStatus {
        peer: (*peer).to_owned(),
        state: (*state).into(),
        ..LinkStatus::default()
    });
    pb::NodeView {
        record: Some(pb::NodeRecord {
            id: id.to_owned(),
            region: region.to_owned(),
            roles: vec![role.to_owned()],
            epoch: 1,
            tunnel_addresses: vec![format!("{id}.example.net:7440")],
            ..pb::NodeRecord::default()
        }),
        connected: true,
        version: "1.0.0".to_owned(),
        clock_skew_ms: Some(3),
        status: Some(pb::Status {
            unix_ms: 1_000_000,
            certificate_until_unix_ms: 1_000_000 + DAY_MS,
            disk_free_bytes: 50 << 30,
            disk_bytes: 100 << 30,
            links: links.collect(),
            ..pb::Status::default()
        }),
        ..pb::NodeView::default()
    }
}

fn credential(name: &str, states: &[(&str, CredentialState)]) -> pb::CredentialView {
    let at = states.iter().map(|(egress, state)| pb::CredentialAt {
        egress: (*egress).to_owned(),
        status: Some(CredentialStatus {
            credential: name.to_owned(),
            state: (*state).into(),
            rests_ms: 1_500,
            ..CredentialStatus::default()
        }),
    });
    pb::CredentialView {
        spec: Some(pb::CredentialSpec {
            name: name.to_owned(),
            provider: "openai".to_owned(),
            ..pb::CredentialSpec::default()
        }),
        at: at.collect(),
        ..pb::CredentialView::default()
    }
}

/// An ingress, two egress nodes (one of them behind a relay), one provider and one model.
fn sound() -> Sight {
    let nodes = vec![
        node(
            "in",
            "ingress",
            "eu",
            &[
                ("out-1", LinkState::Up),
                ("hop", LinkState::Up),
                ("out-2", LinkState::Down),
            ],
        ),
        node("hop", "relay", "us", &[("out-2", LinkState::Up)]),
        node("out-1", "egress", "us", &[]),
        node("out-2", "egress", "us", &[]),
    ];
    let upstream = pb::Upstream {
        provider: "openai".to_owned(),
        ..pb::Upstream::default()
    };
    Sight {
        status: pb::StatusResponse {
            version: "1.0.0".to_owned(),
            nodes,
            keys: 1,
            ..pb::StatusResponse::default()
        },
        providers: vec![pb::ProviderSpec {
            name: "openai".to_owned(),
            ..pb::ProviderSpec::default()
        }],
        credentials: vec![credential("k-1", &[("out-1", CredentialState::Ready)])],
        models: vec![pb::ModelSpec {
            name: "gpt".to_owned(),
            upstreams: vec![upstream],
            ..pb::ModelSpec::default()
        }],
        ..Sight::default()
    }
}

/// What is found once the network was broken, as `level check: what` of the first of that check.
#[track_caller]
fn expect(level: Level, check: &str, words: &str, breaking: impl FnOnce(&mut Sight)) {
    let mut sight = sound();
    breaking(&mut sight);
    let found = examine(&sight);
    let hit = found
        .iter()
        .find(|one| one.check == check && one.level == level && one.what.contains(words));
    assert!(hit.is_some(), "{check} `{words}` in {found:#?}");
    assert!(found.iter().all(|one| !one.cure.is_empty()));
}

fn status(sight: &mut Sight, at: usize) -> &mut pb::Status {
    sight.status.nodes[at].status.get_or_insert_default()
}

fn spec(sight: &mut Sight) -> &mut pb::CredentialSpec {
    sight.credentials[0].spec.get_or_insert_default()
}

#[test]
fn a_sound_network_has_no_findings() {
    assert_eq!(examine(&sound()), []);
}

#[test]
fn nodes_that_are_missing_are_told() {
    use Level::{Fault, Warning};
    expect(Fault, "nodes", "no egress node", |sight| {
        sight.status.nodes.truncate(2);
    });
    expect(Fault, "nodes", "none of 1 ingress", |sight| {
        sight.status.nodes[0].connected = false;
    });
    expect(Fault, "nodes", "egress node is draining", |sight| {
        status(sight, 2).draining = true;
        status(sight, 3).draining = true;
    });
    expect(Warning, "nodes", "out-1 is not connected", |sight| {
        sight.status.nodes[2].connected = false;
    });
    expect(Warning, "nodes", "hop enrolled and never", |sight| {
        sight.status.nodes[1].connected = false;
        sight.status.nodes[1].record.get_or_insert_default().epoch = 0;
    });
    expect(Fault, "snapshot", "in refused", |sight| {
        sight.status.nodes[0].rejection = "too large".to_owned();
    });
}

#[test]
fn an_ingress_without_a_path_is_told_with_what_to_open() {
    expect(
        Level::Warning,
        "paths",
        "in has no path to out-2",
        |sight| {
            status(sight, 1).links.clear();
        },
    );
    let mut sight = sound();
    status(&mut sight, 0).links.clear();
    let found = examine(&sight);
    assert_eq!((found[0].level, found[0].check), (Level::Fault, "paths"));
    assert!(found[0].what.contains("out-1, out-2"));
    assert!(
        found[0].cure.contains("UDP") && found[0].cure.contains("out-1.example.net:7440"),
        "{}",
        found[0].cure
    );
    sight.status.nodes[2]
        .record
        .get_or_insert_default()
        .tunnel_addresses = vec!["0.0.0.0:7440".to_owned()];
    assert!(examine(&sight)[0].cure.contains("tunnel.advertise"));
}

#[test]
fn clocks_certificates_versions_and_disks_have_two_thresholds() {
    use Level::{Fault, Warning};
    let skewed = |ms| move |sight: &mut Sight| sight.status.nodes[1].clock_skew_ms = Some(ms);
    expect(
        Warning,
        "clock",
        "hop's clock is 2.0 s ahead",
        skewed(2_000),
    );
    expect(Fault, "clock", "behind control's", skewed(-240_000));
    let left = |ms: u64| {
        move |sight: &mut Sight| {
            status(sight, 1).certificate_until_unix_ms = 1_000_000 + ms;
        }
    };
    expect(Warning, "certificate", "ends in 600 min", left(36_000_000));
    expect(Fault, "certificate", "ends in 10 min", left(600_000));
    expect(Fault, "certificate", "is over", left(0));
    expect(Warning, "version", "hop runs 0.9.0", |sight| {
        sight.status.nodes[1].version = "0.9.0".to_owned();
    });
    let free =
        |percent: u64| move |sight: &mut Sight| status(sight, 2).disk_free_bytes = percent << 30;
    expect(Warning, "disk", "out-1 has", free(9));
    expect(Fault, "disk", "(1 %)", free(1));
}

#[test]
fn providers_that_nobody_can_call_are_told() {
    use Level::{Fault, Warning};
    expect(Fault, "provider", "no egress stands there", |sight| {
        sight.providers[0].egress = vec!["ap".to_owned()];
    });
    expect(Fault, "provider", "is connected: out-2", |sight| {
        sight.providers[0].egress = vec!["out-2".to_owned()];
        sight.status.nodes[3].connected = false;
    });
    expect(Fault, "credential", "has no credential", |sight| {
        sight.credentials.clear();
    });
    expect(Fault, "credential", "is disabled", |sight| {
        spec(sight).disabled = true;
    });
    let state = |state| {
        move |sight: &mut Sight| sight.credentials[0] = credential("k-1", &[("out-1", state)])
    };
    expect(
        Fault,
        "credential",
        "rests, the first for 2 s",
        state(CredentialState::Resting),
    );
    expect(
        Fault,
        "credential",
        "is out of use",
        state(CredentialState::Out),
    );
    expect(
        Warning,
        "credential",
        "k-2 of provider openai is out",
        |sight| {
            let out = credential("k-2", &[("out-1", CredentialState::Out)]);
            sight.credentials.push(out);
        },
    );
}

#[test]
fn models_that_lead_nowhere_are_told() {
    use Level::{Fault, Warning};
    expect(Fault, "model", "gpt has no upstream", |sight| {
        sight.models[0].upstreams.clear();
    });
    expect(Fault, "model", "whose provider can be called", |sight| {
        spec(sight).disabled = true;
    });
    expect(Fault, "model", "no model and no default route", |sight| {
        sight.models.clear();
    });
    expect(Warning, "key", "no API key", |sight| sight.status.keys = 0);
    expect(
        Warning,
        "change",
        "back to generation 7: node in-1 refused it",
        |sight| {
            sight.status.rollout = Some(pb::Rollout {
                stage: "rolled back".to_owned(),
                from: 7,
                reason: "node in-1 refused it: too large".to_owned(),
                ..pb::Rollout::default()
            });
        },
    );
}

#[test]
fn silence_has_its_cause() {
    let check = |failure, connected| reach::finding(&failure, connected).check;
    let text = |text: &str| text.to_owned();
    let away = Failure::Unreachable(text("cannot connect"));
    assert_eq!(check(away, false), "control");
    let no_quorum = "control did not answer: the store failed: no leader";
    for silent in [no_quorum, "control did not answer: Timeout expired"] {
        assert_eq!(check(Failure::Unreachable(text(silent)), true), "store");
    }
    let pin = Failure::Token(text("its certificate does not match the token's pin"));
    assert!(reach::finding(&pin, false).cure.contains("in between"));
    assert_eq!(check(Failure::Token(text("wrong")), true), "operator");
    assert_eq!(check(Failure::Refused(text("no")), true), "control");
}
