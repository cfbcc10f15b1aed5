//! What a relay tells of the exchanges that it passes on.

use super::*;
use crate::config::Role;

async fn passed(telemetry: &Telemetry) {
    while telemetry.running(Role::Relay) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_relay_has_a_line_for_each_exchange_that_it_passed_on_and_counts_them() {
    let (telemetry, caught) = Telemetry::caught();
    let mut world = World {
        telemetry: telemetry.clone(),
        ..World::new()
    };
    let (_, next_hop) = world.over_relay().await;
    let (mut call, body, mut answer, whole) = world.call(&relay_path()).await;
    assert_eq!(telemetry.running(Role::Relay), 1);
    answer.head(&head());
    say(&mut answer, "over the relay").await;
    call.response.head().await.unwrap();
    assert_eq!(part(&mut call).await, "over the relay");
    call.request.end().await.unwrap();
    answer.finish(&v1::Trailers::default()).await.unwrap();
    while call.response.next().await.unwrap() != Part::End {}
    drop((call, body));
    passed(&telemetry).await;

    let (call, body, answer, broken) = world.call(&relay_path()).await;
    next_hop.close("test");
    world.relay.as_ref().unwrap().0.remove(&next_hop);
    drop((call, body, answer));
    passed(&telemetry).await;

    let (refused, open) = open();
    let mut call = world
        .ingress
        .open(&relay_path(), refused, &open)
        .await
        .unwrap();
    call.request.flush().await.unwrap();
    call.response.accepted().await.unwrap_err();
    passed(&telemetry).await;

    let lines = caught.lines();
    let of = |exchange: ExchangeId, outcome: &str| {
        let told = |line: &&serde_json::Value| {
            line["exchange"] == exchange.to_string() && line["outcome"] == outcome
        };
        let mut found = lines.iter().filter(told);
        let line = found
            .next()
            .unwrap_or_else(|| panic!("{outcome} in {lines:?}"));
        assert_eq!(found.next(), None);
        assert_eq!(
            (&line["message"], &line["role"]),
            (&"exchange".into(), &"relay".into())
        );
        assert_eq!(line["from"], "ingress");
        line
    };
    let line = of(whole, "whole");
    assert_eq!(line["to"], "egress");
    assert!(line["bytes_on"].as_u64().unwrap() > 0);
    assert!(line["bytes_back"].as_u64().unwrap() > "over the relay".len() as u64);
    assert!(line["duration_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(of(broken, "broken")["to"], "egress");
    assert_eq!(of(refused, "refused")["reason"], "no_path");
    let metrics = telemetry.metrics();
    for outcome in ["whole", "broken"] {
        let counted = format!(
            "vector_exchanges_total{{role=\"relay\",operation=\"passage\",outcome=\"{outcome}\"}} 1"
        );
        assert!(metrics.contains(&counted), "{counted} in {metrics}");
    }
    assert!(metrics.contains("vector_relay_bytes_total{direction=\"back\"}"));
}
