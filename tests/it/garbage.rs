//! Noise on the tunnels' UDP ports, while answers run over them.

use std::net::UdpSocket;

use harness::{End, INGRESS, Network};
use serde_json::json;

/// Something of every sort: noise, a QUIC long header of no known version, an Initial full of nothing, short headers.
fn datagrams(round: u8) -> Vec<Vec<u8>> {
    let filled = |first: u8, length: usize| {
        let mut bytes = vec![round.wrapping_mul(31); length];
        bytes[0] = first;
        bytes
    };
    let mut initial = vec![
        0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, round, 0, 0, 0x44, 0x90,
    ];
    initial.resize(1200, round);
    let mut version = vec![
        0xff, 0xba, 0xba, 0xba, 0xba, 8, 0, 0, 0, 0, 0, 0, 0, round, 0,
    ];
    version.resize(1200, 0);
    vec![
        Vec::new(),
        vec![round],
        filled(round, 64),
        filled(0x40 | round, 1200),
        filled(0xc0 | round, 1450),
        initial,
        version,
    ]
}

#[test]
fn noise_on_the_tunnel_ports_harms_no_stream() {
    let network = Network::shared();
    let tenant = network.tenant_of("noisy", 1, &["--first-ms", "0", "--token-ms", "10"]);
    let chat = tenant.chat(&json!({"stream": true, "metadata": {"sample_chunks": "100"}}));
    let mut streams: Vec<_> = (0..16)
        .map(|at| {
            let client = tenant.client(INGRESS[at % 2]);
            client.json("/v1/chat/completions", &chat).open()
        })
        .collect();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for round in 0..200 {
        for address in network.tunnels() {
            for datagram in datagrams(round) {
                socket.send_to(&datagram, address).unwrap();
            }
        }
        // The noise goes on for as long as the streams do.
        let stream = &mut streams[usize::from(round) % 16];
        assert!(stream.event().is_some());
    }
    for stream in &mut streams {
        let mut last = String::new();
        while let Some(event) = stream.event() {
            last = event;
        }
        assert_eq!(last, "data: [DONE]\n\n");
        assert_eq!(stream.end(), Some(End::Whole));
    }
    tenant
        .client(INGRESS[0])
        .post("/v1/chat/completions", &tenant.chat(&json!({})))
        .expect(200);
}
