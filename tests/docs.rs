//! What the documents show is code that compiles: each block of Rust in them stands in an example, word for word.

use std::{fs, path::Path};

#[test]
fn every_block_of_rust_in_the_documents_is_an_example_that_compiles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let examples: Vec<String> = fs::read_dir(root.join("examples"))
        .unwrap()
        .map(|entry| squeezed(&fs::read_to_string(entry.unwrap().path()).unwrap()))
        .collect();
    let mut blocks = 0;
    for document in ["README.md", "docs/first-game.md", "docs/typescript.md"] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        for block in text.split("```rust\n").skip(1) {
            let block = block.split("```").next().unwrap();
            // The parts between empty lines, since an example may need a `use` more than a document shows.
            for part in block.split("\n\n") {
                let part = squeezed(part);
                let found = examples.iter().any(|example| example.contains(&part));
                assert!(found, "{document} shows what no example has:\n{part}");
                blocks += 1;
            }
        }
    }
    assert!(blocks > 10, "the documents lost their code");
}

/// Without white space and trailing commas, since rustfmt folds an example and nobody folds a document.
fn squeezed(text: &str) -> String {
    let dense: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    dense.replace(",)", ")").replace(",}", "}")
}
