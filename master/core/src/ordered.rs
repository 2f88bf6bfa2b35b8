//! Ordered indexes: sorted sequences of small entries that know their ranks.
//!
//! A directory has one for each field that can be sorted or compared. It counts any range exactly in O(log n), which is
//! what a search is planned by, and steps from any place in both directions.
//!
//! The entries stand in sorted blocks. One array has the first entry of every block and another the sums of their
//! lengths (a Fenwick tree): both are small, so that a search reads little more than one block. A block takes memory
//! for what it holds and not for what it might: half full blocks, which random inserts leave, cost nothing.
//! A `BTreeMap` does not know ranks; a tree of nodes that count has a pointer and a missed cache line per level.

use std::cmp::Ordering;

/// Entries of a block, at most. Measured with a million entries: in larger blocks an insert moves more; of smaller ones
/// there are so many that a new one, which changes both arrays, takes tens of microseconds.
const BLOCK_MAX: usize = 256;
/// A block with fewer joins a neighbour.
const BLOCK_MIN: usize = BLOCK_MAX / 4;
/// Two blocks join if together they have no more: a block that just joined is then far from being split again.
const JOINED_MAX: usize = BLOCK_MAX / 2;

/// Room for this many more is made in a block that is full, and left in one that shrank.
/// Blocks that double, as a `Vec` does by itself, would be a quarter empty.
fn spare_of(len: usize) -> usize {
    (len / 8).max(4)
}

/// One record in an index. It says as much of the record as most comparisons need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The indexed number, or whatever orders as the indexed value does: a bool, the number of an interned keyword, the
    /// beginning of a text.
    pub(crate) value: i64,
    /// What decides between equal values: the top 32 bits of the record's id, or more of the text.
    pub(crate) tie: u32,
    /// Where the record is in its slab. It never decides.
    pub(crate) slot: u32,
}

impl Entry {
    /// The entry of a text: its first twelve bytes, as numbers that order as the bytes do. Of equal ones the records
    /// say more: the texts may differ further on, or be the same but for zero bytes at the end.
    pub(crate) fn of_text(text: &[u8], slot: u32) -> Self {
        let (mut value, mut tie) = ([0; 8], [0; 4]);
        let (first, rest) = text.split_at(text.len().min(8));
        value[..first.len()].copy_from_slice(first);
        let rest = &rest[..rest.len().min(4)];
        tie[..rest.len()].copy_from_slice(rest);
        // With the highest bit turned, signed numbers order as unsigned ones do without.
        let value = (u64::from_be_bytes(value) ^ 1 << 63).cast_signed();
        Self { value, tie: u32::from_be_bytes(tie), slot }
    }
}

/// Sorted entries with their ranks: the rank of an entry is the count of entries before it.
///
/// The order is that of value and tie, then what `order` says. Every function that compares two entries takes it, and
/// asks it only about two that are equal in both and not of one slot. It reads the records, so theirs have to be there
/// and unchanged while they have entries. It orders by the whole value, then by the whole id, and finds no two records
/// equal; value and tie never say otherwise than it would.
#[derive(Default)]
pub(crate) struct OrderedIndex {
    len: usize,
    /// None is empty, and each is of entries before those of the next.
    blocks: Vec<Vec<Entry>>,
    /// The first entry of each block.
    firsts: Vec<Entry>,
    /// The length of each block.
    lens: Sums,
}

impl std::fmt::Debug for OrderedIndex {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "OrderedIndex of {}", self.len)
    }
}

impl OrderedIndex {
    /// An index of these entries, of which no two are of one slot: much faster than one insert after the other.
    pub(crate) fn of(mut entries: Vec<Entry>, order: impl Fn(Entry, Entry) -> Ordering) -> Self {
        entries.sort_by(|&a, &b| compare(a, b, &order));
        // Not full, so that the next inserts find room without splitting each of them.
        let blocks: Vec<Vec<Entry>> =
            entries.chunks(BLOCK_MAX - BLOCK_MAX / 4).map(<[Entry]>::to_vec).collect();
        let firsts = blocks.iter().map(|block| block[0]).collect();
        Self { len: entries.len(), firsts, lens: Sums::of(&blocks), blocks }
    }

