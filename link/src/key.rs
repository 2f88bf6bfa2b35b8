use std::{fmt, str::FromStr};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// The secret that makes a process a member of the cluster: 32 bytes, 64 hexadecimal digits as text. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey([u8; 32]);

impl ClusterKey {
    /// A fresh one from the system's randomness.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The key as text, for the file that it is kept in and for nothing else.
    pub fn expose(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A secret for another purpose, from which this key can't be found.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        self.mac(&[b"greenroom derive v1", purpose.as_bytes()])
    }

    pub(crate) fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        for part in parts {
            // With its length before it, no two lists of parts are the same bytes.
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    pub(crate) fn verify(&self, parts: &[&[u8]], proof: &[u8; 32]) -> bool {
        self.mac(parts).ct_eq(proof).into()
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("ClusterKey(***)")
    }
}

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cluster key is 64 hexadecimal digits; `greenroom up` makes one in its data folder")]
pub struct NotAKey;

impl FromStr for ClusterKey {
    type Err = NotAKey;
    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let text = text.trim();
        if text.len() != 64 || !text.is_ascii() {
            return Err(NotAKey);
        }
        let mut bytes = [0; 32];
        for (place, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *place = str::from_utf8(digits)
                .ok()
                .and_then(|two| u8::from_str_radix(two, 16).ok())
                .ok_or(NotAKey)?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_and_is_never_printed() {
        let key = ClusterKey::generate().unwrap();
        assert_eq!(key.expose().parse(), Ok(key.clone()));
        assert_eq!(format!("{key:?}"), "ClusterKey(***)");
        assert_eq!("abc".parse::<ClusterKey>(), Err(NotAKey));
    }

    #[test]
    fn derived_secrets_differ_by_purpose() {
        let key = ClusterKey::generate().unwrap();
        assert_ne!(key.derive("guests"), key.derive("ids"));
    }
}
