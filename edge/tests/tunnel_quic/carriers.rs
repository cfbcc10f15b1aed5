//! A node with several sockets, each at another carrier: whatever dies, a way is left.

use std::{
    collections::HashSet,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
};

use vector_edge::tunnel::{Condition, Link, Tunnel, network::Sockets, pulse::Intervals};
use vector_wan::{Detour, Way};

use crate::{
    pulse::becomes,
    town::{Authority, Node, ask, egress, egress_at, node_on, up, wanted},
};

fn ingress(authority: &Authority, listen: &[&str]) -> Node {
    let credentials = authority.node("ingress", "ingress");
    let listen: Vec<SocketAddr> = listen.iter().map(|at| at.parse().unwrap()).collect();
    let usual = (Intervals::default(), false);
    node_on(&listen, 1, &credentials, "ingress", None, usual)
}

/// Waits for so many links whose detectors have heard and been heard. Where they begin.
async fn linked(tunnel: &Tunnel, count: usize) -> HashSet<String> {
    loop {
        let rows = tunnel.status();
        if rows.len() == count && rows.iter().all(|row| row.heartbeats_heard > 0) {
            return rows.into_iter().map(|row| row.local_address).collect();
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn of_two_carriers_one_may_die() {
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    let detours = [1, 2].map(|seed| Detour::to(server.address, "rtt_ms=4", seed).unwrap());
    let mut client = ingress(&authority, &["127.0.0.1:0", "127.0.0.1:0"]);
    let both = detours.each_ref().map(|to| wanted("egress", to.address()));
    client.network.keep(&both);
    // One link for each address, each from a socket of its own.
    assert_eq!(linked(&client.tunnel, 2).await.len(), 2);
    let link = client.tunnel.link("egress").unwrap();
    let cut = detours
        .iter()
        .find(|to| to.address().to_string() == *link.address);
    cut.unwrap().set(Way::Both, "blackhole=on").unwrap();
    // Before anybody knows, while it is found out, and when it is known.
    for _ in 0..20 {
        assert_eq!(ask(&client.tunnel).await, b"hello");
    }
    becomes(&link, Condition::Down).await;
    let other: Arc<Link> = client.tunnel.link("egress").unwrap();
    assert_ne!(other.local_address(), link.local_address());
    assert_eq!(ask(&client.tunnel).await, b"hello");
}

#[tokio::test]
async fn an_only_address_is_linked_from_two_sockets() {
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    let three = &["127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"];
    let mut client = ingress(&authority, three);
    client.network.keep(&[wanted("egress", server.address)]);
    let begin = linked(&client.tunnel, 2).await;
    assert_eq!(begin.len(), 2);
    client.tunnel.link("egress").unwrap().close("cut");
    assert_eq!(ask(&client.tunnel).await, b"hello");
    assert_eq!(linked(&client.tunnel, 2).await, begin);
}

#[tokio::test]
async fn a_peer_is_dialled_from_a_socket_of_its_family() {
    if UdpSocket::bind("[::1]:0").is_err() {
        // This machine has one family only.
        return;
    }
    let authority = Authority::new();
    let six = "[::1]:0".parse().unwrap();
    let (server, _arrivals) = egress_at(six, 1, &authority.node("egress", "egress"));
    let mut client = ingress(&authority, &["127.0.0.1:0", "[::1]:0"]);
    client.network.keep(&[wanted("egress", server.address)]);
    up(&client.tunnel).await;
    assert_eq!(ask(&client.tunnel).await, b"hello");
    let link = client.tunnel.link("egress").unwrap();
    assert!(link.local_address().unwrap().is_ipv6());
    // Both families on one port.
    let free = UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap();
    let both = [free, SocketAddr::new("::".parse().unwrap(), free.port())];
    let credentials = authority.node("other", "ingress");
    let sockets = Sockets::bind(&both, &*credentials, &[7; 64]).unwrap();
    assert_eq!(sockets.local_addrs(), both);
}

#[tokio::test]
async fn a_busy_link_has_several_connections() {
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    let mut client = ingress(&authority, &["127.0.0.1:0"]);
    client.network.keep(&[wanted("egress", server.address)]);
    let from = linked(&client.tunnel, 1).await;
    let first = client.tunnel.link("egress").unwrap();
    // As if so many were under way.
    (0..2_000).for_each(|_| first.vitals().began());
    assert_eq!(linked(&client.tunnel, 2).await, from);
    let second = client.tunnel.link("egress").unwrap();
    assert!(!Arc::ptr_eq(&first, &second), "what is new goes there");
    assert_eq!(ask(&client.tunnel).await, b"hello");
    // The new one fills, too, and says so; four are enough.
    (0..2_000).for_each(|_| second.vitals().began());
    linked(&client.tunnel, 3).await;
    let third = client.tunnel.link("egress").unwrap();
    (0..2_000).for_each(|_| third.vitals().began());
    linked(&client.tunnel, 4).await;
    let fourth = client.tunnel.link("egress").unwrap();
    (0..2_000).for_each(|_| fourth.vitals().began());
    let numbers = client.tunnel.status().into_iter().map(|row| row.connection);
    assert_eq!(numbers.collect::<Vec<_>>(), [0, 1, 2, 3]);
    // They end with the first, and it is dialled again.
    first.close("cut");
    for link in [&second, &third, &fourth] {
        link.vitals().ended(link.vitals().exchanges());
        link.closed().await;
    }
    linked(&client.tunnel, 1).await;
    assert_eq!(ask(&client.tunnel).await, b"hello");
}
