//! Calls that name objects somewhere in their bodies: where they go, and for whom.

use super::{
    world::{World, refused},
    *,
};

/// Where a call went: the egress's event, without the egress's name.
async fn went(world: &mut World) -> String {
    let event = world.events.recv().await.unwrap();
    event.split_once(' ').unwrap().1.to_owned()
}

/// A call in JSON is answered, after it went there.
async fn check(world: &mut World, target: &str, body: &str, expected: &str) {
    let answer = world.raw(world.post(target, body)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(went(world).await, expected, "{body}");
}

#[tokio::test]
async fn a_call_goes_to_the_credential_of_the_objects_that_it_names() {
    let mut world = World::start().await;
    for _ in 0..8 {
        let body =
            r#"{"model":"wide","messages":[{"content":[{"file":{"file_id":"file-of-q"}}]}]}"#;
        let expected = "chat.completions.create /chat/completions other by q-1 of q";
        check(&mut world, "/v1/chat/completions", body, expected).await;
        // The first that is known counts.
        let body = r#"{"model":"wide","input":[{"file_id":"nobodys"}],"tools":[{"vector_store_ids":["vs-of-p","vs-of-q"]}]}"#;
        let expected = "responses.compact /responses/compact echo by p-1 of p";
        check(&mut world, "/v1/responses/compact", body, expected).await;
        // There is no default route for these: the objects say it.
        let body = r#"{"file_ids":["file-of-q"]}"#;
        let expected = "vector_stores.create /vector_stores  by q-1 of q";
        check(&mut world, "/v1/vector_stores", body, expected).await;
        let body = r#"{"video":{"id":"video-of-q"},"prompt":"x"}"#;
        let expected = "videos.edit /videos/edits  by q-1 of q";
        check(&mut world, "/v1/videos/edits", body, expected).await;
    }
    // What its path names decides before all of them.
    let body = r#"{"file_id":"file-of-p"}"#;
    let expected = "vector_stores.files.create /vector_stores/vs-of-q/files  by q-1 of q";
    check(
        &mut world,
        "/v1/vector_stores/vs-of-q/files",
        body,
        expected,
    )
    .await;
    // A provider that does not have the model is no use, and what nobody made says nothing.
    for id in ["file-of-q", "nobodys"] {
        let body = format!(r#"{{"model":"echo","messages":[{{"file_id":"{id}"}}]}}"#);
        let expected = "chat.completions.create /chat/completions echo";
        check(&mut world, "/v1/chat/completions", &body, expected).await;
    }
    let form =
        "--b\r\nContent-Disposition: form-data; name=\"video[id]\"\r\n\r\nvideo-of-q\r\n--b--\r\n";
    let head = world.head("POST", "/v1/videos/extensions");
    let answer = world
        .raw(format!(
            "{head}Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n{form}",
            form.len()
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(
        went(&mut world).await,
        "videos.extend /videos/extensions  by q-1 of q"
    );
}

#[tokio::test]
async fn a_call_about_an_object_has_the_names_of_the_model_that_made_it() {
    let mut world = World::start().await;
    for (target, expected) in [
        (
            "/v1/responses/public-resp-of-p/cancel",
            "responses.cancel /responses/public-resp-of-p/cancel inner by p-1 of p",
        ),
        (
            "/v1/videos/public-video-of-p/remix",
            "videos.remix /videos/public-video-of-p/remix inner by p-1 of p",
        ),
        // Its provider does not have that model, or calls it the same.
        (
            "/v1/responses/public-resp-of-q/cancel",
            "responses.cancel /responses/public-resp-of-q/cancel  by q-1 of q",
        ),
        (
            "/v1/responses/resp-of-p/cancel",
            "responses.cancel /responses/resp-of-p/cancel  by p-1 of p",
        ),
        // Nobody says what model made what an answer told of, or which run of a thread is meant.
        (
            "/v1/responses/public-told-of-p/cancel",
            "responses.cancel /responses/public-told-of-p/cancel  by p-1 of p",
        ),
        (
            "/v1/threads/public-thread-of-p/runs/run_1/cancel",
            "threads.runs.cancel /threads/public-thread-of-p/runs/run_1/cancel  by p-1 of p",
        ),
    ] {
        check(&mut world, target, "{}", expected).await;
    }
}

#[tokio::test]
async fn whoever_joins_a_call_reaches_the_credential_that_took_it() {
    let mut world = World::start().await;
    let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let join = |call: &str| {
        let head = world.head("GET", &format!("/v1/realtime?call_id={call}"));
        head.replace("Connection: close", "Connection: Upgrade") + upgrade
    };
    let (ours, theirs) = (join("rtc-of-q"), join("foreign"));
    refused(&world.raw(theirs).await, 404, "object_not_found");
    let mut socket = world.connect().await;
    socket.write_all(ours.as_bytes()).await.unwrap();
    assert_eq!(
        went(&mut world).await,
        "realtime.connect /realtime?call_id=rtc-of-q  by q-1 of q"
    );
}

#[tokio::test]
async fn a_bare_session_description_goes_where_its_query_says() {
    let mut world = World::start().await;
    for (target, expected) in [("?model=public", "?model=inner inner"), ("?a=b", "?a=b ")] {
        let head = world.head("POST", &format!("/v1/realtime/calls{target}"));
        let offer =
            format!("{head}Content-Type: application/sdp\r\nContent-Length: 4\r\n\r\nv=0\n");
        let answer = world.raw(offer).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let event = went(&mut world).await;
        let event = event.trim_end_matches(" redundant");
        assert_eq!(
            event,
            format!("realtime.calls.create /realtime/calls{expected}")
        );
    }
}

#[tokio::test]
async fn what_no_call_makes_is_asked_for_by_default() {
    let mut world = World::start().await;
    let request = format!("{}\r\n", world.head("GET", "/v1/chatkit/threads/cthr_1"));
    let answer = world.raw(request).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(
        went(&mut world).await,
        "chatkit.threads.retrieve /chatkit/threads/cthr_1 "
    );
    let request = world.post("/v1/chatkit/sessions/cksess_1/cancel", "");
    refused(&world.raw(request).await, 404, "object_not_found");
}

#[tokio::test]
async fn no_call_names_what_another_account_made() {
    let world = World::start().await;
    for (target, body) in [
        (
            "/v1/chat/completions",
            r#"{"model":"wide","messages":[{"content":[{"file":{"file_id":"foreign"}}]}]}"#,
        ),
        (
            "/v1/responses",
            r#"{"model":"wide","tools":[{"vector_store_ids":["vs-of-q","foreign"]}]}"#,
        ),
        (
            "/v1/responses",
            r#"{"model":"wide","tools":[{"cont\u0061iner":"for\u0065ign"}]}"#,
        ),
        (
            "/v1/vector_stores",
            r#"{"file_ids":["file-of-q","foreign"]}"#,
        ),
        (
            "/v1/vector_stores/vs-of-q/files",
            r#"{"file_id":"foreign"}"#,
        ),
        ("/v1/threads/for%65ign", "{}"),
    ] {
        let answer = world.raw(world.post(target, body)).await;
        refused(&answer, 404, "object_not_found");
    }
    let body = r#"{"model":"echo","messages":[],"metadata":{"file_id":"foreign"}}"#;
    let answer = world.raw(world.post("/v1/chat/completions", body)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
