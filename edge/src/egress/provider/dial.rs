//! Makes one connection to a provider: address, TCP, TLS.
//!
//! Addresses are tried a quarter of a second apart, the families in turn, and the first that answers wins. Only what the
//! operator wrote as a base URL is ever dialled; every address is judged each time, and the one that was judged is the
//! one that is dialled, so that a name which suddenly points inwards leads nowhere.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustls::{ClientConfig, pki_types::ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use vector_proto::reach::Reach;

use super::{resolve::Resolver, stream::Stream};

/// Head start of an address over the next.
const STAGGER: Duration = Duration::from_millis(250);

/// Silence after which the kernel asks whether the peer is still there, and how often.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A provider that takes a connection so soon is beside this egress.
const BESIDE: Duration = Duration::from_millis(10);

/// Why no connection could be made. No byte of a request has left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name could not be resolved.
    #[error("name lookup: {0}")]
    Name(#[source] io::Error),
    /// No address may be dialled; this is the first.
    #[error("base_url: {host} stands for {address}, which is not dialled: {why}")]
    Forbidden {
        /// Host of the base URL.
        host: Box<str>,
        /// What it stands for.
        address: IpAddr,
        /// What is against it.
        why: Objection,
    },
    /// No address answered.
    #[error("connect: {0}")]
    Tcp(#[source] io::Error),
    /// The TLS handshake failed.
    #[error("TLS handshake: {0}")]
    Tls(#[source] io::Error),
    /// The HTTP handshake failed.
    #[error("HTTP handshake: {0}")]
    Http(#[from] hyper::Error),
    /// It took longer than the provider's limit.
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    /// All connections that the provider may have are in use.
    #[error("all {0} connections are in use")]
    Full(usize),
}

/// What is against dialling an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Objection {
    /// Link-local (cloud metadata among it), multicast, reserved or unspecified.
    #[error("no provider has such an address")]
    Never,
    /// Inside, and the provider is not said to be.
    #[error("it is private, and the provider is not marked allow_private")]
    Private,
    /// The key would travel in clear.
    #[error("plain HTTP goes to loopback only")]
    Plain,
}

/// Where to, and how.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) host: Box<str>,
    pub(super) port: u16,
    /// `None` for plain HTTP.
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Loopback and private networks may be dialled.
    pub(super) allow_private: bool,
    pub(super) resolver: Arc<Resolver>,
}

impl Dial {
    /// Connects within `limit`.
    ///
    /// Cancel safety: dropping it closes what was begun.
    pub(super) async fn connect(&self, limit: Duration) -> Result<Stream, Error> {
        tokio::time::timeout(limit, self.stream())
            .await
            .map_err(|_| Error::TimedOut(limit))?
    }

    async fn stream(&self) -> Result<Stream, Error> {
        let addresses = self
            .resolver
            .lookup(&self.host)
            .await
            .map_err(Error::Name)?;
        let addresses = self.permitted(&addresses)?;
        let (tcp, took) = race(&addresses, self.port).await.map_err(Error::Tcp)?;
        tune(&tcp).map_err(Error::Tcp)?;
        if took < BESIDE {
            unpaced(&tcp);
        }
        let Some((config, name)) = &self.tls else {
            return Ok(Stream::Plain(tcp));
        };
        let tls = TlsConnector::from(Arc::clone(config))
            .connect(name.clone(), tcp)
            .await
            .map_err(Error::Tls)?;
        Ok(Stream::Tls(Box::new(tls)))
    }

    /// Those that may be dialled, in the order of trying.
    fn permitted(&self, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
        let mut refused = None;
        let mut good = Vec::with_capacity(addresses.len());
        for address in addresses {
            match self.objection(*address) {
                None => good.push(*address),
                Some(why) => refused = refused.or(Some((*address, why))),
            }
        }
        match refused {
            Some((address, why)) if good.is_empty() => Err(Error::Forbidden {
                host: self.host.clone(),
                address,
                why,
            }),
            _ => Ok(order(&good)),
        }
    }

    fn objection(&self, address: IpAddr) -> Option<Objection> {
        let loopback = address.to_canonical().is_loopback();
        match Reach::of(address) {
            Reach::Never => Some(Objection::Never),
            Reach::Private if !self.allow_private => Some(Objection::Private),
            Reach::Private | Reach::Public => {
                (self.tls.is_none() && !loopback).then_some(Objection::Plain)
            }
        }
    }
}

/// IPv6 and IPv4 in turn.
fn order(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let (six, four): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.iter().partition(|address| address.is_ipv6());
    let longest = six.len().max(four.len());
    (0..longest)
        .flat_map(|at| [six.get(at), four.get(at)])
        .flatten()
        .copied()
        .collect()
}

/// The first connection, and how long it took to be there.
async fn race(addresses: &[IpAddr], port: u16) -> io::Result<(TcpStream, Duration)> {
    let connect = async |address: SocketAddr| {
        let began = Instant::now();
        let tcp = TcpStream::connect(address).await?;
        io::Result::Ok((tcp, began.elapsed()))
    };
    let mut tries = FuturesUnordered::new();
    let mut left = addresses.iter();
    let mut last = io::Error::other("no address");
    loop {
        if let Some(address) = left.next() {
            tries.push(connect(SocketAddr::new(*address, port)));
        } else if tries.is_empty() {
            return Err(last);
        }
        let alone = left.len() == 0;
        tokio::select! {
            Some(done) = tries.next() => match done {
                Ok(first) => return Ok(first),
                Err(error) => last = error,
            },
            () = tokio::time::sleep(STAGGER), if !alone => {}
        }
    }
}

fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE);
    SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}

