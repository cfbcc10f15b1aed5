//! A node that is told to end: what runs is finished, nothing new is taken, and it says so by its exit.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test, which fail it at once"
)]

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use harness::{
    Answer, Client, Connection, End, INGRESS, Network, Stream, http, network::NODES, wait,
};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn an_ingress_finishes_its_streams_takes_nobody_new_and_ends_well() {
    let network = Network::shared();
    let tenant = network.tenant_of("draining", 1, &["--first-ms", "0", "--token-ms", "20"]);
    let mut node = network.extra_ingress("ingress-drain", "drain_ms = 10000");
    let client = node.client(&tenant.key.text);
    let body = tenant.chat(&json!({"stream": true, "metadata": {"sample_chunks": "60"}}));
    let mut stream = client.json("/v1/chat/completions", &body).open();
    assert!(stream.event().is_some());
    node.signal("TERM");
    wait::wait_for("nobody new is taken", || {
        Connection::try_open(node.address).map_or(true, Connection::is_closed)
    });
    let mut last = String::new();
    let mut events = 1;
    while let Some(event) = stream.event() {
        events += 1;
        last = event;
    }
    assert_eq!(
        (last.as_str(), stream.end()),
        ("data: [DONE]\n\n", Some(End::Whole))
    );
    assert!(events > 60, "{events}");
    let status = node.ended();
    assert!(status.success(), "{status}: {}", node.log());
}

#[test]
fn an_egress_that_ends_finishes_what_runs_and_others_take_the_rest() {
    let network = Network::own();
    let tenant = network.tenant_of("leaving", 1, &["--first-ms", "0", "--token-ms", "20"]);
    let client = tenant.client(INGRESS[0]);
    let body = tenant.chat(&json!({"stream": true, "metadata": {"sample_chunks": "40"}}));
    let mut stream = client.json("/v1/chat/completions", &body).open();
    assert!(stream.event().is_some());
    let egress = stream.header("x-vector-egress").unwrap().to_owned();
    network.signal(&egress, "TERM");
    let mut streams = vec![stream];
    while network.runs(&egress) && streams.len() < 200 {
        let answer = client.post("/v1/chat/completions", &tenant.chat(&json!({})));
        let answer = answer.expect(200);
        if answer.header("x-vector-egress") != Some(&egress) {
            break;
        }
    }
    for stream in &mut streams {
        let mut last = String::new();
        while let Some(event) = stream.event() {
            last = event;
        }
        assert_eq!(last, "data: [DONE]\n\n");
    }
    wait::wait_for("it ends", || !network.runs(&egress));
    for _ in 0..8 {
        let answer = client
            .post("/v1/chat/completions", &tenant.chat(&json!({})))
            .expect(200);
        assert_ne!(answer.header("x-vector-egress"), Some(egress.as_str()));
    }
}

/// What a process says about being ready: its status, and why not.
fn readiness(network: &Network, node: &str) -> (u16, String) {
    let answer = http::Request::new(network.admin(node), "GET", "/readyz").send();
    (answer.status, answer.text())
}

#[test]
fn a_drained_ingress_is_not_ready_and_serves_whoever_comes_all_the_same() {
    let network = Network::own();
    let tenant = network.tenant("unready");
    let [drained, _] = INGRESS;
    let client = tenant.client(drained);
    let ask = || client.post(CHAT, &tenant.chat(&json!({}))).expect(200);
    assert_eq!(ask().header("connection"), None);
    network.ctl(&["node", "drain", drained]).unwrap();
    wait::wait_for("it is not ready", || {
        readiness(&network, drained) == (503, "not ready: draining\n".to_owned())
    });
    assert_eq!(ask().header("connection"), Some("close"));
    // The script finds nothing dead, and no fault with who is drained.
    network.up();
    network.ctl(&["node", "undrain", drained]).unwrap();
    wait::wait_for("it is ready again", || {
        readiness(&network, drained).0 == 200
    });
    assert_eq!(ask().header("connection"), None);
    // A signal to stop says the same, and clients are taken for a moment more.
    network.signal(drained, "TERM");
    wait::wait_for("it is not ready", || readiness(&network, drained).0 == 503);
    assert_eq!(ask().header("connection"), Some("close"));
    wait::wait_for("it ends", || !network.runs(drained));
}

