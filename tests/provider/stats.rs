//! Counters of what arrived and how it ended, for tests to read at `GET /sample/stats`.
//!
//! Requests, keys and bytes are atomics, cheap enough to stay on in a benchmark. The last request's
//! headers are kept except for the key, of which only the last four characters are.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::request::Parts;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::desk;
use crate::table::ROWS;

/// Departures remembered one by one; the count goes on.
const GONE_MAX: usize = 256;

/// What is counted. One a process.
#[derive(Debug)]
pub(crate) struct Stats {
    requests: Vec<AtomicU64>,
    keys: Vec<AtomicU64>,
    refused_keys: AtomicU64,
    in_flight: AtomicU64,
    sessions_open: AtomicU64,
    connections_open: AtomicU64,
    connections: AtomicU64,
    bytes_received: AtomicU64,
    client_gone: AtomicU64,
    gone: Mutex<VecDeque<Value>>,
    last: Mutex<Value>,
}

impl Stats {
    pub(crate) fn new(keys: usize) -> Self {
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            requests: zeros(ROWS.len()),
            keys: zeros(keys),
            refused_keys: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            sessions_open: AtomicU64::new(0),
            connections_open: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            client_gone: AtomicU64::new(0),
            gone: Mutex::new(VecDeque::new()),
            last: Mutex::new(Value::Null),
        }
    }

    /// Counts a connection for as long as the mark lives.
    pub(crate) fn connection(self: &Arc<Self>) -> Connection {
        self.connections_open.fetch_add(1, Relaxed);
        self.connections.fetch_add(1, Relaxed);
        Connection(Arc::clone(self))
    }

    /// Counts a realtime session for as long as the mark lives.
    pub(crate) fn session(self: &Arc<Self>) -> Session {
        self.sessions_open.fetch_add(1, Relaxed);
        Session(Arc::clone(self))
    }

    /// Counts a request; the mark goes with its answer and notices when the client leaves early.
    pub(crate) fn enter(self: &Arc<Self>, row: usize) -> Mark {
        if let Some(count) = self.requests.get(row) {
            count.fetch_add(1, Relaxed);
        }
        self.in_flight.fetch_add(1, Relaxed);
        Mark {
            stats: Arc::clone(self),
            row,
            done: false,
        }
    }

    pub(crate) fn key(&self, index: Option<usize>) {
        index
            .and_then(|index| self.keys.get(index))
            .unwrap_or(&self.refused_keys)
            .fetch_add(1, Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Relaxed);
    }

    /// Keeps what a request's head said, so that a test can check what arrived.
    pub(crate) fn remember(&self, head: &Parts, bytes: usize) {
        let headers: Vec<Value> = head
            .headers
            .iter()
            .map(|(name, value)| {
                let text = String::from_utf8_lossy(value.as_bytes());
                if name == AUTHORIZATION || name == SEC_WEBSOCKET_PROTOCOL {
                    json!([name.as_str(), last_four(&text)])
                } else {
                    json!([name.as_str(), text])
                }
            })
            .collect();
        *self.last.lock() = json!({
            "method": head.method.as_str(),
            "path": head.uri.path(),
            "query": head.uri.query(),
            "version": format!("{:?}", head.version),
            "headers": headers,
            "body_bytes": bytes,
        });
    }

    /// The counters as JSON; `keys` names each count by its key's last four characters.
    pub(crate) fn show(&self, keys: &[String]) -> Value {
        let mut requests = Map::new();
        for (row, count) in ROWS.iter().zip(&self.requests) {
            let count = count.load(Relaxed);
            if count > 0 {
                requests.insert(format!("{} {}", row.method, row.pattern), count.into());
            }
        }
        let per_key: Vec<Value> = keys
            .iter()
            .zip(&self.keys)
            .map(|(key, count)| json!({"key": last_four(key), "requests": count.load(Relaxed)}))
            .collect();
        let gone = self.gone.lock();
        json!({
            "requests": requests,
            "requests_total": self.requests.iter().map(|count| count.load(Relaxed)).sum::<u64>(),
            "in_flight": self.in_flight.load(Relaxed),
            "sessions_open": self.sessions_open.load(Relaxed),
            "connections_open": self.connections_open.load(Relaxed),
            "connections_total": self.connections.load(Relaxed),
            "bytes_received": self.bytes_received.load(Relaxed),
            "client_gone": self.client_gone.load(Relaxed),
            "client_gone_recent": gone.iter().collect::<Vec<_>>(),
            "per_key": per_key,
            "refused_keys": self.refused_keys.load(Relaxed),
            "last_request": *self.last.lock(),
        })
    }

    /// Sets everything to zero but what is running now.
    pub(crate) fn reset(&self) {
        let singles = [
            &self.refused_keys,
            &self.connections,
            &self.bytes_received,
            &self.client_gone,
        ];
        for count in self.requests.iter().chain(&self.keys).chain(singles) {
            count.store(0, Relaxed);
        }
        self.gone.lock().clear();
        *self.last.lock() = Value::Null;
    }

    fn client_gone(&self, row: usize) {
        self.client_gone.fetch_add(1, Relaxed);
        let mut gone = self.gone.lock();
        if gone.len() == GONE_MAX {
            gone.pop_front();
        }
        let operation = ROWS.get(row).map_or("", |row| row.pattern);
        gone.push_back(json!({"operation": operation, "unix_ns": desk::unix_ns().to_string()}));
    }
}

/// A secret's last four characters, which is all that is ever shown of one.
fn last_four(secret: &str) -> String {
    let skip = secret.chars().count().saturating_sub(4);
    format!("…{}", secret.chars().skip(skip).collect::<String>())
}

/// A connection that is open.
#[derive(Debug)]
pub(crate) struct Connection(Arc<Stats>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.connections_open.fetch_sub(1, Relaxed);
    }
}

/// A realtime session that is open.
#[derive(Debug)]
pub(crate) struct Session(Arc<Stats>);

impl Drop for Session {
    fn drop(&mut self) {
        self.0.sessions_open.fetch_sub(1, Relaxed);
    }
}

/// A request in flight. Dropped before [`Mark::finish`], the client went away.
#[derive(Debug)]
pub(crate) struct Mark {
    stats: Arc<Stats>,
    row: usize,
    done: bool,
}

impl Mark {
    /// The answer has been handed over whole, or was cut by ourselves.
    pub(crate) fn finish(&mut self) {
        self.done = true;
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.stats.in_flight.fetch_sub(1, Relaxed);
        if !self.done {
            self.stats.client_gone(self.row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_mark_is_a_client_gone() {
        let stats = Arc::new(Stats::new(1));
        let mut whole = stats.enter(0);
        whole.finish();
        drop(whole);
        drop(stats.enter(0));
        let shown = stats.show(&["sk-abcdef".to_owned()]);
        assert_eq!(shown["client_gone"], 1);
        assert_eq!(shown["in_flight"], 0);
        assert_eq!(shown["per_key"][0]["key"], "…cdef");
    }
}