    /// How many entries there are; at most 4,294,967,295.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Heap in use, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let entries: usize = self.blocks.iter().map(Vec::capacity).sum();
        (entries + self.firsts.capacity()) * size_of::<Entry>()
            + self.blocks.capacity() * size_of::<Vec<Entry>>()
            + self.lens.tree.capacity() * size_of::<u32>()
    }

    /// Adds an entry. False if it is there already: then nothing changed.
    pub(crate) fn insert(
        &mut self,
        entry: Entry,
        order: impl Fn(Entry, Entry) -> Ordering,
    ) -> bool {
        if self.blocks.is_empty() {
            self.add_block(0, vec![entry]);
            self.len = 1;
            return true;
        }
        let (block, place) = self.find(entry, &order);
        let entries = &mut self.blocks[block];
        if entries.get(place).is_some_and(|there| there.slot == entry.slot) {
            return false;
        }
        self.len += 1;
        if entries.len() < BLOCK_MAX {
            self.put(block, place, entry);
        } else if place == BLOCK_MAX {
            // A full block stays full when entries come in order. But the next one takes the entry if it can, or
            // entries that come in descending order between two blocks would get a block each.
            match self.blocks.get(block + 1) {
                Some(next) if next.len() < BLOCK_MAX => self.put(block + 1, 0, entry),
                Some(_) | None => self.add_block(block + 1, vec![entry]),
            }
        } else if place == 0 {
            // This is before all entries: the same for entries that come in descending order.
            self.add_block(block, vec![entry]);
        } else {
            let half = entries.split_off(BLOCK_MAX / 2);
            entries.shrink_to(BLOCK_MAX / 2 + spare_of(BLOCK_MAX / 2));
            self.add_block(block + 1, half);
            match place.checked_sub(BLOCK_MAX / 2) {
                Some(place) if place > 0 => self.put(block + 1, place, entry),
                Some(_) | None => self.put(block, place, entry),
            }
        }
        true
    }

    /// Takes an entry out. False if it is not there.
    pub(crate) fn remove(
        &mut self,
        entry: Entry,
        order: impl Fn(Entry, Entry) -> Ordering,
    ) -> bool {
        if self.blocks.is_empty() {
            return false;
        }
        let (block, place) = self.find(entry, &order);
        let entries = &mut self.blocks[block];
        if entries.get(place).is_none_or(|there| there.slot != entry.slot) {
            return false;
        }
        entries.remove(place);
        self.len -= 1;
        self.lens.subtract_one(block);
        if let Some(first) = entries.first() {
            self.firsts[block] = *first;
        }
        let spare = spare_of(entries.len());
        if entries.capacity() - entries.len() > 2 * spare {
            entries.shrink_to(entries.len() + spare);
        }
        if entries.len() < BLOCK_MIN {
            self.join(block);
        }
        true
    }

    /// How many entries are before a bound. `before` says whether an entry is; it holds for all up to some entry and
    /// for none after that, or the answer means nothing.
    pub(crate) fn rank(&self, before: impl Fn(Entry) -> bool) -> usize {
        let Some(block) = self.firsts.partition_point(|&first| before(first)).checked_sub(1) else {
            return 0;
        };
        self.lens.before(block) + self.blocks[block].partition_point(|&entry| before(entry))
    }

    /// How many entries are before this one, which may be there or not.
    pub(crate) fn rank_of(&self, entry: Entry, order: impl Fn(Entry, Entry) -> Ordering) -> usize {
        self.rank(|there| compare(there, entry, &order).is_lt())
    }

    /// The entry with `rank` others before it.
    pub(crate) fn nth(&self, rank: usize) -> Option<Entry> {
        let (block, place) = self.lens.find(rank);
        self.blocks.get(block).map(|entries| entries[place])
    }

    /// The entries from that of `rank` on.
    pub(crate) fn iter_from(&self, rank: usize) -> impl Iterator<Item = Entry> + '_ {
        let (block, place) = self.lens.find(rank);
        let (begun, rest) = match self.blocks.get(block) {
            Some(entries) => (&entries[place..], &self.blocks[block + 1..]),
            None => (&[][..], &[][..]),
        };
        begun.iter().chain(rest.iter().flatten()).copied()
    }

    /// The entries before that of `rank`, the last first: with `iter_from(rank)` they are all.
    pub(crate) fn iter_back_from(&self, rank: usize) -> impl Iterator<Item = Entry> + '_ {
        let (block, place) = self.lens.find(rank);
        let begun = self.blocks.get(block).map_or(&[][..], |entries| &entries[..place]);
        begun
            .iter()
            .rev()
            .chain(self.blocks[..block].iter().rev().flat_map(|b| b.iter().rev()))
            .copied()
    }

    /// Checks everything that this structure holds twice, and the order of all entries.
    ///
    /// # Errors
    /// What is wrong, for whoever debugs it.
    pub(crate) fn audit(&self, order: impl Fn(Entry, Entry) -> Ordering) -> Result<(), String> {
        let blocks = self.blocks.len();
        if self.firsts.len() != blocks || self.lens.tree.len() != blocks {
            return Err(format!("{blocks} blocks have {} first entries", self.firsts.len()));
        }
        let (mut sum, mut last) = (0, None);
        for (block, entries) in self.blocks.iter().enumerate() {
            if entries.first() != Some(&self.firsts[block]) || entries.len() > BLOCK_MAX {
                return Err(format!("block {block} is empty, too long or has another first entry"));
            }
            if self.lens.before(block) != sum || self.lens.find(sum) != (block, 0) {
                return Err(format!("{sum} entries are before block {block}, the sums differ"));
            }
            sum += entries.len();
            for &entry in entries {
                if last.is_some_and(|last| compare(last, entry, &order).is_ge()) {
                    return Err(format!("{entry:?} comes after {last:?}"));
                }
                last = Some(entry);
            }
        }
        if sum == self.len { Ok(()) } else { Err(format!("{sum} entries count as {}", self.len)) }
    }

    /// The block in which the entry is or would be, and the place there. There is a block.
    fn find(&self, entry: Entry, order: &impl Fn(Entry, Entry) -> Ordering) -> (usize, usize) {
        let from = |first: &Entry| compare(*first, entry, order).is_le();
        let block = self.firsts.partition_point(from).saturating_sub(1);
        let before = |there: &Entry| compare(*there, entry, order).is_lt();
        (block, self.blocks[block].partition_point(before))
    }

    /// Adds an entry to a block that is not full.
    fn put(&mut self, block: usize, place: usize, entry: Entry) {
        let entries = &mut self.blocks[block];
        let len = entries.len();
        if len == entries.capacity() {
            entries.reserve_exact(spare_of(len).min(BLOCK_MAX - len));
        }
        entries.insert(place, entry);
        self.firsts[block] = entries[0];
        self.lens.add_one(block);
    }

    fn add_block(&mut self, block: usize, entries: Vec<Entry>) {
        self.firsts.insert(block, entries[0]);
        self.blocks.insert(block, entries);
        self.lens = Sums::of(&self.blocks);
    }

    /// Removes a small block if it is empty, or makes it one with a neighbour if they are small together.
    fn join(&mut self, block: usize) {
        if self.blocks[block].is_empty() {
            self.blocks.remove(block);
            self.firsts.remove(block);
        } else {
            let small = |left: usize| {
                let right = self.blocks.get(left + 1)?;
                (self.blocks[left].len() + right.len() <= JOINED_MAX).then_some(left)
            };
            let left = small(block).or_else(|| small(block.checked_sub(1)?));
            let Some(left) = left else { return };
            let right = self.blocks.remove(left + 1);
            self.firsts.remove(left + 1);
            let entries = &mut self.blocks[left];
            entries.reserve_exact(right.len());
            entries.extend_from_slice(&right);
        }
        self.lens = Sums::of(&self.blocks);
    }
}

