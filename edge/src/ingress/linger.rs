//! What happens when a client leaves before its answer has begun, although it may be back in a moment.
//!
//! Official SDKs that run out of patience close the connection and ask again. While a request of theirs waits for its head,
//! [`Waiting`] stands by: dropped, it has the exchange adopted at its egress under the request's fingerprint, so that the retry
//! finds it (`replay`), and only then lets go of it. While all goes well this costs nothing. An exchange with an
//! idempotency key runs on anyway; here only the rest of its body is seen off.

use std::time::Duration;

use bytes::Bytes;
use tokio_util::task::TaskTracker;
use vector_proto::{
    id::ExchangeId,
    tunnel::v1::{self, ResponseHead},
};

use super::{print::Printer, pump::Pump, retry::Failed, send::Sending, upload::Upload};
use crate::tunnel::{Call, Path, ResponseReader, Tunnel};

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
        if let Some(mut adopt) = self.adopt.take().filter(|_| !chunks.is_empty()) {
            chunks.iter().for_each(|chunk| self.printer.feed(chunk));
            adopt.print = Bytes::copy_from_slice(&self.printer.clone().finish());
            // If it comes to nothing, the exchange is cancelled as that of any client that leaves.
            let asked = ask_to_adopt(&self.tunnel, &self.path, adopt);
            let adopted = tokio::time::timeout(ADOPTION, asked).await == Ok(Some(()));
            tracing::info!(exchange = %self.exchange, key = self.key, adopted, "a client left before its answer began");
        }
        drop(self.response);
    }
}

async fn ask_to_adopt(tunnel: &Tunnel, path: &Path, adopt: v1::Adopt) -> Option<()> {
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
    response.accepted().await.ok()
}

/// Whether a body can be fingerprinted from memory.
pub(super) fn is_printable(upload: &Upload) -> bool {
    upload.is_whole() && upload.is_small() && upload.bytes() > 0
}
