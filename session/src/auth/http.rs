//! `http`: the studio's own service decides.

use std::{
    fmt,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ecow::{EcoString, eco_format};
use greenroom_protocol::{Code, Refusal, UserId, wire::client_session::Credentials};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    body::Bytes,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    AuthError, Authenticator, Checking, Identity, Secret, clean_message, clean_name, read,
};

/// The `[auth.http]` table of the configuration: a service of the studio's that decides who comes in.
///
/// It gets a POST of `{"scheme", "token", "name"}` and answers 200 with `{"user", "name"}`, where the name may be
/// left out, or 401 or 403 with `{"message"}`, which may be left out and is shown to the user. Anything else means
/// that it can't decide now.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Where it is; `https://` unless it is on this machine or in a network that nobody else listens to.
    pub url: String,
    /// The scheme of the credentials that it checks; "http".
    #[serde(default = "scheme")]
    pub scheme: EcoString,
    /// Sent as `Authorization: Bearer`, so that it knows who asks. Default: none.
    #[serde(default)]
    pub bearer: Option<Secret>,
    /// Certificates in PEM that it may be certified by, instead of those that the system trusts.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// How long it may take to answer; "3s".
    #[serde(default = "answer_timeout", with = "humantime_serde")]
    pub timeout: Duration,
    /// How many checks may be under way; 64. Above it, clients are told to try again.
    #[serde(default = "under_way_max")]
    pub under_way_max: NonZeroUsize,
    /// A name says whose account it is and the token is a password: failures are counted by name; false.
    #[serde(default)]
    pub name_is_account: bool,
}

fn scheme() -> EcoString {
    "http".into()
}
fn answer_timeout() -> Duration {
    Duration::from_secs(3)
}
fn under_way_max() -> NonZeroUsize {
    NonZeroUsize::new(64).expect("not zero")
}

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// How long a connection without a request is kept.
const IDLE_MAX: Duration = Duration::from_secs(30);

pub(crate) struct Http {
    url: Uri,
    scheme: EcoString,
    authorization: Option<HeaderValue>,
    timeout: Duration,
    name_is_account: bool,
    under_way: Semaphore,
    /// Ends its connections' tasks when it is dropped.
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// The last check could not be decided. Only changes are logged: a service that is away fails every check.
    away: AtomicBool,
}

#[derive(Serialize)]
struct Question<'a> {
    scheme: &'a str,
    token: &'a str,
    name: &'a str,
}
#[derive(Deserialize)]
struct Yes {
    user: EcoString,
    name: Option<EcoString>,
}
#[derive(Default, Deserialize)]
struct No {
    message: Option<EcoString>,
}

/// What the service said.
enum Verdict {
    In(Identity),
    Out(EcoString),
}

/// Why there is no verdict; for the log, since it tells of the inside of the studio.
#[derive(Debug, thiserror::Error)]
enum Undecided {
    #[error("no answer within {}", humantime(.0))]
    Timeout(Duration),
    #[error("it can't be reached: {}", sources(.0))]
    Unreachable(#[source] hyper_util::client::legacy::Error),
    #[error("it answered with status {0}")]
    Status(StatusCode),
    #[error("its answer can't be read: {0}")]
    Answer(Box<dyn std::error::Error + Send + Sync>),
}

impl Http {
    pub(crate) fn new(config: &HttpConfig) -> Result<Self, AuthError> {
        let wrong = |problem: &str| AuthError::setting("http.url", problem);
        let url: Uri = config.url.parse().map_err(|error| wrong(&format!("no URL: {error}")))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none() {
            return Err(wrong(
                "it has to be https://HOST/PATH, or http:// for a service on this machine",
            ));
        }
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(wrong(
                "it holds a user or password; use auth.http.bearer, which is never shown",
            ));
        }
        if config.scheme.is_empty() {
            return Err(AuthError::setting("http.scheme", "empty; leave it out for \"http\""));
        }
        let authorization = config.bearer.as_ref().map(|secret| {
            let value = HeaderValue::try_from(format!("Bearer {}", secret.expose()));
            let mut value = value.map_err(|_| {
                AuthError::setting("http.bearer", "it holds characters that no header may hold")
            })?;
            value.set_sensitive(true);
            Ok(value)
        });

        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(config, &url)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(config.under_way_max.get())
            .build(connector);
        Ok(Self {
            url,
            scheme: config.scheme.clone(),
            authorization: authorization.transpose()?,
            timeout: config.timeout,
            name_is_account: config.name_is_account,
            under_way: Semaphore::new(config.under_way_max.get().min(Semaphore::MAX_PERMITS)),
            client,
            away: AtomicBool::new(false),
        })
    }

