//! The list is honest about what is known, and another ingress is found, measured, and lost.

use std::net::SocketAddr;

use tokio::{io::AsyncReadExt as _, io::AsyncWriteExt as _, net::TcpListener};

use super::*;
use crate::control_plane::NodeRow;

fn node(region: &str, url: &str, draining: bool) -> (Arc<str>, NodeRow) {
    let row = NodeRow {
        region: region.into(),
        ingress: true,
        relay: false,
        egress: false,
        tunnel_addresses: Vec::new(),
        draining,
        client_urls: vec![url.into()],
    };
    (url.into(), row)
}

fn routes(nodes: impl IntoIterator<Item = (Arc<str>, NodeRow)>) -> Routes {
    let mut routes = Routes::default();
    routes.region = "eu".into();
    routes.nodes = nodes.into_iter().collect();
    routes
}

fn seen(ms: u64, misses: u32) -> Seen {
    Seen {
        distance: Some(Duration::from_millis(ms)),
        load: Some(ms),
        misses,
    }
}

#[test]
fn the_list_has_the_nearest_first_and_leaves_out_who_is_not_there() {
    let mut egress = node("us", "https://no.example", false);
    egress.1.ingress = false;
    let routes = routes([
        node("eu", "https://own.example", false),
        node("us", "https://far.example", false),
        node("fr", "https://near.example", false),
        node("ap", "https://new.example", false),
        node("sa", "https://gone.example", false),
        node("za", "https://drains.example", true),
        egress,
    ]);
    let known = [
        ("https://far.example", seen(90, 1)),
        ("https://near.example", seen(20, 0)),
        ("https://gone.example", seen(5, MISSES_MAX)),
        ("https://drains.example", seen(1, 0)),
    ];
    let all: All = known.map(|(url, seen)| (url.into(), seen)).into();
    let told = list("https://own.example", &routes, &all, 7);
    let row = |url: &str, region: &str, load: Option<u64>, ms: Option<f64>| json!({"url": url, "region": region, "load": load, "distance_ms": ms});
    let wanted = json!({"region": "eu", "load": 7, "edges": [
        row("https://own.example", "eu", Some(7), Some(0.0)),
        row("https://near.example", "fr", Some(20), Some(20.0)),
        row("https://far.example", "us", Some(90), Some(90.0)),
        row("https://new.example", "ap", None, None),
    ]});
    assert_eq!(told, wanted);
    let mut asked = others("https://own.example", &routes);
    asked.sort();
    assert_eq!(asked.len(), 5, "even who drains is measured: {asked:?}");
}

#[test]
fn distances_are_smoothed_and_a_miss_keeps_them() {
    let ms = Duration::from_millis;
    let first = Seen::default().after(Some((ms(40), Some(3))));
    assert_eq!((first.distance, first.load), (Some(ms(40)), Some(3)));
    let second = first.after(Some((ms(80), None)));
    assert_eq!((second.distance, second.load), (Some(ms(50)), None));
    let missed = second.after(None).after(None);
    assert_eq!((missed.distance, missed.misses), (Some(ms(50)), 2));
    assert_eq!(missed.after(Some((ms(50), None))).misses, 0);
}

/// An ingress of few words; answers its address.
async fn stand_in(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test's runtime.
    tokio_util::task::TaskTracker::new().spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let count = socket.read(&mut request).await.unwrap();
            assert!(request[..count].starts_with(b"GET /.well-known/vector-edges HTTP/1.1\r\n"));
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn others_are_asked_and_who_is_gone_is_missed() {
    let talks = stand_in("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{\"load\":5}").await;
    let babbles = stand_in("SSH-2.0-none\r\n").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = listener.local_addr().unwrap();
    drop(listener);
    let urls: Vec<Arc<str>> = [talks, babbles, gone]
        .iter()
        .map(|address| format!("http://{address}").into())
        .chain(["nonsense".into()])
        .collect();
    let after = round(&All::new(), urls.clone(), None).await;
    let told = |at: usize| after[&urls[at]];
    assert!(
        told(0).distance.is_some() && told(0).load == Some(5),
        "{after:?}"
    );
    assert!(
        told(1).distance.is_some() && told(1).load.is_none(),
        "{after:?}"
    );
    assert_eq!((told(2).misses, told(3).misses), (1, 1));
    let again = round(&after, urls.clone(), None).await;
    assert_eq!((again[&urls[0]].misses, again[&urls[2]].misses), (0, 2));
}
