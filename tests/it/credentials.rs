//! A provider with two credentials: which one is called, which one rests, and what the client is told.

use harness::{INGRESS, Network};
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
        harness::wait::wait_for("the operator sees it", || {
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
