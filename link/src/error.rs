use std::{io, time::Duration};

use greenroom_protocol::{DecodeError, Refusal};

/// Why a link ended, or never opened.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens there, or the way is cut.
    #[error("dialling {address}")]
    Dial {
        /// As it was given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The handshake was not over in time.
    #[error("the handshake with {peer} took longer than {after:?}")]
    HandshakeTimeout {
        /// Address of the other side.
        peer: String,
        /// The bound.
        after: Duration,
    },
    /// The other side said no.
    #[error("{peer} refused the link: {refusal}")]
    RefusedByPeer {
        /// Address of the other side.
        peer: String,
        /// Its reason.
        refusal: Refusal,
    },
    /// This side said no.
    #[error("refused a link from {peer}: {refusal}")]
    Refused {
        /// Address of the other side.
        peer: String,
        /// The reason, as the other side was told.
        refusal: Refusal,
    },
    /// The other side closed the link.
    #[error("the other side closed the link")]
    Closed,
    /// The socket failed.
    #[error("the link's socket failed")]
    Socket(#[source] io::Error),
    /// A frame that no version of this protocol sends.
    #[error("the other side sent what is no frame")]
    Frame(#[from] DecodeError),
    /// A frame is longer than this side takes.
    #[error("a frame of {len} bytes, more than {max}")]
    FrameTooLong {
        /// As announced.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// Nothing was heard.
    #[error("nothing was heard from the other side for {0:?}")]
    Silent(Duration),
    /// The other side took nothing until the buffer was full.
    #[error("the other side takes nothing: {0} bytes wait for it")]
    Stuck(usize),
}
