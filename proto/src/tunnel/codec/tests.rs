//! Frames read back at any cut, and what peers may not send.

use proptest::prelude::*;

use super::*;

fn pieces(chunks: impl IntoIterator<Item = Bytes>) -> Result<(Vec<(Kind, Bytes)>, bool), Error> {
    let mut decoder = Decoder::default();
    let mut frames: Vec<(Kind, Bytes)> = Vec::new();
    for mut chunk in chunks {
        while let Some(piece) = decoder.next(&mut chunk)? {
            match piece {
                Piece::Frame(kind, payload) => frames.push((kind, payload)),
                // Neighbouring pieces of data are one run, wherever the input was cut.
                Piece::Data(data) => match frames.last_mut() {
                    Some((Kind::Data, run)) => *run = [&run[..], &data[..]].concat().into(),
                    _ => frames.push((Kind::Data, data)),
                },
            }
        }
        assert!(chunk.is_empty());
    }
    Ok((frames, decoder.at_boundary()))
}

proptest! {
    #[test]
    fn any_cut_of_the_stream_gives_the_same_frames(
        payloads in prop::collection::vec((0_u8..3, prop::collection::vec(any::<u8>(), 0..300)), 1..8),
        cuts in prop::collection::vec(1_usize..40, 1..60),
    ) {
        let mut stream = BytesMut::new();
        for (kind, payload) in &payloads {
            let kind = [Kind::Head, Kind::Data, Kind::Trailers][usize::from(*kind)];
            put_header(&mut stream, kind, payload.len());
            stream.put_slice(payload);
        }
        let stream = stream.freeze();
        let mut rest = stream.clone();
        let mut chunks = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break; }
            chunks.push(rest.split_to((*cut).min(rest.len())));
        }
        let (whole, end) = pieces([stream]).unwrap();
        prop_assert!(end);
        prop_assert_eq!(pieces(chunks).unwrap().0, whole);
    }

    #[test]
    fn garbage_is_an_error_or_frames_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = pieces([Bytes::from(bytes)]);
    }

    #[test]
    fn entries_read_back(offsets in prop::collection::vec((any::<u128>(), 0_u64..1 << 62, 0_u8..5), 0..5000)) {
        let sent: Vec<Entry> = offsets.iter().map(|&(id, number, kind)| {
            let exchange = ExchangeId::from_bytes(id.to_be_bytes());
            match kind {
                0 => Entry::Ack { exchange, offset: number },
                1 => Entry::Credit { exchange, offset: number },
                2 => Entry::Cancel { exchange, reason: number },
                3 => Entry::Gone { exchange, reason: number },
                _ => Entry::Resume { exchange, attach_seq: number, response_next: number / 3, request_next: 7 },
            }
        }).collect();
        let mut out = BytesMut::new();
        put_entries(&mut out, &sent);
        let (frames, _) = pieces([out.freeze()]).unwrap();
        let read: Vec<Entry> = frames.iter().flat_map(|(kind, payload)| entries(*kind, payload).unwrap()).collect();
        prop_assert_eq!(read, sent);
    }
}

#[test]
fn unknown_kinds_and_absurd_lengths_are_refused() {
    assert_eq!(
        pieces([Bytes::from_static(&[0x7f, 0])]),
        Err(Error::UnknownKind(0x7f))
    );
    let mut long = BytesMut::new();
    put_header(&mut long, Kind::Data, DATA_BYTES_MAX + 1);
    assert!(matches!(
        pieces([long.freeze()]),
        Err(Error::TooLong {
            kind: Kind::Data,
            ..
        })
    ));
    let mut absurd = BytesMut::from(&[Kind::Head as u8][..]);
    put_varint(&mut absurd, u64::MAX);
    assert!(matches!(
        pieces([absurd.freeze()]),
        Err(Error::TooLong {
            kind: Kind::Head,
            ..
        })
    ));
}

#[test]
fn varints_are_those_of_rfc_9000() {
    for (value, bytes) in [
        (37_u64, &[0x25][..]),
        (15_293, &[0x7b, 0xbd]),
        (494_878_333, &[0x9d, 0x7f, 0x3e, 0x7d]),
        (
            151_288_809_941_952_652,
            &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
        ),
    ] {
        let mut out = BytesMut::new();
        put_varint(&mut out, value);
        assert_eq!(&out[..], bytes);
        assert_eq!(take_varint(&mut &bytes[..]), Some(value));
    }
}
