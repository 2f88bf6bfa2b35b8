//! Where a session server is: a URL with one of four schemes.

use ecow::EcoString;

use crate::ClientError;

/// How frames travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scheme {
    Tcp,
    Tls,
    Ws,
    Wss,
}

impl Scheme {
    pub(crate) const fn is_web(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
    pub(crate) const fn is_encrypted(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }
}

/// An address, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// As it was written.
    pub(crate) url: EcoString,
    pub(crate) scheme: Scheme,
    /// Name or IP address, without brackets.
    pub(crate) host: EcoString,
    pub(crate) port: u16,
}

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Self, ClientError> {
        let wrong = |what| ClientError::Address { text: url.into(), what };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        let (scheme, default_port) = match scheme {
            "tcp" => (Scheme::Tcp, None),
            "tls" => (Scheme::Tls, None),
            "ws" => (Scheme::Ws, Some(80)),
            "wss" => (Scheme::Wss, Some(443)),
            _ => return Err(wrong("its scheme is none of tcp, tls, ws, wss")),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if !scheme.is_web() && !path.is_empty() {
            return Err(wrong("a path stands after its port"));
        }
        if authority.contains('@') {
            return Err(wrong("it holds a user's name"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, rest) = v6.split_once(']').ok_or_else(|| wrong("a ] is missing"))?;
                (host, rest.strip_prefix(':'))
            }
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        let port = match port {
            Some(port) => port.parse().map_err(|_| wrong("its port is no number up to 65535"))?,
            None => default_port.ok_or_else(|| wrong("it has no port"))?,
        };
        Ok(Self { url: url.into(), scheme, host: host.into(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_a_host_and_a_port() {
        let parsed = |url| {
            Address::parse(url)
                .map(|address| (address.scheme, address.host.to_string(), address.port))
                .map_err(|error| error.to_string())
        };
        assert_eq!(parsed("tcp://a:4000"), Ok((Scheme::Tcp, "a".into(), 4000)));
        assert_eq!(parsed("wss://play.example/x"), Ok((Scheme::Wss, "play.example".into(), 443)));
        assert_eq!(parsed("tls://[::1]:4000"), Ok((Scheme::Tls, "::1".into(), 4000)));
        for (url, what) in [
            ("127.0.0.1:4000", "no scheme"),
            ("http://a:1", "none of tcp"),
            ("tcp://a", "no port"),
            ("tcp://:1", "no host"),
            ("tcp://a:70000", "65535"),
            ("tcp://a:1/x", "a path"),
            ("tcp://[::1:1", "]"),
            ("ws://me@a", "user"),
        ] {
            let error = parsed(url).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
