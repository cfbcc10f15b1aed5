//! What must hold for any input, said once for the fuzz targets, the corpus replay and the property tests.
//!
//! Each check takes raw bytes and panics where a promise is broken. They compare a reading in one piece with
//! readings cut at every byte, and with serde_json or a plain reference where there is one.

use bytes::Bytes;
use serde_json::Value;
use vector_proto::dialect::json::{Malformed, Peek, Progress};
use vector_proto::dialect::multipart::Form;
use vector_proto::dialect::rename::Rename;
use vector_proto::dialect::sse::Events;
use vector_proto::dialect::usage::{Reader, StreamEnd, Usage};
use vector_proto::tunnel::beat::Beat;
use vector_proto::tunnel::codec::{self, Decoder, Piece};
use vector_proto::tunnel::repair::{BLOCK_BYTES_MAX, Repair, SYMBOL_BYTES, SYMBOLS_MAX};

/// Inputs longer than this are not cut in two at every byte, so that a check stays fast; byte by byte they always are.
const CUTS_MAX: usize = 64;

/// Chunk sizes worth trying for an input: all in one, byte by byte, and cuts in two.
fn cuts(length: usize) -> Vec<Vec<usize>> {
    let mut ways = vec![vec![length], vec![1; length], vec![7; length / 7 + 1]];
    let step = length / CUTS_MAX + 1;
    ways.extend((1..length).step_by(step).map(|cut| vec![cut, length - cut]));
    ways
}

/// The input in chunks of the sizes given.
fn chunks<'d>(data: &'d [u8], sizes: &[usize]) -> Vec<&'d [u8]> {
    let mut rest = data;
    let mut parts = Vec::new();
    for size in sizes {
        let (part, after) = rest.split_at((*size).min(rest.len()));
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}

fn peek(parts: &[&[u8]], mut peek: Peek) -> (Result<(), Malformed>, Peek) {
    for part in parts {
        if let Progress::Malformed(why) = peek.feed(part) {
            return (Err(why), peek);
        }
    }
    (peek.finish(), peek)
}

/// A request body is read the same however it is cut, and as serde_json reads it.
pub(crate) fn json(data: &[u8]) {
    let (whole, reader) = peek(&[data], Peek::new());
    let (deep, found) = peek(&[data], Peek::deep());
    assert_eq!(deep, whole, "who looks deeper finds the same faults");
    assert_eq!(found.fields().model(), reader.fields().model());
    for sizes in cuts(data.len()) {
        let (result, cut) = peek(&chunks(data, &sizes), Peek::new());
        assert_eq!(result, whole, "cut at {sizes:?}");
        assert_eq!(cut.fields(), reader.fields(), "cut at {sizes:?}");
        let (result, cut) = peek(&chunks(data, &sizes), Peek::deep());
        assert_eq!(result, whole, "cut at {sizes:?}");
        assert_eq!(cut.fields(), found.fields(), "cut at {sizes:?}");
    }
    let parsed: Result<Value, _> = serde_json::from_slice(data);
    let Ok(Value::Object(object)) = parsed else {
        return;
    };
    if let Err(why) = whole {
        let ours = ["`model`", "nested deeper"];
        assert!(
            ours.iter().any(|reason| why.why.contains(reason)),
            "valid JSON refused: {why}"
        );
        return;
    }
    let fields = reader.fields();
    if let Some(Value::String(name)) = object.get("model") {
        assert_eq!(fields.model(), Some(name.as_str()));
        let span = fields.model_span.expect("a model has a span");
        let raw = &data[span.start as usize..span.end as usize];
        let quoted = [b"\"", raw, b"\""].concat();
        assert_eq!(
            serde_json::from_slice::<String>(&quoted).expect("the span is the string"),
            *name
        );
    }
    let flag = |name: &str| object.get(name).and_then(Value::as_bool);
    assert_eq!(
        (fields.stream, fields.store, fields.background),
        (flag("stream"), flag("store"), flag("background"))
    );
    assert_eq!(fields.choices, object.get("n").and_then(Value::as_u64));
}

fn form(content_type: &str, parts: &[&[u8]]) -> (Result<(), Malformed>, Form) {
    let mut form = Form::new(content_type).expect("a boundary");
    for part in parts {
        if let Progress::Malformed(why) = form.feed(part) {
            return (Err(why), form);
        }
    }
    (form.finish(), form)
}

