//! Who may come in: credentials go in, a user or a reasoned "no" comes out.
//!
//! An [`Authenticator`] knows one scheme; [`Authenticators`] has all that a cluster accepts, and counts attempts.
//! Built in are `guest` (a text that the client made up stands for the user), `jwt` (tokens signed by the studio)
//! and `http` (the studio's own service decides).

mod attempts;
mod guest;
mod http;
mod jwt;
mod secret;

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ecow::{EcoString, eco_format};
use greenroom_protocol::{Code, Moment, Refusal, UserId, wire::client_session::Credentials};
use serde::Deserialize;

pub use attempts::{AttemptLimits, Attempts};
pub use http::HttpConfig;
pub use jwt::{JwtAlgorithm, JwtConfig, JwtKey};
pub use secret::Secret;

/// A user, as an authenticator decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Stable over sessions and devices.
    pub user: UserId,
    /// To be shown; not unique, and nothing is decided by it.
    pub name: EcoString,
}

/// A check that is under way. Dropping it gives it up.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Result<Identity, Refusal>> + Send + 'a>>;

/// Checks the credentials of one scheme.
pub trait Authenticator: Send + Sync {
    /// The scheme, as credentials name it.
    fn scheme(&self) -> &str;

    /// Says who that is, or why not. The refusal goes to the client as it is: it says what is wrong and what to
    /// do, and holds nothing of the token. [`Code::AuthUnavailable`] and [`Code::Busy`] are not the client's
    /// failures; everything else counts as one.
    fn check(&self, credentials: Credentials) -> Checking<'_>;

    /// Whose account unchecked credentials are for, if failures are to be counted by it. Only where a secret could
    /// be guessed, as a password: else anybody could use up the attempts of anybody.
    fn account<'a>(&self, credentials: &'a Credentials) -> Option<&'a str> {
        let _ = credentials;
        None
    }
}

/// The `[auth]` table of the configuration: who may check in. Without any of it, guests are welcome in development,
/// and elsewhere the server does not start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// Users without an account, who are known by a token that their client made up. Default: in development only.
    pub guest: Option<bool>,
    /// Tokens that the studio signs.
    pub jwt: Option<JwtConfig>,
    /// The studio's own service decides.
    pub http: Option<HttpConfig>,
    /// How often somebody may try.
    pub attempts: AttemptLimits,
}

/// Where a server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the machine of somebody who tries something: what is not configured is convenient.
    Development,
    /// Where players are: what is not configured is refused.
    Production,
}

/// Why a server can't check credentials as configured, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// There is no authenticator at all.
    #[error(
        "nobody could check in: say in [session.auth] how users are known: [session.auth.jwt] for tokens that you \
         sign, [session.auth.http] for a service of yours that decides, or guest = true to let everybody in without \
         an account"
    )]
    Nothing,
    /// Two authenticators would answer to one scheme.
    #[error("two authenticators answer to the scheme {0:?}; give each its own")]
    SchemeTwice(String),
    /// A file of the configuration can't be read.
    #[error("reading {what} {}", path.display())]
    Read {
        /// What it is for.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: EcoString,
    },
    /// A value can't be used.
    #[error("auth.{setting}: {problem}")]
    Setting {
        /// Which, below `auth`.
        setting: &'static str,
        /// What is wrong and what to do.
        problem: EcoString,
    },
}

