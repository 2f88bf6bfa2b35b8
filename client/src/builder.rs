//! How a client is set up.

use std::{path::PathBuf, time::Duration};

use ecow::EcoString;
use greenroom_protocol::{SessionKey, wire::client_session::Credentials};
use greenroom_telemetry::Tracer;
use tokio::time::Instant;

use crate::{
    Client, ClientError,
    address::Address,
    dialer::Dialer,
    random::{self, Dice},
    servers::ServerBook,
    tls::{self, Trust},
    traces::Sampling,
};

/// Settings of a [`Client`]; [`Client::builder`] begins one.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `connect`"]
pub struct Builder {
    servers: Vec<String>,
    credentials: Option<Credentials>,
    guest: EcoString,
    server_list_file: Option<PathBuf>,
    trust: Trust,
    connect_within: Duration,
    attempt_within: Duration,
    reconnect_for: Duration,
    request_within: Duration,
    tracer: Tracer,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            credentials: None,
            guest: "guest".into(),
            server_list_file: None,
            trust: Trust::System,
            connect_within: Duration::from_secs(15),
            attempt_within: Duration::from_secs(5),
            // As long as a session waits for its client.
            reconnect_for: Duration::from_secs(120),
            request_within: Duration::from_secs(5),
            tracer: Tracer::default(),
        }
    }
}

impl Builder {
    /// The well-known session servers: `tcp://`, `tls://`, `ws://` or `wss://`, with host and port. Called again, adds.
    pub fn servers<S: Into<String>>(mut self, servers: impl IntoIterator<Item = S>) -> Self {
        self.servers.extend(servers.into_iter().map(Into::into));
        self
    }

    /// Plays as a guest with this name. The guest's token is random; [`Client::credentials`] has it for who wants to be
    /// the same guest next time.
    pub fn guest(mut self, name: impl Into<EcoString>) -> Self {
        self.guest = name.into();
        self.credentials = None;
        self
    }

    /// Checks in with a JSON Web Token.
    pub fn jwt(self, token: impl Into<String>) -> Self {
        self.credentials(Credentials {
            scheme: "jwt".into(),
            token: token.into(),
            name: EcoString::new(),
        })
    }

    /// Checks in with these credentials.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// Keeps the list of session servers in this file, one URL a line, and reads it at the next start.
    pub fn server_list_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.server_list_file = Some(path.into());
        self
    }

    /// Trusts the certificates in this PEM file, authorities or a server's own, and no others.
    pub fn trust_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.trust = Trust::File(path.into());
        self
    }

    /// How long [`Self::connect`] tries, in all. 15 seconds by default.
    pub const fn connect_within(mut self, span: Duration) -> Self {
        self.connect_within = span;
        self
    }

    /// How long one address may take to let the client in. 5 seconds by default.
    pub const fn attempt_within(mut self, span: Duration) -> Self {
        self.attempt_within = span;
        self
    }

    /// How long the client looks for another connection when one is lost. 2 minutes by default.
    pub const fn reconnect_for(mut self, span: Duration) -> Self {
        self.reconnect_for = span;
        self
    }

    /// How long a request, a call or a query may take before it counts as undecided. 5 seconds by default.
    pub const fn request_within(mut self, span: Duration) -> Self {
        self.request_within = span;
        self
    }

    /// Begins traces of what this client asks, sends and calls, as many as the tracer samples; the servers go on with
    /// them. Nothing is traced by default.
    ///
    /// ```no_run
    /// # async fn play() -> Result<(), Box<dyn std::error::Error>> {
    /// use greenroom_client::{Client, telemetry::{Export, Registry, TelemetryConfig, Who}};
    ///
    /// let endpoint = "http://127.0.0.1:4318".to_owned();
    /// let config = TelemetryConfig { endpoint, sample: 0.01, ..TelemetryConfig::default() };
    /// let export = Export::start(&config, &Registry::default())?;
    /// let tracer = export.tracer(Who::new("client", "Ann"));
    /// let client = Client::builder().servers(["tcp://127.0.0.1:4000"]).trace(tracer).connect().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn trace(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }

    /// Checks in, and starts the client's task on the runtime that this is called on.
    ///
    /// # Errors
    /// [`ClientError::NoServer`] with the reason of each address; [`ClientError::Refused`] with a refusal that would be
    /// the same everywhere; [`ClientError::Address`], [`ClientError::NoAddress`], [`ClientError::File`],
    /// [`ClientError::Trust`] when the settings can't be used.
    pub async fn connect(self) -> Result<Client, ClientError> {
        let well_known: Vec<Address> =
            self.servers.iter().map(|url| Address::parse(url)).collect::<Result<_, _>>()?;
        let book = ServerBook::new(well_known, self.server_list_file)?;
        let tls = if book.is_encrypted() { Some(tls::config(&self.trust)?) } else { None };
        let credentials = match self.credentials {
            Some(credentials) => credentials,
            None => guest(self.guest)?,
        };
        let mut dialer = Dialer {
            book,
            credentials,
            session_key: SessionKey(random::secret()?),
            tls,
            dice: Dice::seeded(u64::from_le_bytes(random::secret()?)),
            attempt_timeout: self.attempt_within,
            lost: None,
            pause: None,
            sampling: Sampling::new(&self.tracer),
        };
        let connection = dialer.check_in(Instant::now() + self.connect_within).await?;
        Ok(Client::start(dialer, connection, self.reconnect_for, self.request_within, self.tracer))
    }
}

/// Credentials of a guest that nobody has been before.
fn guest(name: EcoString) -> Result<Credentials, ClientError> {
    let token: String = random::secret::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Credentials { scheme: "guest".into(), token, name })
}