/// A multipart body with boundary `b` is read the same however it is cut.
pub(crate) fn multipart(data: &[u8]) {
    let content_type = "multipart/form-data; boundary=b";
    let (whole, reader) = form(content_type, &[data]);
    for sizes in cuts(data.len()) {
        let (result, cut) = form(content_type, &chunks(data, &sizes));
        assert_eq!(result, whole, "cut at {sizes:?}");
        assert_eq!(cut.fields(), reader.fields(), "cut at {sizes:?}");
    }
    if let (Some(span), Some(name), false) = (
        reader.fields().model_span,
        reader.fields().model(),
        reader.fields().model_in_session,
    ) {
        assert_eq!(
            &data[span.start as usize..span.end as usize],
            name.as_bytes()
        );
    }
}

type Shown = Vec<(Vec<u8>, Option<Vec<u8>>)>;

fn events(parts: &[&[u8]]) -> Shown {
    let mut splitter = Events::new(1 << 10);
    let mut shown = Vec::new();
    for part in parts {
        splitter.feed(part, |event| {
            shown.push((event.name.to_vec(), event.data.map(<[u8]>::to_vec)))
        });
    }
    shown
}

/// Events by the plainest means: the whole text, split into lines.
fn reference(data: &[u8]) -> Shown {
    let data = data.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(data);
    let mut lines: Vec<Vec<u8>> = vec![Vec::new()];
    let mut at = 0;
    while at < data.len() {
        match data[at] {
            b'\r' | b'\n' => {
                at += usize::from(data[at..].starts_with(b"\r\n"));
                lines.push(Vec::new());
            }
            byte => lines.last_mut().expect("a line").push(byte),
        }
        at += 1;
    }
    // What has no line end yet is no line.
    lines.pop();
    let (mut shown, mut name, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        if line.is_empty() {
            if !values.is_empty() {
                shown.push((name, Some(values.join(&b'\n'))));
            }
            (name, values) = (Vec::new(), Vec::new());
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = colon.map_or((&line[..], &[][..]), |colon| {
            (&line[..colon], &line[colon + 1..])
        });
        let value = value.strip_prefix(b" ").unwrap_or(value).to_vec();
        match field {
            b"data" => values.push(value),
            b"event" => name = value,
            _ => {}
        }
    }
    shown
}

type Used = (Option<Usage>, Option<String>, bool, StreamEnd);

fn usage(parts: &[&[u8]], mut reader: Reader) -> Used {
    for part in parts {
        reader.feed(part);
    }
    let id = reader.id().map(str::to_owned);
    (reader.usage().copied(), id, reader.failed(), reader.end())
}

/// A stream's events and usage are the same however it is cut, and the events as a plain splitter sees them.
pub(crate) fn sse(data: &[u8]) {
    let whole = events(&[data]);
    if data.len() <= 1 << 10 {
        assert_eq!(whole, reference(data));
    }
    let used = usage(&[data], Reader::sse());
    for sizes in cuts(data.len()) {
        assert_eq!(events(&chunks(data, &sizes)), whole, "cut at {sizes:?}");
        assert_eq!(
            usage(&chunks(data, &sizes), Reader::sse()),
            used,
            "cut at {sizes:?}"
        );
    }
}

/// A name that needs escapes, so that a missing one shows.
const NAME: &str = "public \"name\"\n\\ü";

fn renamed(parts: &[&[u8]], mut rename: Rename) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        rename.feed(Bytes::copy_from_slice(part), &mut out);
    }
    out.concat()
}

/// Blanks the places that a rename may touch. True if there was a string in one.
fn blank(value: &mut Value) -> bool {
    let mut found = false;
    for place in ["/model", "/response/model", "/session/model"] {
        if let Some(name) = value.pointer_mut(place)
            && name.is_string()
        {
            *name = Value::Null;
            found = true;
        }
    }
    found
}

