//! Tells a replica of control how this node is: what others route by at once, the rest when it has changed.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use vector_proto::control::{
    status::pieces,
    v1::{self, NodeEvent, node_event::Event},
};

use super::ControlPlane;

/// Reports: at most this often, and at least that often.
const STATUS_EVERY_MIN: Duration = Duration::from_millis(250);
const STATUS_EVERY_MAX: Duration = Duration::from_secs(10);

/// What others route by: told this soon, so that several changes at once make one report; and so many times beyond the
/// usual pace, which come back one at a turn.
const URGENT_EVERY: Duration = Duration::from_millis(2);
const URGENT_MAX: u32 = 8;

/// Moments this close are told as one.
const SAME_MOMENT_MS: u64 = 100;

/// Reports the node's state when it changed, and now and then when it did not. Ends when the stream does.
///
/// What others route by is told within [`URGENT_EVERY`], as long as that does not happen all the time; everything
/// else at the next turn.
pub(super) async fn report_status(control: &ControlPlane, events: &mpsc::Sender<NodeEvent>) {
    let mut last: Option<(Instant, v1::Status)> = None;
    let mut ticks = tokio::time::interval(STATUS_EVERY_MIN);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut spare = URGENT_MAX;
    let mut urgent = control.0.urgent.subscribe();
    loop {
        let urgent = async {
            if spare == 0 || urgent.changed().await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            _ = ticks.tick() => spare = URGENT_MAX.min(spare + 1),
            () = urgent => {
                spare -= 1;
                tokio::time::sleep(URGENT_EVERY).await;
            }
        }
        let Some(source) = control.0.status.get() else {
            continue;
        };
        let status = source();
        let due = last.as_ref().is_none_or(|(at, said)| {
            let age = at.elapsed();
            age >= STATUS_EVERY_MAX || differs(said, &status, age)
        });
        if due {
            for piece in pieces(status.clone()) {
                if events.send(event(Event::Status(piece))).await.is_err() {
                    return;
                }
            }
            last = Some((Instant::now(), status));
        }
    }
}

/// Whether the difference is worth telling at once: counters and round trips alone are not, but that a draining node has
/// nothing left is what somebody waits for. `age`: how long ago `a` was told.
fn differs(a: &v1::Status, b: &v1::Status, age: Duration) -> bool {
    let shape = |status: &v1::Status| {
        let links: Vec<_> = status
            .links
            .iter()
            .map(|link| (link.peer.clone(), link.address.clone(), link.state))
            .collect();
        let credentials: Vec<_> = status
            .credentials
            .iter()
            .map(|one| (one.credential.clone(), one.state))
            .collect();
        let trust = (status.trusted_roots.clone(), status.proven_by.clone());
        let emptied = status.draining && status.exchanges + status.client_exchanges == 0;
        (status.draining, emptied, links, credentials, trust)
    };
    shape(a) != shape(b) || pools_differ(a, b, age) || upstreams_differ(a, b, age)
}

/// Whether two times to come, the first told `age` ago, are another moment.
fn moved(before_ms: u64, now_ms: u64, age: Duration) -> bool {
    let expected = before_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    (expected == 0) != (now_ms == 0) || expected.abs_diff(now_ms) > SAME_MOMENT_MS
}

fn pools_differ(a: &v1::Status, b: &v1::Status, age: Duration) -> bool {
    a.pools.len() != b.pools.len()
        || a.pools.iter().zip(&b.pools).any(|(one, other)| {
            one.provider != other.provider
                || (one.keys, one.ready) != (other.keys, other.ready)
                || moved(one.rests_ms, other.rests_ms, age)
                || probed(one, other, age)
        })
}

/// Whether a probe has worked or failed since.
fn probed(before: &v1::PoolStatus, now: &v1::PoolStatus, age: Duration) -> bool {
    let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let expected = before.probed_ms_ago.map(|ago| ago.saturating_add(age));
    let newer = match (expected, now.probed_ms_ago) {
        (Some(expected), Some(ago)) => ago.saturating_add(SAME_MOMENT_MS) < expected,
        (expected, ago) => expected.is_some() != ago.is_some(),
    };
    newer || before.probes_failed != now.probes_failed
}

