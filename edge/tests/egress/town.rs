//! A small town for tests of the egress: an ingress's end of a tunnel, an egress, and a provider on a real socket.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_util::task::TaskTracker;
use vector_edge::{
    egress::{Egress, Identity, Reports, provider::Row},
    identity::StateKeys,
    telemetry::Telemetry,
    tunnel::{
        Call, Credentials, Failure, Part, Path, Peer, Tunnel,
        accept::Acceptor,
        link::Link,
        transport::{Connection, memory},
    },
};
use vector_proto::{
    control::v1 as control,
    id::ExchangeId,
    tunnel::{
        VERSION,
        fields::{Block, Fields},
        v1,
    },
};

#[derive(Debug)]
struct NoCredentials;

impl Credentials for NoCredentials {
    fn client(&self) -> Arc<rustls::ClientConfig> {
        unreachable!("memory links have no TLS")
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        unreachable!("memory links have no TLS")
    }

    fn server_name(&self, node: &str) -> String {
        node.into()
    }

    fn peer(&self, _: &[rustls::pki_types::CertificateDer<'_>]) -> Option<Peer> {
        None
    }
}

/// What the egress told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) records: Mutex<Vec<control::UsageRecord>>,
    pub(crate) objects: Mutex<Vec<control::Object>>,
    /// The next record is in the journal's hands only once this has told that its answer's end was seen, or a moment has passed.
    pub(crate) slow: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
    /// That end was seen first.
    pub(crate) late: AtomicBool,
    news: Notify,
}

impl Reports for Told {
    fn record(&self, record: control::UsageRecord) {
        let slow = self.slow.lock().take();
        if let Some(seen) = slow {
            let wait = || seen.recv_timeout(Duration::from_millis(500)).is_ok();
            let late = tokio::task::block_in_place(wait);
            self.late.store(late, Ordering::Relaxed);
        }
        self.records.lock().push(record);
        self.news.notify_one();
    }

    fn object_made(&self, object: control::Object) {
        self.objects.lock().push(object);
    }
}

impl Told {
    /// Waits for the next record.
    pub(crate) async fn record(&self) -> control::UsageRecord {
        loop {
            if let Some(record) = self.records.lock().pop() {
                return record;
            }
            self.news.notified().await;
        }
    }
}

pub(crate) struct Town {
    pub(crate) tunnel: Tunnel,
    pub(crate) egress: Egress,
    pub(crate) told: Arc<Told>,
    tasks: TaskTracker,
    _answers: tempfile::TempDir,
}

/// A whole answer, as the ingress has it.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) head: v1::ResponseHead,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: v1::Trailers,
}

