//! The fields by which a request's body names objects that were made before.
//!
//! Names only, wherever they stand in a body. What is found is asked about, and what nobody made is let be: so it does no harm
//! that a client may use such a name for something else.

/// Ids that are taken of one body; OpenAI's largest lists have 2,000. They stand in the bytes that are read of it, at most 1 MiB,
/// and take no more room than those.
pub const IDS_MAX: usize = 2048;

/// Whether a string, or each string of an array, under this name is an object's id.
pub(super) fn names(name: &[u8]) -> bool {
    matches!(
        name,
        b"file_id"
            | b"file_ids"
            | b"input_file_id"
            | b"training_file"
            | b"validation_file"
            | b"vector_store_id"
            | b"vector_store_ids"
            | b"previous_response_id"
            | b"conversation"
            | b"container"
            | b"container_id"
            | b"batch_id"
            | b"video_id"
            | b"assistant_id"
            | b"agent_id"
            | b"environment_id"
            | b"vault_ids"
            | b"skill_id"
    )
}

/// Whether the `id` of an object, or of each object of an array, under this name is one.
pub(super) fn owns(name: &[u8]) -> bool {
    matches!(name, b"video" | b"characters" | b"voice" | b"source")
}

/// What is the client's own, whatever names it uses.
pub(super) fn is_private(name: &[u8]) -> bool {
    name == b"metadata"
}

/// Whether a form's field is an id: named like one, by brackets or dots if it is inside of something (`video[id]`, `file_ids[]`).
pub(super) fn is_field(name: &str) -> bool {
    let parts = name
        .split(['[', '.'])
        .map(|part| part.trim_end_matches(']'));
    let mut parts = parts.filter(|part| !part.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(first) = parts.next().filter(|first| !is_private(first.as_bytes())) else {
        return false;
    };
    let (mut parent, mut last) = ("", first);
    for part in parts {
        (parent, last) = (last, part);
    }
    names(last.as_bytes()) || last == "consent" || (last == "id" && owns(parent.as_bytes()))
}

/// Whether a text can be an id at all: one word, without blanks.
pub(super) fn is_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}
