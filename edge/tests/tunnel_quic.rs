//! The tunnel over real sockets: who may link, what a hostile peer can do, and what survives it.
#![expect(
    clippy::unwrap_used,
    reason = "what a test needs and does not get ends the test"
)]

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;
use vector_edge::tunnel::{
    ArrivalHandler, Call, Credentials, Part, Path, Peer, Tunnel,
    dial::Wanted,
    network::{Network, Parts, Sockets},
    transport::{Connection, quic},
};
use vector_proto::{
    id::ExchangeId,
    tunnel::{
        VERSION,
        codec::{self, Kind},
        v1,
    },
};

/// A certificate authority of one test network.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "test root");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn node(&self, id: &str, role: &str) -> Arc<TestCredentials> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![format!("{id}.node.test")]).unwrap();
        let uri = format!("spiffe://test/node/{role}/{id}");
        params
            .subject_alt_names
            .push(SanType::URI(uri.try_into().unwrap()));
        let leaf = params.signed_by(&key, &self.0).unwrap();
        Arc::new(TestCredentials {
            chain: vec![leaf.der().clone()],
            key: key.serialize_der(),
            root: self.0.der().clone(),
        })
    }
}

#[derive(Debug)]
struct TestCredentials {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    root: CertificateDer<'static>,
}

impl TestCredentials {
    fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        Arc::new(roots)
    }
}

impl Credentials for TestCredentials {
    fn client(&self) -> Arc<rustls::ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        let builder = builder.with_root_certificates(self.roots());
        let mut config = builder
            .with_client_auth_cert(self.chain.clone(), self.key())
            .unwrap();
        config.alpn_protocols = vec![quic::ALPN.to_vec()];
        Arc::new(config)
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            self.roots(),
            Arc::clone(&provider),
        );
        let builder = rustls::ServerConfig::builder_with_provider(provider);
        let builder = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        let builder = builder.with_client_cert_verifier(verifier.build().unwrap());
        let mut config = builder
            .with_single_cert(self.chain.clone(), self.key())
            .unwrap();
        config.alpn_protocols = vec![quic::ALPN.to_vec()];
        Arc::new(config)
    }

    fn server_name(&self, node: &str) -> String {
        format!("{node}.node.test")
    }

    fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<Peer> {
        use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
        let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let uri = names
            .value
            .general_names
            .iter()
            .find_map(|name| match name {
                GeneralName::URI(uri) => uri.strip_prefix("spiffe://test/node/"),
                _ => None,
            })?;
        let (role, id) = uri.split_once('/')?;
        Some(Peer {
            node: id.into(),
            roles: vec![role.into()],
        })
    }
}

struct Node {
    tunnel: Tunnel,
    network: Network,
    address: SocketAddr,
}

fn node(credentials: &Arc<TestCredentials>, id: &str, arrivals: Option<ArrivalHandler>) -> Node {
    let sockets =
        Sockets::bind(&["127.0.0.1:0".parse().unwrap()], &**credentials, &[7; 64]).unwrap();
    let address = sockets.local_addrs()[0];
    let tunnel = Tunnel::default();
    let me = v1::Hello {
        version: VERSION,
        node: id.into(),
        epoch: 1,
        ..v1::Hello::default()
    };
    let parts = Parts {
        me,
        credentials: Arc::clone(credentials) as _,
        arrivals,
        transits: None,
    };
    let network = Network::start(tunnel.clone(), sockets, parts).unwrap();
    Node {
        tunnel,
        network,
        address,
    }
}

/// An egress that answers `hello` to everything, and tells of every arrival.
fn egress(authority: &Authority) -> (Node, mpsc::Receiver<ExchangeId>) {
    let (arrived, arrivals) = mpsc::channel(1024);
    let handler: ArrivalHandler = Arc::new(move |arrival| {
        let arrived = arrived.clone();
        Box::pin(async move {
            arrived.send(arrival.exchange).await.unwrap();
            let (_body, mut answer) = arrival.accept().await.unwrap();
            answer.head(&v1::ResponseHead {
                status: 200,
                ..v1::ResponseHead::default()
            });
            answer.data(Bytes::from_static(b"hello")).await.unwrap();
            answer.finish(&v1::Trailers::default()).await.unwrap();
        })
    });
    (
        node(&authority.node("egress", "egress"), "egress", Some(handler)),
        arrivals,
    )
}

fn wanted(peer: &str, address: SocketAddr) -> Wanted {
    Wanted {
        peer: peer.into(),
        address: address.to_string().into(),
    }
}

fn path() -> Path {
    Path::direct("egress".into())
}

async fn up(tunnel: &Tunnel) {
    while tunnel.path_state(&path()).is_none() {
        tokio::task::yield_now().await;
    }
}

async fn ask(tunnel: &Tunnel) -> Vec<u8> {
    let exchange = ExchangeId::fresh();
    let id = Bytes::copy_from_slice(&exchange.to_bytes());
    let open = v1::Open {
        exchange: id,
        egress: "egress".into(),
        ..v1::Open::default()
    };
    let Call {
        mut request,
        mut response,
    } = tunnel.open(&path(), exchange, &open).await.unwrap();
    request.end().await.unwrap();
    assert_eq!(response.head().await.unwrap().status, 200);
    let mut body = Vec::new();
    loop {
        match response.next().await.unwrap() {
            Part::Data(bytes) => body.extend_from_slice(&bytes),
            Part::Trailers(_) => {}
            Part::End => return body,
        }
    }
}

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
