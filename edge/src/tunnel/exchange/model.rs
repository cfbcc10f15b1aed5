//! Two ends of an exchange against a hostile network, driven by a seed, checked by an oracle.
//!
//! Links are cut and come back, each end notices when it likes, words are delayed, doubled, reordered and lost with their
//! link, streams lose whatever had not arrived, and the egress is restarted. After every step each end has read a prefix of
//! what the other wrote; when the network is good again both have read all of it, or the exchange ended with an error because
//! the egress forgot it. `VECTOR_MODEL_STEPS` sets how many steps are made; a failure names its seed.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;

use super::{Attachments, Ignored, Incoming, Outgoing};

/// Enough for every kind of trouble, in a second.
const STEPS: u64 = 400_000;

/// Steps of one exchange before the network becomes good.
const TROUBLE: u64 = 4_000;

const LINKS: usize = 3;
const INGRESS: usize = 0;
const EGRESS: usize = 1;

#[derive(Clone, Copy, Debug)]
enum Word {
    Ack(u64),
    Credit(u64),
    Resume { number: u32, next: u64 },
    Closed(usize),
    Gone,
}

/// One attachment: bytes in order, from one end to the other.
#[derive(Debug)]
struct Stream {
    from: usize,
    link: usize,
    number: u32,
    /// Offset of the first byte that has not arrived.
    offset: u64,
    flying: Vec<u8>,
    introduced: bool,
    dead: bool,
}

#[derive(Debug)]
struct Link {
    up: bool,
    /// To whom, and what.
    words: Vec<(usize, Word)>,
}

#[derive(Debug, Default)]
struct End {
    outgoing: Outgoing,
    incoming: Incoming,
    attachments: Attachments,
    /// The stream that carries what is sent.
    at: Option<usize>,
    /// Where words go.
    home: usize,
    unasked: bool,
    pushed: usize,
    got: usize,
    unread: u64,
    /// What it was born to write, and to read.
    text: Vec<u8>,
    other: Vec<u8>,
}

