//! A model whose answers go over two paths at once: when one is cut, the client does not even notice.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test, which fail it at once"
)]

use std::net::SocketAddr;

use harness::{Client, End, INGRESS, Network, wait};
use serde_json::{Value, json};
use vector_wan::{Detour, Way};

/// Tokens of a stream, 20 ms apart.
const TOKENS: usize = 150;

/// Two ways through the air to one egress.
struct Air([Detour; 2]);

impl Air {
    fn before(egress: SocketAddr) -> Self {
        Self([1, 2].map(|seed| Detour::to(egress, "rtt_ms=10", seed).unwrap()))
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(Detour::address).collect()
    }

    /// Bytes that each way has brought back.
    fn brought(&self) -> [u64; 2] {
        self.0.each_ref().map(|way| way.counters()[1].out_bytes)
    }
}

/// What a stream says; after each token it is told how many have come.
fn follow(client: &Client, body: &Value, mut came: impl FnMut(usize)) -> Vec<String> {
    let mut stream = client.json("/v1/chat/completions", body).open();
    assert_eq!(stream.status, 200);
    let mut said = Vec::new();
    while let Some(event) = stream.event() {
        let data = event.trim_end().strip_prefix("data: ").unwrap();
        if data == "[DONE]" {
            said.push(data.to_owned());
            continue;
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        let words = chunk["choices"][0]["delta"]["content"].as_str();
        said.extend(words.filter(|words| !words.is_empty()).map(str::to_owned));
        came(said.len());
    }
    assert_eq!(stream.end(), Some(End::Whole));
    said
}

/// Cuts the way that carries most of a stream in the midst of it.
fn cut_in_mid_stream(client: &Client, body: &Value, air: &Air) -> Vec<String> {
    let (mut begin, mut cut) = (None, None);
    let said = follow(client, body, |tokens| {
        if tokens == TOKENS / 5 {
            begin = Some(air.brought());
        }
        if let (Some(begin), None) = (begin, cut)
            && tokens == TOKENS * 2 / 5
        {
            let now = air.brought();
            let busiest = usize::from(now[1] - begin[1] > now[0] - begin[0]);
            air.0[busiest].set(Way::Both, "blackhole=on").unwrap();
            cut = Some(busiest);
        }
    });
    air.0[cut.unwrap()].set(Way::Both, "blackhole=off").unwrap();
    said
}

#[test]
fn a_redundant_stream_goes_on_over_the_second_path_when_the_first_is_cut() {
    let network = Network::own();
    let tenant = network.tenant_of("doubled", 1, &["--first-ms", "0", "--token-ms", "20"]);
    let mut air = None;
    let egress = network.extra_egress("egress-air", |address| {
        air.insert(Air::before(address)).addresses()
    });
    let air = air.unwrap();
    let plan = |redundant: bool| {
        format!(
            "[[provider]]\nname = \"doubled\"\nkind = \"openai\"\nbase_url = \"http://{}/v1\"\nallow_private = true\negress = [\"egress-air\"]\n\
             [[model]]\nname = \"doubled\"\nredundant = {redundant}\nupstreams = [{{ provider = \"doubled\" }}]\n",
            tenant.sample.address
        )
    };
    network.apply(&plan(true));
    let shown = network.ctl(&["model", "list"]).unwrap();
    let mut shown = shown["models"].as_array().unwrap().iter();
    assert!(shown.any(|model| model["name"] == "doubled" && model["redundant"] == true));
    let ingress = network.admin(INGRESS[0]);
    let helped = || network.counted(ingress, "vector_exchange_doubles_first_total");
    let doubled = || network.counted(egress.admin, "vector_exchange_doubles_total");
    wait::wait_for("the ingress has both links", || {
        let all = network.ctl(&["paths"]).unwrap();
        let rows = all["paths"].as_array().unwrap().iter();
        let of = rows.filter(|row| row["node"] == INGRESS[0] && row["peer"] == "egress-air");
        of.filter(|row| row["state"] == "up").count() == 2
    });
    let client = tenant.client(INGRESS[0]);
    let body = tenant.chat(&json!({
        "stream": true,
        "metadata": {"sample_chunks": TOKENS.to_string()},
    }));
    let provider = Client::new(tenant.sample.address, &tenant.secrets[0]);
    let expected = follow(&provider, &body, |_| ());
    assert_eq!(expected.len(), TOKENS + 1);
    let (helped_before, doubled_before) = (helped(), doubled());
    assert_eq!(cut_in_mid_stream(&client, &body, &air), expected);
    wait::wait_for("the counters are there", || doubled() > doubled_before);
    assert!(
        doubled() - doubled_before >= TOKENS as f64 / 3.0,
        "pieces went over one path"
    );
    assert!(helped() > helped_before, "the second path was of no use");
}
