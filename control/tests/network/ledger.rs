//! What is kept of exchanges: usage, objects, idempotency keys.

use super::*;

#[tokio::test]
async fn usage_counts_each_exchange_once() {
    let control = Control::start().await;
    let mut egress = control.node(&control.enroll("egress", "e-1").await).await;
    let record = |number: u8| pb::UsageRecord {
        exchange: vec![number; 16].into(),
        account: "acme".to_owned(),
        ended_unix_ms: u64::from(number),
        usage: Some(vector_proto::tunnel::v1::Usage {
            input_tokens: 10,
            ..Default::default()
        }),
        ..pb::UsageRecord::default()
    };
    for _ in 0..2 {
        let batch = pb::RecordRequest {
            epoch: 1,
            seq: 5,
            records: vec![record(1), record(2), record(3)],
        };
        assert_eq!(egress.record(batch).await.unwrap().into_inner().seq, 5);
    }
    let admin = control.admin().await;
    let mut asked = pb::ListUsageRequest {
        page_size: 2,
        ..pb::ListUsageRequest::default()
    };
    let page = admin
        .call(
            asked.clone(),
            |mut c, r| async move { c.list_usage(r).await },
        )
        .await
        .unwrap();
    assert_eq!((page.exchanges, page.total.unwrap().input_tokens), (3, 30));
    assert_eq!(
        (page.records.len(), page.records[0].ended_unix_ms),
        (2, 3),
        "newest first"
    );
    assert_eq!(page.records[0].egress, "e-1", "an egress speaks for itself");
    asked.page_token = page.next_page_token;
    let rest = admin
        .call(asked, |mut c, r| async move { c.list_usage(r).await })
        .await
        .unwrap();
    assert_eq!((rest.records.len(), rest.next_page_token.as_str()), (1, ""));

    control.stop().await;
}

#[tokio::test]
async fn an_object_is_found_by_its_account_even_when_asked_for_early() {
    let control = Control::start().await;
    let mut egress = control.node(&control.enroll("egress", "e-1").await).await;
    let mut ingress = control.node(&control.enroll("ingress", "i-1").await).await;
    let stream = Stream::open(&mut egress, 0).await;
    let object = pb::Object {
        id: "file-1".to_owned(),
        account: "acme".to_owned(),
        provider: "openai".to_owned(),
        ..pb::Object::default()
    };
    let made = pb::ObjectsMade {
        objects: vec![object],
        batch: 0,
    };
    let wanted = pb::LocateRequest {
        account: "acme".to_owned(),
        object: "file-1".to_owned(),
    };
    // Asked before it is told: the answer waits.
    let (located, ()) = tokio::join!(
        ingress.locate(wanted.clone()),
        Stream::send(&stream.up, node_event::Event::ObjectsMade(made))
    );
    assert_eq!(
        located.unwrap().into_inner().object.unwrap().provider,
        "openai"
    );
    let others = pb::LocateRequest {
        account: "other".to_owned(),
        ..wanted
    };
    assert!(!ingress.locate(others).await.unwrap().into_inner().found);
    control.stop().await;
}

