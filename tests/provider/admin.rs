//! What a tester asks of the provider beside the API: what it is, what it counted, which faults wait.
//!
//! Open to whoever reaches the socket, which is loopback's own; it shows no key beyond its last four characters.

use serde_json::{Value, json};

use crate::answer::Answer;
use crate::ask::Ask;
use crate::desk::Desk;
use crate::reply::{Refusal, Reply};

/// `GET /`: says what this is.
pub(crate) fn about(desk: &Desk, _: &Ask) -> Result<Reply, Refusal> {
    Ok(Reply::json(&json!({
        "name": "vector-sample-provider",
        "about": "A made-up provider with OpenAI's API, for trying and testing Vector Engine. It thinks nothing. Not for production.",
        "api": "/v1",
        "stats": "GET, DELETE /sample/stats",
        "faults": "GET, POST, DELETE /sample/faults; header x-sample-fault: KIND[:ARG]",
        "bytes": "GET /v1/sample/bytes/N",
        "pace": pace(desk),
    }))
    .at_once())
}

pub(crate) fn stats(desk: &Desk, _: &Ask) -> Result<Reply, Refusal> {
    let mut shown = desk.stats.show(&desk.keys);
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("pace".to_owned(), pace(desk));
        shown.insert("objects".to_owned(), desk.shelf.len().into());
    }
    Ok(Reply::json(&shown).at_once())
}

pub(crate) fn reset_stats(desk: &Desk, _: &Ask) -> Result<Reply, Refusal> {
    desk.stats.reset();
    Ok(Reply::json(&json!({"reset": true})).at_once())
}

pub(crate) fn faults(desk: &Desk, _: &Ask) -> Result<Reply, Refusal> {
    Ok(Reply::json(&desk.faults.show()).at_once())
}

pub(crate) fn add_fault(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    desk.faults.add(ask.json())?;
    faults(desk, ask)
}

pub(crate) fn clear_faults(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    desk.faults.clear();
    faults(desk, ask)
}

/// `GET /v1/sample/bytes/N`: N bytes, byte `i` of each block of 65,536 being `i mod 251`.
pub(crate) fn bytes(_: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let count = ask
        .id(0)
        .parse()
        .map_err(|_| Refusal::bad("the number of bytes must be a number"))?;
    let octets = http::HeaderValue::from_static("application/octet-stream");
    Ok(Reply::new(octets, Answer::Fill(count)).at_once())
}

fn pace(desk: &Desk) -> Value {
    json!({"first_ms": desk.pace.first_ms, "token_ms": desk.pace.token_ms, "task_ms": desk.pace.task_ms})
}
