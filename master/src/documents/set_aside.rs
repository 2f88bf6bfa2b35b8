//! Snapshots that the store keeps for people: they are told of as long as there are some.

use std::time::Duration;

use greenroom_storage::{SetAside, Storage};
use tokio::time;

/// Between two looks. Whoever looks sees the notes alone, which are small.
const LOOK: Duration = Duration::from_secs(10);

/// Looks for them again and again, and tells what there is, until it is dropped.
pub(crate) async fn watch(storage: Storage, found: impl Fn(Option<String>)) {
    let mut looks = time::interval(LOOK);
    looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        match SetAside::all(&storage).await {
            Ok((notes, is_cut)) => found(told(notes.len(), is_cut)),
            // What was seen last stays: the store has its own trouble, which is told elsewhere.
            Err(error) => tracing::debug!(%error, "what is set aside was not looked for"),
        }
    }
}

fn told(count: usize, is_cut: bool) -> Option<String> {
    let count = match (count, is_cut) {
        (0, _) => return None,
        (1, false) => "1 snapshot is".to_owned(),
        (count, false) => format!("{count} snapshots are"),
        (count, true) => format!("more than {count} snapshots are"),
    };
    Some(format!(
        "{count} set aside, since no build could go on from it: `greenroom store check` says which, why, and what to do"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_how_many_there_are() {
        assert_eq!(told(0, false), None);
        assert!(told(1, false).unwrap().starts_with("1 snapshot is set aside"));
        assert!(told(100, true).unwrap().starts_with("more than 100 snapshots are"));
    }
}
