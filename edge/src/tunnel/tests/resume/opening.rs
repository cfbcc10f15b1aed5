//! OPENs that are lost, late, or taken by nobody.

use super::*;

#[tokio::test]
async fn an_open_that_was_lost_or_not_answered_is_opened_once() {
    let mut world = World::new();
    let first = world.link().await;
    let (exchange, open) = open();
    let mut call = world
        .ingress
        .open(&direct_path(), exchange, &open)
        .await
        .unwrap();
    call.request.data("body".into()).await.unwrap();
    call.request.end().await.unwrap();
    let arrival = world.arrivals.recv().await.unwrap();
    // The ingress opens it again over the other link; it is known there.
    world.link().await;
    world.lose(&first);
    while world.ingress.tally().moved.get() == 0 {
        tokio::task::yield_now().await;
    }
    let (mut body, mut answer) = arrival.accept().await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "body");
    assert_eq!(body.next().await, Ok(None));
    answer.head(&head());
    say(&mut answer, "once").await;
    call.response.head().await.unwrap();
    assert_eq!(part(&mut call).await, "once");
    assert!(world.arrivals.try_recv().is_err(), "it arrived twice");
}

/// An exchange that has arrived and that nobody has taken, and the ingress's end of it.
async fn untaken(world: &mut World) -> (Call, Arrival, Arc<End>) {
    let (exchange, open) = open();
    let opened = world.ingress.open(&direct_path(), exchange, &open).await;
    let mut call = opened.unwrap();
    call.request.data("body".into()).await.unwrap();
    call.request.end().await.unwrap();
    let arrival = world.arrivals.recv().await.unwrap();
    (call, arrival, world.ingress.calls().all().remove(0))
}

#[tokio::test]
async fn an_open_that_nobody_took_waits_while_nobody_is_heard() {
    let mut world = World::new();
    let first = world.link().await;
    let (mut call, arrival, end) = untaken(&mut world).await;
    first.vitals().set(Condition::Down);
    while !end.stranded.load(std::sync::atomic::Ordering::Acquire) {
        assert_eq!(end.fate(), None, "given up at once");
        tokio::task::yield_now().await;
    }
    world.link().await;
    let (mut body, mut answer) = arrival.accept().await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "body");
    answer.head(&head());
    say(&mut answer, "after all").await;
    call.response.head().await.unwrap();
    assert_eq!(part(&mut call).await, "after all");
    assert!(world.arrivals.try_recv().is_err(), "it arrived twice");
}

#[tokio::test]
async fn an_open_that_nobody_took_leaves_at_once_for_an_egress_that_is_heard() {
    let mut world = World::new();
    let first = world.link().await;
    let me = v1::Hello {
        roles: vec!["egress".into()],
        ..hello("other")
    };
    let other = Acceptor::new(
        impatient(),
        Arc::new(NoCredentials),
        me,
        Some(Arc::new(|_| Box::pin(async {}))),
        None,
        world.tasks.clone(),
    );
    link(&world.ingress, "ingress", "other", &other, &world.tasks).await;
    world.ingress.set_patience(Patience {
        cut_off: Duration::from_secs(3600),
        ..Patience::default()
    });
    let (mut call, _arrival, _end) = untaken(&mut world).await;
    first.vitals().set(Condition::Down);
    let lost = Failure::Lost(Lost {
        reason: LostReason::LinkDown,
        accepted: false,
    });
    assert_eq!(call.response.accepted().await, Err(lost));
}

/// A link whose far end hears nothing.
async fn deaf(world: &World) -> link::Ready {
    let (here, there) = memory::pair();
    let (me, far) = (hello("ingress"), hello("egress"));
    let peer = Peer {
        node: "ingress".into(),
        roles: vec!["ingress".into()],
    };
    let (dialled, accepted) = tokio::join!(
        Link::dialled(
            &world.ingress,
            Connection::Memory(here),
            &me,
            Peer::within("egress".into()),
            "memory".into()
        ),
        Link::accepted(
            &world.far,
            Connection::Memory(there),
            &far,
            peer,
            "memory".into()
        ),
    );
    let ready = dialled.unwrap();
    world.ingress.add(&ready.link);
    world.tasks.spawn(ready.serve());
    accepted.unwrap()
}

