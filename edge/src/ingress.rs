//! Takes clients: listens, authenticates, routes, and carries each request's answer back.
//!
//! The road of a request is [`Ingress::carry`]: each line is one file of the folder, in the order a request meets them.
//! A step refuses with a [`Refusal`], and only `respond` and `refuse` write to the client.
//!
//! Absences: no provider credential is ever here, no body is parsed whole or held whole, a client's key never leaves
//! `authenticate`, and an answer that was cut never ends cleanly.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vector_proto::{
    control::v1::UpstreamStatus,
    dialect::operation::{self, Match, Unmatched},
    refusal::{Code, Refusal},
};

use crate::{
    config::{self, Role},
    control_plane::ControlPlane,
    limit::Limiter,
    telemetry::{Outcome, Telemetry},
    tunnel::Tunnel,
};

// The door.
mod listen;

mod certificate;

mod acme;

mod wire;

mod idle;

mod stall;

mod watch;

// The road, in order.
mod head;

mod authenticate;

mod peek;

mod scan;

mod ahead;

mod admit;

mod route;

mod send;

mod tries;

mod retry;

mod budget;

mod queue;

mod pump;

// Requests that were made before.
mod replay;

mod print;

mod linger;

// The way back.

mod respond;

mod refuse;

// What is answered here, and what is no plain answer.
mod models;

mod edges;

mod websocket;

// What the road stands on.
mod upload;

mod spool;

mod load;

mod affinity;

mod stream;

mod record;

#[cfg(test)]
mod tests;

use self::{
    ahead::Guesses,
    authenticate::Caller,
    budget::Budget,
    edges::Edges,
    linger::Afterwards,
    load::Loads,
    queue::Queue,
    record::Record,
    replay::Wish,
    send::{Denied, Sending, Sent},
    stream::{Answer, Around, NO_PING},
    upload::{Limits, Upload},
    websocket::{Naming, Socket},
};

