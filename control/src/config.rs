//! Settings of the control plane: as written in TOML and the environment, and as meant.
//!
//! Unknown keys are refused and all faults are told at once, each with its key. Every key can be set by
//! `VECTOR_<SECTION>_<KEY>`, which wins over the file. [`Config`] holds no option that "must be set".

use std::{net::SocketAddr, path::PathBuf};

use zeroize::Zeroizing;

use self::source::Source;

mod dns;
pub use dns::Dns;

mod ledger;
pub use ledger::{Password, Postgres};

mod source;

/// What secrets are sealed with, and what else opens them, as hex digits. Never in the file.
const MASTER_KEY_VARIABLE: &str = "VECTOR_CONTROL_MASTER_KEY";
const OTHER_MASTER_KEYS_VARIABLE: &str = "VECTOR_CONTROL_OTHER_MASTER_KEYS";

/// Longest time between canaries and the rest: an hour. Who wants longer pauses the rollout.
const ROLLOUT_PAUSE_MS_MAX: u64 = 3_600_000;

/// Everything `vector-control` can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where nodes and operators connect (gRPC over TLS). Default `127.0.0.1:7000`.
    pub listen: SocketAddr,
    /// Names and addresses that the server's certificate carries. Default `localhost`, `127.0.0.1`.
    pub names: Vec<String>,
    /// Holds `control.sqlite`, `ledger.sqlite`, `ca/` and `master.key`. Must be kept and backed up.
    pub data_dir: PathBuf,
    /// What secrets are sealed with: the same on every replica. Default `master.key` in the data directory.
    pub master_key_file: PathBuf,
    /// The same from the environment, as hex digits: then there is no file.
    pub master_key: Option<Password>,
    /// Files of master keys that are opened with and never sealed with, while one takes the other's place.
    pub other_master_key_files: Vec<PathBuf>,
    /// The same from the environment.
    pub other_master_keys: Vec<Password>,
    /// Ends every name that this network's certificates carry. Default `vector.local`.
    pub trust_domain: String,
    /// Where `/livez`, `/readyz` and `/metrics` are. Default `127.0.0.1:9099`.
    pub admin_listen: SocketAddr,
    /// Gets the operator's token at the first start. Default `admin.token` in the data directory.
    pub admin_token_file: PathBuf,
    /// Time in milliseconds that canaries have a change of configuration before everybody has it; 0: none. Default 5 s.
    pub rollout_pause_ms: u64,
    /// So many of a hundred nodes of each role are canaries, at least one. 1 to 50; default 10.
    pub rollout_canaries_percent: u32,
    /// The cluster that holds the registry. Without it, `control.sqlite` does.
    pub etcd: Option<Etcd>,
    /// The database that holds usage, objects and claims. Without it, `ledger.sqlite` does.
    pub ledger: Option<Postgres>,
    /// The zone that is answered with the nearest ingress. Without it, none is.
    pub dns: Option<Dns>,
    /// Filter of the log, such as `info` or `info,vector_control=debug`.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// An etcd cluster, and how to log in there.
#[derive(Clone, Debug)]
pub struct Etcd {
    /// `http://` or `https://` addresses of the members.
    pub endpoints: Vec<String>,
    /// Stands before every key. Default `/vector`.
    pub root: String,
    /// Name, and the file with the password.
    pub user: Option<(String, PathBuf)>,
    /// PEM of what signs the members' certificates. Default: what this machine trusts.
    pub ca_file: Option<PathBuf>,
    /// PEM of the certificate to show, and of its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not TOML.
    #[error("not TOML: {0}")]
    Syntax(String),
    /// Every fault with its key.
    #[error("{}", .0.join("\n"))]
    Faults(Vec<String>),
}

