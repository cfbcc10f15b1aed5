//! A few dozen figures and how they spread: exact, as buckets would blur what so few can tell.

use serde_json::{Value, json};

/// Count, least, percentiles and most, in the figures' own unit; rounded to two digits behind the point.
pub(crate) fn spread(figures: &[f64]) -> Value {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    json!({
        "count": sorted.len(),
        "min": at(&sorted, 0.0),
        "p50": at(&sorted, 0.5),
        "p90": at(&sorted, 0.9),
        "p99": at(&sorted, 0.99),
        "max": at(&sorted, 1.0),
    })
}

/// The middle one; the upper of two.
pub(crate) fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    at(&sorted, 0.5)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index into a few figures"
)]
fn at(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let figure = sorted.get((last as f64 * share).round() as usize)?;
    Some((figure * 100.0).round() / 100.0)
}

pub(crate) fn ms(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::{median, spread};

    #[test]
    fn percentiles_are_figures_that_were_there() {
        let figures: Vec<f64> = (1..=101).rev().map(f64::from).collect();
        let spread = spread(&figures);
        for (name, wanted) in [("min", 1.0), ("p50", 51.0), ("p90", 91.0), ("max", 101.0)] {
            assert_eq!(spread[name], wanted, "{name}");
        }
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[2.0, 1.0]), Some(2.0));
    }
}
