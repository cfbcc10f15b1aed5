//! Which of several ways is taken, as they are measured.

use vector_proto::tunnel::codec::Kind;

use super::*;
use crate::tunnel::vitals::Measures;

const MS: Duration = Duration::from_millis(1);

/// Has a link measured.
fn measured(link: &Link, rtt_ms: u32, loss: f32) {
    link.vitals().measured(Measures {
        rtt: Some(rtt_ms * MS),
        loss,
        ..Measures::default()
    });
}

/// Has the relay look at its links, and returns when the ingress has heard that the path over it costs so much.
async fn told(world: &World, cost_us: u64) {
    let (relay, _) = world.relay.as_ref().unwrap();
    relay.look_onward();
    let is_told = || {
        let state = world.ingress.path_state(&relay_path()).unwrap();
        state.whole && state.cost_us == cost_us
    };
    while !is_told() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn of_two_links_to_one_peer_the_quicker_is_taken_until_the_other_one_is_less_used() {
    let mut world = World::new();
    let (slow, quick) = (world.link().await, world.link().await);
    measured(&slow, 80, 0.0);
    measured(&quick, 20, 0.0);
    let best = || world.ingress.link("egress").unwrap();
    assert!(Arc::ptr_eq(&best(), &quick));
    let mut running = Vec::new();
    for _ in 0..3 {
        running.push(world.call(&direct_path()).await);
    }
    assert_eq!((quick.outstanding(), slow.outstanding()), (3, 0));
    // Nearly the same is the same: then it counts what is on them.
    measured(&slow, 22, 0.0);
    let best = || world.ingress.link("egress").unwrap();
    assert!(Arc::ptr_eq(&best(), &slow));
    // Loss counts, and a bad condition before all.
    measured(&slow, 22, 0.2);
    assert!(Arc::ptr_eq(&best(), &quick));
    quick.vitals().set(Condition::Suspect);
    assert!(Arc::ptr_eq(&best(), &slow));
    // What runs goes on over the best that is left.
    let third = world.link().await;
    measured(&third, 200, 0.0);
    measured(&slow, 90, 0.0);
    quick.vitals().set(Condition::Down);
    let (call, _body, answer, _) = &mut running[0];
    answer.head(&head());
    say(answer, "over the slow one").await;
    call.response.head().await.unwrap();
    assert_eq!(part(call).await, "over the slow one");
    let moved = |end: &Arc<End>| Arc::ptr_eq(&end.home(), &slow);
    while !world.ingress.calls().all().iter().all(moved) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_clean_relay_is_better_than_a_direct_link_that_loses() {
    let mut world = World::new();
    let direct = world.link().await;
    let (first, next) = world.over_relay().await;
    measured(&direct, 150, 0.05);
    measured(&first, 5, 0.0);
    measured(&next, 165, 0.0);
    let state = |path: &Path| world.ingress.path_state(path).unwrap();
    assert!(!state(&relay_path()).whole, "nobody has told of it");
    told(&world, 170_000).await;
    assert_eq!(state(&relay_path()).rtt, 170 * MS);
    assert!(state(&direct_path()).cost_us > 200_000);
    // A running exchange is moved there as well.
    let moved = || world.ingress.way_to_egress("egress", None).unwrap();
    assert!(Arc::ptr_eq(&moved(), &first));
    measured(&direct, 150, 0.001);
    assert!(Arc::ptr_eq(&moved(), &direct));
    // What the relay's own link loses is told, too.
    measured(&next, 165, 0.05);
    told(&world, 5_000 + 165_000 + 70_000).await;
}

#[tokio::test]
async fn a_relay_whose_next_hop_is_down_is_the_last_resort() {
    let mut world = World::new();
    let direct = world.link().await;
    let (first, next) = world.over_relay().await;
    measured(&direct, 150, 0.05);
    told(&world, 0).await;
    next.vitals().set(Condition::Down);
    let (relay, _) = world.relay.clone().unwrap();
    relay.look_onward();
    let condition = || world.ingress.path_state(&relay_path()).unwrap().condition;
    while condition() != Condition::Down {
        tokio::task::yield_now().await;
    }
    assert_eq!(first.condition(), Condition::Up);
    let best = || world.ingress.way_to_egress("egress", None).unwrap();
    assert!(Arc::ptr_eq(&best(), &direct));
    direct.vitals().set(Condition::Suspect);
    assert!(Arc::ptr_eq(&best(), &direct));
    // A relay that tells of its links and not of this one has none to it.
    let elsewhere = Path {
        egress: "elsewhere".into(),
        ..relay_path()
    };
    let state = world.ingress.path_state(&elsewhere).unwrap();
    assert_eq!(state.condition, Condition::Down);
    // And back.
    next.vitals().set(Condition::Up);
    relay.look_onward();
    while condition() != Condition::Up {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_does_not_ask_for_it_is_not_told_and_nobody_else_may_tell_it() {
    let mut world = World::new();
    world.over_relay().await;
    let (relay, acceptor) = world.relay.clone().unwrap();
    relay.look_onward();
    // An older ingress would take it for a broken link.
    let old = Tunnel::default();
    let me = v1::Hello {
        hears_hops: false,
        ..hello("old")
    };
    let first = link_as(&old, me, "relay", &acceptor, &world.tasks).await;
    let path_state = || old.path_state(&relay_path()).unwrap();
    let (exchange, open) = open();
    let mut call = old.open(&relay_path(), exchange, &open).await.unwrap();
    call.request.flush().await.unwrap();
    let arrival = world.arrivals.recv().await.unwrap();
    assert!(!path_state().whole && !first.is_down());
    drop(arrival);
    // An egress does not know the links of a relay, nor does whoever dialled.
    let out_of_place = Err(codec::Error::OutOfPlace(Kind::Hops));
    let direct = world.link().await;
    assert_eq!(direct.hear_onward(&[]), out_of_place);
    let accepted = relay.accepted_link("old").unwrap();
    assert_eq!(accepted.hear_onward(&[]), out_of_place);
    let malformed = Err(codec::Error::Malformed(Kind::Hops));
    assert_eq!(first.hear_onward(&[0xff]), malformed);
    // Names that nobody has are left out, and figures that nothing has are bounded.
    let hop = |egress: &str| v1::Hop {
        egress: egress.into(),
        condition: 9,
        rtt_us: u32::MAX,
        jitter_us: u32::MAX,
        loss_ppm: u32::MAX,
    };
    let hops = vec![hop("egress"), hop("No Name")];
    let told = prost::Message::encode_to_vec(&v1::Hops { hops });
    assert_eq!(first.hear_onward(&told), Ok(()));
    let state = path_state();
    assert_eq!((state.condition, state.rtt), (Condition::Down, 30_000 * MS));
}
