//! What a relay tells of its links onward: the second hop of a path, which the ingress cannot measure.
//!
//! Once a second, and at once when one fails or comes back, a relay looks at its links to egress nodes. What differs by enough
//! is told on the control stream of every link whose dialler said in HELLO that it hears it; nodes of an older version are told
//! nothing. It takes no control to know it, and it is forgotten with the link over which it was told. A relay that tells at all
//! and does not name an egress has no link to it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::BytesMut;
use prost::Message as _;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use vector_proto::{
    id::NodeId,
    tunnel::{
        codec::{self, Kind},
        v1,
    },
};

use super::{
    Condition, Tunnel,
    cost::{self, Hop},
    link::Link,
};
use crate::lookup::HashMap;

/// Egress nodes that a relay tells of, and that are believed of one. 4,096 x about 150 bytes = 600 KiB a link.
const HOPS_MAX: usize = 4_096;

/// Rows of one frame: 512 x at most 90 bytes are less than a frame holds.
const ROWS_A_FRAME: usize = 512;

/// How often a relay looks at what its links measure.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Those that fail together are told together.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// What a relay's links say of it to others.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    table: watch::Sender<Arc<Table>>,
    /// A link came, went, fell silent or is heard again.
    moved: Notify,
}

/// How the best link to each egress is, as it was told.
#[derive(Debug, Default)]
struct Table {
    /// 0 until somebody has looked.
    revision: u64,
    /// By egress.
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    egress: Arc<str>,
    condition: Condition,
    hop: Hop,
    /// Of the table, when it was told last.
    revision: u64,
}

impl Outlook {
    /// Something about a link is different: it is not waited for until the next look.
    pub(super) fn moved(&self) {
        self.moved.notify_one();
    }

    /// Takes in how the links are now.
    fn seen(&self, mut now: Vec<Row>) {
        now.sort_unstable_by(|one, other| one.egress.cmp(&other.egress));
        self.table.send_if_modified(|table| {
            let next = table.next(&now);
            let changed = next.is_some();
            if let Some(next) = next {
                *table = Arc::new(next);
            }
            changed
        });
    }
}

impl Table {
    /// The table after a look, if it says anything else than before. `now` is in order.
    fn next(&self, now: &[Row]) -> Option<Self> {
        let revision = self.revision + 1;
        let mut news = self.revision == 0;
        let mut rows = Vec::with_capacity(now.len().max(self.rows.len()));
        for seen in now.iter().take(HOPS_MAX) {
            let known = row(&self.rows, &seen.egress);
            let same = |row: &&Row| row.condition == seen.condition && !seen.hop.is_news(row.hop);
            match known.filter(same) {
                Some(row) => rows.push(row.clone()),
                None => {
                    news = true;
                    rows.push(Row {
                        revision,
                        ..seen.clone()
                    });
                }
            }
        }
        // What is linked no more stays as one that is down, so that it is told.
        let is_gone = |known: &&Row| row(now, &known.egress).is_none();
        let room = HOPS_MAX - rows.len();
        for gone in self.rows.iter().filter(is_gone).take(room) {
            let told = gone.condition == Condition::Down;
            news |= !told;
            rows.push(Row {
                condition: Condition::Down,
                revision: if told { gone.revision } else { revision },
                ..gone.clone()
            });
        }
        rows.sort_unstable_by(|one, other| one.egress.cmp(&other.egress));
        news.then_some(Self { revision, rows })
    }
}

fn row<'a>(rows: &'a [Row], egress: &str) -> Option<&'a Row> {
    let at = rows.binary_search_by(|row| (*row.egress).cmp(egress));
    rows.get(at.ok()?)
}

/// What one link's peer has not been told yet.
pub(super) struct News {
    /// None where the peer does not want to hear it.
    table: Option<watch::Receiver<Arc<Table>>>,
    told: u64,
}

impl News {
    /// For what is said on a link.
    pub(super) fn on(link: &Link) -> Self {
        let listens = link.onward.listens && link.is_accepted();
        let table = listens.then(|| {
            let mut table = link.tunnel.outlook().table.subscribe();
            table.mark_changed();
            table
        });
        Self { table, told: 0 }
    }

    /// Returns when there is something to tell.
    ///
    /// Cancel safety: dropping the future forgets nothing.
    pub(super) async fn came(&mut self) {
        if let Some(table) = &mut self.table
            && table.changed().await.is_ok()
        {
            return table.mark_changed();
        }
        std::future::pending().await
    }

