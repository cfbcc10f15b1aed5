//! What is answered to a query. Pure.
//!
//! RFC 1034 and 1035 as an authority without recursion, RFC 2308 for what is not there, RFC 6891 and 7871 for EDNS and the
//! client's subnet, RFC 8482 for ANY, RFC 9210 and 7766 for what TCP is for: what does not fit is cut, and says so.

use std::net::IpAddr;

use domain::{
    base::{
        Message, MessageBuilder, Name, ParsedName, Serial, ToName, Ttl,
        iana::{Class, Opcode, OptRcode, Rtype},
        message_builder::{AnswerBuilder, PushError, StaticCompressor},
        name::ToLabelIter as _,
        opt::{ClientSubnet, OptRecord},
        wire::{Composer, ParseError},
    },
    rdata::{A, Aaaa, Ns, Soa},
};

use super::{Error, map::Map, table::Table};
use crate::config;

/// The zone's own rows change with control's settings only.
const ZONE_TTL: Ttl = Ttl::from_secs(3_600);

/// Largest datagram that no network cuts (DNS flag day 2020), and what we say that we take.
const DATAGRAM_BYTES_MAX: u16 = 1_232;

/// A datagram for those who do not say what they take.
const DATAGRAM_BYTES: u16 = 512;

/// Room for the OPT record of an answer: eleven bytes, and a subnet with the longest address.
const OPT_BYTES: usize = 11 + 24;

/// Bytes of a header; what is shorter cannot be answered.
const HEADER_BYTES: usize = 12;

type Owned = Name<Vec<u8>>;

/// What never changes while control runs.
#[derive(Debug)]
pub(super) struct Zone {
    apex: Owned,
    hostmaster: Owned,
    servers: Vec<(Owned, Vec<IpAddr>)>,
    ttl: Ttl,
    map: Map,
}

/// A query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) query: &'a [u8],
    /// Who sent it: a resolver, mostly.
    pub(super) from: IpAddr,
    pub(super) tcp: bool,
    /// Another number each time: where to begin among equals.
    pub(super) turn: usize,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Answered,
    NoData,
    NoName,
    Refused,
    Malformed,
    NotImplemented,
    BadVersion,
    /// No query at all: an answer to one could be answered by one, for ever.
    Ignored,
}

impl Outcome {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NoData => "no_data",
            Self::NoName => "no_name",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::NotImplemented => "not_implemented",
            Self::BadVersion => "bad_version",
            Self::Ignored => "ignored",
        }
    }
}

/// What the query's OPT record says.
#[derive(Clone, Copy, Debug)]
struct Edns {
    version: u8,
    datagram_bytes: u16,
    /// Length of the prefix, and the prefix.
    subnet: Option<(u8, IpAddr)>,
}

/// One row of an answer, owned by the name that was asked for.
#[derive(Clone, Copy, Debug)]
enum Row<'a> {
    Address(IpAddr),
    Server(&'a Owned),
    Authority,
}

/// What goes into an answer.
#[derive(Debug, Default)]
struct Reply<'a> {
    answers: Vec<Row<'a>>,
    /// The zone's own name servers are answered: with their addresses.
    with_glue: bool,
    /// Everybody with so many first bits gets the same.
    scope: u8,
}

/// What a name stands for.
enum Place<'a> {
    Apex,
    Region(String),
    Server(&'a [IpAddr]),
    /// Something stands below it.
    Between,
    Nothing,
}

impl Zone {
    pub(super) fn new(settings: &config::Dns) -> Result<Self, Error> {
        let name = |text: &str| -> Result<Owned, Error> {
            Name::from_chars(text.chars()).map_err(|_| Error::Name(text.to_owned()))
        };
        let mut servers = Vec::new();
        for (text, addresses) in &settings.ns {
            servers.push((name(text)?, addresses.clone()));
        }
        let map = settings.regions_file.as_deref().map(Map::read);
        Ok(Self {
            apex: name(&settings.zone)?,
            hostmaster: name(&settings.hostmaster)?,
            servers,
            ttl: Ttl::from_secs(settings.ttl_s),
            map: map.transpose()?.unwrap_or_default(),
        })
    }