/// Lets a prompt go to a near provider all at once. Where the host has BBR for its long roads, that would send it at the rate at
/// which the last ones came over the tunnel: 256 KiB took up to 12 ms in place of 2. On a long road the host's choice stays.
fn unpaced(tcp: &TcpStream) {
    #[cfg(target_os = "linux")]
    // A kernel without it goes on as it does.
    let _ = SockRef::from(tcp).set_tcp_congestion(b"cubic");
    #[cfg(not(target_os = "linux"))]
    let _ = tcp;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dial(plain: bool, allow_private: bool) -> Dial {
        let tls = (!plain).then(|| {
            let name = ServerName::try_from("provider.test").unwrap();
            (super::super::tls::client(None).unwrap(), name)
        });
        Dial {
            host: "provider.test".into(),
            port: 9,
            tls,
            allow_private,
            resolver: Arc::default(),
        }
    }

    #[test]
    fn inward_addresses_are_dialled_only_where_meant_and_metadata_never() {
        use Objection::{Never, Plain, Private};
        // Over TLS; over TLS and private; in clear and private.
        for (address, expected) in [
            ("203.0.113.9", [None, None, Some(Plain)]),
            ("2606:4700::1111", [None, None, Some(Plain)]),
            ("10.0.0.8", [Some(Private), None, Some(Plain)]),
            ("fd12::1", [Some(Private), None, Some(Plain)]),
            ("64:ff9b::10.0.0.8", [Some(Private), None, Some(Plain)]),
            ("127.0.0.1", [Some(Private), None, None]),
            ("::ffff:127.0.0.1", [Some(Private), None, None]),
            ("::1", [Some(Private), None, None]),
            ("169.254.169.254", [Some(Never); 3]),
            ("::ffff:169.254.169.254", [Some(Never); 3]),
            ("64:ff9b::169.254.169.254", [Some(Never); 3]),
            ("fe80::1", [Some(Never); 3]),
            ("0.0.0.0", [Some(Never); 3]),
            ("::", [Some(Never); 3]),
            ("224.0.0.1", [Some(Never); 3]),
        ] {
            let parsed = address.parse().unwrap();
            let found = [(false, false), (false, true), (true, true)]
                .map(|(plain, private)| dial(plain, private).objection(parsed));
            assert_eq!(found, expected, "{address}");
        }
        assert_eq!(
            dial(true, false).objection("127.0.0.1".parse().unwrap()),
            Some(Private)
        );
    }

    #[test]
    fn families_take_turns_and_only_refused_addresses_are_an_error() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        let given = ["203.0.113.1", "203.0.113.2", "2001:db8::1", "169.254.0.1"].map(parse);
        let ordered = ["2001:db8::1", "203.0.113.1", "203.0.113.2"].map(parse);
        assert_eq!(dial(false, false).permitted(&given).unwrap(), ordered);
        let error = dial(false, false).permitted(&["10.0.0.8"].map(parse));
        assert_eq!(
            error.unwrap_err().to_string(),
            "base_url: provider.test stands for 10.0.0.8, which is not dialled: it is private, \
             and the provider is not marked allow_private"
        );
    }

    #[tokio::test]
    async fn a_name_that_turns_inwards_is_not_followed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut dial = dial(true, true);
        // Resolvers read it as 127.0.0.1, as they would a name whose owner points it there.
        dial.host = "2130706433".into();
        dial.port = listener.local_addr().unwrap().port();
        let limit = Duration::from_secs(10);
        // Marked, it is reached: the refusal below is of the address and not of the host.
        let stream = dial.connect(limit).await.unwrap();
        #[cfg(target_os = "linux")]
        if let Stream::Plain(tcp) = &stream {
            use socket2::{Domain, Socket, Type};
            // Where this kernel has it and this user may set it.
            let fresh = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let may = fresh.set_tcp_congestion(b"cubic").is_ok();
            let name = SockRef::from(tcp).tcp_congestion().unwrap();
            assert!(!may || name.starts_with(b"cubic"));
        }
        listener.accept().unwrap();
        dial.allow_private = false;
        let refused = dial.connect(limit).await.unwrap_err();
        assert!(
            matches!(
                refused,
                Error::Forbidden {
                    why: Objection::Private,
                    ..
                }
            ),
            "{refused}"
        );
        let nobody = listener.accept().unwrap_err();
        assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
    }
}