    /// Writes what was not told before.
    pub(super) fn put(&mut self, out: &mut BytesMut) {
        let Some(table) = &mut self.table else {
            return;
        };
        if !table.has_changed().unwrap_or(false) {
            return;
        }
        let table = Arc::clone(&table.borrow_and_update());
        if table.revision == self.told {
            return;
        }
        let first = self.told == 0;
        let new: Vec<&Row> = table
            .rows
            .iter()
            .filter(|row| row.revision > self.told)
            .collect();
        self.told = table.revision;
        for rows in new.chunks(ROWS_A_FRAME) {
            let hops = rows.iter().map(|row| row.told()).collect();
            codec::put_message(out, Kind::Hops, &v1::Hops { hops });
        }
        if first && new.is_empty() {
            codec::put_message(out, Kind::Hops, &v1::Hops::default());
        }
    }
}

impl Row {
    fn told(&self) -> v1::Hop {
        v1::Hop {
            egress: self.egress.to_string(),
            condition: self.condition as u32,
            rtt_us: self.hop.rtt_us,
            jitter_us: self.hop.jitter_us,
            loss_ppm: self.hop.loss_ppm,
        }
    }
}

/// What the peer of a link has to do with what relays tell.
#[derive(Debug, Default)]
pub(super) struct Onward {
    /// It wants to hear it.
    listens: bool,
    /// It told this of its own links: nothing as long as it told nothing.
    told: ArcSwapOption<HashMap<Arc<str>, Told>>,
    /// It told of more than is believed.
    more: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    condition: Condition,
    rtt_us: u32,
    cost_us: u32,
}

/// What is known of a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Way {
    pub(super) condition: Condition,
    pub(super) rtt_us: u64,
    pub(super) cost_us: u64,
    /// Both are of the whole of it.
    pub(super) whole: bool,
}

impl Onward {
    pub(super) fn with(hello: &v1::Hello) -> Self {
        Self {
            listens: hello.hears_hops,
            ..Self::default()
        }
    }
}

impl Link {
    /// How much is on it: everything on its path, those that only pass through this node too, and what this node opened.
    pub(super) fn load(&self) -> (u32, u32) {
        (self.vitals().exchanges(), self.outstanding())
    }

    /// How it is, and what one more exchange costs on it.
    pub(super) fn way(&self) -> Way {
        let measured = self.vitals().cost_us();
        let (rtt_us, cost_us) = measured.unwrap_or_else(|| {
            let hop = Hop::of_rtt(self.rtt());
            (hop.rtt_us, hop.cost_us())
        });
        let mut sharing = self.vitals().exchanges();
        if self.is_relay() {
            // Others send over it, too. Each exchange is on two of its links.
            sharing = sharing.max(self.vitals().peer_load() / 2);
        }
        Way {
            condition: self.condition(),
            rtt_us: rtt_us.into(),
            cost_us: cost::shared_us(cost_us, sharing),
            whole: true,
        }
    }

    /// The same of the path over it to an egress.
    pub(super) fn way_to(&self, egress: &str) -> Way {
        let first = self.way();
        if *self.peer == *egress {
            return first;
        }
        let told = self.onward.told.load();
        let Some(told) = &*told else {
            return Way {
                whole: false,
                ..first
            };
        };
        match told.get(egress) {
            Some(second) => Way {
                condition: first.condition.max(second.condition),
                rtt_us: first.rtt_us + u64::from(second.rtt_us),
                cost_us: first.cost_us + u64::from(second.cost_us),
                whole: true,
            },
            None if self.onward.more.load(Ordering::Relaxed) => Way {
                whole: false,
                ..first
            },
            None => Way {
                condition: Condition::Down,
                whole: false,
                ..first
            },
        }
    }

    /// Believes what the peer tells of its links, if it is a relay that was asked over this link.
    pub(super) fn hear_onward(&self, payload: &[u8]) -> Result<(), codec::Error> {
        if self.is_accepted() || !self.is_relay() {
            return Err(codec::Error::OutOfPlace(Kind::Hops));
        }
        let malformed = |_| codec::Error::Malformed(Kind::Hops);
        let hops = v1::Hops::decode(payload).map_err(malformed)?.hops;
        let known = self.onward.told.load_full();
        let mut told = known.map_or_else(HashMap::default, |known| HashMap::clone(&known));
        for hop in hops {
            if hop.egress.parse::<NodeId>().is_err() {
                continue;
            }
            if told.len() >= HOPS_MAX && !told.contains_key(&*hop.egress) {
                self.onward.more.store(true, Ordering::Relaxed);
                continue;
            }
            let measured = Hop {
                rtt_us: hop.rtt_us,
                jitter_us: hop.jitter_us,
                loss_ppm: hop.loss_ppm,
            };
            let measured = measured.bounded();
            let row = Told {
                condition: match hop.condition {
                    0 => Condition::Up,
                    1 => Condition::Suspect,
                    _ => Condition::Down,
                },
                rtt_us: measured.rtt_us,
                cost_us: measured.cost_us(),
            };
            told.insert(hop.egress.into(), row);
        }
        self.onward.told.store(Some(Arc::new(told)));
        Ok(())
    }

