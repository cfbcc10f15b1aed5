//! A provider of no operation in particular: it keeps what arrives, to the byte, and answers as the call asks it to.
//!
//! Calls are told apart by their `x-client-request-id`, a header that is passed on to providers. A WebSocket gets each of its
//! messages back. It ends when dropped.

use std::{collections::HashMap, convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};
use tokio_util::task::TaskTracker;

/// Names a call.
pub const CALL: &str = "x-client-request-id";

/// Says with which status the call wants to be answered; one of those that are passed on to providers.
pub const STATUS: &str = "openai-echo-status";

/// Stands in each answer, with the call's name.
pub const ANSWERED: &str = "x-echo-call";

/// One call, as it arrived.
#[derive(Debug)]
pub struct Arrived {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Arrived {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The names of all headers.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.headers.keys().map(header::HeaderName::as_str)
    }
}

type Calls = Arc<Mutex<HashMap<String, Vec<Arrived>>>>;

/// A running one.
#[derive(Debug)]
pub struct Echo {
    /// Where it listens.
    pub address: SocketAddr,
    calls: Calls,
    _runtime: Runtime,
}

impl Echo {
    /// Starts one, which asks for no key.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_io()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Calls::default();
        runtime.spawn(accept(listener, Arc::clone(&calls)));
        Self {
            address,
            calls,
            _runtime: runtime,
        }
    }

    /// What arrived under a call's name, in its order. It is asked for once.
    pub fn take(&self, call: &str) -> Vec<Arrived> {
        self.calls.lock().remove(call).unwrap_or_default()
    }

    /// The body that a call is answered with: JSON as nobody would write it anew, whose object has the call's name.
    pub fn answer(call: &str) -> String {
        format!(
            "{{ \"id\" : \"{call}\",\"n\":12345678901234567890123.00 , \"new\":[ ],\"text\":\"\\u4f60\" }}\n"
        )
    }
}

async fn accept(listener: TcpListener, calls: Calls) {
    let tasks = TaskTracker::new();
    while let Ok((socket, _)) = listener.accept().await {
        tasks.spawn(connection(socket, Arc::clone(&calls), tasks.clone()));
    }
}

async fn connection(socket: TcpStream, calls: Calls, tasks: TaskTracker) {
    let service = service_fn(|request| {
        let (calls, tasks) = (Arc::clone(&calls), tasks.clone());
        async move { Ok::<_, Infallible>(echo(request, &calls, &tasks).await) }
    });
    socket.set_nodelay(true).unwrap();
    // How it ends is the caller's affair.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades()
        .await;
}

async fn echo(
    mut request: Request<Incoming>,
    calls: &Calls,
    tasks: &TaskTracker,
) -> Response<Full<Bytes>> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        // Nobody is left to be answered.
        return Response::default();
    };
    let said = |name: &str| head.headers.get(name)?.to_str().ok();
    let call = said(CALL).unwrap_or_default().to_owned();
    let status = said(STATUS).map_or(StatusCode::OK, |status| status.parse().unwrap());
    let answer = Response::builder().header(ANSWERED, &call);
    let answer = match said("sec-websocket-key") {
        Some(key) => answer
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(
                header::SEC_WEBSOCKET_ACCEPT,
                derive_accept_key(key.as_bytes()),
            )
            .body(Full::default()),
        None => answer
            .status(status)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::LOCATION, format!("/v1/made/{call}"))
            .body(Full::from(Echo::answer(&call))),
    };
    let answer = answer.unwrap();
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        tasks.spawn(converse(upgrade));
    }
    let arrived = Arrived {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers: head.headers,
        body: body.to_bytes(),
    };
    calls.lock().entry(call).or_default().push(arrived);
    answer
}

/// Gives each message back until the caller closes.
async fn converse(upgrade: hyper::upgrade::OnUpgrade) {
    let Ok(upgraded) = upgrade.await else { return };
    let io = TokioIo::new(upgraded);
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        let back = matches!(message, Message::Text(_) | Message::Binary(_));
        if back && socket.send(message).await.is_err() {
            return;
        }
    }
}