#[tokio::test]
async fn neither_absurd_items_nor_trouble_of_the_ledger_end_a_nodes_stream() {
    let control = Control::start().await;
    let mut egress = control.node(&control.enroll("egress", "e-1").await).await;
    let mut ingress = control.node(&control.enroll("ingress", "i-1").await).await;
    let mut stream = Stream::open(&mut egress, 0).await;
    let object = |id: &str| pb::Object {
        id: id.to_owned(),
        account: "acme".to_owned(),
        ..pb::Object::default()
    };
    let tell = async |stream: &mut Stream, batch: u64, objects: Vec<pb::Object>| {
        let made = pb::ObjectsMade { objects, batch };
        Stream::send(&stream.up, node_event::Event::ObjectsMade(made)).await;
        stream
            .until(|event| match event {
                Event::ObjectsAnswered(answer) => Some(answer),
                _ => None,
            })
            .await
    };
    let mixed = vec![object("file-1"), object(""), object("file-2")];
    let answer = tell(&mut stream, 1, mixed).await;
    assert_eq!((answer.batch, answer.later), (1, false));
    assert_eq!(answer.refused.len(), 1);
    assert_eq!(answer.refused[0].at, 1);
    let wanted = pb::LocateRequest {
        account: "acme".to_owned(),
        object: "file-2".to_owned(),
    };
    let located = ingress.locate(wanted).await.unwrap().into_inner();
    assert!(located.found, "the good ones of a batch are kept");

    // The ledger's file is in other hands, and its tables are gone.
    let path = control.dir.path().join("ledger.sqlite");
    let books = rusqlite::Connection::open(path).unwrap();
    books
        .execute_batch("ALTER TABLE objects RENAME TO elsewhere")
        .unwrap();
    let answer = tell(&mut stream, 2, vec![object("file-3")]).await;
    assert_eq!((answer.batch, answer.later), (2, true));
    books
        .execute_batch("ALTER TABLE elsewhere RENAME TO objects")
        .unwrap();
    let answer = tell(&mut stream, 2, vec![object("file-3")]).await;
    assert_eq!(
        (answer.batch, answer.later),
        (2, false),
        "over the same stream"
    );

    let absurd = pb::UsageRecord {
        exchange: vec![1; 15].into(),
        ..pb::UsageRecord::default()
    };
    let good = pb::UsageRecord {
        exchange: vec![1; 16].into(),
        ..pb::UsageRecord::default()
    };
    let batch = pb::RecordRequest {
        epoch: 1,
        seq: 1,
        records: vec![absurd, good],
    };
    let answer = egress.record(batch).await.unwrap().into_inner();
    assert_eq!((answer.refused.len(), answer.refused[0].at), (1, 0));
    control.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_is_one_exchanges_whichever_ingress_asks_and_after_a_restart() {
    let control = Control::start().await;
    let mut egress = control.node(&control.enroll("egress", "e-1").await).await;
    let mut ingress = control.node(&control.enroll("ingress", "i-1").await).await;
    let second = control.enroll("ingress", "i-2").await;
    let mut other = control.node(&second).await;
    let asked = |exchange: u8, print: u8| pb::ClaimRequest {
        account: "acme".to_owned(),
        key: vec![7; 32].into(),
        print: vec![print; 32].into(),
        exchange: vec![exchange; 16].into(),
    };
    let refused = egress.claim(asked(1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let short = pb::ClaimRequest {
        print: vec![1; 31].into(),
        ..asked(1, 1)
    };
    let refused = ingress.claim(short).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let first = ingress.claim(asked(1, 1)).await.unwrap().into_inner();
    assert_eq!(first.outcome(), pb::ClaimOutcome::Fresh);
    let settled = pb::SettleRequest {
        account: "acme".to_owned(),
        key: vec![7; 32].into(),
        exchange: vec![1; 16].into(),
        egress: "e-1".to_owned(),
    };
    ingress.settle(settled).await.unwrap();
    let again = other.claim(asked(2, 1)).await.unwrap().into_inner();
    assert_eq!(again.outcome(), pb::ClaimOutcome::Taken);
    assert_eq!(
        (again.exchange.as_ref(), again.egress.as_str()),
        (&[1; 16][..], "e-1")
    );
    let another = other.claim(asked(2, 9)).await.unwrap().into_inner();
    assert_eq!(another.outcome(), pb::ClaimOutcome::Conflict);

    let control = Control::start_in(control.stop().await).await;
    let mut ingress = control.node(&second).await;
    let recalled = |account: &str| pb::RecallRequest {
        account: account.to_owned(),
        exchange: vec![1; 16].into(),
    };
    let found = ingress.recall(recalled("acme")).await.unwrap().into_inner();
    assert_eq!((found.found, found.egress.as_str()), (true, "e-1"));
    let foreign = ingress.recall(recalled("other")).await.unwrap();
    assert!(!foreign.into_inner().found);
    control.stop().await;
}
