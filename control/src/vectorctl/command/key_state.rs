//! Switches a key off or on, and says which ingress nodes have it in force.
//!
//! The replica that makes the change asks the nodes that are connected to it. Those that are connected to other replicas only are
//! asked there, where vectorctl is told of several; what no replica can ask stays named.

use std::time::Instant;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use vector_proto::control::v1 as pb;

use super::{Done, Shown};
use crate::{
    Failure,
    connect::{Client, Proof, addresses, connect},
    json, table,
};

/// Makes the change and shows what became of it.
pub(super) async fn set(control: &str, proof: &Proof, (id, disabled): (String, bool)) -> Done {
    let asked = pb::SetKeyStateRequest {
        id,
        disabled,
        ask_only: false,
    };
    let client = connect(control, proof).await?;
    let mut view = state_set(client, asked.clone()).await?;
    // A control of an older version does not say.
    let mut text = String::new();
    let mut value = json::key(&view);
    if let Some(heard) = &mut view.heard {
        ask_elsewhere(control, proof, (asked, heard)).await;
        value["heard"] = json::key_heard(heard);
        text = format!(": {}", table::key_heard(heard));
    }
    let state = if view.disabled { "off" } else { "on" };
    Ok(Shown::new(
        value,
        format!("key {} is {state}{text}", view.id),
    ))
}

async fn state_set(
    mut client: Client,
    asked: pb::SetKeyStateRequest,
) -> Result<pb::KeyView, Failure> {
    Ok(client.set_key_state(asked).await?.into_inner())
}

/// Asks all replicas at once, until none of the nodes is missing or all have answered. One that does not answer, or says that
/// the key's state is another by now, adds nothing.
async fn ask_elsewhere(
    control: &str,
    proof: &Proof,
    (asked, heard): (pb::SetKeyStateRequest, &mut pb::KeyHeard),
) {
    let (began, took_us) = (Instant::now(), heard.took_us);
    let asked = &pb::SetKeyStateRequest {
        ask_only: true,
        ..asked
    };
    let asking = |url| async move { state_set(connect(url, proof).await?, asked.clone()).await };
    let mut answers: FuturesUnordered<_> = addresses(control).map(asking).collect();
    while !heard.elsewhere.is_empty()
        && let Some(answer) = answers.next().await
    {
        if let Ok(pb::KeyView {
            heard: Some(other), ..
        }) = answer
        {
            add(heard, other);
            let more_us = u64::try_from(began.elapsed().as_micros()).unwrap_or_default();
            heard.took_us = took_us + more_us;
        }
    }
}

/// Puts the nodes that another replica could ask where they belong.
fn add(heard: &mut pb::KeyHeard, other: pb::KeyHeard) {
    for (into, ids) in [
        (&mut heard.confirmed, other.confirmed),
        (&mut heard.silent, other.silent),
        (&mut heard.older, other.older),
    ] {
        let missing = std::mem::take(&mut heard.elsewhere).into_iter();
        let (found, missing): (Vec<_>, Vec<_>) = missing.partition(|id| ids.contains(id));
        heard.elsewhere = missing;
        into.extend(found);
    }
}
