//! The model against what its conditions promise: shares, distributions, order and bounds, each with a seed.

use super::{Fate, Line};

const START_NS: u64 = 1_000_000_000;

fn line(conditions: &str) -> Line {
    Line::new(conditions.parse().unwrap(), 1)
}

/// Sends packets `gap_ns` apart; when each comes out.
fn run(line: &mut Line, count: u64, gap_ns: u64, bytes: usize) -> Vec<Option<u64>> {
    (0..count)
        .map(|at| match line.admit(START_NS + at * gap_ns, bytes) {
            Fate::Arrives { at_ns, .. } => Some(at_ns),
            Fate::Lost => None,
        })
        .collect()
}

fn loss(fates: &[Option<u64>]) -> f64 {
    fates.iter().filter(|fate| fate.is_none()).count() as f64 / fates.len() as f64
}

/// Mean number of packets lost in a row.
fn mean_run(fates: &[Option<u64>]) -> f64 {
    let runs = fates.split(Option::is_some).filter(|run| !run.is_empty());
    let (count, sum) = runs.fold((0, 0), |(count, sum), run| (count + 1, sum + run.len()));
    sum as f64 / f64::from(count)
}

/// Mean and standard deviation of the delays, in ms.
fn delays(fates: &[Option<u64>], gap_ns: u64) -> (f64, f64) {
    let each = (0_u64..).zip(fates);
    let each: Vec<f64> = each
        .map(|(at, fate)| (fate.unwrap() - START_NS - at * gap_ns) as f64 / 1e6)
        .collect();
    let mean = each.iter().sum::<f64>() / each.len() as f64;
    let square = each.iter().map(|delay| (delay - mean).powi(2)).sum::<f64>();
    (mean, (square / each.len() as f64).sqrt())
}

fn near(found: f64, wanted: f64, by: f64) {
    assert!((found - wanted).abs() < by, "{found}, not {wanted}");
}

#[test]
fn a_fixed_delay_is_exact() {
    let fates = run(&mut line("delay_ms=75.25"), 10, 1000, 100);
    assert_eq!(fates[3], Some(START_NS + 3000 + 75_250_000));
}

#[test]
fn the_same_seed_gives_the_same_fates() {
    let wild = "delay_ms=5 jitter_ms=2 loss=5% burst_loss=2% duplicate=1% reorder=1%";
    let run = || run(&mut line(wild), 10_000, 100_000, 100);
    assert_eq!(run(), run());
}

#[test]
fn independent_loss_has_its_share_and_short_runs() {
    let fates = run(&mut line("loss=3%"), 1_000_000, 1000, 100);
    near(loss(&fates), 0.03, 0.001);
    near(mean_run(&fates), 1.03, 0.02);
}

#[test]
fn bursts_take_the_same_share_of_dense_and_sparse_flows() {
    let dense = run(
        &mut line("burst_loss=2% burst_ms=20"),
        5_000_000,
        100_000,
        100,
    );
    let sparse = run(
        &mut line("burst_loss=2% burst_ms=20"),
        500_000,
        50_000_000,
        100,
    );
    near(loss(&dense), 0.02, 0.003);
    near(loss(&sparse), 0.02, 0.003);
    near(mean_run(&dense), 200.0, 25.0);
    assert!(mean_run(&sparse) < 1.3);
    let half = run(
        &mut line("burst_loss=2% burst_density=0.5"),
        5_000_000,
        100_000,
        100,
    );
    near(loss(&half), 0.02, 0.003);
}

#[test]
fn the_rate_holds_and_the_queue_bounds_the_delay() {
    // 100 Mbit/s offered to a 50 Mbit/s line for 1.2 s.
    let fates = run(&mut line("rate_mbit=50 queue_ms=30"), 10_000, 120_000, 1500);
    near(loss(&fates), 0.5, 0.02);
    let times: Vec<u64> = fates.iter().flatten().copied().collect();
    let took = (times[times.len() - 1] - times[0]) as f64 / 1e9;
    near((times.len() - 1) as f64 * 12e3 / took / 50e6, 1.0, 0.001);
    let worst = (0_u64..)
        .zip(&fates)
        .filter_map(|(at, fate)| Some((*fate)? - START_NS - at * 120_000));
    assert!(worst.max().unwrap() <= 30_300_000);
}

#[test]
fn independent_jitter_has_its_distribution_and_reorders_only_if_let() {
    let in_order = |fates: &[Option<u64>]| fates.windows(2).all(|two| two[0] <= two[1]);
    let loose = "delay_ms=50 jitter_ms=5 jitter_corr_ms=0 keep_order=off";
    let fates = run(&mut line(loose), 100_000, 100_000, 100);
    let (mean, deviation) = delays(&fates, 100_000);
    near(mean, 50.0, 0.1);
    near(deviation, 5.0, 0.15);
    assert!(!in_order(&fates));
    let strict = line("delay_ms=50 jitter_ms=5 jitter_corr_ms=0")
        .conditions()
        .clone();
    assert!(in_order(&run(
        &mut Line::new(strict, 2),
        10_000,
        100_000,
        100
    )));
    let even = format!("{loose} jitter_dist=uniform");
    let (mean, deviation) = delays(&run(&mut line(&even), 100_000, 100_000, 100), 100_000);
    near(mean, 50.0, 0.1);
    near(deviation, 10.0 / 12_f64.sqrt(), 0.1);
}

#[test]
fn drifting_jitter_keeps_the_order_and_the_mean_of_dense_traffic() {
    let fates = run(
        &mut line("delay_ms=50 jitter_ms=1"),
        2_000_000,
        100_000,
        100,
    );
    assert!(fates.windows(2).all(|two| two[0] <= two[1]));
    let (mean, deviation) = delays(&fates, 100_000);
    near(mean, 50.0, 0.15);
    near(deviation, 1.0, 0.15);
}

#[test]
fn late_and_doubled_packets_have_their_shares() {
    let mut line = line("delay_ms=10 reorder=1% reorder_ms=2 duplicate=0.5%");
    let fates = run(&mut line, 200_000, 1_000_000, 100);
    let late = (0_u64..)
        .zip(&fates)
        .filter(|(at, fate)| fate.unwrap() - START_NS - at * 1_000_000 == 12_000_000);
    let late = late.count() as u64;
    assert_eq!(late, line.counters.reordered);
    near(late as f64 / 200_000.0, 0.01, 0.001);
    near(line.counters.duplicated as f64 / 200_000.0, 0.005, 0.0007);
}

#[test]
fn a_hole_swallows_what_is_under_way_unless_it_drains() {
    for (state, comes_out) in [("on", false), ("drain", true)] {
        let mut line = line("delay_ms=10");
        assert!(matches!(line.admit(START_NS, 100), Fate::Arrives { .. }));
        line.counters.in_flight += 1;
        let changed = line
            .conditions()
            .with(&format!("blackhole={state}"))
            .unwrap();
        line.change(changed);
        assert_eq!(line.admit(START_NS + 1, 100), Fate::Lost);
        assert_eq!(line.release(100), comes_out);
        let gone = line.counters.blackholed + line.counters.out_packets;
        assert_eq!((gone, line.counters.in_flight), (2, 0));
    }
}
