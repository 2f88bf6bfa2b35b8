//! Which session servers there are, and in which order to try them.

use std::path::{Path, PathBuf};

use greenroom_protocol::wire::client_session::SessionServer;

use crate::ClientError;
use crate::address::{Address, Scheme};
use crate::random::Dice;

/// Addresses that are kept of what a server says: no cluster has more, and a list from outside needs an end.
const LEARNED_MAX: usize = 1_024;

/// The well-known session servers, and those that the cluster told of.
#[derive(Debug)]
pub(crate) struct ServerBook {
    well_known: Vec<Address>,
    learned: Vec<Address>,
    /// Of the addresses that the application gave, or that its file holds if it gave none. Others are never used: who
    /// asked for TLS is not to be talked out of it by a list.
    schemes: Vec<Scheme>,
    file: Option<PathBuf>,
}

impl ServerBook {
    /// A book with what the application knows and what an earlier start left in `file`.
    pub(crate) fn new(
        well_known: Vec<Address>,
        file: Option<PathBuf>,
    ) -> Result<Self, ClientError> {
        let schemes = well_known.iter().map(|address| address.scheme).collect();
        let mut book = Self { well_known, learned: Vec::new(), schemes, file };
        if let Some(path) = &book.file {
            match std::fs::read_to_string(path) {
                Ok(text) => book.learned = book.usable(text.lines()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(ClientError::File { path: path.display().to_string(), source });
                }
            }
        }
        if book.well_known.is_empty() && book.learned.is_empty() {
            return Err(ClientError::NoAddress);
        }
        if book.schemes.is_empty() {
            book.schemes = book.learned.iter().map(|address| address.scheme).collect();
        }
        Ok(book)
    }

    /// Whether some address needs TLS.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.schemes.iter().any(|scheme| scheme.is_encrypted())
    }

    /// The addresses among `urls` that may be used; all, as long as there is none to compare with.
    fn usable<'a>(&self, urls: impl Iterator<Item = &'a str>) -> Vec<Address> {
        let mut usable: Vec<Address> = Vec::new();
        for address in urls.filter_map(|url| Address::parse(url.trim()).ok()).take(LEARNED_MAX) {
            let asked_for = self.schemes.is_empty() || self.schemes.contains(&address.scheme);
            if asked_for && !usable.contains(&address) {
                usable.push(address);
            }
        }
        usable
    }

    /// Takes a list from a session server. An empty one says nothing.
    pub(crate) fn learn(&mut self, servers: &[SessionServer]) -> Option<Saving> {
        let urls = servers.iter().flat_map(|server| &server.urls).map(|url| url.as_str());
        let learned = self.usable(urls);
        if learned.is_empty() || learned == self.learned {
            return None;
        }
        self.learned = learned;
        let text = self.learned.iter().map(|address| format!("{}\n", address.url)).collect();
        self.file.clone().map(|path| Saving { path, text })
    }

    /// Whether there is another address than `current` among what the cluster told of.
    pub(crate) fn has_other_than(&self, current: &Address) -> bool {
        self.learned.iter().any(|address| address != current)
    }

    /// One round: what the cluster told of first, then the well-known ones, each in random order; `last` comes last,
    /// since the client just lost it.
    pub(crate) fn round(&self, dice: &mut Dice, last: Option<&Address>) -> Vec<Address> {
        let mut round = self.learned.clone();
        dice.shuffle(&mut round);
        let mut rest = self.well_known.clone();
        dice.shuffle(&mut rest);
        rest.retain(|address| !round.contains(address));
        round.append(&mut rest);
        // Stable: only `last` moves.
        round.sort_by_key(|address| Some(address) == last);
        round
    }
}

/// A list that is to be written to its file.
#[derive(Debug)]
pub(crate) struct Saving {
    path: PathBuf,
    text: String,
}

impl Saving {
    /// Writes beside the file and renames, so that a crash leaves the old list or the new one.
    pub(crate) fn save(&self) -> std::io::Result<()> {
        let beside = beside(&self.path);
        std::fs::write(&beside, &self.text)?;
        std::fs::rename(&beside, &self.path)
    }
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(urls: &[&str]) -> ServerBook {
        let well_known = urls.iter().map(|url| Address::parse(url).unwrap()).collect();
        ServerBook::new(well_known, None).unwrap()
    }
    fn server(urls: &[&str]) -> SessionServer {
        SessionServer { name: "s".into(), urls: urls.iter().map(|&url| url.into()).collect() }
    }
    fn urls(round: &[Address]) -> Vec<&str> {
        round.iter().map(|address| address.url.as_str()).collect()
    }

    #[test]
    fn what_the_cluster_told_of_is_tried_first_and_the_lost_one_last() {
        let mut book = book(&["tcp://a:1"]);
        book.learn(&[server(&["tcp://b:1", "ws://b:2", "tcp://a:1"]), server(&["nonsense"])]);
        let lost = Address::parse("tcp://b:1").unwrap();
        let mut dice = Dice::seeded(1);
        assert_eq!(urls(&book.round(&mut dice, Some(&lost))), ["tcp://a:1", "tcp://b:1"]);
        book.learn(&[server(&["tcp://b:1"])]);
        assert_eq!(urls(&book.round(&mut dice, None)), ["tcp://b:1", "tcp://a:1"]);
        book.learn(&[]);
        assert_eq!(urls(&book.round(&mut dice, None)).len(), 2, "an empty list says nothing");
    }

    #[test]
    fn a_list_does_not_talk_anybody_out_of_encryption() {
        let mut book = book(&["tls://a:1"]);
        assert!(book.is_encrypted());
        book.learn(&[server(&["tcp://b:1", "tls://b:2"])]);
        let mut round = book.round(&mut Dice::seeded(1), None);
        round.sort_by(|a, b| a.url.cmp(&b.url));
        assert_eq!(urls(&round), ["tls://a:1", "tls://b:2"]);
    }

    #[test]
    fn every_well_known_server_is_the_first_pick_sometimes() {
        let book = book(&["tcp://a:1", "tcp://b:1", "tcp://c:1"]);
        let mut dice = Dice::seeded(7);
        let firsts: std::collections::BTreeSet<_> =
            (0..50).map(|_| book.round(&mut dice, None)[0].url.clone()).collect();
        assert_eq!(firsts.len(), 3);
    }
}
