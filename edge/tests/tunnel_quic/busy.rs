//! A node whose workers are all busy does not look dead, nor do others to it.

use std::{
    sync::{Arc, Barrier},
    time::Duration,
};

use tokio::runtime::{Builder, Runtime};
use vector_edge::tunnel::{Condition, Link, pulse::Intervals};

use crate::{
    pulse::beating,
    town::{Authority, ask, hello, node_on, wanted},
};

const WORKERS: usize = 2;

/// At 100 ms a silence of 0.3 s is suspect, and one of 0.5 s is death.
const INTERVAL: Duration = Duration::from_millis(100);

/// Heartbeats that take longer than to die.
const BEATS: u64 = 12;

fn runtime() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    let builder = builder.worker_threads(WORKERS).enable_all();
    builder.build().unwrap()
}

/// Keeps every worker of a runtime from everything else, until `done` is over.
fn hold(runtime: &Runtime, done: impl FnOnce()) {
    let (begun, over) = (
        Arc::new(Barrier::new(WORKERS + 1)),
        Arc::new(Barrier::new(WORKERS + 1)),
    );
    for _ in 0..WORKERS {
        let (begun, over) = (Arc::clone(&begun), Arc::clone(&over));
        runtime.spawn(async move {
            begun.wait();
            over.wait();
        });
    }
    begun.wait();
    done();
    over.wait();
}

/// Heartbeats that an end has heard so far.
fn heard(link: &Link) -> u64 {
    link.vitals().measures().beats_in
}

#[test]
fn a_node_whose_workers_are_all_busy_beats_and_hears() {
    let (calm, busy) = (runtime(), runtime());
    let authority = Authority::new();
    let any = &["127.0.0.1:0".parse().unwrap()];
    let intervals = Intervals {
        active: INTERVAL,
        standby: INTERVAL,
        cold: INTERVAL,
    };
    let beats = (intervals, true);
    let (handler, _arrivals) = hello();
    let server = calm.block_on(async {
        let credentials = authority.node("egress", "egress");
        node_on(any, 1, &credentials, "egress", Some(handler), beats)
    });
    let (client, here) = busy.block_on(async {
        let credentials = authority.node("ingress", "ingress");
        let mut client = node_on(any, 1, &credentials, "ingress", None, beats);
        client.network.keep(&[wanted("egress", server.address)]);
        let link = beating(&client.tunnel).await;
        (client, link)
    });
    let there = server.tunnel.accepted_link("ingress").unwrap();
    let ends = [here, there];
    let watches = ends.each_ref().map(|end| end.vitals().watch());
    hold(&busy, || {
        let before = ends.each_ref().map(|end| heard(end));
        let enough = || {
            let mut both = ends.iter().zip(before);
            both.all(|(end, before)| heard(end) >= before + BEATS)
        };
        let is_up = |end: &Arc<Link>| end.condition() == Condition::Up;
        calm.block_on(async {
            while !enough() && ends.iter().all(is_up) {
                tokio::task::yield_now().await;
            }
        });
    });
    for watch in watches {
        assert!(!watch.has_changed().unwrap(), "{:?}", *watch.borrow());
    }
    assert_eq!(busy.block_on(ask(&client.tunnel)), b"hello");
}
