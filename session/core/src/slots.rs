//! Numbered places for things that come and go: a number is never given twice soon, so that a late frame for one
//! that is gone reaches nobody.

use std::collections::VecDeque;

const SLOT_BITS: u32 = 20;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
/// Free places wait in a queue of at least this length before they are used again.
const REST_MIN: usize = 1_024;

/// The place of the thing with this number.
pub(crate) const fn place(number: u32) -> usize {
    (number & SLOT_MASK) as usize
}

/// At most 2²⁰ things, each with a 32-bit number: 20 bits of place, 12 bits that change each time a place is used
/// again. A place rests while fewer than 1,024 others are free, so a number comes back after 4 million uses at the
/// earliest: no frame is under way for so long.
#[derive(Debug)]
pub struct Slots<T> {
    places: Vec<(u32, Option<T>)>,
    free: VecDeque<u32>,
    used: usize,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: VecDeque::new(), used: 0 }
    }
}

impl<T> Slots<T> {
    /// Puts a thing into a place; gives its number, or the thing back when every place is taken.
    ///
    /// # Errors
    /// When 2²⁰ are there.
    pub fn insert(&mut self, thing: T) -> Result<u32, T> {
        let fresh = u32::try_from(self.places.len()).ok().filter(|&place| place <= SLOT_MASK);
        let place = match fresh {
            Some(place) if self.free.len() < REST_MIN => {
                self.places.push((0, None));
                place
            }
            _ => match self.free.pop_front() {
                Some(place) => place,
                None => return Err(thing),
            },
        };
        let (uses, slot) = &mut self.places[place as usize];
        *slot = Some(thing);
        self.used += 1;
        Ok(*uses << SLOT_BITS | place)
    }

    /// The thing with this number, if it is still there.
    #[inline]
    pub fn get(&self, number: u32) -> Option<&T> {
        match self.places.get((number & SLOT_MASK) as usize) {
            Some((uses, Some(thing))) if *uses == number >> SLOT_BITS => Some(thing),
            _ => None,
        }
    }

    /// The thing with this number, if it is still there.
    #[inline]
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        match self.places.get_mut((number & SLOT_MASK) as usize) {
            Some((uses, Some(thing))) if *uses == number >> SLOT_BITS => Some(thing),
            _ => None,
        }
    }

    /// Takes the thing with this number out.
    pub fn remove(&mut self, number: u32) -> Option<T> {
        self.get(number)?;
        let place = number & SLOT_MASK;
        let (uses, slot) = &mut self.places[place as usize];
        *uses = (*uses + 1) & (u32::MAX >> SLOT_BITS);
        self.free.push_back(place);
        self.used -= 1;
        slot.take()
    }

    /// Every thing with its number, by place.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0u32..)
            .zip(&self.places)
            .filter_map(|(place, (uses, slot))| Some((*uses << SLOT_BITS | place, slot.as_ref()?)))
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.used
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_something_gone_finds_nothing_even_when_its_place_is_used_again() {
        let mut slots = Slots::default();
        let mut gone = Vec::new();
        for thing in 0..5_000u32 {
            let number = slots.insert(thing).unwrap();
            assert_eq!(slots.remove(number), Some(thing));
            gone.push(number);
        }
        let number = slots.insert(9).unwrap();
        assert!(gone.iter().all(|&old| slots.get(old).is_none() && old != number));
        assert_eq!((slots.get(number), slots.len()), (Some(&9), 1));
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(number, &9)]);
        assert!(slots.places.len() <= REST_MIN + 1, "places are used again");
    }
}
