//! The tunnel over real sockets: who may link, what a hostile peer can do, what survives it, and dead paths.
#![expect(
    clippy::unwrap_used,
    reason = "what a test needs and does not get ends the test"
)]

mod busy;
mod carriers;
mod figures;
mod mended;
mod moved;
mod pulse;
mod relayed;
mod revoked;
mod rough;
mod town;

use std::net::{SocketAddr, UdpSocket};

use bytes::{Bytes, BytesMut};
use vector_edge::tunnel::{
    Credentials as _,
    transport::{Connection, quic},
};
use vector_proto::tunnel::{
    VERSION,
    codec::{self, Kind},
    v1,
};

use self::town::{Authority, TestCredentials, ask, egress, node, path, up, wanted};

#[tokio::test]
async fn exchanges_go_over_quic_and_links_come_back_after_a_restart() {
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    let mut client = node(&authority.node("ingress", "ingress"), "ingress", None);
    client.network.keep(&[wanted("egress", server.address)]);
    up(&client.tunnel).await;
    let answers = futures_util::future::join_all((0..200).map(|_| ask(&client.tunnel))).await;
    assert!(answers.iter().all(|answer| answer == b"hello"));

    // The same peer at another address: the old link goes, the new one comes.
    server.network.close().await;
    while client.tunnel.path_state(&path()).is_some() {
        tokio::task::yield_now().await;
    }
    let (server, _arrivals) = egress(&authority);
    client.network.keep(&[wanted("egress", server.address)]);
    up(&client.tunnel).await;
    assert_eq!(ask(&client.tunnel).await, b"hello");
}