impl Config {
    /// Reads settings from TOML text and an environment, which wins.
    ///
    /// # Errors
    /// [`Error`] with every fault found.
    pub fn read(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let mut source = Source::parse(text, env).map_err(Error::Syntax)?;
        let listen = source.address("control", "listen", "127.0.0.1:7000");
        let names = source.list("control", "names", &["localhost", "127.0.0.1"]);
        let data_dir = PathBuf::from(source.text("control", "data_dir", "data"));
        let trust_domain = source.text("control", "trust_domain", "vector.local");
        let admin_listen = source.address("admin", "listen", "127.0.0.1:9099");
        let token_file = source.text("control", "admin_token_file", "");
        let master_key_file = source.text("control", "master_key_file", "");
        let other_master_key_files = source.list("control", "other_master_key_files", &[]);
        let master_key = keys(&source, MASTER_KEY_VARIABLE).pop();
        let other_master_keys = keys(&source, OTHER_MASTER_KEYS_VARIABLE);
        let (pause, percent) = staging(&mut source);
        let etcd = etcd(&mut source);
        let ledger = ledger::read(&mut source);
        let dns = dns::read(&mut source);
        let log = source.text("telemetry", "log", "info");
        let format = source.text("telemetry", "format", "json");
        // Known to every process of ours, so that one environment serves them all; control makes no traces yet.
        let _otlp = source.text("telemetry", "otlp", "");

        if !is_domain(&trust_domain) {
            source.fault(
                "control.trust_domain",
                "must be a domain name in lower case",
            );
        }
        if names.is_empty() {
            source.fault("control.names", "must name at least one host or address");
        }
        let log_format = match format.as_str() {
            "json" => LogFormat::Json,
            "text" => LogFormat::Text,
            _ => {
                source.fault("telemetry.format", "must be `json` or `text`");
                LogFormat::Json
            }
        };
        let or_here = |file: String, name: &str| {
            if file.is_empty() {
                data_dir.join(name)
            } else {
                PathBuf::from(file)
            }
        };
        let admin_token_file = or_here(token_file, "admin.token");
        let master_key_file = or_here(master_key_file, "master.key");
        source.finish().map_err(Error::Faults)?;
        Ok(Self {
            listen,
            names,
            data_dir,
            master_key_file,
            master_key,
            other_master_key_files: other_master_key_files
                .into_iter()
                .map(PathBuf::from)
                .collect(),
            other_master_keys,
            trust_domain,
            admin_listen,
            admin_token_file,
            rollout_pause_ms: pause,
            rollout_canaries_percent: u32::try_from(percent).unwrap_or(10),
            etcd,
            ledger,
            dns,
            log,
            log_format,
        })
    }
}

/// Keys that only the environment may hold, parted by commas.
fn keys(source: &Source<'_>, variable: &str) -> Vec<Password> {
    let text = Zeroizing::new(source.secret(variable).unwrap_or_default());
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| Password(Zeroizing::new(part.to_owned())))
        .collect()
}

/// Time that canaries have a change first, in milliseconds, and how many of a hundred nodes they are.
fn staging(source: &mut Source<'_>) -> (u64, u64) {
    let within = 0..=ROLLOUT_PAUSE_MS_MAX;
    (
        source.number("control", "rollout_pause_ms", 5_000, within),
        source.number("control", "rollout_canaries_percent", 10, 1..=50),
    )
}

fn etcd(source: &mut Source<'_>) -> Option<Etcd> {
    let endpoints = source.list("etcd", "endpoints", &[]);
    let root = source.text("etcd", "root", "/vector");
    let mut file = |key: &str| {
        let path = source.text("etcd", key, "");
        (!path.is_empty()).then(|| PathBuf::from(path))
    };
    let (password, ca_file) = (file("password_file"), file("ca_file"));
    let (certificate, key) = (file("certificate_file"), file("key_file"));
    let user = source.text("etcd", "user", "");
    for endpoint in &endpoints {
        if !(endpoint.starts_with("http://") || endpoint.starts_with("https://")) {
            source.fault(
                "etcd.endpoints",
                &format!("`{endpoint}` must begin with http:// or https://"),
            );
        }
    }
    if !root.starts_with('/') || root.len() > 200 {
        source.fault("etcd.root", "must begin with `/` and be short");
    }
    if user.is_empty() != password.is_none() {
        source.fault("etcd.user", "goes together with etcd.password_file");
    }
    if certificate.is_some() != key.is_some() {
        source.fault("etcd.certificate_file", "goes together with etcd.key_file");
    }
    (!endpoints.is_empty()).then(|| Etcd {
        endpoints,
        root,
        user: password.map(|password| (user, password)),
        ca_file,
        certificate: certificate.zip(key),
    })
}

fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        matches!(label.len(), 1..=63)
            && label
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    text.len() <= 180 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_is_good() {
        let text = include_str!("../../deploy/config/control.toml");
        Config::read(text, &|_| None).unwrap();
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let text = "[control]\nlisten = \"nowhere\"\nlissten = 1\n[etcd]\nendpoints = [\"me:2379\"]\nuser = \"u\"\n[telemetry]\nformat = \"xml\"\n[nonsense]\na = 1";
        let error = Config::read(text, &|_| None).unwrap_err().to_string();
        for key in [
            "control.listen",
            "control.lissten",
            "etcd.endpoints",
            "etcd.user",
            "telemetry.format",
            "nonsense",
        ] {
            assert!(error.contains(key), "{key} is missing in: {error}");
        }
    }

    #[test]
    fn the_environment_wins() {
        let env = |key: &str| (key == "VECTOR_CONTROL_LISTEN").then(|| "[::1]:1".to_owned());
        let config = Config::read("[control]\nlisten = \"127.0.0.1:2\"", &env).unwrap();
        assert_eq!(config.listen.to_string(), "[::1]:1");
    }
}
