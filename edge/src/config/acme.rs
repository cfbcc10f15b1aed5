//! `[ingress] acme_*`: a certificate that the node orders for itself.

use std::path::{Path, PathBuf};

use super::raw::RawIngress;

/// Where certificates come from unless it is said.
const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// Names in one certificate: what the usual authorities allow.
const DOMAINS_MAX: usize = 100;

/// How a certificate is ordered (RFC 8555), proved by TLS-ALPN-01 (RFC 8737).
#[derive(Clone, Debug)]
pub struct Acme {
    /// DNS names in lower case, sorted, at least one.
    pub domains: Vec<String>,
    /// URL of the authority's directory. Default: Let's Encrypt.
    pub directory: http::Uri,
    /// Such as `mailto:ops@example.net`.
    pub contact: Option<String>,
    /// PEM with the roots that the directory's own certificate is checked against. Default: the system's.
    pub ca: Option<PathBuf>,
    /// Holds account, key and certificate. Made when absent.
    pub folder: PathBuf,
}

/// Whether any key of this section is there.
pub(super) fn is_wanted(raw: &RawIngress) -> bool {
    raw.acme_domains.is_some()
        || raw.acme_directory.is_some()
        || raw.acme_contact.is_some()
        || raw.acme_ca.is_some()
        || raw.acme_agree.is_some()
}

/// Every fault goes to `faults`.
pub(super) fn check(raw: &RawIngress, state_dir: &Path, faults: &mut Vec<String>) -> Option<Acme> {
    let before = faults.len();
    if raw.tls_cert.is_some() || raw.tls_key.is_some() {
        faults.push(
            "ingress.acme_domains: give either this or ingress.tls_cert and ingress.tls_key".into(),
        );
    }
    let wanted = raw.acme_domains.as_deref().unwrap_or_default();
    if wanted.is_empty() {
        faults.push("ingress.acme_domains: must name at least one DNS name".into());
    }
    if wanted.len() > DOMAINS_MAX {
        faults.push(format!("ingress.acme_domains: at most {DOMAINS_MAX}"));
    }
    let mut domains: Vec<_> = wanted.iter().map(|name| name.to_lowercase()).collect();
    domains.sort_unstable();
    domains.dedup();
    for name in &domains {
        if let Some(why) = fault_of(name) {
            faults.push(format!("ingress.acme_domains: `{name}`: {why}"));
        }
    }
    if raw.acme_agree != Some(true) {
        faults.push(
            "ingress.acme_agree: must be true, which says that you agree to the terms of service of the authority".into(),
        );
    }
    let contact = raw.acme_contact.clone().filter(|text| !text.is_empty());
    if let Some(contact) = &contact
        && !contact.starts_with("mailto:")
    {
        faults.push(format!(
            "ingress.acme_contact: `{contact}` is not of the form mailto:ops@example.net"
        ));
    }
    let text = raw.acme_directory.as_deref().unwrap_or(DIRECTORY);
    let directory = text.parse::<http::Uri>().ok();
    let directory =
        directory.filter(|url| url.scheme_str() == Some("https") && url.host().is_some());
    if directory.is_none() {
        faults.push(format!(
            "ingress.acme_directory: `{text}` is not of the form https://host/directory"
        ));
    }
    (faults.len() == before).then_some(Acme {
        domains,
        directory: directory?,
        contact,
        ca: raw
            .acme_ca
            .clone()
            .filter(|text| !text.is_empty())
            .map(PathBuf::from),
        folder: state_dir.join("acme"),
    })
}

fn fault_of(name: &str) -> Option<&'static str> {
    if name.contains('*') {
        return Some("TLS-ALPN-01 cannot prove a wildcard; use ingress.tls_cert for it");
    }
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Some("an address, not a DNS name");
    }
    let good = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (name.len() > 253 || !name.split('.').all(good)).then_some("not a DNS name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(change: impl FnOnce(&mut RawIngress)) -> Vec<String> {
        let mut raw = RawIngress {
            acme_domains: Some(vec!["B.example".into(), "a.example".into()]),
            acme_agree: Some(true),
            ..RawIngress::default()
        };
        change(&mut raw);
        let mut faults = Vec::new();
        let read = check(&raw, Path::new("/state"), &mut faults);
        assert_eq!(read.is_some(), faults.is_empty());
        if let Some(read) = read {
            assert_eq!(read.domains, ["a.example", "b.example"]);
            assert_eq!(read.folder, Path::new("/state/acme"));
        }
        faults
    }

    fn fault(begin: &str, change: impl FnOnce(&mut RawIngress)) {
        let faults = faults(change);
        assert!(
            faults.len() == 1 && faults[0].starts_with(begin),
            "{faults:?}"
        );
    }

    #[test]
    fn each_fault_names_its_key() {
        assert!(faults(|_| {}).is_empty());
        fault("ingress.acme_agree: must be true", |raw| {
            raw.acme_agree = None
        });
        fault("ingress.acme_domains: must name", |raw| {
            raw.acme_domains = None
        });
        let bad = |name: &str, why: &str| {
            fault(&format!("ingress.acme_domains: `{name}`: {why}"), |raw| {
                raw.acme_domains = Some(vec![name.to_owned()]);
            });
        };
        bad("*.example.net", "TLS-ALPN-01 cannot prove a wildcard");
        bad("192.0.2.1", "an address");
        bad("a..example", "not a DNS name");
        bad("https://a", "not a DNS name");
        fault("ingress.acme_contact: `ops@", |raw| {
            raw.acme_contact = Some("ops@example.net".into());
        });
        fault("ingress.acme_directory: `http://", |raw| {
            raw.acme_directory = Some("http://ca.example/dir".into());
        });
        fault("ingress.acme_domains: give either", |raw| {
            raw.tls_cert = Some("x".into());
        });
    }
}
