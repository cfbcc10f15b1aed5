//! Takes the streams that a peer opens on a link: what they begin with decides where they go.
//!
//! OPEN begins an exchange, ATTACH continues one; either is for this node, or for another one and passes
//! through if this node is a relay. Each stream is read in a task of its own, with a deadline.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use vector_proto::{
    id::ExchangeId,
    tunnel::{
        codec::{self, Kind},
        v1,
    },
};

use super::{
    TransitHandler,
    half::{PreambleError, read_preamble},
    link::Link,
    transport::{Receiver, Sender},
};

/// Time for a stream's first frame.
const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a stream begins with.
#[derive(Clone, Debug, PartialEq)]
pub enum Preamble {
    /// A new exchange.
    Open(Box<v1::Open>),
    /// A running one.
    Attach(v1::Attach),
}

impl Preamble {
    /// Which attempt of its exchange it is of.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        match self {
            Self::Open(open) => open.attempt,
            Self::Attach(attach) => attach.attempt,
        }
    }
}

/// An exchange for another node, on its way through this relay.
pub struct Transit {
    /// Which exchange.
    pub exchange: ExchangeId,
    /// How it begins, to be passed on.
    pub preamble: Preamble,
    /// The link it came over.
    pub link: Arc<Link>,
    /// Back to where it came from.
    pub send: Sender,
    /// From there.
    pub receive: Receiver,
    /// What came behind the preamble.
    pub rest: Bytes,
}

impl fmt::Debug for Transit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transit({} from {})", self.exchange, self.link.peer)
    }
}

/// A stream whose preamble was read.
pub(super) struct Inbound {
    pub(super) exchange: ExchangeId,
    pub(super) preamble: Preamble,
    pub(super) rest: Bytes,
}

/// Reads how a stream begins; says what is wrong with it otherwise. `None` when nothing came in time, or it was taken back.
pub(super) async fn begin(receive: &mut Receiver) -> Option<Result<Inbound, String>> {
    let read = tokio::time::timeout(PREAMBLE_TIMEOUT, read_preamble(receive)).await;
    let read = match read.ok()? {
        Err(PreambleError::Transport(_)) => return None,
        read => read.map_err(|error| error.to_string()),
    };
    Some(read.and_then(|(kind, payload, rest)| {
        let (exchange, preamble) = parse(kind, payload).map_err(|error| error.to_string())?;
        Ok(Inbound {
            exchange,
            preamble,
            rest,
        })
    }))
}

fn parse(kind: Kind, payload: Bytes) -> Result<(ExchangeId, Preamble), codec::Error> {
    let malformed = codec::Error::Malformed(kind);
    let id = |bytes: &Bytes| ExchangeId::try_from(&bytes[..]).map_err(|_| malformed);
    match kind {
        Kind::Open => {
            let open = v1::Open::decode(payload).map_err(|_| malformed)?;
            Ok((id(&open.exchange)?, Preamble::Open(Box::new(open))))
        }
        Kind::Attach => {
            let attach = v1::Attach::decode(payload).map_err(|_| malformed)?;
            Ok((id(&attach.exchange)?, Preamble::Attach(attach)))
        }
        _ => Err(codec::Error::OutOfPlace(kind)),
    }
}

/// Takes what the peer of a link that this node dialled attaches, until the connection is gone.
pub(super) async fn attachments(link: &Arc<Link>) {
    while let Ok(streams) = link.accept_stream().await {
        link.tunnel.tasks().spawn(attach(Arc::clone(link), streams));
    }
    link.closed().await;
}

async fn attach(link: Arc<Link>, (send, mut receive): (Sender, Receiver)) {
    let inbound = match begin(&mut receive).await {
        Some(Ok(inbound)) => inbound,
        Some(Err(error)) => {
            tracing::warn!(peer = %link.peer, error, "stream refused");
            return;
        }
        None => return,
    };
    let Inbound {
        exchange,
        preamble,
        rest,
    } = inbound;
    match preamble {
        Preamble::Attach(attach) if attach.ingress == *link.me => {
            let tunnel = link.tunnel.clone();
            tunnel.attached(&link, attach, (send, receive), rest).await;
        }
        Preamble::Attach(_) => {
            let Some(handler) = link.tunnel.transits() else {
                tracing::warn!(%exchange, peer = %link.peer, "stream refused: it is for another node");
                return;
            };
            pass(
                handler,
                Transit {
                    exchange,
                    preamble,
                    link,
                    send,
                    receive,
                    rest,
                },
            )
            .await;
        }
        Preamble::Open(_) => {
            tracing::warn!(%exchange, peer = %link.peer, "stream refused: only who dials opens exchanges");
        }
    }
}

/// Hands a stream to the relay.
pub(super) async fn pass(handler: TransitHandler, transit: Transit) {
    handler(transit).await;
}