    /// The answer, and what became of the query; empty: none is sent.
    pub(super) fn answer(&self, table: &Table, asked: Asked<'_>) -> (Outcome, Vec<u8>) {
        let Ok(message) = Message::from_octets(asked.query) else {
            return (Outcome::Ignored, Vec::new());
        };
        let header = message.header();
        if header.qr() || asked.query.len() < HEADER_BYTES {
            return (Outcome::Ignored, Vec::new());
        }
        let reply = |outcome, rcode, edns: Option<Edns>, reply: &Reply<'_>| {
            let composed = self.compose(&message, (outcome, rcode), edns, (reply, asked.tcp));
            // Only a name that does not fit twelve bytes and itself into a datagram fails, and there is none.
            (outcome, composed.unwrap_or_default())
        };
        let nothing = Reply::default();
        if header.opcode() != Opcode::QUERY {
            return reply(Outcome::NotImplemented, OptRcode::NOTIMP, None, &nothing);
        }
        let (Ok(question), Ok(edns), false) =
            (message.sole_question(), edns(&message), header.tc())
        else {
            return reply(Outcome::Malformed, OptRcode::FORMERR, None, &nothing);
        };
        if edns.is_some_and(|edns| edns.version != 0) {
            return reply(Outcome::BadVersion, OptRcode::BADVERS, edns, &nothing);
        }
        let (name, kind) = (question.qname(), question.qtype());
        let transfer = matches!(kind, Rtype::AXFR | Rtype::IXFR);
        if transfer || question.qclass() != Class::IN || !name.ends_with(&self.apex) {
            return reply(Outcome::Refused, OptRcode::REFUSED, edns, &nothing);
        }
        let found = match self.place(name, table) {
            Place::Nothing => return reply(Outcome::NoName, OptRcode::NXDOMAIN, edns, &nothing),
            Place::Apex => self.at_apex(table, kind, edns, asked),
            Place::Region(region) => {
                let addresses = |kind| match kind {
                    Rtype::A => table
                        .only_v4(&region, asked.turn)
                        .into_iter()
                        .map(IpAddr::V4)
                        .collect(),
                    _ => table
                        .only_v6(&region, asked.turn)
                        .into_iter()
                        .map(IpAddr::V6)
                        .collect::<Vec<_>>(),
                };
                of_kind(kind, addresses)
            }
            Place::Server(all) => of_kind(kind, |kind| {
                let of = all
                    .iter()
                    .filter(|address| address.is_ipv4() == (kind == Rtype::A));
                of.copied().collect()
            }),
            Place::Between => Reply::default(),
        };
        let outcome = if found.answers.is_empty() {
            Outcome::NoData
        } else {
            Outcome::Answered
        };
        reply(outcome, OptRcode::NOERROR, edns, &found)
    }

    /// That there is an answer, and that it has to be asked for over TCP; empty for what is no query.
    pub(super) fn cut(query: &[u8]) -> Vec<u8> {
        let Ok(message) = Message::from_octets(query) else {
            return Vec::new();
        };
        if message.header().qr() || message.header().opcode() != Opcode::QUERY {
            return Vec::new();
        }
        let builder = MessageBuilder::new_vec();
        let mut answer = builder.start_error(&message, OptRcode::NOERROR.rcode());
        answer.header_mut().set_tc(true);
        answer.finish()
    }

    fn at_apex(
        &self,
        table: &Table,
        kind: Rtype,
        edns: Option<Edns>,
        asked: Asked<'_>,
    ) -> Reply<'_> {
        if kind == Rtype::NS {
            return Reply {
                answers: self
                    .servers
                    .iter()
                    .map(|(name, _)| Row::Server(name))
                    .collect(),
                with_glue: true,
                scope: 0,
            };
        }
        if kind == Rtype::SOA {
            return Reply {
                answers: vec![Row::Authority],
                ..Reply::default()
            };
        }
        // A prefix of no bits says that the client wants to be nobody.
        let subnet = edns
            .and_then(|edns| edns.subnet)
            .filter(|(length, _)| *length > 0);
        let place = self
            .map
            .find(subnet.map_or(asked.from, |(_, client)| client));
        let order = || self.map.order(place.region);
        let mut reply = of_kind(kind, |kind| match kind {
            Rtype::A => table
                .v4(order(), asked.turn)
                .into_iter()
                .map(IpAddr::V4)
                .collect(),
            _ => table
                .v6(order(), asked.turn)
                .into_iter()
                .map(IpAddr::V6)
                .collect::<Vec<_>>(),
        });
        if kind == Rtype::ANY && reply.answers.is_empty() {
            reply.answers.push(Row::Authority);
        }
        reply.scope = subnet.map_or(0, |_| place.scope);
        reply
    }

    fn place(&self, name: &ParsedName<&[u8]>, table: &Table) -> Place<'_> {
        if name.name_eq(&self.apex) {
            return Place::Apex;
        }
        if let Some((_, addresses)) = self.servers.iter().find(|(server, _)| server.name_eq(name)) {
            return Place::Server(addresses);
        }
        if name.label_count() == self.apex.label_count() + 1
            && let Some(label) = name.iter_labels().next()
        {
            let region = String::from_utf8_lossy(label.as_slice()).to_ascii_lowercase();
            if table.has(&region) || self.map.names(&region) {
                return Place::Region(region);
            }
        }
        if self
            .servers
            .iter()
            .any(|(server, _)| server.ends_with(name))
        {
            return Place::Between;
        }
        Place::Nothing
    }

    fn compose(
        &self,
        message: &Message<&[u8]>,
        (outcome, rcode): (Outcome, OptRcode),
        edns: Option<Edns>,
        (reply, tcp): (&Reply<'_>, bool),
    ) -> Result<Vec<u8>, PushError> {
        let taken = edns.map_or(DATAGRAM_BYTES, |edns| edns.datagram_bytes);
        let limit = if tcp {
            u16::MAX
        } else {
            taken.clamp(DATAGRAM_BYTES, DATAGRAM_BYTES_MAX)
        };
        let target = StaticCompressor::new(Vec::with_capacity(usize::from(DATAGRAM_BYTES)));
        let mut builder = MessageBuilder::from_target(target).map_err(|_| PushError::ShortBuf)?;
        builder.set_push_limit(usize::from(limit) - OPT_BYTES);
        let mut answer = builder.start_answer(message, rcode.rcode())?;
        let ours = matches!(
            outcome,
            Outcome::Answered | Outcome::NoData | Outcome::NoName
        );
        answer.header_mut().set_aa(ours);
        let question = message.sole_question().ok();
        let mut fits = true;
        if let Some(question) = &question {
            for row in &reply.answers {
                fits = fits && self.push(*row, question.qname(), &mut answer).is_ok();
            }
        }
        let mut authority = answer.authority();
        if matches!(outcome, Outcome::NoData | Outcome::NoName) {
            fits = fits
                && authority
                    .push((&self.apex, Class::IN, self.ttl, self.soa()))
                    .is_ok();
        }
        let mut additional = authority.additional();
        let glue = self.servers.iter().filter(|_| reply.with_glue);
        for (name, address) in
            glue.flat_map(|(name, all)| all.iter().map(move |address| (name, address)))
        {
            // An answer without them is whole.
            let _ = match address {
                IpAddr::V4(address) => {
                    additional.push((name, Class::IN, ZONE_TTL, A::new(*address)))
                }
                IpAddr::V6(address) => {
                    additional.push((name, Class::IN, ZONE_TTL, Aaaa::new(*address)))
                }
            };
        }
        additional.header_mut().set_tc(!fits);
        if let Some(edns) = edns {
            additional.clear_push_limit();
            additional.opt(|opt| {
                opt.set_udp_payload_size(DATAGRAM_BYTES_MAX);
                opt.set_rcode(rcode);
                match edns.subnet {
                    Some((length, client)) => opt.client_subnet(length, reply.scope, client),
                    None => Ok(()),
                }
            })?;
        }
        Ok(additional.finish().into_target())
    }

    fn push<T: Composer>(
        &self,
        row: Row<'_>,
        name: impl ToName,
        answer: &mut AnswerBuilder<T>,
    ) -> Result<(), PushError> {
        let (class, short) = (Class::IN, self.ttl);
        match row {
            Row::Address(IpAddr::V4(address)) => answer.push((name, class, short, A::new(address))),
            Row::Address(IpAddr::V6(address)) => {
                answer.push((name, class, short, Aaaa::new(address)))
            }
            Row::Server(server) => answer.push((name, class, ZONE_TTL, Ns::new(server))),
            Row::Authority => answer.push((name, class, ZONE_TTL, self.soa())),
        }
    }

    fn soa(&self) -> Soa<&Owned> {
        let first = self.servers.first().map_or(&self.apex, |(name, _)| name);
        // Nobody transfers the zone, and all replicas say the same.
        let (serial, day) = (Serial(1), Ttl::from_secs(86_400));
        Soa::new(
            first,
            &self.hostmaster,
            serial,
            day,
            ZONE_TTL,
            day,
            self.ttl,
        )
    }
}

