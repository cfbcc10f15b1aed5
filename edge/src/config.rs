//! Settings of a node: as written in TOML and the environment (`raw`), and as meant ([`Config`]).
//!
//! Unknown keys are refused and all faults are told at once, each with its key. Every key can be
//! set by `VECTOR_<SECTION>_<KEY>`, which wins over the file. Nothing in [`Config`] must still be
//! checked by who reads it: an [`Option`] there means that the thing is truly optional.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use vector_proto::id::NodeId;

pub use acme::Acme;

mod acme;

mod check;

mod raw;

/// Everything a node can be told.
#[derive(Debug)]
pub struct Config {
    /// Who the node is.
    pub node: Node,
    /// Where its orders come from.
    pub control: Control,
    /// Present exactly on nodes with that role.
    pub ingress: Option<Ingress>,
    /// How other nodes reach this one.
    pub tunnel: Tunnel,
    /// Present exactly on nodes with that role.
    pub egress: Option<Egress>,
    /// The operator's door.
    pub admin: Admin,
    /// Logs, metrics and traces.
    pub telemetry: Telemetry,
    /// How long running exchanges may go on after a signal to stop (`ingress.drain_ms`, on every node).
    pub drain: Duration,
}

/// `[node]`: who the node is.
#[derive(Clone, Debug)]
pub struct Node {
    /// Wanted name; without one, the invite or control chooses.
    pub id: Option<NodeId>,
    /// Where it stands; without one, where the invite says.
    pub region: Option<NodeId>,
    /// What it does. Sorted, at least one.
    pub roles: Vec<Role>,
    /// Holds key, certificate, the last snapshot and the epoch. Made when absent.
    pub state_dir: PathBuf,
    /// Threads that do the work. Default: one for each core.
    pub workers: usize,
}

/// `[control]`: where the node's orders come from.
#[derive(Debug)]
pub struct Control {
    /// The replicas of control, such as `https://127.0.0.1:7000`. Sorted, at least one.
    pub urls: Vec<http::Uri>,
    /// Needed before the first enrolment only.
    pub invite: Option<Secret>,
}

/// `[ingress]`: how clients reach the node.
#[derive(Clone, Debug)]
pub struct Ingress {
    /// Where clients connect. Default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// What clients write as Base URL, without `/v1`. Default: made from `listen`.
    pub url: String,
    /// Where clients reach it, for control's zone. Default: the address in `url`, if it has one.
    pub public_addresses: Vec<IpAddr>,
    /// Without it the listener speaks plain HTTP, which needs a loopback address or `insecure`.
    pub tls: Option<Tls>,
    /// Largest request body. Default 4 GiB; bodies stream, so this costs no memory.
    pub body_bytes_max: u64,
    /// Part of a body beyond its first MiB that is kept on disk, so that it can be sent to a second
    /// candidate. Default 64 MiB; 0 keeps none, and what is larger then gets one try.
    pub body_spool_bytes: u64,
    /// For the whole head of a request. Default 10 s.
    pub header_read: Duration,
    /// Longest silence within a request's body, whose average pace has a bound of its own (`ingress::upload`). Default 30 s.
    pub body_idle: Duration,
    /// How long a client may take nothing of its answer. Default 60 s.
    pub stall: Duration,
    /// Silence in an event stream after which a comment is sent. Default 15 s.
    pub ping: Duration,
    /// How long a request may wait for a credential that rests, from its begin, or for a path.
    pub queue: Duration,
    /// Connections of clients at once. Default 16,384.
    pub connections_max: usize,
    /// How long running exchanges may go on after a signal to stop. Default 30 s.
    pub drain: Duration,
    /// How long clients are still taken after a signal to stop, while `/readyz` says no already. Default 1 s.
    pub notice: Duration,
    /// Longest life of one exchange. Default 10 min.
    pub request: Duration,
}

/// Where the certificate that clients see comes from.
#[derive(Clone, Debug)]
pub enum Tls {
    /// Files that somebody else renews.
    Files(TlsFiles),
    /// An authority that the node asks itself.
    Acme(Acme),
}

