//! Every operation of the API, from a client over an ingress and an egress to a provider: what arrives there, and what comes
//! back, is what was sent.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of a test, which fail it at once"
)]

use std::{
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
};

use harness::{
    Answer, Client, Echo, End, INGRESS, Network,
    echo::{ANSWERED, Arrived, CALL, STATUS},
    wait::PATIENCE,
};
use serde_json::json;
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest as _};
use vector_proto::dialect::operation::{self, Body, ModelAt, Operation};

/// The model of all calls that name one; the provider of all that do not.
const NAME: &str = "everything";

/// The provider's key.
const SECRET: &str = "sk-everything-1";

/// Calls at once. Those by ids wait half a second each, since word of an object may still be on its way to control.
const AT_ONCE: usize = 64;

/// What the provider answers with, in turns. None makes the network try again.
const STATUSES: [&str; 5] = ["200", "201", "202", "404", "422"];

const QUERY: &str = "limit=2&include[]=a&include[]=b%20c&after=x+y";

const BOUNDARY: &str = "b0undary";

/// Headers that are the provider's affair.
const PASSED: [(&str, &str); 4] = [
    ("accept", "application/json"),
    ("user-agent", "OpenAI/Test 1.0"),
    ("openai-beta", "assistants=v2"),
    ("accept-language", "de"),
];

/// Headers that are not.
const KEPT: [(&str, &str); 3] = [
    ("cookie", "a=b"),
    ("x-forwarded-for", "192.0.2.1"),
    ("openai-organization", "org-of-the-client"),
];

fn provider(name: &str, address: SocketAddr) -> String {
    format!(
        "[[provider]]\nname = \"{name}\"\nkind = \"openai\"\nbase_url = \"http://{address}/v1\"\nallow_private = true\n\
         unknown_objects = true\n\
         [[credential]]\nname = \"{name}-1\"\nprovider = \"{name}\"\nsecret = \"{SECRET}\"\n"
    )
}

fn default_route(operation: &str, provider: &str) -> String {
    format!(
        "[[default_route]]\noperation = \"{operation}\"\nupstreams = [{{ provider = \"{provider}\" }}]\n"
    )
}

/// One operation's call.
struct Call {
    row: &'static Operation,
    /// Names it, at the provider too.
    name: String,
    target: String,
    content_type: Option<String>,
    body: Vec<u8>,
    status: &'static str,
}

impl Call {
    fn new(at: usize, row: &'static Operation) -> Self {
        let name = format!("call-{at}");
        let mut query = match row.websocket {
            true => "note=a%20b".to_owned(),
            false => QUERY.to_owned(),
        };
        if row.model == ModelAt::Query {
            query += &format!("&model={NAME}");
        }
        let form = match row.body {
            Body::None => None,
            Body::Json => Some(false),
            Body::Multipart => Some(true),
            Body::Form => Some(at.is_multiple_of(2)),
        };
        Self {
            row,
            target: format!("{}?{query}", path(row, at)),
            content_type: form.map(|form| match form {
                true => format!("multipart/form-data; boundary={BOUNDARY}"),
                false => "application/json".to_owned(),
            }),
            body: match form {
                None => Vec::new(),
                Some(true) => multipart(row),
                Some(false) => object(row).into_bytes(),
            },
            name,
            status: STATUSES[at % STATUSES.len()],
        }
    }

