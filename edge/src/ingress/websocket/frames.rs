//! Finds the text messages of one direction of a WebSocket, and puts others in their place (RFC 6455, section 5).
//!
//! A frame says how long it is before it says anything else, so a message is held until it is whole: up to
//! [`MESSAGE_BYTES_MAX`], which nobody can use a part of anyway. Longer ones, binary ones, those of an extension (none is agreed
//! to) and control frames pass as they come, and what is not replaced leaves byte by byte as it came. Only a ping or pong
//! between the frames of a message that is held overtakes it, as it may anywhere.

use bytes::{Bytes, BytesMut};
use vector_proto::dialect::websocket::frame::{
    CLOSE, CONTINUATION, Header, LAST, MASKED, Partial, TEXT,
};

/// Longest message that is looked at, with the headers of its frames.
pub(super) const MESSAGE_BYTES_MAX: usize = 128 << 10;

/// One direction, wherever its bytes are cut.
#[derive(Debug)]
pub(super) struct Frames {
    header: Partial,
    /// Payload of the frame in hand that is still to come.
    left: u64,
    /// The frame in hand is part of a message and ends it.
    last: bool,
    /// The frame in hand leaves as it comes.
    passes: bool,
    /// So does what follows of the message in hand.
    message_passes: bool,
    /// The message in hand so far, if it is held.
    held: BytesMut,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            header: Partial::default(),
            left: 0,
            last: false,
            passes: true,
            message_passes: true,
            held: BytesMut::new(),
        }
    }
}

impl Frames {
    /// Takes the next bytes and appends what leaves to `out`. `replace` gives the pieces of the text that takes a message's
    /// place, if one does.
    pub(super) fn feed(
        &mut self,
        mut chunk: &[u8],
        replace: impl Fn(Bytes) -> Option<Vec<Bytes>>,
        out: &mut BytesMut,
    ) {
        while !chunk.is_empty() {
            if self.left > 0 {
                let len = usize::try_from(self.left)
                    .unwrap_or(usize::MAX)
                    .min(chunk.len());
                let (part, rest) = chunk.split_at(len);
                self.left -= len as u64;
                self.take(part, out);
                chunk = rest;
            } else {
                let whole = self.header.take(chunk[0]);
                chunk = &chunk[1..];
                let Some((header, bytes)) = whole else {
                    continue;
                };
                self.begin(&header, out);
                self.take(bytes.bytes(), out);
            }
            if self.left == 0 && self.last && !self.passes {
                let message = self.held.split().freeze();
                self.message_passes = true;
                self.passes = true;
                match replace(text(&message)) {
                    Some(pieces) => write(&message, &pieces, out),
                    None => out.extend_from_slice(&message),
                }
            }
        }
    }

    /// No more bytes come: appends what is held of a frame or message that is not whole.
    pub(super) fn finish(&mut self, out: &mut BytesMut) {
        self.release(out);
        out.extend_from_slice(std::mem::take(&mut self.header).bytes());
    }

    fn begin(&mut self, header: &Header, out: &mut BytesMut) {
        let control = header.is_control();
        self.last = !control && header.is_last();
        self.passes = control;
        if header.opcode() == CLOSE {
            // Nothing comes after it.
            self.release(out);
            self.message_passes = true;
        }
        if !control {
            if header.opcode() != CONTINUATION {
                self.release(out);
                self.message_passes = header.opcode() != TEXT;
            }
            let room = MESSAGE_BYTES_MAX.saturating_sub(self.held.len() + header.bytes);
            if header.is_extended() || header.payload > room as u64 {
                self.release(out);
                self.message_passes = true;
            }
            self.passes = self.message_passes;
        }
        self.left = header.payload;
    }

    fn take(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let to = if self.passes { out } else { &mut self.held };
        to.extend_from_slice(bytes);
    }

    fn release(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(&self.held.split());
    }
}

/// The payloads of a message's frames, unmasked.
fn text(mut frames: &[u8]) -> Bytes {
    let mut text = BytesMut::with_capacity(frames.len());
    while let Some(header) = Header::read(frames) {
        let (begin, len) = (text.len(), header.payload as usize);
        let (payload, rest) = frames[header.bytes..].split_at(len);
        text.extend_from_slice(payload);
        mask(&mut text[begin..], header.mask);
        frames = rest;
    }
    text.freeze()
}