/// A certificate chain and its key, in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Leaf first.
    pub cert: PathBuf,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// `[tunnel]`: how other nodes reach this one.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// UDP sockets. Default `127.0.0.1:7440`; on a node that is ingress only, any free port.
    pub listen: Vec<SocketAddr>,
    /// host:port where others reach them. Default: `listen`, as far as it names an address and port.
    pub advertise: Vec<String>,
    /// How often links are probed.
    pub heartbeat: Heartbeat,
    /// Megabits a second of the leased line that all links of this node share. Default: not known,
    /// and found out.
    pub line_mbps: Option<u32>,
    /// Heartbeats are sent, heard and judged on a thread of their own, so that a busy node does not look dead. Default: no.
    pub own_runtime: bool,
}

/// `[tunnel] heartbeat_*_ms`: time between heartbeats. The two ends of a link agree on the shorter
/// one, but not on one below the other's `active`.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeat {
    /// While exchanges are in flight: a dead path is left after about five of these. Default 10 ms.
    pub active: Duration,
    /// While a link stands ready. Default 50 ms.
    pub standby: Duration,
    /// After ten minutes without exchange. Default 1 s.
    pub cold: Duration,
}

/// `[egress]`: how providers are called when they say nothing themselves.
#[derive(Clone, Debug)]
pub struct Egress {
    /// For TCP and TLS. Default 5 s.
    pub connect: Duration,
    /// From the request's last byte to the answer's first. Default 10 min: models think long.
    pub first_byte: Duration,
    /// Longest silence within an answer. Default 5 min.
    pub idle: Duration,
    /// PEM with roots that are trusted besides the system's.
    pub tls_roots: Option<PathBuf>,
    /// Answers to requests with an idempotency key, kept on disk in `node.state_dir` for a day: so many bytes, and the
    /// oldest go first. Default 4 GiB.
    pub kept_bytes_max: u64,
    /// Credentials are kept, sealed, in `node.state_dir`, so that a start without control has some. Default: yes.
    pub keep_credentials: bool,
}

/// `[admin]`: the operator's door.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where `/livez`, `/readyz` and `/metrics` are. Default `127.0.0.1:9100`.
    pub listen: SocketAddr,
}

/// `[telemetry]`: logs, metrics and traces.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// Filter of the log, such as `info` or `info,vector_edge::tunnel=debug`.
    pub log: String,
    /// How log lines look. Default JSON.
    pub format: Format,
    /// Where traces go, such as `http://127.0.0.1:4317`.
    pub otlp: Option<String>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What a node does.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Role {
    /// Accepts clients.
    Ingress,
    /// Passes exchanges on.
    Relay,
    /// Calls providers.
    Egress,
}

impl Role {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Relay => "relay",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "ingress" => Ok(Self::Ingress),
            "relay" => Ok(Self::Relay),
            "egress" => Ok(Self::Egress),
            _ => Err(UnknownRole),
        }
    }
}

/// Not a role.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a role is `ingress`, `relay` or `egress`")]
pub struct UnknownRole;

/// A text that must not be seen. It cannot be printed, compared, cloned or serialised.
pub struct Secret(zeroize::Zeroizing<String>);

impl Secret {
    /// Takes the text in.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(zeroize::Zeroizing::new(text))
    }

    /// The one door out. Grep for `reveal` to see every place a secret is used.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("not TOML: {0}")]
    Syntax(String),
    /// Every fault with its key, one a line.
    #[error("{}", .0.join("\n"))]
    Faults(Vec<String>),
}

