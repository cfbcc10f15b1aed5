//! Objects that control has not answered for, on disk: they outlive the process, though not a cut of power.
//!
//! One file that only grows while something waits, and is emptied when nothing does.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use prost::Message as _;
use vector_proto::control::v1::Object;

use crate::control_plane::disk::{self, Frames};

/// The file's size: 40,000 objects. Those beyond are lost with the process.
const BYTES_MAX: u64 = 16 << 20;

/// Not a secret: it tells damage, nothing else.
const SEAL: &[u8] = b"objects";

const NAME: &str = "objects";

pub(super) struct Kept {
    dir: PathBuf,
    frames: Frames,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    file: Option<File>,
    bytes: u64,
    /// Objects without an answer, in the file or not.
    waiting: u64,
    /// The log has said that the disk refuses.
    refused: bool,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kept({})", self.dir.display())
    }
}

impl Kept {
    /// Goes on with what a former start left in the folder, and says what that is.
    pub(super) fn open(dir: &Path) -> (Self, Vec<Object>) {
        let frames = Frames::new(SEAL);
        let mut objects = Vec::new();
        let mut at = 0;
        let left = fs::read(dir.join(NAME)).unwrap_or_default();
        while let Some((object, taken)) = frames.next(&left[at..]) {
            // Those of a version that cannot be read are nobody's.
            objects.extend(Object::decode(object).ok());
            at += taken;
        }
        let kept = Self {
            dir: dir.to_owned(),
            frames,
            state: Mutex::new(State {
                // A torn end is written over.
                bytes: at as u64,
                waiting: objects.len() as u64,
                ..State::default()
            }),
        };
        (kept, objects)
    }

    /// Waits for its answer from now on. In the kernel's hands when this returns, unless the disk refuses.
    pub(super) fn add(&self, object: &Object) {
        let mut frame = Vec::new();
        self.frames.push(&object.encode_to_vec(), &mut frame);
        let mut state = self.state.lock();
        state.waiting += 1;
        match self.write(&mut state, &frame) {
            Ok(()) => state.refused = false,
            Err(error) if !state.refused => {
                state.refused = true;
                tracing::error!(
                    folder = %self.dir.display(),
                    %error,
                    "objects cannot be kept on disk: those that control has not heard of are lost if this node ends"
                );
            }
            Err(_) => {}
        }
    }

    /// So many have their answer.
    pub(super) fn answered(&self, count: usize) {
        let mut state = self.state.lock();
        state.waiting = state.waiting.saturating_sub(count as u64);
        if state.waiting > 0 || state.bytes == 0 {
            return;
        }
        let emptied = self.file(&mut state).and_then(|file| file.set_len(0));
        match emptied {
            Ok(()) => state.bytes = 0,
            // Control is told of them once more at the next start, and knows them.
            Err(error) => tracing::warn!(%error, "told objects cannot be removed from the disk"),
        }
    }

    fn write(&self, state: &mut State, frame: &[u8]) -> io::Result<()> {
        let at = state.bytes;
        if at + frame.len() as u64 > BYTES_MAX {
            return Err(io::Error::other("as many as there may be"));
        }
        let file = self.file(state)?;
        if let Err(error) = file.write_all_at(frame, at) {
            // What was written of it must not stand before the next one.
            let _ = file.set_len(at);
            return Err(error);
        }
        state.bytes += frame.len() as u64;
        Ok(())
    }

    fn file<'s>(&self, state: &'s mut State) -> io::Result<&'s File> {
        if state.file.is_none() {
            disk::make(&self.dir)?;
            let path = self.dir.join(NAME);
            let file = match disk::create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    File::options().read(true).write(true).open(&path)?
                }
                made => made?,
            };
            // Behind the last good one there may be a torn end.
            file.set_len(state.bytes)?;
            state.file = Some(file);
        }
        state
            .file
            .as_ref()
            .ok_or_else(|| io::Error::other("no file"))
    }
}
