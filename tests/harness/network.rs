//! A whole network, started by the script that users start theirs with.
//!
//! [`Network::shared`] is one for all tests of a process that break nothing; [`Network::own`] is one for a test that kills
//! or restarts, and only one of those lives at a time.

mod extra;

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;

pub use self::extra::{Extra, RevivedControl};
use crate::{Client, http, keeper::Keeper, place, wait};

/// The nodes that take clients.
pub const INGRESS: [&str; 2] = ["ingress-eu-1", "ingress-us-1"];

/// Every node that `up` starts.
pub const NODES: [&str; 5] = [
    "ingress-eu-1",
    "ingress-us-1",
    "egress-us-1",
    "egress-us-2",
    "relay-us-1",
];

/// Offsets in the network's ports, as `deploy/local/network.sh` has them.
const CONTROL_ADMIN: u16 = 20;
const NODE_ADMIN: u16 = 21;
const EXTRA: u16 = 30;

/// Ports of an extra node: clients, tunnel, admin.
const EXTRA_PORTS: u16 = 3;

static ALONE: Mutex<()> = Mutex::new(());

static SHARED: LazyLock<Network> = LazyLock::new(|| Network::start(&[]));

/// A running network.
#[derive(Debug)]
pub struct Network {
    dir: PathBuf,
    base: u16,
    bin: PathBuf,
    env: Vec<(String, String)>,
    extras: Mutex<u16>,
    options: &'static [&'static str],
    _keeper: Keeper,
}

/// A network that one test has for itself.
#[derive(Debug)]
pub struct Own {
    // In this order: the network is down before another one may start.
    network: Network,
    _alone: MutexGuard<'static, ()>,
}

impl Deref for Own {
    type Target = Network;

    fn deref(&self) -> &Network {
        &self.network
    }
}

/// What `vectorctl` said when it did not do as told.
#[derive(Debug)]
pub struct Refused {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it wrote.
    pub text: String,
}

/// Where the script finds its network, and nothing of ours that it could take for another's.
pub(crate) fn settings(command: &mut Command, dir: &Path, base: u16) {
    for (name, _) in std::env::vars() {
        if name.starts_with("VECTOR_") || name.starts_with("OPENAI_") {
            command.env_remove(name);
        }
    }
    command
        .env("VECTOR_LOCAL_DIR", dir)
        .env("VECTOR_PORT_BASE", base.to_string());
}

