//! How answers end: whole, cut, refused, or out of time. A cut one never looks whole.

use super::*;

async fn answering(answer: impl Into<String>) -> Town {
    let answer: Arc<str> = answer.into().into();
    let address = provider(move |_, mut caller: Caller| {
        let answer = Arc::clone(&answer);
        async move {
            caller.request().await;
            caller.say(&answer).await;
        }
    })
    .await;
    Town::new(&url(address), &["one"]).await
}

#[tokio::test]
async fn a_cut_answer_never_ends_cleanly() {
    let short = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
    let unended = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n3\r\nx\n\n\r\n";
    let no_mark = concat!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":null}]}\n\n",
    );
    let unclosed =
        "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"id\":\"c\",\"usage\":{";
    for (answer, why) in [
        (unclosed, "cut"),
        (short, "the provider's connection broke off"),
        (unended, "the provider's connection broke off"),
        (no_mark, "cut"),
    ] {
        let town = answering(answer).await;
        let answered = town.ask(chat(2), b"{}").await.unwrap();
        assert_eq!(answered.trailers.broken, why);
        let record = town.told.record().await;
        assert_eq!((record.outcome.as_str(), record.status), ("broken", 200));
    }
    let marked = concat!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        "data: {\"id\":\"c\",\"choices\":[]}\n\ndata: [DONE]\n\n",
    );
    let closed =
        "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"id\":\"c\",\"usage\":{}}";
    let nonsense = "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n<html>";
    for answer in [marked, closed, nonsense] {
        let answered = answering(answer).await.ask(chat(2), b"{}").await.unwrap();
        assert_eq!(answered.trailers.broken, "", "{answer}");
    }
}

#[tokio::test]
async fn a_stream_that_ends_with_its_connection_must_say_that_it_is_whole() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    for (operation, events, why) in [
        (
            "images.generate",
            "data: {\"type\":\"image_generation.partial_image\"}\n\n",
            "cut",
        ),
        (
            "images.generate",
            "data: {\"type\":\"image_generation.completed\"}\n\n",
            "",
        ),
        ("fine_tuning.jobs.list_events", "data: {}\n\n", ""),
        ("fine_tuning.jobs.list_events", "data: {}\n\ndata: {", "cut"),
    ] {
        let town = answering(format!("{head}{events}")).await;
        let request = v1::RequestHead {
            operation: operation.into(),
            ..chat(2)
        };
        let answered = town.ask(request, b"{}").await.unwrap();
        assert_eq!(answered.trailers.broken, why, "{operation} {events}");
    }
}

#[tokio::test]
async fn garbage_and_silence_are_refused_with_their_own_words() {
    let refused = answering("SMTP ready\r\n\r\n")
        .await
        .ask(chat(2), b"{}")
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.untouched),
        ("provider_broke", false)
    );
    let refused = answering("").await.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.retryable),
        ("provider_broke", true)
    );
    let nobody = Town::new("http://127.0.0.1:1/v1", &["one"]).await;
    let refused = nobody.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.untouched),
        ("provider_unreachable", true)
    );
}

#[tokio::test]
async fn the_deadline_bounds_the_whole_exchange() {
    let address = provider(|_, mut caller: Caller| async move {
        caller.request().await;
        caller.request().await;
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let open = v1::Open {
        request: Some(chat(2)),
        deadline_ms: 50,
        ..v1::Open::default()
    };
    let mut call = town.open(ExchangeId::fresh(), open).await;
    call.request.data(Bytes::from_static(b"{}")).await.unwrap();
    call.request.end().await.unwrap();
    let refused = read(&mut call).await.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.retryable),
        ("deadline_exceeded", false)
    );
}
