//! The way in of an end: streams and repair symbols that wait for its reader.

use std::sync::{Arc, atomic::Ordering};

use vector_proto::tunnel::repair::Repair;

use super::End;
use crate::tunnel::{half::ReadStream, link::Link};

/// Streams that wait for a reader to take them. More than that is a peer that attaches for its own sake.
const INBOX_MAX: usize = 4;

/// Repair symbols that wait for a reader, in datagrams: all that are made of one block, and as many that a peer sends for
/// their own sake.
const REPAIRS_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Receiving {
    /// The link of the newest attachment: words about the exchange go there.
    pub(super) home: Arc<Link>,
    /// Streams that the reader has not taken yet.
    pub(super) inbox: Vec<ReadStream>,
    /// Repair symbols that it has not taken yet.
    pub(super) repairs: Vec<Repair>,
    /// Relays that carried it.
    pub(super) carriers: Vec<Arc<str>>,
}

impl End {
    /// Gives the reader another stream to read from.
    pub(in crate::tunnel) fn read_also(&self, stream: ReadStream) {
        self.set_home(&stream.link);
        self.stranded.store(false, Ordering::Release);
        {
            let mut receiving = self.receiving.lock();
            if receiving.inbox.len() == INBOX_MAX {
                receiving.inbox.remove(0);
            }
            receiving.inbox.push(stream);
        }
        self.arrived.store(true, Ordering::Release);
        self.reader.wake();
    }

    /// Gives the reader symbols to mend with.
    pub(in crate::tunnel) fn mend_with(&self, repairs: impl Iterator<Item = Repair>) {
        if self.whole.load(Ordering::Acquire) {
            return;
        }
        {
            let mut receiving = self.receiving.lock();
            let room = REPAIRS_MAX.saturating_sub(receiving.repairs.len());
            receiving.repairs.extend(repairs.take(room));
        }
        self.arrived.store(true, Ordering::Release);
        self.reader.wake();
    }

    /// Whether a stream waits to be read.
    pub(in crate::tunnel) fn has_arrivals(&self) -> bool {
        self.arrived.load(Ordering::Acquire)
    }

    pub(in crate::tunnel) fn take_arrivals(&self) -> (Vec<ReadStream>, Vec<Repair>) {
        let mut receiving = self.receiving.lock();
        self.arrived.store(false, Ordering::Release);
        let Receiving { inbox, repairs, .. } = &mut *receiving;
        (std::mem::take(inbox), std::mem::take(repairs))
    }
}
