//! Requests that were made before: they get the answer that was paid for, and no provider is called twice.
//!
//! A request with an `Idempotency-Key` claims the key at control, body read whole, before anything is sent. Fresh, it is sent
//! to be kept at its egress; taken by the same request, it is given that one's answer; taken by another, it is refused. When
//! control cannot be asked, the request is refused with a 503: who sends a key asks not to pay twice, and nobody else knows
//! whether the key is taken. What an official SDK repeats without a key is looked for at the egress nodes by its fingerprint,
//! for [`LOOK`], and is an ordinary request if it is not found.

mod recall;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderName, request::Parts};
use ring::digest;
use tokio::task::JoinHandle;
use vector_proto::{
    control::v1::{ClaimOutcome, ClaimRequest, ClaimResponse, SettleRequest},
    dialect::operation::Operation,
    id::ExchangeId,
    refusal::{Code, Refusal},
    tunnel::v1,
};

use self::recall::{Recalled, begun};
use super::{
    Ingress, admit,
    linger::is_printable,
    print::Printer,
    record::Record,
    retry::Failed,
    send::{Denied, Sending, Sent},
    upload::Upload,
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");

/// Longest key that is taken.
const KEY_BYTES_MAX: usize = 255;

/// How long a key's answer is kept: as long as control holds the key.
pub(super) const KEPT_MS: u64 = 24 * 3_600 * 1_000;

/// Egress nodes that are asked for one answer at once.
const ASKED_MAX: usize = 16;

/// Longest time that an SDK's retry is looked for before it is taken for a new request.
const LOOK: Duration = Duration::from_millis(500);

/// Longest wait for an egress to say whether it has an answer that must be somewhere.
const RECALL: Duration = Duration::from_secs(3);

/// How long a request whose key is taken looks for the first one, which may be on its way to an egress.
const PATIENCE: Duration = Duration::from_secs(3);

/// Pauses in that search: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(320));

/// What a request's head says about being a retry, or having one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wish<'p> {
    /// Nothing.
    Plain,
    /// An SDK's first try: it may come again.
    First,
    /// An SDK's retry.
    Again,
    /// It has a key.
    Keyed(&'p str),
}

/// Reads a request's head. Only a POST can do harm by being done twice.
pub(super) fn wish<'p>(parts: &'p Parts, operation: &Operation) -> Result<Wish<'p>, Refusal> {
    if operation.method != "POST" {
        return Ok(Wish::Plain);
    }
    let mut keys = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
    if let Some(key) = keys.next() {
        let text = key.to_str().ok().filter(|text| {
            let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
            visible && (1..=KEY_BYTES_MAX).contains(&text.len())
        });
        return match (text, keys.next()) {
            (Some(text), None) => Ok(Wish::Keyed(text)),
            _ => Err(Refusal::new(
                Code::BadIdempotencyKey,
                "Idempotency-Key must be one text of 1 to 255 visible ASCII characters",
            )),
        };
    }
    let count = parts.headers.get(RETRY_COUNT);
    let count = count.and_then(|count| count.to_str().ok()?.parse::<u32>().ok());
    Ok(match count {
        None => Wish::Plain,
        Some(0) => Wish::First,
        Some(_) => Wish::Again,
    })
}

/// What came of taking up the exchange that has a key.
enum TakenUp {
    Sent(Box<Sent>),
    /// For good.
    Denied(Denied),
    /// For now.
    NotYet(Denied),
}

type Claimed = Result<ClaimResponse, Refusal>;

/// A key that is taken for a request of which nothing is known yet. Dropped, because the client has left, it gives the key
/// back if no egress has the request.
struct Unsettled<'a> {
    sending: &'a Sending<'a>,
    claim: Option<ClaimRequest>,
    /// Control has not said yet whether it is taken. Goes on without the client, so that it is known what to give back.
    asking: Option<JoinHandle<Claimed>>,
}

impl<'a> Unsettled<'a> {
    /// Asks control for the key.
    fn claim(sending: &'a Sending<'a>, claim: &ClaimRequest) -> Self {
        let (control, asked) = (sending.ingress.control.clone(), claim.clone());
        let asking = async move { control.claim(asked).await };
        Self {
            sending,
            claim: Some(claim.clone()),
            asking: Some(sending.ingress.tasks.spawn(asking)),
        }
    }

    /// What control says. A key that is not this request's is none to give back.
    async fn answered(&mut self) -> Claimed {
        let answer = match &mut self.asking {
            Some(asking) => asking.await.ok(),
            None => None,
        };
        self.asking = None;
        let claimed = answer.unwrap_or_else(|| Err(refused(ClaimOutcome::Unspecified)));
        if !may_be_ours(&claimed) {
            self.claim = None;
        }
        claimed
    }

