//! `jwt`: tokens that the studio signs (RFC 7519), checked with its public key or a shared secret.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ecow::{EcoString, eco_format};
use greenroom_protocol::{Code, Refusal, UserId, wire::client_session::Credentials};
use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind,
    crypto::aws_lc::DEFAULT_PROVIDER,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;

use super::{AuthError, Authenticator, Checking, Identity, clean_name, quoted, read};

/// The `[auth.jwt]` table of the configuration: which tokens let a user in. A token's `sub` is the user's id, its
/// `name`, if it has one, the name that is shown; `exp`, `sub` and `aud` are required.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// Keys in files of their own. Algorithms are accepted only for the keys that are there.
    #[serde(default)]
    pub keys: Vec<JwtKey>,
    /// A JWKS file (RFC 7517), besides `keys` or instead; read at the start. Keys in it that this cluster can't use
    /// are passed over.
    #[serde(default)]
    pub jwks: Option<PathBuf>,
    /// What a token's `aud` must be or contain: it names this cluster, so that a token for another service of the
    /// studio is of no use here.
    pub audience: String,
    /// What a token's `iss` must be. Default: not looked at.
    #[serde(default)]
    pub issuer: Option<String>,
    /// How far the clocks of who signs and who checks may be apart; "30s".
    #[serde(default = "leeway", with = "humantime_serde")]
    pub leeway: Duration,
    /// Tokens that are valid for longer are refused, since one that leaks can't be called back; "24h".
    #[serde(default = "lifetime_max", with = "humantime_serde")]
    pub lifetime_max: Duration,
}

fn leeway() -> Duration {
    Duration::from_secs(30)
}
fn lifetime_max() -> Duration {
    Duration::from_secs(24 * 60 * 60)
}

/// A key in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtKey {
    /// A public key as PEM for `EdDSA` and `RS256`; for `HS256` the secret itself, at least 32 bytes, where one line
    /// break at the end does not belong to it.
    pub file: PathBuf,
    /// The only algorithm that the key is used with.
    pub algorithm: JwtAlgorithm,
    /// The token's `kid`. Default: the key is tried for every token of its algorithm.
    #[serde(default)]
    pub id: Option<String>,
}

/// How a token is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256: who can check a token can also make one.
    HS256,
    /// Ed25519 signatures (RFC 8037).
    EdDSA,
    /// RSA signatures with PKCS #1 padding and SHA-256, by a key of 2,048 bits or more.
    RS256,
}

impl JwtAlgorithm {
    fn named(name: &str) -> Option<Self> {
        match name {
            "HS256" => Some(Self::HS256),
            "EdDSA" => Some(Self::EdDSA),
            "RS256" => Some(Self::RS256),
            _ => None,
        }
    }
    fn name(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::EdDSA => "EdDSA",
            Self::RS256 => "RS256",
        }
    }
    fn algorithm(self) -> Algorithm {
        match self {
            Self::HS256 => Algorithm::HS256,
            Self::EdDSA => Algorithm::EdDSA,
            Self::RS256 => Algorithm::RS256,
        }
    }
}

/// More would let one token cost many checks of signatures; a studio that rotates its keys has two or three.
const KEYS_MAX: usize = 32;
/// A secret as long as the hash (RFC 7518, 3.2).
const SECRET_BYTES_MIN: usize = 32;
/// 2,048 bits.
const MODULUS_BYTES_MIN: usize = 256;
/// The longest token; frames before check-in are no longer either.
const TOKEN_BYTES_MAX: usize = 4096;

struct Key {
    id: Option<String>,
    algorithm: JwtAlgorithm,
    key: DecodingKey,
}

pub(crate) struct Jwt {
    keys: Vec<Key>,
    audience: String,
    issuer: Option<String>,
    leeway: f64,
    lifetime_max: f64,
}

