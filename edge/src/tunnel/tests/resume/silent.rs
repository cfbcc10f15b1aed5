//! Peers that live and yet do not do their part: nothing is held for them without bound.

use super::*;
use crate::tunnel::overdue::UNACKNOWLEDGED;

#[tokio::test]
async fn an_answer_that_is_never_acknowledged_on_a_living_link_is_let_go() {
    let mut world = World::new();
    world.link().await;
    let (call, body, mut answer, _) = world.call(&direct_path()).await;
    let (read, _body, mut other, _) = world.call(&direct_path()).await;
    answer.head(&head());
    answer.finish(&v1::Trailers::default()).await.unwrap();
    other.head(&head());
    other.flush().await.unwrap();
    let begin = std::time::Instant::now();
    let at = |time| world.far.release_overdue(begin + time);
    let kept = || {
        (
            world.far.arrivals().all().len(),
            world.far.tally().unacknowledged.get(),
        )
    };
    at(Duration::ZERO);
    at(UNACKNOWLEDGED - Duration::from_millis(1));
    assert_eq!(kept(), (2, 0), "nobody knows why it is not read");
    at(UNACKNOWLEDGED);
    assert_eq!(
        kept(),
        (1, 1),
        "one that is not whole has its provider's limits"
    );
    drop((call, body, read));
}

#[tokio::test]
async fn an_answer_that_is_read_little_by_little_is_not_overdue() {
    let mut world = World::new();
    world.link().await;
    let (mut call, _body, mut answer, _) = world.call(&direct_path()).await;
    answer.head(&head());
    answer.data(vec![1; 200_000].into()).await.unwrap();
    answer.finish(&v1::Trailers::default()).await.unwrap();
    let begin = std::time::Instant::now();
    world.far.release_overdue(begin);
    call.response.head().await.unwrap();
    part(&mut call).await;
    let end = world.far.arrivals().all().remove(0);
    while end.sending.lock().outgoing.known() == 0 {
        tokio::task::yield_now().await;
    }
    world.far.release_overdue(begin + UNACKNOWLEDGED);
    assert_eq!(world.far.tally().unacknowledged.get(), 0);
}

/// A link to a peer that greets, and then reads nothing.
async fn deaf(tunnel: &Tunnel) -> (Arc<Link>, TaskTracker, impl Sized) {
    let (here, there) = memory::pair();
    let me = hello("ingress");
    let (here, there) = (Connection::Memory(here), Connection::Memory(there));
    let dialled = Link::dialled(
        tunnel,
        here,
        &me,
        Peer::within("egress".into()),
        "memory".into(),
    );
    let peer = async {
        let (mut send, receive) = there.accept().await.unwrap();
        let hello = codec::message(codec::Kind::Hello, &hello("egress"));
        send.write(&mut [hello]).await.unwrap();
        (send, receive)
    };
    let (ready, streams) = tokio::join!(dialled, peer);
    let (ready, tasks) = (ready.unwrap(), TaskTracker::new());
    let link = Arc::clone(&ready.link);
    tasks.spawn(ready.serve());
    (link, tasks, (streams, there))
}

fn credit(offset: u64) -> Entry {
    let exchange = ExchangeId::fresh();
    Entry::Credit { exchange, offset }
}

#[tokio::test]
async fn a_peer_that_does_not_read_what_it_is_told_loses_its_link_in_time() {
    let tunnel = Tunnel::default();
    tunnel.set_patience(Patience {
        unread_words: Duration::from_millis(50),
        ..Patience::default()
    });
    let (link, _tasks, _peer) = deaf(&tunnel).await;
    while !link.is_down() {
        link.say(credit(1));
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_what_it_is_told_costs_no_more_than_a_full_outbox() {
    let tunnel = Tunnel::default();
    let (link, _tasks, _peer) = deaf(&tunnel).await;
    let mut said = 0_u64;
    while !link.is_down() {
        said += 1;
        link.say(credit(said));
        if said.is_multiple_of(1_000) {
            tokio::task::yield_now().await;
        }
        assert!(said < 1 << 20, "a link whose words nobody reads is kept");
    }
    assert!(said > 1 << 16, "{said} words");
}
