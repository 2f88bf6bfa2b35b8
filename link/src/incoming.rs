//! The reading end: whole frames as ranges of the chunk that was read.

use std::{fmt, ops::Range};

use greenroom_protocol::{LINK_FRAME_BYTES_MAX, LINK_HEADER_BYTES, LinkHeader};
use tokio::{io::AsyncReadExt, net::tcp::OwnedReadHalf};

use crate::{LinkError, Outgoing, outgoing::ALIVE};

const CHUNK_BYTES: usize = 64 * 1024;

/// A frame that arrived: its header, and where its payload stands in [`Incoming::bytes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Kind and target.
    pub header: LinkHeader,
    /// The payload; [`LINK_HEADER_BYTES`] bytes before it are free to be written over.
    pub payload: Range<usize>,
}

/// The reading end of a link. [`Incoming::fill`] reads once, [`Incoming::next_frame`] gives the frames of that chunk.
pub struct Incoming {
    socket: OwnedReadHalf,
    outgoing: Outgoing,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    frame_max: usize,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Incoming({} bytes unread)", self.end - self.start)
    }
}

impl Incoming {
    pub(crate) fn new(socket: OwnedReadHalf, outgoing: Outgoing, frame_max: usize) -> Self {
        Self {
            socket,
            outgoing,
            buffer: vec![0; frame_max.min(CHUNK_BYTES)],
            start: 0,
            end: 0,
            frame_max,
        }
    }

    /// The handshake is over: from here on frames may have their full length.
    pub(crate) fn open(&mut self) {
        self.frame_max = LINK_FRAME_BYTES_MAX;
        self.buffer.resize(CHUNK_BYTES, 0);
    }

    /// Waits for bytes and reads them once; ranges given before are void.
    ///
    /// # Errors
    /// [`LinkError::Closed`] at the end of the stream, [`LinkError::Socket`] when the socket fails.
    pub async fn fill(&mut self) -> Result<(), LinkError> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.buffer.len() {
            // The frame's announced length was checked: the buffer grows with what has really come.
            self.buffer
                .resize((self.buffer.len() * 2).min(self.frame_max + 4).max(self.end + 1), 0);
        }
        match self.socket.read(&mut self.buffer[self.end..]).await {
            Ok(0) => Err(LinkError::Closed),
            Ok(taken) => {
                self.end += taken;
                self.outgoing.heard();
                Ok(())
            }
            Err(error) => Err(LinkError::Socket(error)),
        }
    }

    /// The next whole frame of what was read, if there is one.
    ///
    /// # Errors
    /// [`LinkError::FrameTooLong`] or [`LinkError::Frame`]: the link can't go on.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, LinkError> {
        loop {
            let unread = &self.buffer[self.start..self.end];
            let Some(len) = unread.first_chunk::<4>() else { return Ok(None) };
            let len = u32::from_le_bytes(*len) as usize;
            if len > self.frame_max {
                return Err(LinkError::FrameTooLong { len, max: self.frame_max });
            }
            let Some(frame) = unread.get(4..4 + len) else { return Ok(None) };
            let (header, _) = LinkHeader::split(frame)?;
            let payload = self.start + LINK_HEADER_BYTES..self.start + 4 + len;
            self.start += 4 + len;
            if header.kind != ALIVE {
                return Ok(Some(Frame { header, payload }));
            }
        }
    }

    /// The chunk that frames are ranges of.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// The chunk, to write transport headers over link headers.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }
}
