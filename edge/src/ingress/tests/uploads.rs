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
