//! Reads `multipart/form-data` as it comes, in whatever pieces.
//!
//! Each part is counted and hashed; only its front is held, up to a limit, so that a file of any size passes
//! through a few MiB of memory. Pure: bytes in, parts out.

use bytes::{Buf, BytesMut};
use memchr::memmem;
use ring::digest::{Context, SHA256};

use crate::ask::hex;

/// Parts of one form; OpenAI's largest (image edits) have some twenty.
const PARTS_MAX: usize = 64;

/// Bytes of one part's head.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Bytes held of one part. 64 parts × 4 MiB = 256 MiB for one form at the worst.
pub(crate) const HELD_BYTES_MAX: usize = 4 << 20;

/// Why a body is no form.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Error {
    #[error("it ended before its last boundary")]
    Truncated,
    #[error("a part's head is too long or malformed")]
    Head,
    #[error("too many parts")]
    Parts,
}

/// One part of a form.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) filename: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    /// The part's front: all of it, if it is no larger than the limit.
    pub(crate) held: Vec<u8>,
}

impl Part {
    pub(crate) fn is_whole(&self) -> bool {
        self.held.len() as u64 == self.bytes
    }
}

/// A form that was read to its end.
#[derive(Debug)]
pub(crate) struct Form {
    pub(crate) parts: Vec<Part>,
}

impl Form {
    /// A field's text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let part = self
            .parts
            .iter()
            .find(|part| part.name == name && part.filename.is_none())?;
        std::str::from_utf8(&part.held).ok()
    }

    /// A file, under the name that the API gives it (`image` may come as `image[]`).
    pub(crate) fn file(&self, name: &str) -> Option<&Part> {
        self.parts
            .iter()
            .find(|part| part.name == name || part.name.strip_suffix("[]") == Some(name))
    }
}

#[derive(Debug)]
enum State {
    /// Before the first boundary, or in the part that is open.
    Body(Option<Box<Open>>),
    /// Behind a boundary: the head of a part, or the end mark.
    Head,
    Ended,
}

struct Open {
    name: String,
    filename: Option<String>,
    bytes: u64,
    digest: Context,
    held: Vec<u8>,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open")
            .field("name", &self.name)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Open {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.digest.update(bytes);
        let room = HELD_BYTES_MAX - self.held.len();
        self.held.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }

    fn close(self) -> Part {
        let sha256 = hex(self.digest.finish().as_ref());
        Part {
            name: self.name,
            filename: self.filename,
            bytes: self.bytes,
            sha256,
            held: self.held,
        }
    }
}

/// Reads one form.
#[derive(Debug)]
pub(crate) struct Reader {
    finder: memmem::Finder<'static>,
    buffer: BytesMut,
    state: State,
    parts: Vec<Part>,
}

impl Reader {
    /// A reader for a body of this content type, if that is a form's.
    pub(crate) fn new(content_type: &str) -> Option<Self> {
        let rest = content_type.strip_prefix("multipart/form-data")?;
        let boundary = rest
            .split(';')
            .find_map(|part| part.trim().strip_prefix("boundary="))?
            .trim_matches('"');
        let delimiter = format!("\r\n--{boundary}");
        // The first boundary has no line break before it; with one, all are alike.
        let finder = memmem::Finder::new(delimiter.as_bytes()).into_owned();
        Some(Self {
            finder,
            buffer: BytesMut::from("\r\n"),
            state: State::Body(None),
            parts: Vec::new(),
        })
    }

