//! As much of HTTP/1.1 as a stand-in for a service needs: whole messages with a known length.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// A request or an answer: its first line, its headers, its body.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) first: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(of, _)| of.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Reads one; nothing at the end of the connection.
    pub(crate) fn read(from: &mut BufReader<TcpStream>) -> io::Result<Option<Self>> {
        let mut first = String::new();
        if from.read_line(&mut first)? == 0 {
            return Ok(None);
        }
        let mut message = Self { first: first.trim_end().into(), headers: vec![], body: vec![] };
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            let line = line.trim_end();
            let Some((name, value)) = line.split_once(':') else { break };
            message.headers.push((name.into(), value.trim().into()));
        }
        if message.header("expect").is_some() {
            from.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let length = message.header("content-length").map_or(0, |text| text.parse().unwrap());
        message.body.resize(length, 0);
        from.read_exact(&mut message.body)?;
        Ok(Some(message))
    }

    /// Writes it, with the length that its body has.
    pub(crate) fn write(&self, to: &mut TcpStream) -> io::Result<()> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            if !["content-length", "connection", "expect"].contains(&&*name.to_lowercase()) {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        text.push_str(&format!("content-length: {}\r\n\r\n", self.body.len()));
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&self.body);
        to.write_all(&bytes)
    }

    /// Says it to a server, and gives the answer.
    pub(crate) fn ask(&self, port: u16) -> io::Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        self.write(&mut stream)?;
        let answer = Self::read(&mut BufReader::new(stream))?;
        answer.ok_or_else(|| io::Error::other("closed without an answer"))
    }
}
