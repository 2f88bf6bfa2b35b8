//! Where clients come from: TCP, WebSocket, TLS under either, or a transport of the studio's own.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
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

use crate::{Pages, SessionConfig};

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
    doors: &Doors,
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
        let host = header("host").unwrap_or_default();
        if !doors.is_own(host) {
            return refuse(stream, 421, Code::OriginDenied, &not_own(host)).await;
        }
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
        && let Err(text) = doors.admit(origin, header("host").unwrap_or_default())
    {
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
        421 => "Misdirected Request",
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

/// Which pages may connect, and by which names browsers may call this server.
///
/// Whoever owns a name can have it lead to any address. So a page of a stranger's name that leads to this machine is of
/// the same host as this server, as far as a browser can tell: where only this machine reaches the port, or where the
/// operator has listed this server's names, no other name is answered to.
#[derive(Clone, Debug)]
pub(crate) struct Doors {
    /// Origins that may connect whatever they call this server.
    origins: Vec<String>,
    /// Names of this server besides those that nobody can give away; none where every name is answered to.
    hosts: Option<Vec<String>>,
}

impl Doors {
    /// `is_local` says that only this machine reaches the port.
    pub(crate) fn new(config: &SessionConfig, is_local: bool) -> Self {
        let public = config.public_urls.iter().filter_map(|url| url.split_once("://"));
        let public = public.map(|(_, rest)| host_of(rest).to_owned());
        let hosts = config.hosts.iter().map(|host| host.to_ascii_lowercase());
        let hosts = (is_local || !config.hosts.is_empty()).then(|| hosts.chain(public).collect());
        Self { origins: config.origins.clone(), hosts }
    }

    /// Whether this server answers to a `Host` of a browser.
    fn is_own(&self, host: &str) -> bool {
        let Some(hosts) = &self.hosts else { return true };
        is_address_or_localhost(host) || hosts.iter().any(|own| own == "*" || *own == host_of(host))
    }

    /// Whether a page of `origin` may connect to `host`.
    ///
    /// # Errors
    /// Why not, for who wrote the page or runs the server.
    fn admit(&self, origin: &str, host: &str) -> Result<(), String> {
        let is_listed = |allowed: &String| allowed == "*" || allowed.eq_ignore_ascii_case(origin);
        if self.origins.iter().any(is_listed) {
            return Ok(());
        }
        if !self.is_own(host) {
            return Err(not_own(host));
        }
        let of = origin.split_once("://").map_or("", |(_, of)| of);
        let (of, to) = (host_of(of), host_of(host));
        if !of.is_empty() && of == to || is_this_machine(&of) && is_this_machine(&to) {
            return Ok(());
        }
        Err(format!("pages of {origin:?} may not connect: add it to `session.origins`"))
    }
}

fn not_own(host: &str) -> String {
    format!(
        "this server is not called {host:?}: use its address, or add the name to `session.hosts`"
    )
}

/// The name in `name:port`, in lower case; an address of version 6 without its brackets.
fn host_of(authority: &str) -> String {
    let authority = authority.split('/').next().unwrap_or_default();
    let name = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next(),
        None => authority.split(':').next(),
    };
    name.unwrap_or_default().to_ascii_lowercase()
}

