//! Figures of the detector on this machine, for whoever changes it. Not a test: it judges nothing.
//!
//! `tests/bench detector` shows them.
//!
//! Seen on two cores that built other things meanwhile (load 9): 15.6 to 20.4 us of CPU a heartbeat for both its ends,
//! 0.15 to 0.20 % of a core for each end of a link at 10 ms, no false «down» on 50 links; over 120 cuts, from the cut to
//! suspect p50 34.2, p99 50.8, max 94.4 ms, to down p50 54.2, p99 72.2, max 114.5 ms.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use vector_edge::tunnel::{
    Condition, Tunnel,
    network::{Network, Parts, Sockets},
    pulse::Intervals,
};
use vector_proto::tunnel::{VERSION, v1};
use vector_wan::{Detour, Way};

use crate::{
    pulse::{beating, becomes},
    town::{Authority, TestCredentials, egress_at, wanted},
};

/// An ingress that beats as if exchanges were always in flight.
fn busy(credentials: &Arc<TestCredentials>, active_ms: u64) -> (Tunnel, Network) {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let sockets = Sockets::bind(&[any], &**credentials, &[7; 64]).unwrap();
    let tunnel = Tunnel::default();
    let interval = Duration::from_millis(active_ms);
    let parts = Parts {
        me: v1::Hello {
            version: VERSION,
            node: "ingress".into(),
            epoch: 1,
            ..v1::Hello::default()
        },
        credentials: Arc::clone(credentials) as _,
        arrivals: None,
        transits: None,
        intervals: Intervals {
            active: interval,
            standby: interval,
            cold: interval,
        },
        own_runtime: false,
    };
    let network = Network::start(tunnel.clone(), sockets, parts).unwrap();
    (tunnel, network)
}

/// Time that this process has used so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let behind_name = stat.rsplit(')').next().unwrap();
    let fields: Vec<&str> = behind_name.split_whitespace().collect();
    // utime and stime, in hundredths of a second.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn spread(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    eprintln!(
        "{name}: p50 {:.1} p90 {:.1} p99 {:.1} max {:.1} ms of {}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        times.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement that asserts nothing: times on a loaded machine mean little, so it is run by hand"]
async fn figures_of_detection() {
    let authority = Authority::new();
    let any = "127.0.0.1:0".parse().unwrap();
    let (server, _arrivals) = egress_at(any, 1, &authority.node("egress", "egress"));
    let credentials = authority.node("ingress", "ingress");
    let (mut suspects, mut downs) = (Vec::new(), Vec::new());
    for cut in 0..120 {
        let detour = Detour::to(server.address, "rtt_ms=0", 1).unwrap();
        let (tunnel, mut network) = busy(&credentials, 10);
        network.keep(&[wanted("egress", detour.address())]);
        let link = beating(&tunnel).await;
        // Long enough for both ends to beat fast, and at another phase each time.
        tokio::time::sleep(Duration::from_millis(300 + cut * 7 % 10)).await;
        let mut watch = link.vitals().watch();
        let at = detour.set(Way::Both, "blackhole=on").unwrap();
        watch.wait_for(|now| *now != Condition::Up).await.unwrap();
        suspects.push(at.elapsed());
        becomes(&link, Condition::Down).await;
        downs.push(at.elapsed());
        network.close().await;
    }
    spread("cut to suspect", suspects);
    spread("cut to down", downs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement that asserts nothing: times on a loaded machine mean little, so it is run by hand"]
async fn figures_of_cost() {
    const LINKS: usize = 50;
    let authority = Authority::new();
    let any = "127.0.0.1:0".parse().unwrap();
    let (server, _arrivals) = egress_at(any, 1, &authority.node("egress", "egress"));
    let credentials = authority.node("ingress", "ingress");
    let mut kept = Vec::new();
    for _ in 0..LINKS {
        let (tunnel, mut network) = busy(&credentials, 10);
        network.keep(&[wanted("egress", server.address)]);
        let link = beating(&tunnel).await;
        kept.push((tunnel, network, link));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let beats = || -> u64 {
        let each = kept.iter().map(|(_, _, link)| link.vitals().measures());
        each.map(|measures| measures.beats_out + measures.beats_in)
            .sum()
    };
    let (before, cpu_before, from) = (beats(), cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (sent, used, passed) = (beats() - before, cpu() - cpu_before, from.elapsed());
    eprintln!(
        "{LINKS} links, {sent} beats in {passed:?}: {:.1} us of both ends a beat, {:.2} % of a core a link and end",
        used.as_secs_f64() * 1e6 / sent as f64,
        used.as_secs_f64() / passed.as_secs_f64() * 100.0 / LINKS as f64 / 2.0,
    );
    let flaps: u64 = kept
        .iter()
        .map(|(_, _, link)| link.vitals().measures().flaps)
        .sum();
    eprintln!("{flaps} false downs");
}
