//! One ingress, one or two egress nodes, and how to talk to them.

use tokio::sync::Notify;

use super::*;

/// What the egress saw or felt, as short texts.
pub(super) type Events = mpsc::Receiver<String>;

pub(super) struct World {
    pub(super) address: SocketAddr,
    pub(super) key: String,
    pub(super) limited_key: String,
    /// For two tokens a minute.
    pub(super) metered_key: String,
    /// For one request at once.
    pub(super) narrow_key: String,
    pub(super) events: Events,
    /// See `egress::Strings`.
    pub(super) release: Arc<Notify>,
    pub(super) drain: CancellationToken,
    pub(super) handle: Handle,
    pub(super) tunnel: Tunnel,
    pub(super) control: control::Control,
}

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

fn hello(node: &str) -> v1::Hello {
    v1::Hello {
        version: VERSION,
        node: node.into(),
        epoch: 7,
        takes_ahead: true,
        ..v1::Hello::default()
    }
}

async fn link(egress: &str, strings: egress::Strings, tunnel: &Tunnel, tasks: &TaskTracker) {
    let name: Arc<str> = egress.into();
    let handler: ArrivalHandler = Arc::new({
        let name = Arc::clone(&name);
        move |arrival| Box::pin(egress::act(arrival, Arc::clone(&name), strings.clone()))
    });
    let acceptor = Acceptor::new(
        Tunnel::default(),
        Arc::new(NoCredentials),
        hello(egress),
        Some(handler),
        None,
        tasks.clone(),
    );
    let (here, there) = memory::pair();
    let me = hello("ingress");
    let (dialled, adopted) = tokio::join!(
        Link::dialled(
            tunnel,
            Connection::Memory(here),
            &me,
            Peer::within(name),
            "memory".into()
        ),
        acceptor.adopt(Connection::Memory(there), "ingress".into()),
    );
    adopted.unwrap();
    let ready = dialled.unwrap();
    tunnel.add(&ready.link);
    tasks.spawn(ready.serve());
}

/// Links both egress nodes once the gate is open, one as soon as the other.
async fn links(gate: Arc<Notify>, strings: egress::Strings, tunnel: Tunnel, tasks: TaskTracker) {
    gate.notified().await;
    tokio::join!(
        link("egress-a", strings.clone(), &tunnel, &tasks),
        link("egress-b", strings, &tunnel, &tasks),
    );
}

pub(super) fn config() -> config::Ingress {
    config::Ingress {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        public_addresses: Vec::new(),
        url: "http://127.0.0.1".into(),
        tls: None,
        body_bytes_max: 1 << 30,
        body_spool_bytes: 64 << 20,
        header_read: Duration::from_secs(10),
        body_idle: Duration::from_secs(10),
        stall: Duration::from_secs(60),
        ping: Duration::from_secs(15),
        queue: Duration::from_secs(10),
        connections_max: 1000,
        drain: Duration::from_secs(10),
        notice: Duration::ZERO,
        request: Duration::from_secs(30),
    }
}

fn digest_of(key: &str) -> [u8; 32] {
    let reveal = ApiKey::parse(key).unwrap().reveal();
    digest::digest(&digest::SHA256, reveal.as_bytes())
        .as_ref()
        .try_into()
        .unwrap()
}

impl World {
    pub(super) async fn start() -> Self {
        Self::with(config()).await
    }

    pub(super) async fn with(config: config::Ingress) -> Self {
        let gate = Arc::new(Notify::new());
        gate.notify_one();
        let world = Self::unlinked(config, gate).await;
        while world.tunnel.status().len() < 2 {
            tokio::task::yield_now().await;
        }
        world
    }

    /// Its links come up when the gate is opened.
    pub(super) async fn unlinked(config: config::Ingress, gate: Arc<Notify>) -> Self {
        let (told, events) = mpsc::channel(1024);
        let tunnel = Tunnel::default();
        let tasks = TaskTracker::new();
        let release = Arc::new(Notify::new());
        let strings = egress::Strings {
            events: told,
            release: Arc::clone(&release),
        };
        tasks.spawn(links(gate, strings, tunnel.clone(), tasks.clone()));
        let key = ApiKey::assemble("0123456789", &"s".repeat(ApiKey::SECRET_CHARS));
        let limited_key = ApiKey::assemble("limited789", &"s".repeat(ApiKey::SECRET_CHARS));
        let metered_key = ApiKey::assemble("metered789", &"s".repeat(ApiKey::SECRET_CHARS));
        let narrow_key = ApiKey::assemble("narrow6789", &"s".repeat(ApiKey::SECRET_CHARS));
        let policy = |id: &str| KeyPolicy {
            key: id.into(),
            account: "acme".into(),
            ..KeyPolicy::default()
        };
        let limited = KeyPolicy {
            models: vec!["echo".into(), "refuse".into(), "refuse-untouched".into()],
            requests_per_minute: 2,
            ..policy("limited789")
        };
        let metered = KeyPolicy {
            tokens_per_minute: 2,
            ..policy("metered789")
        };
        let narrow = KeyPolicy {
            concurrency: 1,
            tokens_per_minute: 100,
            ..policy("narrow6789")
        };
        let keys = [
            (digest_of(&narrow_key), narrow),
            (digest_of(&metered_key), metered),
            (digest_of(&key), policy("0123456789")),
            (digest_of(&limited_key), limited),
        ];
        let control = control::start(&["egress-a", "egress-b"], keys.into()).await;
        let drain = CancellationToken::new();
        let started = Ingress::start(
            config,
            control.plane.clone(),
            tunnel.clone(),
            Limiter::new(),
            Telemetry::silent(),
            drain.clone(),
        );
        let handle = started.await.unwrap();
        Self {
            address: handle.address,
            key,
            limited_key,
            metered_key,
            narrow_key,
            events,
            release,
            drain,
            handle,
            tunnel,
            control,
        }
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends raw bytes and returns everything that comes back until the connection ends.
    pub(super) async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut socket = self.connect().await;
        socket.write_all(bytes.as_ref()).await.unwrap();
        let mut out = Vec::new();
        // A connection that is reset is as ended as one that is closed.
        let _ended = socket.read_to_end(&mut out).await;
        String::from_utf8_lossy(&out).into_owned()
    }

    /// The head of a request that is good, up to its last headers.
    pub(super) fn head(&self, method: &str, target: &str) -> String {
        format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nConnection: close\r\n",
            self.key
        )
    }

    pub(super) fn post(&self, target: &str, body: &str) -> String {
        let head = self.head("POST", target);
        format!(
            "{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    /// A chat request for a model.
    pub(super) async fn chat(&self, model: &str) -> String {
        let body = format!(r#"{{"model":"{model}","messages":[]}}"#);
        self.raw(self.post("/v1/chat/completions", &body)).await
    }
}

/// Asserts that an answer is an error in OpenAI's shape with this status and code.
pub(super) fn refused(answer: &str, status: u16, code: &str) {
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status} ")),
        "wanted {status} {code}: {answer}"
    );
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let body: serde_json::Value =
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {answer}"));
    assert_eq!(body["error"]["code"], code, "{answer}");
    assert!(
        body["error"]["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "{answer}"
    );
    assert!(
        body["error"]["type"].is_string() && body["error"].get("param").is_some(),
        "{answer}"
    );
}
