//! Which of a provider's keys serves, and what its answers teach about them.

use super::*;

#[tokio::test]
async fn a_limited_key_rests_and_the_next_one_serves() {
    for headers in ["", "retry-after: 7\r\n"] {
        let address = fussy(429, headers, "{}").await;
        let town = Town::new(&url(address), &["one", "two"]).await;
        for _ in 0..4 {
            let answered = town.ask(chat(2), b"{}").await.unwrap();
            assert_eq!(
                (answered.head.status, answered.head.credential.as_str()),
                (200, "two")
            );
        }
        let status = town.egress.status();
        assert_eq!(status[0].state(), control::CredentialState::Resting);
        assert_eq!(status[1].state(), control::CredentialState::Ready);
    }
}

#[tokio::test]
async fn a_key_at_its_limit_says_nothing_of_the_others() {
    // Too long to be kept for another key: the ingress hears of the limit.
    let body = vec![b'x'; 3 << 20];
    for (keys, all_rest) in [(&["one", "two"][..], false), (&["one"], true)] {
        let address = fussy(429, "retry-after: 7\r\n", "{}").await;
        let town = Town::new(&url(address), keys).await;
        let refused = town.ask(chat(body.len()), &body).await.unwrap_err();
        assert_eq!(refused.provider_head.unwrap().status, 429);
        assert_eq!(refused.retry_after_ms > 0, all_rest, "{keys:?}");
    }
}

#[tokio::test]
async fn a_key_that_runs_dry_is_used_last_and_shown() {
    // Nobody is told anything before both have been asked for.
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let address = provider(move |_, mut caller: Caller| {
        let both = Arc::clone(&both);
        async move {
        while let Some((head, _)) = caller.request().await {
            let left = if head.contains("secret-one") { "0.25" } else { "40.00" };
            let told = format!(
                r#"{{"is_available":true,"balance_infos":[{{"currency":"CNY","total_balance":"{left}"}}]}}"#
            );
            if head.starts_with("GET /user/balance ") {
                both.wait().await;
                caller.answer(200, JSON, &told).await;
            } else {
                caller.answer(200, JSON, COMPLETION).await;
            }
        }
        }
    })
    .await;
    let town = Town::new(&url(address), &["one", "two"]).await;
    town.egress
        .take_providers(&[row(&url(address), "deepseek")]);
    let told = async {
        while town.egress.status().iter().any(|key| key.balance.is_none()) {
            town.egress.news().await;
        }
    };
    tokio::select! {
        () = told => {}
        () = town.egress.ask_for_balances() => panic!("the egress does not drain"),
    }
    for _ in 0..4 {
        let answered = town.ask(chat(2), b"{}").await.unwrap();
        assert_eq!(answered.head.credential, "two");
    }
    let status = town.egress.status();
    let left = status[0].balance.clone().unwrap();
    assert_eq!((left.micros, left.currency.as_str()), (250_000, "CNY"));
    assert!(status[0].reason.contains("low"), "{}", status[0].reason);
}

#[tokio::test]
async fn when_all_keys_are_limited_the_providers_words_go_up() {
    let address = fussy(
        429,
        "retry-after-ms: 2500\r\nx-should-retry: true\r\n",
        "slow down",
    )
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let refused = town.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(refused.code, "provider_refused");
    assert!(refused.retryable && !refused.untouched);
    // What is left of it when the call is given up.
    assert!((1..=2_500).contains(&refused.retry_after_ms));
    assert_eq!(refused.provider_body, Bytes::from_static(b"slow down"));
    let head = refused.provider_head.unwrap();
    assert_eq!(head.status, 429);
    assert!(value_of(&head.headers, "x-should-retry").is_some());
    // Now nobody is called: the refusal is known beforehand.
    let refused = town.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.untouched),
        ("no_credential", true)
    );
    assert!((1..=2_500).contains(&refused.retry_after_ms));
}

#[tokio::test]
async fn a_key_that_the_provider_refuses_is_put_out_and_its_words_stay_here() {
    let address = fussy(
        401,
        "",
        r#"{"error":"Incorrect API key provided: secr***"}"#,
    )
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let refused = town.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(refused.code, "no_credential");
    assert!(refused.retryable && refused.provider_body.is_empty());
    assert_eq!(
        town.egress.status()[0].state(),
        control::CredentialState::Out
    );
    assert!(town.egress.status()[0].rests_ms > 0);
}

#[tokio::test]
async fn a_model_that_a_key_may_not_use_does_not_put_it_out() {
    let body = r#"{"error":{"code":"model_not_found"}}"#;
    let address = fussy(403, JSON, body).await;
    let town = Town::new(&url(address), &["one"]).await;
    let refused = town.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(refused.provider_body, Bytes::from_static(body.as_bytes()));
    assert_eq!(
        town.egress.status()[0].state(),
        control::CredentialState::Ready
    );
}

#[tokio::test]
async fn a_server_error_is_tried_once_with_another_key() {
    let address = fussy(503, "", "later").await;
    let town = Town::new(&url(address), &["one", "two"]).await;
    for _ in 0..4 {
        let answered = town.ask(chat(2), b"{}").await.unwrap();
        assert_eq!(answered.head.credential, "two");
    }
    assert!(town.egress.status().iter().all(|key| key.rests_ms == 0));
    let alone = Town::new(&url(address), &["one"]).await;
    let refused = alone.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(refused.provider_head.unwrap().status, 503);
    assert_eq!(refused.upstream_attempts, 1);
}
