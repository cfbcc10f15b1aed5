//! From settings as written to settings as meant: defaults, ranges, and what must go together.

mod egress;

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Admin, Config, Control, Format, Heartbeat, Ingress, Node, Role, Secret, Telemetry, Tls,
    TlsFiles, Tunnel, acme,
    raw::{RawConfig, RawControl, RawIngress, RawNode, RawTelemetry, RawTunnel},
};

/// An hour: no time of ours may be longer.
const MS_MAX: u64 = 3_600_000;

/// Fastest line that one can say to have: 1 Tbit/s.
const LINE_MBPS_MAX: u64 = 1_000_000;

/// Addresses of one node.
const ADDRESSES_MAX: usize = 8;

/// Every fault goes to `faults`; without a value nothing useful can be said of the rest.
pub(super) fn check(raw: RawConfig, faults: &mut Vec<String>) -> Option<Config> {
    let node = node(raw.node, faults);
    let control = control(raw.control, faults);
    let drain = ms(
        faults,
        "ingress.drain_ms",
        raw.ingress.drain_ms,
        30_000,
        0..=MS_MAX,
    );
    let notice = ms(
        faults,
        "ingress.notice_ms",
        raw.ingress.notice_ms,
        1_000,
        0..=MS_MAX,
    );
    let has = |role| node.as_ref().is_some_and(|node| node.roles.contains(&role));
    // Without a node to go by, its faults are worth telling all the same.
    let ingress = (has(Role::Ingress) || node.is_none())
        .then(|| {
            let state_dir = node.as_ref().map(|node| node.state_dir.as_path());
            ingress(raw.ingress, state_dir, (notice, drain), faults)
        })
        .flatten();
    let reached = has(Role::Relay) || has(Role::Egress);
    let tunnel = tunnel(raw.tunnel, reached, faults);
    let egress_wanted = has(Role::Egress);
    let egress = egress::check(raw.egress, faults);
    let admin = address(faults, "admin.listen", raw.admin.listen, "127.0.0.1:9100");
    let telemetry = telemetry(raw.telemetry, faults);
    Some(Config {
        node: node?,
        control: control?,
        ingress,
        tunnel: tunnel?,
        egress: egress_wanted.then_some(egress),
        admin: Admin { listen: admin? },
        telemetry: telemetry?,
        drain,
    })
}

fn node(raw: RawNode, faults: &mut Vec<String>) -> Option<Node> {
    let name = |faults: &mut Vec<String>, key: &str, text: Option<String>| {
        text.filter(|text| !text.is_empty()).and_then(|text| {
            let read = text.parse();
            read.map_err(|error| faults.push(format!("{key}: {error}")))
                .ok()
        })
    };
    let id = name(faults, "node.id", raw.id);
    let region = name(faults, "node.region", raw.region);
    let mut roles: Vec<Role> = Vec::new();
    for text in raw.roles.unwrap_or_default() {
        match text.parse() {
            Ok(role) => roles.push(role),
            Err(error) => faults.push(format!("node.roles: `{text}`: {error}")),
        }
    }
    if roles.is_empty() {
        let told = faults.iter().any(|fault| fault.starts_with("node.roles:"));
        if !told {
            faults.push("node.roles: must name at least one of ingress, relay, egress".into());
        }
    }
    roles.sort_unstable();
    roles.dedup();
    let state_dir = raw.state_dir.filter(|text| !text.is_empty());
    if state_dir.is_none() {
        faults.push("node.state_dir: must name a folder that survives restarts".into());
    }
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = match raw.workers {
        None | Some(0) => cores(),
        Some(workers @ 1..=1_024) => usize::try_from(workers).unwrap_or(1),
        Some(workers) => {
            faults.push(format!("node.workers: {workers} is outside 1..=1024"));
            1
        }
    };
    Some(Node {
        id,
        region,
        roles,
        state_dir: PathBuf::from(state_dir?),
        workers,
    })
}

/// Replicas of control that a node may be told of.
const CONTROL_URLS_MAX: usize = 16;

/// Addresses where clients reach an ingress.
const PUBLIC_ADDRESSES_MAX: usize = 8;

fn control(raw: RawControl, faults: &mut Vec<String>) -> Option<Control> {
    let invite = match (raw.invite, raw.invite_file) {
        (Some(_), Some(_)) => {
            faults.push("control.invite_file: give either this or control.invite".into());
            None
        }
        (Some(text), None) => Some(text),
        // A file that is gone is fine once the node is enrolled, so it is no fault here.
        (None, Some(path)) => std::fs::read_to_string(path).ok(),
        (None, None) => None,
    };
    let invite = invite
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
        .map(Secret::new);
    let texts = raw.url.unwrap_or_default();
    if texts.is_empty() {
        let told = faults.iter().any(|fault| fault.starts_with("control.url:"));
        if !told {
            faults.push(
                "control.url: must say where control is, such as https://127.0.0.1:7000".into(),
            );
        }
        return None;
    }
    if texts.len() > CONTROL_URLS_MAX {
        faults.push(format!("control.url: at most {CONTROL_URLS_MAX}"));
    }
    let read: Vec<_> = texts.iter().map(|text| control_url(text, faults)).collect();
    let mut urls: Vec<http::Uri> = read.into_iter().collect::<Option<_>>()?;
    // The same order on every node, however each was told.
    urls.sort_by_key(ToString::to_string);
    urls.dedup();
    Some(Control { urls, invite })
}

