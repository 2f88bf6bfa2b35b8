//! One connection: bytes to frames and back, over TCP or WebSocket, with or without TLS.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use ecow::{EcoString, eco_format};
use futures_util::{Sink, Stream as _};
use greenroom_protocol::SERVER_FRAME_BYTES_MAX;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        client::IntoClientRequest as _,
        http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL},
        protocol::WebSocketConfig,
    },
};

use crate::address::Address;

/// Bytes that are asked of the socket at once while no longer frame is expected.
const READ_BYTES: usize = 4 * 1024;
/// What a server must be offered, so that no page which happens to talk to its port gets a conversation.
const SUBPROTOCOL: &str = "greenroom.v1";

/// A byte stream, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Why a connection can't be made, or does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("connecting: {0}")]
    Connect(std::io::Error),
    #[error("the address needs TLS, which was not asked for at the start")]
    NoTls,
    #[error("the host name can't be part of a certificate")]
    HostName,
    #[error("agreeing on TLS: {0}")]
    Tls(std::io::Error),
    #[error("opening the WebSocket: {0}")]
    Handshake(EcoString),
    #[error("the server closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Io(std::io::Error),
    #[error("the connection broke: {0}")]
    Web(EcoString),
    #[error("the server sent a frame of {len} bytes; at most {max} are allowed")]
    TooLarge { len: usize, max: usize },
    #[error("the server sent a WebSocket message that is not binary")]
    NotBinary,
}

/// An open connection that carries frames.
pub(crate) struct Wire {
    inner: Inner,
    /// Something was written to the stream and not yet flushed through it.
    unflushed: bool,
}

enum Inner {
    Plain { stream: Box<dyn Stream>, input: BytesMut, output: BytesMut },
    Web { socket: Box<WebSocketStream<Box<dyn Stream>>>, output: Vec<Message> },
}