impl Jwt {
    pub(crate) fn new(config: &JwtConfig) -> Result<Self, AuthError> {
        // Said out loud: with the features of both providers on, jsonwebtoken would panic at the first token. An error
        // means that a provider is installed already, which is as good.
        if DEFAULT_PROVIDER.install_default().is_err() {
            tracing::debug!("a provider of cryptography for tokens was installed before");
        }
        let mut keys = Vec::new();
        for key in &config.keys {
            keys.push(Key {
                id: key.id.clone(),
                algorithm: key.algorithm,
                key: key_of_file(&key.file, key.algorithm)?,
            });
        }
        if let Some(path) = &config.jwks {
            keys.extend(keys_of_jwks(path)?);
        }
        if keys.is_empty() {
            return Err(AuthError::setting(
                "jwt",
                "there is no key to check tokens with; set keys = [{ file, algorithm }] or jwks = \"FILE\"",
            ));
        }
        if keys.len() > KEYS_MAX {
            return Err(AuthError::setting(
                "jwt.keys",
                eco_format!(
                    "{} keys are more than {KEYS_MAX}; remove those that no longer sign",
                    keys.len()
                ),
            ));
        }
        if config.audience.is_empty() {
            return Err(AuthError::setting(
                "jwt.audience",
                "empty; set it to what names this cluster",
            ));
        }
        Ok(Self {
            keys,
            audience: config.audience.clone(),
            issuer: config.issuer.clone(),
            leeway: config.leeway.as_secs_f64(),
            lifetime_max: config.lifetime_max.as_secs_f64(),
        })
    }

    /// Checks the token as of `now`, seconds since 1970. The signature comes before anything that the token claims.
    fn identify(&self, credentials: &Credentials, now: f64) -> Result<Identity, Refusal> {
        let token = Parts::of(&credentials.token)?;
        self.verify(&token)?;
        let claims: Claims = json(token.claims).map_err(|()| {
            malformed(
                "its claims are not a JSON object with a sub and an exp of the types of RFC 7519",
            )
        })?;
        self.check_span(&claims, now)?;
        self.check_meant_for_us(&claims)?;

        let user =
            UserId::new(claims.sub).map_err(|bad| malformed(&eco_format!("its sub: {bad}")))?;
        let name = claims.name.as_deref().and_then(clean_name);
        let name = name.or_else(|| clean_name(&credentials.name));
        let name = name.or_else(|| clean_name(user.as_str())).unwrap_or_else(|| "User".into());
        Ok(Identity { user, name })
    }

    fn verify(&self, token: &Parts<'_>) -> Result<(), Refusal> {
        let algorithm = JwtAlgorithm::named(&token.header.alg);
        let of_algorithm: Vec<_> =
            self.keys.iter().filter(|key| Some(key.algorithm) == algorithm).collect();
        if of_algorithm.is_empty() {
            return Err(Refusal::new(
                Code::TokenAlgorithm,
                eco_format!(
                    "the token's algorithm is {}, and this cluster accepts {}; sign it with one of those",
                    quoted(&token.header.alg),
                    self.algorithms(),
                ),
            ));
        }
        let mut candidates = of_algorithm
            .iter()
            .filter(|key| {
                key.id.is_none() || token.header.kid.is_none() || key.id == token.header.kid
            })
            .peekable();
        if candidates.peek().is_none() {
            return Err(Refusal::new(
                Code::TokenSignature,
                "the token is signed with a key that this cluster does not have, by its kid; sign it with a \
                 current key, or give the cluster the new one",
            ));
        }
        let fits = |key: &&Key| {
            let algorithm = key.algorithm.algorithm();
            // An error is a signature that is no base64: it fits as little.
            jsonwebtoken::crypto::verify(
                token.signature,
                token.message.as_bytes(),
                &key.key,
                algorithm,
            )
            .unwrap_or(false)
        };
        if !candidates.any(fits) {
            return Err(Refusal::new(
                Code::TokenSignature,
                "the token's signature does not fit: it was changed or cut on its way, or is signed with a key \
                 that this cluster does not trust",
            ));
        }
        Ok(())
    }

    fn check_span(&self, claims: &Claims, now: f64) -> Result<(), Refusal> {
        if now > claims.exp + self.leeway {
            return Err(Refusal::new(
                Code::TokenExpired,
                eco_format!(
                    "the token expired {:.0} s ago; sign in again to get a new one",
                    now - claims.exp
                ),
            ));
        }
        let begins = claims.nbf.unwrap_or(f64::MIN).max(claims.iat.unwrap_or(f64::MIN));
        if now + self.leeway < begins {
            return Err(Refusal::new(
                Code::TokenEarly,
                eco_format!(
                    "the token is valid only in {:.0} s; wait, or set the clock of the one who signs it",
                    begins - now
                ),
            ));
        }
        let lifetime = claims.exp - claims.iat.unwrap_or(now);
        if lifetime > self.lifetime_max + self.leeway {
            return Err(malformed(&eco_format!(
                "it is valid for {lifetime:.0} s, and this cluster accepts at most {:.0} s; let it expire sooner",
                self.lifetime_max
            )));
        }
        Ok(())
    }