fn compare(a: Entry, b: Entry, order: &impl Fn(Entry, Entry) -> Ordering) -> Ordering {
    let told = (a.value, a.tie).cmp(&(b.value, b.tie));
    match told {
        Ordering::Less | Ordering::Greater => told,
        Ordering::Equal if a.slot == b.slot => Ordering::Equal,
        Ordering::Equal => order(a, b),
    }
}

/// The lengths of the blocks as a Fenwick tree (Fenwick 1994): one changes, and any number of the first are summed, in
/// O(log n). A new block is a new tree: that is one pass over an array, once in a hundred inserts.
#[derive(Default)]
struct Sums {
    /// At `i`, the lengths of the blocks up to `i` of which the last is `i`: as many as the lowest set bit of `i + 1`.
    tree: Vec<u32>,
}

impl Sums {
    fn of(blocks: &[Vec<Entry>]) -> Self {
        let len = |block: &Vec<Entry>| u32::try_from(block.len()).expect("a block is small");
        let mut tree: Vec<u32> = blocks.iter().map(len).collect();
        for i in 0..tree.len() {
            let sum = tree[i];
            if let Some(above) = tree.get_mut(i | (i + 1)) {
                *above += sum;
            }
        }
        Self { tree }
    }

    fn add_one(&mut self, block: usize) {
        let mut i = block;
        while let Some(sum) = self.tree.get_mut(i) {
            *sum += 1;
            i |= i + 1;
        }
    }

