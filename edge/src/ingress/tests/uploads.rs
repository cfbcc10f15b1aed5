//! Bodies of every size and framing reach the egress whole.

use super::{
    world::{World, config, refused},
    *,
};
use crate::tunnel::Condition;

#[tokio::test]
async fn chunked_and_sized_bodies_of_all_sizes_arrive_whole() {
    let world = World::start().await;
    for size in [0, 1, 60 << 10, 70 << 10, 900 << 10, 3 << 20] {
        let body = format!(r#"{{"model":"count","x":"{}"}}"#, "y".repeat(size));
        let answer = world.raw(world.post("/v1/chat/completions", &body)).await;
        assert!(
            answer.contains(&format!("\r\n{}\r\n", body.len())),
            "{size}: {answer}"
        );
        let head = world.head("POST", "/v1/chat/completions");
        let mut chunked =
            format!("{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n");
        for part in body.as_bytes().chunks(33_333) {
            chunked += &format!(
                "{:x}\r\n{}\r\n",
                part.len(),
                std::str::from_utf8(part).unwrap()
            );
        }
        let answer = world.raw(chunked + "0\r\n\r\n").await;
        assert!(
            answer.contains(&format!("\r\n{}\r\n", body.len())),
            "{size} chunked: {answer}"
        );
    }
}

#[tokio::test]
async fn the_model_may_stand_behind_a_large_file() {
    let world = World::start().await;
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n{}\r\n\
         --b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ncount\r\n--b--\r\n",
        "z".repeat(2 << 20)
    );
    let head = world.head("POST", "/v1/audio/transcriptions");
    let kind = "Content-Type: multipart/form-data; boundary=b";
    let request = format!(
        "{head}{kind}\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    let answer = world.raw(request).await;
    assert!(
        answer.contains(&format!("\r\n{}\r\n", form.len())),
        "{answer}"
    );
}

/// A provider that goes by the last of two models would run one that nobody allowed.
#[tokio::test]
async fn a_second_model_breaks_the_upload_off_wherever_it_stands() {
    let mut world = World::start().await;
    let secrets = "/v1/realtime/client_secrets";
    for bytes in [1 << 10, 1 << 20, 3 << 20] {
        let x = "y".repeat(bytes);
        for (target, body) in [
            (
                "/v1/chat/completions",
                format!(r#"{{"model":"count","x":"{x}","model":"other"}}"#),
            ),
            (
                "/v1/chat/completions",
                format!(r#"{{"model":"count","x":["{x}"],"\u006dodel":"count"}}"#),
            ),
            (
                secrets,
                format!(r#"{{"session":{{"model":"count"}},"x":"{x}","model":"other"}}"#),
            ),
            (
                secrets,
                format!(r#"{{"session":{{"model":"count","x":"{x}"}},"session":{{"model":"o"}}}}"#),
            ),
            // Whatever cannot be followed could hide one.
            (
                "/v1/chat/completions",
                format!(r#"{{"model":"count","x":"{x}"]"#),
            ),
            (
                "/v1/chat/completions",
                format!(r#"{{"model":"count","x":"{x}"#),
            ),
        ] {
            let answer = world.raw(world.post(target, &body)).await;
            refused(&answer, 400, "invalid_body");
            broke_off(&mut world, bytes).await;
        }
        let part = |name: &str, value: &str| {
            format!("--b\r\nContent-Disposition: form-data; name={name}\r\n\r\n{value}\r\n")
        };
        let [model, file] = [part("model", "count"), part("\"file\"; filename=a", &x)];
        let form = format!("{model}{file}{}--b--\r\n", part("model", "other"));
        let head = world.head("POST", "/v1/audio/transcriptions");
        let kind = "Content-Type: multipart/form-data; boundary=b";
        let length = form.len();
        let answer = world
            .raw(format!(
                "{head}{kind}\r\nContent-Length: {length}\r\n\r\n{form}"
            ))
            .await;
        refused(&answer, 400, "invalid_body");
        broke_off(&mut world, bytes).await;
    }
}

/// Nobody got a whole body, and a small one nobody got at all.
async fn broke_off(world: &mut World, bytes: usize) {
    if bytes > 64 << 10 {
        let opened = world.events.recv().await.unwrap();
        assert!(opened.ends_with(" count"), "{opened}");
        assert_eq!(world.events.recv().await.unwrap(), "upload broke");
    }
    assert!(world.events.try_recv().is_err());
}

#[tokio::test]
async fn the_model_of_a_session_counts_where_the_operation_has_it_there() {
    let world = World::start().await;
    let x = "y".repeat(70 << 10);
    let body = format!(r#"{{"session":{{"model":"count"}},"x":"{x}"}}"#);
    let answer = world.raw(world.post("/v1/chat/completions", &body)).await;
    refused(&answer, 400, "model_missing");
    let secrets = "/v1/realtime/client_secrets";
    let answer = world.raw(world.post(secrets, &body)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let both = r#"{"model":"echo","session":{"model":"count"}}"#;
    refused(
        &world.raw(world.post(secrets, both)).await,
        400,
        "invalid_body",
    );
    let own = format!(r#"{{"session":{{"model":"echo"}},"x":"{x}","model":"count"}}"#);
    let answer = world.raw(world.post("/v1/chat/completions", &own)).await;
    assert!(
        answer.contains(&format!("\r\n{}\r\n", own.len())),
        "{answer}"
    );
}

#[tokio::test]
async fn a_large_body_goes_to_the_next_candidate_too() {
    let world = World::start().await;
    let body = format!(r#"{{"model":"refuse","x":"{}"}}"#, "y".repeat(2 << 20));
    let answer = world.raw(world.post("/v1/chat/completions", &body)).await;
    assert!(
        answer.starts_with("HTTP/1.1 429") && answer.contains("x-vector-attempts: 2"),
        "{answer}"
    );
}

#[tokio::test]
async fn an_upload_that_breaks_off_breaks_at_the_egress() {
    let mut world = World::start().await;
    let head = world.head("POST", "/v1/chat/completions");
    let begin = format!(r#"{{"model":"count","x":"{}"#, "y".repeat(1 << 20));
    let request = format!(
        "{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{begin}",
        2 << 20
    );
    let mut socket = world.connect().await;
    socket.write_all(request.as_bytes()).await.unwrap();
    world.events.recv().await.unwrap();
    drop(socket);
    assert_eq!(world.events.recv().await.unwrap(), "upload broke");
}

/// The last egress starts again, say: what comes meanwhile waits for it.
#[tokio::test]
async fn what_finds_no_path_goes_on_when_there_is_one() {
    let world = World::start().await;
    let links = ["egress-a", "egress-b"].map(|egress| world.tunnel.link(egress).unwrap());
    for link in &links {
        world.tunnel.remove(link);
    }
    let back = async {
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        world.tunnel.add(&links[0]);
    };
    let (answer, ()) = tokio::join!(world.chat("echo"), back);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn no_link_is_no_path() {
    let world = World::with(config::Ingress {
        // Nobody waits.
        queue: Duration::ZERO,
        ..config()
    })
    .await;
    for egress in ["egress-a", "egress-b"] {
        let link = world.tunnel.link(egress).unwrap();
        world.tunnel.remove(&link);
    }
    refused(&world.chat("echo").await, 503, "no_path");
}

#[tokio::test]
async fn silent_paths_are_tried_when_there_are_no_others() {
    let world = World::start().await;
    for egress in ["egress-a", "egress-b"] {
        let link = world.tunnel.link(egress).unwrap();
        link.vitals().set(Condition::Down);
    }
    let answer = world.chat("echo").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