    fn check_meant_for_us(&self, claims: &Claims) -> Result<(), Refusal> {
        let refused = |message: &str| Err(Refusal::new(Code::TokenAudience, message));
        let for_us = match &claims.aud {
            Some(Audience::One(one)) => *one == self.audience,
            Some(Audience::Many(many)) => many.contains(&self.audience),
            None => false,
        };
        if !for_us {
            return refused(
                "the token is for another audience; get one whose aud names this cluster",
            );
        }
        match &self.issuer {
            Some(issuer) if claims.iss.as_ref() != Some(issuer) => refused(
                "the token is from another issuer; get one from the issuer that this cluster trusts",
            ),
            _ => Ok(()),
        }
    }

    fn algorithms(&self) -> String {
        let mut all: Vec<_> = self.keys.iter().map(|key| key.algorithm).collect();
        all.sort();
        all.dedup();
        all.into_iter().map(JwtAlgorithm::name).collect::<Vec<_>>().join(", ")
    }
}

impl Authenticator for Jwt {
    fn scheme(&self) -> &str {
        "jwt"
    }
    fn check(&self, credentials: Credentials) -> Checking<'_> {
        // At once: it takes some 50 microseconds, and nothing is waited for.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Box::pin(std::future::ready(self.identify(&credentials, now.as_secs_f64())))
    }
}

/// A token, taken apart: nothing of it is trusted yet.
struct Parts<'a> {
    header: Header,
    /// What is signed.
    message: &'a str,
    claims: &'a str,
    signature: &'a str,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515, 4.1.11); there are none here.
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    name: Option<String>,
    iss: Option<String>,
    aud: Option<Audience>,
    exp: f64,
    nbf: Option<f64>,
    iat: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Result<Self, Refusal> {
        if token.is_empty() {
            return Err(malformed("it is empty; send the token that the sign-in gave"));
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(malformed(&eco_format!(
                "it has {} bytes, and {TOKEN_BYTES_MAX} is the most; leave claims out",
                token.len()
            )));
        }
        let (Some((message, signature)), true) =
            (token.rsplit_once('.'), token.bytes().filter(|&byte| byte == b'.').count() == 2)
        else {
            return Err(malformed(
                "it is not three parts with dots between them; send it as it was given",
            ));
        };
        let (header, claims) = message.split_once('.').unwrap_or_default();
        let header: Header = json(header)
            .map_err(|()| malformed("its header is not JSON in base64; send it as it was given"))?;
        if header.crit.is_some() {
            return Err(malformed(
                "it demands extensions (crit), and this cluster has none; sign it without",
            ));
        }
        Ok(Self { header, message, claims, signature })
    }
}

fn json<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, ()> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(part).map_err(drop)?;
    serde_json::from_slice(&bytes).map_err(drop)
}

fn malformed(what: &str) -> Refusal {
    Refusal::new(Code::CredentialsInvalid, eco_format!("the token can't be accepted: {what}"))
}

fn key_of_file(path: &Path, algorithm: JwtAlgorithm) -> Result<DecodingKey, AuthError> {
    let bytes = read("the key that tokens are checked with", path)?;
    let wrong = |problem: EcoString| AuthError::file(path, problem);
    let name = algorithm.name();
    let pem = String::from_utf8_lossy(&bytes);
    let holds = |what: &str| pem.contains("-----BEGIN") && pem.contains(what);
    if algorithm == JwtAlgorithm::HS256 {
        // A public key as a secret would let everybody sign.
        if holds("-----BEGIN") {
            return Err(wrong(
                "HS256 needs a secret, and this is a key in PEM; set algorithm to EdDSA or RS256"
                    .into(),
            ));
        }
        let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        return key_of_secret(secret).map_err(wrong);
    }
    if holds("PRIVATE KEY-----") {
        return Err(wrong(
            "this is a private key, which belongs only where tokens are signed; put the public one here \
             (openssl pkey -in PRIVATE -pubout)"
                .into(),
        ));
    }
    if !holds("PUBLIC KEY-----") {
        return Err(wrong(eco_format!(
            "{name} needs a public key as PEM (-----BEGIN PUBLIC KEY-----)"
        )));
    }
    let key = if algorithm == JwtAlgorithm::EdDSA {
        DecodingKey::from_ed_pem(&bytes)
    } else {
        DecodingKey::from_rsa_pem(&bytes)
    };
    let key = key.map_err(|_| wrong(eco_format!("this is no public key for {name}")))?;
    check_key(&key, algorithm).map_err(wrong)?;
    Ok(key)
}