impl Wire {
    /// Dials. Cancel it to give up: it has no deadline of its own.
    pub(crate) async fn dial(
        address: &Address,
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> Result<Self, WireError> {
        let socket = TcpStream::connect((address.host.as_str(), address.port))
            .await
            .map_err(WireError::Connect)?;
        // Inputs are small and urgent, and the shell already writes together what is ready together.
        socket.set_nodelay(true).map_err(WireError::Connect)?;
        let stream: Box<dyn Stream> = if address.scheme.is_encrypted() {
            let config = tls.ok_or(WireError::NoTls)?;
            let name = rustls::pki_types::ServerName::try_from(address.host.to_string())
                .map_err(|_| WireError::HostName)?;
            let connected = TlsConnector::from(config).connect(name, socket).await;
            Box::new(connected.map_err(WireError::Tls)?)
        } else {
            Box::new(socket)
        };
        let inner = if address.scheme.is_web() {
            // The default read buffer is 128 KiB for each connection, all of it allocated at once.
            let config = WebSocketConfig::default()
                .read_buffer_size(READ_BYTES)
                .max_message_size(Some(SERVER_FRAME_BYTES_MAX))
                .max_frame_size(Some(SERVER_FRAME_BYTES_MAX));
            let mut request =
                address.url.as_str().into_client_request().map_err(|e| refused(&e))?;
            let subprotocol = HeaderValue::from_static(SUBPROTOCOL);
            request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
            let (socket, _) =
                tokio_tungstenite::client_async_with_config(request, stream, Some(config))
                    .await
                    .map_err(|error| refused(&error))?;
            Inner::Web { socket: Box::new(socket), output: Vec::new() }
        } else {
            Inner::Plain { stream, input: BytesMut::new(), output: BytesMut::new() }
        };
        Ok(Self { inner, unflushed: false })
    }

    /// Queues a frame; [`Self::turn`] writes it. What is queued is bounded by what the windows above allow.
    pub(crate) fn push(&mut self, frame: Vec<u8>) {
        match &mut self.inner {
            Inner::Plain { output, .. } => {
                let len = u32::try_from(frame.len())
                    .expect("a frame from a client is at most CLIENT_FRAME_BYTES_MAX long");
                output.extend_from_slice(&len.to_le_bytes());
                output.extend_from_slice(&frame);
            }
            Inner::Web { output, .. } => output.push(Message::Binary(frame.into())),
        }
    }

    /// Writes what is queued and waits for the next frame. Cancelling it loses nothing.
    pub(crate) async fn turn(&mut self, reading: Reading) -> Result<Bytes, WireError> {
        std::future::poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            match reading {
                Reading::On => self.poll_frame(cx),
                Reading::Paused => Poll::Pending,
            }
        })
        .await
    }

    /// Writes what is queued.
    pub(crate) async fn flush(&mut self) -> Result<(), WireError> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Writes what is queued, and says goodbye as the transport does.
    pub(crate) async fn close(mut self) -> Result<(), WireError> {
        self.flush().await?;
        match &mut self.inner {
            Inner::Plain { stream, .. } => {
                std::future::poll_fn(|cx| pin!(&mut **stream).poll_shutdown(cx))
                    .await
                    .map_err(WireError::Io)
            }
            Inner::Web { socket, .. } => socket.close(None).await.map_err(|error| web(&error)),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        match &mut self.inner {
            Inner::Plain { stream, output, .. } => {
                while !output.is_empty() {
                    let written = ready!(Pin::new(&mut **stream).poll_write(cx, output))
                        .map_err(WireError::Io)?;
                    if written == 0 {
                        return Poll::Ready(Err(WireError::Closed));
                    }
                    output.advance(written);
                    self.unflushed = true;
                }
                if self.unflushed {
                    ready!(Pin::new(&mut **stream).poll_flush(cx)).map_err(WireError::Io)?;
                    self.unflushed = false;
                }
            }
            Inner::Web { socket, output } => {
                if !output.is_empty() {
                    ready!(Pin::new(&mut **socket).poll_ready(cx)).map_err(|error| web(&error))?;
                    for message in output.drain(..) {
                        Pin::new(&mut **socket).start_send(message).map_err(|error| web(&error))?;
                    }
                    self.unflushed = true;
                }
                if self.unflushed {
                    ready!(Pin::new(&mut **socket).poll_flush(cx)).map_err(|error| web(&error))?;
                    self.unflushed = false;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, WireError>> {
        match &mut self.inner {
            Inner::Plain { stream, input, .. } => loop {
                let wanted = match input.first_chunk::<4>() {
                    Some(len) => {
                        let len = u32::from_le_bytes(*len) as usize;
                        let max = SERVER_FRAME_BYTES_MAX;
                        // Before anything is allocated for it.
                        if len > max {
                            return Poll::Ready(Err(WireError::TooLarge { len, max }));
                        }
                        if input.len() >= 4 + len {
                            input.advance(4);
                            return Poll::Ready(Ok(input.split_to(len).freeze()));
                        }
                        4 + len - input.len()
                    }
                    None => 0,
                };
                ready!(poll_fill(&mut **stream, cx, input, wanted.max(READ_BYTES)))?;
            },
            Inner::Web { socket, .. } => loop {
                let message = match ready!(Pin::new(&mut **socket).poll_next(cx)) {
                    Some(message) => message.map_err(|error| web(&error))?,
                    None => return Poll::Ready(Err(WireError::Closed)),
                };
                match message {
                    Message::Binary(frame) => return Poll::Ready(Ok(frame)),
                    Message::Text(_) => return Poll::Ready(Err(WireError::NotBinary)),
                    // Answered by tungstenite; the end of the stream follows a close.
                    Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {
                    }
                }
            },
        }
    }
}

/// Whether the application has room for what would be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    On,
    Paused,
}

/// Reads once into `input`. No more is reserved than what has arrived already, or [`READ_BYTES`]: a length alone
/// does not make us allocate.
fn poll_fill(
    stream: &mut dyn Stream,
    cx: &mut Context<'_>,
    input: &mut BytesMut,
    wanted: usize,
) -> Poll<Result<(), WireError>> {
    let room = wanted.min(input.len().max(READ_BYTES));
    input.reserve(room);
    let read = pin!(stream.read_buf(input));
    let filled = ready!(read.poll(cx)).map_err(WireError::Io)?;
    Poll::Ready(if filled == 0 { Err(WireError::Closed) } else { Ok(()) })
}

/// Why a WebSocket could not be opened: in the server's own words, if it said any.
fn refused(error: &tokio_tungstenite::tungstenite::Error) -> WireError {
    use tokio_tungstenite::tungstenite::Error;
    if let Error::Http(answer) = error
        && let Some(body) = answer.body().as_deref()
        && let Ok(text) = str::from_utf8(body)
        && !text.trim().is_empty()
    {
        return WireError::Handshake(text.trim().into());
    }
    WireError::Handshake(eco_format!("{error}"))
}

fn web(error: &tokio_tungstenite::tungstenite::Error) -> WireError {
    use tokio_tungstenite::tungstenite::Error;
    if matches!(error, Error::ConnectionClosed | Error::AlreadyClosed) {
        WireError::Closed
    } else {
        WireError::Web(eco_format!("{error}"))
    }
}