    /// Takes the next piece of the body.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.buffer.extend_from_slice(piece);
        while self.step()? {}
        Ok(())
    }

    /// Says that the body has ended.
    pub(crate) fn finish(self) -> Result<Form, Error> {
        match self.state {
            State::Ended => Ok(Form { parts: self.parts }),
            State::Body(_) | State::Head => Err(Error::Truncated),
        }
    }

    /// One step over what is buffered; whether another may follow.
    fn step(&mut self) -> Result<bool, Error> {
        match &mut self.state {
            State::Body(open) => {
                let delimiter = self.finder.needle().len();
                let at = self.finder.find(&self.buffer);
                let sure = at.unwrap_or_else(|| self.buffer.len().saturating_sub(delimiter - 1));
                if let Some(open) = open {
                    open.take(&self.buffer[..sure]);
                }
                self.buffer.advance(sure);
                if at.is_none() {
                    return Ok(false);
                }
                self.buffer.advance(delimiter);
                self.parts.extend(open.take().map(|open| open.close()));
                self.state = State::Head;
                Ok(true)
            }
            State::Head => self.head(),
            State::Ended => {
                self.buffer.clear();
                Ok(false)
            }
        }
    }

    /// Reads what follows a boundary: `--` at the end, else a part's head.
    fn head(&mut self) -> Result<bool, Error> {
        if self.buffer.starts_with(b"--") {
            self.state = State::Ended;
            return Ok(true);
        }
        let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") else {
            return if self.buffer.len() > HEAD_BYTES_MAX {
                Err(Error::Head)
            } else {
                Ok(false)
            };
        };
        if self.parts.len() == PARTS_MAX {
            return Err(Error::Parts);
        }
        let head = self.buffer.split_to(end + 4);
        let head = std::str::from_utf8(&head).map_err(|_| Error::Head)?;
        let disposition = head
            .split("\r\n")
            .find_map(|line| {
                line.split_once(':')
                    .filter(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"))
            })
            .ok_or(Error::Head)?
            .1;
        let name = parameter(disposition, "name").ok_or(Error::Head)?;
        let filename = parameter(disposition, "filename");
        self.state = State::Body(Some(Box::new(Open {
            name,
            filename,
            bytes: 0,
            digest: Context::new(&SHA256),
            held: Vec::new(),
        })));
        Ok(true)
    }
}

/// A parameter of a header's value, quoted or not.
fn parameter(value: &str, name: &str) -> Option<String> {
    value.split(';').find_map(|part| {
        let (key, value) = part.trim().split_once('=')?;
        (key == name).then(|| value.trim_matches('"').to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"--X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--X\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\nab\r\n--Y\r\ncd\r\n--X\r\n\
        content-disposition: form-data; name=\"empty\"\r\n\r\n\r\n--X--\r\n";

    fn read(piece: usize) -> Form {
        let mut reader = Reader::new("multipart/form-data; boundary=X").unwrap();
        for piece in BODY.chunks(piece) {
            reader.push(piece).unwrap();
        }
        reader.finish().unwrap()
    }

    #[test]
    fn a_form_reads_the_same_in_any_pieces() {
        for piece in 1..BODY.len() {
            let form = read(piece);
            assert_eq!(form.text("model"), Some("whisper-1"));
            assert_eq!(form.text("empty"), Some(""));
            let file = form.file("file").unwrap();
            assert_eq!(
                (file.filename.as_deref(), &file.held[..]),
                (Some("a.wav"), &b"ab\r\n--Y\r\ncd"[..])
            );
            assert!(file.is_whole());
        }
    }

    #[test]
    fn a_large_part_is_counted_but_not_held() {
        let mut reader = Reader::new("multipart/form-data; boundary=\"X\"").unwrap();
        reader
            .push(b"--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"big\"\r\n\r\n")
            .unwrap();
        for _ in 0..10 {
            reader.push(&vec![7; 1 << 20]).unwrap();
        }
        reader.push(b"\r\n--X--\r\n").unwrap();
        let form = reader.finish().unwrap();
        let file = form.file("file").unwrap();
        assert_eq!((file.bytes, file.held.len()), (10 << 20, HELD_BYTES_MAX));
        assert!(!file.is_whole());
    }

    #[test]
    fn what_is_no_form_is_refused() {
        assert!(Reader::new("application/json").is_none());
        let mut reader = Reader::new("multipart/form-data; boundary=X").unwrap();
        reader.push(&BODY[..BODY.len() - 12]).unwrap();
        assert_eq!(reader.finish().unwrap_err(), Error::Truncated);
    }
}
