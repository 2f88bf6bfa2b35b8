//! A live search: what the application's handle and the client's task share, and the copy of the set that events are
//! told from.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use ecow::eco_format;
use greenroom_protocol::{
    InstanceId, Refusal, RequestId,
    wire::client_session::{Changes, Listed},
};
use tokio::sync::Notify;

use crate::{
    Client,
    error::Misbehaved,
    seat::{Shared, Work, locked},
};

/// Instances that may wait for the application in one live search. A server waits for an acknowledgement after each
/// message, and the longest one holds fewer: this bounds what a server that does not can make us keep.
const WAITING_MAX: usize = 1 << 16;

/// What a live search tells.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent {
    /// An instance is found that was not before.
    Added(Listed),
    /// An instance that is found has changed: this is how it is now.
    Changed(Listed),
    /// An instance is no longer found: it is closed, or the filter does not let it through any more.
    Removed(InstanceId),
    /// Everything that was there when the live search began has been told. Comes once.
    Ready,
    /// The live search is over, and why. Nothing follows.
    Ended(Refusal),
}

/// A live search: first everything that is found, then what changes. Dropped, it ends.
///
/// The server tells more only after everything that it told before was taken from here, and merges what happens
/// meanwhile: an application that takes its time gets fewer events of each instance, and never a queue of old ones.
/// After a reconnect, or when the cluster has forgotten the live search and was asked again, the whole set is told
/// anew; of that the application sees only what is different.
#[derive(Debug)]
pub struct Watch {
    mirror: Mirror,
    /// The message whose events are being taken.
    taking: Option<Taking>,
    over: bool,
    // Before the client: the live search is ended while there is still a task to do it.
    hold: WatchHold,
    _client: Client,
}

impl Watch {
    pub(crate) fn new(hold: WatchHold, client: Client) -> Self {
        Self { mirror: Mirror::default(), taking: None, over: false, hold, _client: client }
    }

    /// The next event; `None` after [`WatchEvent::Ended`] was given. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            let event = self.try_next();
            if event.is_some() || self.over {
                return event;
            }
            self.hold.0.arrived.notified().await;
        }
    }

    /// The next event, if there is one.
    pub fn try_next(&mut self) -> Option<WatchEvent> {
        loop {
            let event = self.mirror.events.pop_front();
            if self.mirror.events.is_empty()
                && let Some(taking) = self.taking.take()
            {
                // The application has everything that was told: the server may tell more.
                self.hold.0.acknowledge(taking);
            }
            if event.is_some() || self.over {
                return event;
            }
            let taken = self.hold.0.lock().take();
            match taken {
                Taken::Waiting(waiting, taking) => {
                    self.taking = Some(taking);
                    self.mirror.apply(waiting);
                }
                Taken::Ended(refusal) => {
                    self.over = true;
                    return Some(WatchEvent::Ended(refusal));
                }
                Taken::Nothing => return None,
            }
        }
    }

    /// What is found, by id: as it is after the events of the message that is being taken.
    pub fn current(&self) -> impl Iterator<Item = &Listed> {
        self.mirror.current.values()
    }
}

/// The client's own copy of what is found, and what the application is still to be told of it.
#[derive(Debug, Default)]
struct Mirror {
    current: BTreeMap<InstanceId, Listed>,
    /// While the set is told anew: what of it has been told.
    told: Option<BTreeSet<InstanceId>>,
    events: VecDeque<WatchEvent>,
    /// The set was whole once.
    ready: bool,
}

