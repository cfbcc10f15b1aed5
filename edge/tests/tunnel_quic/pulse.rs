//! Heartbeats beside a link: dead paths are found, links come back, restarts are told.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use vector_edge::tunnel::{
    Condition, Credentials as _, Link, Tunnel,
    transport::{Connection, quic},
};
use vector_proto::tunnel::{
    VERSION,
    beat::{Beat, Hearing},
    codec::{self, Kind},
    v1,
};
use vector_wan::{Detour, Way};

use crate::town::{
    Authority, Node, TestCredentials, ask, egress, egress_at, node, path, up, wanted,
};

/// An ingress whose only way to an egress is a detour, with heartbeats under way.
async fn over_detour(authority: &Authority, address: SocketAddr) -> (Node, Detour, Arc<Link>) {
    let detour = Detour::to(address, "rtt_ms=4", 1).unwrap();
    let mut client = node(&authority.node("ingress", "ingress"), "ingress", None);
    client.network.keep(&[wanted("egress", detour.address())]);
    let link = beating(&client.tunnel).await;
    (client, detour, link)
}

/// The link to the egress, once its detector has heard and been heard.
pub(crate) async fn beating(tunnel: &Tunnel) -> Arc<Link> {
    loop {
        up(tunnel).await;
        if let Some(link) = tunnel.link("egress")
            && link.vitals().measures().rtt.is_some()
        {
            return link;
        }
        tokio::task::yield_now().await;
    }
}

pub(crate) async fn becomes(link: &Link, condition: Condition) {
    let mut watch = link.vitals().watch();
    // It may have changed before we watched.
    if link.condition() != condition {
        watch.wait_for(|now| *now == condition).await.unwrap();
    }
}

#[tokio::test]
async fn a_path_that_dies_either_way_is_down_and_comes_back() {
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    for way in [Way::Both, Way::There, Way::Back] {
        let (client, detour, link) = over_detour(&authority, server.address).await;
        assert_eq!(link.condition(), Condition::Up);
        detour.set(way, "blackhole=on").unwrap();
        becomes(&link, Condition::Down).await;
        // Whoever has another way takes that one.
        let state = client.tunnel.path_state(&path()).unwrap();
        assert_eq!(state.condition, Condition::Down);
        detour.set(way, "blackhole=off").unwrap();
        // Suspect first, for whoever has no other way; then trusted again.
        becomes(&link, Condition::Suspect).await;
        assert_eq!(ask(&client.tunnel).await, b"hello");
        becomes(&link, Condition::Up).await;
        assert!(!link.is_down(), "the connection was never closed");
        assert_eq!(link.vitals().measures().flaps, 1);
        client.network.close().await;
    }
}

#[tokio::test]
async fn a_link_that_stays_dead_is_dialled_anew_and_not_trusted_at_once() {
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    let (client, detour, link) = over_detour(&authority, server.address).await;
    detour.set(Way::Both, "blackhole=on").unwrap();
    link.closed().await;
    detour.set(Way::Both, "blackhole=off").unwrap();
    up(&client.tunnel).await;
    let again = client.tunnel.link("egress").unwrap();
    assert!(!Arc::ptr_eq(&link, &again));
    assert_eq!(again.condition(), Condition::Suspect);
    assert_eq!(ask(&client.tunnel).await, b"hello");
    becomes(&again, Condition::Up).await;
}

/// Nobody has heard a heartbeat yet that could be missed.
#[tokio::test]
async fn a_path_that_dies_before_its_first_heartbeat_is_found_dead_before_quic_gives_up() {
    const QUIC_GIVES_UP: Duration = Duration::from_secs(9);
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    // The probe is dialled when the link is up, and takes a round trip at least.
    let detour = Detour::to(server.address, "rtt_ms=500", 1).unwrap();
    let mut client = node(&authority.node("ingress", "ingress"), "ingress", None);
    client.network.keep(&[wanted("egress", detour.address())]);
    up(&client.tunnel).await;
    detour.set(Way::Both, "blackhole=on").unwrap();
    let link = client.tunnel.link("egress").unwrap();
    assert_eq!(link.vitals().measures().rtt, None);
    let closed = tokio::time::timeout(QUIC_GIVES_UP, link.closed());
    assert!(closed.await.is_ok(), "still taken for a path");
}

