//! Nodes beside those that `deploy/local/up` starts, and such as are started again by themselves.

use std::{
    fs,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::PoisonError,
};

use super::{EXTRA, EXTRA_PORTS, INGRESS, Network, send_signal};
use crate::{Client, http, place, wait};

/// A node beside those that `up` starts. It ends with the thread that started it, and when dropped.
#[derive(Debug)]
pub struct Extra {
    child: Child,
    /// Where clients reach it; for a node that has none, as `admin`.
    pub address: SocketAddr,
    /// Where it says how it is.
    pub admin: SocketAddr,
    config: PathBuf,
    log: PathBuf,
    bin: PathBuf,
}

impl Network {
    /// Adds an ingress of its own settings, which are TOML of section `[ingress]`.
    pub fn extra_ingress(&self, name: &str, settings: &str) -> Extra {
        let [client, tunnel, admin] = self.extra_ports();
        let role = format!(
            "[tunnel]\nlisten = [\"{tunnel}\"]\n\
             [ingress]\nlisten = \"{client}\"\nurl = \"http://{client}\"\n{settings}\n"
        );
        self.extra(name, ("ingress", "eu"), &role, (client, admin))
    }

    /// Adds an egress that tells others to reach it at the addresses that `front` gives for its own.
    pub fn extra_egress(
        &self,
        name: &str,
        front: impl FnOnce(SocketAddr) -> Vec<SocketAddr>,
    ) -> Extra {
        let [_, tunnel, admin] = self.extra_ports();
        let told: Vec<String> = front(tunnel).iter().map(ToString::to_string).collect();
        let role = format!("[tunnel]\nlisten = [\"{tunnel}\"]\nadvertise = {told:?}\n");
        self.extra(name, ("egress", "us"), &role, (admin, admin))
    }

    /// An address of this network's that nobody listens at.
    pub fn free_address(&self) -> SocketAddr {
        self.extra_ports()[0]
    }

    /// For clients, for its tunnel and to say how it is.
    fn extra_ports(&self) -> [SocketAddr; EXTRA_PORTS as usize] {
        let mut extras = self.extras.lock().unwrap_or_else(PoisonError::into_inner);
        *extras += 1;
        assert!(*extras <= (place::PORTS - EXTRA) / EXTRA_PORTS);
        let first = self.base + EXTRA + (*extras - 1) * EXTRA_PORTS;
        [first, first + 1, first + 2].map(|port| ([127, 0, 0, 1], port).into())
    }

    fn extra(
        &self,
        name: &str,
        (role, region): (&str, &str),
        settings: &str,
        (address, admin): (SocketAddr, SocketAddr),
    ) -> Extra {
        let arguments = [
            "node", "invite", "--node", name, "--role", role, "--region", region,
        ];
        let said = self.ctl_text(&arguments, "").unwrap();
        let invite = said
            .split(|c: char| !c.is_ascii_alphanumeric() && !"_.-".contains(c))
            .find(|word| word.starts_with("vinv_"))
            .unwrap();
        let (state, control) = (self.dir.join("node").join(name), self.env("VECTOR_CONTROL"));
        let text = format!(
            "[node]\nid = \"{name}\"\nregion = \"{region}\"\nroles = [\"{role}\"]\nstate_dir = \"{}\"\n\
             [control]\nurl = \"{control}\"\ninvite = \"{invite}\"\n\
             [admin]\nlisten = \"{admin}\"\n{settings}",
            state.display()
        );
        let config = self.dir.join("config").join(format!("{name}.toml"));
        fs::write(&config, text).unwrap();
        let log = self.dir.join("log").join(format!("{name}.log"));
        let mut extra = Extra {
            child: start(&self.bin, "vector-edge", &config, &log),
            address,
            admin,
            config,
            log,
            bin: self.bin.clone(),
        };
        extra.ready();
        extra
    }

    /// Starts control by itself with such variables in its environment, after the one of `up` was killed or another like this
    /// has ended, and waits until it is ready. `name` is its log's.
    pub fn revive_control(&self, name: &str, env: &[(&str, &str)]) -> RevivedControl {
        let config = self.dir.join("config").join("control.toml");
        let log = self.dir.join("log").join(format!("{name}.log"));
        let child = start_with(&self.bin, "vector-control", (&config, &log), env);
        let mut control = RevivedControl(child);
        wait::wait_for("control is ready again", || {
            let ended = control.0.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log(name));
            http::status(self.admin("control"), "/readyz") == Some(200)
        });
        control
    }

    /// Kills a node and starts it again by itself: what else has ended stays so, as `up` would not have it. Does not
    /// wait until it is ready. The next `up` starts it anew.
    pub fn revive(&self, name: &str) -> Extra {
        if self.runs(name) {
            self.kill(name);
        }
        let config = self.dir.join("config").join(format!("{name}.toml"));
        let log = self.dir.join("log").join(format!("{name}-revived.log"));
        let address = if INGRESS.contains(&name) {
            self.address(name)
        } else {
            self.admin(name)
        };
        Extra {
            child: start(&self.bin, "vector-edge", &config, &log),
            address,
            admin: self.admin(name),
            config,
            log,
            bin: self.bin.clone(),
        }
    }
}

fn start(bin: &Path, program: &str, config: &Path, log: &Path) -> Child {
    start_with(bin, program, (config, log), &[])
}

fn start_with(
    bin: &Path,
    program: &str,
    (config, log): (&Path, &Path),
    env: &[(&str, &str)],
) -> Child {
    let log = fs::File::create(log).unwrap();
    // The wrapper becomes the process, which then ends with this thread.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(bin.join(program))
        .arg("--config")
        .arg(config)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stderr(log.try_clone().unwrap())
        .stdout(log)
        .spawn()
        .unwrap()
}

/// A control that was started again by itself. It ends when dropped, and with the thread that started it.
#[derive(Debug)]
pub struct RevivedControl(Child);

impl Drop for RevivedControl {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Extra {
    /// Waits until it serves.
    pub fn ready(&mut self) {
        wait::wait_for("an extra node is ready", || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            http::status(self.admin, "/readyz") == Some(200)
        });
    }

    /// Ends it by a signal and starts it again; does not wait until it is ready.
    pub fn restart(&mut self, signal: &str) {
        send_signal(self.child.id(), signal);
        self.child.wait().unwrap();
        self.child = start(&self.bin, "vector-edge", &self.config, &self.log);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    /// Waits until it has ended, and says how.
    pub fn ended(&mut self) -> std::process::ExitStatus {
        wait::wait_some("an extra node ends", || self.child.try_wait().unwrap())
    }

    /// A client of a key.
    pub fn client(&self, key: &str) -> Client {
        Client::new(self.address, key)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        let mut text = String::new();
        let mut file = fs::File::open(&self.log).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
