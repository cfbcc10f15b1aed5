//! What a key may have at once: an exchange counts until it is over, whether or not its client is still there.

use super::{
    again::{counted, keyed},
    world::{World, config, refused},
    *,
};

const CHAT: &str = "/v1/chat/completions";

/// The same request with the key that may have one at once.
fn narrow(world: &World, request: &str) -> String {
    request.replace(&world.key, &world.narrow_key)
}

async fn echo(world: &World) -> String {
    let request = world.post(CHAT, r#"{"model":"echo","messages":[]}"#);
    world.raw(narrow(world, &request)).await
}

/// Asks until something comes that is no refusal for want of a place.
async fn once_there_is_a_place(world: &World) -> String {
    loop {
        let answer = echo(world).await;
        if !answer.contains("concurrency_limit_exceeded") {
            return answer;
        }
    }
}

#[tokio::test]
async fn an_adopted_exchange_keeps_its_place_until_it_is_over() {
    let mut world = World::start().await;
    let mut socket = world.connect().await;
    let request = narrow(&world, &counted(&world, 0, "hang"));
    socket.write_all(request.as_bytes()).await.unwrap();
    assert!(world.events.recv().await.unwrap().ends_with("hang"));
    assert_eq!(world.events.recv().await.unwrap(), "hanging");
    drop(socket);
    assert!(world.events.recv().await.unwrap().ends_with("adopt"));
    assert_eq!(world.events.recv().await.unwrap(), "cancelled");
    refused(&echo(&world).await, 429, "concurrency_limit_exceeded");
    // A retry is looked for although no place is free. Only if it were to be sent, one would be needed.
    let retry = world.raw(narrow(&world, &counted(&world, 1, "hang"))).await;
    refused(&retry, 429, "concurrency_limit_exceeded");
    for _ in 0..2 {
        assert!(world.events.recv().await.unwrap().contains(" replay "));
    }
    world.release.notify_one();
    let answer = once_there_is_a_place(&world).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_kept_exchange_keeps_its_place_and_counts_its_tokens_when_its_client_leaves() {
    let world = World::start().await;
    let mut socket = world.connect().await;
    let request = keyed(&world, "k", r#"{"model":"talk-on","messages":[]}"#);
    socket
        .write_all(narrow(&world, &request).as_bytes())
        .await
        .unwrap();
    let (mut seen, mut part) = (Vec::new(), [0; 4096]);
    while !seen.ends_with(b"data: {}\n\n\r\n") {
        let count = socket.read(&mut part).await.unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&part[..count]);
    }
    // Its own answer may be taken up meanwhile, and needs no second place.
    let id = "0197a3a0-0000-7000-8000-000000000001";
    let take_up = world.head("GET", &format!("/v1/exchanges/{id}/stream"));
    let take_up = narrow(&world, &format!("{take_up}\r\n"));
    let taken_up = world.raw(&take_up).await;
    assert!(taken_up.contains("from 0\r\n"), "{taken_up}");
    drop(socket);
    // Its end is told to nobody but the ingress, which therefore knows what was used.
    world.release.notify_one();
    let answer = once_there_is_a_place(&world).await;
    refused(&answer, 429, "tokens_limit_exceeded");
}

#[tokio::test]
async fn a_request_that_nobody_sent_on_is_none_of_a_minutes() {
    let world = World::start().await;
    let ask = |model: &str| {
        let body = format!(r#"{{"model":"{model}","messages":[]}}"#);
        world
            .post(CHAT, &body)
            .replace(&world.key, &world.limited_key)
    };
    for _ in 0..3 {
        let answer = world.raw(ask("refuse-untouched")).await;
        refused(&answer, 429, "no_credential");
    }
    let answer = world.raw(ask("echo")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // What a provider refuses counts: it was asked.
    let answer = world.raw(ask("refuse")).await;
    assert!(answer.contains("slow down"), "{answer}");
    refused(&world.raw(ask("echo")).await, 429, "rate_limit_exceeded");
}

#[tokio::test]
async fn who_waits_for_one_provider_does_not_hold_up_what_goes_to_another() {
    let hour = Duration::from_secs(3_600);
    let mut world = World::with(config::Ingress {
        queue: hour,
        request: hour,
        ..config()
    })
    .await;
    let mut socket = world.connect().await;
    let request = world.post(CHAT, r#"{"model":"rest-long","messages":[]}"#);
    socket.write_all(request.as_bytes()).await.unwrap();
    for _ in 0..2 {
        assert!(world.events.recv().await.unwrap().ends_with("rest-long"));
    }
    // It waits, for most of an hour, at the head of the line of the first provider of this model, too: the next turn there is
    // not for who can go elsewhere.
    for _ in 0..8 {
        let answer = world.chat("wide").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let went = world.events.recv().await.unwrap();
        assert!(went.contains(" other"), "{went}");
    }
}