#[test]
fn an_egress_that_drains_gives_what_it_keeps_and_takes_over_what_runs() {
    let network = Network::own();
    let tenant = network.tenant("keeping");
    let [here, there] = INGRESS.map(|ingress| tenant.client(ingress));
    let body = tenant.chat(&json!({}));
    let keyed = |client: &Client| {
        let request = client.json(CHAT, &body).header("idempotency-key", "key-1");
        request.send().expect(200)
    };
    let first = keyed(&here);
    let egress = first.header("x-vector-egress").unwrap().to_owned();
    // A client of an SDK, whose request is at the same egress.
    let slow = tenant.chat(&json!({"metadata": {"sample_fault": "slow-first:4000"}}));
    let begun = || {
        let calls = tenant.sample.calls();
        let mut connection = Connection::open(here.address);
        let text = slow.to_string();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nx-stainless-retry-count: 0\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
            here.key,
            text.len()
        );
        connection.write(head.as_bytes());
        wait::wait_for("the provider has the request", || {
            tenant.sample.calls() > calls
        });
        connection
    };
    // Both egress nodes drain, so that it does not matter which of them has it.
    let impatient = begun();
    for node in ["egress-us-1", "egress-us-2"] {
        network.ctl(&["node", "drain", node]).unwrap();
    }
    wait::wait_for("every node knows", || {
        links_that_are(&network, "draining") >= 12
    });
    let calls = tenant.sample.calls();
    drop(impatient);
    wait::wait_for("it goes on without its client", || {
        let adopted =
            |line: &Value| line["key"] == tenant.key.id.as_str() && line["adopted"] == true;
        network.lines(INGRESS[0]).iter().any(adopted)
    });
    let retry = there
        .json(CHAT, &slow)
        .header("x-stainless-retry-count", "1");
    let retry = retry.send().expect(200);
    assert_eq!(retry.header("x-vector-replayed"), Some("true"));
    let exchange = first.header("x-request-id").unwrap();
    let stream = format!("/v1/exchanges/{exchange}/stream");
    for client in [&here, &there] {
        let answers = [client.get(&stream).expect(200), keyed(client)];
        for again in answers {
            assert_eq!(again.header("x-vector-replayed"), Some("true"));
            assert_eq!(again.header("x-vector-egress"), Some(egress.as_str()));
            assert!(again.body == first.body);
        }
    }
    assert_eq!(here.post(CHAT, &body).status, 503, "nothing new is taken");
    assert_eq!(tenant.sample.calls(), calls);
}

/// Tokens of a stream, 20 ms apart.
const TOKENS: usize = 15;

/// Clients that know both ingress nodes, and what befell them.
struct Crowd<'n> {
    clients: [Client; 2],
    network: &'n Network,
    whole: AtomicU64,
    /// Closed without a word, as the kernel does to a connection that it let in while the door was being closed.
    shut_out: AtomicU64,
    over: AtomicBool,
}

