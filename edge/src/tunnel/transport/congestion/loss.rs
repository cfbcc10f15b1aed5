//! Which loss is congestion: more than the path loses anyway, and not a hole in time.
//!
//! Long paths lose packets by chance, and halving the rate for that is what makes cubic useless
//! there. Loss counts as congestion only above the share that is lost when we send gently. A
//! burst in which everything is lost is an outage: an overfull queue still passes some packets,
//! so of a batch no more is counted than was acknowledged with it.

/// Random loss that is never believed to be the path's own.
const USUAL_MAX: f64 = 0.15;

/// Share of packets that may be lost above the usual.
const MARGIN: f64 = 0.01;

/// Loss at which one backs off whatever its cause, and the rounds that it must last.
const HEAVY: f64 = 0.20;
const HEAVY_ROUNDS: u32 = 3;

/// What became of the packets of one round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) acked: u64,
    pub(super) lost: u64,
    counted: u64,
}

impl Tally {
    /// Loss was found with a batch that acknowledged so many bytes.
    pub(super) fn lose(&mut self, bytes: u64, acked: u64, mtu: u64) {
        self.lost = self.lost.saturating_add(bytes);
        let most = acked.max(mtu.saturating_mul(2));
        self.counted = self.counted.saturating_add(bytes.min(most));
    }

    fn share(&self) -> f64 {
        self.counted as f64 / (self.counted as f64 + self.acked as f64).max(1.0)
    }
}

/// What kind of round it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// We sent less than the path carries: what is lost is the path's own.
    Gentle,
    /// We sent what the path carries.
    Plain,
    /// The queue was full: what is lost may be its overflow.
    Full,
}

/// What a round's losses mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    /// No more than usual.
    Usual,
    /// So much more than usual, as a share.
    Excess(f64),
    /// So much for so long that the cause does not matter.
    Heavy,
}

/// The path's own loss, learnt while sending gently.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UsualLoss {
    share: f64,
    heavy_rounds: u32,
}

impl UsualLoss {
    pub(super) const fn share(&self) -> f64 {
        self.share
    }

    /// Judges a round, and learns from it as fast as its kind allows.
    pub(super) fn judge(&mut self, tally: &Tally, kind: Kind, mtu: u64) -> Verdict {
        let share = tally.share();
        let packets = (tally.acked as f64 + tally.counted as f64) / mtu.max(1) as f64;
        let raw = tally.lost as f64 / (tally.lost as f64 + tally.acked as f64).max(1.0);
        self.heavy_rounds = if raw > HEAVY {
            self.heavy_rounds.saturating_add(1)
        } else {
            0
        };
        let usual = self.share;
        let chance = 3.0 * (packets * usual * (1.0 - usual) + 1.0).sqrt();
        let excess = packets * (share - usual - MARGIN) > chance;
        let pace = match kind {
            Kind::Gentle => 0.25,
            _ if share < usual => 0.125,
            Kind::Plain => 0.03,
            Kind::Full => 0.0,
        };
        if packets >= 8.0 {
            self.share = (usual + (share - usual) * pace).min(USUAL_MAX);
        }
        if self.heavy_rounds >= HEAVY_ROUNDS {
            Verdict::Heavy
        } else if excess {
            Verdict::Excess(share - usual)
        } else {
            Verdict::Usual
        }
    }
}
