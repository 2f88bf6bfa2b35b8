//! Writes `docs/events.md`.

fn main() -> std::io::Result<()> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/events.md");
    std::fs::write(file, greenroom_logs::reference())
}
