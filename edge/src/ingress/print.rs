//! Fingerprints of requests: by which a retry is known to ask the same as the request before it.
//!
//! Pure. Method, target and body go in. The boundary of a form does not: SDKs draw a new one for every try. The hash is keyed,
//! so that who holds it cannot tell what was asked.

use http::{header, request::Parts};
use ring::hmac;

/// A fingerprint in the making.
#[derive(Clone)]
pub(super) struct Printer {
    context: hmac::Context,
    /// What parts a form, and is left out.
    boundary: Option<Box<[u8]>>,
    /// The end of what came, which may be the begin of a boundary.
    held: Vec<u8>,
}

impl Printer {
    /// Begins with a request's head, under `secret`.
    pub(super) fn new(secret: &[u8], parts: &Parts) -> Self {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
        for text in [
            parts.method.as_str(),
            parts.uri.path(),
            parts.uri.query().unwrap_or_default(),
        ] {
            context.update(&(text.len() as u64).to_le_bytes());
            context.update(text.as_bytes());
        }
        let content_type = parts.headers.get(header::CONTENT_TYPE);
        Self {
            context,
            boundary: content_type
                .and_then(|value| boundary(value.to_str().ok()?))
                .map(|text| text.as_bytes().into()),
            held: Vec::new(),
        }
    }

    /// Takes the next piece of the body, cut anywhere.
    pub(super) fn feed(&mut self, chunk: &[u8]) {
        let Some(boundary) = &self.boundary else {
            return self.context.update(chunk);
        };
        self.held.extend_from_slice(chunk);
        let mut from = 0;
        while let Some(at) = memchr::memmem::find(&self.held[from..], boundary) {
            self.context.update(&self.held[from..from + at]);
            from += at + boundary.len();
        }
        let settled = (self.held.len() + 1)
            .saturating_sub(boundary.len())
            .max(from);
        self.context.update(&self.held[from..settled]);
        self.held.drain(..settled);
    }

    /// The fingerprint.
    pub(super) fn finish(mut self) -> [u8; 32] {
        self.context.update(&self.held);
        let mut out = [0; 32];
        out.copy_from_slice(self.context.sign().as_ref());
        out
    }
}

/// The boundary that a form's content type names.
fn boundary(content_type: &str) -> Option<&str> {
    let mut parameters = content_type.split(';');
    let essence = parameters.next()?.trim();
    if !essence.eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parameters
        .filter_map(|parameter| parameter.trim().split_once('='))
        .find(|(name, _)| name.eq_ignore_ascii_case("boundary"))
        .map(|(_, value)| value.trim_matches('"'))
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn parts(target: &str, content_type: &str) -> Parts {
        let request = Request::post(target).header("content-type", content_type);
        request.body(()).unwrap().into_parts().0
    }

    fn print(secret: &str, parts: &Parts, chunks: &[&[u8]]) -> [u8; 32] {
        let mut printer = Printer::new(secret.as_bytes(), parts);
        chunks.iter().for_each(|chunk| printer.feed(chunk));
        printer.finish()
    }

    #[test]
    fn every_part_counts() {
        let json = "application/json";
        let first = print("k", &parts("/v1/a", json), &[b"{}"]);
        assert_eq!(first, print("k", &parts("/v1/a", json), &[b"{", b"}"]));
        for other in [
            print("l", &parts("/v1/a", json), &[b"{}"]),
            print("k", &parts("/v1/b", json), &[b"{}"]),
            print("k", &parts("/v1/a?b", json), &[b"{}"]),
            print("k", &parts("/v1/a", json), &[b"{ }"]),
        ] {
            assert_ne!(first, other);
        }
    }

    proptest! {
        /// However it is cut, and whatever its boundary is, a form is the same form.
        #[test]
        fn a_forms_boundary_does_not_count(
            fields in prop::collection::vec("[a-z\r\n-]{0,40}", 1..6),
            boundaries in ("[A-Z0-9]{1,30}", "[A-Z0-9]{1,30}"),
            cuts in prop::collection::vec(1..50_usize, 1..40),
        ) {
            let form = |boundary: &str| {
                let mut body = String::new();
                for field in &fields {
                    body += &format!("--{boundary}\r\n\r\n{field}\r\n");
                }
                let parts = parts("/v1/files", &format!("multipart/form-data; boundary=\"{boundary}\""));
                (parts, body + "--" + boundary + "--\r\n")
            };
            let (parts, body) = form(&boundaries.0);
            let (other_parts, other_body) = form(&boundaries.1);
            let mut rest = other_body.as_bytes();
            let mut chunks = Vec::new();
            for cut in cuts {
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                chunks.push(piece);
                rest = left;
            }
            chunks.push(rest);
            prop_assert_eq!(print("k", &parts, &[body.as_bytes()]), print("k", &other_parts, &chunks));
        }
    }
}
