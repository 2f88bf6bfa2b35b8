//! Writes the protocol's test vectors and recorded conversations, or says whether they changed:
//! `cargo run -p greenroom-protocol --example vectors -- DIR [--check]`.
//!
//! Those of a released version never change: a difference means that an old client no longer understands us.
#![expect(clippy::print_stdout, reason = "it says in a terminal what it wrote")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{env, fs, io, path::Path, process::ExitCode};

fn main() -> io::Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (folder, check) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [folder] => (Path::new(folder).to_owned(), false),
        [folder, "--check"] => (Path::new(folder).to_owned(), true),
        _ => {
            println!("usage: vectors DIR [--check]");
            return Ok(ExitCode::from(2));
        }
    };
    let mut differ = 0;
    for (name, text) in common::files() {
        let path = folder.join(name);
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            continue;
        }
        differ += 1;
        if check {
            println!("{} differs from what this build makes", path.display());
        } else {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, text)?;
            println!("wrote {}", path.display());
        }
    }
    Ok(if check && differ > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