/// Sets the crowd free, also when the test fails.
struct Over<'c>(&'c AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Crowd<'_> {
    /// Asks one ingress, and the other where nobody listens.
    fn ask(&self, first: usize, body: &Value) -> Stream {
        let text = body.to_string();
        wait::wait_some("somebody answers", || {
            [first, 1 - first].into_iter().find_map(|at| {
                let client = &self.clients[at];
                let mut connection = Connection::try_open(client.address).ok()?;
                let head = format!(
                    "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
                    client.key,
                    text.len()
                );
                connection.write(head.as_bytes());
                let answer = connection.answer();
                if answer.is_none() {
                    self.shut_out.fetch_add(1, Ordering::Relaxed);
                }
                answer
            })
        })
    }

    /// Asks until it is over; every answer must be this one, or end like this.
    fn keep_asking(&self, first: usize, body: &Value, good: impl Fn(&Answer) -> bool) {
        while !self.over.load(Ordering::Relaxed) {
            let answer = self.ask(first, body).rest();
            assert!(
                answer.status == 200 && answer.end == End::Whole && good(&answer),
                "{} {:?} {:?}: {}",
                answer.status,
                answer.end,
                answer.header("x-vector-egress"),
                answer.text()
            );
            self.whole.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends a node by a signal, and starts it again.
    fn restart(&self, node: &str) {
        let pid = self.network.pid(node);
        self.network.signal(node, "TERM");
        wait::wait_for("a node ends", || !self.network.runs(node));
        self.network.up();
        assert_ne!(self.network.pid(node), pid);
        wait::wait_for("everybody reaches it again", || {
            reached(self.network) == PAIRS
        });
        let before = self.whole.load(Ordering::Relaxed);
        wait::wait_for("answers come as before", || {
            self.whole.load(Ordering::Relaxed) > before + 20
        });
    }
}

/// Two ingress nodes that reach two egress nodes and a relay, which reaches the egress nodes.
const PAIRS: usize = 2 * 3 + 2;

/// How many pairs of nodes have a link that carries exchanges. A machine that stands still for a moment makes links suspect.
fn reached(network: &Network) -> usize {
    let all = network.ctl(&["paths"]).unwrap();
    let rows = all["paths"].as_array().unwrap().iter();
    let carry = rows.filter(|row| row["state"] == "up" || row["state"] == "suspect");
    let pairs = carry.map(|row| (row["node"].to_string(), row["peer"].to_string()));
    pairs.collect::<BTreeSet<_>>().len()
}

fn links_that_are(network: &Network, state: &str) -> usize {
    let all = network.ctl(&["paths"]).unwrap();
    let rows = all["paths"].as_array().unwrap().iter();
    rows.filter(|row| row["state"] == state).count()
}

#[test]
fn every_node_is_restarted_under_load_and_nobody_notices() {
    let network = Network::own();
    let tenant = network.tenant_of("rolling", 1, &["--first-ms", "0", "--token-ms", "20"]);
    let plain = tenant.chat(&json!({}));
    let chunks = json!({"sample_chunks": TOKENS.to_string()});
    let stream = tenant.chat(&json!({"stream": true, "metadata": chunks}));
    let crowd = Crowd {
        clients: INGRESS.map(|ingress| tenant.client(ingress)),
        network: &network,
        whole: AtomicU64::new(0),
        shut_out: AtomicU64::new(0),
        over: AtomicBool::new(false),
    };
    wait::wait_for("everybody reaches everybody", || reached(&network) == PAIRS);
    std::thread::scope(|scope| {
        let over = Over(&crowd.over);
        for at in 0..8 {
            let (crowd, plain, stream) = (&crowd, &plain, &stream);
            scope.spawn(move || match at {
                0..2 => {
                    crowd.keep_asking(at % 2, plain, |answer| answer.json()["choices"].is_array())
                }
                _ => crowd.keep_asking(at % 2, stream, is_whole),
            });
        }
        for node in NODES {
            crowd.restart(node);
        }
        drop(over);
    });
    let shut_out = crowd.shut_out.load(Ordering::Relaxed);
    assert!(shut_out <= INGRESS.len() as u64, "{shut_out}");
    let whole = crowd.whole.load(Ordering::Relaxed);
    assert_eq!(tenant.sample.calls(), whole, "each was made once");
}

/// Whether a stream says all its words in order, and ends.
fn is_whole(answer: &Answer) -> bool {
    let text = answer.text();
    let mut events = text.split_terminator("\n\n").collect::<Vec<_>>();
    let ends = events.pop() == Some("data: [DONE]");
    let said = events.iter().filter_map(|event| {
        let chunk: Value = serde_json::from_str(event.strip_prefix("data: ")?).ok()?;
        let words = chunk["choices"][0]["delta"]["content"].as_str()?;
        Some(words.to_owned())
    });
    let wanted: Vec<String> = (1..=TOKENS).map(|token| token.to_string()).collect();
    ends && said.collect::<String>().split_whitespace().eq(wanted)
}
