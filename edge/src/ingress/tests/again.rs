//! Requests that were made before: with a key, by an SDK's own retry, and by the id of their exchange.

use super::{
    world::{World, refused},
    *,
};

pub(super) fn keyed(world: &World, key: &str, body: &str) -> String {
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nIdempotency-Key: {key}");
    world.post("/v1/chat/completions", body).replacen(
        "POST /v1/chat/completions HTTP/1.1",
        &head,
        1,
    )
}

pub(super) fn counted(world: &World, count: u32, model: &str) -> String {
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nx-stainless-retry-count: {count}");
    let body = format!(r#"{{"model":"{model}","messages":[]}}"#);
    world.post("/v1/chat/completions", &body).replacen(
        "POST /v1/chat/completions HTTP/1.1",
        &head,
        1,
    )
}

fn header<'a>(answer: &'a str, name: &str) -> &'a str {
    let start = answer.find(&format!("\r\n{name}: ")).unwrap() + name.len() + 4;
    answer[start..].split("\r\n").next().unwrap()
}

const ECHO: &str = r#"{"model":"echo","messages":[]}"#;

#[tokio::test]
async fn a_key_is_executed_once_and_then_answered_from_what_was_kept() {
    let mut world = World::start().await;
    let first = world.raw(keyed(&world, "k-1", ECHO)).await;
    assert!(first.starts_with("HTTP/1.1 200 "), "{first}");
    assert!(!first.contains("x-vector-replayed"), "{first}");
    let event = world.events.recv().await.unwrap();
    let egress = event.split(' ').next().unwrap().to_owned();
    assert!(event.contains("chat.completions.create"), "{event}");
    let again = world.raw(keyed(&world, "k-1", ECHO)).await;
    assert!(again.ends_with("from 0\r\n0\r\n\r\n"), "{again}");
    assert_eq!(header(&again, "x-vector-replayed"), "true");
    assert_eq!(
        header(&again, "x-request-id"),
        header(&first, "x-request-id")
    );
    // Who took it may not have been told yet: then both are asked.
    let event = world.events.recv().await.unwrap();
    assert!(event.ends_with("replay acme 0"), "{event}");
    assert!(
        header(&again, "x-vector-egress").starts_with("egress-"),
        "{egress}"
    );
    let other = world
        .raw(keyed(&world, "k-1", r#"{"model":"echo","messages":[1]}"#))
        .await;
    refused(&other, 422, "idempotency_key_reused");
    let bad = world.raw(keyed(&world, "no spaces", ECHO)).await;
    refused(&bad, 400, "invalid_idempotency_key");
}

#[tokio::test]
async fn a_key_whose_request_was_refused_is_free_again() {
    let mut world = World::start().await;
    let body = r#"{"model":"refuse","messages":[]}"#;
    for _ in 0..2 {
        let answer = world.raw(keyed(&world, "k-2", body)).await;
        assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
        for _ in 0..2 {
            let event = world.events.recv().await.unwrap();
            assert!(event.ends_with("refuse"), "{event}");
        }
    }
}

#[tokio::test]
async fn a_key_is_free_again_when_its_client_leaves_before_anybody_has_the_request() {
    let mut world = World::start().await;
    let request = keyed(&world, "k-4", r#"{"model":"rest","messages":[]}"#);
    let mut socket = world.connect().await;
    socket.write_all(request.as_bytes()).await.unwrap();
    // Both rest for a while, and the request waits for them.
    for _ in 0..2 {
        let event = world.events.recv().await.unwrap();
        assert!(event.ends_with("rest"), "{event}");
    }
    drop(socket);
    world.control.freed.notified().await;
}

#[tokio::test]
async fn a_key_is_free_again_when_its_client_leaves_while_control_answers() {
    let world = World::start().await;
    let answers = world.control.answers.lock().await;
    let mut socket = world.connect().await;
    let request = keyed(&world, "k-5", ECHO);
    socket.write_all(request.as_bytes()).await.unwrap();
    world.control.taken.notified().await;
    drop(socket);
    drop(answers);
    world.control.freed.notified().await;
    let answer = world.raw(request).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_large_body_is_read_whole_before_its_key_is_claimed() {
    let world = World::start().await;
    let body = format!(
        r#"{{"model":"count","messages":["{}"]}}"#,
        "x".repeat(3 << 20)
    );
    let first = world.raw(keyed(&world, "k-3", &body)).await;
    assert!(first.contains(&body.len().to_string()), "{first}");
    let again = world.raw(keyed(&world, "k-3", &body)).await;
    assert_eq!(header(&again, "x-vector-replayed"), "true");
    let other = world.raw(keyed(&world, "k-3", &(body + " "))).await;
    refused(&other, 422, "idempotency_key_reused");
}

#[tokio::test]
async fn an_sdk_that_leaves_before_the_answer_has_its_exchange_adopted_and_others_do_not() {
    let mut world = World::start().await;
    for (request, wanted) in [
        (counted(&world, 0, "hang"), vec!["adopt", "cancelled"]),
        (
            world.post("/v1/chat/completions", r#"{"model":"hang","messages":[]}"#),
            vec!["cancelled"],
        ),
    ] {
        let mut socket = world.connect().await;
        socket.write_all(request.as_bytes()).await.unwrap();
        assert!(world.events.recv().await.unwrap().ends_with("hang"));
        assert_eq!(world.events.recv().await.unwrap(), "hanging");
        drop(socket);
        for wanted in wanted {
            let event = world.events.recv().await.unwrap();
            assert!(event.ends_with(wanted), "{event}");
        }
    }
}

#[tokio::test]
async fn an_sdk_that_leaves_after_the_head_cancels_at_once() {
    let mut world = World::start().await;
    let mut socket = world.connect().await;
    let request = counted(&world, 0, "hang-stream");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut byte = [0];
    socket.read_exact(&mut byte).await.unwrap();
    drop(socket);
    assert!(world.events.recv().await.unwrap().ends_with("hang-stream"));
    assert_eq!(world.events.recv().await.unwrap(), "cancelled");
}

#[tokio::test]
async fn an_sdks_retry_is_looked_for_everywhere_and_then_sent() {
    let mut world = World::start().await;
    let answer = world.raw(counted(&world, 1, "echo")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let mut asked = [
        world.events.recv().await.unwrap(),
        world.events.recv().await.unwrap(),
    ];
    asked.sort_unstable();
    assert_eq!(asked, ["egress-a replay acme 0", "egress-b replay acme 0"]);
    assert!(world.events.recv().await.unwrap().ends_with(" echo"));
}

#[tokio::test]
async fn an_answer_is_taken_up_by_its_exchange() {
    let mut world = World::start().await;
    let id = "0197a3a0-0000-7000-8000-000000000001";
    let ask = |target: String| format!("{}\r\n", world.head("GET", &target));
    let request = ask(format!("/v1/exchanges/{id}/stream?from=7"));
    let answer = world.raw(request).await;
    assert!(answer.contains("from 7\r\n"), "{answer}");
    assert_eq!(header(&answer, "x-request-id"), id);
    assert!(
        world
            .events
            .recv()
            .await
            .unwrap()
            .ends_with("replay acme 7")
    );
    for (target, status, code) in [
        (
            "/v1/exchanges/nonsense/stream".to_owned(),
            404,
            "exchange_not_found",
        ),
        (
            format!("/v1/exchanges/{id}/stream?from=x"),
            416,
            "offset_beyond_end",
        ),
    ] {
        let request = format!("{}\r\n", world.head("GET", &target));
        refused(&world.raw(request).await, status, code);
    }
}
