//! The decoder.

use crate::{checksum, number};

/// Why a delta was not applied.
///
/// `at` counts bytes from the start of the delta.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// The delta ends before its checksum does.
    #[error("the delta ends after {at} bytes, in the middle of a command")]
    Truncated {
        /// Length of the delta.
        at: usize,
    },
    /// A number has no digit, or is larger than 32 bits hold.
    #[error("there is no 32-bit number at byte {at} of the delta")]
    BadNumber {
        /// Where the number begins.
        at: usize,
    },
    /// After a number stands a byte which the format does not have there.
    #[error("the format has no {byte:#04x} at byte {at} of the delta")]
    BadCommand {
        /// Where the byte stands.
        at: usize,
        /// The byte.
        byte: u8,
    },
    /// The delta declares a target longer than the caller takes.
    #[error("the target has {declared} bytes, and {max} are allowed")]
    TargetTooLarge {
        /// Bytes the delta declares.
        declared: usize,
        /// Bytes the caller takes.
        max: usize,
    },
    /// A copy takes bytes which the base does not have.
    #[error("a copy takes {length} bytes from {offset} on, and the base has {base}")]
    CopyOutsideBase {
        /// Where in the base the copy begins.
        offset: usize,
        /// Bytes it takes.
        length: usize,
        /// Length of the base.
        base: usize,
    },
    /// The commands make a longer or a shorter target than declared.
    #[error("the delta declares a target of {declared} bytes and makes one of {actual}")]
    LengthMismatch {
        /// Bytes the delta declares.
        declared: usize,
        /// Bytes its commands made, or would have made with the one that went too far.
        actual: usize,
    },
    /// The target is not the one that the delta was made for; most often the base is not.
    #[error(
        "the checksum should be {expected:#010x} and is {actual:#010x}: \
         the delta is for another base or damaged"
    )]
    ChecksumMismatch {
        /// What the delta says.
        expected: u32,
        /// What its target has.
        actual: u32,
    },
    /// There are bytes after the checksum.
    #[error("{count} bytes follow the end of the delta")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
}

/// Fills `out` with the target that `delta` makes of `base`; what `out` held before is gone.
///
/// The target has at most `target_max` bytes, and no memory is reserved for a longer one, whatever
/// `delta` declares.
///
/// # Errors
/// The first fault of the delta, see [`DeltaError`]; `out` is then empty.
pub fn apply(
    base: &[u8],
    delta: &[u8],
    target_max: usize,
    out: &mut Vec<u8>,
) -> Result<(), DeltaError> {
    out.clear();
    let applied = fill(base, delta, target_max, out);
    if applied.is_err() {
        out.clear(); // Half a state must not be taken for one.
    }
    applied
}

fn fill(base: &[u8], delta: &[u8], target_max: usize, out: &mut Vec<u8>) -> Result<(), DeltaError> {
    let mut commands = Reader { delta, at: 0 };
    let declared = commands.size()?;
    commands.expect(b'\n')?;
    if declared > target_max {
        return Err(DeltaError::TargetTooLarge { declared, max: target_max });
    }
    out.reserve(declared);
    loop {
        let argument = commands.number()?;
        let at = commands.at;
        match commands.byte()? {
            b'@' => {
                let length = argument as usize;
                let offset = commands.size()?;
                commands.expect(b',')?;
                let copied = offset.checked_add(length).and_then(|end| base.get(offset..end));
                let copied = copied.ok_or(DeltaError::CopyOutsideBase {
                    offset,
                    length,
                    base: base.len(),
                })?;
                append(copied, declared, out)?;
            }
            b':' => append(commands.bytes(argument as usize)?, declared, out)?,
            b';' => {
                let left = delta.len() - commands.at;
                return finish(out, declared, argument, left);
            }
            byte => return Err(DeltaError::BadCommand { at, byte }),
        }
    }
}

fn append(bytes: &[u8], declared: usize, out: &mut Vec<u8>) -> Result<(), DeltaError> {
    if bytes.len() > declared - out.len() {
        return Err(DeltaError::LengthMismatch {
            declared,
            actual: out.len().saturating_add(bytes.len()),
        });
    }
    out.extend_from_slice(bytes);
    Ok(())
}

fn finish(target: &[u8], declared: usize, expected: u32, left: usize) -> Result<(), DeltaError> {
    if target.len() != declared {
        return Err(DeltaError::LengthMismatch { declared, actual: target.len() });
    }
    let actual = checksum(target);
    if actual != expected {
        return Err(DeltaError::ChecksumMismatch { expected, actual });
    }
    if left > 0 {
        return Err(DeltaError::TrailingBytes { count: left });
    }
    Ok(())
}

struct Reader<'a> {
    delta: &'a [u8],
    /// Bytes read; never more than there are.
    at: usize,
}

impl<'a> Reader<'a> {
    fn truncated(&self) -> DeltaError {
        DeltaError::Truncated { at: self.delta.len() }
    }

    fn byte(&mut self) -> Result<u8, DeltaError> {
        let byte = *self.delta.get(self.at).ok_or_else(|| self.truncated())?;
        self.at += 1;
        Ok(byte)
    }

    fn expect(&mut self, expected: u8) -> Result<(), DeltaError> {
        let at = self.at;
        match self.byte()? {
            byte if byte == expected => Ok(()),
            byte => Err(DeltaError::BadCommand { at, byte }),
        }
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], DeltaError> {
        let bytes = self.delta[self.at..].get(..length).ok_or_else(|| self.truncated())?;
        self.at += length;
        Ok(bytes)
    }

    /// A number that counts bytes.
    fn size(&mut self) -> Result<usize, DeltaError> {
        Ok(self.number()? as usize)
    }

    /// A number and nothing after it: the caller looks at what follows.
    fn number(&mut self) -> Result<u32, DeltaError> {
        let start = self.at;
        let mut number = 0_u32;
        while let Some(digit) = self.delta.get(self.at).and_then(|&byte| number::value(byte)) {
            if number >> 26 != 0 {
                return Err(DeltaError::BadNumber { at: start });
            }
            number = number << 6 | digit;
            self.at += 1;
        }
        match self.at {
            at if at > start => Ok(number),
            at if at == self.delta.len() => Err(self.truncated()),
            at => Err(DeltaError::BadNumber { at }),
        }
    }
}
