//! Small pieces that go over two paths at once.

use super::*;

/// More than a twin carries and than the first credit allows, up to the end.
async fn large_to_its_end(call: &mut Call, mut answer: Answer) {
    let large = Bytes::from(vec![1; 1 << 20]);
    let send = async {
        answer.data(large.clone()).await.unwrap();
        answer.finish(&v1::Trailers::default()).await.unwrap();
    };
    let read = async {
        let mut got = 0;
        while let Part::Data(bytes) = call.response.next().await.unwrap() {
            got += bytes.len();
        }
        assert_eq!(got, large.len());
    };
    tokio::join!(send, read);
}

/// Begins an answer, has its path suspected at its far end, and talks until it goes over two. Answers how often.
async fn doubled(world: &World, far: &Link, call: &mut Call, answer: &mut Answer) -> usize {
    answer.head(&head());
    answer.flush().await.unwrap();
    call.response.head().await.unwrap();
    far.vitals().set(Condition::Suspect);
    let mut said = 0;
    while world.far.tally().doubled.get() < 3 {
        say(answer, "token").await;
        said += 1;
        assert_eq!(part(call).await, "token");
        tokio::task::yield_now().await;
    }
    said
}

#[tokio::test]
async fn small_pieces_go_over_two_paths_while_one_is_suspect() {
    let mut world = World::new();
    let first = world.link().await;
    let (mut call, _body, mut answer, _) = world.call(&direct_path()).await;
    let far = world.far.accepted_link("ingress").unwrap();
    world.link().await;
    let said = doubled(&world, &far, &mut call, &mut answer).await;
    // The twin has everything, so nothing is sent again.
    world.lose(&first);
    say(&mut answer, "the last").await;
    assert_eq!(part(&mut call).await, "the last", "after {said} tokens");
}

#[tokio::test]
async fn nothing_goes_over_two_paths_once_the_first_is_trusted_again() {
    let mut world = World::new();
    let first = world.link().await;
    let (mut call, _body, mut answer, _) = world.call(&direct_path()).await;
    let far = world.far.accepted_link("ingress").unwrap();
    world.link().await;
    doubled(&world, &far, &mut call, &mut answer).await;
    far.vitals().set(Condition::Up);
    let end = world.far.arrivals().all().remove(0);
    for _ in 0..1_000 {
        if end.sending.lock().twin.is_none() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(end.sending.lock().twin.is_none(), "doubled for ever");
    // Its reader knows again where the rest comes from.
    let call_end = world.ingress.calls().all().remove(0);
    assert!(call.response.next().now_or_never().is_none());
    assert!(Arc::ptr_eq(&call_end.home(), &first));
}

#[tokio::test]
async fn a_redundant_exchange_always_goes_over_two_paths() {
    let mut world = World::new();
    world.link().await;
    world.link().await;
    let (exchange, mut open) = open();
    open.redundant = true;
    let mut call = world
        .ingress
        .open(&direct_path(), exchange, &open)
        .await
        .unwrap();
    call.request.flush().await.unwrap();
    let (_body, mut answer) = world.arrivals.recv().await.unwrap().accept().await.unwrap();
    answer.head(&head());
    answer.flush().await.unwrap();
    call.response.head().await.unwrap();
    while world.far.tally().doubled.get() == 0 {
        say(&mut answer, "token").await;
        assert_eq!(part(&mut call).await, "token");
        tokio::task::yield_now().await;
    }
    large_to_its_end(&mut call, answer).await;
}

#[tokio::test]
async fn a_twin_over_a_relay_may_speak_for_the_exchange() {
    let mut world = World::new();
    world.link().await;
    world.over_relay().await;
    let (mut call, _body, mut answer, _) = world.call(&direct_path()).await;
    let far = world.far.accepted_link("ingress").unwrap();
    doubled(&world, &far, &mut call, &mut answer).await;
    // More than the first credit, so that the words that come back must be taken.
    large_to_its_end(&mut call, answer).await;
}
