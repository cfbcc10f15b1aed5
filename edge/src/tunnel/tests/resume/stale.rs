//! Acknowledgements that go backwards.

use super::*;

#[tokio::test]
async fn acknowledgements_that_go_backwards_change_nothing_and_are_counted() {
    let mut world = World::new();
    let first = world.link().await;
    let (mut call, _body, mut answer, exchange) = world.call(&direct_path()).await;
    let second = world.link().await;
    answer.head(&head());
    // Enough that some of it is acknowledged at once.
    answer.data(vec![1; 100_000].into()).await.unwrap();
    answer.flush().await.unwrap();
    call.response.head().await.unwrap();
    let mut got = 0;
    while got < 100_000 {
        got += part(&mut call).await.len();
    }
    let known = || {
        let end = world.far.arrivals().get(exchange).unwrap();
        end.sending.lock().outgoing.known()
    };
    while known() < 50_000 {
        tokio::task::yield_now().await;
    }
    for (at, link) in [&first, &second].into_iter().cycle().take(200).enumerate() {
        let offset = 200 - at as u64;
        link.say(Entry::Ack { exchange, offset });
    }
    while world.far.tally().stale_acks.get() < 200 {
        tokio::task::yield_now().await;
    }
    assert!(known() >= 50_000);
    // Nothing was taken back: what is sent again over another link begins where it did before.
    world.lose(&first);
    say(&mut answer, "and on").await;
    assert_eq!(part(&mut call).await, "and on");
    answer.finish(&v1::Trailers::default()).await.unwrap();
    assert!(matches!(call.response.next().await, Ok(Part::Trailers(_))));
    assert_eq!(call.response.next().await, Ok(Part::End));
}
