//! A player of the game in docs/first-game.md, which a test holds equal to this file.

#![expect(
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "shown to who learns: short and visible"
)]

use greenroom::client::{Client, ClientError, Event};
use serde::Serialize;

#[derive(Serialize)]
enum In {
    Click,
}

async fn play() -> Result<(), ClientError> {
    let client = Client::builder().servers(["tcp://127.0.0.1:4000"]).guest("Ann").connect().await?;
    let mut room = client.join_or_create("race").await?;
    let clicks: u32 = room.call(&In::Click).await?;
    while let Some(event) = room.next_event().await {
        match event {
            Event::Left(why) => println!("out: {why}, with {clicks} clicks"),
            other => println!("{other:?}"),
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClientError> {
    play().await
}
