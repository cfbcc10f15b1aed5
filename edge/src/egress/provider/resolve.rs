//! Names to addresses, remembered and refreshed in the background.
//!
//! A call never waits for DNS but the first one to a host; when DNS fails, the last good answer stays in use.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Age at which an answer is asked for again.
const FRESH: Duration = Duration::from_secs(30);

/// Time without use after which a host is forgotten.
const FORGET: Duration = Duration::from_secs(3600);

/// Hosts remembered. They come from the operator's list of providers, so this is only a fuse.
const HOSTS_MAX: usize = 1024;

/// Addresses of one host that are kept. 1,024 hosts x 16 addresses x 32 bytes = 512 KiB at the worst.
const ADDRESSES_MAX: usize = 16;

#[derive(Debug)]
struct Entry {
    addresses: Arc<[IpAddr]>,
    learnt: Instant,
    used: Instant,
}

/// Remembers what names stand for.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    hosts: Mutex<HashMap<Box<str>, Entry>>,
}

impl Resolver {
    /// Addresses of `host`, which may be an address itself.
    pub(super) async fn lookup(&self, host: &str) -> io::Result<Arc<[IpAddr]>> {
        if let Ok(address) = host.parse() {
            return Ok(Arc::new([address]));
        }
        let now = Instant::now();
        if let Some(entry) = self.hosts.lock().get_mut(host) {
            entry.used = now;
            return Ok(Arc::clone(&entry.addresses));
        }
        let addresses = ask(host).await?;
        self.learn(host, &addresses, now, now);
        Ok(addresses)
    }

    /// Asks again for every host whose answer is old, and forgets those that nobody uses.
    pub(super) async fn refresh(&self, now: Instant) {
        let old: Vec<(Box<str>, Instant)> = {
            let mut hosts = self.hosts.lock();
            hosts.retain(|_, entry| now.saturating_duration_since(entry.used) < FORGET);
            hosts
                .iter()
                .filter(|(_, entry)| now.saturating_duration_since(entry.learnt) >= FRESH)
                .map(|(host, entry)| (host.clone(), entry.used))
                .collect()
        };
        for (host, used) in old {
            match ask(&host).await {
                Ok(addresses) => self.learn(&host, &addresses, now, used),
                Err(error) => {
                    tracing::warn!(%host, %error, "name lookup failed; the last answer stays in use");
                }
            }
        }
    }

    fn learn(&self, host: &str, addresses: &Arc<[IpAddr]>, learnt: Instant, used: Instant) {
        let mut hosts = self.hosts.lock();
        if hosts.len() < HOSTS_MAX || hosts.contains_key(host) {
            let addresses = Arc::clone(addresses);
            let entry = Entry {
                addresses,
                learnt,
                used,
            };
            hosts.insert(host.into(), entry);
        }
    }
}

async fn ask(host: &str) -> io::Result<Arc<[IpAddr]>> {
    let found = tokio::net::lookup_host((host, 0)).await?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.map(|socket: SocketAddr| socket.ip()) {
        if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(io::Error::other("the name has no address"));
    }
    Ok(addresses.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_good_answer_outlives_dns() {
        let resolver = Resolver::default();
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        let now = Instant::now();
        let known: Arc<[IpAddr]> = Arc::new([address]);
        // `.invalid` never resolves, so every refresh fails.
        resolver.learn("provider.invalid", &known, now, now);
        resolver.refresh(now + FRESH).await;
        let found = resolver.lookup("provider.invalid").await.unwrap();
        assert_eq!(*found, [address]);
        assert!(resolver.lookup("other.invalid").await.is_err());
    }

    #[tokio::test]
    async fn an_address_is_its_own_answer() {
        let resolver = Resolver::default();
        let found = resolver.lookup("::1").await.unwrap();
        assert_eq!(*found, ["::1".parse::<IpAddr>().unwrap()]);
        assert!(resolver.hosts.lock().is_empty());
    }
}
