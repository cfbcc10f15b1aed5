//! The control stream of a link: reads the peer's words, writes ours in batches.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use vector_proto::tunnel::{
    codec::{self, Decoder, Kind, Piece},
    v1,
};

use super::{Error, Link};
use crate::tunnel::{
    exchange::WINDOW_BYTES_MAX,
    inbound,
    onward::News,
    repair,
    transport::{Receiver, Sender},
    vitals::Condition,
};

/// How long acknowledgements wait for company. Credit, which a sender may be waiting for, and
/// cancellations go at once.
const ACK_DELAY: Duration = Duration::from_millis(10);

/// What a peer takes, as its HELLO says.
#[derive(Clone, Copy, Debug)]
pub(in crate::tunnel) struct Terms {
    /// Bytes of a request before it has said anything.
    pub(in crate::tunnel) request_credit: u64,
    /// Bodies that go ahead of what is asked.
    pub(in crate::tunnel) ahead: bool,
    /// Repair symbols, to mend with.
    pub(in crate::tunnel) mends: bool,
}

impl Terms {
    pub(super) fn of(hello: &v1::Hello) -> Self {
        Self {
            request_credit: hello.request_credit.min(WINDOW_BYTES_MAX),
            ahead: hello.takes_ahead,
            mends: hello.mends,
        }
    }
}

/// A link that is set up but whose control stream nobody serves yet.
#[derive(Debug)]
pub struct Ready {
    /// The link.
    pub link: Arc<Link>,
    pub(super) send: Sender,
    pub(super) control: Control,
}

impl Ready {
    /// Says which of the connections of its path it is, if it is not the first.
    #[must_use]
    pub(in crate::tunnel) fn numbered(mut self, connection: u32) -> Self {
        // Nobody else has the link yet.
        if let Some(link) = Arc::get_mut(&mut self.link) {
            link.connection_number = connection;
        }
        self
    }

    /// Serves the control stream until the connection is gone.
    pub async fn serve(self) {
        let Self {
            link,
            mut send,
            mut control,
        } = self;
        let reason = tokio::select! {
            error = control.listen(&link) => error,
            error = speak(&link, &mut send) => error,
            gone = link.connection.closed() => Error::Transport(gone),
            () = obey(&link) => Error::Silent,
            () = inbound::attachments(&link), if !link.is_accepted() => Error::Silent,
            () = repair::listen(&link), if link.is_accepted() => Error::Silent,
        };
        if let Error::Stuck = &reason {
            tracing::warn!(peer = %link.peer, "link closed: its control stream does not move");
        }
        if let Error::Codec(error) = &reason {
            tracing::warn!(peer = %link.peer, %error, "link closed: peer breaks the tunnel's rules");
            link.connection.close("protocol error");
        }
        link.connection.close("control stream ended");
        link.fail();
    }
}

#[derive(Debug)]
pub(super) struct Control {
    pub(super) receive: Receiver,
    pub(super) decoder: Decoder,
    pub(super) input: Bytes,
}

impl Control {
    async fn frame(&mut self) -> Result<(Kind, Bytes), Error> {
        loop {
            match self.decoder.next(&mut self.input)? {
                Some(Piece::Frame(kind, payload)) => return Ok((kind, payload)),
                Some(Piece::Data(_)) => return Err(codec::Error::OutOfPlace(Kind::Data).into()),
                None => self.input = self.receive.read().await?.ok_or(codec::Error::Truncated)?,
            }
        }
    }

    pub(super) async fn hello(&mut self) -> Result<v1::Hello, Error> {
        match self.frame().await? {
            (Kind::Hello, payload) => {
                v1::Hello::decode(payload).map_err(|_| codec::Error::Malformed(Kind::Hello).into())
            }
            (kind, _) => Err(codec::Error::OutOfPlace(kind).into()),
        }
    }

    async fn listen(&mut self, link: &Arc<Link>) -> Error {
        loop {
            let frame = match self.frame().await {
                Ok(frame) => frame,
                Err(error) => return error,
            };
            match frame {
                (Kind::Drain, payload) => {
                    let on = payload.first() != Some(&0);
                    link.draining.store(on, Ordering::Relaxed);
                    link.tunnel.outlook().moved();
                }
                (Kind::Hops, payload) => {
                    if let Err(error) = link.hear_onward(&payload) {
                        return error.into();
                    }
                }
                (kind, payload) => match codec::entries(kind, &payload) {
                    Ok(entries) => entries.into_iter().for_each(|entry| link.hear(entry)),
                    Err(error) => return error.into(),
                },
            }
        }
    }
}

/// Does what the detector's verdict asks for. Never ends.
async fn obey(link: &Arc<Link>) {
    let mut verdicts = link.vitals.watch();
    let mut known = *verdicts.borrow_and_update();
    while verdicts.changed().await.is_ok() {
        let verdict = *verdicts.borrow_and_update();
        link.tunnel.outlook().moved();
        match (known, verdict) {
            (_, Condition::Down) => link.tunnel.link_down(link),
            (Condition::Down, Condition::Up | Condition::Suspect) => link.tunnel.link_up(link),
            (_, Condition::Suspect) => link.tunnel.link_suspect(link),
            (Condition::Suspect, Condition::Up) => link.tunnel.link_calm(link),
            (Condition::Up, Condition::Up) => {}
        }
        known = verdict;
    }
    std::future::pending().await
}

async fn speak(link: &Link, send: &mut Sender) -> Error {
    let mut said_leaving = false;
    let mut news = News::on(link);
    let patience = link.tunnel.patience().unread_words;
    loop {
        tokio::select! {
            biased;
            () = link.outbox.urgent.notified() => {}
            () = news.came() => {}
            () = link.outbox.some.notified() => {
                let _ = tokio::time::timeout(ACK_DELAY, link.outbox.urgent.notified()).await;
            }
        }
        let entries = link.outbox.take();
        let mut out = BytesMut::new();
        let leaving = link.leaving.load(Ordering::Relaxed);
        if leaving != said_leaving {
            said_leaving = leaving;
            codec::put_header(&mut out, Kind::Drain, 1);
            out.extend_from_slice(&[u8::from(leaving)]);
        }
        codec::put_entries(&mut out, &entries);
        news.put(&mut out);
        match tokio::time::timeout(patience, send.write(&mut [out.freeze()])).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return Error::Stuck,
        }
    }
}
