//! Writes the golden log anew: `cargo run -p greenroom-master-core --example golden -- DIR`, with
//! `master/core/tests/golden` for `DIR`.
//!
//! That is for changes of the core's decisions that are meant, before the first release, and the commit that does it
//! says why: afterwards a difference means that a log which was written by an older build means something else now.
#![expect(clippy::print_stdout, reason = "it says in a terminal what it wrote")]

#[path = "../tests/golden/format.rs"]
mod format;
#[path = "../tests/golden/script.rs"]
mod script;
#[path = "../tests/world/mod.rs"]
mod world;

use std::{env, fs, io, path::Path, process::ExitCode};

fn main() -> io::Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder] = &arguments[..] else {
        println!("usage: golden DIR");
        return Ok(ExitCode::from(2));
    };
    let entries = script::evening();
    let files = [
        (format::LOG, format::to_bytes(&entries)),
        (format::HASHES, format::hashes(&entries, |state| state).into_bytes()),
    ];
    for (name, bytes) in files {
        let path = Path::new(folder).join(name);
        println!("{}: {} commands, {} bytes", path.display(), entries.len(), bytes.len());
        fs::write(path, bytes)?;
    }
    Ok(ExitCode::SUCCESS)
}
