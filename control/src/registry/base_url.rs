//! Judges where a provider may be: credentials travel there, so nobody on the way may read them, it must be where
//! it seems to be, and it is not inside our own walls unless the operator says so.
//!
//! What a name stands for is not asked here, since it may stand for something else tomorrow: an egress judges
//! every address by the same rule (`vector_proto::reach`) when it dials it.

use std::net::IpAddr;

use http::{Uri, uri::Authority};
use vector_proto::{control::v1::ProviderSpec, reach::Reach};

use super::check::Faults;

/// Says what is wrong with a provider's base URL. `at` gives a field its whole path.
pub(super) fn judge(spec: &ProviderSpec, at: impl Fn(&str) -> String, faults: &mut Faults) {
    if let Err(why) = check(&spec.base_url, spec.allow_private) {
        faults.push(at("base_url"), why);
    }
}

fn check(text: &str, allow_private: bool) -> Result<(), String> {
    let uri: Uri = text
        .parse()
        .map_err(|_| format!("`{text}` is not a URL such as https://api.openai.com/v1"))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(format!(
            "`{text}` needs a scheme and a host, such as https://api.openai.com/v1"
        ));
    };
    if authority.as_str().contains('@') {
        return Err("must not hold a user or password: use a credential".to_owned());
    }
    if uri.query().is_some() || text.contains('#') {
        return Err("must not have a query or fragment".to_owned());
    }
    port(authority)?;
    let (reach, loopback) = host(authority.host())?;
    match scheme {
        "https" => {}
        "http" if loopback => {}
        "http" => {
            return Err(
                "must be https, since credentials travel to it (http only to loopback)".to_owned(),
            );
        }
        other => return Err(format!("`{other}` is neither https nor, to loopback, http")),
    }
    match reach {
        Reach::Never => Err(format!("no provider is at {}", authority.host())),
        Reach::Private if !allow_private => Err(format!(
            "{} is this machine or a private network: only with allow_private",
            authority.host()
        )),
        Reach::Private | Reach::Public => Ok(()),
    }
}

/// A port that is none would silently become the usual one.
fn port(authority: &Authority) -> Result<(), String> {
    let rest = &authority.as_str()[authority.host().len()..];
    match rest.strip_prefix(':') {
        None => Ok(()),
        Some(port) if port.parse().is_ok_and(|port: u16| port != 0) => Ok(()),
        Some(port) => Err(format!("`{port}` is not a port")),
    }
}

/// How far a host reaches as it is written, and whether it is loopback.
fn host(text: &str) -> Result<(Reach, bool), String> {
    if let Some(six) = text.strip_prefix('[') {
        let address = six.strip_suffix(']').and_then(|six| six.parse().ok());
        let address = address.ok_or_else(|| format!("{text} is not an address"))?;
        return Ok(of(IpAddr::V6(address)));
    }
    if let Ok(four) = text.parse() {
        return Ok(of(IpAddr::V4(four)));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let sound = |label: &str| {
        let byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(byte)
    };
    if name.len() > 253 || !name.split('.').all(sound) {
        return Err(format!("`{text}` is not a host's name"));
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    // Resolvers read 2130706433, 0x7f.1 and 0177.0.0.1 as 127.0.0.1.
    let hex = last
        .strip_prefix("0x")
        .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if hex || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "`{text}` hides an address: write it as four decimal numbers"
        ));
    }
    if last == "localhost" {
        return Ok((Reach::Private, true));
    }
    Ok((Reach::Public, false))
}

fn of(address: IpAddr) -> (Reach, bool) {
    (Reach::of(address), address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_lead_where_they_seem_to() {
        for good in [
            "https://api.openai.com/v1",
            "https://api.openai.com.:8443",
            "https://8.8.8.8/v1",
            "https://[2606:4700::1111]:8443/v1",
            "https://my-host_1.example",
        ] {
            assert_eq!(check(good, false), Ok(()), "{good}");
        }
        for bad in [
            "",
            "/v1",
            "api.openai.com",
            "http://api.openai.com/v1",
            "ftp://127.0.0.1",
            "https://user:pw@api.openai.com",
            "https://@api.openai.com",
            "https://api.openai.com/v1?key=1",
            "https://api.openai.com/v1#part",
            "https://api.openai.com:99999",
            "https://api.openai.com:0",
            "https://api.openai.com:",
            "https://api..openai.com",
            "https://%61pi.openai.com",
            "https://[fe80::1%25eth0]",
            "https://169.254.169.254/latest",
            "https://169.254.169.254./latest",
            "https://[::ffff:169.254.169.254]",
            "https://[64:ff9b::a9fe:a9fe]",
            "https://[fd00:ec2::254]",
            "https://[fe80::1]",
            "https://0.0.0.0",
            "https://[::]",
            "https://224.0.0.1",
            "https://2130706433",
            "https://0x7f000001",
            "https://0x7f.1",
            "https://0177.0.0.1",
            "https://127.1",
            "https://10.0.0",
            "http://10.1.2.3:8000",
            "http://[64:ff9b::7f00:1]",
        ] {
            assert!(check(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_inside_must_be_meant() {
        for inward in [
            "http://127.0.0.1:9000/v1",
            "http://[::1]:9000",
            "http://[::ffff:127.0.0.1]:9000",
            "http://localhost:1",
            "http://LOCALHOST.:1",
            "https://model.localhost",
            "https://10.1.2.3:8443",
            "https://192.168.1.1",
            "https://100.64.0.1",
            "https://[fd12::1]",
        ] {
            assert_eq!(check(inward, true), Ok(()), "{inward}");
            let why = check(inward, false).unwrap_err();
            assert!(why.contains("allow_private"), "{inward}: {why}");
        }
    }
}
