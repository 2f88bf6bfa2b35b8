//! The server's half of SCRAM (RFC 5802), and PLAIN (RFC 4616).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

/// Rounds of the password's hash: the least that RFC 7677 allows. A test gains nothing from more.
const ROUNDS: u32 = 4096;

/// Which hash the two sides use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hash {
    /// SCRAM-SHA1.
    Sha1,
    /// SCRAM-SHA256.
    Sha256,
    /// SCRAM-SHA512.
    Sha512,
}

impl Hash {
    /// By the name of the mechanism.
    pub(crate) fn of_mechanism(name: &[u8]) -> Option<Self> {
        match name {
            b"SCRAM-SHA512" => Some(Self::Sha512),
            b"SCRAM-SHA256" => Some(Self::Sha256),
            b"SCRAM-SHA1" => Some(Self::Sha1),
            _ => None,
        }
    }

    fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => Sha1::digest(bytes).to_vec(),
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }

    fn hmac(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        fn run<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
            let mut mac = <M as KeyInit>::new_from_slice(key).expect("a key of any length will do");
            for part in parts {
                mac.update(part);
            }
            mac.finalize().into_bytes().to_vec()
        }
        match self {
            Self::Sha1 => run::<Hmac<Sha1>>(key, parts),
            Self::Sha256 => run::<Hmac<Sha256>>(key, parts),
            Self::Sha512 => run::<Hmac<Sha512>>(key, parts),
        }
    }

    /// `Hi` of RFC 5802, section 2.2.
    fn salted(self, password: &[u8], salt: &[u8]) -> Vec<u8> {
        let mut block = self.hmac(password, &[salt, &1_u32.to_be_bytes()]);
        let mut salted = block.clone();
        for _ in 1..ROUNDS {
            block = self.hmac(password, &[&block]);
            xor(&mut salted, &block);
        }
        salted
    }
}

fn xor(into: &mut [u8], other: &[u8]) {
    for (into, other) in into.iter_mut().zip(other) {
        *into ^= other;
    }
}

/// A conversation after the client's first message.
#[derive(Debug)]
pub(crate) struct Exchange {
    hash: Hash,
    /// Who the client says it is.
    pub(crate) user: String,
    nonce: String,
    salt: Vec<u8>,
    client_first_bare: String,
    server_first: String,
}

impl Exchange {
    /// Reads the client's first message. `seed` makes the nonce and the salt, which need not be secret in a test.
    /// Gives the exchange and what to send; nothing for a message that is none.
    pub(crate) fn start(hash: Hash, message: &[u8], seed: u64) -> Option<(Self, Vec<u8>)> {
        let message = std::str::from_utf8(message).ok()?;
        let bare = message.strip_prefix("n,,")?;
        let mut fields = bare.split(',');
        let user = fields.next()?.strip_prefix("n=")?.replace("=2C", ",").replace("=3D", "=");
        let client_nonce = fields.next()?.strip_prefix("r=")?;
        let nonce = format!("{client_nonce}{seed:016x}");
        let salt = seed.to_le_bytes().repeat(2);
        let server_first = format!("r={nonce},s={},i={ROUNDS}", STANDARD.encode(&salt));
        let exchange = Self {
            hash,
            user,
            nonce,
            salt,
            client_first_bare: bare.to_owned(),
            server_first: server_first.clone(),
        };
        Some((exchange, server_first.into_bytes()))
    }

    /// Reads the client's proof. Gives what proves the server to the client, or nothing when the password is another.
    pub(crate) fn finish(&self, message: &[u8], password: &str) -> Option<Vec<u8>> {
        let message = std::str::from_utf8(message).ok()?;
        let (without_proof, proof) = message.rsplit_once(",p=")?;
        let nonce = without_proof.strip_prefix("c=biws,r=")?;
        if nonce != self.nonce {
            return None;
        }
        let proof = STANDARD.decode(proof).ok()?;
        let salted = self.hash.salted(password.as_bytes(), &self.salt);
        let spoken = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let client_key = self.hash.hmac(&salted, &[b"Client Key"]);
        let stored_key = self.hash.digest(&client_key);
        let mut expected = self.hash.hmac(&stored_key, &[spoken.as_bytes()]);
        xor(&mut expected, &client_key);
        if proof != expected {
            return None;
        }
        let server_key = self.hash.hmac(&salted, &[b"Server Key"]);
        let signature = self.hash.hmac(&server_key, &[spoken.as_bytes()]);
        Some(format!("v={}", STANDARD.encode(signature)).into_bytes())
    }
}

/// Reads PLAIN's only message: the user and the password.
pub(crate) fn plain(message: &[u8]) -> Option<(&str, &str)> {
    let mut fields = message.split(|byte| *byte == 0).skip(1);
    let user = std::str::from_utf8(fields.next()?).ok()?;
    let password = std::str::from_utf8(fields.next()?).ok()?;
    fields.next().is_none().then_some((user, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client would send, made by the same functions from the client's side.
    fn proof(exchange: &Exchange, password: &str) -> Vec<u8> {
        let hash = exchange.hash;
        let without_proof = format!("c=biws,r={}", exchange.nonce);
        let spoken =
            format!("{},{},{without_proof}", exchange.client_first_bare, exchange.server_first);
        let salted = hash.salted(password.as_bytes(), &exchange.salt);
        let mut proof = hash.hmac(&salted, &[b"Client Key"]);
        let signature = hash.hmac(&hash.digest(&proof), &[spoken.as_bytes()]);
        xor(&mut proof, &signature);
        format!("{without_proof},p={}", STANDARD.encode(proof)).into_bytes()
    }

    #[test]
    fn the_right_password_is_let_in_and_another_is_not_with_every_hash() {
        for name in [&b"SCRAM-SHA1"[..], b"SCRAM-SHA256", b"SCRAM-SHA512"] {
            let hash = Hash::of_mechanism(name).unwrap();
            let (exchange, _) = Exchange::start(hash, b"n,,n=a=2Cb,r=abc", 7).unwrap();
            assert_eq!(exchange.user, "a,b");
            assert!(exchange.finish(&proof(&exchange, "secret"), "secret").is_some());
            assert!(exchange.finish(&proof(&exchange, "guess"), "secret").is_none());
        }
    }

    /// The example of RFC 5802, section 5, as far as it does not hang on the server's nonce.
    #[test]
    fn the_salted_password_is_that_of_the_rfc() {
        let salt = STANDARD.decode("QSXCR+Q6sek8bf92").unwrap();
        let client_first_bare = "n=user,r=fyko+d2lbbFgONRv9qkxdawL".to_owned();
        let nonce = "fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j";
        let exchange = Exchange {
            hash: Hash::Sha1,
            user: "user".to_owned(),
            nonce: nonce.to_owned(),
            salt,
            client_first_bare,
            server_first: format!("r={nonce},s=QSXCR+Q6sek8bf92,i=4096"),
        };
        let message = format!("c=biws,r={nonce},p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=");
        let server = exchange.finish(message.as_bytes(), "pencil").unwrap();
        assert_eq!(server, b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=");
    }

    #[test]
    fn plain_has_a_user_and_a_password() {
        assert_eq!(plain(b"\0ann\0secret"), Some(("ann", "secret")));
        assert_eq!(plain(b"ann\0secret"), None);
        assert_eq!(plain(b"\0a\0b\0c"), None);
    }
}