impl AuthError {
    fn file(path: &Path, problem: impl Into<EcoString>) -> Self {
        Self::File { path: path.to_owned(), problem: problem.into() }
    }
    fn setting(setting: &'static str, problem: impl Into<EcoString>) -> Self {
        Self::Setting { setting, problem: problem.into() }
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, AuthError> {
    std::fs::read(path).map_err(|source| AuthError::Read { what, path: path.to_owned(), source })
}

/// Everybody who can say who a client is, by scheme.
pub struct Authenticators {
    /// Few, so that a list is the fastest map.
    list: Vec<Box<dyn Authenticator>>,
    attempts: Mutex<Attempts>,
}

impl Authenticators {
    /// Those of the configuration, then the studio's own. Ids of guests are made with the cluster's secret, so that
    /// every session server gives the same.
    ///
    /// # Errors
    /// When nobody could check in, a key can't be used, or two answer to one scheme.
    pub fn new(
        config: &AuthConfig,
        place: Place,
        cluster_secret: &[u8],
        custom: Vec<Box<dyn Authenticator>>,
    ) -> Result<Self, AuthError> {
        let mut list: Vec<Box<dyn Authenticator>> = Vec::new();
        if config.guest.unwrap_or(place == Place::Development) {
            list.push(Box::new(guest::Guest::new(cluster_secret)));
        }
        if let Some(jwt) = &config.jwt {
            list.push(Box::new(jwt::Jwt::new(jwt)?));
        }
        if let Some(http) = &config.http {
            list.push(Box::new(http::Http::new(http)?));
        }
        list.extend(custom);
        if list.is_empty() {
            return Err(AuthError::Nothing);
        }
        for (place, one) in list.iter().enumerate() {
            if list[..place].iter().any(|other| other.scheme() == one.scheme()) {
                return Err(AuthError::SchemeTwice(one.scheme().to_owned()));
            }
        }
        Ok(Self { list, attempts: Mutex::new(Attempts::new(config.attempts.clone())) })
    }

    /// The schemes that are accepted.
    pub fn schemes(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|authenticator| authenticator.scheme())
    }

    /// Says who that is, or why not, and counts the attempt.
    ///
    /// # Errors
    /// [`Code::RateLimited`], [`Code::SchemeUnknown`], or what the authenticator of the scheme says.
    pub async fn check(
        &self,
        from: IpAddr,
        now: Moment,
        credentials: Credentials,
    ) -> Result<Identity, Refusal> {
        self.attempts().address(from, now)?;
        let scheme = credentials.scheme.clone();
        let Some(authenticator) = self.list.iter().find(|one| one.scheme() == scheme) else {
            let accepted: Vec<_> = self.schemes().collect();
            return Err(Refusal::new(
                Code::SchemeUnknown,
                eco_format!(
                    "this cluster does not accept the scheme {}; it accepts: {}",
                    quoted(&scheme),
                    accepted.join(", "),
                ),
            ));
        };
        let account = authenticator.account(&credentials).map(EcoString::from);
        if let Some(account) = &account {
            self.attempts().account(&scheme, account, now)?;
        }
        let answer = authenticator.check(credentials).await;
        let failed = answer
            .as_ref()
            .is_err_and(|refusal| !matches!(refusal.code, Code::AuthUnavailable | Code::Busy));
        if let Some(account) = account.filter(|_| !failed) {
            self.attempts().forgive(&scheme, &account);
        }
        answer
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        // The table is whole between any two of its lines.
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Authenticators {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_list().entries(self.schemes()).finish()
    }
}

/// The longest name that is shown, in characters.
const NAME_CHARS_MAX: usize = 32;
/// The longest text of somebody else that is passed on, in bytes.
const MESSAGE_BYTES_MAX: usize = 256;

/// Neither a control character nor one that turns the direction of the text around it.
fn is_shown(letter: char) -> bool {
    !letter.is_control()
        && !matches!(letter, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{feff}')
        && !matches!(letter, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A name that can be shown anywhere, or nothing if nothing is left of it.
fn clean_name(name: &str) -> Option<EcoString> {
    let shown: EcoString = name.chars().filter(|&letter| is_shown(letter)).collect();
    let end = shown.trim().char_indices().nth(NAME_CHARS_MAX).map(|(end, _)| end);
    let name = end.map_or(shown.trim(), |end| shown.trim()[..end].trim_end());
    (!name.is_empty()).then(|| name.into())
}

/// A text of somebody else that can be shown and logged.
fn clean_message(message: &str) -> EcoString {
    let shown: EcoString = message.chars().filter(|&letter| is_shown(letter)).collect();
    shown.trim()[..shown.trim().floor_char_boundary(MESSAGE_BYTES_MAX)].into()
}

/// A short text of the client's within a message for it.
fn quoted(text: &str) -> EcoString {
    eco_format!("{:?}", clean_name(text).unwrap_or_default())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Files of a test, which go when it ends.
    pub(crate) struct Files(tempfile::TempDir);
    impl Files {
        pub(crate) fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }
        pub(crate) fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }
        pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
            std::fs::write(self.path(name), content).unwrap();
        }
    }

    /// Knows one password.
    struct Password;
    impl Authenticator for Password {
        fn scheme(&self) -> &str {
            "password"
        }
        fn check(&self, credentials: Credentials) -> Checking<'_> {
            Box::pin(async move {
                match &*credentials.token {
                    "open sesame" => Ok(Identity {
                        user: UserId::new(credentials.name.clone()).unwrap(),
                        name: credentials.name,
                    }),
                    "away" => Err(Refusal::new(Code::AuthUnavailable, "try again later")),
                    _ => Err(Refusal::new(Code::CredentialsInvalid, "not the password")),
                }
            })
        }
        fn account<'a>(&self, credentials: &'a Credentials) -> Option<&'a str> {
            Some(&credentials.name)
        }
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn with_password() -> Authenticators {
        let config = AuthConfig::default();
        Authenticators::new(&config, Place::Development, b"secret", vec![Box::new(Password)])
            .unwrap()
    }
    fn credentials(scheme: &str, token: &str, name: &str) -> Credentials {
        Credentials { scheme: scheme.into(), token: token.into(), name: name.into() }
    }

