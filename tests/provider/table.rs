//! The table of operations: method, path, how the body is read, and the room that answers.
//!
//! Data, in the order of OpenAI's reference. What is not in it is echoed (under `/v1`) or unknown.

use crate::ask::{Ask, Input};
use crate::desk::Desk;
use crate::reply::{Refusal, Reply};
use crate::{
    admin, audio, batch, chat, complete, echo, embed, file, image, model, moderate, response, tune,
    upload, vector_store, video,
};

/// Answers a request whose body has been read. Never waits: pace is in the reply.
pub(crate) type Room = fn(&Desk, &Ask) -> Result<Reply, Refusal>;

/// One operation.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) method: &'static str,
    /// `{}` stands for any one segment.
    pub(crate) pattern: &'static str,
    pub(crate) input: Input,
    /// Asks for no key.
    pub(crate) open: bool,
    pub(crate) room: Room,
}

/// Where a request belongs.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) row: usize,
    pub(crate) ids: Vec<String>,
}

const fn row(method: &'static str, pattern: &'static str, input: Input, room: Room) -> Row {
    Row {
        method,
        pattern,
        input,
        open: false,
        room,
    }
}

const fn get(pattern: &'static str, room: Room) -> Row {
    row("GET", pattern, Input::Nothing, room)
}

const fn delete(pattern: &'static str, room: Room) -> Row {
    row("DELETE", pattern, Input::Nothing, room)
}

const fn json(pattern: &'static str, room: Room) -> Row {
    row("POST", pattern, Input::Json, room)
}

const fn form(pattern: &'static str, room: Room) -> Row {
    row("POST", pattern, Input::Form, room)
}

const fn open(method: &'static str, pattern: &'static str, input: Input, room: Room) -> Row {
    Row {
        method,
        pattern,
        input,
        open: true,
        room,
    }
}

/// Chat's row: the one that benchmarks ask for stands first.
pub(crate) const CHAT: usize = 0;

/// Every operation. The last two take what no other takes.
pub(crate) static ROWS: &[Row] = &[
    json("/v1/chat/completions", chat::create),
    json("/v1/completions", complete::create),
    json("/v1/responses", response::create),
    get("/v1/responses/{}", response::retrieve),
    delete("/v1/responses/{}", response::delete),
    json("/v1/responses/{}/cancel", response::cancel),
    get("/v1/responses/{}/input_items", response::input_items),
    json("/v1/embeddings", embed::create),
    json("/v1/moderations", moderate::create),
    json("/v1/images/generations", image::create),
    form("/v1/images/edits", image::create),
    form("/v1/images/variations", image::create),
    json("/v1/audio/speech", audio::speech),
    form("/v1/audio/transcriptions", audio::transcribe),
    form("/v1/audio/translations", audio::translate),
    form("/v1/files", file::create),
    get("/v1/files", file::list),
    get("/v1/files/{}", file::retrieve),
    delete("/v1/files/{}", file::delete),
    get("/v1/files/{}/content", file::content),
    json("/v1/uploads", upload::create),
    form("/v1/uploads/{}/parts", upload::part),
    json("/v1/uploads/{}/complete", upload::complete),
    json("/v1/uploads/{}/cancel", upload::cancel),
    json("/v1/batches", batch::create),
    get("/v1/batches", batch::list),
    get("/v1/batches/{}", batch::retrieve),
    json("/v1/batches/{}/cancel", batch::cancel),
    json("/v1/fine_tuning/jobs", tune::create),
    get("/v1/fine_tuning/jobs", tune::list),
    get("/v1/fine_tuning/jobs/{}", tune::retrieve),
    json("/v1/fine_tuning/jobs/{}/cancel", tune::cancel),
    get("/v1/fine_tuning/jobs/{}/events", tune::events),
    get("/v1/fine_tuning/jobs/{}/checkpoints", tune::checkpoints),
    json("/v1/vector_stores", vector_store::create),
    get("/v1/vector_stores", vector_store::list),
    get("/v1/vector_stores/{}", vector_store::retrieve),
    json("/v1/vector_stores/{}", vector_store::update),
    delete("/v1/vector_stores/{}", vector_store::delete),
    json("/v1/vector_stores/{}/search", vector_store::search),
    json("/v1/vector_stores/{}/files", vector_store::add_file),
    get("/v1/vector_stores/{}/files", vector_store::list_files),
    get("/v1/vector_stores/{}/files/{}", vector_store::retrieve_file),
    delete("/v1/vector_stores/{}/files/{}", vector_store::remove_file),
    form("/v1/videos", video::create),
    get("/v1/videos", video::list),
    get("/v1/videos/{}", video::retrieve),
    delete("/v1/videos/{}", video::delete),
    get("/v1/videos/{}/content", video::content),
    form("/v1/videos/{}/remix", video::remix),
    get("/v1/models", model::list),
    get("/v1/models/{}", model::retrieve),
    row("GET", "/v1/realtime", Input::Upgrade, echo::unknown),
    get("/v1/sample/bytes/{}", admin::bytes),
    open("GET", "/", Input::Nothing, admin::about),
    open("GET", "/sample/stats", Input::Nothing, admin::stats),
    open(
        "DELETE",
        "/sample/stats",
        Input::Nothing,
        admin::reset_stats,
    ),
    open("GET", "/sample/faults", Input::Nothing, admin::faults),
    open("POST", "/sample/faults", Input::Json, admin::add_fault),
    open(
        "DELETE",
        "/sample/faults",
        Input::Nothing,
        admin::clear_faults,
    ),
    row("*", "/v1/*", Input::Count, echo::echo),
    open("*", "*", Input::Nothing, echo::unknown),
];

/// Finds the row of a request and what its path names.
pub(crate) fn find(method: &str, path: &str) -> Found {
    for (row, candidate) in ROWS.iter().enumerate() {
        if candidate.method == method
            && let Some(ids) = fit(candidate.pattern, path)
        {
            return Found { row, ids };
        }
    }
    let known = path.starts_with("/v1/") && !path.starts_with("/v1/no-such");
    Found {
        row: ROWS.len() - if known { 2 } else { 1 },
        ids: Vec::new(),
    }
}

fn fit(pattern: &str, path: &str) -> Option<Vec<String>> {
    if !pattern.contains('{') {
        return (pattern == path).then(Vec::new);
    }
    let mut ids = Vec::new();
    let mut segments = path.split('/');
    for wanted in pattern.split('/') {
        let segment = segments.next()?;
        if wanted == "{}" && !segment.is_empty() {
            ids.push(segment.to_owned());
        } else if wanted != segment {
            return None;
        }
    }
    segments.next().is_none().then_some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, path: &str, pattern: &str, ids: &[&str]) {
        let found = find(method, path);
        assert_eq!(
            (ROWS[found.row].pattern, found.ids),
            (pattern, ids.iter().map(|id| (*id).to_owned()).collect())
        );
    }

    #[test]
    fn paths_find_their_rows() {
        check("POST", "/v1/chat/completions", ROWS[CHAT].pattern, &[]);
        check("GET", "/v1/files/file-1", "/v1/files/{}", &["file-1"]);
        check(
            "GET",
            "/v1/vector_stores/a/files/b",
            "/v1/vector_stores/{}/files/{}",
            &["a", "b"],
        );
        check("GET", "/v1/files/a/content", "/v1/files/{}/content", &["a"]);
        check("GET", "/v1/files//content", "/v1/*", &[]);
        check("PUT", "/v1/chat/completions", "/v1/*", &[]);
        check("GET", "/v1/no-such-path", "*", &[]);
        check("GET", "/elsewhere", "*", &[]);
    }
}
