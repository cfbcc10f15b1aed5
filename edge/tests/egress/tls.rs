//! A provider behind TLS that speaks HTTP/2.

use std::convert::Infallible;

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http2, service::service_fn};
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

/// A provider that speaks HTTP/2 and nothing else.
struct Provider {
    port: u16,
    /// Holds `roots.pem`, which signs for it.
    folder: tempfile::TempDir,
    connections: Arc<AtomicUsize>,
}

impl Provider {
    async fn start<F, S, E>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> S + Clone + Send + Sync + 'static,
        S: Future<Output = Result<Response<Full<Bytes>>, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("roots.pem"), made.cert.pem()).unwrap();
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
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tasks.spawn(async move {
                    let io = TokioIo::new(acceptor.accept(socket).await.unwrap());
                    // The connection ends when the test does.
                    let _ = http2::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service_fn(answer))
                        .await;
                });
            }
        });
        Self {
            port,
            folder,
            connections,
        }
    }

    async fn town(&self) -> Town {
        let base = format!("https://localhost:{}/v1", self.port);
        Town::with_roots(&base, &["one"], Some(&self.folder.path().join("roots.pem"))).await
    }
}

#[tokio::test]
async fn http2_is_spoken_where_it_is_offered() {
    let provider = Provider::start(echo).await;
    let (town, port) = (provider.town().await, provider.port);
    let asks = (0..20).map(|_| town.ask(chat(2), b"{}"));
    for answered in futures_util::future::join_all(asks).await {
        let expected = format!("HTTP/2.0 https://localhost:{port}/v1/chat/completions 2");
        assert_eq!(answered.unwrap().text(), expected);
    }
    let body = vec![b'x'; 300 << 10];
    let answered = town.ask(chat(body.len()), &body).await.unwrap();
    assert!(answered.text().ends_with(&format!(" {}", body.len())));
    assert_eq!(
        provider.connections.load(Ordering::SeqCst),
        1,
        "a crowd makes one connection"
    );
}

#[tokio::test]
async fn a_stream_that_the_provider_refuses_is_asked_for_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let provider = Provider::start(move |request| {
        let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if first {
                return Err(h2::Error::from(h2::Reason::REFUSED_STREAM));
            }
            Ok(echo(request).await.unwrap_or_else(|never| match never {}))
        }
    })
    .await;
    // A POST, which may not be done twice: it was not done once.
    let answered = provider.town().await.ask(chat(2), b"{}").await.unwrap();
    assert!(answered.text().ends_with(" 2"), "{}", answered.text());
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}
