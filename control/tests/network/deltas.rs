//! Routes told as what is different, and whole to whoever needs that.

use vector_proto::control::delta;

use super::*;

impl Stream {
    async fn open_for_deltas(client: &mut NodeClient<Channel>, revision: u64) -> Self {
        let register = pb::Register {
            epoch: 7,
            revision,
            tunnel_addresses: vec!["127.0.0.1:7440".to_owned()],
            deltas: true,
            ..pb::Register::default()
        };
        Self::open_as(client, register).await
    }

    /// The pieces of the next delta, put together, and how many they were: one for a delta that came whole.
    async fn pieces(&mut self) -> (pb::SnapshotDelta, usize) {
        let (mut held, mut count) = (Vec::new(), 0);
        let whole = self.until(|event| match event {
            Event::SnapshotPart(part) => {
                assert!(part.delta, "it has the snapshot before");
                held.extend_from_slice(&part.data);
                count += 1;
                let last = held.len() as u64 == part.bytes;
                last.then(|| (held.clone(), count))
            }
            Event::SnapshotDelta(bytes) => Some((bytes.to_vec(), 1)),
            _ => None,
        });
        let (whole, count) = whole.await;
        (pb::SnapshotDelta::decode(&whole[..]).unwrap(), count)
    }

    /// The next routes: `Ok` for the whole of them.
    async fn news(&mut self) -> Result<pb::Snapshot, Box<pb::SnapshotDelta>> {
        let mut whole = Vec::new();
        self.until(|event| match event {
            Event::SnapshotPart(part) => {
                assert_eq!(part.offset, whole.len() as u64, "in their order");
                whole.extend_from_slice(&part.data);
                let last = whole.len() as u64 == part.bytes;
                last.then(|| Ok(pb::Snapshot::decode(&whole[..]).unwrap()))
            }
            Event::SnapshotDelta(bytes) => {
                Some(Err(pb::SnapshotDelta::decode(bytes).unwrap().into()))
            }
            other => {
                assert!(!matches!(other, Event::Snapshot(_)), "it takes deltas");
                None
            }
        })
        .await
    }

    /// Follows the deltas from `held` on until `good`. Answers that, with the number of deltas.
    async fn follow(
        &mut self,
        mut held: pb::Snapshot,
        good: impl Fn(&pb::Snapshot) -> bool,
    ) -> (pb::Snapshot, usize) {
        let mut deltas = 0;
        while !good(&held) {
            let delta = self.news().await.expect_err("whole again");
            held = delta::apply(held, *delta).unwrap();
            assert!(is_sealed(&held), "the digest is of the rows");
            deltas += 1;
        }
        (held, deltas)
    }
}

fn is_sealed(snapshot: &pb::Snapshot) -> bool {
    let bare = pb::Snapshot {
        digest: Vec::new().into(),
        ..snapshot.clone()
    };
    digest(&SHA256, &bare.encode_to_vec()).as_ref() == &snapshot.digest[..]
}

/// The plan with this many models beside the one for all names.
fn with_models(count: usize) -> pb::Plan {
    let mut plan = plan();
    let like = plan.models[0].clone();
    plan.models.extend((0..count).map(|number| pb::ModelSpec {
        name: format!("model-{number:03}"),
        ..like.clone()
    }));
    plan
}

fn models(count: usize) -> impl Fn(&pb::Snapshot) -> bool {
    move |snapshot| snapshot.models.len() == count
}

#[tokio::test]
async fn a_node_hears_the_whole_once_and_then_what_is_different() {
    let control = Control::start().await;
    let admin = control.admin().await;
    admin.apply(with_models(200), false).await.unwrap();
    let who = control.enroll("egress", "e-1").await;
    let mut stream = Stream::open_for_deltas(&mut control.node(&who).await, 0).await;
    let whole = stream.news().await.expect("nothing was known before");
    assert!(is_sealed(&whole));
    let (whole, _) = stream.follow(whole, |held| serves(held, "e-1")).await;

    admin.apply(with_models(201), false).await.unwrap();
    let (now, deltas) = stream.follow(whole.clone(), models(202)).await;
    assert_eq!(deltas, 1, "the new row is in the first one");
    // Another stream of the same node, as after a break: only what it has missed.
    admin.apply(with_models(203), true).await.unwrap();
    let (newest, _) = stream.follow(now, models(204)).await;
    let mut again = Stream::open_for_deltas(&mut control.node(&who).await, whole.revision).await;
    let (caught_up, deltas) = again.follow(whole, models(204)).await;
    assert_eq!((&caught_up, deltas >= 2), (&newest, true));
    control.stop().await;
}

#[tokio::test]
async fn whoever_has_something_else_gets_the_whole() {
    let control = Control::start().await;
    let admin = control.admin().await;
    admin.apply(with_models(20), false).await.unwrap();
    let who = control.enroll("egress", "e-1").await;
    // A revision that this control never had a step from.
    let mut stream = Stream::open_for_deltas(&mut control.node(&who).await, 1_000_000).await;
    let first = stream.news().await.expect("no step leads from there");
    let (held, _) = stream.follow(first, |held| serves(held, "e-1")).await;

    // It says that a delta did not fit.
    let wanted = pb::WholeWanted {
        revision: held.revision,
    };
    Stream::send(&stream.up, node_event::Event::WholeWanted(wanted)).await;
    assert_eq!(stream.news().await, Ok(held.clone()));
    // And goes on from there as before.
    admin.apply(with_models(21), false).await.unwrap();
    stream.follow(held, models(22)).await;

    // A node that knows nothing of deltas.
    let mut old = Stream::open(&mut control.node(&who).await, 0).await;
    old.snapshot(models(22)).await;
    admin.apply(with_models(22), false).await.unwrap();
    old.snapshot(models(23)).await;
    control.stop().await;
}

#[tokio::test]
async fn a_long_delta_comes_in_pieces_to_whoever_takes_them() {
    let control = Control::start().await;
    let admin = control.admin().await;
    admin.apply(with_models(400), false).await.unwrap();
    let who = control.enroll("egress", "e-1").await;
    let mut client = control.node(&who).await;
    let mut stream = Stream::open_for_deltas(&mut client, 0).await;
    let whole = stream.news().await.expect("nothing was known before");
    let (held, _) = stream.follow(whole, |held| serves(held, "e-1")).await;

    admin.apply(with_models(700), false).await.unwrap();
    let register = |delta_parts| pb::Register {
        epoch: 7,
        revision: held.revision,
        tunnel_addresses: vec!["127.0.0.1:7440".to_owned()],
        deltas: true,
        delta_parts,
        ..pb::Register::default()
    };
    let mut found = Vec::new();
    for delta_parts in [false, true] {
        let mut stream = Stream::open_as(&mut client, register(delta_parts)).await;
        let (delta, pieces) = stream.pieces().await;
        let now = delta::apply(held.clone(), delta).unwrap();
        assert!(models(701)(&now) && is_sealed(&now));
        found.push(pieces);
    }
    assert_eq!(found[0], 1, "an older node is told as before");
    assert!(found[1] > 1, "{found:?}");
    control.stop().await;
}