impl Network {
    /// The network of all tests that leave it as they found it.
    pub fn shared() -> &'static Self {
        &SHARED
    }

    /// A network for one test. Waits until no other test has one.
    pub fn own() -> Own {
        Self::own_with(&[])
    }

    /// The same, with options of `up`. With `--etcd` there is no room for extra nodes: its members have their ports.
    pub fn own_with(options: &'static [&'static str]) -> Own {
        // A test that failed with its network in hand harms nobody after it.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Own {
            network: Self::start(options),
            _alone: alone,
        }
    }

    fn start(options: &'static [&'static str]) -> Self {
        let bin = place::bin();
        let dir = tempfile::Builder::new()
            .prefix("vector-it-")
            .tempdir()
            .unwrap()
            .keep()
            .join("network");
        let base = place::port_base();
        let mut network = Self {
            _keeper: Keeper::new(&dir, base),
            dir,
            base,
            bin,
            env: Vec::new(),
            extras: Mutex::new(0),
            options,
        };
        network.up();
        let text = fs::read_to_string(network.dir.join("env")).unwrap();
        let exports = text.lines().filter_map(|line| line.strip_prefix("export "));
        network.env = exports
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        network
    }

    /// Runs `deploy/local/up`: starts what is not running.
    pub fn up(&self) {
        let mut command = Command::new(place::root().join("deploy/local/up"));
        command
            .args(["--no-build", "--fast-provider"])
            .args(self.options)
            .stdin(Stdio::null());
        settings(&mut command, &self.dir, self.base);
        let output = command.env("VECTOR_BIN_DIR", &self.bin).output().unwrap();
        assert!(
            output.status.success(),
            "deploy/local/up: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// A counter of a process, over all its labels; 0 where it has none of that name.
    pub fn counted(&self, admin: SocketAddr, metric: &str) -> f64 {
        let page = http::Request::new(admin, "GET", "/metrics").send().text();
        let lines = page.lines().filter_map(|line| line.rsplit_once(' '));
        lines
            .filter(|(sample, _)| sample.split('{').next() == Some(metric))
            .filter_map(|(_, value)| value.parse::<f64>().ok())
            .sum()
    }

    /// A line of `.local/env`.
    pub fn env(&self, name: &str) -> &str {
        let found = self.env.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).unwrap()
    }

    /// Where clients reach an ingress, by its name.
    pub fn address(&self, ingress: &str) -> SocketAddr {
        let at = INGRESS.iter().position(|name| *name == ingress).unwrap();
        ([127, 0, 0, 1], self.base + u16::try_from(at).unwrap()).into()
    }

    /// Where a process says how it is: a node's name, or `control`.
    pub fn admin(&self, name: &str) -> SocketAddr {
        let offset = NODES.iter().position(|node| *node == name).map_or_else(
            || {
                assert_eq!(name, "control");
                CONTROL_ADMIN
            },
            |at| NODE_ADMIN + u16::try_from(at).unwrap(),
        );
        ([127, 0, 0, 1], self.base + offset).into()
    }

    /// The UDP ports of all nodes' tunnels.
    pub fn tunnels(&self) -> impl Iterator<Item = SocketAddr> {
        let base = self.base;
        (10..15).map(move |offset| ([127, 0, 0, 1], base + offset).into())
    }

    /// A client of the key that `up` made.
    pub fn client(&self, ingress: &str) -> Client {
        Client::new(self.address(ingress), self.env("OPENAI_API_KEY"))
    }

    /// The network's folder: `log`, `config`, `node` and the rest.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The sample provider that `up` started, as `http://host:port`.
    pub fn provider_url(&self) -> &str {
        self.env("SAMPLE_PROVIDER_URL")
    }

    /// The number of a process, by its name.
    pub fn pid(&self, name: &str) -> u32 {
        let pids = self.pids();
        pids.iter().find(|(known, _)| known == name).unwrap().1
    }

    /// Every process: name and number.
    pub fn pids(&self) -> Vec<(String, u32)> {
        let text = fs::read_to_string(self.dir.join("pids")).unwrap();
        text.lines()
            .filter_map(|line| {
                let (name, pid) = line.split_once(' ')?;
                Some((name.to_owned(), pid.parse().ok()?))
            })
            .collect()
    }

    /// Sends a signal, such as `KILL`, to a process.
    pub fn signal(&self, name: &str, signal: &str) {
        send_signal(self.pid(name), signal);
    }

    /// Whether a process still runs.
    pub fn runs(&self, name: &str) -> bool {
        is_running(self.pid(name))
    }

    /// Kills a process, and waits until it is gone.
    pub fn kill(&self, name: &str) {
        let pid = self.pid(name);
        send_signal(pid, "KILL");
        wait::wait_for("a killed process ends", || !is_running(pid));
    }

    /// Runs `vectorctl` with JSON output.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Value, Refused> {
        self.ctl_text(&[&["--json"], arguments].concat(), "")
            .map(|text| serde_json::from_str(&text).unwrap())
    }

    /// Runs `vectorctl` with something on its standard input, and gives back what it wrote.
    pub fn ctl_text(&self, arguments: &[&str], input: &str) -> Result<String, Refused> {
        let mut child = Command::new(self.bin.join("vectorctl"))
            .args(arguments)
            .env("VECTOR_CONTROL", self.env("VECTOR_CONTROL"))
            .env("VECTOR_ADMIN_TOKEN", self.env("VECTOR_ADMIN_TOKEN"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that refuses its arguments reads nothing.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        if output.status.success() {
            return Ok(text);
        }
        Err(Refused {
            code: output.status.code(),
            text: text + &String::from_utf8_lossy(&output.stderr),
        })
    }

    /// Applies a plan, and waits until every node that is connected has it.
    pub fn apply(&self, plan: &str) -> String {
        // Others apply plans of their own at the same time.
        let said = self
            .ctl_text(&["apply", "--base", "0", "-f", "-"], plan)
            .unwrap();
        self.settle();
        said
    }

    /// Waits until every node that is connected has the newest snapshot.
    pub fn settle(&self) {
        wait::wait_for("every node has the newest snapshot", || {
            let status = self.ctl(&["status"]).unwrap();
            let nodes = status["nodes"].as_array().unwrap();
            let newest = nodes.iter().filter_map(|node| node["revision"].as_u64());
            let newest = newest.chain(status["revision"].as_u64()).max();
            nodes
                .iter()
                .filter(|node| node["connected"] == true)
                .all(|node| node["revision"].as_u64() == newest)
        });
    }

    /// What a process has logged since it was started.
    pub fn log(&self, name: &str) -> String {
        let bytes = fs::read(self.dir.join("log").join(format!("{name}.log"))).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The lines of a process's log that are JSON, which is all of a node's.
    pub fn lines(&self, name: &str) -> Vec<Value> {
        self.log(name)
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The line that an exchange left in a node's log. It is written once the answer is over.
    pub fn exchange_line(&self, node: &str, exchange: &str) -> Value {
        wait::wait_some("an exchange's line in the log", || {
            self.lines(node)
                .into_iter()
                .find(|line| line["message"] == "exchange" && line["exchange"] == exchange)
        })
    }
}

fn send_signal(pid: u32, signal: &str) {
    let status = Command::new("kill")
        .args(["-s", signal, &pid.to_string()])
        .status();
    assert!(status.unwrap().success(), "kill -s {signal} {pid}");
}

/// Whether a process is there and not only waits to be buried.
fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit(')').next().unwrap_or("").trim_start();
        !state.starts_with(['Z', 'X'])
    })
}

/// The most memory that a process ever had resident, and what it has now, in bytes.
pub fn resident(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let kib = line.split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() << 10
    };
    (field("VmHWM:"), field("VmRSS:"))
}