    /// What was measured on it, to be told.
    fn hop(&self) -> Hop {
        let measured = Hop::measured(&self.vitals().measures());
        measured.unwrap_or_else(|| Hop::of_rtt(self.rtt()))
    }
}

impl Tunnel {
    /// Looks at the links to egress nodes and tells what is different.
    pub(super) fn look_onward(&self) {
        let links = self.egress_links();
        let rows: Vec<Row> = links
            .into_iter()
            .map(|(egress, link)| Row {
                egress,
                condition: link
                    .as_ref()
                    .map_or(Condition::Down, |link| link.condition()),
                hop: link.map_or_else(Hop::default, |link| link.hop()),
                revision: 0,
            })
            .collect();
        self.outlook().seen(rows);
    }

    /// Does so until `stop`.
    pub(super) async fn tell_onward(self, stop: CancellationToken) {
        let moved = &self.outlook().moved;
        let tell = async {
            loop {
                self.look_onward();
                tokio::time::sleep(LOOK_PAUSE).await;
                // Nothing moved: it is measured what did not break.
                let _ = tokio::time::timeout(LOOK_EVERY, moved.notified()).await;
            }
        };
        // It ends by the token alone.
        let _: Option<()> = stop.run_until_cancelled(tell).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(egress: &str, condition: Condition, rtt_ms: u32) -> Row {
        Row {
            egress: egress.into(),
            condition,
            hop: Hop {
                rtt_us: rtt_ms * 1_000,
                ..Hop::default()
            },
            revision: 0,
        }
    }

    /// What is told after these looks, one after the other.
    fn told(looks: &[&[Row]]) -> Vec<Vec<(String, Condition, u32)>> {
        let mut table = Table::default();
        let mut told = Vec::new();
        for now in looks {
            let before = table.revision;
            if let Some(next) = table.next(now) {
                table = next;
            }
            let new = table.rows.iter().filter(|row| row.revision > before);
            let new = new.map(|row| {
                (
                    row.egress.to_string(),
                    row.condition,
                    row.hop.rtt_us / 1_000,
                )
            });
            told.push(new.collect());
        }
        told
    }

    #[test]
    fn what_differs_by_enough_is_told_once() {
        use Condition::{Down, Suspect, Up};
        let told = told(&[
            &[],
            &[seen("a", Up, 20), seen("b", Up, 100)],
            // By less than a sixteenth.
            &[seen("a", Up, 20), seen("b", Up, 104)],
            &[seen("a", Suspect, 20), seen("b", Up, 108)],
            &[seen("b", Up, 108)],
            &[seen("b", Up, 108)],
            &[seen("a", Up, 20), seen("b", Up, 108)],
        ]);
        let (a, b) = (|condition| ("a".to_owned(), condition, 20), "b".to_owned());
        assert_eq!(told[0], []);
        assert_eq!(told[1], [a(Up), (b.clone(), Up, 100)]);
        assert_eq!(told[2], []);
        assert_eq!(told[3], [a(Suspect), (b, Up, 108)]);
        assert_eq!(told[4], [a(Down)], "it is linked no more");
        assert_eq!(told[5], []);
        assert_eq!(told[6], [a(Up)]);
    }

    #[test]
    fn there_is_an_end_to_what_is_told() {
        let many: Vec<Row> = (0..HOPS_MAX + 9)
            .map(|n| seen(&format!("e{n:05}"), Condition::Up, 1))
            .collect();
        let table = Table::default().next(&many).unwrap();
        assert_eq!(table.rows.len(), HOPS_MAX);
        let table = table.next(&many[HOPS_MAX..]).unwrap();
        assert_eq!(table.rows.len(), HOPS_MAX);
        assert_eq!(row(&table.rows, "e04100").unwrap().condition, Condition::Up);
        assert_eq!(
            row(&table.rows, "e00000").unwrap().condition,
            Condition::Down
        );
    }
}
