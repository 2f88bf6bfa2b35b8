use jsonwebtoken::{EncodingKey, encode};
use rcgen::{KeyPair, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};

use super::*;
use crate::auth::tests::Files;

/// Seconds since 1970 in all of these tests.
const NOW: f64 = 1_800_000_000.0;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// Those who sign, and a cluster's view of them.
struct Studio {
    files: Files,
    ed: KeyPair,
    rsa: KeyPair,
}

impl Studio {
    fn new() -> Self {
        let files = Files::new();
        let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        files.write("secret", SECRET);
        files.write("ed.pem", ed.public_key_pem());
        files.write("rsa.pem", rsa.public_key_pem());
        Self { files, ed, rsa }
    }

    /// Keys as `file:algorithm` or `file:algorithm:id`, separated by spaces.
    fn config(&self, keys: &str) -> JwtConfig {
        let key = |text: &str| {
            let mut parts = text.split(':');
            JwtKey {
                file: self.files.path(parts.next().unwrap()),
                algorithm: JwtAlgorithm::named(parts.next().unwrap()).unwrap(),
                id: parts.next().map(str::to_owned),
            }
        };
        JwtConfig {
            keys: keys.split_whitespace().map(key).collect(),
            jwks: None,
            audience: "cluster".into(),
            issuer: None,
            leeway: leeway(),
            lifetime_max: lifetime_max(),
        }
    }
    fn jwt(&self, keys: &str) -> Jwt {
        Jwt::new(&self.config(keys)).unwrap()
    }

    fn sign(&self, algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
        let mut header = jsonwebtoken::Header::new(algorithm);
        header.kid = kid.map(str::to_owned);
        let rsa = [Algorithm::RS256, Algorithm::RS512, Algorithm::PS256];
        let key = if algorithm == Algorithm::EdDSA {
            EncodingKey::from_ed_der(&self.ed.serialize_der())
        } else if rsa.contains(&algorithm) {
            EncodingKey::from_rsa_pem(self.rsa.serialize_pem().as_bytes()).unwrap()
        } else {
            EncodingKey::from_secret(SECRET)
        };
        encode(&header, claims, &key).unwrap()
    }
}

