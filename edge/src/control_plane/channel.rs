//! The channel to control: one HTTP/2 connection over mutual TLS, opened when it is first needed and again when lost.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Uri, uri::Scheme};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

/// Time for TCP and TLS to control.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a silent connection is probed, and how long it may then stay silent.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// A channel to the control at `url`. Connects lazily; `config` is asked for each connection, so a renewed certificate is used.
#[must_use]
pub fn connect(
    url: Uri,
    config: impl Fn() -> Arc<rustls::ClientConfig> + Send + Sync + 'static,
) -> Channel {
    Endpoint::from(plain(&url))
        .origin(url)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .connect_with_connector_lazy(Connector {
            config: Arc::new(config),
        })
}

/// The same place as tonic shall dial it: our connector makes the TLS, and tonic would refuse `https` without its own
/// wherever another crate of the build has switched that on.
fn plain(url: &Uri) -> Uri {
    let mut parts = url.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    // A URL that was one stays one.
    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
}

#[derive(Clone)]
struct Connector {
    config: Arc<dyn Fn() -> Arc<rustls::ClientConfig> + Send + Sync>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let config = (self.config)();
        Box::pin(async move {
            let host = uri
                .host()
                .ok_or_else(|| io::Error::other("control.url has no host"))?;
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let socket = TcpStream::connect((bare, uri.port_u16().unwrap_or(7000))).await?;
            socket.set_nodelay(true)?;
            let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
            TlsConnector::from(config)
                .connect(name, socket)
                .await
                .map(TokioIo::new)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn tonic_dials_the_same_place_without_tls_of_its_own() {
        let shown = |url: &str| plain(&url.parse().unwrap()).to_string();
        assert_eq!(shown("https://control:7000"), "http://control:7000/");
        assert_eq!(shown("https://[::1]:7000/"), "http://[::1]:7000/");
    }
}
