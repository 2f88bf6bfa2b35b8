//! A seat in an instance, as the application has it.

use std::{ops::Deref, sync::Arc, time::Duration};

use bytes::Bytes;
use greenroom_protocol::{Code, InstanceId, KindName, Limits, Seat, Seq, ViewId, decode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    Client, ClientError, Event, Reply,
    client::encode,
    seat::{self, Hold, SeatLink},
};

/// A seat in an instance, and what happens there. Dropped, the seat is given up.
///
/// Events wait in a bounded queue. An application that does not take them makes the client stop reading its connection
/// before anything is lost; one that wants none calls [`Room::mute`].
#[derive(Debug)]
pub struct Room {
    handle: RoomHandle,
    // Before `client`: the seat is given up while there is still a task to do it.
    _hold: Hold,
    client: Client,
}

/// Says things to an instance and looks at its views, while the [`Room`] waits for events elsewhere. It does not hold
/// the seat.
#[derive(Clone, Debug)]
pub struct RoomHandle {
    link: Arc<SeatLink>,
    reply_within: Duration,
}

/// A whole view of an instance, as its game encoded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Low 32 bits of the tick that made it.
    pub tick: u32,
    /// Its version.
    pub version: u32,
    /// The encoded view.
    pub bytes: Bytes,
}

impl View {
    /// The view as the game's own type.
    ///
    /// # Errors
    /// [`ClientError::Decode`] when it is of another type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        decode(&self.bytes, Limits::SERVER)
            .map_err(|source| ClientError::Decode { what: "a view", source })
    }
}

impl Deref for Room {
    type Target = RoomHandle;
    fn deref(&self) -> &RoomHandle {
        &self.handle
    }
}

impl Room {
    pub(crate) fn new(hold: Hold, client: Client) -> Self {
        let handle =
            RoomHandle { link: Arc::clone(&hold.0), reply_within: client.request_within() };
        Self { handle, _hold: hold, client }
    }

    /// A handle to speak with, for another task.
    pub fn handle(&self) -> RoomHandle {
        self.handle.clone()
    }

