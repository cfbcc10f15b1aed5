//! The controller under calls that make no sense, its rules one by one, and what a packet costs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use proptest::prelude::*;
use quinn_proto::congestion::Controller as _;

use super::{
    Config, Controller, Line,
    loss::{Kind, Tally, UsualLoss, Verdict},
    rate::Sampler,
};

const INITIAL: u64 = 512 << 10;
const MTU: u16 = 1400;

fn controller(now: Instant) -> Controller {
    Config::new(INITIAL, None).controller(now, MTU)
}

/// One call of the trait, with whatever numbers.
#[derive(Clone, Debug)]
enum Step {
    Sent(u64, u64),
    Acked {
        at: u64,
        sent: u64,
        bytes: u64,
        srtt: u64,
    },
    Batch(u64, u64, bool),
    Lost {
        at: u64,
        sent: u64,
        persistent: bool,
        bytes: u64,
    },
    Mtu(u16),
}

/// Microseconds: often the same moment, often close, at times a year.
fn moment() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        0..200_000_u64,
        0..30_000_000_u64,
        Just(31_536_000_000_000)
    ]
}

fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..3_000_u64, 1..10_000_000_u64, Just(u64::MAX)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (moment(), amount()).prop_map(|(at, bytes)| Step::Sent(at, bytes)),
        4 => (moment(), moment(), amount(), moment())
            .prop_map(|(at, sent, bytes, srtt)| Step::Acked { at, sent, bytes, srtt }),
        4 => (moment(), amount(), any::<bool>())
            .prop_map(|(at, in_flight, limited)| Step::Batch(at, in_flight, limited)),
        1 => (moment(), moment(), any::<bool>(), amount())
            .prop_map(|(at, sent, persistent, bytes)| Step::Lost { at, sent, persistent, bytes }),
        1 => any::<u16>().prop_map(Step::Mtu),
    ]
}

