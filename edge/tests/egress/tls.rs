//! A provider behind TLS, mostly one that speaks HTTP/2.

use std::convert::Infallible;

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::{HandshakeKind, pki_types::PrivatePkcs8KeyDer};
use tokio_util::task::TaskTracker;

use super::*;

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let said = format!("{:?} {}", request.version(), request.uri());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let said = format!("{said} {}", body.len());
    Ok(Response::new(Full::new(said.into())))
}

type Stream = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;

/// Reads a client's frames until its first request, and says that nothing of it was or will be done.
async fn go_away(mut stream: Stream) {
    const PREFACE_BYTES: usize = 24;
    const HEADERS: u8 = 1;
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    stream.write_all(&settings).await.unwrap();
    stream.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if head[3] == HEADERS {
            let (last_stream, no_error) = ([0; 4], [0; 4]);
            let goaway = [&[0, 0, 8, 7, 0, 0, 0, 0, 0], &last_stream[..], &no_error].concat();
            stream.write_all(&goaway).await.unwrap();
        }
    }
}

/// A provider behind TLS.
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
        Self::serving(b"h2", move |stream, _| {
            let answer = answer.clone();
            async move {
                // The connection ends when the test does.
                let _ = http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .await;
            }
        })
        .await
    }

    /// Leaves each connection, with its number, to `serve`, which speaks this protocol.
    async fn serving<F, S>(protocol: &[u8], serve: F) -> Self
    where
        F: Fn(Stream, usize) -> S + Clone + Send + Sync + 'static,
        S: Future<Output = ()> + Send + 'static,
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
        config.alpn_protocols = vec![protocol.to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let tasks = TaskTracker::new();
        tasks.clone().spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let (acceptor, serve) = (acceptor.clone(), serve.clone());
                tasks.spawn(async move {
                    serve(acceptor.accept(socket).await.unwrap(), number).await;
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

#[tokio::test]
async fn a_provider_that_goes_away_before_a_request_is_asked_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let provider = Provider::serving(b"h2", move |stream, number| {
        let counted = Arc::clone(&counted);
        async move {
            if number == 0 {
                return go_away(stream).await;
            }
            let answer = service_fn(move |request| {
                counted.fetch_add(1, Ordering::SeqCst);
                echo(request)
            });
            // The connection ends when the test does.
            let _ = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        }
    })
    .await;
    let answered = provider.town().await.ask(chat(2), b"{}").await.unwrap();
    assert!(answered.text().ends_with(" 2"), "{}", answered.text());
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

/// Reads a request of [`chat`] and sends an answer that ends with its connection.
async fn answer_openly(stream: &mut Stream) -> std::io::Result<()> {
    let (mut asked, mut part) = (Vec::new(), [0; 4096]);
    while !asked.ends_with(b"\r\n\r\n{}") {
        match stream.read(&mut part).await? {
            0 => return Ok(()),
            count => asked.extend_from_slice(&part[..count]),
        }
    }
    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n\r\nhalf";
    stream.write_all(answer).await?;
    stream.flush().await
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_whole_only_if_tls_says_so() {
    let lost = "the provider's connection broke off";
    for (good_bye, why) in [(true, ""), (false, lost)] {
        let provider = Provider::serving(b"http/1.1", move |mut stream, _| async move {
            answer_openly(&mut stream).await.unwrap();
            if good_bye {
                stream.shutdown().await.unwrap();
            }
        })
        .await;
        let answered = provider.town().await.ask(chat(2), b"{}").await.unwrap();
        assert_eq!(answered.text(), "half");
        assert_eq!(answered.trailers.broken, why);
    }
}

/// Answers one request, and has the next one come over another connection.
async fn answer_one(stream: Stream) {
    let asked = Arc::new(Notify::new());
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(|request| {
        asked.notify_one();
        async move {
            let mut answer = echo(request).await?;
            if !is_http2 {
                let close = http::HeaderValue::from_static("close");
                answer.headers_mut().insert(http::header::CONNECTION, close);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let io = TokioIo::new(stream);
    // How a connection ends is the egress's affair.
    if !is_http2 {
        let _ = http1::Builder::new().serve_connection(io, service).await;
        return;
    }
    let mut connection =
        std::pin::pin!(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service));
    tokio::select! {
        _ = &mut connection => return,
        () = asked.notified() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

#[tokio::test]
async fn a_further_connection_goes_on_with_the_session_of_one_before() {
    for protocol in ["h2", "http/1.1"] {
        let kinds = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&kinds);
        let provider = Provider::serving(protocol.as_bytes(), move |stream, _| {
            seen.lock().extend(stream.get_ref().1.handshake_kind());
            answer_one(stream)
        })
        .await;
        let town = provider.town().await;
        for _ in 0..3 {
            let answered = town.ask(chat(2), b"{}").await.unwrap();
            assert!(answered.text().ends_with(" 2"), "{}", answered.text());
        }
        let (full, resumed) = (HandshakeKind::Full, HandshakeKind::Resumed);
        assert_eq!(*kinds.lock(), [full, resumed, resumed], "{protocol}");
    }
}