struct World {
    seed: u64,
    rng: Rng,
    now: Instant,
    links: Vec<Link>,
    streams: Vec<Stream>,
    ends: [End; 2],
    gone: bool,
    restarted: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut text = || {
            let most = if rng.u8(..4) == 0 { 900_000 } else { 40_000 };
            let len = rng.usize(..most);
            let salt = rng.usize(..);
            (0..len)
                .map(|at| ((at.wrapping_mul(31) ^ salt) >> 3) as u8)
                .collect::<Vec<u8>>()
        };
        let (request, response) = (text(), text());
        let end = |text: &[u8], other: &[u8], stream| End {
            text: text.to_vec(),
            other: other.to_vec(),
            at: Some(stream),
            ..End::default()
        };
        let stream = |from| Stream {
            from,
            link: 0,
            number: 0,
            offset: 0,
            flying: Vec::new(),
            introduced: true,
            dead: false,
        };
        let link = || Link {
            up: true,
            words: Vec::new(),
        };
        Self {
            seed,
            now: Instant::now(),
            links: std::iter::repeat_with(link).take(LINKS).collect(),
            streams: vec![stream(INGRESS), stream(EGRESS)],
            ends: [end(&request, &response, 0), end(&response, &request, 1)],
            gone: false,
            restarted: false,
            rng,
        }
    }

    fn say(&mut self, from: usize, link: usize, word: Word) {
        if self.links[link].up {
            self.links[link].words.push((1 - from, word));
        }
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(self.rng.u64(..40));
        let who = self.rng.usize(..2);
        match self.rng.u32(..1000) {
            0..250 => self.write(who),
            250..650 => self.arrive(),
            650..850 => self.hear(),
            850..900 => self.settle(who),
            900..915 => {
                let link = self.rng.usize(..LINKS);
                self.cut(link);
            }
            915..940 => {
                let link = self.rng.usize(..LINKS);
                self.links[link].up = true;
            }
            940..998 => self.notice(who),
            _ if self.seed.is_multiple_of(8) && self.rng.u8(..8) == 0 => self.restarted = true,
            _ => {}
        }
    }

    /// A writer pushes what there is room for, and the attachment takes what credit allows.
    fn write(&mut self, who: usize) {
        let end = &mut self.ends[who];
        let most = end.outgoing.room().min(16_000) as usize;
        let len = self.rng.usize(..=most).min(end.text.len() - end.pushed);
        let next = end.text[end.pushed..end.pushed + len].to_vec();
        end.pushed += len;
        end.outgoing.push(Bytes::from(next));
        self.hand_out(who);
    }

    fn hand_out(&mut self, who: usize) {
        let end = &mut self.ends[who];
        let Some(at) = end.at else { return };
        // The stream pushes back whenever it likes.
        while self.rng.u8(..4) != 0
            && let Some(slice) = end.outgoing.next_slice()
        {
            let stream = &mut self.streams[at];
            if !stream.dead {
                stream.flying.extend_from_slice(&slice);
            }
        }
    }

    /// Some bytes of some stream arrive.
    fn arrive(&mut self) {
        let at = self.rng.usize(..self.streams.len());
        let (from, link) = (self.streams[at].from, self.streams[at].link);
        if self.streams[at].dead || !self.links[link].up || self.gone {
            return;
        }
        let who = 1 - from;
        if self.restarted && who == EGRESS {
            return self.say(EGRESS, link, Word::Gone);
        }
        if !self.streams[at].introduced {
            self.streams[at].introduced = true;
            let number = self.streams[at].number;
            let heard = self.ends[who].attachments.hear_stream(number, self.now);
            if heard.is_err() {
                self.streams[at].dead = true;
                return self.say(who, link, Word::Closed(at));
            }
            self.ends[who].home = link;
            let (next, credit) = self.ends[who].incoming.restate();
            self.say(who, link, Word::Ack(next));
            self.say(who, link, Word::Credit(credit));
        }
        let stream = &mut self.streams[at];
        let len = self.rng.usize(..=stream.flying.len().min(20_000));
        let bytes: Vec<u8> = stream.flying.drain(..len).collect();
        let offset = stream.offset;
        stream.offset += len as u64;
        self.read(who, offset, bytes.into());
    }

    fn read(&mut self, who: usize, offset: u64, bytes: Bytes) {
        let seed = self.seed;
        let end = &mut self.ends[who];
        let first = end.incoming.receive(offset, bytes);
        let first = first.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        let rest: Vec<Bytes> = std::iter::from_fn(|| end.incoming.take_ahead()).collect();
        for piece in first.into_iter().chain(rest) {
            let expected = end.other.get(end.got..end.got + piece.len());
            assert_eq!(
                Some(&piece[..]),
                expected,
                "seed {seed}: wrong bytes at {}",
                end.got
            );
            end.got += piece.len();
            end.unread += piece.len() as u64;
        }
        assert_eq!(end.got as u64, end.incoming.next_offset(), "seed {seed}");
    }

    /// A reader uses some of what it has, and says so.
    fn settle(&mut self, who: usize) {
        let end = &mut self.ends[who];
        let used = self.rng.u64(..=end.unread);
        end.unread -= used;
        let credit = end.incoming.consume(used, |_| true);
        let ack = end.incoming.ack_due(self.now, self.rng.bool());
        let home = end.home;
        if let Some(credit) = credit {
            self.say(who, home, Word::Credit(credit));
        }
        if let Some(ack) = ack {
            self.say(who, home, Word::Ack(ack));
        }
    }

    /// Any word of any link, in any order, perhaps twice.
    fn hear(&mut self) {
        let link = self.rng.usize(..LINKS);
        let words = &mut self.links[link].words;
        if words.is_empty() || self.gone {
            return;
        }
        let at = self.rng.usize(..words.len());
        let (who, word) = if self.rng.u8(..10) == 0 {
            words[at]
        } else {
            words.swap_remove(at)
        };
        self.obey(who, word, link);
    }

    fn obey(&mut self, who: usize, word: Word, link: usize) {
        let seed = self.seed;
        if self.restarted && who == EGRESS {
            return self.say(EGRESS, link, Word::Gone);
        }
        let end = &mut self.ends[who];
        match word {
            Word::Ack(offset) => {
                let heard = end.outgoing.ack(offset);
                heard.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
            }
            Word::Credit(offset) => {
                end.outgoing.allow(offset);
                self.hand_out(who);
            }
            Word::Resume { number, next } => match end.attachments.hear_ask(number, self.now) {
                Ok(()) => {
                    let heard = end.outgoing.ack(next);
                    heard.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
                    let streams = &self.streams;
                    let there = end.at.is_some_and(|at| streams[at].link == link);
                    if !(std::mem::take(&mut end.unasked) && there) {
                        self.attach(who, link);
                    }
                }
                Err(Ignored::Stale { .. } | Ignored::Storm) => {}
            },
            Word::Closed(stream) => {
                if end.at == Some(stream) {
                    end.at = None;
                }
            }
            Word::Gone => self.gone = true,
        }
    }

    /// What is sent goes on over another link.
    fn attach(&mut self, who: usize, link: usize) {
        let end = &mut self.ends[who];
        let Some(number) = end.attachments.make(self.now) else {
            return;
        };
        end.at = Some(self.streams.len());
        let offset = end.outgoing.rewind();
        self.streams.push(Stream {
            from: who,
            link,
            number,
            offset,
            flying: Vec::new(),
            introduced: false,
            dead: false,
        });
        self.hand_out(who);
    }

    fn cut(&mut self, link: usize) {
        self.links[link].up = false;
        self.links[link].words.clear();
        let on = self.streams.iter_mut().filter(|stream| stream.link == link);
        on.for_each(|stream| {
            stream.dead = true;
            stream.flying = Vec::new();
        });
    }

    /// An end looks after its links, rightly or not, and moves.
    fn notice(&mut self, who: usize) {
        let lost = |end: &End, streams: &[Stream]| end.at.is_none_or(|at| streams[at].dead);
        let false_alarm = self.rng.u8(..20) == 0;
        let to = self.rng.usize(..LINKS);
        if !self.links[to].up || self.gone {
            return;
        }
        let sends = lost(&self.ends[who], &self.streams) || false_alarm;
        if who == EGRESS {
            if sends && !self.restarted {
                self.ends[EGRESS].unasked = true;
                self.ends[EGRESS].home = to;
                self.attach(EGRESS, to);
            }
            return;
        }
        let home_died = !self.links[self.ends[INGRESS].home].up;
        let other = self.ends[EGRESS].at;
        let reads = home_died || other.is_none_or(|at| self.streams[at].dead) || false_alarm;
        if reads && let Some(number) = self.ends[INGRESS].attachments.make(self.now) {
            let next = self.ends[INGRESS].incoming.next_offset();
            self.ends[INGRESS].home = to;
            self.say(INGRESS, to, Word::Resume { number, next });
        }
        if sends {
            self.attach(INGRESS, to);
        }
    }

    fn is_over(&self) -> bool {
        self.gone || self.ends.iter().all(|end| end.got == end.other.len())
    }

    /// The network is good from now on; returns the steps it took to finish.
    fn heal(&mut self) -> u64 {
        for step in 0..2_000_000 {
            if self.is_over() {
                return step;
            }
            self.links.iter_mut().for_each(|link| link.up = true);
            self.now += Duration::from_millis(self.rng.u64(..40));
            let who = self.rng.usize(..2);
            match self.rng.u32(..100) {
                0..30 => self.write(who),
                30..60 => self.arrive(),
                60..80 => self.hear(),
                80..95 => self.settle(who),
                _ => self.notice(who),
            }
        }
        panic!("seed {}: it does not end", self.seed);
    }
}

#[test]
fn every_byte_once_and_in_order_whatever_the_network_does() {
    let wanted = std::env::var("VECTOR_MODEL_STEPS").ok();
    let wanted = wanted.and_then(|steps| steps.parse().ok()).unwrap_or(STEPS);
    let first = std::env::var("VECTOR_MODEL_SEED").ok();
    let first: u64 = first.and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let (mut steps, mut seeds, mut ended, mut moves) = (0, 0, 0, 0);
    while steps < wanted {
        let mut world = World::new(first + seeds);
        let trouble = world.rng.u64(..TROUBLE);
        for _ in 0..trouble {
            world.step();
        }
        steps += trouble + world.heal();
        moves += world.streams.len() - 2;
        assert!(
            !world.gone || world.restarted,
            "seed {}: gone without a cause",
            world.seed
        );
        ended += u64::from(world.gone);
        seeds += 1;
    }
    report(&format!(
        "model: {steps} steps, {seeds} exchanges from seed {first}, {moves} attachments, {ended} ended by a restart"
    ));
}

#[expect(
    clippy::print_stdout,
    reason = "what was tried is a part of the result"
)]
fn report(line: &str) {
    // The test's own name may stand before it.
    println!("\n{line}");
}
