//! What the network measures of itself: upstreams, paths, and both again and again.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use vector_proto::control::v1 as pb;

use super::{Done, Shown};
use crate::{Failure, args, connect::Client, json, table};

/// Clears a terminal and goes to its corner (ECMA-48).
const CLEAR: &str = "\x1b[2J\x1b[H";

async fn ask(client: &mut Client) -> Result<pb::ShowScoresResponse, Failure> {
    let asked = pb::ShowScoresRequest {};
    Ok(client.show_scores(asked).await?.into_inner())
}

pub(super) async fn upstreams(mut client: Client) -> Done {
    let scores = ask(&mut client).await?;
    Ok(Shown::new(
        json::upstreams_seen(&scores.upstreams),
        table::upstreams_seen(&scores.upstreams),
    ))
}

pub(super) async fn paths(mut client: Client) -> Done {
    let scores = ask(&mut client).await?;
    Ok(Shown::new(
        json::paths(&scores.paths),
        table::paths(&scores.paths),
    ))
}

/// Shows everything anew until interrupted, or so many times.
pub(super) async fn watch(mut client: Client, asked: args::Watch) -> Done {
    let mut ticks = tokio::time::interval(Duration::from_millis(asked.every_ms.max(100)));
    let mut left = asked.times;
    loop {
        ticks.tick().await;
        let scores = ask(&mut client).await?;
        let nodes = client.status(pb::StatusRequest {}).await?.into_inner();
        let text = format!(
            "{}\n\n{}\n\n{}",
            table::status(&nodes),
            table::upstreams_seen(&scores.upstreams),
            table::paths(&scores.paths)
        );
        left = left.saturating_sub(1);
        if asked.times > 0 && left == 0 {
            let mut value = json::status(&nodes);
            value["upstreams"] = json::upstreams_seen(&scores.upstreams);
            value["paths"] = json::paths(&scores.paths);
            return Ok(Shown::new(value, text));
        }
        let mut out = io::stdout().lock();
        let clear = if out.is_terminal() { CLEAR } else { "" };
        if writeln!(out, "{clear}{text}\n").is_err() {
            // Whoever closed the pipe has seen enough.
            return Ok(Shown::new(serde_json::Value::Null, ""));
        }
    }
}
