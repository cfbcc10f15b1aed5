//! Whom to ask and what: the bytes of each request, made once and sent many times.
//!
//! A request looks like one of the official Python SDK: the same headers, a small chat of about 300 bytes.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::Context;

/// Headers that OpenAI's Python SDK sends with every call.
const SDK_HEADERS: &str = concat!(
    "accept: application/json\r\n",
    "accept-encoding: identity\r\n",
    "user-agent: OpenAI/Python 2.8.1\r\n",
    "x-stainless-lang: python\r\n",
    "x-stainless-package-version: 2.8.1\r\n",
    "x-stainless-os: Linux\r\n",
    "x-stainless-arch: x64\r\n",
    "x-stainless-runtime: CPython\r\n",
    "x-stainless-runtime-version: 3.11.2\r\n",
    "x-stainless-async: false\r\n",
    "x-stainless-retry-count: 0\r\n",
    "x-stainless-read-timeout: 600\r\n",
);

const SYSTEM: &str =
    "You are a careful assistant. Answer in one short sentence, in the language of the question.";
const QUESTION: &str =
    "Which river flows through the most capital cities of Europe, and which cities are these?";

/// How a whole answer ends; one that ends otherwise was cut.
const PLAIN_END: &[u8] = b"}";
const STREAM_END: &[u8] = b"data: [DONE]\n\n";

/// Bytes kept of a body's end; more than either end has.
const TAIL_BYTES: usize = 16;

/// Where requests go, and as whom.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    host: String,
    key: String,
}

impl Target {
    /// `url` is `http://HOST:PORT`, or `https://…` for whoever speaks TLS.
    pub(crate) fn new(url: &str, key: &str) -> anyhow::Result<Self> {
        let host = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"))
            .context("--url must begin with http:// or https://")?
            .trim_end_matches('/');
        let address = host
            .to_socket_addrs()
            .with_context(|| format!("{url}: not an address"))?
            .next()
            .with_context(|| format!("{url}: no address"))?;
        Ok(Self {
            address,
            host: host.to_owned(),
            key: key.to_owned(),
        })
    }

    /// A chat completion.
    pub(crate) fn chat(&self, model: &str, stream: bool) -> Vec<u8> {
        let stream = if stream {
            r#","stream":true,"stream_options":{"include_usage":true}"#
        } else {
            ""
        };
        let body = format!(
            r#"{{"messages":[{{"role":"system","content":"{SYSTEM}"}},{{"role":"user","content":"{QUESTION}"}}],"model":"{model}","max_tokens":256{stream}}}"#
        );
        self.completion(&body)
    }

    /// A chat completion of the caller's own body.
    pub(crate) fn completion(&self, body: &str) -> Vec<u8> {
        let mut request = self.head(
            "POST",
            "/v1/chat/completions",
            "application/json",
            body.len(),
        );
        request.extend_from_slice(body.as_bytes());
        request
    }

    /// The host's name, without its port.
    pub(crate) fn name(&self) -> &str {
        self.host
            .rsplit_once(':')
            .map_or(&*self.host, |(name, _)| name)
    }

    pub(crate) fn get(&self, path: &str) -> Vec<u8> {
        format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n{SDK_HEADERS}\r\n",
            self.host, self.key
        )
        .into_bytes()
    }

    /// The head of a request with a body of `length` bytes.
    pub(crate) fn head(&self, method: &str, path: &str, kind: &str, length: usize) -> Vec<u8> {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: {kind}\r\n\
             content-length: {length}\r\n{SDK_HEADERS}\r\n",
            self.host, self.key
        )
        .into_bytes()
    }
}

/// The last bytes of a body, by which one tells whether it is whole.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tail([u8; TAIL_BYTES]);

impl Tail {
    pub(crate) fn push(&mut self, part: &[u8]) {
        let last = part
            .get(part.len().saturating_sub(TAIL_BYTES)..)
            .unwrap_or_default();
        self.0.rotate_left(last.len());
        if let Some(place) = self.0.get_mut(TAIL_BYTES - last.len()..) {
            place.copy_from_slice(last);
        }
    }

    /// Whether a chat answer, streamed or not, is there to its end.
    pub(crate) fn is_whole(&self, stream: bool) -> bool {
        let end = if stream { STREAM_END } else { PLAIN_END };
        self.0.ends_with(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_end_however_it_came() {
        for step in [1, 3, 14, 16, 100] {
            let mut tail = Tail::default();
            for part in b"data: {\"choices\":[]}\n\ndata: [DONE]\n\n".chunks(step) {
                tail.push(part);
            }
            assert!(tail.is_whole(true), "{step}");
            assert!(!tail.is_whole(false), "{step}");
        }
    }

    #[test]
    fn a_chat_is_small_and_says_its_length() {
        let target = Target::new("http://127.0.0.1:1", "k").unwrap();
        let text = String::from_utf8(target.chat("bench", false)).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!((250..350).contains(&body.len()), "{}", body.len());
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
