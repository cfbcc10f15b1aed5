//! What makes one snapshot of another: a thousand nodes are told of the row that changed, and not of all rows. Pure.
//!
//! Rows are compared in their order, which is that of their names on both sides. What is told is right for any order, and
//! short for a sorted one.

use std::cmp::Ordering;

use super::v1::{Path, Snapshot, SnapshotDelta, Splice};

/// Why a delta cannot be used with a snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Misfit {
    /// It is for another one.
    #[error("the delta is for another snapshot")]
    Other,
    /// It names rows that are not there, or does not say where its own belong.
    #[error("the delta names other rows than there are")]
    Rows,
}

/// What makes `new` of `old`. Both have their digests.
#[must_use]
pub fn difference(old: &Snapshot, new: &Snapshot) -> SnapshotDelta {
    let (nodes_at, nodes) = compare(&old.nodes, &new.nodes, |a, b| a.id.cmp(&b.id));
    let (providers_at, providers) =
        compare(&old.providers, &new.providers, |a, b| a.name.cmp(&b.name));
    let (models_at, models) = compare(&old.models, &new.models, |a, b| a.name.cmp(&b.name));
    let (default_routes_at, default_routes) =
        compare(&old.default_routes, &new.default_routes, |a, b| {
            a.operation.cmp(&b.operation)
        });
    let (paths_at, paths) = difference_of_paths(&old.paths, &new.paths);
    let (revocations_at, revocations) = compare(&old.revocations, &new.revocations, |a, b| {
        a.node.cmp(&b.node)
    });
    SnapshotDelta {
        from: old.revision,
        from_digest: old.digest.clone(),
        revision: new.revision,
        digest: new.digest.clone(),
        nodes_at,
        nodes,
        providers_at,
        providers,
        models_at,
        models,
        default_routes_at,
        default_routes,
        paths_at,
        paths,
        revocations_at,
        revocations,
    }
}

/// The part of [`difference`] that is about paths, for those who keep them apart.
#[must_use]
pub fn difference_of_paths(old: &[Path], new: &[Path]) -> (Vec<Splice>, Vec<Path>) {
    compare(old, new, |a, b| {
        (&a.from_region, &a.egress, a.score, &a.relay).cmp(&(
            &b.from_region,
            &b.egress,
            b.score,
            &b.relay,
        ))
    })
}

/// The snapshot that a delta makes of `old`. Its digest is what the delta says: the caller checks it.
///
/// # Errors
/// [`Misfit`]; `old` is then of no more use, and the whole snapshot is needed.
pub fn apply(old: Snapshot, delta: SnapshotDelta) -> Result<Snapshot, Misfit> {
    if (old.revision, &old.digest) != (delta.from, &delta.from_digest) {
        return Err(Misfit::Other);
    }
    Ok(Snapshot {
        revision: delta.revision,
        nodes: splice(old.nodes, &delta.nodes_at, delta.nodes)?,
        providers: splice(old.providers, &delta.providers_at, delta.providers)?,
        models: splice(old.models, &delta.models_at, delta.models)?,
        default_routes: splice(
            old.default_routes,
            &delta.default_routes_at,
            delta.default_routes,
        )?,
        paths: splice(old.paths, &delta.paths_at, delta.paths)?,
        revocations: splice(old.revocations, &delta.revocations_at, delta.revocations)?,
        digest: delta.digest,
    })
}

fn compare<T: Clone + PartialEq>(
    old: &[T],
    new: &[T],
    order: impl Fn(&T, &T) -> Ordering,
) -> (Vec<Splice>, Vec<T>) {
    let (mut splices, mut rows) = (Vec::new(), Vec::new());
    let (mut next, mut open) = (Splice::default(), false);
    let (mut before, mut after) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let (goes, comes) = match (before.peek(), after.peek()) {
            (None, None) => break,
            (Some(_), None) => (true, false),
            (None, Some(_)) => (false, true),
            (Some(one), Some(other)) if one == other => {
                if open {
                    splices.push(std::mem::take(&mut next));
                    open = false;
                }
                next.stay += 1;
                before.next();
                after.next();
                continue;
            }
            (Some(one), Some(other)) => {
                let order = order(one, other);
                (order.is_le(), order.is_ge())
            }
        };
        open = true;
        if goes {
            next.go += 1;
            before.next();
        }
        if comes {
            next.come += 1;
            rows.extend(after.next().cloned());
        }
    }
    if open {
        splices.push(next);
    }
    (splices, rows)
}