/// Addresses of what was asked for; for ANY, of either kind.
fn of_kind<'a>(kind: Rtype, addresses: impl Fn(Rtype) -> Vec<IpAddr>) -> Reply<'a> {
    let mut found = match kind {
        Rtype::A | Rtype::AAAA => addresses(kind),
        Rtype::ANY => addresses(Rtype::A),
        _ => Vec::new(),
    };
    if kind == Rtype::ANY && found.is_empty() {
        found = addresses(Rtype::AAAA);
    }
    Reply {
        answers: found.into_iter().map(Row::Address).collect(),
        ..Reply::default()
    }
}

/// What the OPT record says, if there is one; everything else behind the question must be records, too.
fn edns(message: &Message<&[u8]>) -> Result<Option<Edns>, ParseError> {
    let mut found = None;
    for section in [message.answer()?, message.authority()?] {
        for record in section {
            record?;
        }
    }
    for record in message.additional()? {
        let record = record?;
        if record.rtype() != Rtype::OPT {
            continue;
        }
        let Some(record) = record.into_record::<domain::base::opt::Opt<_>>()? else {
            continue;
        };
        let record = OptRecord::from_record(record);
        let mut subnet = None;
        if record.version() == 0 {
            for said in record.opt().iter::<ClientSubnet>() {
                let said = said?;
                if said.scope_prefix_len() != 0 {
                    return Err(ParseError::form_error("a scope in a query"));
                }
                subnet = Some((said.source_prefix_len(), said.addr()));
            }
        }
        let edns = Edns {
            version: record.version(),
            datagram_bytes: record.udp_payload_size(),
            subnet,
        };
        if found.replace(edns).is_some() {
            return Err(ParseError::form_error("two OPT records"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
