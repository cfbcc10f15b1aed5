//! Nodes of a test network, with certificates, over loopback.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;
use vector_edge::{
    relay::Relay,
    telemetry::Telemetry,
    tunnel::{
        ArrivalHandler, Call, Credentials, Part, Path, Peer, ResponseReader, Tunnel,
        dial::Wanted,
        network::{Network, Parts, Sockets},
        pulse::Intervals,
        transport::quic,
    },
};
use vector_proto::{
    id::ExchangeId,
    tunnel::{VERSION, v1},
};

/// A certificate authority of one test network.
pub(crate) struct Authority(pub(crate) CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "test root");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn node(&self, id: &str, role: &str) -> Arc<TestCredentials> {
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
            removed: Removed::default(),
        })
    }
}

#[derive(Debug)]
pub(crate) struct TestCredentials {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Vec<u8>,
    pub(crate) root: CertificateDer<'static>,
    /// Whose certificates count no more with this node.
    pub(crate) removed: Removed,
}

/// Names of nodes, and how often one of them was met.
#[derive(Debug, Default)]
pub(crate) struct Removed(Mutex<(Vec<String>, usize)>);

impl Removed {
    pub(crate) fn set(&self, nodes: &[&str]) {
        *self.0.lock().unwrap() = (nodes.iter().map(ToString::to_string).collect(), 0);
    }

    pub(crate) fn met(&self) -> usize {
        self.0.lock().unwrap().1
    }

    fn meets(&self, node: &str) -> bool {
        let mut removed = self.0.lock().unwrap();
        let is = removed.0.iter().any(|removed| removed == node);
        removed.1 += usize::from(is);
        is
    }
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
        if self.removed.meets(id) {
            return None;
        }
        Some(Peer {
            node: id.into(),
            roles: vec![role.into()],
        })
    }
}

pub(crate) struct Node {
    pub(crate) tunnel: Tunnel,
    pub(crate) network: Network,
    pub(crate) address: SocketAddr,
}

pub(crate) fn node(
    credentials: &Arc<TestCredentials>,
    id: &str,
    arrivals: Option<ArrivalHandler>,
) -> Node {
    node_at("127.0.0.1:0".parse().unwrap(), 1, credentials, id, arrivals)
}

/// A node of a given incarnation.
pub(crate) fn node_at(
    address: SocketAddr,
    epoch: u64,
    credentials: &Arc<TestCredentials>,
    id: &str,
    arrivals: Option<ArrivalHandler>,
) -> Node {
    let usual = (Intervals::default(), false);
    node_on(&[address], epoch, credentials, id, arrivals, usual)
}

/// A node with sockets of its own choice, that beats as it likes, on a thread of their own or not.
pub(crate) fn node_on(
    listen: &[SocketAddr],
    epoch: u64,
    credentials: &Arc<TestCredentials>,
    id: &str,
    arrivals: Option<ArrivalHandler>,
    beats: (Intervals, bool),
) -> Node {
    let me = v1::Hello {
        version: VERSION,
        node: id.into(),
        epoch,
        ..v1::Hello::default()
    };
    start_on(listen, me, credentials, arrivals, beats)
}

/// A node that says this of itself; one that says it is a relay is one.
pub(crate) fn start(
    address: SocketAddr,
    me: v1::Hello,
    credentials: &Arc<TestCredentials>,
    arrivals: Option<ArrivalHandler>,
) -> Node {
    let usual = (Intervals::default(), false);
    start_on(&[address], me, credentials, arrivals, usual)
}

fn start_on(
    listen: &[SocketAddr],
    me: v1::Hello,
    credentials: &Arc<TestCredentials>,
    arrivals: Option<ArrivalHandler>,
    (intervals, own_runtime): (Intervals, bool),
) -> Node {
    let sockets = Sockets::bind(listen, &**credentials, &[7; 64]).unwrap();
    let address = sockets.local_addrs()[0];
    let tunnel = Tunnel::default();
    let is_relay = me.roles.iter().any(|role| role == "relay");
    let parts = Parts {
        me,
        credentials: Arc::clone(credentials) as _,
        arrivals,
        transits: is_relay.then(|| Relay::new(tunnel.clone(), Telemetry::silent()).handler()),
        intervals,
        own_runtime,
    };
    let network = Network::start(tunnel.clone(), sockets, parts).unwrap();
    Node {
        tunnel,
        network,
        address,
    }
}

/// An egress that answers `hello` to everything, and tells of every arrival.
pub(crate) fn egress(authority: &Authority) -> (Node, mpsc::Receiver<ExchangeId>) {
    egress_at(
        "127.0.0.1:0".parse().unwrap(),
        1,
        &authority.node("egress", "egress"),
    )
}

pub(crate) fn egress_at(
    address: SocketAddr,
    epoch: u64,
    credentials: &Arc<TestCredentials>,
) -> (Node, mpsc::Receiver<ExchangeId>) {
    let (handler, arrivals) = hello();
    (
        node_at(address, epoch, credentials, "egress", Some(handler)),
        arrivals,
    )
}

/// Answers `hello` to everything, and tells of every arrival.
pub(crate) fn hello() -> (ArrivalHandler, mpsc::Receiver<ExchangeId>) {
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
    (handler, arrivals)
}

pub(crate) fn wanted(peer: &str, address: SocketAddr) -> Wanted {
    Wanted {
        peer: peer.into(),
        address: address.to_string().into(),
    }
}

pub(crate) fn path() -> Path {
    Path::direct("egress".into())
}

pub(crate) async fn up(tunnel: &Tunnel) {
    while tunnel.path_state(&path()).is_none() {
        tokio::task::yield_now().await;
    }
}

/// The answer's body, to its end.
pub(crate) async fn read(response: &mut ResponseReader) -> Vec<u8> {
    response.head().await.unwrap();
    let mut body = Vec::new();
    loop {
        match response.next().await.unwrap() {
            Part::Data(bytes) => body.extend_from_slice(&bytes),
            Part::Trailers(_) => {}
            Part::End => return body,
        }
    }
}

pub(crate) async fn ask(tunnel: &Tunnel) -> Vec<u8> {
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
    read(&mut response).await
}