    /// All headers but the key.
    fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let own = [(CALL, self.name.as_str()), (STATUS, self.status)];
        let kind = self.content_type.as_deref();
        own.into_iter()
            .chain(kind.map(|kind| ("content-type", kind)))
            .chain(PASSED)
            .chain(KEPT)
    }

    /// For whoever reads a failure.
    fn at(&self) -> String {
        format!("{} {} {}", self.row.name, self.row.method, self.target)
    }

    fn ask(&self, client: &Client) -> Answer {
        let mut request = client.request(self.row.method, &self.target);
        for (name, value) in self.headers() {
            request = request.header(name, value);
        }
        if self.content_type.is_some() {
            request = request.body(self.body.clone());
        }
        request.send()
    }

    /// Sends what the ingress answers itself.
    fn stay(&self, client: &Client) {
        let answer = self.ask(client);
        assert!(matches!(answer.status, 200 | 404), "{}", answer.text());
        assert_eq!(answer.header(ANSWERED), None, "{}", self.at());
        answer.json();
    }

    /// Sends it, and looks at what comes back.
    fn send(&self, client: &Client) {
        let (answer, at) = (self.ask(client), self.at());
        assert_eq!(
            answer.status.to_string(),
            self.status,
            "{at}: {}",
            answer.text()
        );
        assert_eq!(answer.text(), Echo::answer(&self.name), "{at}");
        assert_eq!(answer.end, End::Whole, "{at}");
        assert_eq!(answer.header(ANSWERED), Some(self.name.as_str()), "{at}");
        let kind = answer.header("content-type");
        assert_eq!(kind, Some("application/json"), "{at}");
        let location = format!("/v1/made/{}", self.name);
        assert_eq!(answer.header("location"), Some(location.as_str()), "{at}");
        assert_eq!(answer.header("x-vector-attempts"), Some("1"), "{at}");
    }

    /// Upgrades, and sends messages forth and back.
    fn converse(&self, client: &Client) {
        let at = self.at();
        let url = format!("ws://{}{}", client.address, self.target);
        let mut request = url.into_client_request().unwrap();
        let key = format!("Bearer {}", client.key);
        for (name, value) in self.headers().chain([("authorization", key.as_str())]) {
            let name = http::HeaderName::try_from(name).unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let socket = TcpStream::connect(client.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut socket, answer) = tungstenite::client(request, socket)
            .unwrap_or_else(|error| panic!("{at}: no upgrade: {error}"));
        assert_eq!(answer.status(), 101, "{at}");
        assert_eq!(answer.headers()[ANSWERED], self.name.as_str(), "{at}");
        let said = [
            Message::text("{ \"type\":\"echo\" , \"n\":1.00 }"),
            Message::binary(vec![0, 0xff, b'\r', b'\n']),
        ];
        for message in said {
            socket.send(message.clone()).unwrap();
            assert_eq!(socket.read().unwrap(), message, "{at}");
        }
        socket.close(None).unwrap();
    }

    /// Whether the provider got all of it, and no more.
    fn arrived(&self, arrived: &[Arrived]) {
        let at = self.at();
        let [one] = arrived else {
            panic!("{at}: it arrived {} times", arrived.len());
        };
        assert_eq!(one.method, self.row.method, "{at}");
        assert_eq!(one.target, self.target, "{at}");
        assert_eq!(one.body, self.body, "{at}");
        assert_eq!(one.header("content-type"), self.content_type.as_deref());
        let key = format!("Bearer {SECRET}");
        assert_eq!(one.header("authorization"), Some(key.as_str()), "{at}");
        for (name, value) in PASSED {
            assert_eq!(one.header(name), Some(value), "{at}: {name}");
        }
        let told = |name: &str| KEPT.iter().any(|(kept, _)| *kept == name) || name == "via";
        let names: Vec<&str> = one.names().collect();
        assert!(!names.iter().any(|name| told(name)), "{at}: {names:?}");
    }
}

/// The path with each id filled in, none of which anybody was seen to make.
fn path(row: &Operation, at: usize) -> String {
    let parts = row.path.split('/').map(|part| match part {
        "{model}" => NAME.to_owned(),
        part => match part.strip_prefix('{') {
            Some(part) => format!("{}-{at}", part.trim_end_matches('}')),
            None => part.to_owned(),
        },
    });
    parts.collect::<Vec<_>>().join("/")
}

