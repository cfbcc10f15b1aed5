//! Which of OpenAI's operations a request is, found from its method and path alone.
//!
//! The table is data (`operations.tsv`, taken from the official SDKs' resources); it is read once into a
//! tree of path segments, and a lookup allocates nothing. Only paths under `/v1` exist. Empty segments are
//! skipped, so `/v1//files/` finds what `/v1/files` finds. Segments that an upstream could read as another
//! path (`..`, an encoded slash or dot, a control character) match nothing.

use std::sync::LazyLock;

use super::segment::{self, Segment};

/// Longest path that is looked at; a longer one is unknown. Real ones stay under 300 bytes.
pub const PATH_BYTES_MAX: usize = 2048;

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::read(include_str!("operations.tsv")));

/// What form an operation's request body has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Body {
    /// No body is looked for; one that comes is passed on.
    None,
    /// A JSON object.
    Json,
    /// `multipart/form-data`.
    Multipart,
    /// JSON or multipart, as the request's `Content-Type` says.
    Form,
}

/// Where a request names its model.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ModelAt {
    /// Nowhere: the operation has no model, so it takes the object's route or the default one.
    Nowhere,
    /// Field `model` of the body, JSON or multipart; the API lets some operations leave it out.
    Body,
    /// Field `model` inside the body's field `session`; query parameter `model` where the body is no JSON.
    Session,
    /// The path's last part.
    Path,
    /// Query parameter `model`.
    Query,
}

/// Where an answer names the object that the call made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IdAt {
    /// Top-level field of the JSON answer, nearly always `id`.
    Field(&'static str),
    /// Last segment of the answer's `Location` header.
    Location,
}

/// Where an answer names an id: keys from its outermost object on, with `[]` for every element of an array.
///
/// Only exact places count. An answer repeats much of what the client sent (metadata, input items), and an id from there is
/// the client's word, not the provider's.
#[derive(Debug)]
pub struct IdPath(Box<[&'static str]>);

impl IdPath {
    fn read(text: &'static str) -> Self {
        let keys = text.split('.').flat_map(|key| {
            let (key, element) = match key.strip_suffix("[]") {
                Some(key) => (key, Some("[]")),
                None => (key, None),
            };
            std::iter::once(key).chain(element)
        });
        Self(keys.collect())
    }

    /// What is gone through, from the outside in.
    pub fn steps(&self) -> &[&'static str] {
        &self.0
    }
}

/// One operation of the API: a row of the table.
#[derive(Debug)]
pub struct Operation {
    /// Name as in the official SDKs, for example `chat.completions.create`; the word for logs and metrics.
    pub name: &'static str,
    /// HTTP method; `GET` stands for `HEAD` too.
    pub method: &'static str,
    /// Path template, for example `/v1/files/{file_id}/content`.
    pub path: &'static str,
    /// Form of the request body.
    pub body: Body,
    /// Where the model is named.
    pub model: ModelAt,
    /// Collection of the object that a success makes and that later calls name, for example `responses`.
    pub makes: Option<&'static str>,
    /// Where the answer names the object made; without meaning when `makes` is `None`.
    pub id_at: IdAt,
    /// Where a success names further objects, which the same credential of the same provider has: a batch's output, say.
    pub tells: Vec<IdPath>,
    /// Collection of the existing object that the path names first, for example `responses`.
    pub object: Option<&'static str>,
    /// Some operation makes such objects, so that it is known whose each is. Of others nothing can be known: a call that names
    /// one goes where the operation goes by default.
    pub object_is_made: bool,
    /// Query parameter that names an existing object, where no path does.
    pub object_query: Option<&'static str>,
    /// The operation is a WebSocket upgrade.
    pub websocket: bool,
    /// The ingress answers it from its snapshot; it is never sent on.
    pub local: bool,
    /// It starts no model but one that an earlier call named.
    pub inert: bool,
}

impl Operation {
    /// Whether the same call may be sent twice without a second effect.
    pub fn idempotent(&self) -> bool {
        !self.websocket && matches!(self.method, "GET" | "DELETE")
    }

    /// Whether a model may run of which the request says nothing: it stands in a file, in frames, in what another object is
    /// made of, or nobody knows.
    pub fn hides_model(&self) -> bool {
        self.model == ModelAt::Nowhere && !self.local && !self.inert && !self.idempotent()
    }
}

/// A request's operation, and what its path says. Borrows from the path.
#[derive(Clone, Copy, Debug)]
pub struct Match<'p> {
    /// The row found.
    pub operation: &'static Operation,
    /// Id of the existing object that the path names first, as it stands there; its collection is
    /// [`Operation::object`].
    pub object: Option<&'p str>,
    /// Model named by the path, as it stands there: percent-encoding is left, and it may hold slashes.
    pub model: Option<&'p str>,
    /// The path has empty segments; send [`canonical`] on instead.
    pub crooked: bool,
}

/// Why a request is no operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unmatched {
    /// No operation has this path: 404.
    #[error("unknown path")]
    Path,
    /// The path exists, with other methods: 405.
    #[error("method not allowed, only {allow}")]
    Method {
        /// The methods it has, ready for the `Allow` header.
        allow: &'static str,
    },
}

