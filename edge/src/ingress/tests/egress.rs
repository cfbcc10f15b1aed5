//! A made-up egress: what it does stands in the upstream's model name.

use tokio::sync::Notify;
use vector_proto::tunnel::fields::Block;

use super::*;
use crate::tunnel::{Answer, RequestBody};

fn head(content_type: &str, more: &[(&str, &str)]) -> v1::ResponseHead {
    let always = [
        ("content-type", content_type),
        ("x-request-id", "req_upstream"),
    ];
    let headers = always.iter().chain(more);
    let headers: Block = headers
        .map(|(name, value)| (*name, value.as_bytes()))
        .collect();
    v1::ResponseHead {
        status: 200,
        headers: headers.finish(),
        credential: "cred-1".into(),
        upstream_attempts: 1,
        ..v1::ResponseHead::default()
    }
}

/// How the tests hear of an egress, and make it go on.
#[derive(Clone)]
pub(super) struct Strings {
    pub(super) events: mpsc::Sender<String>,
    /// Ends one answer of the model `talk-on`, or one adopted exchange.
    pub(super) release: Arc<Notify>,
}

/// An exchange that is asked for, whenever that was.
enum Asked {
    With(Box<Arrival>),
    After(Box<(RequestBody, Answer)>),
}

impl Asked {
    /// Takes what comes ahead, and what is asked in any case. Nothing if that never comes.
    async fn wait(mut arrival: Arrival) -> Option<(v1::Open, Self)> {
        if !arrival.open.ahead {
            let open = std::mem::take(&mut arrival.open);
            return Some((open, Self::With(Box::new(arrival))));
        }
        let (mut body, answer) = arrival.accept().await.ok()?;
        let open = body.head().await.ok()?;
        Some((open, Self::After(Box::new((body, answer)))))
    }

    async fn refuse(self, refused: v1::Refused) {
        match self {
            Self::With(arrival) => arrival.refuse(refused).await,
            Self::After(taken) => {
                taken.0.leave();
                taken.1.refuse(refused).await;
            }
        }
    }

    async fn accept(self) -> (RequestBody, Answer) {
        match self {
            Self::With(arrival) => arrival.accept().await.unwrap(),
            Self::After(taken) => *taken,
        }
    }
}

/// Serves one exchange and tells what it sees.
pub(super) async fn act(arrival: Arrival, me: Arc<str>, strings: Strings) {
    let Strings { events, release } = &strings;
    if let Some(asked) = arrival.open.replay.clone() {
        return replay(arrival, asked, &me, events).await;
    }
    if arrival.open.adopt.is_some() {
        events.send(format!("{me} adopt")).await.unwrap();
        let (_, mut answer) = arrival.accept().await.unwrap();
        release.notified().await;
        answer.head(&v1::ResponseHead::default());
        return answer.finish(&v1::Trailers::default()).await.unwrap();
    }
    let Some((open, arrival)) = Asked::wait(arrival).await else {
        return;
    };
    let after = matches!(arrival, Asked::After(_));
    let request = open.request.clone().unwrap();
    let name = request.upstream_model.as_str();
    let redundant = if open.redundant { " redundant" } else { "" };
    let (operation, path) = (&request.operation, &request.path);
    let pinned = match request.credential.as_str() {
        "" => String::new(),
        credential => format!(" by {credential} of {}", request.provider),
    };
    let event = format!("{me} {operation} {path} {name}{redundant}{pinned}");
    events.send(event).await.unwrap();
    if let Some(refused) = refusal(name, open.attempt, after) {
        return arrival.refuse(refused).await;
    }
    let (mut body, answer) = arrival.accept().await;
    match name {
        "lost" => drop(answer),
        "socket" | "socket-told" => echo_frames(body, answer, name == "socket-told").await,
        _ if request.websocket => names::converse(body, answer, events).await,
        _ => match read(&mut body).await {
            Some(read) => reply(&request, read, answer, &strings).await,
            None => events.send("upload broke".to_owned()).await.unwrap(),
        },
    }
}

/// What it says instead of answering. `ahead`: the body came ahead of the head.
fn refusal(name: &str, attempt: u32, ahead: bool) -> Option<v1::Refused> {
    let no_credential = v1::Refused {
        code: "no_credential".into(),
        retryable: true,
        ..v1::Refused::default()
    };
    Some(match name {
        "refuse-ahead" if ahead => v1::Refused {
            code: "overloaded".into(),
            untouched: true,
            headless: true,
            ..no_credential
        },
        "refuse-first" if attempt == 1 => no_credential,
        "refuse-untouched" => v1::Refused {
            message: "there is none".into(),
            untouched: true,
            ..no_credential
        },
        "refuse" => rate_limited(),
        "rest" | "rest-long" => v1::Refused {
            untouched: true,
            retry_after_ms: if name == "rest" { 5_000 } else { 3_000_000 },
            ..no_credential
        },
        _ => return None,
    })
}

