//! A lab that is up: its files, its namespaces, and how it comes and goes.
//!
//! Two processes hold it, and each clears everything away when the other is gone: the keeper, which outlives `wan up`,
//! and the router it has started. Only killing both at once leaves namespaces behind; `down`, and the next `up` of that
//! name, clear those away too.

use std::{
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};

use vector_wan::{
    Remote,
    words::{Ask, ROOT},
};

use crate::{
    machine,
    process::{Process, wait_ended},
    topology::{self, Topology},
};

/// How long processes in a lab may take to end by themselves.
const GRACE: Duration = Duration::from_secs(2);

/// How long the kernel may take to end them then.
const KILLED_MAX: Duration = Duration::from_secs(5);

/// A lab by its name, whether up or not.
#[derive(Clone, Debug)]
pub(crate) struct Lab {
    pub(crate) name: String,
}

impl Lab {
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        if !topology::is_name(name) {
            bail!("lab `{name}`: a name is of A-Z a-z 0-9 - _");
        }
        Ok(Self {
            name: name.to_owned(),
        })
    }

    /// Every lab that has files.
    pub(crate) fn all() -> Vec<Self> {
        let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names.into_iter().map(|name| Self { name }).collect()
    }

    /// The lab of that name, or the only one there is.
    pub(crate) fn pick(name: Option<&str>) -> anyhow::Result<Self> {
        let all = Self::all();
        match (name, all.as_slice()) {
            (Some(name), _) => match all.iter().find(|lab| lab.name == name) {
                Some(lab) => Ok(lab.clone()),
                None => bail!("no lab `{name}` is up"),
            },
            (None, [only]) => Ok(only.clone()),
            (None, []) => bail!("no lab is up"),
            (None, _) => {
                let names: Vec<&str> = all.iter().map(|lab| lab.name.as_str()).collect();
                bail!("several labs are up ({}): say --lab NAME", names.join(", "))
            }
        }
    }

    pub(crate) fn folder(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    pub(crate) fn topology(&self) -> anyhow::Result<Topology> {
        Topology::load(&self.file("topology.toml"))
    }

    fn prefix(&self) -> String {
        format!("wan.{}.", self.name)
    }

    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.prefix())
    }

    pub(crate) fn remote(&self) -> Remote {
        Remote::of(&self.name)
    }

    /// Whether its router answers.
    pub(crate) fn is_up(&self) -> bool {
        self.remote().status(false).is_ok()
    }

    /// Notes that this process holds the lab.
    pub(crate) fn note_process(&self) -> anyhow::Result<()> {
        let mut file = fs::File::options()
            .create(true)
            .append(true)
            .open(self.file("pids"))?;
        Ok(writeln!(file, "{}", std::process::id())?)
    }

    /// Processes that hold it; a number that another program has by now is none.
    fn holders(&self) -> Vec<Process> {
        let text = fs::read_to_string(self.file("pids")).unwrap_or_default();
        // Found before it is looked at: what is looked at is what was found.
        let holder = |pid: &str| Process::find(number(pid)?).filter(|_| self.is_held_by(pid));
        text.lines().filter_map(holder).collect()
    }

    fn is_held_by(&self, pid: &str) -> bool {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0).skip(1);
        words.next() == Some(b"--lab") && words.next() == Some(self.name.as_bytes())
    }

    /// Waits until nobody holds it any more, so that nobody clears away what is made next.
    pub(crate) fn wait_gone(&self) {
        wait_ended(&self.holders(), Instant::now() + GRACE + KILLED_MAX);
    }

    /// Ends the router, waits until its keeper has cleared away, and does so itself where there was none. Tells
    /// whether anybody held it.
    pub(crate) fn take_down(&self) -> anyhow::Result<bool> {
        let holders = self.holders();
        // It may end before it has answered, or be gone already.
        let _ = self.remote().ask(&Ask::Quit);
        wait_ended(&holders, Instant::now() + GRACE + KILLED_MAX);
        self.clear()?;
        Ok(!holders.is_empty())
    }

    /// Makes the namespaces, each with names for all hosts and no name server, so that unknown names fail at once.
    pub(crate) fn make_namespaces(&self, topology: &Topology) -> anyhow::Result<()> {
        for host in &topology.hosts {
            let namespace = self.namespace(&host.name);
            machine::ip(&["netns", "add", &namespace])?;
            let etc = Path::new("/etc/netns").join(&namespace);
            fs::create_dir_all(&etc)?;
            fs::write(etc.join("hosts"), topology.hosts_file())?;
            fs::write(etc.join("resolv.conf"), "options timeout:1 attempts:1\n")?;
        }
        Ok(())
    }

    /// Every namespace that is this lab's by its name.
    fn namespaces(&self) -> Vec<String> {
        let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names
            .filter(|name| name.starts_with(&self.prefix()))
            .collect()
    }

    /// Ends what runs in the lab, and removes all of it. May be done twice, and from two sides.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        let namespaces = self.namespaces();
        for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, KILLED_MAX)] {
            let deadline = Instant::now() + patience;
            let mut left = running(&namespaces);
            for process in &left {
                process.signal(signal);
            }
            while !left.is_empty() && Instant::now() < deadline {
                wait_ended(&left, deadline);
                // Those that they have started meanwhile.
                left = running(&namespaces);
            }
        }
        for namespace in &namespaces {
            let etc = Path::new("/etc/netns").join(namespace);
            gone(fs::remove_dir_all(etc))?;
            if let Err(error) = machine::ip(&["netns", "del", namespace])
                && Path::new("/run/netns").join(namespace).exists()
            {
                return Err(error);
            }
        }
        // Only when no other lab needs it.
        let _ = fs::remove_dir("/etc/netns");
        gone(fs::remove_dir_all(self.folder()))?;
        let _ = fs::remove_dir(ROOT);
        Ok(())
    }

    /// Becomes a command on one of the hosts; its number, signals and exit code are the command's.
    pub(crate) fn exec(&self, host: &str, command: &[String]) -> anyhow::Result<()> {
        let topology = self.topology()?;
        let Some(found) = topology.hosts.iter().find(|known| known.name == host) else {
            bail!("no host `{host}` in lab {}", self.name);
        };
        let address = topology.addresses[found.addresses[0]].ip;
        let error = Command::new("ip")
            .args(["netns", "exec", &self.namespace(host)])
            .args(command)
            .env("WAN_LAB", &self.name)
            .env("WAN_HOST", host)
            .env("WAN_IP", address.to_string())
            .exec();
        Err(error).context("cannot run `ip netns exec`")
    }
}

/// What somebody else has removed meanwhile is removed.
fn gone(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn running(namespaces: &[String]) -> Vec<Process> {
    let texts = namespaces
        .iter()
        .filter_map(|namespace| machine::ip(&["netns", "pids", namespace]).ok());
    let own = rustix::process::getpid();
    let others = |text: String| {
        let pids = text.lines().filter_map(number).filter(|pid| *pid != own);
        pids.filter_map(Process::find).collect::<Vec<_>>()
    };
    texts.flat_map(others).collect()
}

fn number(text: &str) -> Option<Pid> {
    text.trim().parse().ok().and_then(Pid::from_raw)
}
