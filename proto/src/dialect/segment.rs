//! Path segments, and which of them may stand for an id.
//!
//! An id is passed on to a provider inside a path, so anything that some server could read as a path of
//! its own is refused here, once, for every operation.

/// Longest id that is taken from a path. OpenAI's stay under 100 bytes.
const ID_BYTES_MAX: usize = 512;

/// The first segment of what is left of a path, and what comes after its slash.
pub(super) struct Segment<'p> {
    pub(super) text: &'p str,
    pub(super) after: &'p str,
}

/// Cuts off the first segment; it is empty where two slashes meet.
pub(super) fn next(rest: &str) -> Segment<'_> {
    match memchr::memchr(b'/', rest.as_bytes()) {
        Some(slash) => Segment {
            text: &rest[..slash],
            after: &rest[slash + 1..],
        },
        None => Segment {
            text: rest,
            after: "",
        },
    }
}

/// Whether a segment can be an id: visible ASCII, no trick that a server could read as another path.
pub(super) fn is_id(text: &str) -> bool {
    is_plain(text, false)
}

/// The rest of a path as a model's name, slashes allowed; a slash at its end is dropped.
pub(super) fn model(rest: &str) -> Option<&str> {
    let name = rest.strip_suffix('/').unwrap_or(rest);
    name.split('/')
        .all(|part| is_plain(part, true))
        .then_some(name)
}

fn is_plain(text: &str, encoded_slash: bool) -> bool {
    let bytes = text.as_bytes();
    let legal = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'?' | b'#');
    if text.is_empty()
        || text.len() > ID_BYTES_MAX
        || text == "."
        || text == ".."
        || !bytes.iter().all(legal)
    {
        return false;
    }
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'%', &bytes[at..]) {
        at += found + 1;
        let byte = match bytes
            .get(at..at + 2)
            .map(|pair| (hex(pair[0]), hex(pair[1])))
        {
            Some((Some(high), Some(low))) => high << 4 | low,
            _ => return false,
        };
        let trick = matches!(byte, b'.' | b'\\' | b'%' | 0..0x20 | 0x7f)
            || (byte == b'/' && !encoded_slash);
        if trick {
            return false;
        }
    }
    true
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}