/// Order, spaces, escapes, unknown fields, a number that no double holds.
fn object(row: &Operation) -> String {
    let model = match row.model {
        ModelAt::Body => format!("\"model\" : \"{NAME}\","),
        ModelAt::Session => format!("\"session\":{{ \"model\" : \"{NAME}\" }} ,"),
        ModelAt::Nowhere | ModelAt::Path | ModelAt::Query => String::new(),
    };
    format!(
        "{{ \"zeta\" : 12345678901234567890123.00, {model}\"deep\":{{\"a\":[1 , -2e3]}} ,\"text\":\"\\u4f60 文\",\"new\":[ ] }}"
    )
}

fn multipart(row: &Operation) -> Vec<u8> {
    let session = format!("{{ \"model\" : \"{NAME}\" }}");
    let model = match row.model {
        ModelAt::Body => Some(("model", NAME)),
        ModelAt::Session => Some(("session", session.as_str())),
        ModelAt::Nowhere | ModelAt::Path | ModelAt::Query => None,
    };
    let mut body = Vec::new();
    for (name, value) in model.into_iter().chain([("note", "ä\r\n b")]) {
        let part = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        );
        body.extend_from_slice(part.as_bytes());
    }
    let file = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.bin\"\r\n\r\n"
    );
    body.extend_from_slice(file.as_bytes());
    body.extend((0..4096_usize).map(|at| at.to_le_bytes()[0]));
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    body
}

#[test]
fn every_operation_passes_in_both_directions_as_it_is() {
    let network = Network::own();
    let echo = Echo::start();
    network.apply(&format!(
        "{}{}[[model]]\nname = \"{NAME}\"\nupstreams = [{{ provider = \"{NAME}\" }}]\n[[account]]\nname = \"{NAME}\"\n",
        provider(NAME, echo.address),
        default_route("*", NAME),
    ));
    let key = network.create_key(NAME, &[]).text;
    let clients = INGRESS.map(|ingress| Client::new(network.address(ingress), &key));
    let rows = operation::all();
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(row) = rows.get(at) else { return };
            let (call, client) = (Call::new(at, row), &clients[at % 2]);
            match (row.local, row.websocket) {
                (true, _) => call.stay(client),
                (_, true) => call.converse(client),
                (_, false) => call.send(client),
            }
            let arrived = echo.take(&call.name);
            match row.local {
                true => assert!(arrived.is_empty(), "{}", call.at()),
                false => call.arrived(&arrived),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(work);
        }
    });
}

#[test]
fn a_call_without_a_model_goes_where_its_operations_own_route_leads() {
    let network = Network::shared();
    // The narrowest route counts, and the network has one for all other operations.
    let routes = [
        ("routed-a", "responses.create", "/v1/responses"),
        ("routed-b", "images.*", "/v1/images/generations"),
        ("routed-c", "images.edit", "/v1/images/edits"),
        ("routed-d", "moderations.create", "/v1/moderations"),
    ];
    let providers = routes.map(|_| Echo::start());
    let mut plan = "[[account]]\nname = \"routed\"\n".to_owned();
    for ((name, operation, _), echo) in routes.iter().zip(&providers) {
        plan += &provider(name, echo.address);
        plan += &default_route(operation, name);
    }
    network.apply(&plan);
    let key = network.create_key("routed", &[]).text;
    for (ingress, (name, _, path)) in INGRESS
        .iter()
        .flat_map(|ingress| routes.iter().map(move |route| (ingress, route)))
    {
        let call = format!("{name}-{ingress}");
        let answer = Client::new(network.address(ingress), &key)
            .json(path, &json!({"input": "hello"}))
            .header(CALL, &call)
            .send()
            .expect(200);
        assert_eq!(answer.text(), Echo::answer(&call));
        for ((other, ..), echo) in routes.iter().zip(&providers) {
            let arrived = echo.take(&call);
            assert_eq!(arrived.len(), usize::from(other == name), "{call} {other}");
        }
    }
}