/// Finds a request's operation. `path` is without its query.
pub fn find<'p>(method: &str, path: &'p str) -> Result<Match<'p>, Unmatched> {
    TABLE.find(method, path)
}

/// Every operation, in the order of the table.
pub fn all() -> &'static [Operation] {
    &TABLE.rows
}

/// The path without its empty segments; for a path with [`Match::crooked`].
pub fn canonical(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !part.is_empty()) {
        out.push('/');
        out.push_str(part);
    }
    out
}

#[derive(Debug, Default)]
struct Node {
    /// Fixed next segments, sorted.
    fixed: Vec<(&'static str, usize)>,
    /// The next segment that varies.
    varies: Option<usize>,
    /// `varies` takes the rest of the path.
    rest: bool,
    /// Rows that end here.
    rows: Vec<usize>,
    /// Their methods, for `Allow`.
    allow: String,
}

#[derive(Debug)]
struct Table {
    rows: Vec<Operation>,
    nodes: Vec<Node>,
}

impl Table {
    fn read(text: &'static str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let mut table = Self {
            rows: lines.filter_map(row).collect(),
            nodes: vec![Node::default()],
        };
        let made: Vec<_> = table.rows.iter().filter_map(|row| row.makes).collect();
        for row in &mut table.rows {
            row.object_is_made = row.object.is_some_and(|object| made.contains(&object));
        }
        for index in 0..table.rows.len() {
            table.plant(index);
        }
        for node in &mut table.nodes {
            node.fixed.sort_unstable();
        }
        table
    }

