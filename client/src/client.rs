//! The application's handle on a session, and what it can ask the directory for.

use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use ecow::{EcoString, eco_format};
use greenroom_protocol::{
    CLIENT_FRAME_BYTES_MAX, Code, InstanceId, Key, KindName, Refusal, RequestHeader, RequestId,
    UserId,
    search::Filter,
    wire::{
        Opaque,
        client_session::{self, Credentials, Found, Ranking, Request},
    },
};
use greenroom_telemetry::Tracer;
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Builder, ClientError, Identity, Room, Stats, Status, Watch,
    dialer::{Connection, Dialer},
    search::{narrow, read},
    seat::{self, Shared, locked},
    session::{Command, Done, Session},
    shell::Shell,
};

/// Commands between the application and the task; more wait with their callers.
const COMMANDS_MAX: usize = 16;

/// One session with a cluster. Cheap to clone; the session ends when the last clone, the last [`Room`] and the last
/// [`Watch`] are dropped, or with [`Client::close`].
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    shared: Arc<Shared>,
    identity: Arc<Mutex<Identity>>,
    credentials: Credentials,
    request_within: Duration,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What a request came to, for who asked again. See [`Client::ask_again`].
#[derive(Debug)]
pub enum Answer {
    /// An instance was made.
    Created(InstanceId),
    /// A seat was taken.
    Joined(Room),
    /// A seat was given up.
    Left,
    /// An instance was closed.
    Destroyed,
    /// Instances of a kind.
    Found(Found),
    /// A live search has begun.
    Watching(Watch),
    /// A part of a rank board.
    Ranking(Ranking),
}

