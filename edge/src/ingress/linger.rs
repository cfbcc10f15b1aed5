//! What happens when a client leaves before its answer has begun, although it may be back in a moment.
//!
//! Official SDKs that run out of patience close the connection and ask again. While a request of theirs waits for its head,
//! [`Waiting`] stands by: dropped, it has the exchange adopted at its egress under the request's fingerprint, so that the retry
//! finds it (`replay`), and only then lets go of it. While all goes well this costs nothing. An exchange with an
//! idempotency key runs on anyway; here only the rest of its body is seen off.
//!
//! What goes on without its client still has its place among those that its key may have at once, until it is over: who
//! leaves and asks again could have any number running otherwise.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vector_proto::{
    id::ExchangeId,
    tunnel::v1::{self, ResponseHead},
};

use super::{Ingress, print::Printer, pump::Pump, retry::Failed, send::Sending, upload::Upload};
use crate::{
    limit::Permit,
    tunnel::{Call, Part, Path, ResponseReader, Tunnel},
};

/// How long an exchange goes on with nobody attached. SDKs are back after half a second, 8 s at most.
const WINDOW: Duration = Duration::from_secs(10);

/// Time to have an exchange adopted; after that it is cancelled as any other.
const ADOPTION: Duration = Duration::from_secs(2);

/// Waits for an answer's head on behalf of a client that may leave meanwhile.
pub(super) struct Waiting<'a> {
    sending: &'a Sending<'a>,
    path: &'a Path,
    response: &'a mut Option<ResponseReader>,
    way: Way<'a>,
    /// The head is there, or will never be.
    over: bool,
}

/// How the body goes up.
enum Way<'a> {
    /// It has left.
    Left(&'a [Bytes]),
    /// It is being pumped.
    Pumped(Option<Box<Pump>>),
}

impl<'a> Waiting<'a> {
    /// For a small body, which has left.
    pub(super) fn left(
        sending: &'a Sending<'a>,
        path: &'a Path,
        response: &'a mut Option<ResponseReader>,
        body: &'a [Bytes],
    ) -> Self {
        Self {
            sending,
            path,
            response,
            way: Way::Left(body),
            over: false,
        }
    }

    /// For a large one, which goes up meanwhile.
    pub(super) fn pumped(
        sending: &'a Sending<'a>,
        path: &'a Path,
        response: &'a mut Option<ResponseReader>,
        pump: Pump,
    ) -> Self {
        Self {
            sending,
            path,
            response,
            way: Way::Pumped(Some(Box::new(pump))),
            over: false,
        }
    }

    /// Waits for the head. Gives back the pump, if there is one.
    pub(super) async fn head(mut self) -> (Result<ResponseHead, Failed>, Option<Pump>) {
        let Some(response) = &mut *self.response else {
            return (Err(Failed::gone()), None);
        };
        let head = match &mut self.way {
            Way::Pumped(Some(pump)) => pump.head(response).await,
            _ => response.head().await.map_err(Failed::from),
        };
        self.over = true;
        let pump = match &mut self.way {
            Way::Left(_) => None,
            Way::Pumped(pump) => pump.take().map(|pump| *pump),
        };
        (head, pump)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let sending = self.sending;
        if self.over || !(sending.lingers || sending.keeps) {
            return;
        }
        let Some(response) = self.response.take() else {
            return;
        };
        let body = match &mut self.way {
            Way::Left(body) => Left::Whole(body.to_vec()),
            Way::Pumped(pump) => match pump.take() {
                Some(pump) => Left::Pump(pump),
                None => return,
            },
        };
        let lingering = Lingering {
            exchange: sending.exchange,
            key: sending.policy.key.clone(),
            tunnel: sending.ingress.tunnel.clone(),
            path: self.path.clone(),
            adopt: sending.lingers.then(|| v1::Adopt {
                account: sending.policy.account.clone(),
                exchange: Bytes::copy_from_slice(&sending.exchange.to_bytes()),
                print: Bytes::new(),
                window_ms: u64::try_from(WINDOW.as_millis()).unwrap_or(u64::MAX),
            }),
            printer: Printer::new(sending.policy.key.as_bytes(), sending.parts),
            response,
            watch: Watch {
                permit: sending.permit.hand_over(),
                drain: sending.ingress.drain.clone(),
            },
        };
        let tasks: &TaskTracker = &sending.ingress.tasks;
        tasks.spawn(lingering.run(body));
    }
}