fn take(controller: &mut Controller, began: Instant, step: Step) {
    let time = |micros| began + Duration::from_micros(micros);
    match step {
        Step::Sent(at, bytes) => controller.on_sent(time(at), bytes, at),
        Step::Acked {
            at,
            sent,
            bytes,
            srtt,
        } => {
            controller.acked(time(sent), bytes, Duration::from_micros(srtt));
            controller.on_end_acks(time(at), bytes, false, None);
        }
        Step::Batch(at, in_flight, limited) => {
            controller.on_end_acks(time(at), in_flight, limited, Some(at));
        }
        Step::Lost {
            at,
            sent,
            persistent,
            bytes,
        } => {
            controller.on_congestion_event(time(at), time(sent), persistent, bytes);
        }
        Step::Mtu(mtu) => controller.on_mtu_update(mtu),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// No panic, no overflow, never a window of nothing or without end, whatever is called in
    /// whatever order at whatever time, forwards and backwards.
    #[test]
    fn any_calls_leave_a_window(steps in prop::collection::vec(step(), 1..300), leased: bool) {
        let began = Instant::now();
        let line = leased.then(|| Line::new(100));
        let mut controller = Config::new(INITIAL, line).controller(began, MTU);
        for step in steps {
            take(&mut controller, began, step);
            let window = controller.window();
            prop_assert!((4..=256 << 20).contains(&window), "{window}");
        }
    }

    /// The same in a plausible order: sendings, then acknowledgements and losses of them.
    #[test]
    fn any_path_leaves_a_window(
        rtts in prop::collection::vec(0..2_000_000_u64, 1..400),
        losses in prop::collection::vec(0..20_u64, 400),
    ) {
        let began = Instant::now();
        let mut controller = controller(began);
        let mut now = began;
        for (rtt, loss) in rtts.into_iter().zip(losses) {
            controller.on_sent(now, 14_000, 0);
            let sent = now;
            now += Duration::from_micros(rtt);
            controller.acked(sent, 14_000, Duration::from_micros(rtt));
            controller.on_end_acks(now, loss * 1000, loss == 3, None);
            if loss < 3 {
                controller.on_congestion_event(now, sent, loss == 0, loss * 1_400);
            }
            prop_assert!(controller.window() >= 4 * u64::from(MTU));
        }
    }
}

#[test]
fn a_rate_counts_the_longer_of_sending_and_acknowledging() {
    let began = Instant::now();
    let ms = |ms| began + Duration::from_millis(ms);
    let mut sampler = Sampler::new(began);
    // 10 packets, one a millisecond; all acknowledgements come at once.
    for at in 0..10 {
        sampler.on_sent(ms(at), Duration::ZERO);
    }
    for at in 0..10 {
        sampler.on_ack(ms(at), 1_000);
    }
    let sample = sampler.on_batch(ms(20), 0, false).unwrap();
    assert_eq!(sample.rtt, Duration::from_millis(11));
    // 10,000 bytes within the 20 ms since sending began.
    assert_eq!(sample.rate.map(f64::round), Some(500_000.0));
}

#[test]
fn loss_counts_above_what_the_path_loses_anyway() {
    let mut usual = UsualLoss::default();
    let tally = |acked, lost| {
        let mut tally = Tally::default();
        tally.acked = acked;
        for _ in 0..lost / 1_400 {
            tally.lose(1_400, 2_800, 1_400);
        }
        tally
    };
    let lossy = tally(1_400_000, 70_000);
    assert!(
        matches!(usual.judge(&lossy, Kind::Plain, 1_400), Verdict::Excess(_)),
        "a surprise"
    );
    for _ in 0..12 {
        usual.judge(&lossy, Kind::Gentle, 1_400);
    }
    assert_eq!(
        usual.judge(&lossy, Kind::Plain, 1_400),
        Verdict::Usual,
        "learnt while gentle"
    );
    let worse = tally(1_400_000, 210_000);
    assert!(
        matches!(usual.judge(&worse, Kind::Plain, 1_400), Verdict::Excess(_)),
        "more than learnt"
    );
    for _ in 0..3 {
        usual.judge(&tally(140_000, 70_000), Kind::Gentle, 1_400);
    }
    assert_eq!(
        usual.judge(&tally(140_000, 70_000), Kind::Gentle, 1_400),
        Verdict::Heavy,
        "whatever the cause"
    );
}

#[test]
fn a_hole_in_time_is_not_congestion() {
    let mut usual = UsualLoss::default();
    let mut tally = Tally::default();
    tally.acked = 1_400_000;
    tally.lose(140_000, 2_800, 1_400);
    assert_eq!(usual.judge(&tally, Kind::Plain, 1_400), Verdict::Usual);
}

#[test]
fn a_leased_line_is_shared_by_those_that_are_busy() {
    let began = Instant::now();
    let rtt = Duration::from_millis(100);
    let config = Arc::new(Config::new(INITIAL, Some(Line::new(80))));
    let run = |controller: &mut Controller, limited| {
        controller.on_sent(began, 1_400, 0);
        controller.acked(began, 1_400, rtt);
        controller.on_end_acks(began + rtt, 1_400, limited, None);
    };
    let mut first = config.controller(began, MTU);
    let mut second = config.controller(began, MTU);
    assert_eq!(first.window(), INITIAL, "before the first round trip");
    run(&mut first, false);
    run(&mut second, true);
    // 80 Mbit/s are 1 MB in 100 ms; nine tenths are shared out.
    assert_eq!(first.window(), 900_000, "alone");
    run(&mut second, false);
    assert_eq!([first.window(), second.window()], [450_000; 2], "two busy");
    drop(second);
    assert_eq!(first.window(), 900_000, "a dropped one gives back");
}

#[test]
fn how_fast_the_path_delivers_is_told() {
    let (began, told) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let config = Config::new(INITIAL, None).telling(Arc::clone(&told));
    let mut controller = config.controller(began, MTU);
    let rtt = Duration::from_millis(50);
    for round in 0..10 {
        let sent = began + rtt * round;
        controller.on_sent(sent, 14_000, 0);
        controller.acked(sent, 14_000, rtt);
        controller.on_end_acks(sent + rtt, 0, false, None);
    }
    // 14,000 bytes in 50 ms.
    let told = told.load(Ordering::Relaxed);
    assert!(told.abs_diff(280_000) <= 1, "{told}");
}

#[test]
fn a_leased_line_that_loses_a_third_is_not_believed() {
    let began = Instant::now();
    let config = Config::new(INITIAL, Some(Line::new(800)));
    let mut controller = config.controller(began, MTU);
    let rtt = Duration::from_millis(50);
    for round in 0..60 {
        let sent = began + rtt * round;
        controller.on_sent(sent, 14_000, 0);
        controller.acked(sent, 14_000, rtt);
        controller.on_end_acks(sent + rtt, 0, false, None);
        controller.on_congestion_event(sent + rtt, sent, false, 7_000);
    }
    // Believed, it would be 4.5 MB.
    assert!(controller.window() < 1 << 20, "{}", controller.window());
}

#[test]
#[ignore = "a measurement that asserts nothing: nanoseconds a packet, only meaningful in release with --nocapture"]
fn what_a_packet_costs() {
    let began = Instant::now();
    let mut controller = controller(began);
    let rtt = Duration::from_millis(50);
    let count = 4_000_000_u32;
    let gap = Duration::from_micros(11);
    let clock = Instant::now();
    for packet in 0..count {
        let sent = began + gap * packet;
        controller.on_sent(sent + rtt, 1_400, 0);
        controller.acked(sent, 1_400, rtt);
        if packet % 2 == 0 {
            controller.on_end_acks(sent + rtt, 1 << 19, false, None);
        }
        std::hint::black_box(controller.window());
    }
    let each = clock.elapsed().as_nanos() / u128::from(count);
    let text = format!("{each} ns a packet: sent, acknowledged, every second ends a batch\n");
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
}
