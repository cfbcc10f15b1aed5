//! The program `wan` as its users run it: a lab of two hosts comes up, does what it is told when it says so, and leaves
//! nothing. Without root or `/dev/net/tun` these tests say so and pass.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what goes wrong here shall fail its test"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

const TOPOLOGY: &str = r#"
[[host]]
name = "a"
[[host]]
name = "b"
addresses = ["b-too"]
[[link]]
a = "a"
b = "b"
delay_ms = 20
[[link]]
a = "a"
b = "b-too"
"#;

/// How long anything here may take, on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(20);

/// A lab of a name of its own, taken down when dropped.
struct Lab {
    name: String,
    folder: tempfile::TempDir,
}

impl Lab {
    /// None where the machine cannot have one.
    fn up(name: &str) -> Option<Self> {
        let root = fs::metadata("/proc/self").ok()?;
        let root = std::os::unix::fs::MetadataExt::uid(&root) == 0;
        if !root
            || !Path::new("/dev/net/tun").exists()
            || Command::new("ip").arg("-V").output().is_err()
        {
            eprintln!("skipped: a lab needs root, /dev/net/tun and iproute2");
            return None;
        }
        let lab = Self {
            name: format!("{name}-{}", std::process::id()),
            folder: tempfile::tempdir().unwrap(),
        };
        let file = lab.folder.path().join("two.toml");
        fs::write(&file, TOPOLOGY).unwrap();
        let said = lab.wan(&["up", file.to_str().unwrap()]);
        assert!(said.status.success(), "{said:?}");
        Some(lab)
    }

    fn wan(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wan"));
        command
            .args(["--lab", &self.name])
            .args(arguments)
            .output()
            .unwrap()
    }

    fn said(&self, arguments: &[&str]) -> String {
        let output = self.wan(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Namespaces and files that are this lab's.
    fn leavings(&self) -> Vec<PathBuf> {
        let mut left = vec![Path::new("/run/vector-wan").join(&self.name)];
        for folder in ["/run/netns", "/etc/netns"] {
            left.extend(
                ["a", "b"].map(|host| Path::new(folder).join(format!("wan.{}.{host}", self.name))),
            );
        }
        left.retain(|path| path.exists());
        left
    }

    fn wait_until_cleared(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.leavings().is_empty() {
            assert!(Instant::now() < deadline, "{:?}", self.leavings());
            std::thread::yield_now();
        }
    }

    /// The processes that hold it: keeper, then router.
    fn holders(&self) -> Vec<String> {
        let text = fs::read_to_string(Path::new("/run/vector-wan").join(&self.name).join("pids"));
        text.unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Most are down already.
        let _ = self.wan(&["down"]);
    }
}

fn kill(pid: &str) {
    assert!(
        Command::new("kill")
            .args(["-KILL", pid])
            .status()
            .unwrap()
            .success()
    );
}

fn number(text: &str, key: &str) -> f64 {
    let start = text
        .find(&format!("{key}="))
        .unwrap_or_else(|| panic!("no {key} in {text}"));
    let value = &text[start + key.len() + 1..];
    let end = value.find([' ', '%', '\n']).unwrap_or(value.len());
    value[..end].parse().unwrap()
}

#[test]
fn packets_take_their_time_and_a_hole_takes_effect_when_it_says() {
    let Some(lab) = Lab::up("takes-time") else {
        return;
    };
    let report = lab.said(&["ping", "a", "b", "-n", "20", "-i", "1"]);
    assert_eq!(number(&report, "returned"), 20.0, "{report}");
    assert!(
        number(&report, "there_ms min") >= 20.0 && number(&report, "back_ms min") >= 20.0,
        "{report}"
    );
    // A change of one way is one of this way only, and of this address only.
    lab.said(&["set", "b:a", "delay_ms=0"]);
    let report = lab.said(&["ping", "a", "b", "-n", "5"]);
    assert!(number(&report, "round_trip_ms min") >= 20.0, "{report}");
    let pings = std::thread::scope(|scope| {
        let pings = scope.spawn(|| lab.said(&["ping", "a", "b", "-n", "400", "-i", "1"]));
        let deadline = Instant::now() + PATIENCE;
        let flowing = || {
            let status: serde_json::Value =
                serde_json::from_str(&lab.said(&["status", "--json"])).unwrap();
            status["lines"][0]["in_packets"].as_u64() > Some(50)
        };
        while !flowing() {
            assert!(Instant::now() < deadline);
        }
        let set = lab.said(&["set", "a::b", "blackhole=on"]);
        (pings.join().unwrap(), number(&set, "effective_mono_ns"))
    });
    let (report, effective_ns) = pings;
    assert!(number(&report, "arrived") < 400.0, "{report}");
    // What was handed over had been under way for 20 ms by then.
    let last_ns = number(&report, "last_to_arrive_sent_mono_ns");
    assert!(last_ns + 20e6 <= effective_ns, "{report}");
    let other = lab.said(&["ping", "a", "b-too", "-n", "5"]);
    assert_eq!(
        number(&other, "returned"),
        5.0,
        "another address is another line: {other}"
    );
}

#[test]
fn a_lab_that_is_taken_down_leaves_nothing_not_even_its_processes() {
    let Some(lab) = Lab::up("leaves-nothing") else {
        return;
    };
    let mut inside = Command::new(env!("CARGO_BIN_EXE_wan"))
        .args(["--lab", &lab.name, "exec", "a", "--", "sleep", "1000"])
        .spawn()
        .unwrap();
    assert!(!lab.leavings().is_empty());
    lab.said(&["down"]);
    assert_eq!(lab.leavings(), Vec::<PathBuf>::new());
    assert!(!inside.wait().unwrap().success());
    assert!(!lab.wan(&["status"]).status.success());
}

#[test]
fn whichever_of_its_processes_is_killed_the_other_clears_away() {
    for victim in 0..2 {
        let Some(lab) = Lab::up(&format!("killed-{victim}")) else {
            return;
        };
        kill(&lab.holders()[victim]);
        lab.wait_until_cleared();
    }
}

#[test]
fn a_lab_lives_no_longer_than_the_process_it_was_tied_to() {
    let Some(lab) = Lab::up("tied") else {
        return;
    };
    lab.said(&["down"]);
    let mut holder = Command::new("sleep").arg("1000").spawn().unwrap();
    let file = lab.folder.path().join("two.toml");
    lab.said(&[
        "up",
        file.to_str().unwrap(),
        "--with-pid",
        &holder.id().to_string(),
    ]);
    assert!(!lab.leavings().is_empty());
    holder.kill().unwrap();
    holder.wait().unwrap();
    lab.wait_until_cleared();
}

#[test]
fn wrong_input_is_told_and_changes_nothing() {
    let Some(lab) = Lab::up("wrong") else {
        return;
    };
    let before = lab.said(&["status", "--json"]);
    for (arguments, told) in [
        (["set", "a:nobody", "loss=1%"], "no line"),
        (["set", "a:b", "loss=200%"], "must be a share"),
        (["set", "a:b", "los=1%"], "unknown key"),
        (["set", "ab", "loss=1%"], "A:B"),
    ] {
        let output = lab.wan(&arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(told),
            "{arguments:?}: {error}"
        );
    }
    let after = lab.said(&["status", "--json"]);
    let lines =
        |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["lines"].clone();
    assert_eq!(lines(&before), lines(&after));
    let file = lab.folder.path().join("two.toml");
    let again = lab.wan(&["up", file.to_str().unwrap()]);
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("up already"),
        "{again:?}"
    );
}
