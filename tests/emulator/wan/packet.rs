//! As much of IPv4 as a router needs: where a packet goes, and what its sender is told when it cannot.

use std::net::Ipv4Addr;

/// Bytes of an IPv4 header without options.
const HEADER_BYTES: usize = 20;

/// An ICMP error quotes the header and this much of what follows (RFC 792).
const QUOTED_BYTES: usize = 8;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Why a packet goes no further, as ICMP "destination unreachable" has it (RFC 792, RFC 1191).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unreachable {
    /// There is no line.
    Network,
    /// It is larger than the far end takes, and must not be cut.
    TooLarge { mtu: usize },
}

/// From where and where to; nothing for what is not IPv4.
pub(crate) fn ends(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    if packet.len() < HEADER_BYTES || packet[0] >> 4 != 4 {
        return None;
    }
    let ip = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    Some((ip(12), ip(16)))
}

/// Whether routers must not cut it.
pub(crate) fn is_whole(packet: &[u8]) -> bool {
    packet.get(6).is_some_and(|flags| flags & 0x40 != 0)
}

/// What to tell a packet's sender; nothing where that would answer an error, a broadcast's rest or a fragment.
pub(crate) fn unreachable(why: Unreachable, router: Ipv4Addr, packet: &[u8]) -> Option<Vec<u8>> {
    let (sender, _) = ends(packet)?;
    let header = usize::from(packet[0] & 15) * 4;
    let later_fragment = packet[6] & 0x1f != 0 || packet[7] != 0;
    if !matches!(packet[9], TCP | UDP) || later_fragment {
        return None;
    }
    let quoted = packet.get(..header + QUOTED_BYTES)?;
    let (code, mtu) = match why {
        Unreachable::Network => (0, 0),
        Unreachable::TooLarge { mtu } => (4, u16::try_from(mtu).unwrap_or(u16::MAX)),
    };
    let mut told = vec![0; HEADER_BYTES + 8];
    told.extend_from_slice(quoted);
    let length = u16::try_from(told.len()).ok()?;
    told[0] = 0x45;
    told[2..4].copy_from_slice(&length.to_be_bytes());
    told[8] = 64;
    told[9] = ICMP;
    told[12..16].copy_from_slice(&router.octets());
    told[16..20].copy_from_slice(&sender.octets());
    let sum = checksum(&told[..HEADER_BYTES]);
    told[10..12].copy_from_slice(&sum.to_be_bytes());
    told[20] = 3;
    told[21] = code;
    told[26..28].copy_from_slice(&mtu.to_be_bytes());
    let sum = checksum(&told[HEADER_BYTES..]);
    told[22..24].copy_from_slice(&sum.to_be_bytes());
    Some(told)
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    };
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::{Unreachable, checksum, ends, unreachable};

    const HEADER: [u8; 20] = [
        0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7,
    ];

    #[test]
    fn the_sum_of_a_known_header_is_right() {
        assert_eq!(checksum(&HEADER), 0xb861);
    }

    #[test]
    fn a_sender_is_told_with_a_quote_of_what_it_sent() {
        let packet = [HEADER.as_slice(), &[7; 30]].concat();
        let router = "10.77.0.254".parse().unwrap();
        let told = unreachable(Unreachable::TooLarge { mtu: 1280 }, router, &packet).unwrap();
        assert_eq!(ends(&told), Some((router, "192.168.0.1".parse().unwrap())));
        assert_eq!((checksum(&told[..20]), checksum(&told[20..])), (0, 0));
        assert_eq!(told[20..22], [3, 4]);
        assert_eq!(told[26..28], 1280_u16.to_be_bytes());
        assert_eq!(told[28..], packet[..28]);
    }

    #[test]
    fn errors_fragments_and_rubbish_are_not_answered() {
        let router = "10.77.0.254".parse().unwrap();
        let with = |at: usize, byte: u8| {
            let mut packet = [HEADER.as_slice(), &[0; 30]].concat();
            packet[at] = byte;
            packet
        };
        for packet in [
            with(9, 1),
            with(7, 1),
            with(0, 0x65),
            with(0, 0x4f),
            Vec::new(),
            vec![0x45],
        ] {
            assert_eq!(
                unreachable(Unreachable::Network, router, &packet),
                None,
                "{packet:?}"
            );
        }
    }
}