fn upstreams_differ(a: &v1::Status, b: &v1::Status, age: Duration) -> bool {
    // A fifth more or less of anything; the least difference that counts keeps small numbers quiet. Of single models, which are
    // many, a half: a busy node would tell of one all the time.
    rows_differ(&a.upstreams, &b.upstreams, age, 5) || rows_differ(&a.models, &b.models, age, 2)
}

/// Whether rows differ by more than one part in `part`, or in what they are of.
fn rows_differ(
    a: &[v1::UpstreamStatus],
    b: &[v1::UpstreamStatus],
    age: Duration,
    part: u64,
) -> bool {
    let apart =
        |one: u64, other: u64, least: u64| one.abs_diff(other) > least.max(one.max(other) / part);
    // A rate is as good or bad of a model as of a pair.
    let rate = |one: u32, other: u32| one.abs_diff(other) > 50.max(one.max(other) / 5);
    a.len() != b.len()
        || a.iter().zip(b).any(|(one, other)| {
            (&one.provider, &one.egress, &one.model)
                != (&other.provider, &other.egress, &other.model)
                || moved(one.ejected_ms, other.ejected_ms, age)
                || apart(one.first_byte_us, other.first_byte_us, 20_000)
                || rate(one.success_permille, other.success_permille)
                || rate(one.reached_permille, other.reached_permille)
                || apart(one.tokens_per_s.into(), other.tokens_per_s.into(), 5)
        })
}

pub(super) const fn event(event: Event) -> NodeEvent {
    NodeEvent { event: Some(event) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_draining_node_is_empty_is_told_at_once_and_other_counts_are_not() {
        let status = |draining, exchanges, client_exchanges| v1::Status {
            draining,
            exchanges,
            client_exchanges,
            ..v1::Status::default()
        };
        let told = |a, b| differs(&a, &b, Duration::ZERO);
        assert!(!told(status(false, 0, 0), status(false, 3, 2)));
        assert!(!told(status(false, 3, 2), status(false, 0, 0)));
        assert!(!told(status(true, 3, 2), status(true, 0, 2)));
        assert!(told(status(true, 1, 0), status(true, 0, 0)));
        assert!(told(status(true, 0, 1), status(true, 0, 0)));
    }

    #[test]
    fn each_probe_is_told() {
        let probed = |probes_failed, probed_ms_ago| v1::Status {
            pools: vec![v1::PoolStatus {
                probes_failed,
                probed_ms_ago,
                ..v1::PoolStatus::default()
            }],
            ..v1::Status::default()
        };
        let age = Duration::from_secs(2);
        let told = |a, b| differs(&a, &b, age);
        assert!(!told(probed(0, Some(10)), probed(0, Some(2_015))));
        assert!(told(probed(0, Some(10)), probed(0, Some(30))), "another");
        assert!(told(probed(0, Some(10)), probed(1, Some(2_010))));
        assert!(told(probed(2, None), probed(0, Some(30))));
        assert!(!told(probed(0, None), probed(0, None)));
    }

    #[test]
    fn what_upstreams_are_like_is_told_when_it_has_changed() {
        let row = |model: &str, tokens_per_s, success_permille| v1::UpstreamStatus {
            provider: "p".to_owned(),
            egress: "e".to_owned(),
            model: model.to_owned(),
            first_byte_us: 500_000,
            tokens_per_s,
            success_permille,
            ..v1::UpstreamStatus::default()
        };
        let told = |pairs: [v1::UpstreamStatus; 2], models: [v1::UpstreamStatus; 2]| {
            let [before, after] = [0, 1].map(|at| v1::Status {
                upstreams: vec![pairs[at].clone()],
                models: vec![models[at].clone()],
                ..v1::Status::default()
            });
            differs(&before, &after, Duration::ZERO)
        };
        let same = || [row("m", 50, 1_000), row("m", 50, 1_000)];
        let pair = |tokens| row("", tokens, 1_000);
        assert!(!told([pair(50), pair(58)], same()));
        assert!(told([pair(50), pair(70)], same()), "much faster");
        let pairs = || [pair(50), pair(50)];
        assert!(!told(pairs(), [row("m", 50, 1_000), row("m", 70, 950)]));
        assert!(told(pairs(), [row("m", 50, 1_000), row("m", 200, 1_000)]));
        assert!(told(pairs(), [row("m", 50, 1_000), row("n", 50, 1_000)]));
        assert!(
            told(pairs(), [row("m", 50, 1_000), row("m", 50, 700)]),
            "it fails"
        );
    }
}
