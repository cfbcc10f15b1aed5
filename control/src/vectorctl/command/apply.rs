//! Brings control to a plan, or shows what that would change; and never over what another operator did in between.
//!
//! What is applied is meant for the generation that the plan was compared with: the one that `diff` of this file saw
//! last, which is noted for it, or else one that is looked up first. Control refuses when it has another by then.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use vector_proto::control::v1 as pb;

use super::{Done, Shown, done};
use crate::{Failure, connect::Client, json, table};

/// Longest note that is read: the digits of a generation.
const NOTE_BYTES_MAX: u64 = 20;

/// What was asked for, with the file read.
pub(super) struct Asked {
    pub(super) plan: pb::Plan,
    pub(super) file: PathBuf,
    pub(super) prune: bool,
    pub(super) dry_run: bool,
    /// As typed; 0: whatever is there.
    pub(super) base: Option<u64>,
    /// End with code 1 when something would change.
    pub(super) exit_code: bool,
}

pub(super) async fn apply(mut client: Client, control: &str, asked: Asked) -> Done {
    let note = Note::of(control, &asked.file);
    let mut request = pb::ApplyRequest {
        plan: Some(asked.plan),
        dry_run: true,
        prune: asked.prune,
        base_revision: asked.base.unwrap_or(0),
    };
    if asked.dry_run {
        let response = client.apply(request).await?.into_inner();
        if let Some(note) = &note {
            note.keep(response.revision);
        }
        return compared(&response, asked.exit_code);
    }
    request.base_revision = match (asked.base, note.as_ref().and_then(Note::generation)) {
        (Some(base), _) => base,
        (None, Some(seen)) => seen,
        (None, None) => client.apply(request.clone()).await?.into_inner().revision,
    };
    request.dry_run = false;
    let response = match client.apply(request).await {
        Ok(response) => response.into_inner(),
        Err(status) if status.code() == tonic::Code::Aborted => {
            return Err(conflict(&status, &asked.file));
        }
        Err(status) => return Err(status.into()),
    };
    if let Some(note) = &note {
        note.forget();
    }
    let text = done(&response, false);
    Ok(Shown::new(json::changes(&response), text))
}

fn compared(response: &pb::ApplyResponse, exit_code: bool) -> Done {
    if exit_code && !response.changes.is_empty() {
        let _ = writeln!(io::stdout().lock(), "{}", table::changes(&response.changes));
        return Err(Failure::Refused(String::new()));
    }
    Ok(Shown::new(json::changes(response), done(response, true)))
}

fn conflict(status: &tonic::Status, file: &Path) -> Failure {
    let file = file.display();
    Failure::Refused(format!(
        "{}\nNothing was applied. See what is different now with `vectorctl diff -f {file}`, then apply again; \
         `--base 0` applies to whatever is there.",
        status.message()
    ))
}

/// Where the generation is kept that `diff` of one file saw at one control, until it is applied.
struct Note(PathBuf);

impl Note {
    /// `None` for standard input, and where there is no home: then every plan is compared when it is applied.
    fn of(control: &str, file: &Path) -> Option<Self> {
        if file == Path::new("-") {
            return None;
        }
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let state = set("XDG_STATE_HOME").map(PathBuf::from);
        let state = state.or_else(|| Some(Path::new(&set("HOME")?).join(".local/state")))?;
        let file = fs::canonicalize(file).ok()?;
        let whose = [control.as_bytes(), file.as_os_str().as_encoded_bytes()].join(&0);
        let digest = ring::digest::digest(&ring::digest::SHA256, &whose);
        let name: String = digest.as_ref()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Some(Self(state.join("vectorctl/compared").join(name)))
    }

    fn generation(&self) -> Option<u64> {
        use io::Read as _;
        let mut text = String::new();
        let file = fs::File::open(&self.0).ok()?;
        file.take(NOTE_BYTES_MAX).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }

    /// One that cannot be kept is no fault: the plan is compared once more when it is applied.
    fn keep(&self, generation: u64) {
        let folder = self.0.parent().unwrap_or(Path::new("."));
        let _ =
            fs::create_dir_all(folder).and_then(|()| fs::write(&self.0, generation.to_string()));
    }

    fn forget(&self) {
        let _ = fs::remove_file(&self.0);
    }
}
