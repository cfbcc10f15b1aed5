//! What the dialect promises: known requests and answers, and properties over random ones.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a check that cannot go on has failed"
)]

mod operations;

mod requests;

mod answers;

mod any_cut;

#[path = "../../fuzz/checks.rs"]
#[expect(
    dead_code,
    reason = "the codec has its own properties; its check is for the corpus"
)]
mod checks;
