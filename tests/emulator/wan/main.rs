//! Brings up a WAN on one machine: every host of a topology a network namespace with a TUN device, and one router that
//! moves whole IP packets between them and holds, drops or doubles them as each line says.
//!
//! TCP, UDP and ICMP share a line's queue and meet the same treatment. Lines are changed while it runs, and each change
//! is answered with the time of its effect on the monotonic clock. Linux only, as root.

// What is to be.
mod topology;

mod selector;

// How it comes and goes.
mod lab;

mod keep;

// What carries packets.
mod router;

mod packet;

// How it is spoken to.
mod door;

mod show;

mod ping;

// What it stands on.
mod machine;

mod process;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use vector_wan::words::{AskError, Status};

use crate::{keep::Options, lab::Lab};

/// A WAN on one machine, for rehearsals and measurements. Needs root.
#[derive(Debug, Parser)]
#[command(name = "wan", version, after_help = KEYS)]
struct Command {
    /// Which lab, where several are up. Default: the topology's file name.
    #[arg(long, global = true, env = "WAN_LAB")]
    lab: Option<String>,
    #[command(subcommand)]
    what: What,
}

/// What conditions there are, under `--help`.
const KEYS: &str = "\
LINE is A:B for one way, A::B for both; a name may end in *. Conditions are KEY=VALUE:
  delay_ms rtt_ms          one-way delay; rtt_ms is twice it
  jitter_ms jitter_dist    deviation of the delay; normal or uniform
  jitter_corr_ms           how long a delay lasts (50)
  loss                     share lost, each packet on its own: 0.02 or 2%
  burst_loss burst_ms burst_density   share lost in bursts of time, their length (20), loss within one (1)
  rate_mbit queue_ms       bits of IP a second, and the drop-tail queue before it (50)
  blackhole                on: nothing comes out; drain: what is under way still does; off
  duplicate reorder reorder_ms keep_order   shares doubled and held back, by how much (5)";

#[derive(Debug, Subcommand)]
enum What {
    /// Bring a topology up
    Up {
        /// The file
        topology: PathBuf,
        #[command(flatten)]
        held: Held,
    },
    /// Take a lab down, with all processes in it
    Down,
    /// Tell hosts, lines, what they carried, and whether the router kept its time
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Set all counters to zero afterwards
        #[arg(long)]
        reset: bool,
    },
    /// Change lines at once; tells when that took effect
    Set {
        /// A:B, A::B, 'edge-*::egress-1'
        line: String,
        /// loss=1% delay_ms=90 blackhole=on
        #[arg(required = true)]
        changes: Vec<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Become a command on a host
    Exec {
        /// The host's name
        host: String,
        /// The command
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Send UDP packets from one address to another and back: delays, loss, the longest gap
    Ping {
        /// From
        a: String,
        /// To
        b: String,
        /// How many
        #[arg(long, short = 'n', default_value_t = 100)]
        count: u64,
        /// Apart, in ms
        #[arg(long, short, default_value_t = 10.0)]
        interval_ms: f64,
        /// Of each
        #[arg(long, short = 's', default_value_t = 100)]
        bytes: usize,
    },
    #[command(hide = true)]
    Keep {
        #[command(flatten)]
        held: Held,
    },
    #[command(hide = true)]
    Route {
        #[command(flatten)]
        held: Held,
    },
}

#[derive(Args, Clone, Copy, Debug)]
struct Held {
    /// Take the lab down when this process ends
    #[arg(long, value_name = "PID")]
    with_pid: Option<i32>,
    /// Wait awake for so long before a packet is due: more exact, and costs processor time
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1000))]
    spin_us: u64,
    /// Instead of the topology's
    #[arg(long)]
    seed: Option<u64>,
}

impl From<Held> for Options {
    fn from(held: Held) -> Self {
        Self {
            with_pid: held.with_pid,
            spin_us: held.spin_us,
            seed: held.seed,
        }
    }
}

fn main() -> ExitCode {
    match run(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wan: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    machine::check()?;
    let name = command.lab.as_deref();
    match command.what {
        What::Up { topology, held } => up(name, &topology, held),
        What::Down => down(&Lab::pick(name)?),
        What::Status { json, reset } => status(&Lab::pick(name)?, json, reset),
        What::Set {
            line,
            changes,
            json,
        } => set(&Lab::pick(name)?, &line, &changes, json),
        What::Exec { host, command } => Lab::pick(name)?.exec(&host, &command),
        What::Ping {
            a,
            b,
            count,
            interval_ms,
            bytes,
        } => {
            let lab = Lab::pick(name)?;
            let plan = ping::Plan {
                count,
                interval: Duration::try_from_secs_f64(interval_ms / 1e3)?,
                bytes,
                linger: Duration::from_secs(1),
            };
            let report = ping::run(&end(&lab, &a)?, &end(&lab, &b)?, plan)?;
            say(&report.shown())
        }
        What::Keep { held } => keep::keep(&Lab::pick(name)?, &held.into()),
        What::Route { held } => keep::route(&Lab::pick(name)?, &held.into()),
    }
}

fn up(name: Option<&str>, topology: &Path, held: Held) -> anyhow::Result<()> {
    let stem = topology.file_stem().unwrap_or_default().to_string_lossy();
    let lab = Lab::new(name.unwrap_or(&stem))?;
    keep::up(&lab, topology, &held.into())?;
    say(&format!(
        "lab {} is up\n{}",
        lab.name,
        show::hosts(&lab.topology()?)
    ))
}

fn down(lab: &Lab) -> anyhow::Result<()> {
    let was_up = lab.take_down()?;
    let what = if was_up {
        "is down"
    } else {
        "was dead, and is cleared away"
    };
    say(&format!("lab {} {what}\n", lab.name))
}

fn status(lab: &Lab, json: bool, reset: bool) -> anyhow::Result<()> {
    let mut status = in_lab(lab, lab.remote().status(reset))?;
    let topology = lab.topology()?;
    for host in &topology.hosts {
        let drops = machine::device_drops(&lab.namespace(&host.name));
        let drops = drops.map(|count| (host.name.clone(), count));
        status.router.device_drops.extend(drops);
    }
    if json {
        return say_json::<Status>(&status);
    }
    let hosts = show::hosts(&topology);
    say(&format!(
        "lab {}\n{hosts}{}",
        lab.name,
        show::status(&status)
    ))
}

fn set(lab: &Lab, lines: &str, changes: &[String], json: bool) -> anyhow::Result<()> {
    let set = in_lab(lab, lab.remote().set(lines, &changes.join(" ")))?;
    if json {
        return say_json(&set);
    }
    say(&show::set(&set))
}

fn in_lab<T>(lab: &Lab, said: Result<T, AskError>) -> anyhow::Result<T> {
    said.with_context(|| format!("lab {}", lab.name))
}

fn end(lab: &Lab, name: &str) -> anyhow::Result<ping::End> {
    let topology = lab.topology()?;
    let address = topology.addresses.iter().find(|known| known.name == name);
    let address = address.with_context(|| format!("no address `{name}` in lab {}", lab.name))?;
    Ok(ping::End {
        namespace: lab.namespace(&topology.hosts[address.host].name),
        ip: address.ip,
    })
}

fn say_json<T: serde::Serialize>(what: &T) -> anyhow::Result<()> {
    say(&format!("{}\n", serde_json::to_string(what)?))
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
