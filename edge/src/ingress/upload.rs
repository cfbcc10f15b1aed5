//! A request's body on its way: what came is remembered as far as the limits allow, the rest streams through.
//!
//! The first [`MEMORY_BYTES_MAX`] stay in memory as the chunks they came in, the next `spool_bytes_max` go to disk, and what
//! lies beyond is passed on and forgotten, after which no second candidate can be given the body. Memory is bounded whatever
//! the body's size: the client is read only as fast as the tunnel takes. What the body's begin was taken for is looked after
//! to its end (`scan`): where that turns out wrong the body breaks off, and no provider gets a whole one.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use vector_proto::{
    id::ExchangeId,
    refusal::{Code, Refusal},
};

use super::{
    ahead::{Going, LARGE_BYTES},
    scan::Scanner,
    spool::Spool,
};
use crate::tunnel::RequestWriter;

/// What of a body is kept in memory for another candidate.
///
/// 1 MiB x 1,000 uploads at once = 1 GiB at the worst; 64 KiB beyond it count for the chunks' own bookkeeping.
pub(super) const MEMORY_BYTES_MAX: usize = 1 << 20;

/// What one kept chunk costs beside its bytes.
const CHUNK_BYTES: usize = 64;

/// The least that a body has to bring on the average, in bytes a second, and what it has for a start. One byte now and then
/// is no pause that could be too long, and would hold a seat for weeks; the slowest mobile line brings ten times this.
const PACE_BYTES: u64 = 1 << 10;
const HEAD_START: Duration = Duration::from_secs(30);

/// How much longer a client may be waited for that has sent so much, and was waited for so long.
fn patience(bytes: u64, waited: Duration) -> Duration {
    let earned = Duration::from_millis(bytes.saturating_mul(1000) / PACE_BYTES);
    (HEAD_START + earned).saturating_sub(waited)
}

/// What of a body's size and pace is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Largest body.
    pub(super) bytes_max: u64,
    /// Largest part of it on disk; 0 for none.
    pub(super) spool_bytes_max: u64,
    /// Longest wait for the client's next bytes.
    pub(super) idle: Duration,
    /// When the body has to be on its way: nothing else minds the request's time before that.
    pub(super) until: Instant,
}

/// Why a body does not go on.
#[derive(Debug)]
pub(super) enum Fault {
    /// The client's doing: it is told.
    Client(Refusal),
    /// The attempt is over; its answer says why.
    Attempt,
}

/// A body on its way. See the module's head.
#[derive(Debug)]
pub(super) struct Upload {
    exchange: ExchangeId,
    limits: Limits,
    /// What came first.
    kept: Vec<Bytes>,
    kept_cost: usize,
    /// What came after that.
    spool: Option<Spool>,
    /// What has not come yet; `None` once the body is whole.
    live: Option<Incoming>,
    /// All that came so far.
    bytes: u64,
    /// How long the client was waited for, in all. What the tunnel held up does not count.
    waited: Duration,
    /// It is on its way.
    leaves: bool,
    /// Something that came was not kept.
    forgot: bool,
    /// Reads what comes once it is known where the body goes.
    scanner: Option<Scanner>,
    /// What goes ahead until that is known.
    going: Option<Box<Going>>,
}

impl Upload {
    /// A body of which nothing was read.
    ///
    /// # Errors
    /// When the client says itself that it is too large.
    pub(super) fn new(
        exchange: ExchangeId,
        body: Incoming,
        limits: Limits,
    ) -> Result<Self, Refusal> {
        if body.size_hint().lower() > limits.bytes_max {
            return Err(too_large(limits.bytes_max));
        }
        let live = (!body.is_end_stream()).then_some(body);
        Ok(Self {
            exchange,
            limits,
            kept: Vec::new(),
            kept_cost: 0,
            spool: None,
            live,
            bytes: 0,
            waited: Duration::ZERO,
            leaves: false,
            forgot: false,
            scanner: None,
            going: None,
        })
    }

    /// Bytes that came so far.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether all of it has come.
    pub(super) const fn is_whole(&self) -> bool {
        self.live.is_none()
    }

    /// Whether a new attempt can be given the body from its first byte.
    pub(super) const fn is_replayable(&self) -> bool {
        !self.forgot
    }

    /// Length of the whole body, if that is known.
    pub(super) fn total(&self) -> Option<u64> {
        match &self.live {
            None => Some(self.bytes),
            Some(body) => body.size_hint().exact().map(|left| left + self.bytes),
        }
    }

    /// The chunks in memory, which are all of it while [`Self::is_whole`] and [`Self::is_small`].
    pub(super) fn kept(&self) -> &[Bytes] {
        &self.kept
    }