impl Config {
    /// Reads a file and the process's environment.
    ///
    /// # Errors
    /// [`Error`] with every fault found.
    pub fn load(path: &std::path::Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })?;
        Self::read(&text, &|name| std::env::var(name).ok())
    }

    /// Reads TOML text and an environment, which wins.
    ///
    /// # Errors
    /// [`Error`] with every fault found.
    pub fn read(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let (raw, mut faults) = raw::read(text, env)?;
        let config = check::check(raw, &mut faults);
        match config {
            Some(config) if faults.is_empty() => Ok(config),
            _ => Err(Error::Faults(faults)),
        }
    }

    /// Whether the node has a role.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.node.roles.contains(&role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [node]
        id = "ingress-eu-1"
        region = "eu"
        roles = ["ingress"]
        state_dir = "/tmp/x"
        [control]
        url = "https://127.0.0.1:7000"
    "#;

    fn check(text: &str, env: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        let look = |name: &str| {
            let found = env.iter().find(|row| row.0 == name);
            found.map(|row| row.1.to_owned())
        };
        Config::read(text, &look).map_err(|error| match error {
            Error::Faults(faults) => faults,
            other => vec![other.to_string()],
        })
    }

    #[test]
    fn little_needs_to_be_said() {
        let config = check(GOOD, &[]).unwrap();
        let ingress = config.ingress.unwrap();
        assert_eq!(ingress.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(ingress.url, "http://127.0.0.1:8080");
        assert_eq!(ingress.ping, Duration::from_secs(15));
        assert!(config.egress.is_none());
        assert!(config.tunnel.advertise.is_empty());
        assert_eq!(config.tunnel.heartbeat.active, Duration::from_millis(10));
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_key() {
        let text = r#"
            [node]
            id = "Not A Name"
            roles = ["ingress", "king"]
            colour = "red"
            [control]
            url = 7
            [ingress]
            listen = "everywhere"
            ping_ms = "soon"
            tls_cert = "a.pem"
            [tunnel]
            line_mbps = 0
            [telemetry]
            format = "xml"
            [attic]
            x = 1
        "#;
        let faults = check(text, &[("VECTOR_INGRESS_INSECURE", "perhaps")]).unwrap_err();
        for key in [
            "node.id",
            "node.roles",
            "node.state_dir",
            "node.colour",
            "control.url",
            "ingress.listen",
            "tunnel.line_mbps",
            "ingress.ping_ms",
            "ingress.tls_key",
            "ingress.insecure",
            "telemetry.format",
            "attic",
        ] {
            let told = faults
                .iter()
                .filter(|fault| fault.starts_with(&format!("{key}:")));
            assert_eq!(told.count(), 1, "{key} in {faults:#?}");
        }
    }

    #[test]
    fn the_environment_wins_for_every_key() {
        let env = [
            ("VECTOR_NODE_ID", "other"),
            ("VECTOR_NODE_ROLES", "egress, relay"),
            ("VECTOR_EGRESS_IDLE_MS", "1234"),
            ("VECTOR_TUNNEL_LISTEN", "127.0.0.1:7441,127.0.0.1:7442"),
            ("VECTOR_CONTROL_INVITE", "vinv_x.y"),
            // Other programs' names do no harm.
            ("VECTOR_CONTROL", "https://x"),
            ("VECTOR_ADMIN_TOKEN", "t"),
        ];
        let config = check(GOOD, &env).unwrap();
        assert_eq!(config.node.id.as_ref().map(NodeId::as_str), Some("other"));
        assert_eq!(config.node.roles, [Role::Relay, Role::Egress]);
        assert_eq!(
            config.egress.as_ref().unwrap().idle,
            Duration::from_millis(1234)
        );
        assert_eq!(
            config.tunnel.advertise,
            ["127.0.0.1:7441", "127.0.0.1:7442"]
        );
        assert!(config.ingress.is_none());
        assert!(!format!("{config:?}").contains("vinv_"));
    }

    #[test]
    fn plain_http_stays_at_home_unless_forced() {
        let open = GOOD.to_owned()
            + "[ingress]\nlisten = \"0.0.0.0:8080\"\nurl = \"http://edge.example\"\n";
        let faults = check(&open, &[]).unwrap_err();
        assert!(faults[0].starts_with("ingress.tls_cert:"), "{faults:?}");
        assert!(check(&(open + "insecure = true\n"), &[]).is_ok());
    }

    #[test]
    fn the_examples_are_good() {
        let read = |text: &str| check(text, &[]).unwrap();
        let roles = |config: &Config| config.node.roles.clone();
        let all = read(include_str!("../../deploy/config/edge-all.toml"));
        assert_eq!(roles(&all), [Role::Ingress, Role::Relay, Role::Egress]);
        let ingress = read(include_str!("../../deploy/config/edge-ingress.toml"));
        assert_eq!(roles(&ingress), [Role::Ingress]);
        let relay = read(include_str!("../../deploy/config/edge-relay.toml"));
        assert_eq!(roles(&relay), [Role::Relay]);
        let egress = read(include_str!("../../deploy/config/edge-egress.toml"));
        assert_eq!(roles(&egress), [Role::Egress]);
    }
}
