//! A real PostgreSQL server for tests: a folder of its own, started and stopped by PostgreSQL's own tools.
//!
//! It refuses to run as root. For root it runs in a user namespace, where root's files are those of the user `postgres`,
//! or, where there are none to be had, as that user.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

pub(in crate::ledger) struct Cluster {
    dir: tempfile::TempDir,
    bin: PathBuf,
    guise: Guise,
    port: u16,
    up: bool,
}

impl Cluster {
    pub(in crate::ledger) fn start() -> Self {
        let mut cluster = Self {
            dir: tempfile::tempdir().unwrap(),
            bin: bin(),
            guise: Guise::ours(),
            port: TcpListener::bind(("127.0.0.1", 0))
                .and_then(|listener| listener.local_addr())
                .unwrap()
                .port(),
            up: false,
        };
        cluster.guise.own(cluster.dir.path());
        let (data, password) = (cluster.data(), cluster.dir.path().join("password"));
        fs::write(&password, "hush").unwrap();
        cluster.run("initdb", |command| {
            command
                .args(["--no-sync", "-A", "scram-sha-256", "-U", "vector", "-D"])
                .arg(&data)
                .arg("--pwfile")
                .arg(&password);
        });
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nfsync = off\n",
            cluster.port,
            cluster.dir.path().display()
        );
        cluster.configure(&settings);
        cluster.go();
        cluster
    }

    /// Adds settings, for the next start.
    pub(in crate::ledger) fn configure(&self, settings: &str) {
        let path = self.data().join("postgresql.conf");
        let text = fs::read_to_string(&path).unwrap() + settings;
        fs::write(&path, text).unwrap();
    }

    /// Starts the server, and waits until it answers.
    pub(in crate::ledger) fn go(&mut self) {
        let log = self.dir.path().join("log");
        self.run("pg_ctl", |command| {
            command.args(["start", "-w", "-l"]).arg(log);
        });
        self.up = true;
    }

    /// Ends the server, as by a crash.
    pub(in crate::ledger) fn halt(&mut self) {
        self.run("pg_ctl", |command| {
            command.args(["stop", "-w", "-m", "immediate"]);
        });
        self.up = false;
    }

    pub(in crate::ledger) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A file that the server's user may read, and no other.
    pub(in crate::ledger) fn give(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.data().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        self.guise.own(&path);
    }

    /// Settings of control for a schema of this server, over TCP.
    pub(in crate::ledger) fn settings(&self, schema: &str, more: &str) -> crate::config::Postgres {
        let text = format!(
            "[ledger]\npostgres = \"postgres://vector@localhost:{}/postgres{more}\"\npostgres_schema = \"{schema}\"\n",
            self.port
        );
        let password =
            |key: &str| (key == "VECTOR_LEDGER_POSTGRES_PASSWORD").then(|| "hush".to_owned());
        let config = crate::config::Config::read(&text, &password).unwrap();
        config.ledger.unwrap()
    }

    fn run(&self, program: &str, arguments: impl FnOnce(&mut Command)) {
        let mut command = self.guise.command(&self.bin.join(program));
        arguments(&mut command);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C.UTF-8")
            .env("PGDATA", self.data())
            .current_dir("/")
            .stdin(Stdio::null());
        // The server that pg_ctl starts keeps what it inherits: pipes would never close.
        let said = self.dir.path().join("said");
        let file = fs::File::create(&said).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let status = command.status().unwrap();
        assert!(
            status.success(),
            "{program}: {status}\n{}\n{}",
            fs::read_to_string(said).unwrap_or_default(),
            fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
        );
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.up {
            self.halt();
        }
    }
}

/// The newest server of this machine.
fn bin() -> PathBuf {
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<PathBuf> = installed
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").is_file())
        .collect();
    let number = |bin: &PathBuf| -> Option<u32> {
        bin.parent()
            .and_then(Path::file_name)?
            .to_str()?
            .parse()
            .ok()
    };
    versions.sort_by_key(number);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).find(|folder| folder.join("initdb").is_file());
    versions
        .pop()
        .or(on_path)
        .expect("PostgreSQL's server programs are missing: apt-get install postgresql")
}

/// Whom the server takes us for.
enum Guise {
    /// Whoever we are, who is not root.
    Ourselves,
    /// The user `postgres` within a namespace; root to everybody else.
    Namespace(u32, u32),
    /// The user `postgres`.
    User(u32, u32),
}

impl Guise {
    fn ours() -> Self {
        use std::os::unix::fs::MetadataExt as _;
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            return Self::Ourselves;
        }
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let line = users.lines().find(|line| line.starts_with("postgres:"));
        let line = line.expect("there is no user `postgres`: apt-get install postgresql");
        let mut fields = line.split(':').skip(2);
        let mut number = || fields.next().unwrap().parse().unwrap();
        let (uid, gid) = (number(), number());
        let namespace = Self::Namespace(uid, gid);
        let tried = namespace.command(Path::new("true")).status();
        if tried.is_ok_and(|status| status.success()) {
            namespace
        } else {
            Self::User(uid, gid)
        }
    }

    fn command(&self, program: &Path) -> Command {
        match *self {
            Self::Ourselves => Command::new(program),
            Self::Namespace(uid, gid) => {
                let mut command = Command::new("unshare");
                command
                    .arg("--user")
                    .arg(format!("--map-user={uid}"))
                    .arg(format!("--map-group={gid}"))
                    .arg(program);
                command
            }
            Self::User(uid, gid) => {
                let mut command = Command::new(program);
                command.uid(uid).gid(gid);
                command
            }
        }
    }

    fn own(&self, path: &Path) {
        if let Self::User(uid, gid) = *self {
            chown(path, Some(uid), Some(gid)).unwrap();
        }
    }
}