/// A renamed answer is the same however it is cut, still parses, and differs in the model's name alone.
pub(crate) fn rename(data: &[u8]) {
    let whole = renamed(&[data], Rename::json(NAME));
    let stream = renamed(&[data], Rename::sse(NAME));
    for sizes in cuts(data.len()) {
        assert_eq!(
            renamed(&chunks(data, &sizes), Rename::json(NAME)),
            whole,
            "cut at {sizes:?}"
        );
        assert_eq!(
            renamed(&chunks(data, &sizes), Rename::sse(NAME)),
            stream,
            "cut at {sizes:?}"
        );
    }
    let used = usage(&[data], Reader::json());
    assert_eq!(
        usage(&chunks(data, &vec![1; data.len()]), Reader::json()),
        used
    );
    let Ok(mut before @ Value::Object(_)) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let mut after: Value = serde_json::from_slice(&whole).expect("a renamed answer still parses");
    let named = ["/model", "/response/model", "/session/model"]
        .iter()
        .any(|place| after.pointer(place).and_then(Value::as_str) == Some(NAME));
    let plain =
        !data.contains(&b'\\') && data.windows(7).filter(|part| part == b"\"model\"").count() == 1;
    let had = blank(&mut before);
    blank(&mut after);
    assert_eq!(before, after, "only the name may differ");
    assert!(
        named || !had || !plain,
        "a name was there and was not replaced"
    );
}

/// Frames with neighbouring DATA gathered, and where decoding ended: an error, or whether it is between frames.
fn frames(parts: &[&[u8]]) -> (Vec<Piece>, Result<bool, codec::Error>) {
    let mut decoder = Decoder::default();
    let mut pieces: Vec<Piece> = Vec::new();
    for part in parts {
        let mut input = Bytes::copy_from_slice(part);
        loop {
            match decoder.next(&mut input) {
                Err(why) => return (pieces, Err(why)),
                Ok(None) => break,
                Ok(Some(piece)) => match (pieces.last_mut(), piece) {
                    (Some(Piece::Data(before)), Piece::Data(more)) => {
                        *before = [&before[..], &more].concat().into()
                    }
                    (_, piece) => pieces.push(piece),
                },
            }
        }
    }
    (pieces, Ok(decoder.at_boundary()))
}

/// Frames are the same however the bytes are cut, and come back when written again.
pub(crate) fn codec(data: &[u8]) {
    let whole = frames(&[data]);
    for sizes in cuts(data.len()) {
        assert_eq!(frames(&chunks(data, &sizes)), whole, "cut at {sizes:?}");
    }
    let mut again = bytes::BytesMut::new();
    for piece in &whole.0 {
        let (kind, payload) = match piece {
            Piece::Frame(kind, payload) => (*kind, payload),
            Piece::Data(payload) => (codec::Kind::Data, payload),
        };
        assert!(kind == codec::Kind::Data || payload.len() <= kind.payload_bytes_max());
        for part in payload.chunks(codec::DATA_BYTES_MAX) {
            codec::put_header(&mut again, kind, part.len());
            again.extend_from_slice(part);
        }
        if payload.is_empty() {
            codec::put_header(&mut again, kind, 0);
        }
        if let Ok(entries) = codec::entries(kind, payload) {
            let mut written = bytes::BytesMut::new();
            codec::put_entries(&mut written, &entries);
            let read: Vec<_> = frames(&[&written])
                .0
                .into_iter()
                .flat_map(|piece| match piece {
                    Piece::Frame(kind, payload) => {
                        codec::entries(kind, &payload).expect("what was written")
                    }
                    Piece::Data(_) => Vec::new(),
                })
                .collect();
            assert_eq!(read, entries);
        }
    }
    assert_eq!(frames(&[&again]), (whole.0, Ok(true)));
}

/// A heartbeat that is read comes back byte for byte when written again.
pub(crate) fn beat(data: &[u8]) {
    if let Ok(beat) = Beat::decode(data) {
        assert_eq!(&beat.encode()[..], data);
    }
}

/// What is taken for repair symbols is within the limits, and travels again as the same.
pub(crate) fn repair(data: &[u8]) {
    let Ok(repair) = Repair::read(&Bytes::copy_from_slice(data)) else {
        return;
    };
    let count = repair.symbols.len() / SYMBOL_BYTES;
    assert!(repair.block.end() <= BLOCK_BYTES_MAX && repair.block.length > 0);
    assert!(repair.first + count <= repair.block.total && repair.block.total <= SYMBOLS_MAX);
    assert_eq!(Repair::read(&repair.to_bytes()), Ok(repair));
}