    /// Whether no part of it is on disk or forgotten.
    pub(super) const fn is_small(&self) -> bool {
        self.spool.is_none() && !self.forgot
    }

    /// The next chunk from the client, kept if there is room; `None` at the body's end.
    ///
    /// Cancel safety: a chunk that came is never lost, but dropped while it is written to disk, the body cannot be sent again.
    pub(super) async fn more(&mut self) -> Result<Option<Bytes>, Refusal> {
        let received = match self.going.take() {
            None => self.receive().await?,
            Some(mut going) => {
                let received = Box::pin(going.beside(self.receive())).await?;
                self.going = Some(going);
                received
            }
        };
        let Some(chunk) = received else {
            self.scan(&[])?;
            return Ok(None);
        };
        self.scan(&chunk)?;
        self.keep(&chunk).await;
        if let Some(going) = &mut self.going {
            let in_memory = self.spool.is_none() && !self.forgot;
            let before = (in_memory && self.live.is_some()).then_some(&self.kept[..]);
            let bytes = self
                .live
                .as_ref()
                .map_or(0, |body| body.size_hint().lower());
            let large = bytes + self.bytes >= LARGE_BYTES;
            Box::pin(going.came(before, &chunk, large)).await;
        }
        Ok(Some(chunk))
    }

    /// What comes goes ahead, until [`Self::gone_ahead`] says where to.
    pub(super) fn goes_ahead(&mut self, going: Box<Going>) {
        self.going = Some(going);
    }

    /// What went ahead.
    pub(super) const fn gone_ahead(&mut self) -> Option<Box<Going>> {
        self.going.take()
    }

    /// What was read so far is acted on; `scanner`, which read that, reads the rest as it comes.
    pub(super) fn scan_on(&mut self, mut scanner: Scanner) {
        if !self.is_whole() && !scanner.is_blind() {
            scanner.settle();
            self.scanner = Some(scanner);
        }
    }

    /// Judges bytes before anybody else gets them.
    fn scan(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        let Some(scanner) = &mut self.scanner else {
            return Ok(());
        };
        let mut judged = scanner.feed(chunk);
        if self.live.is_none() {
            judged = judged.and_then(|()| scanner.finish());
        }
        if judged.is_err() {
            // Nobody is given what was kept of it as if that were all.
            self.forgot = true;
        }
        judged
    }