fn control_url(text: &str, faults: &mut Vec<String>) -> Option<http::Uri> {
    let url: http::Uri = text
        .parse()
        .map_err(|error| faults.push(format!("control.url: `{text}`: {error}")))
        .ok()?;
    if url.scheme_str() != Some("https") || url.host().is_none() {
        faults.push(format!(
            "control.url: `{text}` is not of the form https://host:port"
        ));
        return None;
    }
    Some(url)
}

fn ingress(
    raw: RawIngress,
    state_dir: Option<&Path>,
    (notice, drain): (Duration, Duration),
    faults: &mut Vec<String>,
) -> Option<Ingress> {
    let given = raw.listen.clone();
    let listen = address(faults, "ingress.listen", given, "127.0.0.1:8080");
    let open = listen.is_some_and(|listen| !listen.ip().is_loopback());
    let needed = open && !raw.insecure.unwrap_or(false);
    let tls = tls(&raw, state_dir, needed, faults);
    let header_read = ms(
        faults,
        "ingress.header_read_ms",
        raw.header_read_ms,
        10_000,
        100..=MS_MAX,
    );
    let body_idle = ms(
        faults,
        "ingress.body_idle_ms",
        raw.body_idle_ms,
        30_000,
        100..=MS_MAX,
    );
    let [stall, ping, queue] = waits(&raw, faults);
    let request = ms(
        faults,
        "ingress.request_ms",
        raw.request_ms,
        600_000,
        1_000..=24 * MS_MAX,
    );
    let connections_max = within(
        faults,
        "ingress.connections_max",
        raw.connections_max,
        16_384,
        1..=1_000_000,
    );
    let body_bytes_max = within(
        faults,
        "ingress.body_bytes_max",
        raw.body_bytes_max,
        4 << 30,
        1..=1 << 40,
    );
    let body_spool_bytes = within(
        faults,
        "ingress.body_spool_bytes",
        raw.body_spool_bytes,
        64 << 20,
        0..=1 << 40,
    );
    let listen = listen?;
    let url = client_url(raw.url, listen, tls.is_some(), faults);
    Some(Ingress {
        listen,
        url,
        public_addresses: public_addresses(raw.public_addresses.unwrap_or_default(), faults),
        tls,
        body_bytes_max,
        body_spool_bytes,
        header_read,
        body_idle,
        stall,
        ping,
        queue,
        connections_max: usize::try_from(connections_max).unwrap_or(usize::MAX),
        drain,
        notice,
        request,
    })
}

/// For a client that takes nothing, between signs of life, and for a credential.
fn waits(raw: &RawIngress, faults: &mut Vec<String>) -> [Duration; 3] {
    [
        ms(
            faults,
            "ingress.stall_ms",
            raw.stall_ms,
            60_000,
            1_000..=MS_MAX,
        ),
        ms(faults, "ingress.ping_ms", raw.ping_ms, 15_000, 100..=MS_MAX),
        ms(faults, "ingress.queue_ms", raw.queue_ms, 10_000, 0..=MS_MAX),
    ]
}

/// What clients write: as given, or made from where the node listens.
fn client_url(
    given: Option<String>,
    listen: SocketAddr,
    encrypted: bool,
    faults: &mut Vec<String>,
) -> String {
    let scheme = if encrypted { "https" } else { "http" };
    let url = given.unwrap_or_else(|| format!("{scheme}://{listen}"));
    if !url.starts_with("http://") && !url.starts_with("https://") {
        faults.push(format!(
            "ingress.url: `{url}` is not of the form https://host"
        ));
    }
    url.trim_end_matches('/').to_owned()
}

fn public_addresses(texts: Vec<String>, faults: &mut Vec<String>) -> Vec<IpAddr> {
    if texts.len() > PUBLIC_ADDRESSES_MAX {
        let why = format!("ingress.public_addresses: at most {PUBLIC_ADDRESSES_MAX}");
        faults.push(why);
    }
    let read = texts.iter().filter_map(|text| match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let why = format!("ingress.public_addresses: `{text}` is not an IP address");
            faults.push(why);
            None
        }
    });
    read.collect()
}

/// Both files, an authority or neither, and one of them where plain HTTP would leave the machine.
fn tls(
    raw: &RawIngress,
    state_dir: Option<&Path>,
    needed: bool,
    faults: &mut Vec<String>,
) -> Option<Tls> {
    if acme::is_wanted(raw) {
        return acme::check(raw, state_dir.unwrap_or(Path::new("")), faults).map(Tls::Acme);
    }
    let fault = match (&raw.tls_cert, &raw.tls_key) {
        (Some(cert), Some(key)) => {
            let (cert, key) = (cert.into(), key.into());
            return Some(Tls::Files(TlsFiles { cert, key }));
        }
        (Some(_), None) => "ingress.tls_key: must go with ingress.tls_cert",
        (None, Some(_)) => "ingress.tls_cert: must go with ingress.tls_key",
        (None, None) if needed => {
            "ingress.tls_cert: this or ingress.acme_domains is needed unless ingress.listen is a loopback address or ingress.insecure is true"
        }
        (None, None) => return None,
    };
    faults.push(fault.into());
    None
}