/// What of the body is left to do, and to fingerprint.
enum Left {
    Whole(Vec<Bytes>),
    Pump(Box<Pump>),
}

/// An exchange whose client has left.
struct Lingering {
    exchange: ExchangeId,
    /// Id of the client's key.
    key: String,
    tunnel: Tunnel,
    path: Path,
    /// Set for one that is to be adopted.
    adopt: Option<v1::Adopt>,
    printer: Printer,
    /// Dropped, it cancels the exchange, unless that is kept.
    response: ResponseReader,
    watch: Watch,
}

/// Keeps an eye on what goes on without its client.
struct Watch {
    permit: Permit,
    /// Nobody is counted any more.
    drain: CancellationToken,
}

/// What a kept answer needs once its client has left.
#[derive(Debug)]
pub(super) struct Afterwards {
    tasks: TaskTracker,
    drain: CancellationToken,
}

impl Afterwards {
    pub(super) fn new(ingress: &Ingress) -> Self {
        Self {
            tasks: ingress.tasks.clone(),
            drain: ingress.drain.clone(),
        }
    }

    /// Holds the place of a kept exchange whose client left in the middle of its answer, until that is over. `told`: tokens
    /// that it used at least, unless its end says better.
    pub(super) fn watch(self, response: ResponseReader, permit: Permit, told: u64) {
        let Self { tasks, drain } = self;
        let watch = Watch { permit, drain };
        tasks.spawn(watch.read_on(response, told));
    }
}

impl Watch {
    /// Reads, for nobody, what comes after a head, and counts what was used.
    async fn read_on(self, mut response: ResponseReader, told: u64) {
        let usage = self.drain.run_until_cancelled(async {
            let mut usage = None;
            while let Ok(part) = response.next().await {
                match part {
                    Part::Data(_) => {}
                    Part::Trailers(trailers) => usage = trailers.usage,
                    Part::End => break,
                }
            }
            usage
        });
        let tokens = usage.await.flatten().map_or(told, |usage| {
            usage.input_tokens.saturating_add(usage.output_tokens)
        });
        self.permit.used_tokens(tokens, Instant::now());
    }

    /// As [`Self::read_on`], from an answer's head on.
    async fn read(self, mut response: ResponseReader) {
        let head = self.drain.run_until_cancelled(response.head()).await;
        if let Some(Ok(_)) = head {
            self.read_on(response, 0).await;
        }
    }
}

impl Lingering {
    async fn run(mut self, body: Left) {
        let chunks = match body {
            Left::Whole(chunks) => chunks,
            Left::Pump(pump) => match pump.finished().await {
                Some(upload) if upload.is_whole() && upload.is_small() => upload.kept().to_vec(),
                _ => Vec::new(),
            },
        };
        let left = match self.adopt.take() {
            // It is kept.
            None => self.response,
            Some(_) if chunks.is_empty() => return,
            Some(mut adopt) => {
                chunks.iter().for_each(|chunk| self.printer.feed(chunk));
                adopt.print = Bytes::copy_from_slice(&self.printer.clone().finish());
                let asked = ask_to_adopt(&self.tunnel, &self.path, adopt);
                let adopted = tokio::time::timeout(ADOPTION, asked).await.ok().flatten();
                let known = adopted.is_some();
                tracing::info!(exchange = %self.exchange, key = self.key, adopted = known, "a client left before its answer began");
                // If it came to nothing, the exchange is cancelled as that of any client that leaves.
                drop(self.response);
                let Some(adopted) = adopted else { return };
                adopted
            }
        };
        if self.watch.permit.is_watched() {
            self.watch.read(left).await;
        }
    }
}

/// Has an exchange adopted. What is returned ends with it.
async fn ask_to_adopt(tunnel: &Tunnel, path: &Path, adopt: v1::Adopt) -> Option<ResponseReader> {
    let exchange = ExchangeId::fresh();
    let open = v1::Open {
        exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
        egress: path.egress.as_ref().to_owned(),
        attempt: 1,
        adopt: Some(adopt),
        ..v1::Open::default()
    };
    let Call {
        mut request,
        mut response,
    } = tunnel.open(path, exchange, &open).await.ok()?;
    request.end().await.ok()?;
    response.accepted().await.ok()?;
    Some(response)
}

/// Whether a body can be fingerprinted from memory.
pub(super) fn is_printable(upload: &Upload) -> bool {
    upload.is_whole() && upload.is_small() && upload.bytes() > 0
}