impl Mirror {
    /// Takes a message in, and tells what is different.
    fn apply(&mut self, waiting: Waiting) {
        if waiting.anew {
            self.told = Some(BTreeSet::new());
        }
        for (instance, now) in waiting.instances {
            if let Some(told) = &mut self.told {
                match now {
                    Some(_) => told.insert(instance),
                    None => told.remove(&instance),
                };
            }
            let Some(listed) = now else {
                self.remove(instance);
                continue;
            };
            match self.current.insert(instance, listed.clone()) {
                None => self.events.push_back(WatchEvent::Added(listed)),
                Some(before) if before != listed => {
                    self.events.push_back(WatchEvent::Changed(listed));
                }
                Some(_) => {}
            }
        }
        if waiting.more {
            return;
        }
        let Some(told) = self.told.take() else { return };
        let gone: Vec<_> = self.current.keys().filter(|id| !told.contains(id)).copied().collect();
        for instance in gone {
            self.remove(instance);
        }
        if !std::mem::replace(&mut self.ready, true) {
            self.events.push_back(WatchEvent::Ready);
        }
    }

    fn remove(&mut self, instance: InstanceId) {
        if self.current.remove(&instance).is_some() {
            self.events.push_back(WatchEvent::Removed(instance));
        }
    }
}

/// Changes that the application has not come to take, merged: each instance is in it once.
#[derive(Debug, Default)]
struct Waiting {
    n: u64,
    anew: bool,
    more: bool,
    /// `None` for one that is gone.
    instances: BTreeMap<InstanceId, Option<Listed>>,
}

/// Which message is being taken, and of which telling it is.
#[derive(Clone, Copy, Debug)]
struct Taking {
    n: u64,
    telling: u64,
}

enum Taken {
    Waiting(Waiting, Taking),
    Ended(Refusal),
    Nothing,
}

/// Which live search of this client: the number of its first request. A server that has forgotten it is asked again,
/// and knows it by the number of that request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WatchKey(pub(crate) RequestId);

/// One live search of this client.
#[derive(Debug)]
pub(crate) struct WatchLink {
    pub(crate) key: WatchKey,
    shared: Arc<Shared>,
    /// The application waits for an event here.
    arrived: Notify,
    state: Mutex<WatchState>,
}

#[derive(Debug, Default)]
pub(crate) struct WatchState {
    waiting: Option<Waiting>,
    /// Number of the newest message that came.
    newest: u64,
    /// Why it is over, once it is.
    ended: Option<Refusal>,
    /// The handle is dropped: the live search is to be ended.
    abandoned: bool,
    /// To be acknowledged.
    seen: Option<u64>,
    calling: bool,
    /// Counts how often the set was to be told anew, on another connection or to another request: what came before is
    /// not acknowledged after.
    telling: u64,
}

