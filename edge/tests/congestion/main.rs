//! Congestion control in virtual time: what our controller promises, beside quinn's own.
#![expect(
    clippy::unwrap_used,
    reason = "what a test needs and does not get ends the test"
)]

mod link;
mod table;
mod world;

use std::{sync::Arc, time::Duration};

use quinn_proto::congestion::{BbrConfig, CubicConfig};
use vector_edge::tunnel::transport::congestion::{self, Config};

use crate::{
    link::Line,
    world::{Factory, Flow, Measured, World},
};

/// The tunnel's initial window; the others get the same.
const INITIAL_BYTES: u64 = 512 << 10;

fn make(name: &str) -> Factory {
    match name {
        "cubic" => {
            let mut config = CubicConfig::default();
            config.initial_window(INITIAL_BYTES);
            Arc::new(config)
        }
        "bbr" => {
            let mut config = BbrConfig::default();
            config.initial_window(INITIAL_BYTES);
            Arc::new(config)
        }
        _ => Arc::new(Config::new(INITIAL_BYTES, None)),
    }
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What goes through between two moments, in seconds. The seed is fixed: a failure repeats.
fn steady(line: Line, flows: &[Flow], from: u64, to: u64) -> Measured {
    let mut world = World::new(1, line, flows);
    world.run_until(s(from));
    let measured = world.measure_until(s(to));
    assert!(!measured.died, "a connection died: {measured:?}");
    measured
}

#[test]
fn fills_a_long_line_that_loses_packets_and_keeps_its_queue_short() {
    for (loss, least) in [(0.0, 90.0), (0.001, 90.0), (0.01, 85.0), (0.05, 75.0)] {
        let got = steady(Line::new(150, loss), &[Flow::bulk(&make("ours"), 16)], 3, 8);
        assert!(got.mbps[0] >= least, "loss {loss}: {got:?}");
        assert!(got.queue_mean_ms <= 20.0, "loss {loss}: {got:?}");
    }
    let cubic = steady(
        Line::new(150, 0.001),
        &[Flow::bulk(&make("cubic"), 16)],
        3,
        8,
    );
    assert!(cubic.mbps[0] < 30.0, "the reason for all this: {cubic:?}");
}

#[test]
fn two_of_ours_share_equally() {
    for rtt in [20, 80, 150] {
        let flows = [
            Flow::bulk(&make("ours"), 8),
            Flow::bulk(&make("ours"), 8).starting(s(3)),
        ];
        let got = steady(Line::new(rtt, 0.0), &flows, 12, 20);
        let sum = got.mbps[0] + got.mbps[1];
        assert!(
            sum >= 85.0 && got.queue_mean_ms <= 20.0,
            "rtt {rtt}: {got:?}"
        );
        let larger = got.mbps[0].max(got.mbps[1]) / sum;
        assert!(larger <= 0.6, "rtt {rtt}: {got:?}");
    }
}

#[test]
fn neither_starves_cubic_nor_is_starved() {
    for rtt in [20, 80] {
        let flows = [
            Flow::bulk(&make("cubic"), 8),
            Flow::bulk(&make("ours"), 8).starting(s(3)),
        ];
        let got = steady(Line::new(rtt, 0.0), &flows, 8, 24);
        let ours = got.mbps[1] / (got.mbps[0] + got.mbps[1]);
        assert!((0.08..=0.65).contains(&ours), "rtt {rtt}: {got:?}");
    }
}

#[test]
fn a_deep_queue_stays_empty_and_a_shallow_one_is_not_flooded() {
    let deep = Line {
        queue: s(1),
        ..Line::new(80, 0.0)
    };
    let got = steady(deep, &[Flow::bulk(&make("ours"), 8)], 3, 8);
    assert!(got.mbps[0] >= 85.0 && got.queue_mean_ms <= 20.0, "{got:?}");
    let shallow = Line {
        queue: Duration::from_millis(5),
        ..Line::new(80, 0.0)
    };
    let got = steady(shallow, &[Flow::bulk(&make("ours"), 8)], 3, 8);
    assert!(got.mbps[0] >= 80.0 && got.lost < 0.03, "{got:?}");
}

#[test]
fn finds_a_policer_and_rides_out_bursts() {
    let policer = Line {
        policer: Some((50.0, 500e3)),
        ..Line::new(80, 0.0)
    };
    let got = steady(policer, &[Flow::bulk(&make("ours"), 8)], 4, 12);
    assert!(got.mbps[0] >= 40.0 && got.lost < 0.04, "{got:?}");
    let bursts = Line {
        burst: Some((s(1), Duration::from_millis(10))),
        ..Line::new(150, 0.0)
    };
    let got = steady(bursts, &[Flow::bulk(&make("ours"), 16)], 3, 8);
    assert!(got.mbps[0] >= 85.0 && got.queue_mean_ms <= 20.0, "{got:?}");
}

#[test]
fn follows_a_line_that_changes() {
    let mut world = World::new(1, Line::new(80, 0.0), &[Flow::bulk(&make("ours"), 8)]);
    world.run_until(s(4));
    world.change(Line {
        mbps: 20.0,
        ..Line::new(80, 0.0)
    });
    world.run_until(s(6));
    let slower = world.measure_until(s(9));
    assert!(
        slower.mbps[0] >= 16.0 && slower.queue_mean_ms <= 30.0,
        "{slower:?}"
    );
    world.change(Line::new(80, 0.0));
    world.run_until(s(12));
    let faster = world.measure_until(s(14));
    assert!(
        faster.mbps[0] >= 85.0 && faster.queue_mean_ms <= 20.0,
        "{faster:?}"
    );
    world.change(Line::new(150, 0.0));
    world.run_until(s(18));
    let longer = world.measure_until(s(21));
    assert!(
        longer.mbps[0] >= 85.0 && longer.queue_mean_ms <= 20.0,
        "{longer:?}"
    );
}

/// A connection that carried tokens for ten seconds takes a prompt of 256 KiB without slow start.
#[test]
fn a_prompt_goes_at_once_after_tokens() {
    let tokens = (0..500).map(|at| (Duration::from_millis(1_000 + 20 * at), 250));
    let prompt = (s(12), 256 << 10);
    let mut flow = Flow::bulk(&make("ours"), 1);
    flow.bursts = Some(tokens.chain([prompt]).collect());
    let mut world = World::new(1, Line::new(150, 0.0), &[flow]);
    world.run_until(s(14));
    let (read, at) = world.read(0);
    assert_eq!(read, 500 * 250 + (256 << 10));
    // Half a round trip and 22 ms on the line cannot be helped; slow start from 12 KB takes 750 ms.
    let took = at - s(12);
    assert!(took <= Duration::from_millis(130), "{took:?}");
}

#[test]
fn a_leased_line_is_full_from_the_first_second() {
    let leased = Config::new(INITIAL_BYTES, Some(congestion::Line::new(100)));
    let factory: Factory = Arc::new(leased);
    let flows = [
        Flow::bulk(&factory, 8),
        Flow::bulk(&factory, 8).starting(s(3)),
    ];
    let mut world = World::new(1, Line::new(150, 0.01), &flows);
    world.run_until(s(1));
    let alone = world.measure_until(s(3));
    assert!(
        alone.mbps[0] >= 75.0 && alone.queue_mean_ms <= 20.0,
        "{alone:?}"
    );
    world.run_until(s(5));
    let shared = world.measure_until(s(8));
    let larger = shared.mbps[0].max(shared.mbps[1]) / (shared.mbps[0] + shared.mbps[1]);
    assert!(larger <= 0.55 && shared.queue_mean_ms <= 20.0, "{shared:?}");
}

/// The figures of the whole table. `tests/bench congestion` prints them.
#[test]
#[ignore = "the whole table for people, minutes of computing; its promises are asserted by the tests above on single cells"]
fn table() {
    table::print(&make);
}
