//! What an ingress knows of a path whose second link is its relay's.

use std::{sync::Arc, time::Duration};

use vector_edge::tunnel::{ArrivalHandler, Condition, Path, PathState};
use vector_proto::tunnel::{VERSION, v1};
use vector_wan::{Detour, Way};

use crate::{
    pulse::beating,
    town::{Authority, Node, start, wanted},
};

/// A node of one role, which hears what relays tell.
fn node(authority: &Authority, role: &str) -> Node {
    let me = v1::Hello {
        version: VERSION,
        node: role.into(),
        epoch: 1,
        roles: vec![role.into()],
        hears_hops: true,
        ..v1::Hello::default()
    };
    let handler: ArrivalHandler = Arc::new(|_| Box::pin(async {}));
    let arrivals = (role == "egress").then_some(handler);
    let address = "127.0.0.1:0".parse().unwrap();
    start(address, me, &authority.node(role, role), arrivals)
}

#[tokio::test]
async fn a_relay_tells_how_its_link_onward_is_and_at_once_when_it_dies() {
    let authority = Authority::new();
    let egress = node(&authority, "egress");
    let onward = Detour::to(egress.address, "rtt_ms=40", 1).unwrap();
    let (mut relay, mut ingress) = (node(&authority, "relay"), node(&authority, "ingress"));
    relay.network.keep(&[wanted("egress", onward.address())]);
    ingress.network.keep(&[wanted("relay", relay.address)]);
    let path = Path {
        egress: "egress".into(),
        relay: Some("relay".into()),
    };
    let until = async |is: &dyn Fn(&PathState) -> bool| {
        while !ingress.tunnel.path_state(&path).as_ref().is_some_and(is) {
            tokio::task::yield_now().await;
        }
    };
    beating(&relay.tunnel).await;
    let least = Duration::from_millis(40);
    until(&|state| state.whole && state.rtt >= least && state.cost_us >= 40_000).await;
    onward.set(Way::There, "blackhole=on").unwrap();
    until(&|state| state.condition == Condition::Down).await;
    let first = ingress.tunnel.link("relay").unwrap();
    assert_eq!(first.condition(), Condition::Up);
    onward.set(Way::There, "blackhole=off").unwrap();
    until(&|state| state.condition != Condition::Down).await;
}
