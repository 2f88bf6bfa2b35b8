//! How a client's bytes stand on the wire: the other half of `greenroom_link::framing`, which is the server's.

use std::ops::Range;

use anyhow::{Context, bail, ensure};

/// Longest frame that a client takes.
const FRAME_BYTES_MAX: usize = greenroom_protocol::SERVER_FRAME_BYTES_MAX;

/// What carries the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Transport {
    /// u32 little-endian length, then the frame.
    Tcp,
    /// One binary message a frame.
    Ws,
}

/// What stood in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A whole frame.
    Frame(Range<usize>),
    /// A WebSocket ping.
    Ping(Range<usize>),
    /// The server closes the WebSocket.
    Close,
}

impl Transport {
    /// As it is called in the output.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Ws => "ws",
        }
    }

    /// The next item of `bytes` from `*at` on, if it is whole; moves `*at` behind it.
    ///
    /// # Errors
    /// When the stream can't go on.
    pub(crate) fn next(self, bytes: &[u8], at: &mut usize) -> anyhow::Result<Option<Item>> {
        let rest = &bytes[*at..];
        let (header, len, opcode) = match self {
            Self::Tcp => match rest.first_chunk::<4>() {
                Some(len) => (4, u64::from(u32::from_le_bytes(*len)), 0x2),
                None => return Ok(None),
            },
            Self::Ws => {
                let &[first, second, ..] = rest else { return Ok(None) };
                ensure!(first & 0xf0 == 0x80, "a fragment or a reserved bit: {first:#04x}");
                ensure!(second & 0x80 == 0, "a server's frame is masked");
                let (header, len) = match second {
                    126 => match rest.get(2..4) {
                        Some(len) => (4, len),
                        None => return Ok(None),
                    },
                    127 => match rest.get(2..10) {
                        Some(len) => (10, len),
                        None => return Ok(None),
                    },
                    _ => (2, &rest[1..2]),
                };
                let len = len.iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
                (header, len, first & 0x0f)
            }
        };
        let len = usize::try_from(len).ok().filter(|len| *len <= FRAME_BYTES_MAX);
        let len = len.context("the server announces a frame longer than it may send")?;
        if rest.len() < header + len {
            return Ok(None);
        }
        let range = *at + header..*at + header + len;
        *at = range.end;
        Ok(Some(match opcode {
            0x2 => Item::Frame(range),
            0x8 => Item::Close,
            0x9 => Item::Ping(range),
            other => bail!("an unexpected WebSocket opcode {other:#x}"),
        }))
    }
}

/// What one client is about to write.
#[derive(Debug)]
pub(crate) struct Outbox {
    transport: Transport,
    mask: Random,
    /// Ready for the socket.
    pub(crate) bytes: Vec<u8>,
}

impl Outbox {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport, mask: Random::new(1), bytes: Vec::new() }
    }

    /// Appends a frame of several parts.
    pub(crate) fn frame(&mut self, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        match self.transport {
            Transport::Tcp => {
                let len = u32::try_from(len).expect("frames of a benchmark are short");
                self.bytes.extend_from_slice(&len.to_le_bytes());
                parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
            }
            Transport::Ws => self.websocket(0x82, parts, len),
        }
    }

    /// Appends the answer to a WebSocket ping.
    pub(crate) fn pong(&mut self, ping: &[u8]) {
        self.websocket(0x8a, &[ping], ping.len());
    }

    fn websocket(&mut self, first: u8, parts: &[&[u8]], len: usize) {
        self.bytes.push(first);
        match u16::try_from(len).expect("frames of a benchmark are short") {
            len @ ..126 => self.bytes.push(0x80 | len.to_be_bytes()[1]),
            len => {
                self.bytes.push(0x80 | 126);
                self.bytes.extend_from_slice(&len.to_be_bytes());
            }
        }
        let mask = self.mask.next().to_le_bytes();
        self.bytes.extend_from_slice(&mask[..4]);
        let body = self.bytes.len();
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        for (byte, key) in self.bytes[body..].iter_mut().zip(mask[..4].iter().cycle()) {
            *byte ^= key;
        }
    }
}

/// Numbers that look random and are the same in every run (xorshift64*).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

#[cfg(test)]
mod tests {
    use greenroom_link::framing::{self, Fragments, Framing, HEADROOM};

    use super::*;

    /// A client's frames are what a server reads, and the other way round.
    #[test]
    fn both_halves_of_the_framing_understand_each_other() {
        for (transport, framing) in
            [(Transport::Tcp, Framing::LengthPrefixed), (Transport::Ws, Framing::WebSocket)]
        {
            for len in [1, 32, 125, 126, 300, 40_000] {
                let payload = vec![7; len];
                let mut outbox = Outbox::new(transport);
                outbox.frame(&[&payload[..len / 2], &payload[len / 2..]]);
                let read =
                    framing.next(&mut outbox.bytes, &mut 0, 1 << 20, &mut Fragments::default());
                let Ok(Some(framing::Item::Frame(range))) = read else { panic!("{read:?}") };
                assert_eq!(outbox.bytes[range], payload);

                let mut room = [0; HEADROOM];
                let header = framing.put_header(len, &mut room);
                let down = [&room[HEADROOM - header..], &payload].concat();
                let mut at = 0;
                let Some(Item::Frame(range)) = transport.next(&down, &mut at).unwrap() else {
                    panic!("a frame of {len} bytes is not read")
                };
                assert_eq!((&down[range], at), (&payload[..], down.len()));
                assert_eq!(transport.next(&down[..down.len() - 1], &mut 0).unwrap(), None);
            }
        }
    }
}
