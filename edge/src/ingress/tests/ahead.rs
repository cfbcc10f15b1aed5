//! Bodies that go ahead of what is asked.

use super::{
    world::{World, refused},
    *,
};
use crate::tunnel::Condition;

/// A chat whose model stands behind so many bytes.
fn late(model: &str, bytes: usize) -> String {
    let text: String = (0..bytes)
        .map(|at| char::from(b'a' + (at % 23) as u8))
        .collect();
    format!(r#"{{"messages":"{text}","model":"{model}"}}"#)
}

/// The body of an answer.
fn body(answer: &str) -> &str {
    answer
        .split_once("\r\n\r\n")
        .map_or(answer, |(_, body)| body)
}

fn head(answer: &str) -> &str {
    answer
        .split_once("\r\n\r\n")
        .map_or(answer, |(head, _)| head)
}

impl World {
    fn ahead(&self) -> (u64, u64, u64) {
        let tally = self.tunnel.tally();
        let (begun, missed) = (&tally.ahead_begun, &tally.ahead_missed);
        (tally.ahead.get(), begun.get(), missed.get())
    }

    fn set(&self, egress: &str, condition: Condition) {
        let status = self.tunnel.carrying_link(egress);
        let link = status.or_else(|| self.tunnel.link(egress));
        link.unwrap().vitals().set(condition);
    }

    /// A world whose one key was answered by `egress-a` last; the other one is silent.
    async fn warm() -> Self {
        let mut world = Self::start().await;
        world.set("egress-b", Condition::Suspect);
        assert!(world.chat("echo").await.starts_with("HTTP/1.1 200 "));
        world.events.recv().await.unwrap();
        assert_eq!(world.ahead(), (0, 0, 0));
        world
    }

    /// Sends a request in two parts; `between` runs once the first is on its way ahead.
    async fn halves(&self, request: &str, between: impl FnOnce()) -> String {
        let (opened, ..) = self.ahead();
        let mut socket = self.connect().await;
        let (first, second) = request.as_bytes().split_at(request.len() / 2);
        socket.write_all(first).await.unwrap();
        while self.ahead().0 == opened {
            tokio::task::yield_now().await;
        }
        between();
        socket.write_all(second).await.unwrap();
        let mut out = Vec::new();
        // One that is refused early is reset.
        let _ended = socket.read_to_end(&mut out).await;
        String::from_utf8_lossy(&out).into_owned()
    }

    /// What went ahead went for nothing, and no egress was asked for anything.
    async fn nothing_came_of_it(&mut self) {
        while self.ahead().2 == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(self.ahead(), (1, 0, 1));
        assert!(self.events.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_body_whose_model_is_named_last_goes_ahead_and_arrives_as_it_came() {
    let mut world = World::warm().await;
    // The last one is more than may go ahead.
    for (begun, kib) in [(1, 20), (2, 64), (3, 300), (4, 900)] {
        let text = late("echo", kib << 10);
        let request = world.post("/v1/chat/completions", &text);
        let answer = world.halves(&request, || {}).await;
        assert!(body(&answer) == text, "{kib} KiB: {}", head(&answer));
        assert!(answer.contains("x-vector-attempts: 1\r\n"), "{kib} KiB");
        assert_eq!(world.ahead(), (begun, begun, 0));
        let event = world.events.recv().await.unwrap();
        assert!(
            event.starts_with("egress-a chat.completions.create"),
            "{event}"
        );
    }
    assert!(world.events.try_recv().is_err(), "asked twice");
}

/// Larger than what is kept in memory, and of no length that is known before.
#[tokio::test]
async fn a_body_without_a_length_goes_ahead_too() {
    let world = World::warm().await;
    let text = late("count", 2 << 20);
    let head = world.head("POST", "/v1/chat/completions");
    let mut chunked =
        format!("{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n");
    for part in text.as_bytes().chunks(9_999) {
        let part = std::str::from_utf8(part).unwrap();
        chunked += &format!("{:x}\r\n{part}\r\n", part.len());
    }
    let answer = world.halves(&(chunked + "0\r\n\r\n"), || {}).await;
    let length = format!("\r\n{}\r\n", text.len());
    assert!(answer.contains(&length), "{answer}");
    assert_eq!(world.ahead(), (1, 1, 0));
}

#[tokio::test]
async fn a_wrong_guess_is_noticed_by_nobody() {
    for now in [Condition::Suspect, Condition::Down] {
        let mut world = World::warm().await;
        let text = late("echo", 300 << 10);
        let request = world.post("/v1/chat/completions", &text);
        let answer = world.halves(&request, || {
            world.set("egress-b", Condition::Up);
            world.set("egress-a", now);
        });
        let answer = answer.await;
        assert!(body(&answer) == text, "{}", head(&answer));
        assert!(answer.contains("x-vector-attempts: 1\r\n"));
        assert!(answer.contains("x-vector-egress: egress-b\r\n"));
        assert_eq!(world.ahead(), (1, 0, 1));
        let event = world.events.recv().await.unwrap();
        assert!(event.starts_with("egress-b "), "{event}");
        assert!(world.events.try_recv().is_err(), "asked twice");
    }
}

#[tokio::test]
async fn who_refuses_what_went_ahead_is_asked_as_always() {
    let mut world = World::warm().await;
    let text = late("refuse-ahead", 300 << 10);
    let request = world.post("/v1/chat/completions", &text);
    let answer = world.halves(&request, || {}).await;
    assert!(
        body(&answer) == text,
        "{}",
        &answer[..answer.len().min(600)]
    );
    assert!(answer.contains("x-vector-attempts: 1\r\n"));
    for _ in 0..2 {
        let event = world.events.recv().await.unwrap();
        assert!(event.starts_with("egress-a "), "{event}");
    }
    assert!(world.events.try_recv().is_err());
}

#[tokio::test]
async fn what_is_refused_here_is_asked_of_nobody() {
    let x = "x".repeat(300 << 10);
    let two = format!(r#"{{"messages":"{x}","model":"echo","model":"other"}}"#);
    let cut = format!(r#"{{"messages":"{x}","model":"echo""#);
    let nameless = format!(r#"{{"messages":"{x}"}}"#);
    for (text, status, code) in [
        (two, 400, "invalid_body"),
        (cut, 400, "invalid_body"),
        (nameless, 400, "model_missing"),
    ] {
        let mut world = World::warm().await;
        let request = world.post("/v1/chat/completions", &text);
        let answer = world.halves(&request, || {}).await;
        refused(&answer, status, code);
        world.nothing_came_of_it().await;
        // And the next one is not guessed.
        let text = late("echo", 30 << 10);
        let answer = world.raw(world.post("/v1/chat/completions", &text)).await;
        assert!(body(&answer) == text);
        assert_eq!(world.ahead(), (1, 0, 1));
    }
}

#[tokio::test]
async fn a_key_that_may_not_is_refused_as_always() {
    let mut world = World::warm().await;
    let request = |world: &World, text: &str| {
        let request = world.post("/v1/chat/completions", text);
        request.replace(&world.key, &world.limited_key)
    };
    let answer = world.raw(request(&world, &late("echo", 10))).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    world.events.recv().await.unwrap();
    let other = request(&world, &late("count", 300 << 10));
    let answer = world.halves(&other, || {}).await;
    refused(&answer, 403, "model_not_allowed");
    world.nothing_came_of_it().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_leaves_nothing() {
    let mut world = World::warm().await;
    let text = late("echo", 300 << 10);
    let request = world.post("/v1/chat/completions", &text);
    let mut socket = world.connect().await;
    socket
        .write_all(&request.as_bytes()[..200_000])
        .await
        .unwrap();
    while world.ahead().0 == 0 {
        tokio::task::yield_now().await;
    }
    drop(socket);
    world.nothing_came_of_it().await;
}

#[tokio::test]
async fn what_may_have_been_answered_before_does_not_go_ahead() {
    let mut world = World::warm().await;
    let text = late("echo", 300 << 10);
    for header in ["Idempotency-Key: k", "x-stainless-retry-count: 1"] {
        let request = world.post("/v1/chat/completions", &text);
        let request = request.replacen("Host: x", &format!("Host: x\r\n{header}"), 1);
        let answer = world.raw(request).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        while world.events.try_recv().is_ok() {}
    }
    assert_eq!(world.ahead(), (0, 0, 0));
}