    #[tokio::test]
    async fn credentials_go_to_the_authenticator_of_their_scheme() {
        let all = with_password();
        let check = |credentials| all.check(HERE, Moment(0), credentials);
        let ann = check(credentials("password", "open sesame", "ann")).await.unwrap();
        assert_eq!(ann.user.as_str(), "ann");
        let guest = check(credentials("guest", "0123456789abcdef", "Ann")).await.unwrap();
        assert!(guest.user.as_str().starts_with("guest-"));
    }

    #[tokio::test]
    async fn an_unknown_scheme_is_told_which_are_accepted() {
        let scheme = "o\u{202e}auth\n".to_owned() + &"x".repeat(1000);
        let refusal =
            with_password().check(HERE, Moment(0), credentials(&scheme, "", "")).await.unwrap_err();
        assert_eq!(refusal.code, Code::SchemeUnknown);
        assert!(refusal.message.ends_with("it accepts: guest, password"), "{refusal}");
        assert!(refusal.message.len() < 150, "{refusal}");
    }

    #[tokio::test]
    async fn guessing_at_an_account_ends_after_five_failures() {
        let all = with_password();
        let check = |token, name| all.check(HERE, Moment(0), credentials("password", token, name));
        for _ in 0..20 {
            check("open sesame", "ann").await.unwrap();
            assert_eq!(check("away", "ann").await.unwrap_err().code, Code::AuthUnavailable);
        }
        for _ in 0..5 {
            assert_eq!(check("guess", "ann").await.unwrap_err().code, Code::CredentialsInvalid);
        }
        assert_eq!(check("open sesame", "ann").await.unwrap_err().code, Code::RateLimited);
        check("open sesame", "bo").await.unwrap();
    }

    #[tokio::test]
    async fn an_address_that_tries_too_often_is_refused_whatever_it_brings() {
        let all = with_password();
        let check = || all.check([192, 0, 2, 1].into(), Moment(0), credentials("nonsense", "", ""));
        for _ in 0..20 {
            assert_eq!(check().await.unwrap_err().code, Code::SchemeUnknown);
        }
        assert_eq!(check().await.unwrap_err().code, Code::RateLimited);
    }

    #[test]
    fn a_server_for_players_does_not_start_without_an_authenticator() {
        let new = |config: &str, place| {
            Authenticators::new(&toml::from_str(config).unwrap(), place, b"secret", Vec::new())
        };
        let error = new("", Place::Production).unwrap_err();
        assert!(matches!(error, AuthError::Nothing));
        assert!(error.to_string().contains("[session.auth.jwt]"), "{error}");
        assert!(new("guest = false", Place::Development).is_err());
        assert_eq!(
            format!("{:?}", new("guest = true", Place::Production).unwrap()),
            r#"["guest"]"#
        );
        assert_eq!(format!("{:?}", new("", Place::Development).unwrap()), r#"["guest"]"#);
    }

    #[test]
    fn a_scheme_has_one_authenticator() {
        let twice: Vec<Box<dyn Authenticator>> = vec![Box::new(Password), Box::new(Password)];
        let made = Authenticators::new(&AuthConfig::default(), Place::Production, b"", twice);
        assert!(
            matches!(made.unwrap_err(), AuthError::SchemeTwice(scheme) if scheme == "password")
        );
    }

    #[test]
    fn a_misspelt_key_is_named() {
        for config in ["gest = true", "[attempts]\naddress = 3", "[jwt]\naudience = 'a'\nkey = 'b'"]
        {
            let error = toml::from_str::<AuthConfig>(config).unwrap_err().to_string();
            assert!(error.contains("unknown field"), "{error}");
        }
    }

    #[test]
    fn a_name_is_cleaned_and_cut() {
        assert_eq!(clean_name("  Ann\u{0}\u{202e} B\n ").unwrap(), "Ann B");
        assert_eq!(clean_name(&"ü".repeat(100)).unwrap().chars().count(), 32);
        assert_eq!(clean_name("\t\u{feff} "), None);
        assert_eq!(clean_name("👩‍🚀").unwrap(), "👩‍🚀", "a joiner holds an emoji together");
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let cut = clean_message(&format!("\u{7}x{}", "ü".repeat(200)));
        assert_eq!(cut.len(), 255);
        assert_eq!(clean_message(" banned\r\n"), "banned");
    }
}
