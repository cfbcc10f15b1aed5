//! A plain HTTP/1.1 client that shows what stood on the wire: heads as written, pieces as they came, and how it ended.
//!
//! It mends nothing and retries nothing; a connection that closes before its answer is whole is [`End::Cut`].

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
};

use serde_json::Value;

use crate::wait::PATIENCE;

/// Most that is read of one answer into memory.
const BODY_BYTES_MAX: usize = 64 << 20;

/// How an answer ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// As HTTP says that it must.
    Whole,
    /// The connection was closed before that.
    Cut,
}

/// One that sends requests with a key, each over a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where to.
    pub address: SocketAddr,
    /// What is sent as bearer.
    pub key: String,
}

/// A request in the making.
#[derive(Debug)]
pub struct Request {
    address: SocketAddr,
    head: String,
    body: Vec<u8>,
}

/// A connection to an ingress, or to anything else that speaks HTTP.
#[derive(Debug)]
pub struct Connection(BufReader<TcpStream>);

/// An answer whose head has arrived.
#[derive(Debug)]
pub struct Stream {
    /// The status.
    pub status: u16,
    headers: Vec<(String, String)>,
    framing: Framing,
    connection: Connection,
    end: Option<End>,
    pending: Vec<u8>,
}

/// An answer that is over.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// How it ended.
    pub end: End,
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(u64),
    Chunked,
    Close,
}

impl Client {
    /// A client of this key.
    pub fn new(address: SocketAddr, key: &str) -> Self {
        Self {
            address,
            key: key.to_owned(),
        }
    }

    /// The same client at another ingress.
    pub fn at(&self, address: SocketAddr) -> Self {
        Self::new(address, &self.key)
    }

    /// A request with the key, without a body.
    pub fn request(&self, method: &str, target: &str) -> Request {
        Request::new(self.address, method, target)
            .header("authorization", &format!("Bearer {}", self.key))
    }

    /// GET.
    pub fn get(&self, target: &str) -> Answer {
        self.request("GET", target).send()
    }

    /// POST of JSON, ready to be sent.
    pub fn json(&self, target: &str, body: &Value) -> Request {
        self.request("POST", target)
            .header("content-type", "application/json")
            .body(body.to_string())
    }

    /// POST of JSON.
    pub fn post(&self, target: &str, body: &Value) -> Answer {
        self.json(target, body).send()
    }

    /// POST of a form of text fields and one file.
    pub fn form(&self, target: &str, fields: &[(&str, &str)], file: &[u8]) -> Answer {
        let mut body = Vec::new();
        for (name, value) in fields {
            let part = format!(
                "--b0undary\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            );
            body.extend_from_slice(part.as_bytes());
        }
        body.extend_from_slice(
            b"--b0undary\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.jsonl\"\r\n\r\n",
        );
        body.extend_from_slice(file);
        body.extend_from_slice(b"\r\n--b0undary--\r\n");
        self.request("POST", target)
            .header("content-type", "multipart/form-data; boundary=b0undary")
            .body(body)
            .send()
    }
}

impl Request {
    /// A request without a key.
    pub fn new(address: SocketAddr, method: &str, target: &str) -> Self {
        Self {
            address,
            head: format!("{method} {target} HTTP/1.1\r\nhost: {address}\r\n"),
            body: Vec::new(),
        }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Sets the body, and its length.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        let length = self.body.len().to_string();
        self.header("content-length", &length)
    }

    /// Sends it, and waits for the answer's head.
    pub fn open(self) -> Stream {
        self.try_open()
            .unwrap_or_else(|| panic!("the connection was closed without an answer"))
    }

    /// Sends it, and waits for the answer's head or the connection's end.
    pub fn try_open(self) -> Option<Stream> {
        let mut connection = Connection::open(self.address);
        let bytes = [self.head.as_bytes(), b"\r\n", &self.body].concat();
        connection.write(&bytes);
        connection.answer()
    }

    /// Sends it, and waits for the whole answer, if there is one.
    pub fn try_send(self) -> Option<Answer> {
        self.try_open().map(Stream::rest)
    }

    /// Sends it, and waits for the whole answer.
    pub fn send(self) -> Answer {
        self.open().rest()
    }
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> Self {
        Self::try_open(address).unwrap()
    }

