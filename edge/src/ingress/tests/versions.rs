//! HTTP/2, with and without TLS, and a client that is refused while it still sends.

use http::{Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{
    world::{World, config, refused},
    *,
};

/// One chat over an HTTP/2 connection: its status and body.
async fn chat(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    key: &str,
    model: &str,
) -> (u16, String) {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
        .await
        .unwrap();
    let tasks = TaskTracker::new();
    tasks.spawn(connection);
    let request = Request::post("https://localhost/v1/chat/completions")
        .version(Version::HTTP_2)
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(format!(r#"{{"model":"{model}"}}"#))))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn http2_needs_no_tls_where_the_client_knows() {
    let world = World::start().await;
    let (status, body) = chat(world.connect().await, &world.key, "echo").await;
    assert_eq!((status, body.as_str()), (200, r#"{"model":"echo"}"#));
    let (status, body) = chat(world.connect().await, &world.key, "sse").await;
    assert!(
        status == 200 && body.ends_with("data: [DONE]\n\n"),
        "{body}"
    );
    let (_, body) = chat(world.connect().await, &world.key, "break").await;
    assert!(body.contains("data: {\"error\":"), "{body}");
}

#[tokio::test]
async fn an_answer_over_http2_that_its_client_does_not_take_is_cancelled() {
    let mut world = World::with(config::Ingress {
        stall: Duration::from_millis(50),
        ..config()
    })
    .await;
    // No room for a byte: pings are answered, and everything else of the connection goes on.
    let tasks = TaskTracker::new();
    let io = TokioIo::new(world.connect().await);
    let handshake = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake(io);
    let (mut sender, connection) = handshake.await.unwrap();
    tasks.spawn(connection);
    let ask = |model: &str| {
        Request::post("https://localhost/v1/chat/completions")
            .version(Version::HTTP_2)
            .header("authorization", format!("Bearer {}", world.key))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(format!(r#"{{"model":"{model}"}}"#))))
            .unwrap()
    };
    let untaken = sender.send_request(ask("talk-stream")).await.unwrap();
    // One that has nothing to say yet is not at fault.
    let silent = sender.send_request(ask("hang-stream")).await.unwrap();
    while world.events.recv().await.unwrap() != "cancelled" {}
    untaken.into_body().collect().await.unwrap_err();
    assert!(world.events.try_recv().is_err(), "the silent one goes on");
    drop(silent);
    assert_eq!(world.events.recv().await.unwrap(), "cancelled");
}

#[tokio::test]
async fn tls_offers_http2_and_http1() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = config::TlsFiles {
        cert: folder.path().join("cert.pem"),
        key: folder.path().join("key.pem"),
    };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let world = World::with(config::Ingress {
        tls: Some(config::Tls::Files(files)),
        ..config()
    })
    .await;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from(made.cert.der().to_vec()))
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let plain = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    for protocol in ["h2", "http/1.1"] {
        let mut tls = plain.clone();
        tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        let socket = world.connect().await;
        let mut stream = TlsConnector::from(Arc::new(tls))
            .connect(name, socket)
            .await
            .unwrap();
        assert_eq!(
            stream.get_ref().1.alpn_protocol(),
            Some(protocol.as_bytes())
        );
        if protocol == "h2" {
            let (status, body) = chat(stream, &world.key, "echo").await;
            assert_eq!((status, body.as_str()), (200, r#"{"model":"echo"}"#));
        } else {
            let request = world.post("/v1/chat/completions", r#"{"model":"echo"}"#);
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut out = Vec::new();
            stream.read_to_end(&mut out).await.unwrap();
            assert!(
                out.ends_with(br#"{"model":"echo"}"#),
                "{}",
                String::from_utf8_lossy(&out)
            );
        }
    }
}

#[tokio::test]
async fn a_client_that_is_refused_in_mid_upload_can_read_why() {
    let world = World::with(config::Ingress {
        body_bytes_max: 1000,
        ..config()
    })
    .await;
    let mut socket = world.connect().await;
    let head = world.head("POST", "/v1/chat/completions");
    let head = format!("{head}Content-Type: application/json\r\nContent-Length: 4000000\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    // The refusal is there long before the client looks.
    for _ in 0..40 {
        socket.write_all(&[b'x'; 100_000]).await.unwrap();
    }
    let mut out = String::new();
    socket.read_to_string(&mut out).await.unwrap();
    refused(&out, 413, "request_too_large");
}