impl Client {
    /// Begins the settings of a client.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn start(
        dialer: Dialer,
        connection: Connection,
        reconnect_for: Duration,
        request_within: Duration,
        tracer: Tracer,
    ) -> Self {
        let shared = Arc::new(Shared::new(tracer));
        let (commands, commands_in) = mpsc::channel(COMMANDS_MAX);
        let (status_out, status) = watch::channel(Status::Live);
        let checked_in = &connection.checked_in;
        let identity = Arc::new(Mutex::new(Identity {
            user: checked_in.user.clone(),
            name: checked_in.name.clone(),
            session: checked_in.session,
            server: connection.address.url.clone(),
        }));
        let credentials = dialer.credentials.clone();
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let shell = Shell {
            session: Session::new(Arc::clone(&shared), checked_in.session),
            dialer,
            shared: Arc::clone(&shared),
            commands: commands_in,
            status: status_out,
            identity: Arc::clone(&identity),
            stop: stop.clone(),
            reconnect_for,
        };
        tasks.spawn(shell.run(connection));
        tasks.close();
        Self {
            inner: Arc::new(Inner {
                commands,
                status,
                shared,
                identity,
                credentials,
                request_within,
                tasks,
                stop,
            }),
        }
    }

    /// Who this client is, by the word of the session server it is connected to.
    pub fn identity(&self) -> Identity {
        locked(&self.inner.identity).clone()
    }

    /// What the client checks in with. A guest that keeps it is the same guest next time.
    pub fn credentials(&self) -> &Credentials {
        &self.inner.credentials
    }

    /// The status, now and as it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.inner.status.clone()
    }

    /// Counts since the first check-in.
    pub fn stats(&self) -> Stats {
        self.inner.shared.stats().clone()
    }

    /// Ends the session and waits until the connection is closed. Seats stay the user's for as long as their games
    /// grant.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.wait().await;
    }

    /// Makes an instance, without a seat in it. Await what this gives.
    pub fn create(&self, kind: &str) -> Create<'_> {
        Create {
            client: self,
            kind: kind.into(),
            key: None,
            params: Ok(Opaque::new()),
            private: false,
            expected: Vec::new(),
        }
    }

    /// Takes a seat in an instance. Await what this gives.
    pub fn join(&self, instance: InstanceId) -> Join<'_> {
        Join { client: self, instance, options: Ok(Opaque::new()) }
    }

    /// Takes a seat in an instance of this kind that has a free one, else makes one. Await what this gives.
    pub fn join_or_create(&self, kind: &str) -> JoinOrCreate<'_> {
        JoinOrCreate {
            client: self,
            kind: kind.into(),
            key: None,
            filter: Ok(Filter::default()),
            params: Ok(Opaque::new()),
            private: false,
            expected: Vec::new(),
            options: Ok(Opaque::new()),
        }
    }

    /// Gives a seat up, whether there is a [`Room`] for it or not.
    ///
    /// # Errors
    /// As every request, see [`ClientError`].
    pub async fn leave(&self, instance: InstanceId) -> Result<(), ClientError> {
        let Done::Left = self.request(client_session::Leave { instance }.into()).await? else {
            return Err(mismatch());
        };
        Ok(())
    }

    /// Closes an instance that this user made.
    ///
    /// # Errors
    /// As every request, see [`ClientError`].
    pub async fn destroy(&self, instance: InstanceId) -> Result<(), ClientError> {
        let Done::Destroyed = self.request(client_session::Destroy { instance }.into()).await?
        else {
            return Err(mismatch());
        };
        Ok(())
    }

    /// Waits once more for the answer to a request that was [`ClientError::Undecided`]. The request is repeated with
    /// the same id, so that it happens once at most.
    ///
    /// # Errors
    /// [`ClientError::NotAsked`] when it was answered, or given up after 30 seconds; else as the request itself.
    pub async fn ask_again(&self, id: RequestId) -> Result<Answer, ClientError> {
        let done =
            self.command(|deadline, reply| Command::AskAgain { id, deadline, reply }).await?;
        Ok(match done {
            Done::Created(instance) => Answer::Created(instance),
            Done::Joined(hold) => Answer::Joined(Room::new(hold, self.clone())),
            Done::Left => Answer::Left,
            Done::Destroyed => Answer::Destroyed,
            Done::Found(found) => Answer::Found(found),
            Done::Watching(hold) => Answer::Watching(Watch::new(hold, self.clone())),
            Done::Ranking(ranking) => Answer::Ranking(ranking),
            // Nobody who could ask again asks for this.
            Done::Unwatched => return Err(mismatch()),
        })
    }

    /// How long an answer is waited for.
    pub(crate) fn request_within(&self) -> Duration {
        self.inner.request_within
    }

    pub(crate) async fn request(&self, request: Request) -> Result<Done, ClientError> {
        let mut payload = Vec::new();
        request.encode_into(&mut payload);
        let max = CLIENT_FRAME_BYTES_MAX - RequestHeader::BYTES;
        if payload.len() > max {
            return Err(ClientError::TooLarge { len: payload.len(), max });
        }
        self.command(|deadline, reply| Command::Request {
            kind: request.kind(),
            payload,
            deadline,
            reply,
        })
        .await
    }

    async fn command(
        &self,
        command: impl FnOnce(Instant, oneshot::Sender<seat::Answer<Done>>) -> Command,
    ) -> Result<Done, ClientError> {
        let deadline = Instant::now() + self.inner.request_within;
        let (reply, done) = oneshot::channel();
        let command = command(deadline, reply);
        match timeout_at(deadline, self.inner.commands.send(command)).await {
            Err(_) => Err(ClientError::Unavailable),
            Ok(Err(_)) => Err(self.closed()),
            // The task answers at the deadline.
            Ok(Ok(())) => done.await.unwrap_or_else(|_| Err(self.closed())),
        }
    }

    fn closed(&self) -> ClientError {
        match &*self.inner.status.borrow() {
            Status::Closed(refusal) => ClientError::Closed(refusal.clone()),
            Status::Live | Status::Resuming | Status::Resumed => ClientError::Closed(Refusal::new(
                Code::Left,
                "the runtime that the client's task ran on is gone",
            )),
        }
    }
}

pub(crate) fn kind_name(kind: &str) -> Result<KindName, ClientError> {
    KindName::new(kind).map_err(|error| ClientError::Name(eco_format!("{error}")))
}

fn key(key: Option<EcoString>) -> Result<Option<Key>, ClientError> {
    key.map(|key| Key::new(key).map_err(|error| ClientError::Name(eco_format!("{error}"))))
        .transpose()
}

pub(crate) fn mismatch() -> ClientError {
    ClientError::Refused(Refusal::new(
        Code::UnexpectedKind,
        "the server answered another question than it was asked",
    ))
}

/// `value` as a game's own bytes.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, ClientError> {
    rmp_serde::to_vec_named(value).map_err(|source| ClientError::Encode { source })
}

fn opaque<T: Serialize + ?Sized>(value: &T) -> Result<Opaque, ClientError> {
    encode(value).map(Opaque::from)
}

pub(crate) type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T, ClientError>> + Send + 'a>>;

/// A [`Client::create`] that is not yet under way.
#[derive(Debug)]
#[must_use = "nothing happens before it is awaited"]
pub struct Create<'a> {
    client: &'a Client,
    kind: EcoString,
    key: Option<EcoString>,
    params: Result<Opaque, ClientError>,
    private: bool,
    expected: Vec<UserId>,
}

