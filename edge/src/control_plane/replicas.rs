//! The replicas of control, one of which answers a call.
//!
//! Looks like a single channel to whoever calls. A call goes to the replica that answered last, and at once to the next one
//! when that does not: cannot be reached, says that it is unavailable, or is silent for [`TRY`]. That is safe since every
//! unary call of nodes may be made twice. Streams choose their replica themselves ([`Replicas::channels`]).

use std::{
    error::Error,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use rustls::ClientConfig;
use tonic::{Code, body::Body, transport::Channel};
use tower_service::Service;

use super::channel::connect;

/// A replica that is silent for this long is left, when there is another one. The longest that one thinks before it
/// answers is half a second (`Locate`).
const TRY: Duration = Duration::from_millis(900);

/// The same where much is written: a batch of usage, or a certificate.
const TRY_LONG: Duration = Duration::from_millis(2_500);

type Fault = Box<dyn Error + Send + Sync>;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Replicas(Arc<Inner>);

struct Inner {
    /// With what each is called in logs.
    channels: Vec<(String, Channel)>,
    /// Counts up when a replica fails; the one asked is this, modulo their number.
    turn: AtomicUsize,
}

impl Replicas {
    /// Channels to all of them, made when first used; `config` is asked for each connection.
    #[must_use]
    pub fn connect(
        urls: &[Uri],
        config: impl Fn() -> Arc<ClientConfig> + Send + Sync + 'static,
    ) -> Self {
        let config = Arc::new(config);
        let channels = urls.iter().map(|url| {
            let config = Arc::clone(&config);
            (url.to_string(), connect(url.clone(), move || config()))
        });
        Self::of(channels.collect())
    }

    fn of(channels: Vec<(String, Channel)>) -> Self {
        let turn = AtomicUsize::new(fastrand::usize(..channels.len().max(1)));
        Self(Arc::new(Inner { channels, turn }))
    }

    /// Each replica's address and channel, in the order of the addresses.
    #[must_use]
    pub fn channels(&self) -> &[(String, Channel)] {
        &self.0.channels
    }

    /// This replica was seen to fail: calls begin at another.
    pub(super) fn leave(&self, index: usize) {
        let turn = self.0.turn.load(Ordering::Relaxed);
        if turn % self.0.channels.len().max(1) == index {
            self.pass(turn);
        }
    }

    fn pass(&self, turn: usize) {
        // Lost: then somebody else has moved on, which serves as well.
        let _ = self.0.turn.compare_exchange(
            turn,
            turn.wrapping_add(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    async fn ask(self, request: Request<Body>) -> Result<Response<Body>, Fault> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let limit = match head.uri.path() {
            path if path.ends_with("/Record") || path.ends_with("/Renew") => TRY_LONG,
            _ => TRY,
        };
        let count = self.0.channels.len();
        let mut failed = 0;
        loop {
            let turn = self.0.turn.load(Ordering::Relaxed);
            let channel = self.0.channels.get(turn % count.max(1));
            let (_, channel) = channel.ok_or("no replica of control is known")?;
            let request = Request::from_parts(head.clone(), Body::new(Full::new(body.clone())));
            failed += 1;
            // The last one has all the time that the caller gives.
            let limit = if failed < count { limit } else { Duration::MAX };
            let answer = tokio::time::timeout(limit, call(channel.clone(), request)).await;
            match answer {
                Ok(Ok(response)) if !is_unavailable(&response) => return Ok(response),
                Ok(answer) if failed >= count => {
                    self.pass(turn);
                    return answer;
                }
                Ok(_) | Err(_) => self.pass(turn),
            }
        }
    }
}

async fn call(mut channel: Channel, request: Request<Body>) -> Result<Response<Body>, Fault> {
    poll_fn(|cx| channel.poll_ready(cx)).await?;
    Ok(channel.call(request).await?)
}

/// Whether the replica says that it cannot do this now; another may.
fn is_unavailable(response: &Response<Body>) -> bool {
    let code = response.headers().get("grpc-status");
    code.map(HeaderValue::as_bytes).map(Code::from_bytes) == Some(Code::Unavailable)
}

impl From<Channel> for Replicas {
    fn from(channel: Channel) -> Self {
        Self::of(vec![(String::new(), channel)])
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replicas({})", self.0.channels.len())
    }
}

impl Service<Request<Body>> for Replicas {
    type Response = Response<Body>;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Fault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().ask(request))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, task::JoinSet};
    use tonic::transport::Endpoint;
    use vector_proto::control::v1::{LocateRequest, node_client::NodeClient};

    use super::*;

    /// A replica that answers every call with this gRPC status, without a body.
    async fn replica(code: &'static str, tasks: &mut JoinSet<()>) -> (String, Channel) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let answer = hyper::service::service_fn(move |_| async move {
                    let response = Response::builder()
                        .header("content-type", "application/grpc")
                        .header("grpc-status", code)
                        .body(Full::new(bytes::Bytes::new()))
                        .unwrap();
                    Ok::<_, std::convert::Infallible>(response)
                });
                let io = hyper_util::rt::TokioIo::new(socket);
                let executor = hyper_util::rt::TokioExecutor::new();
                let served = hyper::server::conn::http2::Builder::new(executor);
                open.spawn(async move {
                    let _ = served.serve_connection(io, answer).await;
                });
            }
        });
        let channel = Endpoint::from_shared(url.clone()).unwrap().connect_lazy();
        (url, channel)
    }

    async fn asked(replicas: &Replicas) -> Code {
        let mut client = NodeClient::new(replicas.clone());
        let request = LocateRequest::default();
        client.locate(request).await.unwrap_err().code()
    }

    #[tokio::test]
    async fn a_call_goes_on_at_once_where_a_replica_is_dead_or_cannot() {
        let mut tasks = JoinSet::new();
        // A port that nobody listens on, one that is away from its store (14), and one that answers (5: not found).
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = format!("http://{}", silent.local_addr().unwrap());
        drop(silent);
        let dead = Endpoint::from_shared(gone.clone()).unwrap().connect_lazy();
        let away = replica("14", &mut tasks).await;
        let good = replica("5", &mut tasks).await;
        let replicas = Replicas::of(vec![(gone, dead), away.clone(), good]);
        replicas.0.turn.store(0, Ordering::Relaxed);
        assert_eq!(asked(&replicas).await, Code::NotFound);
        assert_eq!(
            replicas.0.turn.load(Ordering::Relaxed),
            2,
            "calls begin at the one that answers"
        );
        assert_eq!(asked(&replicas).await, Code::NotFound);
        replicas.leave(0);
        assert_eq!(replicas.0.turn.load(Ordering::Relaxed), 2);
        replicas.leave(2);
        assert_eq!(
            asked(&replicas).await,
            Code::NotFound,
            "and come back to it"
        );

        let alone = Replicas::of(vec![away]);
        assert_eq!(asked(&alone).await, Code::Unavailable, "nobody else to ask");
    }
}
