//! Gives a request to one candidate after the other until one answers, and never twice where that could do harm.
//!
//! `retry` has the one table of what may be tried again. A small body leaves in one flush with its OPEN; a larger one is
//! pumped by a task of its own while the answer is awaited, and can be pumped again while nothing of it was forgotten.

mod learn;
mod open;
mod stranded;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use http::request::Parts;
use vector_proto::{
    control::v1::KeyPolicy,
    dialect::operation::Match,
    id::ExchangeId,
    refusal::{Code, Refusal},
    tunnel::v1,
};

use super::{
    Ingress, affinity,
    linger::Waiting,
    load::{InFlight, Lesson},
    peek::Ask,
    pump::Pump,
    queue::{NoTurn, Turn, Visitor},
    record::Record,
    retry::{self, Failed, NO_PATH, Next},
    route::{self, Candidate, Choice, Target, Wish},
    tries::{Round, Tried, Tries, Wait},
    upload::Upload,
};
use crate::{
    limit::Permit,
    tunnel::{Call, Lost, Path, RequestWriter, ResponseReader},
};

/// Tries of one request over all its candidates, until it has to wait for one.
const ATTEMPTS_MAX: u32 = 4;

/// A whole body up to this size leaves together with its OPEN.
const INLINE_BYTES_MAX: u64 = 64 << 10;

/// Why a request gets no answer of a provider's making, or a provider's refusal.
#[derive(Debug)]
pub(super) enum Denied {
    /// In our words.
    Ours(Refusal),
    /// As the provider said it, `provider_head` being set.
    Provider(Box<v1::Refused>),
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self::Ours(refusal)
    }
}

/// An exchange whose answer has begun.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) head: v1::ResponseHead,
    pub(super) response: ResponseReader,
    /// The body's way up, unless it has left.
    pub(super) up: Up,
    /// Its part of an egress's load; none for an answer that is given again.
    pub(super) in_flight: Option<InFlight>,
    /// The answer is kept at its egress, and must read the same whenever it is given.
    pub(super) kept: bool,
}

/// What is left of the request's way up.
#[derive(Debug)]
pub(super) enum Up {
    /// Nothing.
    Done,
    /// A body that still streams. Dropped, it stops.
    Pump(#[expect(dead_code, reason = "stops when it is dropped with the answer")] Box<Pump>),
    /// A WebSocket's frames are to follow.
    Open(RequestWriter),
}

/// Everything that the attempts of one request have in common.
pub(super) struct Sending<'a> {
    pub(super) ingress: &'a Ingress,
    pub(super) exchange: ExchangeId,
    pub(super) policy: &'a KeyPolicy,
    pub(super) permit: &'a Permit,
    pub(super) parts: &'a Parts,
    pub(super) found: &'a Match<'a>,
    pub(super) ask: &'a Ask,
    pub(super) target: &'a Target,
    /// When its time began.
    pub(super) start: Instant,
    /// What the egress's span is to stand below.
    pub(super) traceparent: String,
    /// The answer is to be kept at its egress (`replay`).
    pub(super) keeps: bool,
    /// The client may be back at once if it leaves before its answer begins (`linger`).
    pub(super) lingers: bool,
    /// An egress may have it, or have had it and not said what came of it.
    pub(super) away: AtomicBool,
    /// A provider may have had a byte of it.
    pub(super) touched: AtomicBool,
}