fn is_this_machine(name: &str) -> bool {
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a `Host` is one that nobody can have lead elsewhere, and nothing but that: with a port, or without.
fn is_address_or_localhost(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        Some(_) | None => (host, ""),
    };
    let is_name = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let lower = name.to_ascii_lowercase();
    let is_local = lower == "localhost" || lower.ends_with(".localhost") && is_name(&lower);
    let v6 = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_address = match v6 {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<Ipv4Addr>().is_ok(),
    };
    (is_local || is_address) && port.bytes().all(|digit| digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doors(origins: &[&str], hosts: &[&str], is_local: bool) -> Doors {
        let own = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let config = SessionConfig {
            origins: own(origins),
            hosts: own(hosts),
            public_urls: vec!["wss://play.example:443".into()],
            ..SessionConfig::default()
        };
        Doors::new(&config, is_local)
    }

    fn may(doors: &Doors, origin: &str, host: &str) -> bool {
        doors.admit(origin, host).is_ok()
    }

    #[test]
    fn a_page_of_another_site_may_connect_only_when_it_is_on_the_list() {
        for is_local in [false, true] {
            let list = doors(&["https://game.example"], &[], is_local);
            assert!(may(&list, "https://game.example", "play.example:4001"));
            assert!(may(&list, "https://game.example", "127.0.0.1:4001"), "behind a proxy");
            assert!(!may(&list, "https://evil.example", "play.example:4001"));
            assert!(!may(&list, "https://game.example.evil.example", "play.example"));
            assert!(!may(&list, "null", "play.example"));
            let all = doors(&["*"], &[], is_local);
            assert!(may(&all, "https://evil.example", "play.example"));
        }
    }

    #[test]
    fn pages_of_the_same_host_and_of_this_machine_may_connect() {
        let open = doors(&[], &[], false);
        assert!(may(&open, "https://play.example", "PLAY.example:4001"));
        assert!(may(&open, "http://my-laptop:4001", "my-laptop:4001"));
        for is_local in [false, true] {
            let doors = doors(&[], &[], is_local);
            assert!(may(&doors, "http://localhost:8080", "127.0.0.1:4001"));
            assert!(may(&doors, "http://[::1]:8080", "localhost:4001"));
            assert!(may(&doors, "http://[::1]:4001", "[::1]:4001"));
            assert!(may(&doors, "http://192.168.0.7:4001", "192.168.0.7:4001"));
            assert!(!may(&doors, "http://localhost:8080", "play.example:4001"));
        }
    }

    /// A name of a stranger that leads to this machine: its pages have the same host as this server.
    #[test]
    fn a_name_that_was_made_to_lead_here_is_not_this_server_s() {
        let local = doors(&[], &[], true);
        let listed = doors(&[], &["My-Laptop"], false);
        for evil in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1"]
        {
            for doors in [&local, &listed] {
                let text = doors.admit(&format!("http://{evil}:4001"), &format!("{evil}:4001"));
                let text = text.unwrap_err();
                assert!(text.contains("session.hosts"), "{evil}: {text}");
            }
        }
        assert!(may(&listed, "http://my-laptop:4001", "my-laptop:4001"));
        assert!(may(&local, "https://play.example", "play.example"), "it is given to clients");
        assert!(!local.is_own("localhost:80:80") && !local.is_own("localhost@evil.example"));
        for own in
            ["localhost", "LOCALHOST:80", "a.localhost:1", "127.0.0.1", "[::1]", "[::1]:4001"]
        {
            assert!(local.is_own(own), "{own}");
        }
        assert!(doors(&[], &["*"], true).is_own("evil.example"), "an operator may say so");
    }

    async fn asked(request: &str, pages: &Pages) -> (Opened, String) {
        let (mut client, mut server) = tokio::io::duplex(16 * 1024);
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let result = upgrade(&mut server, &doors(&[], &[], true), pages).await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        (result, answer)
    }

    #[tokio::test]
    async fn an_upgrade_is_answered_as_the_rfc_says_and_what_follows_it_is_kept() {
        let (result, answer) = asked(
            "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: greenroom.v1\r\n\r\nrest",
            &Pages::default(),
        )
        .await;
        assert_eq!(result, Opened::Client(b"rest".to_vec()));
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
    }

    #[tokio::test]
    async fn what_is_no_upgrade_gets_an_answer_that_says_what_to_do() {
        for (request, status, code) in [
            ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "426", Code::Malformed),
            ("\0\0\0\0\r\n\r\n", "400", Code::Malformed),
            (
                "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: \
                 x\r\nSec-WebSocket-Version: 13\r\n\r\n",
                "400",
                Code::VersionMismatch,
            ),
            (
                "GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\nUpgrade: websocket\r\n\
                 Connection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
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
        let get = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n";
        let (opened, answer) = asked(get, &pages).await;
        assert_eq!(opened, Opened::Page);
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhello"),
            "{answer}"
        );
        let (opened, answer) = asked(&get.replace("GET", "HEAD"), &pages).await;
        assert_eq!(opened, Opened::Page);
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        let (opened, answer) = asked(&get.replace("localhost", "evil.example"), &pages).await;
        assert!(matches!(opened, Opened::Refused(_)) && answer.starts_with("HTTP/1.1 421 "));
        assert!(answer.contains("session.hosts") && !answer.contains("hello"), "{answer}");
        let (opened, answer) = asked(&get.replace("GET", "POST"), &pages).await;
        assert!(matches!(opened, Opened::Refused(_)) && answer.starts_with("HTTP/1.1 426 "));
    }
}
