//! A provider with two credentials: which one is called, which one rests, and what the client is told.

use std::thread;

use harness::{INGRESS, Network, wait};
use serde_json::json;

#[test]
fn a_credential_that_gets_429_rests_and_the_other_is_used() {
    let tenant = Network::shared().tenant_of("resting", 2, &["--first-ms", "0"]);
    tenant
        .sample
        .fault(&json!({"kind": "429", "arg": 60, "count": 64, "match_key": tenant.secrets[0]}));
    let client = tenant.client(INGRESS[0]);
    for _ in 0..6 {
        client
            .post("/v1/chat/completions", &tenant.chat(&json!({})))
            .expect(200);
    }
    let counts = tenant.sample.calls_per_key();
    assert_eq!(counts[1], 6);
    // At most once at each of two egress nodes, then it rests there.
    assert!(counts[0] <= 2, "{counts:?}");
}

#[test]
fn when_all_credentials_rest_the_client_gets_429_and_the_providers_time() {
    let tenant = Network::shared().tenant_of("exhausted", 2, &["--first-ms", "0"]);
    tenant
        .sample
        .fault(&json!({"kind": "429", "arg": 33, "count": 64}));
    let client = tenant.client(INGRESS[0]);
    for _ in 0..3 {
        let answer = client
            .post("/v1/chat/completions", &tenant.chat(&json!({})))
            .expect(429);
        answer.error_code();
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((30..=33).contains(&seconds), "{seconds}");
    }
    let calls: u64 = tenant.sample.calls_per_key().iter().sum();
    assert!(calls <= 4, "{calls} calls of two keys from two nodes");
}

#[test]
fn a_credential_that_is_refused_is_out_of_use_and_the_operator_is_told() {
    let network = Network::shared();
    let tenant = network.tenant_of("revoked", 2, &["--first-ms", "0"]);
    tenant
        .sample
        .fault(&json!({"kind": "401", "count": 64, "match_key": tenant.secrets[0]}));
    let client = tenant.client(INGRESS[0]);
    for _ in 0..6 {
        client
            .post("/v1/chat/completions", &tenant.chat(&json!({})))
            .expect(200);
    }
    let counts = tenant.sample.calls_per_key();
    assert!(counts[0] <= 2 && counts[1] == 6, "{counts:?}");
    if counts[0] > 0 {
        wait::wait_for("the operator sees it", || {
            let all = network.ctl(&["credential", "list"]).unwrap();
            let rows = all["credentials"].as_array().unwrap().iter();
            rows.filter(|row| row["name"] == "revoked-1")
                .flat_map(|row| row["at"].as_array().unwrap())
                .any(|at| {
                    !["ready", "unspecified"]
                        .contains(&at["status"]["state"].as_str().unwrap_or("ready"))
                })
        });
    }
}

#[test]
fn a_429_at_one_credential_reaches_no_client_while_another_has_headroom() {
    const CLIENTS: usize = 16;
    const ASKED: usize = 12;
    let tenant = Network::shared().tenant_of("crowded", 2, &["--first-ms", "5"]);
    // It rests for a second, is tried again, and says no again, all the time.
    let limited =
        json!({"kind": "429", "arg": 1, "count": 100_000, "match_key": tenant.secrets[0]});
    tenant.sample.fault(&limited);
    let body = tenant.chat(&json!({}));
    thread::scope(|scope| {
        for at in 0..CLIENTS {
            let (client, body) = (tenant.client(INGRESS[at % 2]), &body);
            scope.spawn(move || {
                for _ in 0..ASKED {
                    client.post("/v1/chat/completions", body).expect(200);
                }
            });
        }
    });
    let counts = tenant.sample.calls_per_key();
    assert_eq!(counts[1], (CLIENTS * ASKED) as u64);
    assert!(counts[0] >= 1, "nobody met the limit: {counts:?}");
    assert!(
        counts[0] <= counts[1] / 4,
        "what rests is left alone: {counts:?}"
    );
}

#[test]
fn a_rest_at_one_egress_is_known_at_the_other_regions_ingress() {
    let network = Network::shared();
    let tenant = network.tenant_of("steered", 1, &["--first-ms", "0"]);
    tenant
        .sample
        .fault(&json!({"kind": "429", "arg": 60, "count": 1}));
    let ask = tenant.chat(&json!({}));
    let first = tenant
        .client(INGRESS[0])
        .post("/v1/chat/completions", &ask)
        .expect(200);
    let attempts = |answer: &harness::Answer| answer.header("x-vector-attempts").map(str::to_owned);
    assert_eq!(attempts(&first).as_deref(), Some("2"), "one egress said no");
    let ready = first.header("x-vector-egress").unwrap().to_owned();
    wait::wait_for(
        "control knows which egress has nothing to serve it with",
        || {
            let all = network.ctl(&["upstreams"]).unwrap();
            let mut rows = all["upstreams"].as_array().unwrap().iter();
            rows.any(|row| {
                row["provider"] == "steered"
                    && row["egress"] != ready.as_str()
                    && row["rests_ms"].as_u64() > Some(0)
            })
        },
    );
    // Said to every node later than that, over the same stream: who has this has that.
    network
        .apply("[[model]]\nname = \"steered-since\"\nupstreams = [{ provider = \"steered\" }]\n");
    for _ in 0..20 {
        let answer = tenant
            .client(INGRESS[1])
            .post("/v1/chat/completions", &ask)
            .expect(200);
        let said = (attempts(&answer), answer.header("x-vector-egress"));
        assert_eq!(
            said,
            (Some("1".to_owned()), Some(ready.as_str())),
            "asked where nothing can serve it"
        );
    }
    assert_eq!(tenant.sample.calls(), 22);
}

#[test]
fn a_short_rest_is_waited_for_and_a_long_one_is_said_with_its_true_time() {
    let network = Network::own();
    let tenant = network.tenant_of("patient", 1, &["--first-ms", "0"]);
    let ask = tenant.chat(&json!({}));
    // One answer each of the two egress nodes: then everything rests.
    let limited = |seconds: u32| {
        tenant
            .sample
            .fault(&json!({"kind": "429", "arg": seconds, "count": 2}))
    };
    limited(1);
    thread::scope(|scope| {
        let ask = &ask;
        let wait = |at: usize| {
            let client = tenant.client(INGRESS[at % 2]);
            scope.spawn(move || client.post("/v1/chat/completions", ask).expect(200));
        };
        wait(0);
        wait::wait_for("both egress nodes have nothing to serve it with", || {
            tenant.sample.calls() >= 2
        });
        (1..6).for_each(wait);
    });
    let calls = tenant.sample.calls();
    assert_eq!(
        calls,
        2 + 6,
        "nobody was refused, and nobody asked while all rest"
    );
    wait::wait_for("nothing rests any more", || {
        let all = network.ctl(&["upstreams"]).unwrap();
        let mut rows = all["upstreams"].as_array().unwrap().iter();
        rows.all(|row| row["provider"] != "patient" || row["rests_ms"] == 0)
    });
    // One that waits for half a second at the most is told how long it would have to.
    let hurried = network.extra_ingress("ingress-hurried", "queue_ms = 500");
    limited(20);
    let mut before = 20;
    for _ in 0..3 {
        let answer = hurried
            .client(&tenant.key.text)
            .post("/v1/chat/completions", &ask)
            .expect(429);
        answer.error_code();
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((10..=before).contains(&seconds), "{seconds} after {before}");
        before = seconds;
    }
    assert_eq!(tenant.sample.calls(), calls + 2, "what rests is not asked");
}