impl Create<'_> {
    /// The kind's own parameters.
    pub fn params<T: Serialize + ?Sized>(mut self, params: &T) -> Self {
        self.params = opaque(params);
        self
    }
    /// At most one instance of the kind has this key; if there is one, it is the answer.
    pub fn key(mut self, key: impl Into<EcoString>) -> Self {
        self.key = Some(key.into());
        self
    }
    /// It is found by nobody: who wants in has its id or its key. The game may change that.
    pub const fn private(mut self) -> Self {
        self.private = true;
        self
    }
    /// Seats are kept for these users for a while, 32 at most.
    pub fn expect(mut self, users: impl IntoIterator<Item = UserId>) -> Self {
        self.expected.extend(users);
        self
    }
}

impl<'a> IntoFuture for Create<'a> {
    type Output = Result<InstanceId, ClientError>;
    type IntoFuture = Boxed<'a, InstanceId>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let request = client_session::Create {
                kind: kind_name(&self.kind)?,
                key: key(self.key)?,
                params: self.params?,
                private: self.private,
                expected: self.expected,
            };
            let Done::Created(instance) = self.client.request(request.into()).await? else {
                return Err(mismatch());
            };
            Ok(instance)
        })
    }
}

/// A [`Client::join`] that is not yet under way.
#[derive(Debug)]
#[must_use = "nothing happens before it is awaited"]
pub struct Join<'a> {
    client: &'a Client,
    instance: InstanceId,
    options: Result<Opaque, ClientError>,
}

impl Join<'_> {
    /// What the game's `admit` gets to see.
    pub fn options<T: Serialize + ?Sized>(mut self, options: &T) -> Self {
        self.options = opaque(options);
        self
    }
}

impl<'a> IntoFuture for Join<'a> {
    type Output = Result<Room, ClientError>;
    type IntoFuture = Boxed<'a, Room>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let request = client_session::Join { instance: self.instance, options: self.options? };
            self.client.join_by(request.into()).await
        })
    }
}

/// A [`Client::join_or_create`] that is not yet under way.
#[derive(Debug)]
#[must_use = "nothing happens before it is awaited"]
pub struct JoinOrCreate<'a> {
    client: &'a Client,
    kind: EcoString,
    key: Option<EcoString>,
    filter: Result<Filter, ClientError>,
    params: Result<Opaque, ClientError>,
    private: bool,
    expected: Vec<UserId>,
    options: Result<Opaque, ClientError>,
}

impl JoinOrCreate<'_> {
    /// The kind's own parameters, if an instance is made.
    pub fn params<T: Serialize + ?Sized>(mut self, params: &T) -> Self {
        self.params = opaque(params);
        self
    }
    /// What the game's `admit` gets to see.
    pub fn options<T: Serialize + ?Sized>(mut self, options: &T) -> Self {
        self.options = opaque(options);
        self
    }
    /// Only in the instance with this key, which is made if it is not there.
    pub fn key(mut self, key: impl Into<EcoString>) -> Self {
        self.key = Some(key.into());
        self
    }
    /// Only in one that this lets through, and every filter that was given before. Callers with the same filter meet.
    pub fn filter(mut self, filter: impl Into<Filter>) -> Self {
        narrow(&mut self.filter, Ok(filter.into()));
        self
    }
    /// As [`Self::filter`], from a text: `mode = "ranked" and rating between 1400 and 1600`.
    pub fn filter_text(mut self, text: &str) -> Self {
        narrow(&mut self.filter, read(text));
        self
    }
    /// One that is made is found by nobody: who wants in has its id or its key. The game may change that.
    pub const fn private(mut self) -> Self {
        self.private = true;
        self
    }
    /// Seats are kept for these users for a while, beside the caller's, 32 at most.
    pub fn expect(mut self, users: impl IntoIterator<Item = UserId>) -> Self {
        self.expected.extend(users);
        self
    }
}

impl<'a> IntoFuture for JoinOrCreate<'a> {
    type Output = Result<Room, ClientError>;
    type IntoFuture = Boxed<'a, Room>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let request = client_session::JoinOrCreate {
                kind: kind_name(&self.kind)?,
                key: key(self.key)?,
                filter: self.filter?,
                params: self.params?,
                private: self.private,
                expected: self.expected,
                options: self.options?,
            };
            self.client.join_by(request.into()).await
        })
    }
}

impl Client {
    async fn join_by(&self, request: Request) -> Result<Room, ClientError> {
        let Done::Joined(hold) = self.request(request).await? else {
            return Err(mismatch());
        };
        Ok(Room::new(hold, self.clone()))
    }
}