/// Masks a frame's payload, or unmasks it.
fn mask(payload: &mut [u8], key: Option<[u8; 4]>) {
    let Some(key) = key else { return };
    for (byte, key) in payload.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
}

/// Writes one frame with another text than a message's, masked as that was.
fn write(message: &[u8], pieces: &[Bytes], out: &mut BytesMut) {
    let key = Header::read(message).and_then(|header| header.mask);
    let masked = if key.is_some() { MASKED } else { 0 };
    let len: usize = pieces.iter().map(Bytes::len).sum();
    out.extend_from_slice(&[LAST | TEXT]);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(len @ 0..126), _) => out.extend_from_slice(&[masked | len]),
        (_, Ok(len)) => {
            out.extend_from_slice(&[masked | 126]);
            out.extend_from_slice(&len.to_be_bytes());
        }
        _ => {
            out.extend_from_slice(&[masked | 127]);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key.unwrap_or_default()[..key.map_or(0, |key| key.len())]);
    let begin = out.len();
    for piece in pieces {
        out.extend_from_slice(piece);
    }
    mask(&mut out[begin..], key);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vector_proto::dialect::websocket::frame::RESERVED;

    use super::*;

    #[derive(Clone, Debug)]
    struct Frame {
        first: u8,
        mask: Option<[u8; 4]>,
        payload: Vec<u8>,
    }

    fn encode(frame: &Frame) -> Vec<u8> {
        let mut out = BytesMut::new();
        // As `write` has it, but for its first byte.
        let key = frame.mask;
        let mut model = vec![0x81, if key.is_some() { MASKED } else { 0 }];
        model.extend(key.into_iter().flatten());
        write(&model, &[Bytes::copy_from_slice(&frame.payload)], &mut out);
        out[0] = frame.first;
        out.to_vec()
    }

    /// Whole frames, with their payloads unmasked.
    fn decode(mut bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(header) = Header::read(bytes) {
            let (frame, rest) = bytes.split_at(header.bytes + header.payload as usize);
            let mut payload = frame[header.bytes..].to_vec();
            mask(&mut payload, header.mask);
            frames.push(Frame {
                first: header.first,
                mask: header.mask,
                payload,
            });
            bytes = rest;
        }
        assert!(bytes.is_empty(), "half a frame: {bytes:?}");
        frames
    }

    /// What both ends mean by it: the messages with their kinds, and the control frames.
    type Meaning = (Vec<(u8, Vec<u8>)>, Vec<(u8, Vec<u8>)>);

    fn meaning(bytes: &[u8]) -> Meaning {
        let (mut messages, mut controls) = (Vec::new(), Vec::new());
        for frame in decode(bytes) {
            match frame.first & 0x0f {
                CONTINUATION => {
                    let (_, message): &mut (u8, Vec<u8>) = messages.last_mut().unwrap();
                    message.extend(&frame.payload);
                }
                8.. => controls.push((frame.first, frame.payload)),
                opcode => messages.push((opcode, frame.payload)),
            }
        }
        (messages, controls)
    }

    fn through(
        bytes: &[u8],
        cuts: &[usize],
        replace: impl Fn(Bytes) -> Option<Vec<Bytes>>,
    ) -> Vec<u8> {
        let (mut frames, mut out) = (Frames::default(), BytesMut::new());
        let (mut rest, mut cuts) = (bytes, cuts.iter().cycle());
        while !rest.is_empty() {
            let (part, behind) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            frames.feed(part, &replace, &mut out);
            assert!(frames.held.len() <= MESSAGE_BYTES_MAX);
            rest = behind;
        }
        frames.finish(&mut out);
        out.to_vec()
    }

    /// Every `a` of a text becomes three.
    fn triple(text: &[u8]) -> Option<Vec<Bytes>> {
        text.contains(&b'a').then(|| {
            let piece = |byte: &u8| match byte {
                b'a' => Bytes::from_static(b"aaa"),
                byte => Bytes::copy_from_slice(&[*byte]),
            };
            text.iter().map(piece).collect()
        })
    }

    fn payloads() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            8 => prop::collection::vec(b'a'..b'f', 0..200),
            2 => (65_400_usize..65_700).prop_map(|len| b"abcd".repeat(len / 4)),
            1 => Just(vec![b'a'; MESSAGE_BYTES_MAX]),
        ]
    }

    /// One message: its kind, its fragments, and what stands between them.
    fn messages() -> impl Strategy<Value = Vec<Frame>> {
        let kind = prop_oneof![4 => Just(TEXT), 1 => Just(2_u8), 1 => Just(TEXT | 0x40)];
        let fragments =
            prop::collection::vec((payloads(), any::<Option<[u8; 4]>>(), any::<bool>()), 1..4);
        (kind, fragments).prop_map(|(kind, fragments)| {
            let count = fragments.len();
            let mut frames = Vec::new();
            for (at, (payload, mask, ping)) in fragments.into_iter().enumerate() {
                let first = if at == 0 { kind } else { CONTINUATION };
                let last = if at + 1 == count { LAST } else { 0 };
                frames.push(Frame {
                    first: first | last,
                    mask,
                    payload,
                });
                if ping {
                    frames.push(Frame {
                        first: 0x89,
                        mask,
                        payload: b"are you there".to_vec(),
                    });
                }
            }
            frames
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn texts_are_replaced_and_nothing_else_is(
            messages in prop::collection::vec(messages(), 1..6),
            cuts in prop::collection::vec(1_usize..5_000, 1..20),
        ) {
            let whole: Vec<Vec<u8>> = messages.iter().map(|frames| frames.iter().flat_map(encode).collect()).collect();
            let bytes = whole.concat();
            prop_assert_eq!(meaning(&through(&bytes, &cuts, |_| None)), meaning(&bytes));
            let (replaced, controls) = meaning(&through(&bytes, &cuts, |text| triple(&text)));
            let (mut expected, all_controls) = meaning(&bytes);
            for ((kind, text), frames) in expected.iter_mut().zip(&messages) {
                let of_message = frames.iter().filter(|frame| frame.first & 0x08 == 0);
                let bytes: usize = of_message.map(|frame| encode(frame).len()).sum();
                let plain = frames[0].first & RESERVED == 0 && *kind == TEXT;
                if let Some(pieces) = triple(text).filter(|_| plain && bytes <= MESSAGE_BYTES_MAX) {
                    *text = pieces.concat();
                }
            }
            prop_assert_eq!(replaced, expected);
            prop_assert_eq!(controls, all_controls);
        }

        #[test]
        fn of_any_bytes_none_is_lost(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            cuts in prop::collection::vec(1_usize..50, 1..9),
        ) {
            let mut out = through(&bytes, &cuts, |_| None);
            let mut bytes = bytes;
            out.sort_unstable();
            bytes.sort_unstable();
            prop_assert_eq!(out, bytes);
        }
    }

    #[test]
    fn what_a_client_masked_stays_masked_with_its_key() {
        let key = Some([7, 1, 200, 9]);
        let frame = Frame {
            first: 0x81,
            mask: key,
            payload: b"a".repeat(60),
        };
        let out = through(&encode(&frame), &[9], |text| triple(&text));
        let [frame] = &decode(&out)[..] else {
            panic!("one frame: {out:?}");
        };
        assert_eq!((frame.first, frame.mask), (0x81, key));
        assert_eq!(frame.payload, b"a".repeat(180));
    }

    #[test]
    fn a_close_does_not_overtake_half_a_message() {
        let half = Frame {
            first: TEXT,
            mask: None,
            payload: b"half".to_vec(),
        };
        let close = Frame {
            first: LAST | CLOSE,
            mask: None,
            payload: vec![3, 232],
        };
        let bytes = [encode(&half), encode(&close)].concat();
        assert_eq!(through(&bytes, &[3], |_| None), bytes);
    }

    #[test]
    fn nothing_waits_that_is_whole() {
        let (mut frames, mut out) = (Frames::default(), BytesMut::new());
        let whole = b"\x81\x02hi\x89\x01p\x82\x03bin";
        frames.feed(whole, |_| None, &mut out);
        assert_eq!(out, whole[..]);
        // A binary message leaves as it comes.
        frames.feed(b"\x82\x05ab", |_| None, &mut out);
        assert_eq!(out, b"\x81\x02hi\x89\x01p\x82\x03bin\x82\x05ab"[..]);
    }
}