impl Sending<'_> {
    /// Sends until somebody answers.
    ///
    /// Cancel safety: dropped, the running attempt is cancelled at its egress.
    pub(super) async fn send(&self, upload: Upload, record: &mut Record) -> Result<Sent, Denied> {
        let sent = self.within(self.tries(upload, record)).await.flatten();
        let gone = self.away.load(Ordering::Relaxed) || self.touched.load(Ordering::Relaxed);
        if sent.is_err() && !gone {
            self.permit.unsent(self.start, Instant::now());
        }
        sent
    }

    async fn tries(&self, mut upload: Upload, record: &mut Record) -> Result<Sent, Denied> {
        self.ingress.budget.earn();
        let mut tries = Tries {
            affinity: affinity::of(&self.policy.account, upload.kept(), upload.bytes()),
            twice: self.found.operation.idempotent() || retry::client_allows(&self.parts.headers),
            ahead: upload.gone_ahead(),
            upload: Some(upload),
            ..Tries::default()
        };
        let line = self.line();
        let line = line.as_ref();
        let mut turn = None;
        if let Some(line) = line.filter(|line| self.ingress.queue.is_waiting(line)) {
            if !self.has_others() {
                turn = Some(self.wait(line, &mut tries, Wait::default()).await?);
            } else if self.ingress.queue.is_moving(line, Instant::now()) {
                // Another provider may serve it at once; of this one, others have the next turns.
                tries.stand_aside(&self.target.row);
            }
        }
        loop {
            let mut round = self.round(&mut tries, record).await;
            if let Round::Denied(denied) = round {
                round = self.until_reached(denied, &mut tries, record).await;
            }
            let rest = match round {
                Round::Sent(sent) => {
                    if let Some(turn) = turn {
                        turn.passed();
                    }
                    return Ok(*sent);
                }
                Round::Denied(denied) => return Err(denied),
                Round::Rests(rest) => rest,
            };
            let again = turn.is_some();
            if let Some(turn) = turn.take() {
                turn.rests(Instant::now() + rest.unwrap_or_default());
            }
            let (Some(line), true) = (line, tries.can_wait()) else {
                return Err(tries.resting(rest.unwrap_or_default()));
            };
            let wait = Wait { rest, again };
            turn = Some(self.wait(line, &mut tries, wait).await?);
            tries.forget();
        }
    }

    /// Whom others wait for as well: the first provider of the model. A call that only one credential may serve says nothing of
    /// the provider's others.
    fn line(&self) -> Option<Arc<str>> {
        let provider = &self.target.row.upstreams.first()?.provider.name;
        Some(match &*self.target.credential {
            "" => Arc::clone(provider),
            credential => format!("{provider} {credential}").into(),
        })
    }

    /// Whether another provider than the first can serve it, too.
    fn has_others(&self) -> bool {
        let mut providers = self
            .target
            .row
            .upstreams
            .iter()
            .map(|row| &row.provider.name);
        let first = providers.next();
        providers.any(|name| Some(name) != first)
    }

    /// Waits in line until it may be tried again, as long as that is worth it.
    async fn wait<'a>(
        &'a self,
        line: &'a Arc<str>,
        tries: &mut Tries,
        wait: Wait,
    ) -> Result<Turn<'a>, Denied> {
        tries.stay();
        let rest = wait.rest.unwrap_or_default();
        let until = self.start + self.ingress.config.queue.min(self.ingress.config.request);
        let opens = Instant::now() + rest;
        if opens > until && wait.rest.is_some() {
            return Err(tries.resting(rest));
        }
        let visitor = Visitor {
            line,
            account: &self.policy.account,
            bytes: tries.waiting_bytes(),
            again: wait.again,
        };
        let opens = wait.rest.map(|_| opens);
        let turn = self.ingress.queue.wait(visitor, opens, until).await;
        turn.map_err(|NoTurn { opens }| {
            let left = opens.saturating_duration_since(Instant::now());
            if tries.stands_aside() {
                tries.overtaken(left)
            } else {
                tries.resting(left)
            }
        })
    }

    /// Tries one candidate after the other until one answers or none is left.
    async fn round(&self, tries: &mut Tries, record: &mut Record) -> Round {
        let up = |path: &Path| self.ingress.tunnel.path_state(path);
        for _ in 0..ATTEMPTS_MAX {
            let wish = Wish {
                target: self.target,
                tried: &tries.tried,
                model: self.ask.model.as_deref().unwrap_or_default(),
                affinity: tries.affinity,
                ahead: tries.ahead.as_ref().and_then(|going| going.path()),
            };
            let routes = self.ingress.control.routes();
            let choice = route::choose(&routes, wish, &self.ingress.loads, &up);
            drop(routes);
            let candidate = match choice {
                Choice::Take(candidate) => candidate,
                Choice::Rests(rest) => {
                    tries.rests(rest);
                    break;
                }
                Choice::Nobody => break,
            };
            tries.attempt += 1;
            self.note(record, &candidate, tries.attempt);
            let attempt = self.attempt(&candidate, tries).await;
            let failed = match attempt {
                Ok(sent) => return Round::Sent(Box::new(sent)),
                Err(Failed::Lost(_)) if self.keeps => {
                    match Box::pin(self.attach_again(&candidate.path.egress)).await {
                        Ok(sent) => return Round::Sent(Box::new(sent)),
                        Err(failed) => failed,
                    }
                }
                Err(failed) => failed,
            };
            if let Some(denied) = self.judge(tries, candidate, failed) {
                return Round::Denied(denied);
            }
        }
        match tries.rest {
            _ if tries.stands_aside() => Round::Rests(None),
            Some(rest) => Round::Rests(Some(rest)),
            None => Round::Denied(tries.last.take().unwrap_or_else(|| self.nobody())),
        }
    }

    /// What follows from a failed attempt: the end, or what is not to be tried again.
    fn judge(&self, tries: &mut Tries, candidate: Candidate, failed: Failed) -> Option<Denied> {
        if failed.is_back() {
            self.away.store(false, Ordering::Relaxed);
        }
        if !failed.is_untouched() {
            self.touched.store(true, Ordering::Relaxed);
        }
        let mut next = retry::after(&failed, tries.can_send(), tries.twice);
        let free = failed.is_free(tries.attempt);
        let now_us = self.ingress.loads.at(Instant::now());
        if next != Next::Stop && !free && !self.ingress.budget.spend(now_us) {
            next = Next::Stop;
        }
        tracing::debug!(exchange = %self.exchange, tries.attempt, ?failed, ?next, "attempt failed");
        if let Some(rest) = failed.rest() {
            tries.rests(rest);
        }
        let denied = failed.into_denied();
        match next {
            Next::Stop => return Some(denied),
            Next::OtherPath => tries.tried.push(Tried::Path(candidate.path)),
            Next::OtherEgress => {
                let tried = Tried::Egress(candidate.upstream, candidate.path.egress);
                tries.tried.push(tried);
            }
        }
        let weaker = matches!(
            (&tries.last, &denied),
            (Some(Denied::Provider(_)), Denied::Ours(_))
        );
        if !weaker {
            tries.last = Some(denied);
        }
        None
    }

    /// Nobody could even be asked.
    fn nobody(&self) -> Denied {
        let upstreams = &self.target.row.upstreams;
        if upstreams
            .iter()
            .all(|upstream| upstream.provider.egress.is_empty())
        {
            return Refusal::new(
                Code::NoRoute,
                "no node of this network can reach a provider for this request",
            )
            .into();
        }
        Refusal::new(Code::NoPath, NO_PATH).into()
    }

    fn note(&self, record: &mut Record, candidate: &Candidate, attempt: u32) {
        record.attempts = attempt;
        record.egress = Some(Arc::clone(&candidate.path.egress));
        record.upstream = candidate.upstream;
        record.provider = Some(Arc::clone(
            &self.target.row.upstreams[candidate.upstream].provider.name,
        ));
    }

    /// One try, which is none where what went ahead came to nothing.
    async fn attempt(&self, candidate: &Candidate, tries: &mut Tries) -> Result<Sent, Failed> {
        let tried = self.try_once(candidate, tries).await;
        match tried {
            Err(failed) if tries.was_ahead && failed.is_of_ahead() && tries.can_send() => {
                tries.beside += 1;
                Box::pin(self.try_once(candidate, tries)).await
            }
            tried => tried,
        }
    }

    /// Opens the exchange, or goes on with what went ahead.
    async fn call(&self, candidate: &Candidate, tries: &mut Tries) -> Result<Call, Failed> {
        if let Some(going) = tries.ahead_over(&candidate.path) {
            let begun = going.begin(&self.open(candidate, tries));
            tries.was_ahead = begun.is_some();
            match begun {
                Some(call) => return Ok(call),
                None => tries.beside += 1,
            }
        }
        tries.was_ahead = false;
        let open = self.open(candidate, tries);
        let opened = self
            .ingress
            .tunnel
            .open(&candidate.path, self.exchange, &open);
        opened.await.map_err(Failed::Open)
    }

    /// A pumped `upload` is put back before this returns, unless the answer has begun.
    async fn try_once(&self, candidate: &Candidate, tries: &mut Tries) -> Result<Sent, Failed> {
        let began = Instant::now();
        self.away.store(true, Ordering::Relaxed);
        let Call { request, response } = self.call(candidate, tries).await?;
        let mut in_flight = candidate.load.enter(self.ingress.loads.at(began));
        let mut response = Some(response);
        let result = self
            .exchange(&candidate.path, request, &mut response, &mut tries.upload)
            .await;
        let lesson = match &result {
            Ok((head, _)) => Lesson::Answered {
                first_byte: began.elapsed(),
                good: head.status < 400,
            },
            Err(failed) => Lesson::of(failed),
        };
        self.learn(candidate, &mut in_flight, lesson);
        let (head, up) = result?;
        let (key, operation) = (&self.policy.key, self.found.operation);
        let guesses = &self.ingress.guesses;
        guesses.answered(key, operation, &candidate.path);
        Ok(Sent {
            head,
            response: response.ok_or_else(Failed::gone)?,
            up,
            in_flight: Some(in_flight),
            kept: self.keeps,
        })
    }

    async fn exchange(
        &self,
        path: &Path,
        mut request: RequestWriter,
        response: &mut Option<ResponseReader>,
        upload: &mut Option<Upload>,
    ) -> Result<(v1::ResponseHead, Up), Failed> {
        if let (true, Some(response)) = (self.found.operation.websocket, response.as_mut()) {
            request.flush().await.map_err(Failed::Lost)?;
            let head = response.head().await.map_err(Failed::from)?;
            return Ok((head, Up::Open(request)));
        }
        let small = |upload: &&Upload| {
            upload.is_whole() && upload.is_small() && upload.bytes() <= INLINE_BYTES_MAX
        };
        if let Some(upload) = upload.as_ref().filter(small) {
            // What the egress says matters more than that it stopped listening.
            if leave(&mut request, upload.kept()).await.is_ok() {
                drop(request);
            }
            let waiting = Waiting::left(self, path, response, upload.kept());
            return Ok((waiting.head().await.0?, Up::Done));
        }
        let body = upload.take().ok_or_else(Failed::gone)?;
        let pump = Pump::start(&self.ingress.tasks, body, request);
        let waiting = Waiting::pumped(self, path, response, pump);
        Box::pin(Self::pumped(waiting, upload)).await
    }

    /// Waits for the answer of a large body, which goes up meanwhile.
    async fn pumped(
        waiting: Waiting<'_>,
        upload: &mut Option<Upload>,
    ) -> Result<(v1::ResponseHead, Up), Failed> {
        match waiting.head().await {
            (Ok(head), Some(pump)) if !pump.is_done() => {
                pump.settle();
                Ok((head, Up::Pump(Box::new(pump))))
            }
            (Ok(head), _) => Ok((head, Up::Done)),
            (Err(failed), pump) => {
                if let Some(pump) = pump {
                    *upload = pump.reclaim().await;
                }
                Err(failed)
            }
        }
    }
}

async fn leave(request: &mut RequestWriter, chunks: &[Bytes]) -> Result<(), Lost> {
    for chunk in chunks {
        request.data(chunk.clone()).await?;
    }
    request.end().await
}