    /// Reads all of it and shows it, from its first byte. It can then be sent as if it had not been read.
    ///
    /// # Errors
    /// When it breaks off, or is larger than may be kept.
    pub(super) async fn read_whole(&mut self, mut show: impl FnMut(&[u8])) -> Result<(), Refusal> {
        while self.more().await?.is_some() {
            if self.forgot {
                let most = self.limits.spool_bytes_max + MEMORY_BYTES_MAX as u64;
                let message = format!(
                    "a request with an Idempotency-Key may have about {most} bytes, since its body is read whole first"
                );
                return Err(Refusal::new(Code::BodyTooLarge, message));
            }
        }
        self.kept.iter().for_each(|chunk| show(chunk));
        let unreadable = |error: std::io::Error| match spool_unreadable(self.exchange, &error) {
            Fault::Client(refusal) => refusal,
            Fault::Attempt => Refusal::new(Code::Overloaded, "the request's body is lost"),
        };
        if let Some(spool) = &mut self.spool {
            spool.rewind().await.map_err(unreadable)?;
            loop {
                let piece = spool.next().await.map_err(unreadable)?;
                if piece.is_empty() {
                    break;
                }
                show(&piece);
            }
        }
        Ok(())
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, Refusal> {
        while let Some(body) = &mut self.live {
            let began = Instant::now();
            let (idle, pace) = (self.limits.idle, patience(self.bytes, self.waited));
            let time = match self.leaves {
                true => Duration::MAX,
                false => self.limits.until.saturating_duration_since(began),
            };
            let most = idle.min(pace).min(time);
            let Ok(frame) = tokio::time::timeout(most, body.frame()).await else {
                let message = if most == idle {
                    format!(
                        "no byte of the request's body came for {} ms",
                        idle.as_millis()
                    )
                } else if most == pace {
                    format!(
                        "the request's body comes too slowly: {} bytes a second are the least, after {} s for a start",
                        PACE_BYTES,
                        HEAD_START.as_secs()
                    )
                } else {
                    "the request's body did not come within the time that the request has"
                        .to_owned()
                };
                return Err(Refusal::new(Code::BodyTooSlow, message));
            };
            self.waited += began.elapsed();
            let Some(frame) = frame else {
                self.live = None;
                break;
            };
            let frame = frame.map_err(|_| {
                Refusal::new(
                    Code::BadBody,
                    "the request's body broke off or is framed wrongly",
                )
            })?;
            // Trailers of a request mean nothing to any provider.
            let Ok(chunk) = frame.into_data() else {
                continue;
            };
            if chunk.is_empty() {
                continue;
            }
            self.bytes += chunk.len() as u64;
            if self.bytes > self.limits.bytes_max {
                return Err(too_large(self.limits.bytes_max));
            }
            if body.is_end_stream() {
                self.live = None;
            }
            return Ok(Some(chunk));
        }
        Ok(None)
    }

    async fn keep(&mut self, chunk: &Bytes) {
        if self.forgot {
            return;
        }
        let cost = self.kept_cost + chunk.len() + CHUNK_BYTES;
        if self.spool.is_none() && cost <= MEMORY_BYTES_MAX {
            self.kept_cost = cost;
            self.kept.push(chunk.clone());
            return;
        }
        // Stays so if this future is dropped on the way.
        self.forgot = true;
        if self.spool.is_none() && self.limits.spool_bytes_max > 0 {
            self.spool = Spool::new()
                .inspect_err(|error| {
                    tracing::warn!(exchange = %self.exchange, %error, "no spool for a request's body");
                })
                .ok();
        }
        let Some(spool) = &mut self.spool else { return };
        if spool.bytes() + chunk.len() as u64 > self.limits.spool_bytes_max {
            return;
        }
        match spool.push(chunk).await {
            Ok(()) => self.forgot = false,
            Err(error) => {
                tracing::warn!(exchange = %self.exchange, %error, "the spool of a request's body failed");
            }
        }
    }

    /// Forgets what was kept, since the answer has begun and nothing is sent again.
    fn settle(&mut self) {
        if !self.forgot {
            self.forgot = true;
            self.kept = Vec::new();
            self.spool = None;
        }
    }

    /// Sends the whole body: what is kept, then what comes. Once `settled`, nothing more is kept.
    ///
    /// Cancel safety: as [`Self::more`]; call it again with another writer to send everything from the start.
    pub(super) async fn pump(
        &mut self,
        writer: &mut RequestWriter,
        settled: &AtomicBool,
    ) -> Result<(), Fault> {
        self.leaves = true;
        for chunk in &self.kept {
            writer
                .data(chunk.clone())
                .await
                .map_err(|_| Fault::Attempt)?;
        }
        if let Some(spool) = &mut self.spool {
            let unreadable = |error| spool_unreadable(self.exchange, &error);
            spool.rewind().await.map_err(unreadable)?;
            loop {
                let piece = spool.next().await.map_err(unreadable)?;
                if piece.is_empty() {
                    break;
                }
                writer.data(piece).await.map_err(|_| Fault::Attempt)?;
            }
        }
        loop {
            if settled.load(Ordering::Relaxed) {
                self.settle();
            }
            let Some(chunk) = self.more().await.map_err(Fault::Client)? else {
                break;
            };
            writer.data(chunk).await.map_err(|_| Fault::Attempt)?;
        }
        writer.end().await.map_err(|_| Fault::Attempt)
    }
}

fn spool_unreadable(exchange: ExchangeId, error: &std::io::Error) -> Fault {
    tracing::error!(%exchange, %error, "the spool of a request's body cannot be read");
    Fault::Client(Refusal::new(
        Code::Overloaded,
        "this node could not keep the request's body",
    ))
}

fn too_large(bytes_max: u64) -> Refusal {
    Refusal::new(
        Code::BodyTooLarge,
        format!("the request's body may have at most {bytes_max} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a client that sends so many bytes at once is given up, if its pauses are so long; none in a day.
    fn given_up(bytes: u64, pause: Duration) -> Option<Duration> {
        let mut came = 0;
        let mut waited = Duration::ZERO;
        while waited < Duration::from_secs(24 * 3600) {
            let left = patience(came, waited);
            if left < pause {
                return Some(waited + left);
            }
            waited += pause;
            came += bytes;
        }
        None
    }

    #[test]
    fn a_body_that_trickles_is_given_up_and_a_slow_one_is_not() {
        let s = Duration::from_secs;
        assert_eq!(given_up(1, s(31)), Some(s(30)));
        for pause in [s(1), s(10), s(29)] {
            let given_up = given_up(1, pause).unwrap();
            assert!((s(30)..s(31)).contains(&given_up), "{given_up:?}");
        }
        // Half the pace is twice the head start.
        assert_eq!(given_up(512, s(1)), Some(Duration::from_millis(59_500)));
        assert_eq!(given_up(1024, s(1)), None);
        assert_eq!(given_up(30 << 10, s(29)), None);
        // What came in time is never given up later, whatever its size.
        assert!(patience(u64::MAX, s(3600)) > s(3600));
    }
}