fn key_of_secret(secret: &[u8]) -> Result<DecodingKey, EcoString> {
    if secret.len() < SECRET_BYTES_MIN {
        return Err(eco_format!(
            "a secret for HS256 has at least {SECRET_BYTES_MIN} bytes, and this one has {}; make one with: \
             openssl rand -base64 32",
            secret.len()
        ));
    }
    Ok(DecodingKey::from_secret(secret))
}

/// Refuses a key at the start that would refuse every token later.
fn check_key(key: &DecodingKey, algorithm: JwtAlgorithm) -> Result<(), EcoString> {
    let bytes = match key.kind() {
        DecodingKeyKind::SecretOrDer(bytes) => bytes,
        DecodingKeyKind::RsaModulusExponent { n, .. } => return check_modulus(n),
    };
    match algorithm {
        JwtAlgorithm::HS256 => key_of_secret(bytes).map(drop),
        JwtAlgorithm::EdDSA if bytes.len() == 32 => Ok(()),
        JwtAlgorithm::EdDSA => Err("this is no public key of Ed25519".into()),
        JwtAlgorithm::RS256 => {
            let parts = (DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key)(bytes);
            let (modulus, _) =
                parts.map_err(|_| EcoString::from("this is no public key of RSA"))?;
            check_modulus(&modulus)
        }
    }
}

fn check_modulus(modulus: &[u8]) -> Result<(), EcoString> {
    let bytes = modulus.iter().skip_while(|&&byte| byte == 0).count();
    if bytes < MODULUS_BYTES_MIN {
        return Err(eco_format!(
            "RS256 needs a key of 2048 bits or more, and this one has {}",
            bytes * 8
        ));
    }
    Ok(())
}

fn keys_of_jwks(path: &Path) -> Result<Vec<Key>, AuthError> {
    let bytes = read("the JWKS file", path)?;
    let set: JwkSet = serde_json::from_slice(&bytes).map_err(|error| {
        AuthError::file(path, eco_format!("this is no JWKS (RFC 7517): {error}"))
    })?;
    let mut keys = Vec::new();
    for (place, jwk) in set.keys.iter().enumerate() {
        let Some(algorithm) = algorithm_of_jwk(jwk) else { continue };
        let wrong =
            |problem: EcoString| AuthError::file(path, eco_format!("key {place}: {problem}"));
        let key = DecodingKey::from_jwk(jwk).map_err(|error| wrong(eco_format!("{error}")))?;
        check_key(&key, algorithm).map_err(wrong)?;
        keys.push(Key { id: jwk.common.key_id.clone(), algorithm, key });
    }
    if keys.is_empty() {
        let problem = "there is no key for signatures by HS256, EdDSA (Ed25519) or RS256 in it";
        return Err(AuthError::file(path, problem));
    }
    Ok(keys)
}

/// The algorithm that a key is for, if it is one for signatures that are accepted here.
fn algorithm_of_jwk(jwk: &Jwk) -> Option<JwtAlgorithm> {
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let (algorithm, stated) = if let AlgorithmParameters::OctetKey(_) = &jwk.algorithm {
        (JwtAlgorithm::HS256, KeyAlgorithm::HS256)
    } else if let AlgorithmParameters::RSA(_) = &jwk.algorithm {
        (JwtAlgorithm::RS256, KeyAlgorithm::RS256)
    } else if let AlgorithmParameters::OctetKeyPair(pair) = &jwk.algorithm
        && pair.curve == EllipticCurve::Ed25519
    {
        (JwtAlgorithm::EdDSA, KeyAlgorithm::EdDSA)
    } else {
        return None;
    };
    jwk.common.key_algorithm.is_none_or(|named| named == stated).then_some(algorithm)
}

#[cfg(test)]
mod tests;
