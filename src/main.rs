//! The `greenroom` binary: every role and every command, with the demo games.

use std::process::ExitCode;

use greenroom::{App, FieldType};
use greenroom_games::{Arena, Crowd, Duel, Echo, Lobby, PAGES, Vault, Visit};

fn main() -> ExitCode {
    App::new()
        .instance::<Arena>()
        .instance::<Duel>()
        .instance::<Echo>()
        .instance::<Crowd>()
        .instance::<Visit>()
        .instance::<Lobby>()
        .instance::<Vault>()
        // So that a studio can ask for the longest duels.
        .index(&[("turns", FieldType::Number)])
        .pages(PAGES)
        .main()
}
