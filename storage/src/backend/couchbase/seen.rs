//! What was last seen of documents: whoever writes again needs no look first.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;

use crate::backend::Stored;
use crate::envelope::Envelope;
use crate::{Key, Version};

/// Documents that are remembered, at most.
const SEEN_MAX: usize = 65_536;

/// What was last seen of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    pub(super) cas: u64,
    pub(super) envelope: Envelope,
}

impl Sight {
    pub(super) fn stored(&self) -> Stored {
        Stored {
            version: Version(self.cas),
            owner: self.envelope.owner,
            // The store keeps it: see `preserve_expiry`.
            expires_ms: None,
            is_there: !self.envelope.is_gone,
        }
    }
}

/// The sights of so many documents. Full, it forgets for each new one another that was not asked for since the hand
/// went by last. It is only a saving: what is forgotten is looked at again.
#[derive(Debug)]
pub(super) struct Seen {
    max: usize,
    /// Keys are what clients chose, so nobody may know which of them meet.
    hasher: RandomState,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    seen: Vec<One>,
    /// Places in `seen`, by key. The two change together, in [`Seen::put`] only.
    places: HashTable<usize>,
    hand: usize,
}

#[derive(Debug)]
struct One {
    key: Key,
    hash: u64,
    sight: Sight,
    was_asked: bool,
}

impl Default for Seen {
    fn default() -> Self {
        Self::new(SEEN_MAX)
    }
}

impl Seen {
    fn new(max: usize) -> Self {
        Self { max, hasher: RandomState::new(), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is done under this lock that could panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &Key) -> Option<Sight> {
        let hash = self.hasher.hash_one(key);
        let State { seen, places, .. } = &mut *self.lock();
        let place = *places.find(hash, |place| seen[*place].key == *key)?;
        seen[place].was_asked = true;
        Some(seen[place].sight)
    }

    pub(super) fn put(&self, key: &Key, sight: Option<Sight>) {
        let hash = self.hasher.hash_one(key);
        let State { seen, places, hand } = &mut *self.lock();
        let there = places.find_entry(hash, |place| seen[*place].key == *key);
        match (there, sight) {
            (Ok(place), Some(sight)) => seen[*place.get()].sight = sight,
            (Ok(place), None) => {
                let (place, _) = place.remove();
                seen.swap_remove(place);
                if let Some(moved) = seen.get(place) {
                    let last = seen.len();
                    let at = places.find_mut(moved.hash, |place| *place == last);
                    *at.expect("the last one has a place") = place;
                }
            }
            (Err(_), None) => {}
            (Err(_), Some(sight)) => {
                let one = One { key: key.clone(), hash, sight, was_asked: false };
                let place = if seen.len() < self.max {
                    seen.push(one);
                    seen.len() - 1
                } else {
                    while std::mem::take(&mut seen[*hand % self.max].was_asked) {
                        *hand += 1;
                    }
                    let place = *hand % self.max;
                    *hand = place + 1;
                    let old = places.find_entry(seen[place].hash, |other| *other == place);
                    old.expect("each one has a place").remove();
                    seen[place] = one;
                    place
                };
                places.insert_unique(hash, place, |place| seen[*place].hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Collection, WriteId};

    fn key(number: u64) -> Key {
        Key::new(Collection::Documents, format!("{number}")).unwrap()
    }

    fn sight(cas: u64) -> Sight {
        Sight { cas, envelope: Envelope { write: WriteId(cas), owner: None, is_gone: false } }
    }

    #[test]
    fn the_newest_sight_is_given_until_it_is_taken_away() {
        let seen = Seen::new(4);
        for number in 0..4 {
            seen.put(&key(number), Some(sight(number)));
        }
        // Full, and each again: nothing is forgotten for what is there.
        for number in 0..4 {
            seen.put(&key(number), Some(sight(number + 10)));
        }
        for number in 0..4 {
            assert_eq!(seen.get(&key(number)), Some(sight(number + 10)), "{number}");
        }
        seen.put(&key(0), None);
        seen.put(&key(9), None);
        assert_eq!(seen.get(&key(0)), None);
        for number in 1..4 {
            assert_eq!(seen.get(&key(number)), Some(sight(number + 10)), "{number}");
        }
    }

    #[test]
    fn full_it_forgets_one_that_was_not_asked_for() {
        let seen = Seen::new(4);
        for number in 0..4 {
            seen.put(&key(number), Some(sight(number)));
        }
        for number in 4..100 {
            assert_eq!(seen.get(&key(0)), Some(sight(0)), "asked for each time, as of {number}");
            seen.put(&key(number), Some(sight(number)));
        }
        assert_eq!(seen.get(&key(99)), Some(sight(99)));
        let state = seen.lock();
        assert_eq!((state.seen.len(), state.places.len()), (4, 4));
    }
}
