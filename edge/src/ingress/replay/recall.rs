//! Asks egress nodes whether they keep an answer: all that may at once, and the first that has it gives it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use vector_proto::{id::ExchangeId, refusal::Code, tunnel::v1};

use crate::{
    ingress::{
        Ingress,
        retry::Failed,
        send::{Sent, Up},
    },
    tunnel::{Call, Failure, Path, ResponseReader},
};

/// What came of asking for a kept answer.
#[derive(Debug)]
pub(in crate::ingress) enum Recalled {
    /// It comes from this egress.
    Found(Arc<str>, Box<ResponseReader>),
    /// It is there, and is not given.
    Refused(Box<v1::Refused>),
    /// Nobody has it.
    Unknown,
    /// Nobody who was heard has it.
    Unreachable,
}

impl Ingress {
    /// Asks egress nodes for a kept answer, all at once.
    pub(in crate::ingress) async fn ask(
        &self,
        egresses: &[Arc<str>],
        asked: &v1::Replay,
        within: Duration,
    ) -> Recalled {
        let mut answers: FuturesUnordered<_> = egresses
            .iter()
            .map(|egress| async move {
                let asked = self.ask_one(egress, asked.clone());
                let answer = tokio::time::timeout(within, asked).await;
                (egress, answer.unwrap_or(Recalled::Unreachable))
            })
            .collect();
        let mut outcome = if answers.is_empty() {
            Recalled::Unreachable
        } else {
            Recalled::Unknown
        };
        while let Some((_, answer)) = answers.next().await {
            match answer {
                Recalled::Found(..) | Recalled::Refused(_) => return answer,
                Recalled::Unreachable => outcome = answer,
                Recalled::Unknown => {}
            }
        }
        outcome
    }

    async fn ask_one(&self, egress: &Arc<str>, asked: v1::Replay) -> Recalled {
        let Some(path) = self.way(egress) else {
            return Recalled::Unreachable;
        };
        let exchange = ExchangeId::fresh();
        let open = v1::Open {
            exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
            egress: egress.as_ref().to_owned(),
            attempt: 1,
            replay: Some(asked),
            ..v1::Open::default()
        };
        let Ok(Call {
            mut request,
            mut response,
        }) = self.tunnel.open(&path, exchange, &open).await
        else {
            return Recalled::Unreachable;
        };
        if request.end().await.is_ok() {
            drop(request);
        }
        match response.accepted().await {
            Ok(()) => Recalled::Found(Arc::clone(egress), Box::new(response)),
            Err(Failure::Refused(refused)) if is_unknown(&refused) => Recalled::Unknown,
            Err(Failure::Refused(refused)) => Recalled::Refused(refused),
            Err(Failure::Lost(_)) => Recalled::Unreachable,
        }
    }

    /// A path to an egress that is up. One that drains still gives what it keeps.
    fn way(&self, egress: &Arc<str>) -> Option<Path> {
        let routes = self.control.routes();
        routes.paths(egress).iter().find_map(|row| {
            let path = Path {
                egress: Arc::clone(egress),
                relay: row.relay.clone(),
            };
            self.tunnel.reaches(&path).then_some(path)
        })
    }
}

/// Waits for the head of an answer that is given again.
pub(in crate::ingress) async fn begun(mut response: Box<ResponseReader>) -> Result<Sent, Failed> {
    let head = response.head().await.map_err(Failed::from)?;
    Ok(Sent {
        head,
        response: *response,
        up: Up::Done,
        in_flight: None,
        kept: true,
    })
}

fn is_unknown(refused: &v1::Refused) -> bool {
    refused.code.parse() == Ok(Code::ExchangeUnknown)
}
