//! How safe a write is before it is answered, by collection: a word, or a word and exceptions.

use std::fmt;
use std::str::FromStr;

use couchbase::durability_level::DurabilityLevel;

use crate::Collection;

/// A level as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    None,
    Majority,
    MajorityAndPersistActive,
    PersistToMajority,
}

impl Level {
    const ALL: [(Self, &'static str); 4] = [
        (Self::None, "none"),
        (Self::Majority, "majority"),
        (Self::MajorityAndPersistActive, "majority_and_persist_active"),
        (Self::PersistToMajority, "persist_to_majority"),
    ];
}

/// The level of each collection: `majority`, or `majority,snapshots=none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Durability([Level; Collection::ALL.len()]);

/// A text that is no durability.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no durability: write none, majority, majority_and_persist_active or persist_to_majority, and behind it \
     exceptions such as ,snapshots=none"
)]
pub(super) struct BadDurability(String);

impl FromStr for Durability {
    type Err = BadDurability;

    fn from_str(text: &str) -> Result<Self, BadDurability> {
        let level = |word: &str| {
            let found = Level::ALL.iter().find(|(_, name)| *name == word.trim());
            found.map(|(level, _)| *level).ok_or_else(|| BadDurability(word.trim().to_owned()))
        };
        let mut parts = text.split(',');
        let mut levels = [level(parts.next().unwrap_or_default())?; Collection::ALL.len()];
        for part in parts {
            let bad = || BadDurability(part.trim().to_owned());
            let (name, word) = part.split_once('=').ok_or_else(bad)?;
            let collection = Collection::named(name.trim()).ok_or_else(bad)?;
            levels[place(collection)] = level(word)?;
        }
        Ok(Self(levels))
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, collection) in Collection::ALL.into_iter().enumerate() {
            let level = Level::ALL.iter().find(|(level, _)| *level == self.0[place(collection)]);
            let (_, name) = level.expect("each level has a name");
            write!(out, "{}{collection}={name}", if number == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Durability {
    /// What the SDK calls it; nothing for no level at all.
    pub(super) fn level(&self, collection: Collection) -> Option<DurabilityLevel> {
        match self.0[place(collection)] {
            Level::None => None,
            Level::Majority => Some(DurabilityLevel::MAJORITY),
            Level::MajorityAndPersistActive => Some(DurabilityLevel::MAJORITY_AND_PERSIST_ACTIVE),
            Level::PersistToMajority => Some(DurabilityLevel::PERSIST_TO_MAJORITY),
        }
    }
}

/// The place of a collection among all.
pub(super) fn place(collection: Collection) -> usize {
    let place = Collection::ALL.iter().position(|other| *other == collection);
    place.expect("every collection is among all")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_level_is_for_all_but_the_exceptions() {
        let read: Durability =
            "majority, snapshots=none,users=persist_to_majority".parse().unwrap();
        assert_eq!(read.level(Collection::Instances), Some(DurabilityLevel::MAJORITY));
        assert_eq!(read.level(Collection::Snapshots), None);
        assert_eq!(read.level(Collection::Users), Some(DurabilityLevel::PERSIST_TO_MAJORITY));
        for (bad, named) in [
            ("", ""),
            ("most", "most"),
            ("majority,snapshots", "snapshots"),
            ("majority,accounts=none", "accounts=none"),
            ("majority,users=most", "most"),
        ] {
            assert_eq!(bad.parse::<Durability>(), Err(BadDurability(named.to_owned())));
        }
    }
}
