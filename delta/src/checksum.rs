//! The checksum at the end of a delta.

/// Bytes that the lanes of [`sum_of_block`] can add up: each gets an eighth of them, and
/// 2,048 / 8 = 256 times the largest byte is just less than 16 bits hold.
const BLOCK: usize = 2048;

/// The checksum of the Fossil delta format: the 32-bit sum of `bytes` read as big-endian words, the
/// last one padded with zeros.
///
/// It catches damage, not malice, and it cannot see words that changed places.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    bytes.chunks(BLOCK).map(sum_of_block).fold(0, u32::wrapping_add)
}

/// The sum of at most [`BLOCK`] bytes.
///
/// Adds the bytes up in lanes of 16 bits and puts each lane in its place once at the end: swapping
/// the bytes of every word costs a shuffle each, which a processor without SSSE3 does not have.
fn sum_of_block(block: &[u8]) -> u32 {
    const LANES: u64 = 0x00ff_00ff_00ff_00ff;
    let (parts, rest) = block.as_chunks::<32>();
    let (mut even, mut odd) = ([0_u64; 4], [0_u64; 4]);
    for part in parts {
        for (lane, pair) in part.as_chunks().0.iter().enumerate() {
            let pair = u64::from_le_bytes(*pair);
            even[lane] += pair & LANES;
            odd[lane] += pair >> 8 & LANES;
        }
    }
    let [first, third] = in_words(even);
    let [second, fourth] = in_words(odd);
    let sum =
        (first << 24).wrapping_add(second << 16).wrapping_add(third << 8).wrapping_add(fourth);
    rest.chunks(4).map(padded).fold(sum, u32::wrapping_add)
}

/// The lanes of pairs of words, added up to two lanes of one word.
fn in_words(lanes: [u64; 4]) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = lanes.iter().sum::<u64>().to_le_bytes();
    let lane = |low, high| u32::from(u16::from_le_bytes([low, high]));
    [lane(a, b) + lane(e, f), lane(c, d) + lane(g, h)]
}

fn padded(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word[..bytes.len()].copy_from_slice(bytes);
    u32::from_be_bytes(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_the_book(bytes: &[u8]) -> u32 {
        bytes.chunks(4).fold(0, |sum: u32, chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            sum.wrapping_add(u32::from_be_bytes(word))
        })
    }

    #[test]
    fn the_last_word_is_padded_with_zeros() {
        assert_eq!(checksum(b""), 0);
        assert_eq!(checksum(b"a"), 0x6100_0000);
        assert_eq!(checksum(b"abcde"), 0x6162_6364_u32.wrapping_add(0x6500_0000));
    }

    #[test]
    fn the_largest_bytes_overflow_no_lane() {
        for length in [BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3] {
            let bytes = vec![0xff; length];
            assert_eq!(checksum(&bytes), by_the_book(&bytes), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn it_is_the_sum_of_big_endian_words(
            bytes in proptest::collection::vec(any::<u8>(), 0..5000),
        ) {
            prop_assert_eq!(checksum(&bytes), by_the_book(&bytes));
        }
    }
}
