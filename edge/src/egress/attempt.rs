//! Calls the provider until an answer comes that is worth passing on, or says why none does.
//!
//! A 429 and a refused key lead to the next credential, a 5xx or a failed connection once to another one. A request that a
//! provider may have seen is only sent again where the provider itself said no, or where a second time has no second
//! effect. Whatever is refused upward says truthfully whether a byte of it has left.

use std::{
    future::poll_fn,
    time::{Duration, Instant, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http::{StatusCode, response::Parts};
use vector_proto::{
    dialect::operation::{Body, ModelAt},
    refusal::Code,
    tunnel::v1,
};

use super::{
    Room,
    credential::{NoKey, Permit, Wish},
    provider::{DialError, Live, SendError},
    receive::{Exchange, untouched},
    translate::{BadHead, Draft, response_head},
    watch::{Expired, Watch},
};

/// Calls to a provider in one attempt of an exchange.
const TRIES_MAX: u32 = 4;

/// What is kept of a provider's error to be passed on.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// How long a provider may take to finish the body of an error.
const ERROR_BODY_TIME: Duration = Duration::from_secs(5);

/// An answer that is to be passed on.
#[derive(Debug)]
pub struct Answered {
    /// Its head.
    pub head: Parts,
    /// Its body.
    pub live: Live,
    /// The credential in use.
    pub permit: Permit,
}

/// What may follow a fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    /// Another credential, as long as there are some.
    Credential,
    /// One more try, with another credential if there is one.
    Once,
    /// One more try, but only with another credential.
    OtherOnce,
    /// Nothing here.
    Nothing,
}

/// Why a call gave no answer that is passed on.
#[derive(Debug)]
pub struct Fault {
    code: Code,
    message: String,
    retryable: bool,
    /// A byte of the request may have reached the provider.
    touched: bool,
    rest: Option<Duration>,
    said: Option<(v1::ResponseHead, Bytes)>,
    next: Next,
}

impl Fault {
    fn new(code: Code, message: impl Into<String>, touched: bool, next: Next) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: true,
            touched,
            rest: None,
            said: None,
            next,
        }
    }

    /// No connection was made.
    pub fn of_dial(error: &DialError) -> Self {
        match error {
            DialError::Full(_) => Self::new(
                Code::Overloaded,
                "Too many calls to the provider are running.",
                false,
                Next::Nothing,
            ),
            _ => Self::new(
                Code::ProviderUnreachable,
                "The provider cannot be reached.",
                false,
                Next::Once,
            ),
        }
    }

    /// The connection failed with the request on it.
    pub fn of_send(error: &SendError) -> Self {
        if error.error.is_user() {
            let (code, message) = error.of_upload();
            let mut fault = Self::new(code, message, true, Next::Nothing);
            fault.retryable = false;
            return fault;
        }
        if error.is_unsent() {
            return Self::of_dial(&DialError::TimedOut(Duration::ZERO));
        }
        let message = if error.is_lost() {
            "The provider closed the connection without an answer."
        } else {
            "The provider's answer breaks the rules of HTTP."
        };
        Self::new(Code::ProviderBroke, message, true, Next::Nothing)
    }

    /// The provider's side of a handshake is none.
    pub fn of_handshake(message: &str) -> Self {
        Self::new(Code::ProviderBroke, message, true, Next::Nothing)
    }

    /// It took too long.
    pub fn of_time(expired: Expired, touched: bool) -> Self {
        match expired {
            Expired::Deadline => Self {
                retryable: false,
                ..Self::new(
                    Code::Deadline,
                    "The request ran out of its time.",
                    touched,
                    Next::Nothing,
                )
            },
            Expired::Silence(limit) => Self::new(
                Code::ProviderTimeout,
                format!(
                    "The provider did not answer within {} s.",
                    limit.as_secs_f32()
                ),
                touched,
                Next::Nothing,
            ),
        }
    }

    /// The head cannot be sent. Another version of this software may know how.
    pub fn of_head(error: &BadHead) -> Self {
        Self {
            retryable: false,
            ..Self::new(Code::Protocol, error.to_string(), false, Next::Nothing)
        }
    }

    /// What goes to the ingress.
    pub fn refusal(self, touched_before: bool, tries: u32) -> v1::Refused {
        let rest = self.rest.unwrap_or_default();
        let (provider_head, provider_body) = self.said.unzip();
        v1::Refused {
            code: self.code.to_string(),
            message: self.message,
            retryable: self.retryable,
            retry_after_ms: u64::try_from(rest.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX),
            untouched: !(self.touched || touched_before),
            provider_head,
            provider_body: provider_body.unwrap_or_default(),
            upstream_attempts: tries,
            headless: false,
        }
    }
}

