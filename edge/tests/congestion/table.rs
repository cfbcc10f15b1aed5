//! The whole table: every controller on every line. Takes minutes; `tests/bench congestion` prints it.

use std::time::Duration;

use crate::{
    link::Line,
    world::{Factory, Flow, Measured, World},
};

const CONTROLLERS: [&str; 3] = ["ours", "cubic", "bbr"];

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn steady(line: Line, flows: &[Flow], from: u64, to: u64) -> Measured {
    let mut world = World::new(7, line, flows);
    world.run_until(s(from));
    world.measure_until(s(to))
}

/// Jain's index: 1 when all have the same, 1/n when one has all.
pub(crate) fn jain(rates: &[f64]) -> f64 {
    let sum: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|rate| rate * rate).sum();
    sum * sum / (rates.len() as f64 * squares).max(f64::MIN_POSITIVE)
}

fn shown(measured: &Measured) -> String {
    format!(
        "{:5.1} {:4.0}/{:<3.0}{}",
        measured.mbps.iter().sum::<f64>(),
        measured.queue_mean_ms,
        measured.queue_p95_ms,
        if measured.died { "!" } else { " " }
    )
}

pub(crate) fn print(make: &dyn Fn(&str) -> Factory) {
    alone(make, 16);
    alone(make, 1);
    together(make);
    lines(make);
}

fn alone(make: &dyn Fn(&str) -> Factory, streams: usize) {
    say(&format!(
        "\n100 Mbit/s, queue 50 ms, {streams} stream(s), seconds 5 to 15: Mbit/s, queue mean/p95 ms"
    ));
    say("rtt  loss |  ours          |  cubic         |  bbr");
    for rtt in [20, 80, 150, 300] {
        for loss in [0.0, 0.001, 0.01, 0.05] {
            let cells: Vec<String> = CONTROLLERS
                .iter()
                .map(|name| {
                    let flow = Flow::bulk(&make(name), streams);
                    shown(&steady(Line::new(rtt, loss), &[flow], 5, 15))
                })
                .collect();
            say(&format!(
                "{rtt:3} {:4.1}% | {}",
                loss * 100.0,
                cells.join(" | ")
            ));
        }
    }
}

fn together(make: &dyn Fn(&str) -> Factory) {
    say("\nCompeting, 100 Mbit/s, queue 50 ms, the second from second 5, seconds 15 to 45");
    for pair in [
        ["ours", "ours"],
        ["ours", "cubic"],
        ["cubic", "ours"],
        ["cubic", "cubic"],
        ["bbr", "cubic"],
    ] {
        for rtt in [20, 80, 150] {
            let flows = [
                Flow::bulk(&make(pair[0]), 8),
                Flow::bulk(&make(pair[1]), 8).starting(s(5)),
            ];
            let got = steady(Line::new(rtt, 0.0), &flows, 15, 45);
            let sum: f64 = got.mbps.iter().sum();
            say(&format!(
                "{:5} + {:5} rtt {rtt:3}: {:4.1} + {:4.1} ({:2.0}:{:2.0}), Jain {:.3}, queue {:.0}/{:.0} ms, lost {:.2} %",
                pair[0],
                pair[1],
                got.mbps[0],
                got.mbps[1],
                got.mbps[0] / sum * 100.0,
                got.mbps[1] / sum * 100.0,
                jain(&got.mbps),
                got.queue_mean_ms,
                got.queue_p95_ms,
                got.lost * 100.0,
            ));
        }
    }
    let flows: Vec<Flow> = (0..4)
        .map(|index| Flow::bulk(&make("ours"), 4).starting(s(index * 2)))
        .collect();
    let got = steady(Line::new(80, 0.0), &flows, 15, 45);
    say(&format!(
        "4 of ours rtt 80: {:.1?}, Jain {:.3}, queue {:.0}/{:.0} ms",
        got.mbps,
        jain(&got.mbps),
        got.queue_mean_ms,
        got.queue_p95_ms
    ));
}

fn lines(make: &dyn Fn(&str) -> Factory) {
    say("\nOther lines, 8 streams: Mbit/s, queue mean/p95 ms");
    for name in CONTROLLERS {
        let flow = || [Flow::bulk(&make(name), 8)];
        let deep = Line {
            queue: s(1),
            ..Line::new(80, 0.0)
        };
        say(&format!(
            "{name:5} queue of 1 s, rtt 80:              {}",
            shown(&steady(deep, &flow(), 5, 15))
        ));
        let shallow = Line {
            queue: Duration::from_millis(5),
            ..Line::new(80, 0.0)
        };
        let got = steady(shallow, &flow(), 5, 15);
        say(&format!(
            "{name:5} queue of 5 ms, rtt 80:             {} lost {:.2} %",
            shown(&got),
            got.lost * 100.0
        ));
        let burst = Line {
            burst: Some((s(1), Duration::from_millis(10))),
            ..Line::new(150, 0.0)
        };
        say(&format!(
            "{name:5} 10 ms lost every second, rtt 150:   {}",
            shown(&steady(burst, &flow(), 5, 15))
        ));
        let policer = Line {
            policer: Some((50.0, 500e3)),
            ..Line::new(80, 0.0)
        };
        let got = steady(policer, &flow(), 5, 15);
        say(&format!(
            "{name:5} policed to 50 Mbit/s, rtt 80:       {} lost {:.2} %",
            shown(&got),
            got.lost * 100.0
        ));
        steps(name, &flow());
    }
}

fn steps(name: &str, flow: &[Flow]) {
    let mut world = World::new(7, Line::new(80, 0.0), flow);
    world.run_until(s(5));
    world.change(Line {
        mbps: 20.0,
        ..Line::new(80, 0.0)
    });
    let first = world.measure_until(s(7));
    let down = world.measure_until(s(12));
    world.change(Line::new(80, 0.0));
    let rise = world.measure_until(s(14));
    let up = world.measure_until(s(20));
    world.change(Line::new(150, 0.0));
    let early = world.measure_until(s(25));
    let late = world.measure_until(s(35));
    say(&format!(
        "{name:5} 100 to 20 Mbit/s, first 2 s / after: {} / {}",
        shown(&first),
        shown(&down)
    ));
    say(&format!(
        "{name:5} 20 to 100 Mbit/s, first 2 s / after: {} / {}",
        shown(&rise),
        shown(&up)
    ));
    say(&format!(
        "{name:5} rtt 80 to 150, first 5 s / after:    {} / {}",
        shown(&early),
        shown(&late)
    ));
}
