//! How far an address reaches: whether a provider may be behind it.
//!
//! Control judges base URLs by it, and an egress every address that it is about to dial, so that a name which
//! suddenly points inwards leads nowhere (DNS rebinding). Sources: IANA's special-purpose address registries
//! (RFC 6890) and the metadata services of the large clouds. Addresses of version 6 that carry one of version 4
//! are judged by what they carry.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Who may be behind an address.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reach {
    /// Anybody on the internet.
    Public,
    /// This machine or its own network: a provider only where the operator says so.
    Private,
    /// No provider: link-local (where clouds keep the secrets of machines), multicast, reserved or unspecified.
    Never,
}

/// Metadata services outside of the link-local network: Oracle's and Alibaba's.
const METADATA_V4: [Ipv4Addr; 2] = [
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(100, 100, 100, 200),
];

/// Amazon's metadata service.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

impl Reach {
    /// How far this address reaches.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(four) => of_v4(four),
            IpAddr::V6(six) => of_v6(six),
        }
    }
}

fn of_v4(four: Ipv4Addr) -> Reach {
    let [a, b, c, _] = four.octets();
    let never = four.is_link_local()
        || four.is_multicast()
        || a == 0
        || a >= 240
        || METADATA_V4.contains(&four);
    let private = four.is_loopback()
        || four.is_private()
        // Carriers' own (RFC 6598), protocol assignments, and benchmarks (RFC 2544).
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && b & 0xfe == 18);
    if never {
        Reach::Never
    } else if private {
        Reach::Private
    } else {
        Reach::Public
    }
}

fn of_v6(six: Ipv6Addr) -> Reach {
    if six.is_loopback() {
        return Reach::Private;
    }
    if six.is_unspecified()
        || six.is_multicast()
        || six.is_unicast_link_local()
        || six == METADATA_V6
    {
        return Reach::Never;
    }
    let parts = six.segments();
    let v4 = |high: u16, low: u16| of_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match parts {
        // Mapped, compatible (RFC 4291), translated (RFC 2765) and NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        // NAT64 of one's own (RFC 8215): only who runs it knows where it leads.
        [0x64, 0xff9b, 1, _, _, _, high, low] => v4(high, low).max(Reach::Private),
        // 6to4 (RFC 3056) carries it in front; Teredo hides it.
        [0x2002, high, low, ..] => v4(high, low),
        [0x2001, 0, ..] => Reach::Never,
        // Unique local (RFC 4193) and its forerunner.
        [first, ..] if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 => Reach::Private,
        _ => Reach::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(reach: Reach, addresses: &[&str]) {
        for text in addresses {
            assert_eq!(Reach::of(text.parse().unwrap()), reach, "{text}");
        }
    }

    #[test]
    fn the_internet_is_public() {
        all(
            Reach::Public,
            &[
                "1.1.1.1",
                "172.15.255.255",
                "172.32.0.0",
                "100.63.255.255",
                "100.128.0.0",
                "198.17.255.255",
                "198.20.0.0",
                "2606:4700::1111",
                "::ffff:1.1.1.1",
                "64:ff9b::1.1.1.1",
                "2002:101:101::1",
            ],
        );
    }

    #[test]
    fn this_machine_and_its_network_are_private() {
        all(
            Reach::Private,
            &[
                "127.0.0.1",
                "127.255.255.254",
                "10.0.0.8",
                "172.16.0.1",
                "172.31.255.255",
                "192.168.1.1",
                "100.64.0.1",
                "198.18.0.1",
                "192.0.0.8",
                "::1",
                "fc00::1",
                "fdff::1",
                "fec0::1",
                "::ffff:127.0.0.1",
                "::127.0.0.1",
                "::ffff:0:10.0.0.8",
                "64:ff9b::192.168.1.1",
                "64:ff9b:1::1.1.1.1",
                "2002:a00:8::1",
            ],
        );
    }

    #[test]
    fn metadata_and_what_is_no_address_are_never_a_provider() {
        all(
            Reach::Never,
            &[
                "169.254.169.254",
                "169.254.0.1",
                "100.100.100.200",
                "192.0.0.192",
                "0.0.0.0",
                "0.1.2.3",
                "224.0.0.1",
                "240.0.0.1",
                "255.255.255.255",
                "::",
                "fe80::1",
                "febf::1",
                "ff02::1",
                "fd00:ec2::254",
                "::ffff:169.254.169.254",
                "::169.254.169.254",
                "64:ff9b::169.254.169.254",
                "64:ff9b:1::169.254.169.254",
                "64:ff9b::0.0.0.0",
                "2002:a9fe:a9fe::",
                "2001:0:1::1",
            ],
        );
    }
}