    async fn identify(&self, credentials: Credentials) -> Result<Identity, Refusal> {
        let Ok(_permit) = self.under_way.try_acquire() else {
            return Err(Refusal::new(
                Code::Busy,
                "too many check-ins are under way; try again in a moment",
            ));
        };
        let verdict = timeout(self.timeout, self.ask(&credentials)).await;
        let verdict = verdict.unwrap_or(Err(Undecided::Timeout(self.timeout)));
        let was_away = self.away.swap(verdict.is_err(), Ordering::Relaxed);
        match verdict {
            Err(reason) => {
                if !was_away {
                    tracing::warn!(url = %self.url, %reason, "the service that checks credentials fails");
                }
                Err(Refusal::new(
                    Code::AuthUnavailable,
                    "the service that checks sign-ins can't be reached; try again later",
                ))
            }
            Ok(verdict) => {
                if was_away {
                    tracing::info!(url = %self.url, "the service that checks credentials answers again");
                }
                match verdict {
                    Verdict::In(identity) => Ok(identity),
                    Verdict::Out(message) => Err(Refusal::new(Code::CredentialsInvalid, message)),
                }
            }
        }
    }

    async fn ask(&self, credentials: &Credentials) -> Result<Verdict, Undecided> {
        let Credentials { scheme, token, name } = credentials;
        let question = serde_json::to_vec(&Question { scheme, token, name })
            .expect("three texts encode as JSON");
        let mut request = Request::new(Full::from(question));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let agent = concat!("greenroom/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }

        let response = self.client.request(request).await.map_err(Undecided::Unreachable)?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        match status {
            StatusCode::OK => {
                let answer = answer.map_err(Undecided::Answer)?.to_bytes();
                let yes: Yes = serde_json::from_slice(&answer)
                    .map_err(|error| Undecided::Answer(error.into()))?;
                let user = UserId::new(yes.user).map_err(|bad| Undecided::Answer(bad.into()))?;
                let name = yes.name.as_deref().and_then(clean_name);
                let name = name.or_else(|| clean_name(&credentials.name));
                let name = name.or_else(|| clean_name(user.as_str()));
                Ok(Verdict::In(Identity { user, name: name.unwrap_or_else(|| "User".into()) }))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                // The status decides; what can't be read is only a missing message.
                let no: No = answer
                    .ok()
                    .and_then(|answer| serde_json::from_slice(&answer.to_bytes()).ok())
                    .unwrap_or_default();
                let message = no.message.map(|message| clean_message(&message));
                Ok(Verdict::Out(message.filter(|message| !message.is_empty()).unwrap_or_else(
                    || "the credentials are not accepted; sign in again and try once more".into(),
                )))
            }
            other => Err(Undecided::Status(other)),
        }
    }
}

impl Authenticator for Http {
    fn scheme(&self) -> &str {
        &self.scheme
    }
    fn check(&self, credentials: Credentials) -> Checking<'_> {
        Box::pin(self.identify(credentials))
    }
    fn account<'a>(&self, credentials: &'a Credentials) -> Option<&'a str> {
        (self.name_is_account && !credentials.name.is_empty()).then_some(&*credentials.name)
    }
}

fn tls(config: &HttpConfig, url: &Uri) -> Result<ClientConfig, AuthError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &config.ca {
        let pem = read("the certificates of auth.http.ca", path)?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let added =
                certificate.map_err(|error| eco_format!("{error}")).and_then(|certificate| {
                    roots.add(certificate).map_err(|error| eco_format!("{error}"))
                });
            added.map_err(|error| AuthError::file(path, eco_format!("no certificate: {error}")))?;
        }
        if roots.is_empty() {
            return Err(AuthError::file(
                path,
                "it holds no certificate (-----BEGIN CERTIFICATE-----)",
            ));
        }
    } else if url.scheme_str() == Some("https") {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(AuthError::setting(
                "http.url",
                "this system trusts no certificates; install its ca-certificates, or set auth.http.ca",
            ));
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("this provider has the default versions of TLS");
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn humantime(span: &Duration) -> impl fmt::Display {
    humantime_serde::re::humantime::format_duration(*span)
}

/// An error with what is behind it, on one line.
fn sources(error: &(dyn std::error::Error + 'static)) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests;