/// Takes a key for the exchange: the one that made its object, or the freest.
fn take_key(room: &Room, exchange: &Exchange, avoid: Option<&Permit>) -> Result<Permit, NoKey> {
    let (provider, now) = (&exchange.provider.row.name, Instant::now());
    let wish = Wish {
        avoid: avoid.map(Permit::key),
        affinity: exchange.head.affinity,
        prompt_bytes: prompt_bytes(exchange),
    };
    match exchange.head.credential.as_str() {
        "" => room.keys.take(provider, wish, now),
        named => room.keys.take_named(provider, named, wish, now),
    }
}

/// Bytes that are read as a prompt, which the exchange's tokens can be judged by. What names no model uses none, and a form's
/// bytes are pictures or sound.
fn prompt_bytes(exchange: &Exchange) -> Option<u64> {
    let whole = exchange.head.body_bytes.unwrap_or_default();
    match exchange.row {
        Some(row) if row.websocket || row.method != "POST" => None,
        Some(row) if row.model == ModelAt::Nowhere => None,
        Some(row) if matches!(row.body, Body::Multipart | Body::Form) => Some(0),
        _ => Some(whole),
    }
}

/// The refusal when no key can be taken.
fn no_key(exchange: &Exchange, why: NoKey) -> v1::Refused {
    let pinned = !exchange.head.credential.is_empty();
    match why {
        NoKey::Unknown if pinned => untouched(
            Code::ObjectUnknown,
            "The provider's account that holds this object is no longer in use.",
            false,
        ),
        NoKey::Unknown => untouched(
            Code::NoCredential,
            "There is no credential for the provider.",
            true,
        ),
        NoKey::Resting(rest) => v1::Refused {
            retry_after_ms: u64::try_from(rest.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX),
            ..untouched(
                Code::NoCredential,
                "Every credential of the provider is at its limit.",
                !pinned,
            )
        },
    }
}

/// Calls the provider. See the module's head.
///
/// Cancel safety: dropping it stops the call at the provider.
pub async fn attempt(
    room: &Room,
    exchange: &mut Exchange,
    watch: &mut Watch,
) -> Result<Answered, v1::Refused> {
    let origin = &exchange.provider.origin;
    let draft = Draft::new(&exchange.head, exchange.row, exchange.id, origin)
        .map_err(|error| Fault::of_head(&error).refusal(false, 0))?;
    let mut turns = Turns::default();
    loop {
        let permit = turns.key(room, exchange).map_err(|refused| *refused)?;
        let fault = match call(exchange, &draft, &permit, watch).await {
            Ok((head, live)) => match judge(exchange, head, live, &permit).await {
                Ok((head, live)) => return Ok(Answered { head, live, permit }),
                Err(fault) => fault,
            },
            Err(fault) => {
                exchange
                    .provider
                    .origin
                    .counters()
                    .answered(0, Duration::ZERO);
                fault
            }
        };
        let repeatable = exchange.upload.is_repeatable();
        let failed = turns.failed(room, exchange, (permit, fault), repeatable);
        failed.map_err(|refused| *refused)?;
    }
}

