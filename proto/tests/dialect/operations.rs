//! Which operations there are, and what their paths say.

use vector_proto::dialect::operation::{self, Body, IdAt, ModelAt, Unmatched};

/// Rows of the table. A change here is a change of what clients may call.
const OPERATIONS: usize = 389;

#[test]
fn every_row_is_read_and_finds_itself() {
    assert_eq!(operation::all().len(), OPERATIONS);
    let mut names: Vec<_> = operation::all().iter().map(|row| row.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), OPERATIONS, "a name stands for one operation");
    for row in operation::all() {
        let filled: Vec<_> = row
            .path
            .split('/')
            .map(|part| {
                if part.starts_with('{') {
                    "some-id_1"
                } else {
                    part
                }
            })
            .collect();
        let path = filled.join("/");
        let found = operation::find(row.method, &path).unwrap();
        assert_eq!(found.operation.name, row.name);
        assert_eq!(found.object.is_some(), row.object.is_some(), "{}", row.name);
        assert_eq!(
            found.model.is_some(),
            row.model == ModelAt::Path,
            "{}",
            row.name
        );
        assert!(!found.crooked);
        assert!(matches!(
            operation::find("BREW", &path),
            Err(Unmatched::Method { .. })
        ));
        assert_eq!(
            operation::find(row.method, &path[3..]).unwrap_err(),
            Unmatched::Path,
            "only under /v1"
        );
        assert_eq!(
            operation::find(row.method, &format!("{path}x/y/z/w/v")).is_ok(),
            row.model == ModelAt::Path
        );
        assert!(
            operation::find(row.method, &format!("{path}/"))
                .unwrap()
                .crooked
        );
    }
}

#[test]
fn calls_whose_model_is_not_seen_are_known() {
    let row = |name: &str| operation::all().iter().find(|row| row.name == name);
    for name in [
        "responses.connect",
        "live.sessions.fork",
        "batches.create",
        "agents.sessions.create",
        "agents.sessions.events.create",
        "agents.automations.invocations.create",
        "chatkit.sessions.create",
        "evals.runs.create",
        "fine_tuning.alpha.graders.run",
        "realtime.transcription_sessions.create",
        "videos.remix",
    ] {
        assert!(row(name).unwrap().hides_model(), "{name}");
    }
    for name in [
        "chat.completions.create",
        "realtime.connect",
        "files.create",
        "files.list",
        "batches.retrieve",
        "responses.cancel",
        "responses.delete",
        "models.list",
        "vector_stores.search",
    ] {
        assert!(!row(name).unwrap().hides_model(), "{name}");
    }
    for row in operation::all() {
        let sockets = row.websocket && row.model == ModelAt::Nowhere;
        assert!(!sockets || row.hides_model(), "{}", row.name);
        let posts = row.method == "POST" && row.model == ModelAt::Nowhere;
        assert!(!row.inert || posts, "{}: it goes without saying", row.name);
    }
}

#[test]
fn an_object_is_made_where_later_calls_look_for_it() {
    for row in operation::all() {
        let Some(makes) = row.makes else { continue };
        let named = operation::all()
            .iter()
            .any(|other| other.object == Some(makes));
        assert!(named, "{} makes {makes}, which no call names", row.name);
    }
}

#[test]
fn every_object_has_a_maker_or_is_asked_for_by_default() {
    let all = operation::all();
    let mut nobodys: Vec<&str> = Vec::new();
    for row in all.iter().filter(|row| !row.local) {
        let Some(object) = row.object else {
            assert!(!row.object_is_made, "{}", row.name);
            continue;
        };
        let made = all.iter().any(|other| other.makes == Some(object));
        assert_eq!(made, row.object_is_made, "{}", row.name);
        if !made {
            nobodys.push(object);
        }
    }
    nobodys.sort_unstable();
    nobodys.dedup();
    assert_eq!(
        nobodys,
        [
            "chatkit/threads",
            "fine_tuning/checkpoints",
            "organization/users",
            "safety/alerts",
            "safety/cases"
        ],
        "these, and no others, come to be without a call that the table knows"
    );
}

