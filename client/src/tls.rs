//! Whom the client believes on `tls://` and `wss://`.

use std::{path::PathBuf, sync::Arc};

use ecow::eco_format;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::ClientError;

/// Which certificates are trusted.
#[derive(Clone, Debug, Default)]
pub(crate) enum Trust {
    /// Those that the operating system trusts.
    #[default]
    System,
    /// Those in this file, in PEM: authorities, or a server's own self-signed certificate.
    File(PathBuf),
}

/// The settings of TLS for all connections of one client.
pub(crate) fn config(trust: &Trust) -> Result<Arc<rustls::ClientConfig>, ClientError> {
    let mut roots = rustls::RootCertStore::empty();
    match trust {
        Trust::System => {
            // Some of a system's certificates are always odd; only none at all is a failure.
            let found = rustls_native_certs::load_native_certs();
            let (usable, _) = roots.add_parsable_certificates(found.certs);
            if usable == 0 {
                let why = eco_format!("the system has none that can be used ({:?})", found.errors);
                return Err(ClientError::Trust(why));
            }
        }
        Trust::File(path) => {
            let text = std::fs::read(path)
                .map_err(|source| ClientError::File { path: path.display().to_string(), source })?;
            let wrong = |what: &dyn std::fmt::Display| {
                ClientError::Trust(eco_format!("{}: {what}", path.display()))
            };
            for certificate in CertificateDer::pem_slice_iter(&text) {
                let certificate = certificate.map_err(|error| wrong(&error))?;
                roots.add(certificate).map_err(|error| wrong(&error))?;
            }
            if roots.is_empty() {
                return Err(wrong(&"it holds no certificate in PEM"));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Trust(eco_format!("{error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
