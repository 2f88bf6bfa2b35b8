//! Numbers as the format writes them: base 64, the most significant digit first, no padding.

const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";

/// What [`VALUES`] holds for a byte that is no digit.
const NO_DIGIT: u8 = 0xff;

const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0_u8;
    while value < 64 {
        values[DIGITS[value as usize] as usize] = value;
        value += 1;
    }
    values
};

/// Digits that [`write()`] needs for a number.
pub(crate) fn digits(number: usize) -> usize {
    (number.max(1).ilog2() / 6 + 1) as usize
}

pub(crate) fn write(number: usize, out: &mut Vec<u8>) {
    for place in (0..digits(number)).rev() {
        out.push(DIGITS[number >> (6 * place) & 63]);
    }
}

/// The value of a digit, or `None` for a byte that is none.
pub(crate) fn value(byte: u8) -> Option<u32> {
    match VALUES[usize::from(byte)] {
        NO_DIGIT => None,
        value => Some(u32::from(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_as_few_digits_as_it_needs() {
        let written = |number| {
            let mut out = Vec::new();
            write(number, &mut out);
            assert_eq!(out.len(), digits(number), "{number}");
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(0), "0");
        assert_eq!(written(63), "~");
        assert_eq!(written(64), "10");
        assert_eq!(written(4095), "~~");
        assert_eq!(written(4096), "100");
        assert_eq!(written(u32::MAX as usize), "3~~~~~");
    }

    #[test]
    fn exactly_the_64_digits_have_a_value() {
        for byte in 0..=255 {
            let expected = DIGITS.iter().position(|&digit| digit == byte);
            assert_eq!(value(byte).map(|value| value as usize), expected, "{byte:#04x}");
        }
    }
}
