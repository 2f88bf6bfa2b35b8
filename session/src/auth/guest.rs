//! `guest`: a user is whoever holds the token that the client made up.

use ecow::eco_format;
use greenroom_protocol::{Code, Refusal, UserId, wire::client_session::Credentials};

use super::{Authenticator, Checking, Identity, clean_name};

/// How many characters a token has. The lower end makes a random one hard to guess.
const TOKEN_CHARS: std::ops::RangeInclusive<usize> = 16..=128;
/// Characters of the id after `guest-`, 5 bits each.
const ID_CHARS: usize = 13;

pub(crate) struct Guest {
    /// Known to this cluster only: who sees an id can't test guesses of its token.
    key: [u8; 32],
}

impl Guest {
    pub(crate) fn new(cluster_secret: &[u8]) -> Self {
        Self { key: blake3::derive_key("greenroom 2026-11 ids of guests", cluster_secret) }
    }

    fn identify(&self, credentials: &Credentials) -> Result<Identity, Refusal> {
        let refused = |message| Err(Refusal::new(Code::CredentialsInvalid, message));
        let chars = credentials.token.chars().count();
        if chars == 0 {
            return refused(
                "a guest needs a token: let the client make a random text of at least 16 characters once, \
                 keep it, and send it at each check-in; it stands for the user"
                    .into(),
            );
        }
        if !TOKEN_CHARS.contains(&chars) {
            return refused(eco_format!(
                "a guest's token has {} to {} characters, and this one has {chars}; make a random one once \
                 and keep it",
                TOKEN_CHARS.start(),
                TOKEN_CHARS.end(),
            ));
        }
        let name = clean_name(&credentials.name).unwrap_or_else(|| "Guest".into());
        Ok(Identity { user: self.user(&credentials.token), name })
    }

    fn user(&self, token: &str) -> UserId {
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let hash = blake3::keyed_hash(&self.key, token.as_bytes());
        let mut bits = u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("32 bytes"));
        let mut id = String::from("guest-");
        for _ in 0..ID_CHARS {
            id.push(char::from(ALPHABET[usize::from((bits & 31) as u8)]));
            bits >>= 5;
        }
        UserId::new(id).expect("19 visible characters name a user")
    }
}

impl Authenticator for Guest {
    fn scheme(&self) -> &str {
        "guest"
    }
    fn check(&self, credentials: Credentials) -> Checking<'_> {
        Box::pin(std::future::ready(self.identify(&credentials)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(token: &str, name: &str) -> Credentials {
        Credentials { scheme: "guest".into(), token: token.into(), name: name.into() }
    }
    fn user_of(cluster: &str, token: &str) -> UserId {
        Guest::new(cluster.as_bytes()).identify(&credentials(token, "")).unwrap().user
    }

    #[test]
    fn a_token_is_a_user_and_says_nothing_without_the_clusters_secret() {
        let ann = user_of("cluster", "0123456789abcdef");
        assert_eq!(ann, user_of("cluster", "0123456789abcdef"));
        assert_ne!(ann, user_of("cluster", "0123456789abcdeg"));
        assert_ne!(ann, user_of("another", "0123456789abcdef"));
        assert_eq!(ann.as_str().len(), "guest-".len() + 13);
        assert!(ann.as_str().starts_with("guest-"));
    }

    #[test]
    fn a_guest_without_a_usable_token_is_told_to_make_one() {
        let guest = Guest::new(b"cluster");
        for token in ["", "short", &"x".repeat(129)] {
            let refusal = guest.identify(&credentials(token, "Ann")).unwrap_err();
            assert_eq!(refusal.code, Code::CredentialsInvalid);
            assert!(refusal.message.contains("random"), "{refusal}");
        }
        assert!(guest.identify(&credentials(&"ü".repeat(128), "Ann")).is_ok());
    }

    #[test]
    fn a_guest_has_a_name() {
        let guest = Guest::new(b"cluster");
        let name = |name| guest.identify(&credentials("0123456789abcdef", name)).unwrap().name;
        assert_eq!(name("Ann"), "Ann");
        assert_eq!(name(" \u{7} "), "Guest");
    }
}
