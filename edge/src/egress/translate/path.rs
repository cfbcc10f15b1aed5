//! Path and query of a request below a provider's base URL.
//!
//! The ingress sends both as the client wrote them; where the model is named there and the provider calls it
//! otherwise, its name is replaced here. A path that could climb out of the base URL is refused, although the
//! ingress lets none through.

use bytes::Bytes;
use vector_proto::tunnel::v1::RequestHead;

use super::renames;

/// The whole target, such as `/v1/chat/completions`. `None` if the path may not be sent. `names`: it may name the model.
pub(super) fn target(prefix: &str, head: &RequestHead, names: bool) -> Option<Bytes> {
    let path = head.path.as_str();
    if !path.starts_with('/') || climbs(path) {
        return None;
    }
    let mut target = Vec::with_capacity(prefix.len() + path.len() + 16);
    target.extend_from_slice(prefix.as_bytes());
    if names && renames(head) && head.model_end <= head.model_start {
        renamed(path, head, &mut target);
    } else {
        target.extend_from_slice(path.as_bytes());
    }
    Some(target.into())
}

/// Whether a segment of the path is `..` or `.`, written plainly or encoded.
fn climbs(path: &str) -> bool {
    if !path.contains("/.") && !path.contains('%') {
        return false;
    }
    let path = path.split('?').next().unwrap_or_default();
    path.split('/').any(|segment| {
        let segment = segment.to_ascii_lowercase().replace("%2e", ".");
        segment == "." || segment == ".."
    })
}

/// Appends the path with the model's name replaced in the parameter `model` or at the path's end.
fn renamed(path: &str, head: &RequestHead, out: &mut Vec<u8>) {
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    };
    let at_end = path
        .len()
        .checked_sub(head.model.len())
        .filter(|at| *at > 0 && path.as_bytes()[at - 1] == b'/' && path.ends_with(&head.model));
    match at_end {
        Some(at) => {
            out.extend_from_slice(&path.as_bytes()[..at]);
            encode(&head.upstream_model, out);
        }
        None => out.extend_from_slice(path.as_bytes()),
    }
    let pairs = query.into_iter().flat_map(|query| query.split('&'));
    for (at, pair) in pairs.enumerate() {
        out.push(if at == 0 { b'?' } else { b'&' });
        match pair.strip_prefix("model=") {
            Some(value) if decodes_to(value, &head.model) => {
                out.extend_from_slice(b"model=");
                encode(&head.upstream_model, out);
            }
            _ => out.extend_from_slice(pair.as_bytes()),
        }
    }
}

fn encode(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:@/".contains(&byte) {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
}

fn decodes_to(value: &str, text: &str) -> bool {
    let mut bytes = value.bytes();
    let decoded = std::iter::from_fn(|| {
        Some(match bytes.next()? {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next().unwrap_or(0)).to_digit(16);
                let (high, low) = (digit(), digit());
                u8::try_from(high.unwrap_or(0) * 16 + low.unwrap_or(0)).unwrap_or(0)
            }
            byte => byte,
        })
    });
    decoded.eq(text.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: Option<&str>) {
        let head = RequestHead {
            path: path.to_owned(),
            model: "gpt x".to_owned(),
            upstream_model: "up/1 b".to_owned(),
            ..RequestHead::default()
        };
        let got = target("/v1", &head, true);
        assert_eq!(
            got.as_deref(),
            expected.map(str::as_bytes),
            "{path} gave {got:?}"
        );
    }

    #[test]
    fn the_model_is_renamed_where_the_url_names_it() {
        check(
            "/realtime?model=gpt%20x&a=b",
            Some("/v1/realtime?model=up/1%20b&a=b"),
        );
        check(
            "/realtime?a=gpt+x&model=gpt+x",
            Some("/v1/realtime?a=gpt+x&model=up/1%20b"),
        );
        check("/realtime?model=other", Some("/v1/realtime?model=other"));
        check("/chat/completions", Some("/v1/chat/completions"));
    }

    #[test]
    fn the_path_of_a_call_that_names_no_model_stays() {
        let head = RequestHead {
            path: "/responses/resp_1/cancel?model=cancel".to_owned(),
            model: "cancel".to_owned(),
            upstream_model: "inner".to_owned(),
            ..RequestHead::default()
        };
        let got = target("/v1", &head, false);
        let expected = "/v1/responses/resp_1/cancel?model=cancel";
        assert_eq!(got.as_deref(), Some(expected.as_bytes()));
    }

    #[test]
    fn nothing_climbs_out_of_the_base_url() {
        for bad in ["/../admin", "/files/..", "/a/%2e%2E/b", "/./x", "files", ""] {
            check(bad, None);
        }
        check("/files/..a?x=/../", Some("/v1/files/..a?x=/../"));
    }
}
