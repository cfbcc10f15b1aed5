//! A provider behind TLS that speaks HTTP/2.

use std::convert::Infallible;

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_util::task::TaskTracker;

use super::*;

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let said = format!("{:?} {}", request.version(), request.uri());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let said = format!("{said} {}", body.len());
    Ok(Response::new(Full::new(said.into())))
}

#[tokio::test]
async fn http2_is_spoken_where_it_is_offered() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, made.cert.pem()).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let tasks = TaskTracker::new();
    tasks.clone().spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let acceptor = acceptor.clone();
            tasks.spawn(async move {
                let tls = acceptor.accept(socket).await.unwrap();
                let io = TokioIo::new(tls);
                // The connection ends when the test does.
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(io, service_fn(echo))
                    .await;
            });
        }
    });
    let base = format!("https://localhost:{port}/v1");
    let town = Town::with_roots(&base, &["one"], Some(&roots)).await;
    let asks = (0..20).map(|_| town.ask(chat(2), b"{}"));
    for answered in futures_util::future::join_all(asks).await {
        let expected = format!("HTTP/2.0 https://localhost:{port}/v1/chat/completions 2");
        assert_eq!(answered.unwrap().text(), expected);
    }
    let body = vec![b'x'; 300 << 10];
    let answered = town.ask(chat(body.len()), &body).await.unwrap();
    assert!(answered.text().ends_with(&format!(" {}", body.len())));
    assert_eq!(
        connections.load(Ordering::SeqCst),
        1,
        "a crowd makes one connection"
    );
}