#[tokio::test]
async fn an_open_whose_acceptance_is_late_is_hedged() {
    let mut world = World::new();
    let _deaf = deaf(&world).await;
    let (exchange, open) = open();
    let mut call = world
        .ingress
        .open(&direct_path(), exchange, &open)
        .await
        .unwrap();
    world.link().await;
    call.request.data("body".into()).await.unwrap();
    call.request.end().await.unwrap();
    let arrival = world.arrivals.recv().await.unwrap();
    assert_eq!(arrival.exchange, exchange);
    let (mut body, mut answer) = arrival.accept().await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "body");
    answer.head(&head());
    say(&mut answer, "at last").await;
    call.response.head().await.unwrap();
    assert_eq!(part(&mut call).await, "at last");
    let tally = world.ingress.tally();
    assert_eq!((tally.hedges.get(), tally.hedges_won.get()), (1, 1));
}

#[tokio::test]
async fn an_exchange_that_was_accepted_twice_is_at_home_where_it_is_answered() {
    let mut world = World::new();
    world.link().await;
    let (mut call, arrival, end) = untaken(&mut world).await;
    let (_body, mut answer) = arrival.accept().await.unwrap();
    let before = world.far.accepted_link("ingress").unwrap();
    let second = world.link().await;
    // The acceptance is on its way.
    world.ingress.hedge(&end);
    let far = world.far.arrivals().all().remove(0);
    let moved = |at: &Attachment| !Arc::ptr_eq(&at.link, &before);
    while !far.sending.lock().at.as_ref().is_some_and(moved) {
        tokio::task::yield_now().await;
    }
    answer.head(&head());
    say(&mut answer, "over the second").await;
    call.response.head().await.unwrap();
    assert_eq!(part(&mut call).await, "over the second");
    assert!(call.response.next().now_or_never().is_none());
    assert!(Arc::ptr_eq(&end.home(), &second));
}

/// A copy of an OPEN may be refused for its way alone.
#[tokio::test]
async fn a_refusal_of_a_hedge_does_not_hide_what_the_egress_says() {
    let mut world = World::new();
    world.link().await;
    world.over_relay().await;
    // The relay has no way to the egress.
    let (relay, _) = world.relay.clone().unwrap();
    let links = relay.links_with("egress");
    links.iter().for_each(|link| relay.remove(link));
    let (mut call, arrival, end) = untaken(&mut world).await;
    world.ingress.hedge(&end);
    while end.home().peer.as_ref() != "relay" {
        tokio::task::yield_now().await;
    }
    assert!(call.response.accepted().now_or_never().is_none());
    let said = v1::Refused {
        code: "no_credential".into(),
        retryable: true,
        ..v1::Refused::default()
    };
    arrival.refuse(said.clone()).await;
    let refused = Failure::Refused(Box::new(said));
    assert_eq!(call.response.head().await, Err(refused));
}

/// The next one may take the very way on which the cancellation of the one before waits for its OPEN.
#[tokio::test]
async fn an_attempt_that_was_given_up_takes_no_later_one_with_it() {
    let mut world = World::new();
    world.link().await;
    let (exchange, mut open) = open();
    open.attempt = 1;
    drop(world.ingress.open(&direct_path(), exchange, &open).await);
    open.attempt = 2;
    let opened = world.ingress.open(&direct_path(), exchange, &open).await;
    let mut call = opened.unwrap();
    call.request.end().await.unwrap();
    let arrival = world.arrivals.recv().await.unwrap();
    let (_body, mut answer) = arrival.accept().await.unwrap();
    answer.head(&head());
    say(&mut answer, "of the second").await;
    call.response.head().await.unwrap();
    assert_eq!(part(&mut call).await, "of the second");
}