/// Which keys an exchange has been tried with here, and what may follow.
#[derive(Debug, Default)]
pub struct Turns {
    last: Option<(Permit, Fault)>,
    was_repeated: bool,
    touched: bool,
}

impl Turns {
    /// The key for the next call.
    ///
    /// # Errors
    /// What goes to the ingress when there is none.
    pub fn key(
        &mut self,
        room: &Room,
        exchange: &mut Exchange,
    ) -> Result<Permit, Box<v1::Refused>> {
        let before = self.last.as_ref().map(|(permit, _)| permit);
        let taken = take_key(room, exchange, before);
        let permit = match (taken, self.last.take()) {
            (Ok(permit), None) => permit,
            (Ok(permit), Some((before, fault))) => {
                let same = before.key().name() == permit.key().name();
                if same && fault.next == Next::OtherOnce {
                    return Err(Box::new(fault.refusal(self.touched, exchange.tries)));
                }
                permit
            }
            (Err(why), Some((_, mut fault))) => {
                if let (NoKey::Resting(shortest), Some(_)) = (why, fault.rest) {
                    fault.rest = Some(shortest);
                }
                return Err(Box::new(fault.refusal(self.touched, exchange.tries)));
            }
            (Err(why), None) => return Err(Box::new(no_key(exchange, why))),
        };
        exchange.tries += 1;
        exchange.credential = Some(permit.key().name().clone());
        Ok(permit)
    }

    /// Takes in that a call gave no answer. `repeatable`: the whole request can be sent again.
    ///
    /// # Errors
    /// What goes to the ingress when no other call may follow.
    pub fn failed(
        &mut self,
        room: &Room,
        exchange: &Exchange,
        (permit, mut fault): (Permit, Fault),
        repeatable: bool,
    ) -> Result<(), Box<v1::Refused>> {
        self.touched |= fault.touched;
        if !fault.touched {
            permit.unsent(Instant::now());
        }
        tell(exchange, &permit, &fault);
        let go_on = match fault.next {
            Next::Credential => true,
            Next::Once | Next::OtherOnce => !std::mem::replace(&mut self.was_repeated, true),
            Next::Nothing => false,
        };
        if go_on && exchange.tries < TRIES_MAX && repeatable {
            self.last = Some((permit, fault));
            return Ok(());
        }
        if fault.rest.is_some() && exchange.head.credential.is_empty() {
            // The ingress takes it for what the next call will find, which gets another key if there is one.
            let provider = &exchange.provider.row.name;
            let prompt_bytes = prompt_bytes(exchange);
            fault.rest = room.keys.rests(provider, prompt_bytes, Instant::now());
        }
        Err(Box::new(fault.refusal(self.touched, exchange.tries)))
    }
}

fn tell(exchange: &Exchange, permit: &Permit, fault: &Fault) {
    tracing::info!(
        exchange = %exchange.id,
        provider = %exchange.provider.row.name,
        credential = %permit.key().name(),
        attempt = exchange.attempt,
        try_number = exchange.tries,
        code = %fault.code,
        status = fault.said.as_ref().map_or(0, |(head, _)| head.status),
        "provider gave no answer to pass on"
    );
}

