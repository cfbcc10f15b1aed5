//! `[dns]`: the zone that control answers for itself.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::{is_domain, source::Source};

/// Longest time that a resolver may keep an answer: a day. What it keeps, it does not ask again when an ingress goes.
const TTL_S_MAX: u64 = 86_400;

/// Name servers of a zone: more make answers too long for one datagram.
const NS_MAX: usize = 8;

/// The zone, and where it is served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Dns {
    /// Where queries are taken, over UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Name of the zone, such as `edge.example.com`.
    pub zone: String,
    /// Its name servers, with addresses for those within the zone.
    pub ns: Vec<(String, Vec<IpAddr>)>,
    /// Mailbox of who is responsible, as a domain name. Default `hostmaster.ZONE`.
    pub hostmaster: String,
    /// How long resolvers may keep an answer, in seconds. 1 to 86,400; default 20.
    pub ttl_s: u32,
    /// TOML that says which clients are in which region.
    pub regions_file: Option<PathBuf>,
    /// Addresses of this machine and of private networks are answered as well.
    pub private_addresses: bool,
}

/// `None` when no address is set.
pub(super) fn read(source: &mut Source<'_>) -> Option<Dns> {
    let listen = source.list("dns", "listen", &[]);
    let zone = source
        .text("dns", "zone", "")
        .trim_end_matches('.')
        .to_ascii_lowercase();
    let ns = source.list("dns", "ns", &[]);
    let hostmaster = source
        .text("dns", "hostmaster", "")
        .trim_end_matches('.')
        .to_ascii_lowercase();
    let ttl_s = source.number("dns", "ttl_s", 20, 1..=TTL_S_MAX);
    let regions_file = source.text("dns", "regions_file", "");
    let private = source.text("dns", "private_addresses", "refuse");
    let listen: Vec<SocketAddr> = listen
        .iter()
        .filter_map(|text| match text.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                let why = format!("`{text}` is not an address and port, such as 203.0.113.1:53");
                source.fault("dns.listen", &why);
                None
            }
        })
        .collect();
    if listen.is_empty() {
        if !zone.is_empty() || !ns.is_empty() {
            source.fault("dns.listen", "must say where the zone is served");
        }
        return None;
    }
    let hostmaster = if hostmaster.is_empty() {
        format!("hostmaster.{zone}")
    } else {
        hostmaster.replacen('@', ".", 1)
    };
    for (key, name) in [("dns.zone", &zone), ("dns.hostmaster", &hostmaster)] {
        if !is_domain(name) {
            source.fault(key, "must be a domain name, such as edge.example.com");
        }
    }
    if !matches!(private.as_str(), "refuse" | "answer") {
        source.fault("dns.private_addresses", "must be `refuse` or `answer`");
    }
    Some(Dns {
        listen,
        ns: name_servers(source, &zone, &ns),
        zone,
        hostmaster,
        ttl_s: u32::try_from(ttl_s).unwrap_or(20),
        regions_file: (!regions_file.is_empty()).then(|| PathBuf::from(regions_file)),
        private_addresses: private == "answer",
    })
}

/// Each as `NAME` or, within the zone, as `NAME ADDRESS...`: nobody else could tell its address.
fn name_servers(
    source: &mut Source<'_>,
    zone: &str,
    rows: &[String],
) -> Vec<(String, Vec<IpAddr>)> {
    if rows.is_empty() || rows.len() > NS_MAX {
        let why = format!("must name 1 to {NS_MAX} name servers, as the zone above names them");
        source.fault("dns.ns", &why);
    }
    let mut servers = Vec::new();
    for row in rows {
        let mut words = row.split_whitespace();
        let name = words.next().unwrap_or_default();
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let addresses: Result<Vec<IpAddr>, _> = words.map(str::parse).collect();
        let within = name.ends_with(&format!(".{zone}"));
        match addresses {
            _ if !is_domain(&name) => source.fault("dns.ns", &format!("`{row}` begins with no domain name")),
            Err(_) => source.fault("dns.ns", &format!("`{row}` must be NAME ADDRESS...")),
            Ok(addresses) if within == addresses.is_empty() => source.fault(
                "dns.ns",
                &format!("`{row}`: a name within the zone needs its addresses behind it, and no other may have any"),
            ),
            Ok(addresses) => servers.push((name, addresses)),
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    fn read(dns: &str) -> Result<Config, String> {
        Config::read(&format!("[dns]\n{dns}"), &|_| None).map_err(|error| error.to_string())
    }

    #[test]
    fn a_zone_has_what_it_needs() {
        assert!(read("").unwrap().dns.is_none());
        let dns = read(
            "listen = [\"127.0.0.1:53\"]\nzone = \"Edge.example.com.\"\nns = [\"ns1.edge.example.com 192.0.2.1 2001:db8::1\", \"ns.other.net\"]\nhostmaster = \"ops@example.com\"",
        );
        let dns = dns.unwrap().dns.unwrap();
        assert_eq!((dns.zone.as_str(), dns.ttl_s), ("edge.example.com", 20));
        assert_eq!(dns.hostmaster, "ops.example.com");
        assert_eq!((dns.ns[0].1.len(), dns.ns[1].1.len()), (2, 0));
        assert!(!dns.private_addresses && dns.regions_file.is_none());
    }

    #[test]
    fn every_fault_has_its_key() {
        let rows = [
            ("zone = \"edge.example.com\"", "dns.listen"),
            ("listen = [\"53\"]", "dns.listen"),
            ("listen = [\"127.0.0.1:53\"]", "dns.zone"),
            ("listen = [\"127.0.0.1:53\"]\nzone = \"e.com\"", "dns.ns"),
            (
                "listen = [\"127.0.0.1:53\"]\nzone = \"e.com\"\nns = [\"ns.e.com\"]",
                "needs its addresses",
            ),
            (
                "listen = [\"127.0.0.1:53\"]\nzone = \"e.com\"\nns = [\"ns.f.com 192.0.2.1\"]",
                "no other may have",
            ),
            (
                "listen = [\"127.0.0.1:53\"]\nzone = \"e.com\"\nns = [\"ns.e.com here\"]",
                "NAME ADDRESS",
            ),
            (
                "listen = [\"127.0.0.1:53\"]\nzone = \"e.com\"\nns = [\"n.f.com\"]\nttl_s = 0",
                "dns.ttl_s",
            ),
            (
                "listen = [\"127.0.0.1:53\"]\nzone = \"e.com\"\nns = [\"n.f.com\"]\nprivate_addresses = \"yes\"",
                "dns.private_addresses",
            ),
        ];
        for (text, told) in rows {
            let error = read(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
