//! A certificate that is replaced while the ingress serves with the one before.

use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    client::Resumption,
    pki_types::{CertificateDer, ServerName},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    world::{World, config},
    *,
};

/// Makes a pair for `localhost`, puts it in the files' place and gives its certificate.
fn replace(files: &config::TlsFiles) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

fn shown(stream: &TlsStream<TcpStream>) -> &CertificateDer<'static> {
    &stream.get_ref().1.peer_certificates().unwrap()[0]
}

/// A connection of this protocol, by a handshake that remembers none before it.
async fn connect(
    world: &World,
    protocol: &str,
    trusted: &[&CertificateDer<'static>],
) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in trusted {
        roots.add((*certificate).clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    // A session that goes on would show the certificate that it began with.
    tls.resumption = Resumption::disabled();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name, world.connect().await)
        .await
        .unwrap();
    let agreed = stream.get_ref().1.alpn_protocol();
    assert_eq!(agreed, Some(protocol.as_bytes()));
    stream
}

type Body = Full<Bytes>;

/// Sends over one connection, of either protocol.
enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

impl Sender {
    async fn of(protocol: &str, stream: TlsStream<TcpStream>, tasks: &TaskTracker) -> Self {
        let io = TokioIo::new(stream);
        match protocol {
            "h2" => {
                let opened = http2::handshake(TokioExecutor::new(), io).await;
                let (sender, connection) = opened.unwrap();
                tasks.spawn(connection);
                Self::Two(sender)
            }
            _ => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                tasks.spawn(connection);
                Self::One(sender)
            }
        }
    }

    async fn chat(&mut self, key: &str, model: &str) -> Response<Incoming> {
        let request = Request::post("https://localhost/v1/chat/completions")
            .header("host", "localhost")
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(format!(r#"{{"model":"{model}"}}"#))));
        let mut request = request.unwrap();
        let answer = match self {
            Self::One(sender) => {
                *request.uri_mut() = http::Uri::from_static("/v1/chat/completions");
                sender.send_request(request).await
            }
            Self::Two(sender) => {
                *request.version_mut() = Version::HTTP_2;
                sender.send_request(request).await
            }
        };
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200);
        answer
    }

    async fn echoes(&mut self, key: &str) {
        let body = self.chat(key, "echo").await.into_body();
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(body, r#"{"model":"echo"}"#);
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_whoever_comes_and_breaks_nobody_off() {
    // Whoever listens for it is not ended by it.
    let _hangups = signal(SignalKind::hangup()).unwrap();
    for protocol in ["http/1.1", "h2"] {
        let folder = tempfile::tempdir().unwrap();
        let files = config::TlsFiles {
            cert: folder.path().join("cert.pem"),
            key: folder.path().join("key.pem"),
        };
        let first = replace(&files);
        let world = World::with(config::Ingress {
            tls: Some(config::Tls::Files(files.clone())),
            ..config()
        })
        .await;
        let tasks = TaskTracker::new();
        let stream = connect(&world, protocol, &[&first]).await;
        assert_eq!(shown(&stream), &first);
        let mut before = Sender::of(protocol, stream, &tasks).await;
        let mut running = before.chat(&world.key, "talk-on").await.into_body();
        let begin = running.frame().await.unwrap().unwrap();
        assert_eq!(begin.into_data().unwrap(), "data: {}\n\n");

        let second = replace(&files);
        let me = std::process::id().to_string();
        let kill = std::process::Command::new("kill")
            .args(["-s", "HUP", &me])
            .status();
        assert!(kill.unwrap().success());
        let stream = loop {
            let stream = connect(&world, protocol, &[&first, &second]).await;
            if *shown(&stream) == second {
                break stream;
            }
        };
        let mut after = Sender::of(protocol, stream, &tasks).await;
        after.echoes(&world.key).await;

        world.release.notify_one();
        running.collect().await.unwrap();
        before.echoes(&world.key).await;
    }
}