    /// The next event; `None` after [`Event::Left`] was given. Cancelling it loses nothing.
    pub async fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.try_next_event() {
                return Some(event);
            }
            if self.handle.link.lock().ended.is_some() {
                // What ended it was put into the queue before: look once more.
                return self.try_next_event();
            }
            self.handle.link.arrived.notified().await;
        }
    }

    /// The next event, if there is one.
    pub fn try_next_event(&mut self) -> Option<Event> {
        let link = &self.handle.link;
        let mut state = link.lock();
        let event = state.inbox.pop();
        if state.stalled && state.inbox.has_room_again() {
            state.stalled = false;
            link.call_the_task(&mut state);
        }
        event
    }

    /// Drops messages of the game from here on; other events still come, but need not be taken.
    pub fn mute(&mut self) {
        let link = &self.handle.link;
        let mut state = link.lock();
        state.inbox.mute();
        if std::mem::take(&mut state.stalled) {
            link.call_the_task(&mut state);
        }
    }

    /// Gives the seat up and waits until that is done.
    ///
    /// # Errors
    /// As every request, see [`ClientError`]; a seat that is gone already is no error.
    pub async fn leave(self) -> Result<(), ClientError> {
        match self.client.leave(self.handle.link.instance).await {
            Err(ClientError::Refused(refusal))
                if matches!(
                    refusal.code,
                    Code::NotSeated | Code::InstanceUnknown | Code::InstanceClosed
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }
}

impl RoomHandle {
    /// The instance.
    pub fn instance(&self) -> InstanceId {
        self.link.instance
    }
    /// Its kind.
    pub fn kind(&self) -> &KindName {
        &self.link.kind
    }
    /// The seat.
    pub fn seat(&self) -> Seat {
        self.link.lock().seat
    }
    /// Ticks per second; 0 for an instance that steps when it is spoken to.
    pub fn tick_rate(&self) -> u16 {
        self.link.lock().tick_rate
    }
    /// Messages and calls that the instance has not yet acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.link.lock().up.len()
    }

    /// Sends a message: delivered once and in order, or the room says why not. Never waits; gives the message's number.
    ///
    /// # Errors
    /// [`ClientError::Full`] when 64 messages or 32 KiB are not yet acknowledged; [`ClientError::TooLarge`],
    /// [`ClientError::Encode`]; [`ClientError::Left`] when the seat is gone.
    pub fn send<In: Serialize + ?Sized>(&self, input: &In) -> Result<Seq, ClientError> {
        self.send_bytes(encode(input)?.into())
    }

    /// As [`Self::send`], with what is encoded already.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_bytes(&self, payload: Bytes) -> Result<Seq, ClientError> {
        let mut state = self.link.lock();
        let number = state.send(payload)?;
        self.link.call_the_task(&mut state);
        Ok(number)
    }

    /// Sends a message and waits for its reply. The message is delivered once, in order with what is sent otherwise,
    /// also when this is cancelled.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the game's own refusal; [`ClientError::CallUndecided`] when there is no reply in
    /// time; [`ClientError::Decode`]; else as [`Self::send`].
    pub async fn call<In: Serialize + ?Sized, Out: DeserializeOwned>(
        &self,
        input: &In,
    ) -> Result<Out, ClientError> {
        self.call_bytes(encode(input)?.into()).await?.decode()
    }

    /// As [`Self::call`], with what is encoded already. The message is queued at once, not when this is first awaited.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn call_bytes(
        &self,
        payload: Bytes,
    ) -> impl Future<Output = Result<Reply, ClientError>> + Send + use<> {
        let queued = {
            let mut state = self.link.lock();
            let queued = state.call(payload);
            self.link.call_the_task(&mut state);
            queued
        };
        let within = self.reply_within;
        async move {
            let (number, reply) = queued?;
            waited(within, reply, || ClientError::CallUndecided { number }).await
        }
    }

    /// Asks a question that changes nothing, and that is answered at once, outside of the order of messages.
    ///
    /// # Errors
    /// [`ClientError::Refused`]; [`ClientError::Unavailable`] when there is no answer in time;
    /// [`ClientError::Full`] when 64 wait already; [`ClientError::Decode`], [`ClientError::Encode`],
    /// [`ClientError::TooLarge`], [`ClientError::Left`].
    pub async fn query<In: Serialize + ?Sized, Out: DeserializeOwned>(
        &self,
        question: &In,
    ) -> Result<Out, ClientError> {
        let payload = encode(question)?.into();
        let reply = {
            let mut state = self.link.lock();
            let reply = state.query(payload)?;
            self.link.call_the_task(&mut state);
            reply
        };
        waited(self.reply_within, reply, || ClientError::Unavailable).await?.decode()
    }

    /// The newest view that every client of the instance sees.
    ///
    /// # Errors
    /// [`ClientError::NoView`] before the first one came; [`ClientError::Decode`] when it is of another type.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        self.view().ok_or(ClientError::NoView)?.decode()
    }

    /// The newest view that only this seat sees.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub fn private_state<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        self.private_view().ok_or(ClientError::NoView)?.decode()
    }

    /// The newest shared view, as it was encoded; `None` before the first one came.
    pub fn view(&self) -> Option<View> {
        self.any_view(|_| ViewId::SHARED)
    }

    /// The newest view of this seat alone, as it was encoded; `None` before the first one came.
    pub fn private_view(&self) -> Option<View> {
        self.any_view(ViewId::of_seat)
    }

    fn any_view(&self, id: impl FnOnce(Seat) -> ViewId) -> Option<View> {
        let state = self.link.lock();
        let latest = state.views.latest(id(state.seat))?;
        Some(View { tick: latest.tick, version: latest.version, bytes: latest.bytes.clone() })
    }
}

async fn waited(
    within: Duration,
    reply: oneshot::Receiver<seat::Answer<Reply>>,
    late: impl FnOnce() -> ClientError,
) -> Result<Reply, ClientError> {
    match timeout(within, reply).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(_)) | Err(_) => Err(late()),
    }
}
