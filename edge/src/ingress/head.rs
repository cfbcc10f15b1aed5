//! Judges a request's head by the rules that two HTTP parsers could disagree about, and says what of it travels on.
//!
//! hyper has refused what no parser should accept, and `wire` what hyper would mend in silence; here is the rest, which shows
//! in the parsed head. Requests to providers are built from scratch: a header travels on only when [`travels`] names it,
//! so no hop-by-hop header, no `Host`, no length and no client key can.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, Version, header, request::Parts};
use vector_proto::{
    dialect::{
        header::travels,
        operation::{self, Match},
    },
    refusal::{Code, Refusal},
    tunnel::fields::Block,
};

/// Length of W3C's `traceparent` in its only version.
const TRACEPARENT_BYTES: usize = 55;

/// Room for what usually travels: an SDK's content type, accepted types and name.
const TRAVELLING_BYTES: usize = 128;

/// Refuses heads that are ambiguous.
pub(super) fn check(parts: &Parts) -> Result<(), Refusal> {
    check_host(parts)?;
    check_query(parts.uri.query().unwrap_or_default())?;
    let headers = &parts.headers;
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(bad(
            "the only transfer coding that is taken is a single `chunked`",
        ));
    }
    if headers
        .get_all(header::CONTENT_LENGTH)
        .iter()
        .nth(1)
        .is_some()
    {
        return Err(bad("more than one Content-Length"));
    }
    if headers
        .get_all(header::CONTENT_TYPE)
        .iter()
        .nth(1)
        .is_some()
    {
        return Err(bad("more than one Content-Type"));
    }
    if headers
        .keys()
        .any(|name| name.as_str().as_bytes().contains(&b'_'))
    {
        return Err(bad(
            "a header's name holds an underscore, which some servers read as a dash",
        ));
    }
    if let Some(coding) = headers.get(header::CONTENT_ENCODING)
        && !coding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(Refusal::new(
            Code::BadContentType,
            "request bodies must not be compressed: leave out Content-Encoding",
        ));
    }
    Ok(())
}

/// One authority, the same wherever it is named.
fn check_host(parts: &Parts) -> Result<(), Refusal> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next().map(http::HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err(bad("more than one Host"));
    }
    let authority = parts
        .uri
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    match (host, authority) {
        (None, None) if parts.version == Version::HTTP_11 => Err(bad("Host is missing")),
        (Some(host), _) if !host.iter().all(|byte| is_host_byte(*byte)) => {
            Err(bad("Host is malformed"))
        }
        (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => {
            Err(bad("the request's target names another host than Host"))
        }
        _ => Ok(()),
    }
}

/// Parameters of a query that are acted on here and travel on.
const ACTED_ON: [&str; 2] = ["model", "call_id"];

/// Refuses a second one of what is acted on, however it is spelt: which one counts is anybody's guess.
fn check_query(query: &str) -> Result<(), Refusal> {
    for wanted in ACTED_ON {
        let named = |parameter: &&str| {
            let name = parameter.split('=').next().unwrap_or_default();
            name == wanted || name.contains('%') && decode(name).as_deref() == Some(wanted)
        };
        if query.split('&').filter(named).nth(1).is_some() {
            return Err(bad(&format!("the query names `{wanted}` more than once")));
        }
    }
    Ok(())
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']' | b'%')
}

fn bad(message: &str) -> Refusal {
    Refusal::new(Code::BadHead, message)
}

/// The headers that travel on, ready for an OPEN. `offers`: the subprotocols of a WebSocket.
pub(super) fn travelling(headers: &HeaderMap, offers: Option<String>) -> Bytes {
    let mut out = Block::with_capacity(TRAVELLING_BYTES);
    if let Some(offers) = offers {
        out.push(header::SEC_WEBSOCKET_PROTOCOL.as_str(), offers.as_bytes());
    }
    for (name, value) in headers {
        if travels(name.as_str()) {
            out.push(name.as_str(), value.as_bytes());
        }
    }
    out.finish()
}

/// The client's trace context, if it has one.
pub(super) fn traceparent(parts: &Parts) -> &str {
    let value = parts
        .headers
        .get("traceparent")
        .and_then(|value| value.to_str().ok());
    value
        .filter(|value| value.len() == TRACEPARENT_BYTES)
        .unwrap_or_default()
}

/// The path and query below a provider's base URL: without `/v1`, without a `key` parameter, and with the model that the
/// path or query names replaced by `rename` if given.
pub(super) fn below_base(
    found: &Match<'_>,
    path: &str,
    query: Option<&str>,
    rename: Option<&str>,
) -> String {
    let straight;
    let path = if found.crooked {
        straight = operation::canonical(path);
        &straight
    } else {
        path
    };
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let mut out = String::with_capacity(path.len() + query.map_or(0, str::len) + 24);
    match (found.model, rename) {
        (Some(model), Some(name)) => {
            out.push_str(
                path.trim_end_matches('/')
                    .strip_suffix(model)
                    .unwrap_or(path),
            );
            encode_into(&mut out, name);
        }
        _ => out.push_str(path),
    }
    let mut mark = '?';
    for parameter in query
        .unwrap_or_default()
        .split('&')
        .filter(|parameter| !parameter.is_empty())
    {
        let name = parameter
            .split_once('=')
            .map_or(parameter, |(name, _)| name);
        if name == "key" {
            continue;
        }
        out.push(mark);
        mark = '&';
        match rename {
            Some(to) if name == "model" && found.model.is_none() => {
                out.push_str("model=");
                encode_into(&mut out, to);
            }
            _ => out.push_str(parameter),
        }
    }
    out
}