/// Has every exchange's answer, which is where it begins, and no request's by fingerprint.
async fn replay(arrival: Arrival, asked: v1::Replay, me: &str, events: &mpsc::Sender<String>) {
    let event = format!("{me} replay {} {}", asked.account, asked.from);
    events.send(event).await.unwrap();
    if asked.exchange.is_empty() || asked.account != "acme" {
        let code = "exchange_not_found".into();
        let refused = v1::Refused {
            code,
            ..v1::Refused::default()
        };
        return arrival.refuse(refused).await;
    }
    let (_, mut answer) = arrival.accept().await.unwrap();
    answer.head(&v1::ResponseHead {
        replays: asked.exchange,
        ..head("text/plain", &[])
    });
    answer
        .data(format!("from {}", asked.from).into())
        .await
        .unwrap();
    answer.finish(&v1::Trailers::default()).await.unwrap();
}

/// The body's length and its begin; nothing if it broke off.
async fn read(body: &mut RequestBody) -> Option<(usize, Vec<u8>)> {
    let (mut bytes, mut begin) = (0, Vec::new());
    while let Some(chunk) = body.next().await.ok()? {
        bytes += chunk.len();
        if begin.len() < 1 << 20 {
            begin.extend_from_slice(&chunk);
        }
    }
    Some((bytes, begin))
}

async fn echo_frames(mut body: RequestBody, mut answer: Answer, tells: bool) {
    answer.head(&v1::ResponseHead {
        status: 101,
        ..head("text/plain", &[])
    });
    if tells {
        let message = r#"{"type":"response.done","response":{"usage":{"input_tokens":9}}}"#;
        let frame = [&[0x81, message.len() as u8], message.as_bytes()].concat();
        answer.data(frame.into()).await.unwrap();
    }
    answer.flush().await.unwrap();
    while let Ok(Some(chunk)) = body.next().await {
        answer.data(chunk).await.unwrap();
        answer.flush().await.unwrap();
    }
    answer.finish(&v1::Trailers::default()).await.unwrap();
}

async fn reply(
    request: &v1::RequestHead,
    read: (usize, Vec<u8>),
    mut answer: Answer,
    strings: &Strings,
) {
    let Strings { events, release } = strings;
    let (bytes, begin) = read;
    let length = begin.len().to_string();
    let json = [("content-length", length.as_str()), ("set-cookie", "a=b")];
    let name = request.upstream_model.as_str();
    let (head, parts, broken): (_, Vec<Bytes>, &str) = match name {
        "sse" => {
            let event = |number| Bytes::from(format!("data: {{\"n\":{number}}}\n\n"));
            let parts = vec![
                event(0),
                event(1),
                event(2),
                Bytes::from_static(b"data: [DONE]\n\n"),
            ];
            (head("text/event-stream; charset=utf-8", &[]), parts, "")
        }
        "break" => (
            head("text/event-stream", &[]),
            vec!["data: {\"n\":0}\n\n".into()],
            "provider_broke",
        ),
        "break-open" => (
            head("text/event-stream", &[]),
            vec!["data: {\"n\"".into()],
            "provider_broke",
        ),
        "break-json" => {
            let head = head("application/json", &[("content-length", "10")]);
            (head, vec!["{\"a\":1234}".into()], "provider_broke")
        }
        "count" => (head("text/plain", &[]), vec![bytes.to_string().into()], ""),
        "hang" | "hang-stream" | "talk-stream" => {
            if name != "hang" {
                answer.head(&head("text/event-stream", &[]));
                if name == "talk-stream" {
                    answer.data("data: {}\n\n".into()).await.unwrap();
                }
                answer.flush().await.unwrap();
            } else {
                events.send("hanging".to_owned()).await.unwrap();
            }
            answer.canceller().cancelled().await;
            return events.send("cancelled".to_owned()).await.unwrap();
        }
        "talk-on" => return talk_on(answer, release).await,
        _ => (head("application/json", &json), vec![begin.into()], ""),
    };
    answer.head(&head);
    for part in parts {
        answer.data(part).await.unwrap();
        answer.flush().await.unwrap();
    }
    let made = request.operation == "responses.create";
    let object = if made { "resp_1" } else { "" };
    let trailers = v1::Trailers {
        object: object.into(),
        broken: broken.into(),
        ..v1::Trailers::default()
    };
    answer.finish(&trailers).await.unwrap();
}

/// Begins a stream, and ends it with its usage once it is told to.
async fn talk_on(mut answer: Answer, release: &Notify) {
    answer.head(&head("text/event-stream", &[]));
    answer.data("data: {}\n\n".into()).await.unwrap();
    answer.flush().await.unwrap();
    release.notified().await;
    let usage = v1::Usage {
        input_tokens: 100,
        ..v1::Usage::default()
    };
    let trailers = v1::Trailers {
        usage: Some(usage),
        ..v1::Trailers::default()
    };
    answer.finish(&trailers).await.unwrap();
}

fn rate_limited() -> v1::Refused {
    let said = br#"{"error":{"message":"slow down","type":"requests","param":null,"code":"x"}}"#;
    v1::Refused {
        code: "provider_refused".into(),
        retryable: true,
        provider_head: Some(v1::ResponseHead {
            status: 429,
            ..head("application/json", &[("retry-after", "7")])
        }),
        provider_body: Bytes::from_static(said),
        ..v1::Refused::default()
    }
}
