//! Where clients come from: TCP, WebSocket, TLS under either, or a transport of the studio's own.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    time::Duration,
};

use ecow::{EcoString, eco_format};
use greenroom_link::framing::Framing;
use greenroom_protocol::{Code, Refusal};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time,
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::Pages;

/// A stream of bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

/// The way to a client.
pub enum Stream {
    /// A bare socket: the fast way.
    Tcp(TcpStream),
    /// Anything else: TLS, or a transport of the studio's own.
    Other(Box<dyn Duplex>),
}

impl fmt::Debug for Stream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tcp(_) => "Tcp",
            Self::Other(_) => "Other",
        })
    }
}

/// A client at the door. What is left of opening the stream (TLS, the WebSocket's upgrade) is done by the server,
/// in the client's own task, within the time that a check-in may take.
pub struct Accepted {
    /// The way to it.
    pub stream: Stream,
    /// Where it is.
    pub address: SocketAddr,
    /// How frames stand in the stream.
    pub framing: Framing,
    /// To be spoken first.
    pub tls: Option<TlsAcceptor>,
}

impl fmt::Debug for Accepted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Accepted({:?} from {})", self.framing, self.address)
    }
}

/// Accepts clients. A session server has one for each of its ports; a studio can add its own.
pub trait Acceptor {
    /// Where clients reach it.
    fn url(&self) -> EcoString;
    /// The next client.
    fn accept(&self) -> Pin<Box<dyn Future<Output = io::Result<Accepted>> + '_>>;
}

/// TCP or WebSocket, with or without TLS.
pub(crate) struct Port {
    pub(crate) listener: TcpListener,
    pub(crate) framing: Framing,
    pub(crate) tls: Option<TlsAcceptor>,
}

impl Acceptor for Port {
    fn url(&self) -> EcoString {
        let scheme = match (self.framing, self.tls.is_some()) {
            (Framing::LengthPrefixed, false) => "tcp",
            (Framing::LengthPrefixed, true) => "tls",
            (Framing::WebSocket, false) => "ws",
            (Framing::WebSocket, true) => "wss",
        };
        self.listener
            .local_addr()
            .map_or_else(|_| scheme.into(), |address| eco_format!("{scheme}://{address}"))
    }

    fn accept(&self) -> Pin<Box<dyn Future<Output = io::Result<Accepted>> + '_>> {
        Box::pin(async {
            let (stream, address) = self.listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Accepted {
                stream: Stream::Tcp(stream),
                address,
                framing: self.framing,
                tls: self.tls.clone(),
            })
        })
    }
}

/// The subprotocol that a WebSocket client asks for.
pub(crate) const SUBPROTOCOL: &str = "greenroom.v1";
/// How long a client may take for an answer that refuses it.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// Bytes of an upgrade request at most.
const UPGRADE_BYTES_MAX: usize = 4 * 1024;

/// What a request on a WebSocket port came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// A client, with what was read after its request.
    Client(Vec<u8>),
    /// A browser that got a page; the stream is closed.
    Page,
    /// Nothing: it got an answer that says why.
    Refused(Refusal),
}

/// Reads a WebSocket's upgrade request (RFC 6455 section 4.2), or one for a page, and answers it.
///
/// # Errors
/// When the stream ends.
pub(crate) async fn upgrade(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    origins: &[String],
    pages: &Pages,
) -> io::Result<Opened> {
    let mut request = vec![0; UPGRADE_BYTES_MAX];
    let mut len = 0;
    let end = loop {
        if let Some(at) = request[..len].windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if len == request.len() {
            return refuse(stream, 431, Code::TooLarge, "the request's head is longer than 4 KiB")
                .await;
        }
        match stream.read(&mut request[len..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            taken => len += taken,
        }
    };
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut parsed = httparse::Request::new(&mut headers);
    if parsed.parse(&request[..end]).is_err() {
        return refuse(
            stream,
            400,
            Code::Malformed,
            "this is no HTTP request: WebSocket clients only",
        )
        .await;
    }
    let header = |name: &str| {
        let found = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| str::from_utf8(header.value).ok())
    };
    let has = |name: &str, word: &str| {
        header(name).is_some_and(|value| {
            value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word))
        })
    };
    if let (Some(method @ ("GET" | "HEAD")), Some(path)) = (parsed.method, parsed.path)
        && !has("upgrade", "websocket")
        && !pages.is_empty()
    {
        let answer = pages.answer(path).await.encode(method == "GET");
        finish(stream, &answer).await?;
        return Ok(Opened::Page);
    }
    if parsed.method != Some("GET") || !has("upgrade", "websocket") || !has("connection", "upgrade")
    {
        let text = "this port speaks WebSocket: connect with the Greenroom SDK";
        return refuse(stream, 426, Code::Malformed, text).await;
    }
    let (Some(key), Some("13")) = (header("sec-websocket-key"), header("sec-websocket-version"))
    else {
        return refuse(
            stream,
            426,
            Code::Malformed,
            "version 13 of WebSocket and a key are needed",
        )
        .await;
    };
    if let Some(origin) = header("origin")
        && !origin_allowed(origin, header("host").unwrap_or_default(), origins)
    {
        let text = format!("pages of {origin:?} may not connect: add it to `session.origins`");
        return refuse(stream, 403, Code::OriginDenied, &text).await;
    }
    if !has("sec-websocket-protocol", SUBPROTOCOL) {
        let text = format!("ask for the subprotocol {SUBPROTOCOL:?}");
        return refuse(stream, 400, Code::VersionMismatch, &text).await;
    }
    let accept = derive_accept_key(key.as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: \
         {accept}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    Ok(Opened::Client(request[end..len].to_vec()))
}