    /// Connects, if somebody listens.
    pub fn try_open(address: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(socket)))
    }

    /// Writes bytes as they are. A peer that has closed meanwhile shows when its answer is read.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.0.get_mut().write_all(bytes);
    }

    /// Writes bytes as they are, if the peer still takes them.
    pub fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    /// Says that nothing more will be written.
    pub fn finish(&mut self) {
        let _ = self.0.get_mut().shutdown(Shutdown::Write);
    }

    /// Everything until the peer closes. A reset counts as closed, and so does silence beyond all patience.
    pub fn rest(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.0.read_to_end(&mut bytes);
        bytes
    }

    /// Whether the peer has closed without another byte.
    pub fn is_closed(mut self) -> bool {
        let mut byte = [0];
        match self.0.read(&mut byte) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// The head of the next answer; nothing if the peer has closed instead.
    pub fn answer(mut self) -> Option<Stream> {
        loop {
            let (status, headers) = self.head()?;
            if status == 100 {
                continue;
            }
            let value = |name: &str| {
                let found = headers.iter().find(|(known, _)| known == name);
                found.map(|(_, value)| value.as_str())
            };
            let framing = if value("transfer-encoding") == Some("chunked") {
                Framing::Chunked
            } else if let Some(length) = value("content-length") {
                Framing::Length(length.parse().unwrap())
            } else if status == 204 || status == 304 {
                Framing::Length(0)
            } else {
                Framing::Close
            };
            return Some(Stream {
                status,
                headers,
                framing,
                connection: self,
                end: None,
                pending: Vec::new(),
            });
        }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).ok()?;
        let text = String::from_utf8(line).unwrap();
        text.strip_suffix("\r\n").map(str::to_owned)
    }

    fn head(&mut self) -> Option<(u16, Vec<(String, String)>)> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                assert_eq!(line, "");
                return Some((status, headers));
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
}

impl Stream {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// How it ended, once it has.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// The next bytes of the body; nothing when it is over.
    pub fn piece(&mut self) -> Option<Vec<u8>> {
        if self.end.is_some() {
            return None;
        }
        let piece = match self.framing {
            Framing::Length(left) => self.sized(left),
            Framing::Chunked => self.chunk(),
            Framing::Close => self.some(usize::MAX).inspect(|piece| {
                self.end = piece.is_empty().then_some(End::Whole);
            }),
        };
        let Some(piece) = piece else {
            self.end = Some(End::Cut);
            return None;
        };
        (!piece.is_empty()).then_some(piece)
    }

    fn sized(&mut self, left: u64) -> Option<Vec<u8>> {
        if left == 0 {
            self.end = Some(End::Whole);
            return Some(Vec::new());
        }
        let piece = self.some(usize::try_from(left).unwrap())?;
        self.framing = Framing::Length(left - piece.len() as u64);
        (!piece.is_empty()).then_some(piece)
    }

    fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.connection.line()?;
        let length = usize::from_str_radix(line.split(';').next()?, 16).ok()?;
        let mut piece = vec![0; length + 2];
        self.connection.0.read_exact(&mut piece).ok()?;
        assert!(piece.ends_with(b"\r\n"));
        piece.truncate(length);
        if length == 0 {
            self.end = Some(End::Whole);
        }
        Some(piece)
    }

    /// What is there, or comes next, of at most so many bytes; empty at the connection's end.
    fn some(&mut self, most: usize) -> Option<Vec<u8>> {
        let reader = &mut self.connection.0;
        let buffered = reader.fill_buf().ok()?;
        let piece = buffered[..buffered.len().min(most)].to_vec();
        reader.consume(piece.len());
        Some(piece)
    }

    /// The next event of an event stream, up to and with its empty line; what is left at the end as it is.
    pub fn event(&mut self) -> Option<String> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.pending, b"\n\n") {
                let event = self.pending.drain(..at + 2).collect();
                return Some(String::from_utf8(event).unwrap());
            }
            let Some(piece) = self.piece() else {
                let left = std::mem::take(&mut self.pending);
                return (!left.is_empty()).then(|| String::from_utf8(left).unwrap());
            };
            self.pending.extend_from_slice(&piece);
        }
    }

    /// Everything that is still to come.
    pub fn rest(mut self) -> Answer {
        let mut body = std::mem::take(&mut self.pending);
        while let Some(piece) = self.piece() {
            body.extend_from_slice(&piece);
            assert!(body.len() <= BODY_BYTES_MAX, "an answer without end");
        }
        Answer {
            status: self.status,
            headers: self.headers,
            body,
            end: self.end.unwrap_or(End::Cut),
        }
    }
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The id of the object that the body is.
    pub fn id(&self) -> String {
        self.json()["id"].as_str().unwrap().to_owned()
    }

    /// `error.code` of OpenAI's error shape, which the body must have in full.
    pub fn error_code(&self) -> String {
        let body = self.json();
        let error = body["error"].as_object();
        let error = error.unwrap_or_else(|| panic!("no error object: {body}"));
        for field in ["message", "type"] {
            assert!(error[field].is_string(), "error.{field}: {body}");
        }
        assert!(error.contains_key("param"), "error.param: {body}");
        error["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Fails the test unless the status is this one.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// Fails the test unless this is a refusal of ours, in OpenAI's shape, with this status and code.
    pub fn refused(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        assert_eq!(answer.error_code(), code, "{}", answer.text());
        answer
    }
}

/// The status of a GET, if there is an answer at all.
pub fn status(address: SocketAddr, target: &str) -> Option<u16> {
    let mut connection = Connection::try_open(address).ok()?;
    let head = format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    connection.write(head.as_bytes());
    connection.answer().map(|stream| stream.status)
}

/// What was read of a raw answer, taken apart.
pub fn parse(bytes: &[u8]) -> Option<Answer> {
    let at = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Answer {
        status,
        headers,
        body: bytes[at + 4..].to_vec(),
        end: End::Whole,
    })
}
