//! Looks for races as docs/first-game.md does, which a test holds equal to this file; `race_found` runs them.

#![expect(clippy::print_stdout, reason = "shown to who learns: short and visible")]

use greenroom::client::{Client, ClientError, field};

async fn find(client: &Client) -> Result<(), ClientError> {
    let equals = field("mode").eq("ranked") & field("rating").between(1400, 1600);
    let races = client.search("race").filter(equals & field("started").is(false)).limit(20).await?;
    for race in &races.instances {
        println!("{}: {} of {} seats", race.instance, race.seats_taken, race.seats_max);
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClientError> {
    let client = Client::builder().servers(["tcp://127.0.0.1:4000"]).guest("Ann").connect().await?;
    find(&client).await
}