    /// Tells control which egress has the request; none if it is nowhere.
    fn settle(&mut self, egress: &str) -> Option<JoinHandle<()>> {
        let claim = self.claim.take()?;
        let ingress = self.sending.ingress;
        let settling = ingress.control.settle(SettleRequest {
            account: claim.account,
            key: claim.key,
            exchange: claim.exchange,
            egress: egress.to_owned(),
        });
        let asking = self.asking.take();
        Some(ingress.tasks.spawn(async move {
            let ours = match asking {
                Some(asking) => asking.await.is_ok_and(|claimed| may_be_ours(&claimed)),
                None => true,
            };
            if ours {
                settling.await;
            }
        }))
    }
}

/// Whether a key may be taken for the request that asked for it: an answer that was lost says nothing.
fn may_be_ours(claimed: &Claimed) -> bool {
    claimed
        .as_ref()
        .map_or(true, |claimed| claimed.outcome() == ClaimOutcome::Fresh)
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        if !self.sending.away.load(Ordering::Relaxed) {
            self.settle("");
        }
    }
}

impl Sending<'_> {
    /// Sends an SDK's retry, unless the request before it still runs.
    ///
    /// Cancel safety: as [`Sending::send`].
    pub(super) async fn send_again(
        &self,
        upload: Upload,
        record: &mut Record,
    ) -> Result<Sent, Denied> {
        if is_printable(&upload) {
            let mut printer = Printer::new(self.policy.key.as_bytes(), self.parts);
            upload.kept().iter().for_each(|chunk| printer.feed(chunk));
            let asked = v1::Replay {
                account: self.policy.account.clone(),
                print: Bytes::copy_from_slice(&printer.finish()),
                ..v1::Replay::default()
            };
            let recalled = self.ingress.ask(&self.egresses(""), &asked, LOOK).await;
            if let Recalled::Found(egress, response) = recalled
                && let Ok(Ok(sent)) = self.within(begun(response)).await
            {
                self.permit.gives_again();
                return Ok(note(record, egress, sent));
            }
        }
        admit::begin(self.permit, self.policy)?;
        self.send(upload, record).await
    }

    /// Sends a request with a key, once.
    ///
    /// Cancel safety: dropped, the exchange runs on and keeps the key; one that no egress has yet gives it back.
    pub(super) async fn send_keyed(
        &self,
        text: &str,
        mut upload: Upload,
        record: &mut Record,
    ) -> Result<Sent, Denied> {
        let mut printer = Printer::new(text.as_bytes(), self.parts);
        upload.read_whole(|chunk| printer.feed(chunk)).await?;
        record.request_bytes = upload.bytes();
        let claim = ClaimRequest {
            account: self.policy.account.clone(),
            key: hash(&self.policy.account, text),
            print: Bytes::copy_from_slice(&printer.finish()),
            exchange: Bytes::copy_from_slice(&self.exchange.to_bytes()),
        };
        let (began, mut pause) = (Instant::now(), PAUSES.0);
        loop {
            let mut unsettled = Unsettled::claim(self, &claim);
            let claimed = unsettled.answered().await?;
            let not_yet = match claimed.outcome() {
                ClaimOutcome::Fresh => return self.send_first(unsettled, upload, record).await,
                ClaimOutcome::Taken => match self.take_up(&claimed, record).await {
                    TakenUp::Sent(sent) => return Ok(*sent),
                    TakenUp::Denied(denied) => return Err(denied),
                    TakenUp::NotYet(denied) => denied,
                },
                outcome => return Err(refused(outcome).into()),
            };
            if began.elapsed() > PATIENCE {
                return Err(not_yet);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Sends the request that has the key, and tells control what became of it.
    async fn send_first(
        &self,
        mut unsettled: Unsettled<'_>,
        upload: Upload,
        record: &mut Record,
    ) -> Result<Sent, Denied> {
        let sent = match admit::begin(self.permit, self.policy) {
            Ok(()) => self.send(upload, record).await,
            Err(refusal) => Err(refusal.into()),
        };
        let egress = match &sent {
            Err(_) if !self.away.load(Ordering::Relaxed) => None,
            _ => record.egress.as_deref(),
        };
        let settling = unsettled.settle(egress.unwrap_or_default());
        if sent.is_err()
            && let Some(settling) = settling
        {
            // The client may be back at once, and finds the key free. The answer of one that was served does not wait for
            // it: without it, a retry asks more nodes.
            let _ended = settling.await;
        }
        sent
    }

    /// Takes up the answer of the exchange that has the key.
    async fn take_up(&self, claimed: &ClaimResponse, record: &mut Record) -> TakenUp {
        let asked = v1::Replay {
            account: self.policy.account.clone(),
            exchange: claimed.exchange.clone(),
            ..v1::Replay::default()
        };
        let known = !claimed.egress.is_empty();
        let egresses = self.egresses(&claimed.egress);
        match self.ingress.ask(&egresses, &asked, RECALL).await {
            Recalled::Found(egress, response) => match self.within(begun(response)).await {
                Ok(Ok(sent)) => {
                    self.permit.gives_again();
                    TakenUp::Sent(Box::new(note(record, egress, sent)))
                }
                // Refused there, it may be running elsewhere by now, or its key be free.
                Ok(Err(failed)) => TakenUp::NotYet(failed.into_denied()),
                Err(denied) => TakenUp::Denied(denied),
            },
            Recalled::Refused(refused) => TakenUp::Denied(Failed::Refused(refused).into_denied()),
            Recalled::Unreachable if known => TakenUp::NotYet(unreachable().into()),
            Recalled::Unknown if known => TakenUp::Denied(lost().into()),
            Recalled::Unknown | Recalled::Unreachable => {
                let age = Duration::from_millis(claimed.age_ms);
                if age > self.ingress.config.request {
                    TakenUp::Denied(lost().into())
                } else {
                    TakenUp::NotYet(busy().into())
                }
            }
        }
    }

    /// Goes back to an egress that may have taken a kept exchange before the way there was lost.
    pub(super) async fn attach_again(&self, egress: &Arc<str>) -> Result<Sent, Failed> {
        let asked = v1::Replay {
            account: self.policy.account.clone(),
            exchange: Bytes::copy_from_slice(&self.exchange.to_bytes()),
            ..v1::Replay::default()
        };
        let egresses = [Arc::clone(egress)];
        match self.ingress.ask(&egresses, &asked, RECALL).await {
            Recalled::Found(_, response) => {
                let mut sent = begun(response).await?;
                // It is the first time that this answer is given.
                sent.head.replays = Bytes::new();
                Ok(sent)
            }
            Recalled::Refused(refused) => Err(Failed::Refused(refused)),
            // It never took the exchange, so another may.
            Recalled::Unknown => Err(Failed::Refused(Box::new(v1::Refused {
                code: Code::NoPath.to_string(),
                message: "the path broke before the request was taken".into(),
                retryable: true,
                untouched: true,
                ..v1::Refused::default()
            }))),
            Recalled::Unreachable => Err(Failed::Client(Refusal::new(
                Code::PathBroken,
                "the path broke before the answer began; the exchange runs on, so ask again with the same key",
            ))),
        }
    }

    /// The egress nodes that may have served this request: the one named, or those that can serve it.
    fn egresses(&self, named: &str) -> Vec<Arc<str>> {
        if !named.is_empty() {
            return vec![named.into()];
        }
        let mut found: Vec<Arc<str>> = Vec::new();
        for egress in self
            .target
            .row
            .upstreams
            .iter()
            .flat_map(|upstream| &*upstream.provider.egress)
        {
            if found.len() < ASKED_MAX && !found.contains(egress) {
                found.push(Arc::clone(egress));
            }
        }
        found
    }

    /// Waits within the request's time.
    pub(super) async fn within<T>(&self, future: impl Future<Output = T>) -> Result<T, Denied> {
        let deadline = self.start + self.ingress.config.request;
        tokio::time::timeout_at(deadline.into(), future)
            .await
            .map_err(|_| {
                Refusal::new(
                    Code::Deadline,
                    "the request ran out of its time before an answer began",
                )
                .into()
            })
    }
}

impl Ingress {
    /// Takes up the answer of an exchange from a byte of its body on, for the account that it belongs to.
    ///
    /// Cancel safety: nothing is left behind; the exchange runs on.
    pub(super) async fn stream_again(
        &self,
        account: &str,
        exchange: &str,
        from: Option<&str>,
        record: &mut Record,
    ) -> Result<Sent, Denied> {
        let exchange: ExchangeId = exchange.parse().map_err(|_| unknown())?;
        let from = from.map_or(Ok(0), str::parse).map_err(|_| {
            Refusal::new(Code::OffsetBeyond, "`from` must be a number of bytes").at("from")
        })?;
        let asked = v1::Replay {
            account: account.to_owned(),
            exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
            from,
            ..v1::Replay::default()
        };
        // Without control, or its word, any egress may have it.
        let named = self.control.recall(account, exchange).await;
        let egresses = match named.as_deref().unwrap_or_default() {
            "" => {
                let routes = self.control.routes();
                let nodes = routes.nodes.iter().filter(|(_, node)| node.egress);
                nodes
                    .map(|(id, _)| Arc::clone(id))
                    .take(ASKED_MAX)
                    .collect()
            }
            named => vec![Arc::from(named)],
        };
        match self.ask(&egresses, &asked, RECALL).await {
            Recalled::Found(egress, response) => {
                let deadline = record.start + self.config.request;
                let head = tokio::time::timeout_at(deadline.into(), begun(response)).await;
                let sent = head.map_err(|_| unreachable())?;
                Ok(note(record, egress, sent.map_err(Failed::into_denied)?))
            }
            Recalled::Refused(refused) => Err(Failed::Refused(refused).into_denied()),
            Recalled::Unknown => Err(unknown().into()),
            Recalled::Unreachable => Err(unreachable().into()),
        }
    }
}

fn note(record: &mut Record, egress: Arc<str>, sent: Sent) -> Sent {
    record.egress = Some(egress);
    record.attempts = 1;
    sent
}

/// Names a key of an account without telling it.
fn hash(account: &str, key: &str) -> Bytes {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&(account.len() as u64).to_le_bytes());
    context.update(account.as_bytes());
    context.update(key.as_bytes());
    Bytes::copy_from_slice(context.finish().as_ref())
}

fn refused(outcome: ClaimOutcome) -> Refusal {
    match outcome {
        ClaimOutcome::Conflict => Refusal::new(
            Code::IdempotencyConflict,
            "This Idempotency-Key was used for another request: keys may only be used again with the same method, path and body",
        ),
        ClaimOutcome::Full => Refusal::new(
            Code::IdempotencyFull,
            "This account has used as many Idempotency-Keys within a day as it may",
        ),
        ClaimOutcome::Unspecified | ClaimOutcome::Fresh | ClaimOutcome::Taken => Refusal::new(
            Code::ControlUnreachable,
            "the network's control plane gave no answer about the Idempotency-Key",
        ),
    }
}

fn lost() -> Refusal {
    Refusal::new(
        Code::AnswerLost,
        "The first request with this Idempotency-Key was executed and its answer is no longer kept. It is not executed again: send it with another key if it shall be",
    )
}

fn busy() -> Refusal {
    Refusal::new(
        Code::IdempotencyBusy,
        "The first request with this Idempotency-Key has not reached a provider yet",
    )
    .after_ms(1_000)
}

fn unreachable() -> Refusal {
    Refusal::new(
        Code::NoPath,
        "the node that keeps this answer cannot be reached at the moment",
    )
    .after_ms(1_000)
}

fn unknown() -> Refusal {
    Refusal::new(
        Code::ExchangeUnknown,
        "No such exchange, or its answer is not kept",
    )
}

#[cfg(test)]
mod tests {
    use http::Request;
    use vector_proto::dialect::operation;

    use super::*;

    #[test]
    fn a_head_says_what_it_wishes() {
        let (long, longest) = ("k".repeat(KEY_BYTES_MAX + 1), "k".repeat(KEY_BYTES_MAX));
        let bad = Err(Code::BadIdempotencyKey);
        for (method, headers, wanted) in [
            ("POST", vec![], Ok(Wish::Plain)),
            (
                "POST",
                vec![("x-stainless-retry-count", "0")],
                Ok(Wish::First),
            ),
            (
                "POST",
                vec![("x-stainless-retry-count", "2")],
                Ok(Wish::Again),
            ),
            (
                "POST",
                vec![("x-stainless-retry-count", "-1")],
                Ok(Wish::Plain),
            ),
            (
                "POST",
                vec![("idempotency-key", "a-1"), ("x-stainless-retry-count", "1")],
                Ok(Wish::Keyed("a-1")),
            ),
            (
                "POST",
                vec![("idempotency-key", &*longest)],
                Ok(Wish::Keyed(&longest)),
            ),
            ("POST", vec![("idempotency-key", &*long)], bad),
            ("POST", vec![("idempotency-key", "")], bad),
            ("POST", vec![("idempotency-key", "a b")], bad),
            (
                "POST",
                vec![("idempotency-key", "a"), ("idempotency-key", "a")],
                bad,
            ),
            (
                "GET",
                vec![("idempotency-key", "a b"), ("x-stainless-retry-count", "1")],
                Ok(Wish::Plain),
            ),
        ] {
            let mut request = Request::builder().method(method).uri("/v1/files");
            for (name, value) in &headers {
                request = request.header(*name, *value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let operation = operation::find(method, "/v1/files").unwrap().operation;
            let wish = wish(&parts, operation).map_err(|refusal| refusal.code);
            assert_eq!(wish, wanted, "{method} {headers:?}");
        }
    }

    #[test]
    fn keys_of_two_accounts_are_two() {
        assert_ne!(hash("a", "k"), hash("b", "k"));
        assert_ne!(hash("a", "bk"), hash("ab", "k"));
    }
}
