//! A client that says what it is told to say, right or wrong.

use std::{path::Path, sync::Arc};

use futures_util::{SinkExt, StreamExt};
use greenroom_protocol::{
    Channel, Code, DownHeader, Limits, Refusal, ReplyHeader, RequestHeader, RequestId, Seq,
    SessionKey, UpHeader, decode,
    search::Filter,
    wire::{
        Opaque, client_instance,
        client_session::{
            self, CheckIn, ClientHello, ClientToSession, Credentials, Join, Joined, Reply, Request,
            Search, SessionToClient,
        },
    },
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::cluster::{ARENA, LONG};

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

enum Wire {
    Prefixed(Box<dyn Duplex>),
    Web(Box<WebSocketStream<Box<dyn Duplex>>>),
}

pub(crate) struct Client(Wire);

/// Of a URL, without its scheme and path.
pub(crate) fn authority(url: &str) -> &str {
    url.split_once("://").unwrap().1.split('/').next().unwrap()
}

impl Client {
    /// Connects to a URL; `trusted` is the certificate that is trusted where there is TLS.
    pub(crate) async fn connect(url: &str, trusted: Option<&Path>) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap();
        let stream: Box<dyn Duplex> = match (scheme, trusted) {
            ("unix", _) => Box::new(UnixStream::connect(rest).await.unwrap()),
            ("tls" | "wss", Some(trusted)) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(trusted).unwrap()).unwrap();
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let config = ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                let socket = TcpStream::connect(authority(url)).await.unwrap();
                let name = "localhost".try_into().unwrap();
                Box::new(TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap())
            }
            _ => Box::new(TcpStream::connect(authority(url)).await.unwrap()),
        };
        Self::over(stream, scheme.starts_with("ws")).await
    }

    /// One that takes little at a time.
    pub(crate) async fn slow(url: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2_048).unwrap();
        let stream = socket.connect(authority(url).parse().unwrap()).await.unwrap();
        Self::over(Box::new(stream), false).await
    }

    async fn over(stream: Box<dyn Duplex>, web: bool) -> Self {
        if !web {
            return Self(Wire::Prefixed(stream));
        }
        let mut request = "ws://localhost/".into_client_request().unwrap();
        let protocol = HeaderValue::from_static("greenroom.v1");
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let (socket, answer) = client_async(request, stream).await.unwrap();
        assert_eq!(answer.headers()["sec-websocket-protocol"], "greenroom.v1");
        Self(Wire::Web(Box::new(socket)))
    }

    pub(crate) async fn send(&mut self, frame: &[u8]) {
        match &mut self.0 {
            Wire::Prefixed(stream) => stream.write_all(&prefixed(frame)).await.unwrap(),
            Wire::Web(socket) => {
                socket.send(Message::Binary(frame.to_vec().into())).await.unwrap();
            }
        }
    }

    /// Bytes as they are, over TCP; the server may have closed already.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        if let Wire::Prefixed(stream) = &mut self.0 {
            let _closed_already = stream.write_all(bytes).await;
        }
    }

    /// A message of WebSocket as it is.
    pub(crate) async fn message(&mut self, message: Message) {
        if let Wire::Web(socket) = &mut self.0 {
            socket.send(message).await.unwrap();
        }
    }

    /// The next frame; `None` when the server ended the connection.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        let next = async {
            match &mut self.0 {
                Wire::Prefixed(stream) => {
                    let len = stream.read_u32_le().await.ok()? as usize;
                    let mut frame = vec![0; len];
                    stream.read_exact(&mut frame).await.ok()?;
                    Some(frame)
                }
                Wire::Web(socket) => loop {
                    match socket.next().await?.ok()? {
                        Message::Binary(frame) => break Some(frame.into()),
                        Message::Close(_) => break None,
                        _ => {}
                    }
                },
            }
        };
        timeout(LONG, next).await.expect("a frame, or the end")
    }

    /// The next frame that is of this kind; what comes before it does not matter.
    pub(crate) async fn until(&mut self, kind: u8) -> Vec<u8> {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("the end, and no {kind:#04x}"));
            if frame[0] == kind {
                return frame;
            }
        }
    }

    pub(crate) async fn hello(&mut self) {
        self.send(&hello(1, 1)).await;
        self.until(0x81).await;
    }
    pub(crate) async fn check_in(&mut self, session: u8) {
        self.hello().await;
        self.send(&check_in(session)).await;
        self.until(0x82).await;
    }
    /// Takes a seat.
    pub(crate) async fn join(&mut self, id: u32) -> Joined {
        self.send(&join(id)).await;
        let frame = self.until(0x91).await;
        let (header, payload) = ReplyHeader::split(&frame).unwrap();
        assert_eq!(header.id, RequestId(id));
        decode(payload, Limits::SERVER).unwrap()
    }
    /// Checks in and takes a seat.
    pub(crate) async fn seated(url: &str, session: u8) -> Self {
        let mut client = Self::connect(url, None).await;
        client.check_in(session).await;
        client.join(1).await;
        client
    }

    /// Reads to the end of the connection: the reason that was told last.
    pub(crate) async fn closing(&mut self) -> Refusal {
        let mut last = None;
        while let Some(frame) = self.next().await {
            if frame[0] == 0x85 {
                assert!(last.is_none(), "one reason, and nothing after it");
                last = match SessionToClient::decode(frame[0], &frame[1..], Limits::SERVER) {
                    Ok(SessionToClient::Closing(refusal)) => Some(refusal),
                    other => panic!("{other:?}"),
                };
            } else {
                assert!(last.is_none(), "a frame of kind {:#04x} after the reason", frame[0]);
            }
        }
        last.expect("a reason before the end")
    }

    /// The next refusal of a request.
    pub(crate) async fn refused(&mut self) -> (RequestId, Refusal) {
        let frame = self.until(0x9f).await;
        let (header, payload) = ReplyHeader::split(&frame).unwrap();
        match Reply::decode(header.kind, payload, Limits::SERVER) {
            Ok(Reply::Refused(refusal)) => (header.id, refusal),
            other => panic!("{other:?}"),
        }
    }

    /// It is still served.
    pub(crate) async fn is_served(&mut self) {
        self.send(&[client_session::PING, 1, 2, 3, 4, 5, 6, 7, 8]).await;
        assert_eq!(self.until(0x84).await[1..], [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

/// The refusal of a frame about a seat.
pub(crate) fn of_seat(frame: &[u8]) -> (Channel, Code) {
    let (header, payload) = DownHeader::split(frame).unwrap();
    (header.channel, decode::<Refusal>(payload, Limits::SERVER).unwrap().code)
}

pub(crate) fn prefixed(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_le_bytes()[..], frame].concat()
}
fn framed(message: &ClientToSession) -> Vec<u8> {
    let mut frame = vec![message.kind()];
    message.encode_into(&mut frame);
    frame
}
pub(crate) fn hello(protocol_min: u16, protocol_max: u16) -> Vec<u8> {
    let (features, agent) = (Vec::new(), "test".into());
    framed(&ClientHello { protocol_min, protocol_max, features, agent }.into())
}
pub(crate) fn check_in(session: u8) -> Vec<u8> {
    let token = format!("a token of sixteen characters or more {session}");
    let credentials = Credentials { scheme: "guest".into(), token, name: "Ann".into() };
    framed(&CheckIn { session_key: SessionKey([session; 16]), credentials }.into())
}
fn asked(id: u32, request: &Request) -> Vec<u8> {
    let (id, answered) = (RequestId(id), RequestId(0));
    let mut frame = RequestHeader { kind: request.kind(), id, answered }.bytes().to_vec();
    request.encode_into(&mut frame);
    frame
}
pub(crate) fn join(id: u32) -> Vec<u8> {
    asked(id, &Join { instance: ARENA, options: Opaque::new() }.into())
}
pub(crate) fn search(id: u32) -> Vec<u8> {
    let kind = greenroom_protocol::KindName::new("arena").unwrap();
    let (filter, order, cursor) = (Filter::default(), None, None);
    asked(id, &Search { kind, filter, order, limit: 10, cursor, explain: false }.into())
}
/// What a live search told up to here has arrived.
pub(crate) fn seen(watch: u32, n: u64) -> Vec<u8> {
    framed(&client_session::Seen { watch: RequestId(watch), n }.into())
}
/// A message to an instance.
pub(crate) fn up(channel: Channel, number: u32, payload: &[u8]) -> Vec<u8> {
    let kind = client_instance::MESSAGE;
    let header = UpHeader { kind, channel, number: Seq(number), ack: Seq(0) };
    [&header.bytes()[..], payload].concat()
}
/// A frame from an instance, of any kind: only kind and channel mean anything to a session server.
pub(crate) fn down(kind: u8, channel: Channel, payload: &[u8]) -> Vec<u8> {
    let (number, ack) = (Seq(0), Seq(0));
    [&DownHeader { kind, channel, number, ack, tick: 1 }.bytes()[..], payload].concat()
}