async fn refuse(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    status: u16,
    code: Code,
    text: &str,
) -> io::Result<Opened> {
    let reason = match status {
        403 => "Forbidden",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        _ => "Bad Request",
    };
    let body = format!("{code}: {text}\n");
    // What would have to change is said by 426 alone: where something else is wrong, it would be wrong again.
    let upgrade = if status == 426 { "Upgrade: websocket\r\n" } else { "" };
    let answer = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: \
         {}\r\n{upgrade}Connection: close\r\n\r\n{body}",
        body.len()
    );
    finish(stream, answer.as_bytes()).await?;
    Ok(Opened::Refused(Refusal::new(code, text)))
}

/// Sends the only answer of a stream, and closes it.
async fn finish(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    answer: &[u8],
) -> io::Result<()> {
    stream.write_all(answer).await?;
    stream.shutdown().await?;
    // Closing with unread bytes would reset the connection, and the answer might never be seen.
    let mut nowhere = [0; 1024];
    let rest = async { while let Ok(1..) = stream.read(&mut nowhere).await {} };
    let _listened = time::timeout(FAREWELL_MAX, rest).await;
    Ok(())
}

/// Whether a page of `origin` may connect to `host`: it is of the same host, of this machine, or on the list.
fn origin_allowed(origin: &str, host: &str, origins: &[String]) -> bool {
    let of = origin.split_once("://").map_or("", |(_, of)| of);
    let name = |authority: &str| match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default().to_owned(),
        None => authority.split(':').next().unwrap_or_default().to_owned(),
    };
    let (of, host) = (name(of), name(host));
    let of_this_machine =
        of == "localhost" || of.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let to_this_machine =
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    (of_this_machine && to_this_machine)
        || (!of.is_empty() && of == host)
        || origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_site_may_connect_only_when_it_is_on_the_list() {
        let list = ["https://game.example".to_owned()];
        assert!(origin_allowed("https://game.example", "play.example:4001", &list));
        assert!(!origin_allowed("https://evil.example", "play.example:4001", &list));
        assert!(!origin_allowed("https://game.example.evil.example", "play.example", &list));
        assert!(!origin_allowed("null", "play.example", &list));
        assert!(origin_allowed("https://evil.example", "play.example", &["*".to_owned()]));
    }

    #[test]
    fn pages_of_the_same_host_and_of_this_machine_may_connect() {
        assert!(origin_allowed("https://play.example", "play.example:4001", &[]));
        assert!(origin_allowed("http://localhost:8080", "127.0.0.1:4001", &[]));
        assert!(origin_allowed("http://[::1]:8080", "localhost:4001", &[]));
        assert!(!origin_allowed("http://localhost:8080", "play.example:4001", &[]));
    }

    async fn asked(request: &str, pages: &Pages) -> (Opened, String) {
        let (mut client, mut server) = tokio::io::duplex(16 * 1024);
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let result = upgrade(&mut server, &[], pages).await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        (result, answer)
    }

    #[tokio::test]
    async fn an_upgrade_is_answered_as_the_rfc_says_and_what_follows_it_is_kept() {
        let (result, answer) = asked(
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: \
             dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: greenroom.v1\r\n\r\nrest",
            &Pages::default(),
        )
        .await;
        assert_eq!(result, Opened::Client(b"rest".to_vec()));
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
    }

    #[tokio::test]
    async fn what_is_no_upgrade_gets_an_answer_that_says_what_to_do() {
        for (request, status, code) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "426", Code::Malformed),
            ("\0\0\0\0\r\n\r\n", "400", Code::Malformed),
            (
                "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: \
                 x\r\nSec-WebSocket-Version: 13\r\n\r\n",
                "400",
                Code::VersionMismatch,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nOrigin: https://evil.example\r\nUpgrade: websocket\r\nConnection: \
                 Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
                "403",
                Code::OriginDenied,
            ),
            (&format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(5_000)), "431", Code::TooLarge),
        ] {
            let (result, answer) = asked(request, &Pages::default()).await;
            assert!(matches!(result, Opened::Refused(refusal) if refusal.code == code));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            assert_eq!(answer.contains("\r\nUpgrade:"), status == "426", "{answer}");
        }
    }
    #[tokio::test]
    async fn a_browser_that_asks_for_a_page_gets_it_where_there_are_pages() {
        let pages = Pages::default().file("/index.html", b"hello".as_slice());
        let get = "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
        let (opened, answer) = asked(get, &pages).await;
        assert_eq!(opened, Opened::Page);
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhello"),
            "{answer}"
        );
        let (opened, answer) = asked(&get.replace("GET", "HEAD"), &pages).await;
        assert_eq!(opened, Opened::Page);
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        let (opened, answer) = asked(&get.replace("GET", "POST"), &pages).await;
        assert!(matches!(opened, Opened::Refused(_)) && answer.starts_with("HTTP/1.1 426 "));
    }
}