fn splice<T>(old: Vec<T>, splices: &[Splice], rows: Vec<T>) -> Result<Vec<T>, Misfit> {
    if splices.is_empty() && rows.is_empty() {
        return Ok(old);
    }
    let (mut old, mut rows) = (old.into_iter(), rows.into_iter());
    let mut new = Vec::with_capacity(old.len() + rows.len());
    for at in splices {
        let (stay, go, come) = (at.stay as usize, at.go as usize, at.come as usize);
        if stay.saturating_add(go) > old.len() || come > rows.len() {
            return Err(Misfit::Rows);
        }
        new.extend(old.by_ref().take(stay));
        old.by_ref().take(go).for_each(drop);
        new.extend(rows.by_ref().take(come));
    }
    if rows.len() > 0 {
        return Err(Misfit::Rows);
    }
    new.extend(old);
    Ok(new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::v1::{DefaultRoute, Model, NodeRecord, Path, Provider, Revocation};
    use super::*;

    /// Rows of each section: a name out of few, and something that may change.
    type Rows = Vec<(u8, u8)>;

    fn snapshot(revision: u64, sections: &[Rows; 6]) -> Snapshot {
        let name = |row: &(u8, u8)| format!("n{:02}", row.0);
        let [nodes, providers, models, routes, paths, revoked] = sections;
        Snapshot {
            revision,
            nodes: nodes
                .iter()
                .map(|row| NodeRecord {
                    id: name(row),
                    epoch: row.1.into(),
                    ..NodeRecord::default()
                })
                .collect(),
            providers: providers
                .iter()
                .map(|row| Provider {
                    name: name(row),
                    kind: row.1.to_string(),
                    ..Provider::default()
                })
                .collect(),
            models: models
                .iter()
                .map(|row| Model {
                    name: name(row),
                    created_unix_s: row.1.into(),
                    ..Model::default()
                })
                .collect(),
            default_routes: routes
                .iter()
                .map(|row| DefaultRoute {
                    operation: name(row),
                    redundant: row.1 % 2 == 0,
                    ..DefaultRoute::default()
                })
                .collect(),
            paths: paths
                .iter()
                .map(|row| Path {
                    egress: name(row),
                    score: row.1.into(),
                    ..Path::default()
                })
                .collect(),
            revocations: revoked
                .iter()
                .map(|row| Revocation {
                    node: name(row),
                    before_unix_s: row.1.into(),
                })
                .collect(),
            digest: revision.to_be_bytes().to_vec().into(),
        }
    }

    fn rows() -> impl Strategy<Value = Rows> {
        // Mostly sorted by name, as control has them; sometimes not, which must be right all the same.
        (
            prop::collection::vec((0_u8..30, 0_u8..3), 0..40),
            any::<bool>(),
        )
            .prop_map(|(mut rows, sorted)| {
                if sorted {
                    rows.sort_unstable();
                    rows.dedup_by_key(|row| row.0);
                }
                rows
            })
    }

    fn sections() -> impl Strategy<Value = [Rows; 6]> {
        [rows(), rows(), rows(), rows(), rows(), rows()]
    }

    proptest! {
        #[test]
        fn a_delta_makes_the_new_snapshot_of_the_old_one(before in sections(), after in sections()) {
            let (old, new) = (snapshot(7, &before), snapshot(9, &after));
            prop_assert_eq!(apply(old.clone(), difference(&old, &new)), Ok(new));
        }

        #[test]
        fn a_delta_for_other_rows_is_refused_and_never_panics(
            before in sections(),
            after in sections(),
            other in sections(),
            stay in any::<u32>(),
            come in any::<u32>(),
        ) {
            let (old, new) = (snapshot(7, &before), snapshot(9, &after));
            let mut delta = difference(&old, &new);
            prop_assert_eq!(apply(snapshot(8, &before), delta.clone()), Err(Misfit::Other));
            let _any = apply(snapshot(7, &other), delta.clone());
            delta.models_at.push(Splice { stay, go: u32::MAX, come });
            prop_assert_eq!(apply(old, delta), Err(Misfit::Rows));
        }
    }

    #[test]
    fn one_row_that_changed_is_told_alone() {
        let rows: Rows = (0..30).map(|name| (name, 1)).collect();
        let mut changed = rows.clone();
        changed[17].1 = 2;
        changed.remove(3);
        let all = [(); 6].map(|()| rows.clone());
        let mut after = all.clone();
        after[2] = changed;
        let delta = difference(&snapshot(7, &all), &snapshot(8, &after));
        assert_eq!(delta.models.len(), 1);
        let splice = |stay, go, come| Splice { stay, go, come };
        assert_eq!(delta.models_at, [splice(3, 1, 0), splice(13, 1, 1)]);
        assert!(delta.nodes_at.is_empty() && delta.paths.is_empty());
    }
}
