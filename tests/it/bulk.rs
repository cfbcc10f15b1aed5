//! Large bodies pass through in little memory, and arrive as they were.

use harness::{Connection, INGRESS, Network, network::resident};
use ring::digest::{Context, SHA256};
use serde_json::json;

const SIZE: u64 = 256 << 20;
const PIECE: usize = 1 << 20;

/// What any process may grow by.
const GROWTH_MAX: u64 = 64 << 20;

fn hex(digest: Context) -> String {
    let digest = digest.finish();
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The network's own processes, without the provider.
fn memory(network: &Network) -> Vec<(String, u32, u64)> {
    let pids = network.pids().into_iter();
    pids.filter(|(name, _)| name != "sample-provider")
        .map(|(name, pid)| (name, pid, resident(pid).1))
        .collect()
}

fn assert_small(before: &[(String, u32, u64)]) {
    for (name, pid, now) in before {
        let (peak, _) = resident(*pid);
        let growth = peak.saturating_sub(*now);
        assert!(growth < GROWTH_MAX, "{name} grew by {} KiB", growth >> 10);
    }
}

#[test]
fn a_quarter_gibibyte_goes_up_and_comes_down_in_little_memory() {
    let network = Network::own();
    let client = network.client(INGRESS[0]);
    client.get("/v1/files").expect(200);
    let before = memory(&network);

    let front = "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"big\"\r\n\r\n";
    let back = "\r\n--b--\r\n";
    let length = front.len() as u64 + SIZE + back.len() as u64;
    let mut connection = Connection::open(network.address(INGRESS[0]));
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: {length}\r\n\r\n{front}",
        client.key
    );
    connection.write(head.as_bytes());
    let mut sent = Context::new(&SHA256);
    let mut piece = vec![0; PIECE];
    for round in 0..SIZE / PIECE as u64 {
        for (at, byte) in piece.iter_mut().enumerate() {
            *byte = (at as u64 * 31 + round * 7).to_le_bytes()[usize::from(at % 3 == 0)];
        }
        sent.update(&piece);
        connection.try_write(&piece).unwrap();
    }
    connection.write(back.as_bytes());
    let answer = connection.answer().unwrap().rest().expect(200);
    assert_eq!(answer.json()["bytes"], json!(SIZE));
    assert_eq!(answer.json()["sample_sha256"], json!(hex(sent)));

    let file = answer.json()["id"].as_str().unwrap().to_owned();
    let mut stream = client
        .request("GET", &format!("/v1/files/{file}/content"))
        .open();
    assert_eq!(stream.status, 200);
    let (mut got, mut wanted, mut bytes) = (Context::new(&SHA256), Context::new(&SHA256), 0);
    while let Some(piece) = stream.piece() {
        bytes += piece.len() as u64;
        got.update(&piece);
    }
    assert_eq!(bytes, SIZE);
    // What the provider makes up in place of what it did not keep.
    let block: Vec<u8> = (0..64 << 10)
        .map(|at: u32| (at % 251).to_le_bytes()[0])
        .collect();
    for _ in 0..SIZE / block.len() as u64 {
        wanted.update(&block);
    }
    assert_eq!(hex(got), hex(wanted));
    assert_small(&before);
}
