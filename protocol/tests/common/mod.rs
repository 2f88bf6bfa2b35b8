//! The protocol's vectors, as this build makes them: `examples/vectors.rs` writes them, `tests/vectors.rs` compares.

mod conversations;
mod filters;
mod frames;
mod game;
mod ids;
pub(crate) mod json;
mod refused;

/// Every file of vectors that this crate makes: its name under `protocol/vectors/v1/`, and its text.
pub(crate) fn files() -> Vec<(String, String)> {
    let mut files = vec![
        ("frames.json".to_owned(), frames::file()),
        ("refused.json".to_owned(), refused::file()),
        ("filters.json".to_owned(), filters::file()),
        ("ids.json".to_owned(), ids::file()),
    ];
    let recorded = conversations::all().into_iter();
    files.extend(recorded.map(|talk| (format!("conversations/{}.json", talk.name), talk.file())));
    files
}
