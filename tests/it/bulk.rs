//! Large bodies pass through in little memory, and arrive as they were.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test, which fail it at once"
)]

use harness::{Answer, Client, Connection, INGRESS, Network, network::resident, wait};
use ring::digest::{Context, SHA256};
use serde_json::json;
use vector_wan::{Detour, Way};

const SIZE: u64 = 256 << 20;
const PIECE: usize = 1 << 20;
const PIECES: u64 = SIZE / PIECE as u64;

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

/// Sends a file up, and compares what the provider got of it. After each piece it is told how many have gone.
fn upload(client: &Client, mut went: impl FnMut(u64)) -> Answer {
    let front = "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"big\"\r\n\r\n";
    let back = "\r\n--b--\r\n";
    let length = front.len() as u64 + SIZE + back.len() as u64;
    let mut connection = Connection::open(client.address);
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: {length}\r\n\r\n{front}",
        client.key
    );
    connection.write(head.as_bytes());
    let mut sent = Context::new(&SHA256);
    let mut piece = vec![0; PIECE];
    for round in 0..PIECES {
        for (at, byte) in piece.iter_mut().enumerate() {
            *byte = (at as u64 * 31 + round * 7).to_le_bytes()[usize::from(at % 3 == 0)];
        }
        sent.update(&piece);
        connection.try_write(&piece).unwrap();
        went(round + 1);
    }
    connection.write(back.as_bytes());
    let answer = connection.answer().unwrap().rest().expect(200);
    assert_eq!(answer.json()["bytes"], json!(SIZE));
    assert_eq!(answer.json()["sample_sha256"], json!(hex(sent)));
    answer
}

#[test]
fn a_quarter_gibibyte_goes_up_and_comes_down_in_little_memory() {
    let network = Network::own();
    let client = network.client(INGRESS[0]);
    client.get("/v1/files").expect(200);
    let before = memory(&network);
    let answer = upload(&client, |_| ());

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

#[test]
fn a_quarter_gibibyte_goes_up_whole_though_its_path_is_cut_on_the_way() {
    let network = Network::own();
    let mut ways = None;
    let _egress = network.extra_egress("egress-air", |address| {
        let to = |seed| Detour::to(address, "rtt_ms=4", seed).unwrap();
        let ways = ways.insert([to(1), to(2)]);
        ways.each_ref().map(Detour::address).into()
    });
    let ways = ways.unwrap();
    let plan = format!(
        "[[provider]]\nname = \"sample\"\nkind = \"openai\"\nbase_url = \"{}/v1\"\nallow_private = true\n\
         unknown_objects = true\negress = [\"egress-air\"]\n",
        network.provider_url()
    );
    // It takes most paths away, which is meant.
    let apply = ["--force", "apply", "-f", "-"];
    network.ctl_text(&apply, &plan).unwrap();
    network.settle();
    wait::wait_for("the ingress has both links", || {
        let all = network.ctl(&["paths"]).unwrap();
        let rows = all["paths"].as_array().unwrap().iter();
        let of = rows.filter(|row| row["node"] == INGRESS[0] && row["peer"] == "egress-air");
        of.filter(|row| row["state"] == "up").count() == 2
    });
    let client = network.client(INGRESS[0]);
    client.get("/v1/files").expect(200);
    let moves = || network.counted(network.admin(INGRESS[0]), "vector_exchange_moves_total");
    let carried = || ways.each_ref().map(|way| way.counters()[0].out_bytes);
    let (moved, begin) = (moves(), carried());
    upload(&client, |went| {
        if went == PIECES / 2 {
            let now = carried();
            let busiest = usize::from(now[1] - begin[1] > now[0] - begin[0]);
            ways[busiest].set(Way::Both, "blackhole=on").unwrap();
        }
    });
    assert!(moves() > moved, "it did not go over the path that was cut");
}
