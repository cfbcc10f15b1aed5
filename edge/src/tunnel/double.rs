//! Sends small pieces over two paths at once: while a path is suspect, and always for exchanges that are redundant.
//!
//! The second stream, the *twin*, begins with what is unacknowledged and then gets every piece that the first gets, so
//! that either is the whole rest of the sequence: when the first dies, the twin takes its place and nothing is sent again.
//! It never holds the first up: a twin that falls behind, or would have to carry large pieces, is given up, as one is whose
//! path is trusted again.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Context,
};

use bytes::Bytes;

use super::{
    Condition, Tunnel,
    end::{Attachment, End, Side},
    link::Link,
    resume::attach_frame,
};

/// What one flush may hand out for it to count as small: a few tokens.
pub(super) const SMALL_BYTES_MAX: usize = 2 << 10;

/// What a twin may be behind. 64 KiB a redundant exchange.
const BEHIND_BYTES_MAX: usize = 64 << 10;

/// A second stream that carries what the first does.
#[derive(Debug)]
pub(super) struct Twin {
    pub(super) at: Attachment,
    pub(super) leaving: Vec<Bytes>,
}

impl Twin {
    /// Hands over what it can at once. `false` when it is to be given up.
    pub(super) fn hand_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.leaving.is_empty() {
            return true;
        }
        let written = self.at.stream.poll_write(cx, &mut self.leaving);
        self.leaving.retain(|chunk| !chunk.is_empty());
        let behind: usize = self.leaving.iter().map(Bytes::len).sum();
        !matches!(written, std::task::Poll::Ready(Err(_))) && behind <= BEHIND_BYTES_MAX
    }
}

impl Tunnel {
    /// A link is suspect: what runs on it goes over a second path, too, from now on.
    pub(super) fn link_suspect(&self, link: &Arc<Link>) {
        let ends = self.calls().all().into_iter().chain(self.arrivals().all());
        let on = |end: &Arc<End>| end.sends_over(link);
        ends.filter(on).for_each(|end| self.double(&end));
    }

    /// A link that was suspect is trusted again: what runs on it needs no second path any more.
    pub(super) fn link_calm(&self, link: &Arc<Link>) {
        let ends = self.calls().all().into_iter().chain(self.arrivals().all());
        for end in ends.filter(|end| !end.is_redundant()) {
            let mut sending = end.sending.lock();
            let at = sending.at.as_ref();
            if at.is_some_and(|at| Arc::ptr_eq(&at.link, link)) {
                sending.twin = None;
            }
        }
    }

    /// Gives an exchange a twin, if it has none and there is a second path.
    pub(super) fn double(&self, end: &Arc<End>) {
        let accepted = end.side == Side::Egress || end.is_accepted();
        if !accepted || end.doubling.swap(true, Ordering::Relaxed) {
            return;
        }
        let to = {
            let sending = end.sending.lock();
            let first = sending.at.as_ref().map(|at| Arc::clone(&at.link));
            let fits = sending.outgoing.held_bytes() <= BEHIND_BYTES_MAX as u64;
            let wanted = sending.twin.is_none() && !sending.is_over() && fits;
            drop(sending);
            first.filter(|_| wanted).and_then(|first| match end.side {
                Side::Ingress => self.way_to_egress(&end.far, Some(&first)),
                Side::Egress => self.way_to_ingress(end, Some(&first)),
            })
        };
        // To a redundant exchange, a path that is heard again and not yet trusted is better than none.
        let worst = if end.is_redundant() {
            Condition::Suspect
        } else {
            Condition::Up
        };
        let to = to.filter(|to| to.way_to(&end.far).condition <= worst);
        match to {
            Some(to) => {
                self.tasks().spawn(begin(Arc::clone(end), to));
            }
            None => end.doubling.store(false, Ordering::Relaxed),
        }
    }
}

/// Opens the twin. What is unacknowledged leaves on it at once.
async fn begin(end: Arc<End>, to: Arc<Link>) {
    if let Ok((stream, _)) = to.open_stream().await {
        // The other end answers where it hears something: the twin's relay speaks of the exchange before it is needed.
        end.carried_by(&to);
        let mut sending = end.sending.lock();
        let now = std::time::Instant::now();
        // The first path may have come back meanwhile, or be lost.
        let at = sending.at.as_ref();
        let wanted =
            at.is_some_and(|at| end.is_redundant() || at.link.condition() != Condition::Up);
        let may = wanted && !sending.moving && end.fate().is_none();
        if let Some(number) = may.then(|| sending.attachments.make_twin(now)).flatten() {
            let (offset, mut unacknowledged) = sending.outgoing.sent_slices();
            let mut leaving = vec![attach_frame(&end, number, offset, false)];
            leaving.append(&mut unacknowledged);
            let at = Attachment { link: to, stream };
            let mut twin = Twin { at, leaving };
            let mut nobody = Context::from_waker(std::task::Waker::noop());
            if twin.hand_over(&mut nobody) {
                sending.twin = Some(Box::new(twin));
            }
        }
    }
    end.doubling.store(false, Ordering::Relaxed);
}
