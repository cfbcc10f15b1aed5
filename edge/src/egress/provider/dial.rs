//! Makes one connection to a provider: address, TCP, TLS.
//!
//! Addresses are tried a quarter of a second apart, the families in turn, and the first that answers wins. Only what the
//! operator wrote as a base URL is ever dialled; addresses that no provider can have are refused, so that a
//! name which suddenly points inwards leads nowhere.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustls::{ClientConfig, pki_types::ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{resolve::Resolver, stream::Stream};

/// Head start of an address over the next.
const STAGGER: Duration = Duration::from_millis(250);

/// Silence after which the kernel asks whether the peer is still there, and how often.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Why no connection could be made. No byte of a request has left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name could not be resolved.
    #[error("name lookup: {0}")]
    Name(#[source] io::Error),
    /// No address may be dialled.
    #[error("the name stands for no address that a provider may have")]
    Forbidden,
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

/// Where to, and how.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) host: Box<str>,
    pub(super) port: u16,
    /// `None` for plain HTTP.
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
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
        let addresses = order(&addresses, self.tls.is_none());
        if addresses.is_empty() {
            return Err(Error::Forbidden);
        }
        let tcp = race(&addresses, self.port).await.map_err(Error::Tcp)?;
        tune(&tcp).map_err(Error::Tcp)?;
        let Some((config, name)) = &self.tls else {
            return Ok(Stream::Plain(tcp));
        };
        let tls = TlsConnector::from(Arc::clone(config))
            .connect(name.clone(), tcp)
            .await
            .map_err(Error::Tls)?;
        Ok(Stream::Tls(Box::new(tls)))
    }
}

/// The addresses that may be dialled, IPv6 and IPv4 in turn.
fn order(addresses: &[IpAddr], plain: bool) -> Vec<IpAddr> {
    let legal = |address: &&IpAddr| may_dial(**address, plain);
    let (six, four): (Vec<IpAddr>, Vec<IpAddr>) = addresses
        .iter()
        .filter(legal)
        .partition(|address| address.is_ipv6());
    let longest = six.len().max(four.len());
    (0..longest)
        .flat_map(|at| [six.get(at), four.get(at)])
        .flatten()
        .copied()
        .collect()
}

/// Link-local addresses (cloud metadata among them), multicast and the unspecified address are no provider's. Private ones may
/// be an operator's own model server. Without TLS only loopback will do, since the key would travel in clear.
fn may_dial(address: IpAddr, plain: bool) -> bool {
    let address = address.to_canonical();
    let odd = match address {
        IpAddr::V4(four) => four.is_link_local() || four.is_broadcast(),
        IpAddr::V6(six) => six.is_unicast_link_local(),
    };
    let odd = odd || address.is_multicast() || address.is_unspecified();
    !odd && (!plain || address.is_loopback())
}

async fn race(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut tries = FuturesUnordered::new();
    let mut left = addresses.iter();
    let mut last = io::Error::other("no address");
    loop {
        if let Some(address) = left.next() {
            tries.push(TcpStream::connect(SocketAddr::new(*address, port)));
        } else if tries.is_empty() {
            return Err(last);
        }
        let alone = left.len() == 0;
        tokio::select! {
            Some(done) = tries.next() => match done {
                Ok(tcp) => return Ok(tcp),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, over_tls: bool, plain: bool) {
        let parsed: IpAddr = address.parse().unwrap();
        assert_eq!(may_dial(parsed, false), over_tls, "{address} over TLS");
        assert_eq!(may_dial(parsed, true), plain, "{address} in clear");
    }

    #[test]
    fn metadata_and_other_inward_addresses_are_never_dialled() {
        check("169.254.169.254", false, false);
        check("::ffff:169.254.169.254", false, false);
        check("fe80::1", false, false);
        check("0.0.0.0", false, false);
        check("224.0.0.1", false, false);
        check("10.0.0.8", true, false);
        check("203.0.113.9", true, false);
        check("127.0.0.1", true, true);
        check("::1", true, true);
    }

    #[test]
    fn families_take_turns() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        let given = ["203.0.113.1", "203.0.113.2", "2001:db8::1", "169.254.0.1"].map(parse);
        let ordered = ["2001:db8::1", "203.0.113.1", "203.0.113.2"].map(parse);
        assert_eq!(order(&given, false), ordered);
    }
}