/// A parameter of a query, as it stands there.
pub(super) fn parameter<'q>(query: Option<&'q str>, wanted: &str) -> Option<&'q str> {
    query?.split('&').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        (name == wanted && !value.is_empty()).then_some(value)
    })
}

/// Resolves percent-encoding; `None` where it is broken or not text.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok()
}

fn encode_into(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':') {
            out.push(char::from(byte));
        } else {
            let written = write!(out, "%{byte:02X}");
            debug_assert!(written.is_ok(), "a string takes every write");
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn verdict(request: http::request::Builder) -> &'static str {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        match check(&parts) {
            Ok(()) => "ok",
            Err(refusal) => refusal.code.verdict().code,
        }
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        let get = |uri: &str| Request::get(uri);
        assert_eq!(verdict(get("/v1/models").header("host", "a")), "ok");
        assert_eq!(verdict(get("/v1/models")), "bad_request_head");
        assert_eq!(
            verdict(get("/v1/models").header("host", "a").header("host", "a")),
            "bad_request_head"
        );
        assert_eq!(
            verdict(get("http://b/v1/models").header("host", "a")),
            "bad_request_head"
        );
        assert_eq!(verdict(get("http://A/v1/models").header("host", "a")), "ok");
        assert_eq!(verdict(get("/").header("host", "a b")), "bad_request_head");
        assert_eq!(
            verdict(get("/").header("host", "a").header("x_a", "1")),
            "bad_request_head"
        );
        let chunked = |value: &str| {
            get("/")
                .header("host", "a")
                .header("transfer-encoding", value)
        };
        assert_eq!(verdict(chunked("chunked")), "ok");
        assert_eq!(verdict(chunked("gzip, chunked")), "bad_request_head");
        assert_eq!(
            verdict(chunked("chunked").header("transfer-encoding", "chunked")),
            "bad_request_head"
        );
        assert_eq!(
            verdict(
                get("/")
                    .header("host", "a")
                    .header("content-encoding", "gzip")
            ),
            "unsupported_content_type"
        );
        assert_eq!(verdict(get("http://a/").version(Version::HTTP_2)), "ok");
        let typed = get("/").header("host", "a").header("content-type", "a/b");
        assert_eq!(
            verdict(typed.header("content-type", "c/d")),
            "bad_request_head"
        );
    }

    #[test]
    fn what_a_query_is_read_for_it_names_once() {
        let verdict = |query: &str| {
            verdict(Request::get(format!("/v1/realtime?{query}")).header("host", "a"))
        };
        for query in [
            "model=a&model=b",
            "model=a&x=1&model=a",
            "model=&model=b",
            "model&model=b",
            "model=a&mod%65l=b",
            "%6dodel=a&%6Dodel=b",
            "call_id=a&call_id=b",
        ] {
            assert_eq!(verdict(query), "bad_request_head", "{query}");
        }
        for query in [
            "model=a&call_id=b",
            "models=a&model=b",
            "a=1&a=2",
            "model=a%&b%=c",
        ] {
            assert_eq!(verdict(query), "ok", "{query}");
        }
    }

    #[test]
    fn paths_lose_their_base_and_their_key() {
        let below = |method: &str, target: &str, rename: Option<&str>| {
            let (path, query) = target
                .split_once('?')
                .map_or((target, None), |(path, query)| (path, Some(query)));
            below_base(&operation::find(method, path).unwrap(), path, query, rename)
        };
        assert_eq!(
            below("POST", "/v1/chat/completions", None),
            "/chat/completions"
        );
        assert_eq!(
            below("GET", "/v1/files?key=sk-1&limit=2&after=a%20b", None),
            "/files?limit=2&after=a%20b"
        );
        assert_eq!(below("GET", "/v1//files/", None), "/files");
        assert_eq!(
            below("GET", "/v1/realtime?model=public&x=1", Some("a/b")),
            "/realtime?model=a%2Fb&x=1"
        );
        assert_eq!(
            below("DELETE", "/v1/models/ft:a/b", Some("ft:c")),
            "/models/ft:c"
        );
    }

    #[test]
    fn percent_encoding_is_resolved_or_refused() {
        assert_eq!(decode("a%2Fb").as_deref(), Some("a/b"));
        assert_eq!(decode("a%2"), None);
        assert_eq!(decode("a%ff"), None);
        assert_eq!(parameter(Some("a=1&model=x&model=y"), "model"), Some("x"));
        assert_eq!(parameter(Some("model="), "model"), None);
    }
}