#[tokio::test]
async fn a_restart_of_the_peer_is_told() {
    let authority = Authority::new();
    let credentials = authority.node("egress", "egress");
    let (server, _arrivals) = egress_at("127.0.0.1:0".parse().unwrap(), 1, &credentials);
    let mut client = node(&authority.node("ingress", "ingress"), "ingress", None);
    client.network.keep(&[wanted("egress", server.address)]);
    let link = beating(&client.tunnel).await;
    assert_eq!((link.epoch, link.vitals().measures().restarts), (1, 0));
    let address = server.address;
    server.network.close().await;
    link.closed().await;
    // The old process lets go of its socket when its last task has ended.
    while UdpSocket::bind(address).is_err() {
        tokio::task::yield_now().await;
    }
    let (_server, _arrivals) = egress_at(address, 2, &credentials);
    loop {
        let again = beating(&client.tunnel).await;
        if again.vitals().measures().restarts == 1 {
            assert_eq!(again.epoch, 2);
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn both_ends_measure() {
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    let (client, detour, link) = over_detour(&authority, server.address).await;
    let rtt = link.vitals().measures().rtt.unwrap();
    assert!(rtt >= Duration::from_millis(4), "{rtt:?}");
    detour.set(Way::There, "loss=30%").unwrap();
    let lossy = async {
        while link.vitals().measures().loss_out < 0.02 {
            tokio::task::yield_now().await;
        }
    };
    lossy.await;
    let row = &client.tunnel.status()[0];
    assert!(row.rtt_us >= 4_000, "{row:?}");
    assert!(row.heartbeats_sent > row.heartbeats_heard / 2, "{row:?}");
    assert!(row.loss_out_ppm > row.loss_in_ppm, "{row:?}");
}

/// A link by hand, so that its probe can do what no node would.
async fn by_hand(
    credentials: &TestCredentials,
    address: SocketAddr,
) -> (quic::Endpoint, quic::Connection) {
    let any = "127.0.0.1:0".parse().unwrap();
    let endpoint = quic::Endpoint::bind(any, credentials.server(), &[1; 64]).unwrap();
    let data = endpoint
        .dial(address, "egress.node.test", credentials.client())
        .await
        .unwrap();
    (endpoint, data)
}

#[tokio::test]
async fn a_probe_of_no_link_is_refused() {
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    let credentials = authority.node("ingress", "ingress");
    let (endpoint, _data) = by_hand(&credentials, server.address).await;
    let client = credentials.client();
    let probe = endpoint
        .probe(server.address, "egress.node.test", &client)
        .await
        .unwrap();
    probe.tell(&[7; 16]).await.unwrap();
    let refused = probe.read().await.unwrap_err().to_string();
    assert!(refused.contains("of no link"), "{refused}");
    // Nor does the mark of a probe open a link.
    let egress_only = authority.node("other", "egress");
    let (endpoint, _data) = by_hand(&egress_only, server.address).await;
    let probe = endpoint
        .probe(server.address, "egress.node.test", &egress_only.client())
        .await
        .unwrap();
    let refused = probe.read().await.unwrap_err().to_string();
    assert!(refused.contains("not an ingress or relay"), "{refused}");
}

#[tokio::test]
async fn a_peer_may_beat_as_it_likes() {
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    let mut good = node(&authority.node("ingress", "ingress"), "ingress", None);
    good.network.keep(&[wanted("egress", server.address)]);
    let link = beating(&good.tunnel).await;

    let bad = authority.node("bad", "ingress");
    let (endpoint, data) = by_hand(&bad, server.address).await;
    let tag = data.tag();
    let (mut control, _replies) = Connection::Quic(data).open().await.unwrap();
    let hello = v1::Hello {
        version: VERSION,
        node: "bad".into(),
        ..v1::Hello::default()
    };
    control
        .write(&mut [codec::message(Kind::Hello, &hello)])
        .await
        .unwrap();
    let probe = endpoint
        .probe(server.address, "egress.node.test", &bad.client())
        .await
        .unwrap();
    probe.tell(&tag).await.unwrap();
    let first = Beat::decode(&probe.read().await.unwrap()).unwrap();
    let mut beat = Beat {
        epoch: 9,
        seq: 1,
        sent_us: 0,
        echo: None,
        received: 1,
        hearing: Hearing::Hears,
        draining: true,
        interval_ms: 1,
        desired_ms: 1,
        required_ms: 1,
        load: 0,
    };
    for seed in 0..2_000_u32 {
        beat.seq = seed.wrapping_mul(0x9e37_79b9);
        let mut bytes = beat.encode();
        bytes[seed as usize % 42] ^= (seed >> 3) as u8;
        probe.send(&bytes).unwrap();
        probe
            .send(&Bytes::from(vec![seed as u8; seed as usize % 64]))
            .unwrap();
        if seed % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    // It is still answered, no faster than the egress allows, and nobody else notices.
    assert_eq!(first.required_ms, 10);
    let after = Beat::decode(&probe.read().await.unwrap()).unwrap();
    assert!(after.interval_ms >= 10);
    assert_eq!(ask(&good.tunnel).await, b"hello");
    assert_ne!(link.condition(), Condition::Down);
}