/// One call with one key. A warm connection that turns out to be closed costs another one, not the call.
async fn call(
    exchange: &mut Exchange,
    draft: &Draft,
    permit: &Permit,
    watch: &mut Watch,
) -> Result<(Parts, Live), Fault> {
    let (provider, id) = (&exchange.provider, exchange.id);
    let mut fresh = false;
    loop {
        let upload = &exchange.upload;
        let begun = Instant::now();
        // Twice the limit: waiting for a free connection, and making one, each have it once.
        watch.begin(provider.row.connect * 2, begun);
        let ready = watch
            .within(provider.checkout(fresh), || 0)
            .await
            .map_err(|expired| Fault::of_time(expired, false))?
            .map_err(|error| {
                tracing::info!(exchange = %id, provider = %provider.row.name, %error, "no connection to the provider");
                Fault::of_dial(&error)
            })?;
        let request = draft
            .request(
                &provider.origin,
                &provider.row.kind,
                permit.key(),
                ready.speaks_h2(),
                upload.body(),
            )
            .map_err(|error| Fault::of_head(&error))?;
        watch.begin(provider.row.first_byte, Instant::now());
        let sent = watch.within(ready.send(request), || upload.moved()).await;
        let error = match sent {
            Ok(Ok(answer)) => {
                let status = answer.0.status.as_u16();
                let counters = provider.origin.counters();
                counters.answered(status, begun.elapsed());
                provider.origin.heard(status);
                return Ok(answer);
            }
            Ok(Err(error)) => error,
            Err(expired) => return Err(Fault::of_time(expired, true)),
        };
        let harmless = error.is_unsent() || (error.is_lost() && draft.is_idempotent());
        if !(error.reused && harmless && !fresh && upload.is_repeatable()) {
            return Err(Fault::of_send(&error));
        }
        fresh = true;
    }
}

/// Decides whether an answer is passed on, and tells the credential how it fared.
async fn judge(
    exchange: &Exchange,
    head: Parts,
    live: Live,
    permit: &Permit,
) -> Result<(Parts, Live), Fault> {
    if !is_refusal(head.status) {
        permit.accepted(&head.headers, Instant::now());
        return Ok((head, live));
    }
    let body = read_error(live).await;
    Err(refused(exchange, &head, body, permit))
}

/// Whether a status says that another credential or another egress may do better.
pub fn is_refusal(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401..=403 | 429 | 500..)
}

/// What follows from a provider's refusal, for the credential, too. `body`: what it said.
pub fn refused(exchange: &Exchange, head: &Parts, body: Bytes, permit: &Permit) -> Fault {
    let status = head.status.as_u16();
    let now = Instant::now();
    let mut fault = Fault::new(
        Code::ProviderRefused,
        format!("The provider answered {status}."),
        true,
        Next::OtherOnce,
    );
    match status {
        429 if is_about_money(&body) => {
            permit.refused(402, now);
            fault.code = Code::NoCredential;
            fault.message = "A credential of this network is used up.".into();
            fault.next = Next::Credential;
            return fault;
        }
        429 => {
            let rest = permit.limited(&head.headers, now, SystemTime::now());
            fault.rest = Some(rest);
            fault.next = Next::Credential;
        }
        403 if is_about_the_model(&body) => fault.next = Next::Nothing,
        401..=403 => {
            permit.refused(status, now);
            // Its words are about our key, and may quote it: they are not the client's to read.
            fault.code = Code::NoCredential;
            fault.message = "The provider does not take this network's credential.".into();
            fault.next = Next::Credential;
            return fault;
        }
        _ => {}
    }
    let said = response_head(head, false, permit.key().name(), exchange.tries);
    fault.said = Some((said, body));
    fault
}

/// A 403 that any key would get for this model says nothing about the key, and must not let one client put it out for all.
fn is_about_the_model(body: &[u8]) -> bool {
    let code = |name: &str| memchr::memmem::find(body, name.as_bytes()).is_some();
    code("\"model_not_found\"") || code("\"model_not_available\"") || code("\"unsupported_model\"")
}

/// OpenAI says 429 as well when the money is used up, which no waiting helps.
fn is_about_money(body: &[u8]) -> bool {
    memchr::memmem::find(body, b"\"insufficient_quota\"").is_some()
}

/// Reads what a provider says about an error, up to [`ERROR_BYTES_MAX`].
async fn read_error(mut live: Live) -> Bytes {
    let mut body = BytesMut::new();
    let whole = tokio::time::timeout(ERROR_BODY_TIME, async {
        while let Some(Ok(chunk)) = poll_fn(|cx| live.poll_data(cx)).await {
            let room = ERROR_BYTES_MAX - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                return false;
            }
        }
        true
    })
    .await;
    if whole == Ok(true) && live.is_over() {
        live.finish();
    }
    body.freeze()
}