#[test]
fn every_place_of_an_id_is_one_that_is_looked_at() {
    for row in operation::all() {
        assert!(row.tells.len() <= 32, "{}: a bit each", row.name);
        for path in &row.tells {
            let steps = path.steps();
            assert!((1..=8).contains(&steps.len()), "{}: {steps:?}", row.name);
            assert!(steps.iter().all(|step| !step.is_empty()), "{steps:?}");
        }
        assert!(
            row.tells.is_empty() || !row.name.contains(".list"),
            "{}: a list may show what other accounts have",
            row.name
        );
    }
}

#[track_caller]
fn found(method: &str, path: &str) -> (&'static str, Option<String>, Option<String>) {
    let found = operation::find(method, path).unwrap();
    (
        found.operation.name,
        found.object.map(str::to_owned),
        found.model.map(str::to_owned),
    )
}

#[test]
fn paths_say_what_they_mean() {
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        found("POST", "/v1/chat/completions"),
        ("chat.completions.create", None, None)
    );
    assert_eq!(
        found("GET", "/v1/files/file-1/content"),
        ("files.retrieve_content", some("file-1"), None)
    );
    assert_eq!(
        found("GET", "/v1/threads/t/runs/r/steps/s"),
        ("threads.runs.steps.retrieve", some("t"), None)
    );
    assert_eq!(
        found("POST", "/v1/threads/runs"),
        ("threads.create_and_run", None, None)
    );
    assert_eq!(found("HEAD", "/v1//models/"), ("models.list", None, None));
    assert_eq!(
        found("GET", "/v1/models/org/m:x%2Fy"),
        ("models.retrieve", None, some("org/m:x%2Fy"))
    );
    assert_eq!(
        found("GET", "/v1/realtime"),
        ("realtime.connect", None, None)
    );
    assert_eq!(operation::canonical("/v1//files///a/"), "/v1/files/a");
    let row = |method, path| operation::find(method, path).unwrap().operation;
    assert_eq!(
        row("POST", "/v1/threads/runs").id_at,
        IdAt::Field("thread_id")
    );
    assert_eq!(row("POST", "/v1/realtime/calls").id_at, IdAt::Location);
    assert_eq!(row("GET", "/v1/realtime").object_query, Some("call_id"));
    assert_eq!(row("POST", "/v1/videos/v/remix").makes, Some("videos"));
    assert_eq!(row("POST", "/v1/images/edits").body, Body::Form);
    assert_eq!(row("POST", "/v1/containers/c/files").body, Body::Form);
    assert!(row("GET", "/v1/models").local && !row("DELETE", "/v1/models/ft:x").local);
    assert!(row("GET", "/v1/realtime").websocket && !row("GET", "/v1/realtime").idempotent());
    assert!(row("DELETE", "/v1/files/x").idempotent() && !row("POST", "/v1/files").idempotent());
}

#[test]
fn tricky_paths_match_nothing() {
    let long = format!("/v1/files/{}", "x".repeat(513));
    let paths = [
        "",
        "/",
        "v1/models",
        "/v1",
        "/v1x/models",
        "/v2/models",
        "/v1/unknown",
        "/v1/files/..",
        "/v1/files/../content",
        "/v1/files/.",
        "/v1/files/%2e%2e",
        "/v1/files/a%2Fb",
        "/v1/files/a%5cb",
        "/v1/files/a%00",
        "/v1/files/a%zz",
        "/v1/files/a%",
        "/v1/files/a\\b",
        "/v1/files/a b",
        "/v1/files/%252e",
        "/v1/files/ü",
        "/v1/models/a/../b",
        "/v1/models/a//b",
        "/v1/chat/completions/x/y",
        &long,
    ];
    for path in paths {
        assert_eq!(
            operation::find("GET", path).unwrap_err(),
            Unmatched::Path,
            "{path}"
        );
    }
    let refused = operation::find("PUT", "/v1/files/x").unwrap_err();
    assert_eq!(
        refused,
        Unmatched::Method {
            allow: "GET, HEAD, DELETE"
        }
    );
}
