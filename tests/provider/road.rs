//! The road of a request: find the row, check the key, read the body, meet a fault, answer.
//!
//! The prepared answers of `bench` leave the road before anything is parsed. A fault is chosen when the
//! model is known, and bends the answer last.

use std::sync::Arc;

use http::header::HeaderMap;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::{Duration, Instant};
use tokio_util::task::TaskTracker;

use crate::answer::Outgoing;
use crate::ask::{self, Ask, Body, Input};
use crate::bench::{self, Plan};
use crate::desk::Desk;
use crate::fault::Kind;
use crate::realtime;
use crate::reply::{Refusal, Reply};
use crate::table::{self, Found, ROWS};

/// Answers one request.
///
/// Cancel safety: dropped half-way (the client left), the mark counts it; nothing else is left behind.
pub(crate) async fn serve(
    desk: Arc<Desk>,
    tasks: TaskTracker,
    request: Request<Incoming>,
) -> Response<Outgoing> {
    let began = Instant::now();
    let found = table::find(request.method().as_str(), request.uri().path());
    let mut mark = desk.stats.enter(found.row);
    if request.method() == http::Method::HEAD {
        // The answer's body will not be asked for.
        mark.finish();
    }
    let reply = match walk(&desk, &tasks, found, request).await {
        Ok(reply) => reply,
        Err(refusal) => refusal.reply(),
    };
    let first = Duration::from_millis(reply.first_ms.unwrap_or(desk.pace.first_ms));
    if !first.is_zero() {
        tokio::time::sleep_until(began + first).await;
    }
    if reply.status == StatusCode::SWITCHING_PROTOCOLS {
        mark.finish();
    }
    reply.send(began, Some(mark))
}

async fn walk(
    desk: &Arc<Desk>,
    tasks: &TaskTracker,
    found: Found,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let row = &ROWS[found.row];
    let caller = if row.open {
        0
    } else {
        authenticate(desk, request.headers())?
    };
    let (head, body) = request.into_parts();
    if row.input == Input::Upgrade {
        desk.stats.remember(&head, 0);
        return realtime::open(desk, tasks, Request::from_parts(head, body));
    }
    let body = ask::read(row.input, &head, body, &desk.stats).await?;
    if let Some(reply) = prepared(found.row, &head.headers, &body, desk) {
        return Ok(reply);
    }
    if !row.open {
        let bytes = if let Body::Raw(bytes) = &body {
            bytes.len()
        } else {
            0
        };
        desk.stats.remember(&head, bytes);
    }
    let ask = Ask {
        caller,
        ids: found.ids,
        head,
        body: ask::parse(body)?,
    };
    let fault = if row.open { None } else { fault(desk, &ask)? };
    match &fault {
        Some(Kind::Hang) => std::future::pending().await,
        Some(Kind::Refuse(refuse)) => Ok(refuse.reply()),
        _ => {
            let mut reply = (row.room)(desk, &ask)?;
            reply.first_ms = ask.tuned("first_ms").or(reply.first_ms);
            Ok(match fault {
                Some(kind) => kind.bend(reply, desk.pace),
                None => reply,
            })
        }
    }
}

/// Answers the models that are there for benchmarks, before the body is parsed.
fn prepared(row: usize, headers: &HeaderMap, body: &Body, desk: &Desk) -> Option<Reply> {
    let Body::Raw(bytes) = body else { return None };
    if row != table::CHAT || desk.faults.armed() || headers.contains_key("x-sample-fault") {
        return None;
    }
    let number = |name: &str| headers.get(name)?.to_str().ok()?.parse().ok();
    let plan = Plan::of(bench::model(bytes)?)?;
    Some(
        plan.tuned(number("x-sample-chunks"), number("x-sample-token-ms"))
            .reply(),
    )
}

/// Finds whose key a request carries.
fn authenticate(desk: &Desk, headers: &HeaderMap) -> Result<usize, Refusal> {
    let key = ask::key(headers);
    let caller = key.and_then(|key| desk.keys.iter().position(|known| known == key));
    desk.stats.key(caller);
    caller.ok_or_else(|| match key {
        None => Refusal::new(
            StatusCode::UNAUTHORIZED,
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer \
             auth (i.e. Authorization: Bearer YOUR_KEY).",
        ),
        Some(_) => Refusal::new(StatusCode::UNAUTHORIZED, "Incorrect API key provided.").code("invalid_api_key"),
    })
}

/// The fault this request meets: its own, or the first rule that fits.
fn fault(desk: &Desk, ask: &Ask) -> Result<Option<Kind>, Refusal> {
    let header = ask
        .head
        .headers
        .get("x-sample-fault")
        .and_then(|value| value.to_str().ok());
    if let Some(text) = header.or_else(|| ask.metadata("sample_fault")) {
        return text
            .parse()
            .map(Some)
            .map_err(|fault| Refusal::bad(format!("x-sample-fault: {fault}")));
    }
    let key = desk.keys.get(ask.caller).map_or("", String::as_str);
    Ok(desk.faults.take(ask.text("model").unwrap_or(""), key))
}