impl WatchLink {
    pub(crate) fn new(key: WatchKey, shared: Arc<Shared>) -> Self {
        Self { key, shared, arrived: Notify::new(), state: Mutex::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, WatchState> {
        locked(&self.state)
    }

    /// Takes what the server tells.
    pub(crate) fn tell(&self, changes: Changes) -> Result<(), Misbehaved> {
        self.lock().tell(changes)?;
        self.arrived.notify_one();
        Ok(())
    }

    /// It is over. What was told before is still given.
    pub(crate) fn end(&self, refusal: &Refusal) {
        self.lock().ended.get_or_insert_with(|| refusal.clone());
        self.arrived.notify_one();
    }

    fn acknowledge(&self, Taking { n, telling }: Taking) {
        let mut state = self.lock();
        // What waits already is acknowledged with it when it is taken.
        if state.ended.is_none() && state.waiting.is_none() && state.telling == telling {
            state.seen = Some(n);
            self.call_the_task(&mut state);
        }
    }

    /// Takes what waits, as an application does that wants to know nothing.
    #[cfg(test)]
    pub(crate) fn take_all(&self) {
        let taken = self.lock().take();
        if let Taken::Waiting(_, taking) = taken {
            self.acknowledge(taking);
        }
    }

    fn call_the_task(&self, state: &mut WatchState) {
        if !std::mem::replace(&mut state.calling, true) {
            self.shared.call(Work::Watch(self.key));
        }
    }
}

impl WatchState {
    fn tell(&mut self, changes: Changes) -> Result<(), Misbehaved> {
        let Changes { n, anew, more, instances, gone, ended } = changes;
        if self.ended.is_some() || (!anew && n <= self.newest) {
            return Ok(()); // It came before.
        }
        self.newest = n;
        let waiting = self.waiting.get_or_insert_default();
        if anew {
            *waiting = Waiting { anew, ..Waiting::default() };
        }
        (waiting.n, waiting.more) = (n, more);
        let instances = instances.into_iter().map(|listed| (listed.instance, Some(listed)));
        waiting.instances.extend(instances);
        waiting.instances.extend(gone.into_iter().map(|instance| (instance, None)));
        self.ended = ended;
        if waiting.instances.len() > WAITING_MAX {
            return Err(Misbehaved(eco_format!(
                "a live search tells of more than {WAITING_MAX} instances and waits for no acknowledgement"
            )));
        }
        Ok(())
    }

    fn take(&mut self) -> Taken {
        match (self.waiting.take(), &self.ended) {
            (Some(waiting), _) => {
                let taking = Taking { n: waiting.n, telling: self.telling };
                Taken::Waiting(waiting, taking)
            }
            (None, Some(refusal)) => Taken::Ended(refusal.clone()),
            (None, None) => Taken::Nothing,
        }
    }

    /// The task has seen the call.
    pub(crate) const fn called(&mut self) {
        self.calling = false;
    }

    /// Nobody holds it any more.
    pub(crate) const fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    pub(crate) const fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Whether there is something to acknowledge.
    pub(crate) const fn is_seen(&self) -> bool {
        self.seen.is_some()
    }

    /// What is to be acknowledged.
    pub(crate) const fn take_seen(&mut self) -> Option<u64> {
        self.seen.take()
    }

    /// The connection is gone, or the server has forgotten it: what comes next is told anew.
    pub(crate) const fn expect_anew(&mut self) {
        self.seen = None;
        self.telling += 1;
    }
}

/// The one handle that holds a live search: dropped, it is ended.
#[derive(Debug)]
pub(crate) struct WatchHold(pub(crate) Arc<WatchLink>);

impl Drop for WatchHold {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.ended.is_none() {
            state.abandoned = true;
            self.0.call_the_task(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::{Code, wire::client_session::Meta};
    use proptest::prelude::*;

    use super::*;

    fn listed(instance: u128, seats_taken: u16) -> Listed {
        let (instance, meta) = (InstanceId(instance), Meta::new());
        Listed { instance, seats_taken, seats_max: 16, created_ms: 1, meta }
    }

    fn changes(n: u64) -> Changes {
        Changes { n, anew: false, more: false, instances: vec![], gone: vec![], ended: None }
    }

    #[test]
    fn a_server_that_waits_for_nothing_is_not_listened_to_for_ever() {
        let mut state = WatchState::default();
        let error = (0..100).find_map(|n| {
            let first = u128::from(n) * 1_000;
            let instances = (first..first + 1_000).map(|id| listed(id, 0)).collect();
            state.tell(Changes { instances, ..changes(n + 1) }).err()
        });
        let text = error.unwrap().to_string();
        assert!(text.contains("waits for no acknowledgement"), "{text}");
    }

    #[test]
    fn nothing_is_told_after_the_end() {
        let mut state = WatchState::default();
        let ended = Some(Refusal::new(Code::KindUnknown, "its kind is gone"));
        state.tell(Changes { ended, ..changes(1) }).unwrap();
        state.tell(Changes { instances: vec![listed(1, 1)], ..changes(2) }).unwrap();
        let Taken::Waiting(waiting, _) = state.take() else { panic!() };
        assert!(waiting.instances.is_empty());
        assert!(matches!(state.take(), Taken::Ended(_)));
    }

    /// What happens around a live search.
    #[derive(Clone, Debug)]
    enum Step {
        /// An instance is there with so many seats taken, or is gone.
        Set(u8, Option<u16>),
        /// The server tells what has changed.
        Tell,
        /// On a new connection it tells everything, in parts of this many.
        Anew(usize),
        /// The connection breaks after this many of those parts.
        Broken(usize, usize),
        /// The application takes this many events.
        Take(usize),
    }

    fn steps() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u8..8, proptest::option::weighted(0.7, 0u16..4)).prop_map(|(id, seats)| Step::Set(id, seats)),
            4 => Just(Step::Tell),
            1 => (1usize..5).prop_map(Step::Anew),
            1 => (1usize..3, 0usize..4).prop_map(|(part, parts)| Step::Broken(part, parts)),
            4 => (0usize..6).prop_map(Step::Take),
        ]
    }

    /// The server, what the application made of the events, and what is between them.
    #[derive(Default)]
    struct Story {
        there: BTreeMap<InstanceId, Listed>,
        told: BTreeMap<InstanceId, Listed>,
        n: u64,
        state: WatchState,
        mirror: Mirror,
        shown: BTreeMap<InstanceId, Listed>,
        ready: u32,
    }

    impl Story {
        fn tell(&mut self, changes: Changes) {
            self.n += 1;
            self.state.tell(Changes { n: self.n, ..changes }).unwrap();
        }
        fn tell_what_changed(&mut self) {
            let differs = |listed: &&Listed| self.told.get(&listed.instance) != Some(*listed);
            let instances = self.there.values().filter(differs).cloned().collect();
            let gone =
                self.told.keys().filter(|id| !self.there.contains_key(id)).copied().collect();
            self.told.clone_from(&self.there);
            self.tell(Changes { instances, gone, ..changes(0) });
        }
        fn tell_anew(&mut self, part: usize, parts: usize) {
            let all: Vec<_> = self.there.values().cloned().collect();
            let count = all.len().div_ceil(part).max(1);
            for at in 0..count.min(parts) {
                let instances = all.iter().skip(at * part).take(part).cloned().collect();
                let (anew, more) = (at == 0, at + 1 < count);
                self.tell(Changes { anew, more, instances, ..changes(0) });
            }
            self.told.clone_from(&self.there);
        }
        fn take(&mut self) -> bool {
            if self.mirror.events.is_empty()
                && let Taken::Waiting(waiting, _) = self.state.take()
            {
                self.mirror.apply(waiting);
            }
            let Some(event) = self.mirror.events.pop_front() else { return false };
            match event {
                WatchEvent::Added(listed) => {
                    assert_eq!(self.shown.insert(listed.instance, listed), None);
                }
                WatchEvent::Changed(listed) => {
                    let before = self.shown.insert(listed.instance, listed.clone());
                    assert!(before.is_some_and(|before| before != listed));
                }
                WatchEvent::Removed(instance) => assert!(self.shown.remove(&instance).is_some()),
                WatchEvent::Ready => self.ready += 1,
                WatchEvent::Ended(refusal) => panic!("{refusal}"),
            }
            if self.mirror.events.is_empty() {
                assert_eq!(self.shown, self.mirror.current);
            }
            true
        }
    }

    proptest! {
        /// However the server tells it, in parts, merged and over broken connections: events fit each other, and who
        /// follows them has in the end what is there.
        #[test]
        fn who_follows_the_events_has_what_is_there(
            sequence in proptest::collection::vec(steps(), 0..80),
        ) {
            let mut story = Story::default();
            story.tell_anew(3, usize::MAX);
            for step in sequence {
                match step {
                    Step::Set(id, seats) => {
                        let id = u128::from(id);
                        match seats {
                            Some(seats) => story.there.insert(InstanceId(id), listed(id, seats)),
                            None => story.there.remove(&InstanceId(id)),
                        };
                    }
                    Step::Tell => story.tell_what_changed(),
                    Step::Anew(part) => story.tell_anew(part, usize::MAX),
                    Step::Broken(part, parts) => {
                        story.tell_anew(part, parts);
                        story.tell_anew(2, usize::MAX);
                    }
                    Step::Take(count) => {
                        for _ in 0..count {
                            story.take();
                        }
                    }
                }
            }
            story.tell_what_changed();
            while story.take() || story.state.waiting.is_some() {}
            prop_assert_eq!(&story.shown, &story.there);
            prop_assert_eq!(story.ready, 1);
        }
    }
}