fn good_claims() -> Value {
    json!({ "sub": "user-7", "name": "Ann", "aud": "cluster", "iat": NOW - 60.0, "exp": NOW + 600.0 })
}
/// Good claims with one changed; null removes it.
fn claims_with(name: &str, value: Value) -> Value {
    let mut claims = good_claims();
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(name);
    } else {
        claims[name] = value;
    }
    claims
}
fn check(jwt: &Jwt, token: &str) -> Result<Identity, Refusal> {
    let credentials = Credentials { scheme: "jwt".into(), token: token.into(), name: "Bo".into() };
    let answer = jwt.identify(&credentials, NOW);
    if let Err(refusal) = &answer {
        for part in token.split('.').filter(|part| part.len() > 8) {
            assert!(!refusal.message.contains(part), "echoes the token: {refusal}");
        }
    }
    answer
}
fn code(jwt: &Jwt, token: &str) -> Code {
    check(jwt, token).expect_err("is accepted").code
}
/// A token with a header of one's own choice, and a signature of HS256 by `secret`.
fn forge(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let key = EncodingKey::from_secret(secret);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

#[test]
fn a_good_token_of_each_algorithm_lets_its_user_in() {
    let studio = Studio::new();
    let all = studio.jwt("secret:HS256 ed.pem:EdDSA rsa.pem:RS256");
    let alone = [
        (Algorithm::HS256, studio.jwt("secret:HS256")),
        (Algorithm::EdDSA, studio.jwt("ed.pem:EdDSA")),
        (Algorithm::RS256, studio.jwt("rsa.pem:RS256")),
    ];
    for (algorithm, jwt) in &alone {
        let token = studio.sign(*algorithm, None, &good_claims());
        for jwt in [jwt, &all] {
            let identity = check(jwt, &token).unwrap();
            assert_eq!((identity.user.as_str(), &*identity.name), ("user-7", "Ann"));
        }
        for (other, jwt) in &alone {
            if other != algorithm {
                assert_eq!(code(jwt, &token), Code::TokenAlgorithm);
            }
        }
    }
}

#[test]
fn a_secret_file_may_end_with_a_line_break() {
    let studio = Studio::new();
    studio.files.write("with-break", [SECRET, b"\r\n"].concat());
    let token = studio.sign(Algorithm::HS256, None, &good_claims());
    check(&studio.jwt("with-break:HS256"), &token).unwrap();
}

#[test]
fn the_name_is_the_tokens_else_the_clients_else_the_users_id() {
    let studio = Studio::new();
    let jwt = studio.jwt("secret:HS256");
    let name = |claims| check(&jwt, &studio.sign(Algorithm::HS256, None, &claims)).unwrap().name;
    assert_eq!(name(claims_with("name", json!("A\u{7}nn "))), "Ann");
    assert_eq!(name(claims_with("name", json!("\u{7}"))), "Bo");
    assert_eq!(name(claims_with("name", Value::Null)), "Bo");
    let token = studio.sign(Algorithm::HS256, None, &claims_with("name", Value::Null));
    let nameless = Credentials { scheme: "jwt".into(), token, name: "".into() };
    assert_eq!(jwt.identify(&nameless, NOW).unwrap().name, "user-7");
}

#[test]
fn an_expired_token_is_refused_by_name_after_the_leeway() {
    let studio = Studio::new();
    let jwt = studio.jwt("ed.pem:EdDSA");
    let expired = |ago| studio.sign(Algorithm::EdDSA, None, &claims_with("exp", json!(NOW - ago)));
    check(&jwt, &expired(30.0)).unwrap();
    let refusal = check(&jwt, &expired(31.0)).unwrap_err();
    assert_eq!(refusal.code, Code::TokenExpired);
    assert!(refusal.message.contains("expired 31 s ago; sign in again"), "{refusal}");
    let endless = studio.sign(Algorithm::EdDSA, None, &claims_with("exp", Value::Null));
    assert_eq!(code(&jwt, &endless), Code::CredentialsInvalid);
}

#[test]
fn a_token_from_the_future_is_early() {
    let studio = Studio::new();
    let jwt = studio.jwt("ed.pem:EdDSA");
    for claim in ["nbf", "iat"] {
        let in_future =
            |by| studio.sign(Algorithm::EdDSA, None, &claims_with(claim, json!(NOW + by)));
        check(&jwt, &in_future(30.0)).unwrap();
        assert_eq!(code(&jwt, &in_future(31.0)), Code::TokenEarly);
    }
}

#[test]
fn a_token_that_lives_too_long_is_refused() {
    let studio = Studio::new();
    let jwt = studio.jwt("ed.pem:EdDSA");
    let mut claims = claims_with("exp", json!(NOW + 25.0 * 3600.0));
    let refusal = check(&jwt, &studio.sign(Algorithm::EdDSA, None, &claims)).unwrap_err();
    assert_eq!(refusal.code, Code::CredentialsInvalid);
    assert!(refusal.message.contains("86400"), "{refusal}");
    claims.as_object_mut().unwrap().remove("iat");
    assert_eq!(code(&jwt, &studio.sign(Algorithm::EdDSA, None, &claims)), Code::CredentialsInvalid);
}

#[test]
fn a_token_of_a_wrong_key_is_refused_by_name() {
    let (studio, other) = (Studio::new(), Studio::new());
    other.files.write("secret", "another secret, which is as long as it has to be");
    for (keys, algorithm) in [
        ("secret:HS256", Algorithm::HS256),
        ("ed.pem:EdDSA", Algorithm::EdDSA),
        ("rsa.pem:RS256", Algorithm::RS256),
    ] {
        let token = studio.sign(algorithm, None, &good_claims());
        check(&studio.jwt(keys), &token).unwrap();
        assert_eq!(code(&other.jwt(keys), &token), Code::TokenSignature);
    }
}

#[test]
fn a_changed_or_cut_token_is_refused_by_its_signature_before_its_claims_are_read() {
    let studio = Studio::new();
    let jwt = studio.jwt("ed.pem:EdDSA");
    let token = studio.sign(Algorithm::EdDSA, None, &good_claims());
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (header, _) = message.split_once('.').unwrap();
    let king = BASE64_URL_SAFE_NO_PAD.encode(claims_with("sub", json!("king")).to_string());
    assert_eq!(code(&jwt, &format!("{header}.{king}.{signature}")), Code::TokenSignature);
    assert_eq!(code(&jwt, &format!("{header}.garbage!.{signature}")), Code::TokenSignature);
    assert_eq!(code(&jwt, &token[..token.len() - 1]), Code::TokenSignature);
    assert_eq!(code(&jwt, &format!("{message}.")), Code::TokenSignature);
    assert_eq!(code(&jwt, &format!("{message}.no base64!")), Code::TokenSignature);
}

#[test]
fn a_kid_picks_the_key_and_an_unknown_one_is_refused() {
    let studio = Studio::new();
    let named = studio.jwt("ed.pem:EdDSA:new secret:HS256:other");
    let unnamed = studio.jwt("ed.pem:EdDSA");
    let token = |kid| studio.sign(Algorithm::EdDSA, kid, &good_claims());
    check(&named, &token(Some("new"))).unwrap();
    check(&named, &token(None)).unwrap();
    check(&unnamed, &token(Some("new"))).unwrap();
    let refusal = check(&named, &token(Some("other"))).unwrap_err();
    assert_eq!(refusal.code, Code::TokenSignature);
    assert!(refusal.message.contains("kid"), "{refusal}");
}

#[test]
fn no_algorithm_is_accepted_but_those_of_the_keys() {
    let studio = Studio::new();
    let jwt = studio.jwt("rsa.pem:RS256");
    for algorithm in [Algorithm::RS512, Algorithm::PS256, Algorithm::HS256, Algorithm::EdDSA] {
        let refusal = check(&jwt, &studio.sign(algorithm, None, &good_claims())).unwrap_err();
        assert_eq!(refusal.code, Code::TokenAlgorithm);
        assert!(refusal.message.contains("accepts RS256"), "{refusal}");
    }
    let hs = studio.jwt("secret:HS256");
    for none in ["none", "None", "NONE", "", "hs256", "HS256 "] {
        let token = forge(&json!({ "alg": none }), &good_claims(), SECRET);
        let (message, _) = token.rsplit_once('.').unwrap();
        assert_eq!(code(&hs, &token), Code::TokenAlgorithm, "{none}");
        assert_eq!(code(&hs, &format!("{message}.")), Code::TokenAlgorithm, "{none}");
    }
}

#[test]
fn a_public_key_never_serves_as_a_secret() {
    let studio = Studio::new();
    for (keys, file) in [("rsa.pem:RS256", "rsa.pem"), ("ed.pem:EdDSA", "ed.pem")] {
        let public = std::fs::read(studio.files.path(file)).unwrap();
        let forged = forge(&json!({ "alg": "HS256" }), &good_claims(), &public);
        assert_eq!(code(&studio.jwt(keys), &forged), Code::TokenAlgorithm);
        // With a secret besides, HS256 is accepted, by the secret only.
        let mixed = studio.jwt(&format!("{keys} secret:HS256"));
        assert_eq!(code(&mixed, &forged), Code::TokenSignature);
        let error = Jwt::new(&studio.config(&format!("{file}:HS256"))).err().unwrap().to_string();
        assert!(error.contains(file) && error.contains("needs a secret"), "{error}");
    }
}

#[test]
fn a_token_for_another_audience_or_from_another_issuer_is_refused_by_name() {
    let studio = Studio::new();
    let jwt = studio.jwt("ed.pem:EdDSA");
    let with = |name: &str, value| studio.sign(Algorithm::EdDSA, None, &claims_with(name, value));
    check(&jwt, &with("aud", json!(["web", "cluster"]))).unwrap();
    for aud in [json!("clusters"), json!(["web"]), json!([]), Value::Null] {
        assert_eq!(code(&jwt, &with("aud", aud)), Code::TokenAudience);
    }
    let issuer = Some("https://id.example".to_owned());
    let jwt = Jwt::new(&JwtConfig { issuer, ..studio.config("ed.pem:EdDSA") }).unwrap();
    check(&jwt, &with("iss", json!("https://id.example"))).unwrap();
    assert_eq!(code(&jwt, &with("iss", json!("https://id.example/"))), Code::TokenAudience);
    assert_eq!(code(&jwt, &with("iss", Value::Null)), Code::TokenAudience);
}

#[test]
fn garbage_is_refused_as_malformed() {
    let studio = Studio::new();
    let jwt = studio.jwt("secret:HS256");
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let long = "x".repeat(TOKEN_BYTES_MAX + 1);
    let unnamed = format!("{}.{}.", part("{}"), part("{}"));
    let array = format!("{}.{}.", part("[[[["), part("{}"));
    for garbage in ["", "x", "a.b", "a.b.c", "..", "a.b.c.d.e", "ü.ü.ü", &long, &unnamed, &array]
    {
        let refusal = check(&jwt, garbage).unwrap_err();
        assert_eq!(refusal.code, Code::CredentialsInvalid, "{garbage}");
        assert!(refusal.message.len() < 200, "{refusal}");
    }
    let crit = json!({ "alg": "HS256", "crit": ["b64"], "b64": false });
    assert_eq!(code(&jwt, &forge(&crit, &good_claims(), SECRET)), Code::CredentialsInvalid);
    for claims in [
        json!([]),
        json!("x"),
        claims_with("sub", Value::Null),
        claims_with("sub", json!(7)),
        claims_with("sub", json!("")),
        claims_with("sub", json!("x".repeat(65))),
        claims_with("sub", json!("a\nb")),
        claims_with("exp", json!("tomorrow")),
    ] {
        let token = forge(&json!({ "alg": "HS256" }), &claims, SECRET);
        assert_eq!(code(&jwt, &token), Code::CredentialsInvalid, "{claims}");
    }
}

#[test]
fn a_jwks_file_gives_the_keys_that_can_be_used() {
    let studio = Studio::new();
    let ed = BASE64_URL_SAFE_NO_PAD.encode(studio.ed.public_key_raw());
    let rsa = studio.rsa.public_key_raw();
    let (n, e) = (DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key)(rsa).unwrap();
    let (n, e) = (BASE64_URL_SAFE_NO_PAD.encode(n), BASE64_URL_SAFE_NO_PAD.encode(e));
    let set = json!({ "keys": [
        { "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "ec", "alg": "ES256" },
        { "kty": "OKP", "crv": "Ed25519", "x": ed, "kid": "ed", "use": "sig" },
        { "kty": "RSA", "n": n, "e": e, "kid": "rsa", "alg": "RS256" },
        { "kty": "RSA", "n": n, "e": e, "kid": "pss", "alg": "PS256" },
        { "kty": "RSA", "n": n, "e": e, "kid": "enc", "use": "enc" },
        { "kty": "post-quantum", "kid": "new" },
    ] });
    studio.files.write("jwks.json", set.to_string());
    let jwks = |name| JwtConfig { jwks: Some(studio.files.path(name)), ..studio.config("") };
    let jwt = Jwt::new(&jwks("jwks.json")).unwrap();
    assert_eq!(jwt.keys.len(), 2);
    check(&jwt, &studio.sign(Algorithm::EdDSA, Some("ed"), &good_claims())).unwrap();
    check(&jwt, &studio.sign(Algorithm::RS256, Some("rsa"), &good_claims())).unwrap();
    let unknown = studio.sign(Algorithm::RS256, Some("enc"), &good_claims());
    assert_eq!(code(&jwt, &unknown), Code::TokenSignature);

    let error = |text: &str| {
        studio.files.write("bad.json", text);
        Jwt::new(&jwks("bad.json")).err().unwrap().to_string()
    };
    assert!(error("{}").contains("no JWKS"));
    assert!(error(r#"{"keys":[]}"#).contains("no key for signatures"));
    let short = BASE64_URL_SAFE_NO_PAD.encode([0xff; 128]);
    let small = json!({ "keys": [{ "kty": "RSA", "n": short, "e": "AQAB" }] }).to_string();
    assert!(
        error(&small).contains("2048 bits or more, and this one has 1024"),
        "{}",
        error(&small)
    );
}

#[test]
fn a_key_that_can_not_be_used_is_named_at_the_start() {
    let studio = Studio::new();
    studio.files.write("short", "hunter2\n");
    studio
        .files
        .write("garbage.pem", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n");
    studio.files.write("private.pem", studio.ed.serialize_pem());
    for (keys, problem) in [
        ("missing:HS256", "reading the key"),
        ("short:HS256", "at least 32 bytes, and this one has 7"),
        ("secret:EdDSA", "needs a public key as PEM"),
        ("garbage.pem:EdDSA", "no public key for EdDSA"),
        ("garbage.pem:RS256", "no public key for RS256"),
        ("ed.pem:RS256", "no public key"),
        ("rsa.pem:EdDSA", "no public key"),
        ("private.pem:EdDSA", "this is a private key"),
        ("", "there is no key"),
    ] {
        let error = Jwt::new(&studio.config(keys)).err().expect(keys).to_string();
        assert!(error.contains(problem), "{keys}: {error}");
        assert!(error.contains(keys.split(':').next().unwrap()), "{keys}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn the_configuration_reads_as_documented() {
    let config: JwtConfig = toml::from_str(
        r#"
        keys = [{ file = "login.pem", algorithm = "EdDSA", id = "2026-11" }]
        audience = "my-game"
        issuer = "https://id.example"
        leeway = "10s"
        "#,
    )
    .unwrap();
    assert_eq!(config.keys[0].algorithm, JwtAlgorithm::EdDSA);
    assert_eq!((config.leeway.as_secs(), config.lifetime_max.as_secs()), (10, 86_400));
    assert!(toml::from_str::<JwtConfig>("").unwrap_err().to_string().contains("audience"));
    let none = "audience = 'x'\nkeys = [{ file = 'x', algorithm = 'none' }]";
    assert!(toml::from_str::<JwtConfig>(none).unwrap_err().to_string().contains("HS256"));
}
