//! A provider that nobody hears is asked whether it is there.

use std::sync::atomic::AtomicBool;

use vector_edge::egress::provider::Row;

use super::*;

/// Probes until the egress has such a word of its pool.
async fn until(town: &Town, told: impl Fn(&control::PoolStatus) -> bool) -> control::PoolStatus {
    let pool = || town.egress.pools().remove(0);
    let told = async {
        while !told(&pool()) {
            town.egress.news().await;
        }
    };
    tokio::select! {
        () = told => pool(),
        () = town.egress.probe() => panic!("the egress does not drain"),
    }
}

#[tokio::test]
async fn a_silent_provider_is_probed_and_one_that_answers_is_not() {
    let (heads, mut asked) = mpsc::channel(64);
    let well = Arc::new(AtomicBool::new(false));
    let is_well = Arc::clone(&well);
    let address = provider(move |_, mut caller: Caller| {
        let (heads, is_well) = (heads.clone(), Arc::clone(&is_well));
        async move {
            while let Some((head, _)) = caller.request().await {
                let status = if is_well.load(Ordering::Relaxed) {
                    200
                } else {
                    503
                };
                let body = if head.starts_with("GET ") {
                    "{}"
                } else {
                    COMPLETION
                };
                let _full = heads.try_send(head);
                caller.answer(status, JSON, body).await;
            }
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let every = |probe| {
        let row = Row {
            probe: Some(probe),
            ..row(&url(address), "")
        };
        town.egress.take_providers(&[row]);
    };
    every(Duration::from_millis(1));
    let pool = until(&town, |pool| pool.probes_failed > 0).await;
    assert_eq!(pool.probed_ms_ago, None);
    well.store(true, Ordering::Relaxed);
    let pool = until(&town, |pool| pool.probed_ms_ago.is_some()).await;
    assert!(pool.probes_failed == 0 && pool.probe_us > 0, "{pool:?}");
    assert_eq!(pool.in_flight, 0, "the key is free again");
    while let Ok(head) = asked.try_recv() {
        assert!(head.starts_with("GET /v1/models HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("Bearer secret-one"), "{head}");
    }
    assert!(town.told.records.lock().is_empty(), "nobody pays for it");
    every(Duration::from_secs(3_600));
    let chats = async {
        for _ in 0..3 {
            town.ask(chat(2), b"{}").await.unwrap();
        }
    };
    // With its next look, if not before.
    let forgotten = async {
        chats.await;
        while town.egress.pools().remove(0).probed_ms_ago.is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = forgotten => {}
        () = town.egress.probe() => panic!("the egress does not drain"),
    }
    while let Ok(head) = asked.try_recv() {
        assert!(head.starts_with("POST "), "{head}");
    }
}