/// Dials by hand, so that it can do what no node would.
async fn dial(credentials: &TestCredentials, address: SocketAddr) -> Result<Connection, String> {
    let endpoint = quic::Endpoint::bind(
        "127.0.0.1:0".parse().unwrap(),
        credentials.server(),
        &[1; 64],
    )
    .unwrap();
    let connection = endpoint
        .dial(address, "egress.node.test", credentials.client())
        .await;
    connection
        .map(Connection::Quic)
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_certificate_of_another_network_gets_no_link() {
    let authority = Authority::new();
    let (server, mut arrivals) = egress(&authority);
    // It trusts the server, so that only the server can refuse; in TLS 1.3 it learns so after its handshake.
    let foreign = Authority::new().node("ingress", "ingress");
    let stranger = TestCredentials {
        chain: foreign.chain.clone(),
        key: foreign.key.clone(),
        root: authority.0.der().clone(),
        removed: town::Removed::default(),
    };
    let reason = match dial(&stranger, server.address).await {
        Ok(connection) => connection.closed().await.to_string(),
        Err(error) => error,
    };
    assert!(
        reason.contains("unknown CA")
            || reason.contains("UnknownIssuer")
            || reason.contains("certificate"),
        "{reason}"
    );
    assert!(arrivals.try_recv().is_err());
}

#[tokio::test]
async fn a_node_that_is_no_ingress_may_not_send_exchanges() {
    let authority = Authority::new();
    let (server, mut arrivals) = egress(&authority);
    let connection = dial(&authority.node("other", "egress"), server.address)
        .await
        .unwrap();
    let reason = connection.closed().await.to_string();
    assert!(reason.contains("not an ingress or relay"), "{reason}");
    assert!(arrivals.try_recv().is_err());
}

/// What a hostile but certified peer may write on an attachment, and what it then reads.
async fn hostile_stream(connection: &Connection, bytes: Bytes) -> Option<v1::Refused> {
    use prost::Message as _;
    let (mut send, mut receive) = connection.open().await.unwrap();
    send.write(&mut [bytes]).await.unwrap();
    send.finish();
    let mut decoder = codec::Decoder::default();
    while let Ok(Some(mut bytes)) = receive.read().await {
        if let Some(codec::Piece::Frame(Kind::Refused, payload)) = decoder.next(&mut bytes).unwrap()
        {
            return v1::Refused::decode(payload).ok();
        }
    }
    None
}

#[tokio::test]
async fn garbage_from_a_certified_peer_is_refused_and_nothing_else_suffers() {
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    let mut good = node(&authority.node("ingress", "ingress"), "ingress", None);
    good.network.keep(&[wanted("egress", server.address)]);
    up(&good.tunnel).await;

    let connection = dial(&authority.node("bad", "ingress"), server.address)
        .await
        .unwrap();
    let (mut control, _replies) = connection.open().await.unwrap();
    let hello = v1::Hello {
        version: VERSION,
        node: "bad".into(),
        ..v1::Hello::default()
    };
    control
        .write(&mut [codec::message(Kind::Hello, &hello)])
        .await
        .unwrap();

    let mut absurd = BytesMut::from(&[Kind::Open as u8][..]);
    codec::put_varint(&mut absurd, 1 << 40);
    let not_prost = Bytes::from_static(&[Kind::Open as u8, 3, 0xff, 0xff, 0xff]);
    let open_without_id = codec::message(
        Kind::Open,
        &v1::Open {
            egress: "egress".into(),
            ..v1::Open::default()
        },
    );
    for bytes in [
        Bytes::from_static(&[0x7f, 0x01, 0x02]),
        absurd.freeze(),
        not_prost,
        open_without_id,
    ] {
        let refused = hostile_stream(&connection, bytes.clone()).await;
        assert_eq!(refused.unwrap().code, "protocol_error", "{bytes:?}");
        assert_eq!(ask(&good.tunnel).await, b"hello");
    }

    // Nonsense on the control stream costs the peer its link.
    control
        .write(&mut [Bytes::from_static(&[0x55; 32])])
        .await
        .unwrap();
    let reason = connection.closed().await.to_string();
    assert!(
        reason.contains("protocol error") || reason.contains("closed"),
        "{reason}"
    );
    assert_eq!(ask(&good.tunnel).await, b"hello");
}

#[tokio::test]
async fn a_peer_that_links_without_end_is_refused_and_nobody_else() {
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    let bad = authority.node("bad", "ingress");
    let hello = v1::Hello {
        version: VERSION,
        node: "bad".into(),
        ..v1::Hello::default()
    };
    let mut held = Vec::new();
    let refused = || server.tunnel.tally().links_refused.get();
    while refused() == 0 {
        assert!(held.len() < 100, "it takes them all");
        // One that is refused at once is not heard of as linked.
        let Ok(connection) = dial(&bad, server.address).await else {
            continue;
        };
        let Ok((mut control, mut replies)) = connection.open().await else {
            continue;
        };
        let greeting = codec::message(Kind::Hello, &hello);
        if control.write(&mut [greeting]).await.is_ok() && replies.read().await.is_ok() {
            held.push((connection, control, replies));
        }
    }
    assert!(server.network.accepted_links() <= 64);
    let mut good = node(&authority.node("ingress", "ingress"), "ingress", None);
    good.network.keep(&[wanted("egress", server.address)]);
    up(&good.tunnel).await;
    assert_eq!(ask(&good.tunnel).await, b"hello");
}

#[tokio::test]
async fn garbage_on_the_udp_port_harms_nobody() {
    let authority = Authority::new();
    let (server, _arrivals) = egress(&authority);
    let mut good = node(&authority.node("ingress", "ingress"), "ingress", None);
    good.network.keep(&[wanted("egress", server.address)]);
    up(&good.tunnel).await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for seed in 0..500_u32 {
        let garbage: Vec<u8> = (0..1200_u32)
            .map(|at| (at.wrapping_mul(seed + 1) >> 3) as u8)
            .collect();
        socket.send_to(&garbage, server.address).unwrap();
        // A long header, so that it looks like a handshake.
        let mut initial = garbage;
        initial[..5].copy_from_slice(&[0xc0, 0, 0, 0, 1]);
        socket.send_to(&initial, server.address).unwrap();
    }
    assert_eq!(ask(&good.tunnel).await, b"hello");
}
