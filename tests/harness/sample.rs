//! A sample provider for one test: faults and counters that nobody else touches.
//!
//! It ends with the thread that started it, and when dropped.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::{http::Request, place};

/// A running sample provider.
#[derive(Debug)]
pub struct Sample {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Sample {
    /// Starts one that takes these keys; `pace` are its options, such as `--token-ms 5`.
    pub fn start(keys: &[String], pace: &[&str]) -> Self {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(place::bin().join("sample-provider"))
            .args(["--listen", "127.0.0.1:0"])
            .args(pace)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        for key in keys {
            command.args(["--key", key]);
        }
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().strip_prefix("ready http://");
        let address = address.unwrap_or_else(|| panic!("the sample provider said: {line}"));
        Self {
            child,
            address: address.parse().unwrap(),
        }
    }

    /// What it has counted.
    pub fn stats(&self) -> Value {
        Request::new(self.address, "GET", "/sample/stats")
            .send()
            .json()
    }

    /// A counter of [`Self::stats`].
    pub fn count(&self, name: &str) -> u64 {
        self.stats()[name].as_u64().unwrap()
    }

    /// Calls of the API so far, whatever was answered.
    pub fn calls(&self) -> u64 {
        self.calls_per_key().iter().sum()
    }

    /// Calls of the API for each of its keys.
    pub fn calls_per_key(&self) -> Vec<u64> {
        let stats = self.stats();
        let rows = stats["per_key"].as_array().unwrap().iter();
        rows.map(|row| row["requests"].as_u64().unwrap()).collect()
    }

    /// Adds a fault: `kind`, and perhaps `arg`, `count`, `match_model`, `match_key`.
    pub fn fault(&self, rule: &Value) {
        Request::new(self.address, "POST", "/sample/faults")
            .header("content-type", "application/json")
            .body(rule.to_string())
            .send()
            .expect(200);
    }

    /// Forgets all faults.
    pub fn clear_faults(&self) {
        Request::new(self.address, "DELETE", "/sample/faults")
            .send()
            .expect(200);
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
