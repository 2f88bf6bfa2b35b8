//! What a document is called.

use std::fmt;

use ecow::EcoString;

/// Where documents of one sort live: a table in SQLite, a collection in Couchbase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collection {
    /// Profiles of users, which the master writes.
    Users,
    /// Records of instances that are to stay, which the master writes.
    Instances,
    /// Snapshots of instances, which game servers write.
    Snapshots,
    /// Rank boards, which the master writes.
    Boards,
    /// What a cluster knows of itself: the witness and the like.
    Cluster,
    /// The games' own documents.
    Documents,
}

impl Collection {
    /// Every collection.
    pub const ALL: [Self; 6] = [
        Self::Users,
        Self::Instances,
        Self::Snapshots,
        Self::Boards,
        Self::Cluster,
        Self::Documents,
    ];

    /// Its name in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Instances => "instances",
            Self::Snapshots => "snapshots",
            Self::Boards => "boards",
            Self::Cluster => "cluster",
            Self::Documents => "documents",
        }
    }

    /// The collection of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|collection| collection.name() == name)
    }
}

impl fmt::Display for Collection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// One document's name: unique in its collection.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    collection: Collection,
    id: EcoString,
}

impl Key {
    /// Bytes of an id, at most. Couchbase has 250 with the collection's number before it, which takes up to five.
    pub const BYTES_MAX: usize = 245;

    /// Takes an id as it is.
    ///
    /// # Errors
    /// When it is empty, longer than [`Self::BYTES_MAX`], or holds control characters.
    pub fn new(collection: Collection, id: impl Into<EcoString>) -> Result<Self, BadKey> {
        let id = id.into();
        let why = match &id {
            id if id.is_empty() => BadKeyReason::Empty,
            id if id.len() > Self::BYTES_MAX => BadKeyReason::Long { bytes: id.len() },
            id if id.chars().any(char::is_control) => BadKeyReason::Control,
            _ => return Ok(Self { collection, id }),
        };
        Err(BadKey { collection, why })
    }

    /// Where it lives.
    pub const fn collection(&self) -> Collection {
        self.collection
    }

    /// Its id in its collection.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.collection, self.id)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A text that can't be a key. The text itself is not shown: it may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key in {collection} {why}")]
pub struct BadKey {
    collection: Collection,
    why: BadKeyReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum BadKeyReason {
    #[error("is empty")]
    Empty,
    #[error("has {bytes} bytes; {} are the most", Key::BYTES_MAX)]
    Long { bytes: usize },
    #[error("has control characters")]
    Control,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_1_to_245_bytes_and_no_control_characters() {
        let error = |id: &str| Key::new(Collection::Users, id).map_err(|error| error.to_string());
        assert!(error(&"x".repeat(245)).is_ok());
        assert_eq!(
            error(&"x".repeat(246)).unwrap_err(),
            "a key in users has 246 bytes; 245 are the most"
        );
        // Bytes, not characters.
        assert!(error(&"ü".repeat(123)).unwrap_err().contains("246 bytes"));
        assert_eq!(error("").unwrap_err(), "a key in users is empty");
        assert_eq!(error("a\nb").unwrap_err(), "a key in users has control characters");
    }

    #[test]
    fn a_collection_is_found_by_its_name() {
        for collection in Collection::ALL {
            assert_eq!(Collection::named(collection.name()), Some(collection));
        }
        assert_eq!(Collection::named("accounts"), None);
    }
}