    fn subtract_one(&mut self, block: usize) {
        let mut i = block;
        while let Some(sum) = self.tree.get_mut(i) {
            *sum -= 1;
            i |= i + 1;
        }
    }

    /// How many entries the blocks before this one have.
    fn before(&self, block: usize) -> usize {
        let (mut i, mut sum) = (block, 0);
        while i > 0 {
            sum += self.tree[i - 1] as usize;
            i &= i - 1;
        }
        sum
    }

    /// The block with the entry of this rank, and the entry's place there. Past the last entry: the count of blocks.
    fn find(&self, rank: usize) -> (usize, usize) {
        let (mut block, mut place) = (0, rank);
        let mut step = self.tree.len().checked_ilog2().map_or(0, |bits| 1 << bits);
        while step > 0 {
            match self.tree.get(block + step - 1) {
                Some(&sum) if sum as usize <= place => {
                    block += step;
                    place -= sum as usize;
                }
                Some(_) | None => {}
            }
            step >>= 1;
        }
        (block, place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a record of a directory has: a number, a text that goes with it, and an id.
    struct Record {
        number: i64,
        text: Vec<u8>,
        id: u64,
    }

    /// What an index is by.
    #[derive(Clone, Copy)]
    enum By {
        Number,
        Text,
    }

    /// An index, and what it is to say.
    struct World {
        by: By,
        records: Vec<Record>,
        index: OrderedIndex,
        /// The slots of the records that are in the index, in order.
        model: Vec<u32>,
    }

    /// Whole values and whole ids, whatever of them is in the entries.
    fn order(by: By, records: &[Record]) -> impl Fn(Entry, Entry) -> Ordering {
        move |a, b| {
            let (a, b) = (&records[a.slot as usize], &records[b.slot as usize]);
            let by_value = match by {
                By::Number => a.number.cmp(&b.number),
                By::Text => a.text.cmp(&b.text),
            };
            by_value.then(a.id.cmp(&b.id))
        }
    }

    impl World {
        fn new(by: By) -> Self {
            let (records, model) = (Vec::new(), Vec::new());
            Self { by, records, index: OrderedIndex::default(), model }
        }

        fn entry(&self, slot: u32) -> Entry {
            let record = &self.records[slot as usize];
            match self.by {
                By::Number => {
                    let tie = u32::try_from(record.id >> 32).unwrap();
                    Entry { value: record.number, tie, slot }
                }
                By::Text => Entry::of_text(&record.text, slot),
            }
        }

        fn insert(&mut self, number: i64) {
            let slot = u32::try_from(self.records.len()).unwrap();
            // Texts that differ at once, after eight bytes, after twelve, by length, and by zero bytes at the end.
            let long = usize::try_from(number.rem_euclid(16)).unwrap();
            let text = match number.rem_euclid(4) {
                0 => format!("{number:04}").into_bytes(),
                1 => format!("together {}", number % 100_000).into_bytes(),
                2 => vec![b'n'; long],
                _ => vec![0; long],
            };
            // Ids with few different ties, and in an order of their own.
            let id = u64::from(slot % 3) << 32 | u64::from(slot.wrapping_mul(0x9E37_79B9));
            self.records.push(Record { number, text, id });
            let (entry, order) = (self.entry(slot), order(self.by, &self.records));
            let before = |&there: &u32| order(self.entry(there), entry).is_lt();
            let place = self.model.partition_point(before);
            self.model.insert(place, slot);
            assert!(self.index.insert(entry, &order));
            assert!(!self.index.insert(entry, &order), "an entry can't be there twice");
        }

        fn remove(&mut self, place: usize) {
            let slot = self.model.remove(place);
            let (entry, order) = (self.entry(slot), order(self.by, &self.records));
            assert_eq!(self.index.rank_of(entry, &order), place);
            assert!(self.index.remove(entry, &order));
            assert!(!self.index.remove(entry, &order), "an entry can't be removed twice");
        }

        fn make_anew(&mut self) {
            let mut slots = self.model.clone();
            slots.sort_unstable();
            let entries = slots.into_iter().map(|slot| self.entry(slot)).collect();
            self.index = OrderedIndex::of(entries, order(self.by, &self.records));
        }

        /// Asks everything that the index can be asked, about this rank and this number.
        fn check(&self, rank: usize, number: i64) {
            self.index.audit(order(self.by, &self.records)).unwrap();
            assert_eq!(self.index.len(), self.model.len());
            let rank = rank % (self.model.len() + 2);
            let (back, on) = self.model.split_at(rank.min(self.model.len()));
            let slots = |entries: &mut dyn Iterator<Item = Entry>| -> Vec<u32> {
                entries.map(|entry| entry.slot).collect()
            };
            assert_eq!(self.index.nth(rank).map(|entry| entry.slot), on.first().copied());
            assert_eq!(slots(&mut self.index.iter_from(rank)), on);
            let mut back_from = slots(&mut self.index.iter_back_from(rank));
            back_from.reverse();
            assert_eq!(back_from, back);

            let text = number.to_string().into_bytes();
            let to_bound = |slot: u32| {
                let record = &self.records[slot as usize];
                match self.by {
                    By::Number => record.number.cmp(&number),
                    By::Text => record.text.cmp(&text),
                }
            };
            for before in [Ordering::is_lt, Ordering::is_le] {
                let counted = self.model.iter().filter(|&&slot| before(to_bound(slot))).count();
                assert_eq!(self.index.rank(|entry| before(to_bound(entry.slot))), counted);
            }
        }
    }

    /// What happens to an index, in bursts that fill and empty blocks.
    #[derive(Debug, Clone)]
    enum Burst {
        /// Numbers as they come, of which many may be equal.
        Insert { count: i64, first: i64, spread: i64 },
        /// Numbers that grow or fall by a step, as times do.
        Run { count: i64, first: i64, step: i64 },
        /// Removes here and there.
        Thin { count: usize, seed: usize },
        /// Removes neighbours.
        Cut { count: usize, from: usize },
        /// Goes on in an index that was made of all entries at once.
        Anew,
    }

    fn burst() -> impl Strategy<Value = Burst> {
        let at = any::<usize>();
        prop_oneof![
            (1..600i64, -500..500i64, 1..1_000i64)
                .prop_map(|(count, first, spread)| Burst::Insert { count, first, spread }),
            (1..600i64, -500..500i64, -3..4i64).prop_map(|(count, first, step)| Burst::Run {
                count,
                first,
                step
            }),
            (1..500usize, at).prop_map(|(count, seed)| Burst::Thin { count, seed: seed / 2 }),
            (1..700usize, at).prop_map(|(count, from)| Burst::Cut { count, from }),
            Just(Burst::Anew),
        ]
    }

    fn byte() -> impl Strategy<Value = u8> {
        prop_oneof![Just(0), Just(1), Just(0x7F), Just(0x80), Just(0xFF)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_index_is_a_sorted_list_whatever_comes_and_goes(
            by_text in any::<bool>(),
            bursts in prop::collection::vec((burst(), any::<usize>(), -600..600i64), 1..16),
        ) {
            let mut world = World::new(if by_text { By::Text } else { By::Number });
            for (burst, rank, number) in bursts {
                match burst {
                    Burst::Insert { count, first, spread } => {
                        (0..count).for_each(|k| world.insert(first + k * 7_919 % spread));
                    }
                    Burst::Run { count, first, step } => {
                        (0..count).for_each(|k| world.insert(first + k * step));
                    }
                    Burst::Thin { count, seed } => {
                        for k in 0..count.min(world.model.len()) {
                            world.remove((seed + k * 7_919) % world.model.len());
                        }
                    }
                    Burst::Cut { count, from } => {
                        let from = from % (world.model.len() + 1);
                        for _ in 0..count.min(world.model.len() - from) {
                            world.remove(from);
                        }
                    }
                    Burst::Anew => world.make_anew(),
                }
                world.check(rank, number);
            }
            while !world.model.is_empty() {
                world.remove(world.model.len() / 2);
            }
            world.check(0, 0);
            prop_assert!(world.index.blocks.is_empty());
        }

        #[test]
        fn the_beginnings_of_texts_order_as_the_texts_do(
            a in prop::collection::vec(byte(), 0..16),
            b in prop::collection::vec(byte(), 0..16),
        ) {
            let head = |text: &[u8]| -> Vec<u8> {
                text.iter().copied().chain([0; 12]).take(12).collect()
            };
            let by_entry = compare(Entry::of_text(&a, 0), Entry::of_text(&b, 1), &|_, _| Ordering::Equal);
            prop_assert_eq!(by_entry, head(&a).cmp(&head(&b)));
        }
    }

    fn by_slot(a: Entry, b: Entry) -> Ordering {
        a.slot.cmp(&b.slot)
    }

    fn filled(values: impl Iterator<Item = i64>) -> OrderedIndex {
        let mut index = OrderedIndex::default();
        for (value, slot) in values.zip(0..) {
            assert!(index.insert(Entry { value, tie: 0, slot }, by_slot));
        }
        index
    }

    #[test]
    fn entries_that_come_in_order_leave_no_block_half_full() {
        for index in [filled(0..10_000), filled((0..10_000).rev())] {
            assert_eq!(index.blocks.len(), 10_000usize.div_ceil(BLOCK_MAX));
        }
    }

    #[test]
    fn entries_that_come_in_descending_order_between_two_others_share_blocks() {
        let index = filled((0..1_000).map(|k| k * 100_000).chain((25_500_001..25_600_000).rev()));
        assert!(index.blocks.len() < 2 * index.len() / BLOCK_MAX, "{} blocks", index.blocks.len());
    }

    #[test]
    fn an_index_takes_little_more_than_its_entries_and_gives_memory_back() {
        let mut index = filled((0..100_000).map(|k: i64| k.wrapping_mul(0x1E37_79B9_7F4A_7C15)));
        assert!(index.bytes() < 100_000 * 16 * 5 / 4, "{} bytes", index.bytes());
        for k in 0..90_000 {
            let entry = index.nth(k * 7_919 % index.len()).unwrap();
            assert!(index.remove(entry, by_slot));
        }
        assert!(index.bytes() < 10_000 * 16 * 3 / 2, "{} bytes", index.bytes());
    }
}
