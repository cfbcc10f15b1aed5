//! Finds the client's key and asks who stands behind it.
//!
//! The key is taken from whichever place the client's dialect puts it, hashed, and never copied: neither the log nor any
//! other node sees it. A policy that is known here is taken without a wait; another is asked for once.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderName, header, request::Parts};
use ring::digest;
use vector_proto::{
    control::v1::KeyPolicy,
    id::ApiKey,
    refusal::{Code, Refusal},
};

use super::head;
use crate::control_plane::ControlPlane;

/// How browsers carry a key on a WebSocket, which cannot have headers of theirs.
pub(super) const SUBPROTOCOL_KEY: &str = "openai-insecure-api-key.";

const ANTHROPIC_KEY: HeaderName = HeaderName::from_static("x-api-key");
const GOOGLE_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// Which place a key was found in; `models` answers in the dialect that goes with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Carrier {
    /// `Authorization: Bearer`, or a WebSocket subprotocol.
    Bearer,
    /// `x-api-key`.
    Anthropic,
    /// `x-goog-api-key` or `?key=`.
    Google,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) policy: Arc<KeyPolicy>,
    pub(super) carrier: Carrier,
}

/// Finds out who asks, and whether they may from here.
///
/// Cancel safety: nothing is left behind.
pub(super) async fn authenticate(
    control: &ControlPlane,
    parts: &Parts,
    peer: IpAddr,
) -> Result<Caller, Refusal> {
    let (text, carrier) = presented(parts).ok_or_else(|| {
        Refusal::new(
            Code::NoKey,
            "You didn't provide an API key. Send it in an Authorization header: `Authorization: Bearer sk-...`",
        )
    })?;
    let key = ApiKey::parse(text)
        .map_err(|_| Refusal::new(Code::BadKey, "Incorrect API key provided"))?;
    let digest = hash(key);
    let policy = match control.cached_policy(&digest) {
        Some(policy) => policy,
        // Rare and large: it must not count in the size of every request.
        None => Box::pin(control.admit(key, digest)).await?,
    };
    check(&policy, peer)?;
    Ok(Caller { policy, carrier })
}

fn hash(key: ApiKey<'_>) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, key.reveal().as_bytes()).as_ref());
    out
}

fn check(policy: &KeyPolicy, peer: IpAddr) -> Result<(), Refusal> {
    if policy.expires_unix_ms != 0 && policy.expires_unix_ms <= unix_ms() {
        return Err(Refusal::new(Code::KeyExpired, "This API key has expired"));
    }
    let from_here = |range: &String| within(range, peer);
    if !policy.addresses.is_empty() && !policy.addresses.iter().any(from_here) {
        let message = format!("This API key may not be used from {}", peer.to_canonical());
        return Err(Refusal::new(Code::AddressNotAllowed, message));
    }
    Ok(())
}

fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The key's text and where it stood.
fn presented(parts: &Parts) -> Option<(&str, Carrier)> {
    let headers = &parts.headers;
    if let Some(value) = text(headers, &header::AUTHORIZATION)
        && let Some((scheme, key)) = value.split_once(' ')
        && scheme.eq_ignore_ascii_case("bearer")
    {
        return Some((key.trim(), Carrier::Bearer));
    }
    if let Some(key) = text(headers, &ANTHROPIC_KEY) {
        return Some((key.trim(), Carrier::Anthropic));
    }
    if let Some(key) = text(headers, &GOOGLE_KEY) {
        return Some((key.trim(), Carrier::Google));
    }
    if let Some(key) = subprotocols(headers).find_map(|offer| offer.strip_prefix(SUBPROTOCOL_KEY)) {
        return Some((key, Carrier::Bearer));
    }
    head::parameter(parts.uri.query(), "key").map(|key| (key, Carrier::Google))
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// The WebSocket subprotocols that a client offers.
pub(super) fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Whether an address is in a range such as `10.0.0.0/8`, or is the one address given.
fn within(range: &str, address: IpAddr) -> bool {
    let (network, bits) = match range.trim().split_once('/') {
        Some((network, bits)) => (network, bits.parse::<u32>().ok()),
        None => (range.trim(), Some(128)),
    };
    let (Ok(network), Some(bits)) = (network.parse::<IpAddr>(), bits) else {
        return false;
    };
    let shared = |left: u128, right: u128, width: u32| {
        let ignored = width - bits.min(width);
        left.checked_shr(ignored).unwrap_or(0) == right.checked_shr(ignored).unwrap_or(0)
    };
    match (network, address.to_canonical()) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            shared(network.to_bits().into(), address.to_bits().into(), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            shared(network.to_bits(), address.to_bits(), 128)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn addresses_are_matched_by_range() {
        let within = |range: &str, address: &str| within(range, address.parse().unwrap());
        assert!(within("10.0.0.0/8", "10.200.1.1"));
        assert!(!within("10.0.0.0/8", "11.0.0.1"));
        assert!(within("192.0.2.7", "192.0.2.7"));
        assert!(!within("192.0.2.7", "192.0.2.8"));
        assert!(
            within("192.0.2.7", "::ffff:192.0.2.7"),
            "a v4 client on a v6 socket"
        );
        assert!(within("0.0.0.0/0", "1.2.3.4"));
        assert!(within("2001:db8::/32", "2001:db8:1::1"));
        assert!(!within("2001:db8::/32", "2001:db9::1"));
        assert!(!within("nonsense", "1.2.3.4"));
        assert!(!within("10.0.0.0/x", "10.0.0.1"));
    }

    #[test]
    fn a_key_is_found_in_each_of_its_places() {
        let find = |name: &str, value: &str, target: &str| {
            let (parts, ()) = Request::get(target)
                .header(name, value)
                .body(())
                .unwrap()
                .into_parts();
            presented(&parts).map(|(key, carrier)| (key.to_owned(), carrier))
        };
        let found = |carrier| Some(("sk-1".to_owned(), carrier));
        assert_eq!(
            find("authorization", "Bearer sk-1", "/"),
            found(Carrier::Bearer)
        );
        assert_eq!(
            find("authorization", "bearer  sk-1", "/"),
            found(Carrier::Bearer)
        );
        assert_eq!(find("authorization", "Basic sk-1", "/"), None);
        assert_eq!(find("x-api-key", "sk-1", "/"), found(Carrier::Anthropic));
        assert_eq!(find("x-goog-api-key", "sk-1", "/"), found(Carrier::Google));
        assert_eq!(
            find("x", "y", "/v1/models?a=b&key=sk-1"),
            found(Carrier::Google)
        );
        let offer = "realtime, openai-insecure-api-key.sk-1, openai-beta.realtime-v1";
        assert_eq!(
            find("sec-websocket-protocol", offer, "/"),
            found(Carrier::Bearer)
        );
        assert_eq!(find("x", "y", "/"), None);
    }
}