/// Why clients cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address.
    #[error("ingress.listen: {address}: {source}")]
    Bind {
        /// Which.
        address: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate.
    #[error("ingress.tls_cert: {0}")]
    Certificate(#[from] certificate::Error),
    /// What is needed to order one.
    #[error("ingress.acme: {0}")]
    Acme(#[from] acme::Error),
}

/// What every request of this node needs.
#[derive(Debug)]
pub struct Ingress {
    config: config::Ingress,
    control: ControlPlane,
    tunnel: Tunnel,
    limiter: Limiter,
    telemetry: Telemetry,
    loads: Arc<Loads>,
    budget: Budget,
    guesses: Arc<Guesses>,
    queue: Queue,
    edges: Arc<Edges>,
    /// Uploads, WebSockets and connections.
    tasks: TaskTracker,
    /// Clients are taken, and shall go elsewhere with their next request.
    draining: Arc<AtomicBool>,
    /// No client is taken any more.
    drain: CancellationToken,
    /// Ends what still runs when the time to drain is over.
    kill: CancellationToken,
}

/// A running ingress.
#[derive(Debug)]
pub struct Handle {
    /// Where it listens.
    pub address: std::net::SocketAddr,
    task: JoinHandle<()>,
    loads: Arc<Loads>,
    draining: Arc<AtomicBool>,
}

/// Reads how each upstream fares over each egress: the pairs, and then the models there.
pub type Upstreams = Box<dyn Fn() -> Vec<UpstreamStatus> + Send + Sync>;

impl Handle {
    /// How each upstream fares over each egress, whenever that is asked.
    #[must_use]
    pub fn upstreams(&self) -> Upstreams {
        let loads = Arc::clone(&self.loads);
        Box::new(move || loads.status(Instant::now()))
    }

    /// Has clients come again over other connections, which a balancer takes elsewhere by then; or lets them stay. Nobody is
    /// refused.
    pub fn set_draining(&self, on: bool) {
        self.draining.store(on, Ordering::Relaxed);
    }

    /// Waits until the drain is over: no connection is left, or its time ran out.
    ///
    /// Cancel safety: nothing is left behind; the drain goes on.
    pub async fn drained(self) {
        if self.task.await.is_err() {
            tracing::error!("the listener for clients ended by a panic");
        }
    }
}

impl Ingress {
    /// Binds and begins to serve. `drain` makes it stop taking connections and finish what runs.
    ///
    /// # Errors
    /// [`Error`], before anything was served.
    pub async fn start(
        config: config::Ingress,
        control: ControlPlane,
        tunnel: Tunnel,
        limiter: Limiter,
        telemetry: Telemetry,
        drain: CancellationToken,
    ) -> Result<Handle, Error> {
        let address = config.listen;
        let certificate = config
            .tls
            .clone()
            .map(certificate::Source::load)
            .transpose()?;
        let bind = |source| Error::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let loads = Arc::new(Loads::new(Instant::now()));
        let told = Arc::clone(&loads);
        control.set_scores_sink(Arc::new(move |scores| told.hear(&scores, Instant::now())));
        let edges = Arc::new(Edges::new(&config.url));
        let draining = Arc::new(AtomicBool::new(false));
        let tasks = TaskTracker::new();
        let kept = drain.clone();
        let (asking, control_too) = (Arc::clone(&edges), control.clone());
        tasks.spawn(async move { kept.run_until_cancelled(asking.keep(control_too)).await });
        let ingress = Arc::new(Self {
            config,
            control,
            tunnel,
            limiter,
            telemetry,
            loads: Arc::clone(&loads),
            budget: Budget::default(),
            guesses: Arc::default(),
            queue: Queue::default(),
            edges,
            tasks,
            draining: Arc::clone(&draining),
            drain: drain.clone(),
            kill: CancellationToken::new(),
        });
        let door = listen::Door::new(ingress, certificate)?;
        // Not on `tasks`, which the door itself waits for.
        let task = TaskTracker::new().spawn(door.run(listener, drain));
        Ok(Handle {
            address,
            task,
            loads,
            draining,
        })
    }

    /// Answers one client request, whatever happens.
    ///
    /// Cancel safety: a client that goes away drops this, which cancels the exchange at its egress.
    async fn serve(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Answer> {
        let upgrades = request.headers().contains_key(header::UPGRADE);
        let http1 = request.version() <= Version::HTTP_11;
        let mut answer = match self.at_once(&request) {
            Some(answer) => answer,
            None => {
                let mut record = Record::new(self.telemetry.clone(), Instant::now());
                record.browser = request.headers().contains_key(header::ORIGIN);
                match self.carry(request, peer, &mut record).await {
                    Ok(Carried::Local(mut answer)) => {
                        respond::stamp(answer.headers_mut(), &record);
                        record.status = answer.status().as_u16();
                        record.tell(Outcome::Whole);
                        answer
                    }
                    Ok(Carried::Sent(method, sent, around)) => {
                        respond::respond(&method, *sent, record, *around).await
                    }
                    Ok(Carried::Socket(answer, socket)) => self.splice(answer, *socket, record),
                    Err(denied) => refuse::refuse(denied, record),
                }
            }
        };
        let parting = http1 && self.draining.load(Ordering::Relaxed);
        if (upgrades || parting) && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            // `wire` stopped watching this connection when it saw the wish to upgrade, whoever answers it; or this node drains.
            answer
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    /// Answers what anybody may ask, without a key: the list of ingress nodes, and what browsers ask before a call.
    fn at_once<B>(&self, request: &Request<B>) -> Option<Response<Answer>> {
        if edges::is_asked(request) {
            let (routes, load) = (self.control.routes(), self.telemetry.running(Role::Ingress));
            return Some(self.edges.answer(request.method(), &routes, load));
        }
        let asks = request.method() == Method::OPTIONS
            && request
                .headers()
                .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        asks.then(|| preflight(Record::new(self.telemetry.clone(), Instant::now())))
    }

    /// Carries one client request to whoever answers it: the road.
    async fn carry(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        record: &mut Record,
    ) -> Result<Carried, Denied> {
        let (mut parts, body) = request.into_parts();
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        head::check(&parts)?;
        let found = operation(&parts)?;
        record.operation = found.operation.name;
        let caller = authenticate::authenticate(&self.control, &parts, peer).await?;
        record.policy = Some(Arc::clone(&caller.policy));
        admit::check_operation(&caller.policy, found.operation)?;
        let wish = replay::wish(&parts, found.operation)?;
        if found.operation.local {
            return Box::pin(self.local(&parts, &found, &caller, record)).await;
        }
        let socket_key = found
            .operation
            .websocket
            .then(|| websocket::check(&parts))
            .transpose()?;
        let mut upload = Upload::new(record.id, body, self.limits(record.start))?;
        self.guess(&mut upload, &caller.policy, found.operation, wish, record);
        let peeked = peek::peek(&parts, &found, &mut upload).await;
        record.request_bytes = upload.bytes();
        let ask = peeked?;
        record.model.clone_from(&ask.model);
        let permit = admit::admit(
            &self.limiter,
            &caller.policy,
            ask.model.as_deref(),
            matches!(wish, Wish::Again | Wish::Keyed(_)),
            record.start,
        )?;
        let target = route::target(&self.control, &caller.policy, found.operation, &ask).await?;
        record.is_about(&target);
        let sending = Sending {
            ingress: self,
            exchange: record.id,
            policy: &caller.policy,
            permit: &permit,
            parts: &parts,
            found: &found,
            ask: &ask,
            target: &target,
            start: record.start,
            traceparent: record.trace(head::traceparent(&parts)),
            keeps: matches!(wish, Wish::Keyed(_)),
            lingers: matches!(wish, Wish::First | Wish::Again),
            away: AtomicBool::new(false),
            touched: AtomicBool::new(false),
        };
        let sent = match wish {
            Wish::Plain | Wish::First => sending.send(upload, record).await?,
            Wish::Again => Box::pin(sending.send_again(upload, record)).await?,
            Wish::Keyed(key) => Box::pin(sending.send_keyed(key, upload, record)).await?,
        };
        let outlives = sent.kept && sent.head.replays.is_empty() && permit.is_watched();
        let around = Box::new(Around {
            control: self.control.clone(),
            permit,
            ping: if sent.kept { NO_PING } else { self.config.ping },
            afterwards: outlives.then(|| Box::new(Afterwards::new(self))),
        });
        let (Some(key), Some(upgrade)) = (socket_key, upgrade) else {
            return Ok(Carried::Sent(parts.method, Box::new(sent), around));
        };
        let switched = (upgrade, Naming::of(&self.control, &target, &ask, record));
        Ok(websocket::join(&parts, key, switched, sent, around))
    }

    /// Answers what no provider is asked for: the list of models, and answers that are given again.
    async fn local(
        &self,
        parts: &Parts,
        found: &Match<'_>,
        caller: &Caller,
        record: &mut Record,
    ) -> Result<Carried, Denied> {
        let Some(exchange) = found.object else {
            let routes = self.control.routes();
            let answer = models::answer(&routes, caller, parts, found.model)?;
            return Ok(Carried::Local(answer));
        };
        let permit = admit::admit(&self.limiter, &caller.policy, None, true, record.start)?;
        permit.gives_again();
        let from = head::parameter(parts.uri.query(), "from");
        let account = &caller.policy.account;
        let sent = self.stream_again(account, exchange, from, record).await?;
        let around = Box::new(Around {
            control: self.control.clone(),
            permit,
            ping: NO_PING,
            afterwards: None,
        });
        Ok(Carried::Sent(parts.method.clone(), Box::new(sent), around))
    }

    /// Leaves a WebSocket to a task of its own, which begins once the answer has left.
    fn splice(
        &self,
        mut answer: Response<Answer>,
        socket: Socket,
        mut record: Record,
    ) -> Response<Answer> {
        respond::stamp(answer.headers_mut(), &record);
        record.status = answer.status().as_u16();
        self.tasks.spawn(socket.splice(record, self.kill.clone()));
        answer
    }

    fn limits(&self, start: Instant) -> Limits {
        Limits {
            bytes_max: self.config.body_bytes_max,
            spool_bytes_max: self.config.body_spool_bytes,
            idle: self.config.body_idle,
            until: start + self.config.request,
        }
    }
}

/// How far a request came on the road.
enum Carried {
    /// The answer is there.
    Local(Response<Answer>),
    /// An egress answers.
    Sent(Method, Box<Sent>, Box<Around>),
    /// An egress has a WebSocket open.
    Socket(Response<Answer>, Box<Socket>),
}

fn operation(parts: &Parts) -> Result<Match<'_>, Refusal> {
    operation::find(parts.method.as_str(), parts.uri.path()).map_err(|unmatched| {
        let (method, path) = (&parts.method, parts.uri.path());
        match unmatched {
            Unmatched::Path => {
                Refusal::new(Code::PathUnknown, format!("Invalid URL ({method} {path})"))
            }
            Unmatched::Method { allow } => {
                let message = format!("Not allowed to {method} on {path}, only: {allow}");
                Refusal::new(Code::MethodNotAllowed, message)
            }
        }
    })
}

/// Lets pages in browsers call: keys are in headers, never in cookies, so any origin may.
fn preflight(mut record: Record) -> Response<Answer> {
    record.operation = "preflight";
    let mut answer = Response::new(Answer::Empty);
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let headers = answer.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, DELETE"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(PREFLIGHT_HEADERS),
    );
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("86400"),
    );
    record.status = answer.status().as_u16();
    record.tell(Outcome::Whole);
    answer
}

/// What SDKs send from browsers. `*` alone would not cover `authorization`.
const PREFLIGHT_HEADERS: &str = "*, authorization, content-type, x-api-key, idempotency-key, openai-beta, openai-organization, \
    openai-project, x-stainless-arch, x-stainless-async, x-stainless-helper-method, x-stainless-lang, x-stainless-os, \
    x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, x-stainless-timeout";