impl Answered {
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        value_of(&self.head.headers, name)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Town {
    /// A town whose provider `acme` is at `base_url` and has keys of these names; a key's secret is `secret-NAME`.
    pub(crate) async fn new(base_url: &str, keys: &[&str]) -> Self {
        Self::with_roots(base_url, keys, None).await
    }

    pub(crate) async fn with_roots(
        base_url: &str,
        keys: &[&str],
        roots: Option<&std::path::Path>,
    ) -> Self {
        let told = Arc::new(Told::default());
        let answers = tempfile::tempdir().unwrap();
        let me = Identity {
            node: "egress".into(),
            epoch: 7,
            answers: answers.path().to_owned(),
            answers_bytes_max: 1 << 30,
            keys: StateKeys::of(b"test"),
        };
        let telemetry = Telemetry::silent();
        let egress =
            Egress::new(me, roots, &telemetry, Arc::clone(&told) as Arc<dyn Reports>).unwrap();
        egress.take_providers(&[row(base_url, "")]);
        let credential = |name: &&str| control::Credential {
            name: (*name).into(),
            provider: "acme".into(),
            secret: format!("secret-{name}"),
            headers: [("OpenAI-Organization".to_owned(), format!("org-{name}"))].into(),
            ..control::Credential::default()
        };
        egress.take_credentials(&control::Credentials {
            revision: 1,
            credentials: keys.iter().map(credential).collect(),
            ..control::Credentials::default()
        });
        let tasks = TaskTracker::new();
        let tunnel = link(&egress, &tasks).await;
        Self {
            tunnel,
            egress,
            told,
            tasks,
            _answers: answers,
        }
    }

    /// Opens an exchange; the request's body is the caller's to send.
    pub(crate) async fn open(&self, exchange: ExchangeId, open: v1::Open) -> Call {
        let path = Path {
            egress: "egress".into(),
            relay: None,
        };
        let open = v1::Open {
            exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
            egress: "egress".into(),
            attempt: open.attempt.max(1),
            ..open
        };
        self.tunnel.open(&path, exchange, &open).await.unwrap()
    }

    /// Sends a request with a body and gives its answer's reading end.
    pub(crate) async fn send(&self, request: v1::RequestHead, body: &[u8]) -> Call {
        let open = v1::Open {
            request: Some(request),
            ..v1::Open::default()
        };
        let mut call = self.open(ExchangeId::fresh(), open).await;
        if !body.is_empty() {
            call.request
                .data(Bytes::copy_from_slice(body))
                .await
                .unwrap();
        }
        call.request.end().await.unwrap();
        call
    }

    /// Sends a request and reads its whole answer.
    pub(crate) async fn ask(
        &self,
        request: v1::RequestHead,
        body: &[u8],
    ) -> Result<Answered, v1::Refused> {
        let mut call = self.send(request, body).await;
        read(&mut call).await
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }
}

/// The provider `acme`, and who tells its balances.
pub(crate) fn row(base_url: &str, balance: &str) -> Row {
    let second = Duration::from_secs(1);
    Row {
        name: "acme".into(),
        kind: "openai".into(),
        base_url: base_url.parse().unwrap(),
        allow_private: true,
        connect: 10 * second,
        first_byte: 30 * second,
        idle: 30 * second,
        connections_max: 0,
        balance: balance.into(),
        probe: None,
    }
}

/// Reads an answer to its end.
pub(crate) async fn read(call: &mut Call) -> Result<Answered, v1::Refused> {
    let head = match call.response.head().await {
        Ok(head) => head,
        Err(Failure::Refused(refused)) => return Err(*refused),
        Err(Failure::Lost(lost)) => panic!("lost: {lost}"),
    };
    let (mut body, mut trailers) = (Vec::new(), v1::Trailers::default());
    loop {
        match call.response.next().await.unwrap() {
            Part::Data(bytes) => body.extend_from_slice(&bytes),
            Part::Trailers(told) => trailers = told,
            Part::End => break,
        }
    }
    Ok(Answered {
        head,
        body,
        trailers,
    })
}

async fn link(egress: &Egress, tasks: &TaskTracker) -> Tunnel {
    let hello = |node: &str| v1::Hello {
        version: VERSION,
        node: node.into(),
        epoch: 7,
        takes_ahead: true,
        ..v1::Hello::default()
    };
    let handler = Some(egress.handler());
    let credentials = Arc::new(NoCredentials);
    let (far, hi) = (Tunnel::default(), hello("egress"));
    let acceptor = Acceptor::new(far, credentials, hi, handler, None, tasks.clone());
    let tunnel = Tunnel::default();
    let (here, there) = memory::pair();
    let me = hello("ingress");
    let (dialled, adopted) = tokio::join!(
        Link::dialled(
            &tunnel,
            Connection::Memory(here),
            &me,
            Peer::within("egress".into()),
            "memory".into()
        ),
        acceptor.adopt(Connection::Memory(there), "ingress".into()),
    );
    adopted.unwrap();
    let ready = dialled.unwrap();
    tunnel.add(&ready.link);
    tasks.spawn(ready.serve());
    tunnel
}

/// A chat request's head with a body of this length.
pub(crate) fn chat(length: usize) -> v1::RequestHead {
    v1::RequestHead {
        method: "POST".into(),
        path: "/chat/completions".into(),
        operation: "chat.completions.create".into(),
        provider: "acme".into(),
        model: "gpt-public".into(),
        upstream_model: "gpt-public".into(),
        account: "initech".into(),
        key: "0123456789".into(),
        headers: headers(&[("content-type", "application/json")]),
        body_bytes: Some(length as u64),
        ..v1::RequestHead::default()
    }
}

pub(crate) fn headers(fields: &[(&str, &str)]) -> Bytes {
    let fields = fields.iter();
    let block: Block = fields
        .map(|(name, value)| (*name, value.as_bytes()))
        .collect();
    block.finish()
}

pub(crate) fn value_of(headers: &Bytes, wanted: &str) -> Option<String> {
    let mut found = Fields::of(headers).filter(|(name, _)| *name == wanted.as_bytes());
    let (_, value) = found.next()?;
    String::from_utf8(value.to_vec()).ok()
}

/// A provider that speaks in raw bytes. `script` gets each connection with its number, from 0.
pub(crate) async fn provider<F, S>(script: S) -> SocketAddr
where
    S: Fn(usize, Caller) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = TaskTracker::new();
    tasks.clone().spawn(async move {
        let mut number = 0;
        while let Ok((socket, _)) = listener.accept().await {
            socket.set_nodelay(true).unwrap();
            tasks.spawn(script(
                number,
                Caller {
                    socket,
                    held: Vec::new(),
                },
            ));
            number += 1;
        }
    });
    address
}

/// The egress's connection, as a provider has it.
pub(crate) struct Caller {
    pub(crate) socket: TcpStream,
    held: Vec<u8>,
}

impl Caller {
    /// Reads one request with its head and its body of known length; `None` when the egress closed.
    pub(crate) async fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let end = loop {
            if let Some(end) = memchr::memmem::find(&self.held, b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8(self.held.drain(..end).collect()).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while self.held.len() < length {
            self.more().await?;
        }
        let body = self.held.drain(..length).collect();
        Some((head, body))
    }

    async fn more(&mut self) -> Option<()> {
        let read = self.socket.read_buf(&mut self.held).await.unwrap_or(0);
        (read > 0).then_some(())
    }

    pub(crate) async fn say(&mut self, bytes: &str) {
        self.socket.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Answers with a status, headers (each ended by `\r\n`) and a body.
    pub(crate) async fn answer(&mut self, status: u16, headers: &str, body: &str) {
        let length = body.len();
        self.say(&format!(
            "HTTP/1.1 {status} Status\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        ))
        .await;
    }
}
