use std::{fmt, str::FromStr};

use subtle::ConstantTimeEq;

/// The secret that lets an operator act: 64 hexadecimal digits. Never printed.
#[derive(Clone)]
pub struct AdminToken(String);

impl AdminToken {
    const DIGITS: usize = 64;

    /// A fresh one from the system's randomness.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; Self::DIGITS / 2];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The token as text, for the file that it is kept in and the header that it is sent in.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `given` is this token, in a time that says nothing of how much of it is right.
    pub(crate) fn is(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("AdminToken(***)")
    }
}

/// A text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an admin token is 64 hexadecimal digits; the cluster makes one in its data folder")]
pub struct NotAToken;

impl FromStr for AdminToken {
    type Err = NotAToken;
    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let text = text.trim();
        let is_token =
            text.len() == Self::DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_token { Ok(Self(text.to_ascii_lowercase())) } else { Err(NotAToken) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_is_never_printed() {
        let token = AdminToken::generate().unwrap();
        assert!(token.is(token.expose().parse::<AdminToken>().unwrap().expose()));
        assert_eq!(format!("{token:?}"), "AdminToken(***)");
        assert!(!token.is("") && !token.is(AdminToken::generate().unwrap().expose()));
        assert_eq!("secret".parse::<AdminToken>().unwrap_err(), NotAToken);
    }
}
