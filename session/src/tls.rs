//! Certificates: those of the operator for TLS on the public ports, and self-signed ones for development.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};
use serde::Deserialize;

/// The `[tls]` table of the configuration: what a public port shows to prove who it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate in PEM, followed by those that certify it.
    pub certificate: PathBuf,
    /// Its private key in PEM, not encrypted.
    pub key: PathBuf,
}

/// Why a certificate can't be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("reading the {what} {}", path.display())]
    Read {
        /// Certificate or key.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} holds no {what} in PEM ({expected}); {advice}", path.display())]
    Missing {
        /// Certificate or key.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The line that was looked for.
        expected: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A file is damaged.
    #[error("the {what} {} is damaged: {problem}", path.display())]
    Damaged {
        /// Certificate or key.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Where.
        problem: String,
    },
    /// Both files are fine, but not for each other.
    #[error(
        "the key {} is not the key of the certificate {}; give both files of the same certificate, \
         the server's own first in its file",
        key.display(),
        certificate.display()
    )]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// They can't be used for another reason.
    #[error("the certificate {} can't be used with the key {}", certificate.display(), key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// A self-signed certificate can't be made.
    #[error("making a self-signed certificate")]
    SelfSigned(#[from] rcgen::Error),
}

impl TlsConfig {
    /// Reads both files, for TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// When a file is missing, is not what it should be, or the key is another certificate's: which, and what to do.
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let chain = self.read_chain()?;
        let key = self.read_key()?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("this provider has the default versions of TLS")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|source| self.unusable(source))?;
        Ok(Arc::new(config))
    }

    fn read_chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let (what, path) = ("certificate", &self.certificate);
        let pem = read(what, path)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let chain = chain.map_err(|error| damaged(what, path, &error))?;
        if chain.is_empty() {
            let advice = if contains(&pem, "PRIVATE KEY-----") {
                "it holds a key: are certificate and key swapped?"
            } else {
                "a certificate in DER becomes PEM with: openssl x509 -inform DER -in FILE"
            };
            let expected = "-----BEGIN CERTIFICATE-----";
            return Err(TlsError::Missing { what, path: path.clone(), expected, advice });
        }
        Ok(chain)
    }

    fn read_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let (what, path) = ("private key", &self.key);
        let pem = read(what, path)?;
        let advice = if contains(&pem, "BEGIN ENCRYPTED PRIVATE KEY") {
            "the key is encrypted: decrypt it with: openssl pkey -in FILE"
        } else if contains(&pem, "BEGIN CERTIFICATE") {
            "it holds a certificate: are certificate and key swapped?"
        } else {
            "a key in DER becomes PEM with: openssl pkey -inform DER -in FILE"
        };
        PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
            if matches!(error, pem::Error::NoItemsFound) {
                let expected = "-----BEGIN PRIVATE KEY-----";
                return TlsError::Missing { what, path: path.clone(), expected, advice };
            }
            damaged(what, path, &error)
        })
    }

    fn unusable(&self, source: rustls::Error) -> TlsError {
        let (certificate, key) = (self.certificate.clone(), self.key.clone());
        if matches!(source, rustls::Error::InconsistentKeys(_)) {
            return TlsError::Mismatch { certificate, key };
        }
        TlsError::Unusable { certificate, key, source }
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { what, path: path.to_owned(), source })
}
fn damaged(what: &'static str, path: &Path, error: &pem::Error) -> TlsError {
    TlsError::Damaged { what, path: path.to_owned(), problem: error.to_string() }
}
fn contains(pem: &[u8], text: &str) -> bool {
    pem.windows(text.len()).any(|window| window == text.as_bytes())
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Some clients refuse certificates that are valid for more than 398 days.
const SELF_SIGNED_DAYS: u32 = 397;

/// A certificate for these host names and addresses that nobody but its maker trusts, for development: the
/// certificate and its private key, both in PEM. It is valid for 397 days.
///
/// # Errors
/// When a name is neither a host name nor an address.
pub fn self_signed(names: &[&str]) -> Result<(String, String), TlsError> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut parameters = rcgen::CertificateParams::new(names)?;
    let now = SystemTime::now();
    // A day back, for machines whose clocks are behind.
    parameters.not_before = (now - DAY).into();
    parameters.not_after = (now + DAY * (SELF_SIGNED_DAYS - 1)).into();
    let mut name = rcgen::DistinguishedName::new();
    name.push(rcgen::DnType::CommonName, "greenroom, self-signed for development");
    parameters.distinguished_name = name;
    let key = rcgen::KeyPair::generate()?;
    let certificate = parameters.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    use super::*;
    use crate::auth::tests::Files;

    fn files() -> Files {
        let files = Files::new();
        for name in ["ours", "other"] {
            let (certificate, key) = self_signed(&["localhost", "127.0.0.1", "::1"]).unwrap();
            files.write(&format!("{name}.pem"), certificate);
            files.write(&format!("{name}.key"), key);
        }
        files
    }
    fn load(files: &Files, certificate: &str, key: &str) -> Result<Arc<ServerConfig>, TlsError> {
        TlsConfig { certificate: files.path(certificate), key: files.path(key) }.load()
    }

    /// Shakes hands in memory, as a client that trusts `ca` and wants `name`.
    fn shake_hands(server: Arc<ServerConfig>, ca: &Path, name: &str) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(server).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets()?;
            bytes.clear();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn a_self_signed_certificate_serves_its_names_to_those_who_trust_it() {
        let files = files();
        let server = load(&files, "ours.pem", "ours.key").unwrap();
        for name in ["localhost", "127.0.0.1", "::1"] {
            shake_hands(server.clone(), &files.path("ours.pem"), name).unwrap();
        }
        assert!(shake_hands(server.clone(), &files.path("ours.pem"), "example.com").is_err());
        assert!(shake_hands(server, &files.path("other.pem"), "localhost").is_err());
        assert!(matches!(self_signed(&["sn\u{f6}w"]), Err(TlsError::SelfSigned(_))));
    }

    #[test]
    fn a_certificate_that_can_not_be_used_is_named_with_what_to_do() {
        let files = files();
        files.write("empty", "");
        files.write("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
        files.write("wrong.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        files.write(
            "encrypted.key",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        );
        files.write("wrong.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
        for (certificate, key, culprit, problem) in [
            ("missing.pem", "ours.key", "missing.pem", "reading the certificate"),
            ("ours.pem", "missing.key", "missing.key", "reading the private key"),
            ("empty", "ours.key", "empty", "holds no certificate in PEM"),
            ("ours.pem", "empty", "empty", "holds no private key in PEM"),
            ("ours.key", "ours.pem", "ours.key", "are certificate and key swapped?"),
            ("ours.pem", "ours.pem", "ours.pem", "are certificate and key swapped?"),
            ("cut.pem", "ours.key", "cut.pem", "damaged"),
            ("wrong.pem", "ours.key", "wrong.pem", "can't be used"),
            ("ours.pem", "encrypted.key", "encrypted.key", "the key is encrypted"),
            ("ours.pem", "wrong.key", "wrong.key", "can't be used"),
            ("ours.pem", "other.key", "other.key", "is not the key of the certificate"),
        ] {
            let error = load(&files, certificate, key).unwrap_err().to_string();
            assert!(error.contains(problem), "{certificate} {key}: {error}");
            assert!(error.contains(culprit), "{certificate} {key}: {error}");
        }
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let error = toml::from_str::<TlsConfig>("certificate = 'a'\nkeyfile = 'b'").unwrap_err();
        assert!(error.to_string().contains("keyfile"), "{error}");
    }
}