    fn plant(&mut self, index: usize) {
        let Operation { path, method, .. } = self.rows[index];
        let mut at = 0;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let known = match part.starts_with('{') {
                true => self.nodes[at].varies,
                false => self.nodes[at]
                    .fixed
                    .iter()
                    .find(|(name, _)| *name == part)
                    .map(|found| found.1),
            };
            let next = known.unwrap_or(self.nodes.len());
            if known.is_none() {
                self.nodes.push(Node::default());
                match part.starts_with('{') {
                    true => self.nodes[at].varies = Some(next),
                    false => self.nodes[at].fixed.push((part, next)),
                }
            }
            self.nodes[at].rest |= part == "{model}";
            at = next;
        }
        let node = &mut self.nodes[at];
        node.rows.push(index);
        if !node.allow.is_empty() {
            node.allow.push_str(", ");
        }
        node.allow.push_str(method);
        if method == "GET" {
            node.allow.push_str(", HEAD");
        }
    }

    fn find<'p>(&'static self, method: &str, path: &'p str) -> Result<Match<'p>, Unmatched> {
        if path.len() > PATH_BYTES_MAX || !path.starts_with('/') {
            return Err(Unmatched::Path);
        }
        let mut at = &self.nodes[0];
        let (mut object, mut model, mut crooked) = (None, None, false);
        let mut rest = &path[1..];
        while !rest.is_empty() {
            let Segment { text, after } = segment::next(rest);
            if text.is_empty() {
                crooked = true;
                rest = after;
                continue;
            }
            let fixed = at.fixed.binary_search_by(|(name, _)| (*name).cmp(text));
            at = match (fixed, at.varies) {
                (Ok(found), _) => &self.nodes[at.fixed[found].1],
                (Err(_), Some(next)) if at.rest => {
                    model = Some(segment::model(rest).ok_or(Unmatched::Path)?);
                    crooked |= rest.ends_with('/');
                    rest = "";
                    at = &self.nodes[next];
                    break;
                }
                (Err(_), Some(next)) if segment::is_id(text) => {
                    object = object.or(Some(text));
                    &self.nodes[next]
                }
                (Err(_), _) => return Err(Unmatched::Path),
            };
            crooked |= after.is_empty() && rest.len() > text.len();
            rest = after;
        }
        debug_assert!(rest.is_empty());
        let wanted = if method == "HEAD" { "GET" } else { method };
        match at.rows.iter().find(|row| self.rows[**row].method == wanted) {
            Some(row) => Ok(Match {
                operation: &self.rows[*row],
                object,
                model,
                crooked,
            }),
            None if at.rows.is_empty() => Err(Unmatched::Path),
            None => Err(Unmatched::Method { allow: &at.allow }),
        }
    }
}

/// Reads one line of the table; a malformed one gives `None`, and a test counts them.
fn row(line: &'static str) -> Option<Operation> {
    let mut columns = line.split('\t');
    let mut column = || columns.next();
    let (name, method, path) = (column()?, column()?, column()?);
    let (body, websocket) = match column()? {
        "none" => (Body::None, false),
        "json" => (Body::Json, false),
        "multipart" => (Body::Multipart, false),
        "form" => (Body::Form, false),
        "websocket" => (Body::None, true),
        _ => return None,
    };
    let model = match column()? {
        "-" => ModelAt::Nowhere,
        "body" => ModelAt::Body,
        "session" => ModelAt::Session,
        "path" => ModelAt::Path,
        "query" => ModelAt::Query,
        _ => return None,
    };
    let makes = Some(column()?).filter(|makes| *makes != "-");
    let extra = Extra::read(column()?)?;
    let object = match model {
        ModelAt::Path => None,
        _ => path
            .split_once("/{")
            .and_then(|(collection, _)| collection.strip_prefix("/v1/"))
            .map(|collection| match collection {
                // Two paths lead to them.
                "projects" => "organization/projects",
                other => other,
            }),
    };
    Some(Operation {
        name,
        method,
        path,
        body,
        model,
        makes,
        id_at: extra.id_at,
        tells: extra.tells,
        object,
        object_is_made: false,
        object_query: extra.object_query,
        websocket,
        local: extra.local,
        inert: extra.inert,
    })
}

/// The last column: words, parted by blanks.
struct Extra {
    local: bool,
    inert: bool,
    id_at: IdAt,
    tells: Vec<IdPath>,
    object_query: Option<&'static str>,
}

impl Extra {
    fn read(column: &'static str) -> Option<Self> {
        let mut extra = Self {
            local: false,
            inert: false,
            id_at: IdAt::Field("id"),
            tells: Vec::new(),
            object_query: None,
        };
        for word in column.split(' ').filter(|word| *word != "-") {
            match word.split_once('=').unwrap_or((word, "")) {
                ("local", "") => extra.local = true,
                ("inert", "") => extra.inert = true,
                ("id", "location") => extra.id_at = IdAt::Location,
                ("id", field) => extra.id_at = IdAt::Field(field),
                ("object", parameter) => extra.object_query = Some(parameter),
                ("tells", paths) => extra.tells = paths.split(',').map(IdPath::read).collect(),
                _ => return None,
            }
        }
        Some(extra)
    }
}
