//! The two processes behind a lab: the keeper, which makes it and clears it away, and the router in its charge.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, bail};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{FlockOperation, flock},
    process::{Pid, PidfdFlags, pidfd_open, setsid},
};
use tappers::linux::Tun;
use vector_wan::words;

use crate::{
    door::Door,
    lab::Lab,
    machine,
    router::{Ended, Router},
    topology::{Host, Topology},
};

/// What the router and the keeper write when they are ready.
const READY: &str = "ready";

/// Longest that either of them says why it is not.
const SHOWN_BYTES_MAX: u64 = 4000;

/// What `up` was told besides the topology.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// The lab goes when this process ends.
    pub(crate) with_pid: Option<i32>,
    pub(crate) spin_us: u64,
    pub(crate) seed: Option<u64>,
}

impl Options {
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--spin-us={}", self.spin_us)];
        arguments.extend(self.with_pid.map(|pid| format!("--with-pid={pid}")));
        arguments.extend(self.seed.map(|seed| format!("--seed={seed}")));
        arguments
    }
}

/// Starts a lab's keeper, and returns when the lab is up.
pub(crate) fn up(lab: &Lab, topology: &Path, options: &Options) -> anyhow::Result<()> {
    Topology::load(topology)?;
    // Held until the keeper has the folder, so that two cannot make the same lab.
    let gate = gate()?;
    if lab.is_up() {
        bail!("lab {} is up already", lab.name);
    }
    lab.wait_gone();
    lab.clear().context("cannot clear away what was left")?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(lab.folder())?;
    fs::copy(topology, lab.file("topology.toml"))?;
    let mut keeper = start(lab, "keep", options, Stdio::null())?;
    let said = wait_ready(&mut keeper);
    if said.is_err() {
        // It clears away; what it cannot, this does.
        keeper.wait()?;
        lab.clear()?;
    }
    drop(gate);
    said.with_context(|| format!("lab {} cannot come up", lab.name))
}

/// A file that only one maker of labs holds at a time.
fn gate() -> anyhow::Result<File> {
    let file = File::create("/run/vector-wan.lock")?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Starts this program again in another part. What it writes as an error goes to the lab's log.
fn start(lab: &Lab, part: &str, options: &Options, input: Stdio) -> anyhow::Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(lab.file("log"))?;
    let child = Command::new(std::env::current_exe()?)
        .args(["--lab", &lab.name, part])
        .args(options.arguments())
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    Ok(child)
}

fn wait_ready(child: &mut Child) -> anyhow::Result<()> {
    let output = child.stdout.take().context("no pipe")?;
    let mut line = String::new();
    BufReader::new(output.take(SHOWN_BYTES_MAX)).read_line(&mut line)?;
    match line.trim_end() {
        READY => Ok(()),
        "" => bail!("a process of it has ended"),
        error => bail!("{error}"),
    }
}

/// One line: [`READY`], or why not.
fn tell(text: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout();
    writeln!(output, "{}", text.replace('\n', " "))?;
    Ok(output.flush()?)
}

/// The keeper's life: makes the namespaces, starts the router, and clears all away when that or `with_pid` has ended.
pub(crate) fn keep(lab: &Lab, options: &Options) -> anyhow::Result<()> {
    setsid()?;
    lab.note_process()?;
    let kept = match begin(lab, options) {
        Ok((router, watched)) => tell(READY).and_then(|()| watch(router, watched.as_ref())),
        Err(error) => tell(&format!("{error:#}")),
    };
    let cleared = lab.clear();
    kept.and(cleared)
}

fn begin(lab: &Lab, options: &Options) -> anyhow::Result<(Child, Option<OwnedFd>)> {
    let watched = options.with_pid.map(|pid| {
        let pid = Pid::from_raw(pid).context("--with-pid: no process")?;
        pidfd_open(pid, PidfdFlags::empty()).context("--with-pid: no such process")
    });
    let watched = watched.transpose()?;
    lab.make_namespaces(&lab.topology()?)?;
    let mut router = start(lab, "route", options, Stdio::piped())?;
    wait_ready(&mut router)?;
    Ok((router, watched))
}

/// Until the router has ended, or the process that the lab lives with.
fn watch(mut router: Child, watched: Option<&OwnedFd>) -> anyhow::Result<()> {
    let ended = pidfd_open(Pid::from_child(&router), PidfdFlags::empty())?;
    let mut fds = vec![PollFd::new(&ended, PollFlags::IN)];
    fds.extend(watched.map(|watched| PollFd::new(watched, PollFlags::IN)));
    while poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
    // Closing the lifeline ends a router that still runs.
    drop(router.stdin.take());
    router.wait()?;
    Ok(())
}

/// The router's life; its standard input is the lifeline to the keeper.
pub(crate) fn route(lab: &Lab, options: &Options) -> anyhow::Result<()> {
    lab.note_process()?;
    let (mut router, door) = match join_up(lab, options) {
        Ok(joined) => joined,
        Err(error) => return tell(&format!("{error:#}")),
    };
    tell(READY)?;
    let lifeline = std::io::stdin();
    let ended = router.run(&door, &lifeline.as_fd())?;
    // The devices go before the namespaces do.
    drop(router);
    match ended {
        // The keeper clears away.
        Ended::Told => Ok(()),
        Ended::Alone => lab.clear(),
    }
}

fn join_up(lab: &Lab, options: &Options) -> anyhow::Result<(Router, Door)> {
    let mut topology = lab.topology()?;
    topology.seed = options.seed.unwrap_or(topology.seed);
    let hosts = topology.hosts.iter();
    let tuns = hosts.map(|host| connect(lab, host, &topology));
    let tuns = tuns.collect::<anyhow::Result<Vec<Tun>>>()?;
    let door = Door::open(&lab.file(words::SOCKET))?;
    let router = Router::new(topology, tuns, options.spin_us * 1000)?;
    Ok((router, door))
}

/// Makes a host's device, with its addresses and settings.
fn connect(lab: &Lab, host: &Host, topology: &Topology) -> anyhow::Result<Tun> {
    let namespace = lab.namespace(&host.name);
    let name = &host.name;
    let tun = machine::within(&namespace, || {
        let tun = machine::open_tun()?;
        // Nothing of one run's round trips or windows is carried over to the next.
        machine::set_sysctl("net.ipv4.tcp_no_metrics_save", "1")?;
        // Not every kernel has it.
        let _ = machine::set_sysctl(
            &format!("net.ipv6.conf.{}.disable_ipv6", machine::DEVICE),
            "1",
        );
        for (key, value) in &host.sysctl {
            machine::set_sysctl(key, value)?;
        }
        Ok(tun)
    });
    let tun = tun.with_context(|| format!("host {name}"))?;
    machine::ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
    for address in &host.addresses {
        let address = format!("{}/24", topology.addresses[*address].ip);
        machine::ip(&[
            "-n",
            &namespace,
            "addr",
            "add",
            &address,
            "dev",
            machine::DEVICE,
        ])?;
    }
    let mtu = host.mtu.to_string();
    let device = [
        "dev",
        machine::DEVICE,
        "mtu",
        &mtu,
        "txqueuelen",
        "4000",
        "up",
    ];
    machine::ip(&[&["-n", &namespace, "link", "set"], device.as_slice()].concat())?;
    Ok(tun)
}