fn tunnel(raw: RawTunnel, reached: bool, faults: &mut Vec<String>) -> Option<Tunnel> {
    let mut interval = |key, value, default, range| ms(faults, key, value, default, range);
    let active = interval(
        "tunnel.heartbeat_active_ms",
        raw.heartbeat_active_ms,
        10,
        5..=1_000,
    );
    let standby = interval(
        "tunnel.heartbeat_standby_ms",
        raw.heartbeat_standby_ms,
        50.max(active.as_millis() as u64),
        5..=5_000,
    );
    let cold = interval(
        "tunnel.heartbeat_cold_ms",
        raw.heartbeat_cold_ms,
        1_000.max(standby.as_millis() as u64),
        5..=10_000,
    );
    if active > standby || standby > cold {
        let why = "must be from active over standby to cold, each no shorter than the one before";
        faults.push(format!("tunnel.heartbeat_standby_ms: {why}"));
    }
    let default = if reached {
        "127.0.0.1:7440"
    } else {
        "0.0.0.0:0"
    };
    let texts = raw.listen.filter(|texts| !texts.is_empty());
    let texts = texts.unwrap_or_else(|| vec![default.to_owned()]);
    if texts.len() > ADDRESSES_MAX {
        faults.push(format!(
            "tunnel.listen: more than {ADDRESSES_MAX} addresses"
        ));
    }
    let listen: Option<Vec<SocketAddr>> = texts
        .into_iter()
        .map(|text| address(faults, "tunnel.listen", Some(text), default))
        .collect();
    let listen = listen?;
    let told = raw.advertise.filter(|texts| !texts.is_empty());
    let advertise = told.unwrap_or_else(|| {
        let known = listen
            .iter()
            .filter(|at| at.port() != 0 && !at.ip().is_unspecified());
        known.map(SocketAddr::to_string).collect()
    });
    for text in &advertise {
        let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            faults.push(format!(
                "tunnel.advertise: `{text}` is not of the form host:port"
            ));
        }
    }
    if reached && advertise.is_empty() {
        let why = "needed, since tunnel.listen names no address that others could reach";
        faults.push(format!("tunnel.advertise: {why}"));
    }
    Some(Tunnel {
        listen,
        advertise,
        heartbeat: Heartbeat {
            active,
            standby,
            cold,
        },
        line_mbps: line_mbps(raw.line_mbps, faults),
        own_runtime: raw.own_runtime.unwrap_or(false),
    })
}

fn line_mbps(mbps: Option<u64>, faults: &mut Vec<String>) -> Option<u32> {
    let mbps = within(
        faults,
        "tunnel.line_mbps",
        Some(mbps?),
        1,
        1..=LINE_MBPS_MAX,
    );
    u32::try_from(mbps).ok()
}

fn telemetry(raw: RawTelemetry, faults: &mut Vec<String>) -> Option<Telemetry> {
    let log = raw.log.unwrap_or_else(|| "info".to_owned());
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&log) {
        faults.push(format!("telemetry.log: `{log}`: {error}"));
    }
    let format = match raw.format.as_deref() {
        None | Some("json") => Format::Json,
        Some("text") => Format::Text,
        Some(other) => {
            faults.push(format!(
                "telemetry.format: `{other}` is neither `json` nor `text`"
            ));
            return None;
        }
    };
    let otlp = raw.otlp.filter(|text| !text.is_empty());
    if let Some(url) = &otlp
        && url
            .parse::<http::Uri>()
            .ok()
            .and_then(|url| url.host().map(str::len))
            .is_none()
    {
        faults.push(format!(
            "telemetry.otlp: `{url}` is not of the form http://host:port"
        ));
    }
    Some(Telemetry { log, format, otlp })
}

fn address(
    faults: &mut Vec<String>,
    key: &str,
    text: Option<String>,
    default: &str,
) -> Option<SocketAddr> {
    let text = text.unwrap_or_else(|| default.to_owned());
    let read = text.parse();
    read.map_err(|_| {
        faults.push(format!(
            "{key}: `{text}` is not an address and port, such as {default}"
        ));
    })
    .ok()
}

fn within(
    faults: &mut Vec<String>,
    key: &str,
    value: Option<u64>,
    default: u64,
    range: RangeInclusive<u64>,
) -> u64 {
    let value = value.unwrap_or(default);
    if !range.contains(&value) {
        let (low, high) = (range.start(), range.end());
        faults.push(format!("{key}: {value} is outside {low}..={high}"));
        return default;
    }
    value
}

fn ms(
    faults: &mut Vec<String>,
    key: &str,
    value: Option<u64>,
    default: u64,
    range: RangeInclusive<u64>,
) -> Duration {
    Duration::from_millis(within(faults, key, value, default, range))
}
