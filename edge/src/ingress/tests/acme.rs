//! Certificates from a real authority (`pebble`), proved on the ingress's own listener.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio_rustls::TlsConnector;

use super::super::acme::{Acme, Authority};
use super::{
    world::{World, config},
    *,
};

/// An authority of this test's own, ended with it.
struct Pebble {
    process: Child,
    folder: tempfile::TempDir,
    port: u16,
    /// Its answer to "which roots do you sign with?".
    management: u16,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

impl Pebble {
    /// Looks for proofs on `tls_port` of this machine.
    fn start(tls_port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("cert.pem"), made.cert.pem()).unwrap();
        fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let (port, management) = (free_port(), free_port());
        let settings = serde_json::json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": path("cert.pem"),
            "privateKey": path("key.pem"),
            "httpPort": 1,
            "tlsPort": tls_port,
        }});
        fs::write(path("pebble.json"), settings.to_string()).unwrap();
        let process = Command::new("pebble")
            .args(["-config", &path("pebble.json")])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "20")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's package `pebble` is needed");
        Self {
            process,
            folder,
            port,
            management,
        }
    }

    async fn answers(&self) {
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_err()
            || TcpStream::connect(("127.0.0.1", self.management))
                .await
                .is_err()
        {
            tokio::task::yield_now().await;
        }
    }

    fn acme(&self, state: &Path) -> config::Acme {
        config::Acme {
            domains: vec!["localhost".into()],
            directory: format!("https://localhost:{}/dir", self.port)
                .parse()
                .unwrap(),
            contact: Some("mailto:ops@example.net".into()),
            ca: Some(self.folder.path().join("cert.pem")),
            folder: state.to_owned(),
        }
    }

    /// Trusts what it signs.
    async fn client(&self) -> TlsConnector {
        let authority = Authority::new(Some(&self.folder.path().join("cert.pem"))).unwrap();
        let url = format!("https://localhost:{}/roots/0", self.management);
        let request = http::Request::get(url).body(Bytes::new()).unwrap();
        let pem = authority.ask(request).await.unwrap().into_body();
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&pem).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(tls).into()
    }
}

async fn ingress(port: u16, acme: config::Acme) -> World {
    World::with(config::Ingress {
        listen: SocketAddr::from(([127, 0, 0, 1], port)),
        tls: Some(config::Tls::Acme(acme)),
        ..config()
    })
    .await
}

/// The certificate that a client which trusts the authority is shown.
async fn shown(world: &World, client: &TlsConnector) -> std::io::Result<Vec<u8>> {
    let name = ServerName::try_from("localhost").unwrap();
    let stream = client.connect(name, world.connect().await).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec())
}

async fn wait_shown(world: &World, client: &TlsConnector) -> Vec<u8> {
    loop {
        if let Ok(certificate) = shown(world, client).await {
            return certificate;
        }
    }
}

async fn wait_json(path: &Path) -> serde_json::Value {
    loop {
        if let Ok(text) = fs::read(path) {
            return serde_json::from_slice(&text).unwrap();
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_certificate_is_ordered_proved_kept_and_renewed() {
    let port = free_port();
    let pebble = Pebble::start(port);
    pebble.answers().await;
    let state = tempfile::tempdir().unwrap();
    let client = pebble.client().await;
    let world = ingress(port, pebble.acme(state.path())).await;
    let first = wait_shown(&world, &client).await;
    world.drain.cancel();
    world.handle.drained().await;

    // It is shown again at once, and the authority is not asked for another.
    let kept = state.path().join("certificate.json");
    let before = fs::read(&kept).unwrap();
    let mut issued: serde_json::Value = serde_json::from_slice(&before).unwrap();
    let again = Acme::load(pebble.acme(state.path())).unwrap();
    assert_eq!(Some(again.due(0)), issued["renewal"].as_u64());
    let world = ingress(port, pebble.acme(state.path())).await;
    assert_eq!(shown(&world, &client).await.unwrap(), first);
    world.drain.cancel();
    world.handle.drained().await;

    // When its time has come, another is ordered, and this one is shown meanwhile.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(issued["renewal"].as_u64().unwrap() > now.as_secs());
    issued["renewal"] = 1.into();
    fs::write(&kept, issued.to_string()).unwrap();
    let world = ingress(port, pebble.acme(state.path())).await;
    while shown(&world, &client).await.unwrap() == first {}
}

#[tokio::test]
async fn a_refusal_is_remembered_across_a_restart() {
    let port = free_port();
    // Looks for the proof where nobody listens.
    let pebble = Pebble::start(1);
    pebble.answers().await;
    let state = tempfile::tempdir().unwrap();
    let client = pebble.client().await;
    let world = ingress(port, pebble.acme(state.path())).await;
    let path = state.path().join("pause.json");
    let pause = wait_json(&path).await;
    assert_eq!(pause["failures"], 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(pause["until"].as_u64().unwrap() > now.as_secs());
    let refused = shown(&world, &client).await.unwrap_err().to_string();
    assert!(refused.contains("alert"), "{refused}");
    world.drain.cancel();
    world.handle.drained().await;

    let again = Acme::load(pebble.acme(state.path())).unwrap();
    assert_eq!(Some(again.due(0)), pause["until"].as_u64());
}
