//! An egress that drains: it takes nothing new, and keeps what it has within reach.

use super::*;

/// Every link knows that the egress drains.
async fn drained(world: &World, link: &Link) {
    world.acceptor.drain(true);
    while !link.draining() {
        tokio::task::yield_now().await;
    }
}

/// Asks over `path` for an answer that the egress keeps, or to have an exchange kept.
async fn ask(world: &mut World, path: &Path, adopt: bool) {
    let (exchange, mut open) = open();
    if adopt {
        open.adopt = Some(v1::Adopt::default());
    } else {
        open.replay = Some(v1::Replay::default());
    }
    let mut call = world.ingress.open(path, exchange, &open).await.unwrap();
    call.request.end().await.unwrap();
    let arrival = world.arrivals.recv().await.unwrap();
    assert_eq!(arrival.exchange, exchange);
    let (_body, mut answer) = arrival.accept().await.unwrap();
    answer.head(&head());
    answer.finish(&v1::Trailers::default()).await.unwrap();
    assert_eq!(call.response.head().await.unwrap().status, 200);
}

#[tokio::test]
async fn an_egress_that_drains_is_asked_for_what_it_has() {
    let mut world = World::new();
    let link = world.link().await;
    drained(&world, &link).await;
    assert!(world.ingress.reaches(&direct_path()));
    for adopt in [false, true] {
        ask(&mut world, &direct_path(), adopt).await;
    }
    let (exchange, open) = open();
    let refused = world.ingress.open(&direct_path(), exchange, &open).await;
    assert!(matches!(refused, Err(OpenError::NoLink)), "nothing new");
    world.lose(&link);
    link.closed().await;
    assert!(!world.ingress.reaches(&direct_path()));
}

#[tokio::test]
async fn a_relay_leads_to_an_egress_that_drains_for_what_that_has_and_for_nothing_new() {
    let mut world = World::new();
    let (_first, next) = world.over_relay().await;
    drained(&world, &next).await;
    for adopt in [false, true] {
        ask(&mut world, &relay_path(), adopt).await;
    }
    let (exchange, open) = open();
    let mut call = world.ingress.open(&relay_path(), exchange, &open).await;
    let call = call.as_mut().unwrap();
    call.request.end().await.unwrap();
    let Err(Failure::Refused(refused)) = call.response.head().await else {
        panic!("a draining egress took something new");
    };
    assert_eq!(refused.code, "no_path");
}

#[tokio::test]
async fn an_exchange_at_an_egress_that_drains_goes_on_over_a_relay() {
    let mut world = World::new();
    let direct = world.link().await;
    let (mut call, mut body, mut answer, _) = world.call(&direct_path()).await;
    let (_first, next) = world.over_relay().await;
    drained(&world, &direct).await;
    drained(&world, &next).await;
    world.lose(&direct);
    call.request.data("and up".into()).await.unwrap();
    call.request.flush().await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "and up");
    answer.head(&head());
    say(&mut answer, "and down").await;
    assert_eq!(call.response.head().await.unwrap().status, 200);
    assert_eq!(part(&mut call).await, "and down");
}
