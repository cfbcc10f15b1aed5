//! How often what keeps exchanges alive was used, and how often it helped.

use prometheus_client::metrics::counter::Counter;

/// Counters of a node's tunnel. They only grow.
#[derive(Debug, Default)]
pub struct Tally {
    /// Attachments made because another one was lost.
    pub moved: Counter,
    /// Exchanges cancelled at the egress as no way to their ingress was left for too long.
    pub orphaned: Counter,
    /// Answers let go at the egress as a living ingress did not acknowledge them.
    pub unacknowledged: Counter,
    /// The same OPEN sent over a second path, since its acceptance was late.
    pub hedges: Counter,
    /// Hedges that were accepted first.
    pub hedges_won: Counter,
    /// Pieces sent over two paths at once.
    pub doubled: Counter,
    /// Pieces of which the second path's copy came first.
    pub doubles_first: Counter,
    /// Datagrams of repair symbols that were sent.
    pub repairs_sent: Counter,
    /// Parts of requests that were whole by repair symbols, before what they had lost came again.
    pub mended: Counter,
    /// Acknowledgements of less than was acknowledged before, which change nothing.
    pub stale_acks: Counter,
    /// Exchanges opened for a body that goes ahead of what is asked.
    pub ahead: Counter,
    /// Of those, the ones that were asked for.
    pub ahead_begun: Counter,
    /// The ones that were given up: somebody else was asked, or nobody.
    pub ahead_missed: Counter,
    /// Links that were refused, as their node or all nodes had as many as they may.
    pub links_refused: Counter,
}
