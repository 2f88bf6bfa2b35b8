//! Live searches: who wants to be told when what a filter lets through changes.
//!
//! Everybody with the same filter on the same kind is one [`Group`], which knows the set and a list of its changes in
//! which each instance stands once, at its newest change. A change costs the group the same however many watch, and a
//! group whose filter does not let the instance through, before or after, one look at it. A watcher is a place in that
//! list: who reads slowly finds changes merged, not more of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use ecow::eco_format;
use greenroom_protocol::search::{Filter, LIMIT_MAX};
use greenroom_protocol::wire::Opaque;
use greenroom_protocol::wire::client_session::{
    Changes, Listed, MetaValue, Search, Unwatch, Unwatched, Watch, Watching,
};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{Changed, Outcome, Seen, Watcher};
use greenroom_protocol::{
    Code, InstanceId, KindName, Refusal, RequestId, ServerName, SessionId, encode,
};
use serde::{Deserialize, Serialize};

use crate::changes::{RowKey, Rows, Touched, Tracked};
use crate::command::Origin;
use crate::deadlines::{Due, NEVER};
use crate::search::{Compiled, FieldId, Record, Value};
use crate::servers::SessionSlot;
use crate::state::{State, Step, Verdict};

/// Instances that one live search lets through, at most: more is a listing, to be read page by page.
const MEMBERS_MAX: usize = 1_000;
/// Conditions that the live searches of one session have, all together.
const SESSION_CONDITIONS_MAX: usize = 64;
/// Conditions that the groups have that are looked at together: each change of an instance may have to be compared with
/// all of them, and that takes the master a good part of a millisecond.
const ALIKE_CONDITIONS_MAX: usize = 4_096;
/// Instances that left a set and of which somebody has yet to be told. Who is behind for longer is told anew.
const GONE_MAX: usize = 1_000;
/// Instances in one message, …
const TOLD_MAX: usize = 64;
/// … and about how many bytes they may take before it is full: one more may follow.
const TOLD_BYTES_MAX: usize = 32 * 1024;
/// Between two messages of a group, in milliseconds: changes within it are merged.
const PAUSE_MS: u64 = 50;

/// A filter that somebody watches.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) kind: KindName,
    pub(crate) filter: Filter,
    compiled: Compiled,
    /// Number of the newest change.
    n: u64,
    /// The newest change of each instance that is in the set, or was in it and is not forgotten.
    newest: BTreeMap<InstanceId, Change>,
    /// The same by number.
    changes: BTreeMap<u64, InstanceId>,
    members: usize,
    watchers: BTreeSet<(SessionId, RequestId)>,
    /// When its watchers are told next; the index is [`crate::deadlines::Deadlines`].
    until_ms: u64,
    /// When they were told last.
    told_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Change {
    n: u64,
    is_member: bool,
}

/// A session's place in its group's changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) group: u64,
    /// It was told up to this change.
    told: u64,
    /// What is told next begins the set anew.
    anew: bool,
    /// What was told is not acknowledged.
    waits: bool,
}

/// Why a live search ended.
#[derive(Clone, Debug)]
struct Ended(Refusal);

impl Tracked for Group {
    type At = u64;
    fn key(number: u64) -> RowKey {
        RowKey::Group(number)
    }
}

impl Tracked for Place {
    type At = (SessionId, RequestId);
    fn key((session, watch): (SessionId, RequestId)) -> RowKey {
        RowKey::Place(session, watch)
    }
}

impl Tracked for Ended {
    type At = (SessionId, RequestId);
    fn key((session, watch): (SessionId, RequestId)) -> RowKey {
        RowKey::WatchEnded(session, watch)
    }
}

/// A kind, and a field with the value that every instance of it has in which a filter lets through.
type Wanted = (KindName, Option<(FieldId, Value)>);

/// Groups that nothing but looking at each tells apart.
#[derive(Debug, Default)]
struct Alike {
    groups: BTreeSet<u64>,
    /// How many conditions their filters have together.
    conditions: usize,
}

/// All live searches.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    /// Number of the newest group.
    last: u64,
    groups: Rows<Group>,
    by_filter: BTreeMap<(KindName, Filter), u64>,
    /// Groups whose filter no instance passes without a certain value, by that value; for the others it is none.
    by_value: BTreeMap<Wanted, Alike>,
    /// The groups that know an instance: members of their sets and those that left one.
    knowing: BTreeMap<InstanceId, BTreeSet<u64>>,
    places: Rows<Place>,
    /// Live searches that ended while their session had no connection: it is told with its next one.
    ended: Rows<Ended>,
}

impl Group {
    /// Whether an instance is in the set.
    fn has(&self, id: InstanceId) -> bool {
        self.newest.get(&id).is_some_and(|change| change.is_member)
    }

    /// Writes down that an instance changed that was in the set or is, and whether it is in the set now.
    fn change(&mut self, id: InstanceId, is_member: bool) {
        let before = self.newest.get(&id).copied();
        let was_member = before.is_some_and(|change| change.is_member);
        if let Some(before) = before {
            self.changes.remove(&before.n);
        }
        self.n += 1;
        self.newest.insert(id, Change { n: self.n, is_member });
        self.changes.insert(self.n, id);
        self.members = self.members + usize::from(is_member) - usize::from(was_member);
    }

    /// Forgets who left the set up to this change, and gives them.
    fn forget(&mut self, told: u64) -> Vec<InstanceId> {
        let is_gone = |id: &InstanceId| self.newest.get(id).is_some_and(|change| !change.is_member);
        let over = self.changes.range(..=told).filter(|(_, id)| is_gone(id));
        let over: Vec<(u64, InstanceId)> = over.map(|(&n, &id)| (n, id)).collect();
        for (n, id) in &over {
            self.changes.remove(n);
            self.newest.remove(id);
        }
        over.into_iter().map(|(_, id)| id).collect()
    }
}

impl State {
    /// Sets a live search up. Its first message is told with the next deadline, after the answer.
    pub(crate) fn watch(&mut self, slot: u32, id: RequestId, watch: &Watch) -> Verdict {
        let session = self.users.session(slot).id;
        let watches_max = self.settings.watches_max;
        if self.watches.of(session).count() >= watches_max {
            return Err(Refusal::new(
                Code::WatchesMax,
                eco_format!("a session has at most {watches_max} live searches: end one first"),
            ));
        }
        let known = self.watches.by_filter.get(&(watch.kind.clone(), watch.filter.clone()));
        let number = match known {
            Some(&number) => {
                self.watches.check_session(session, self.watches.group(number).compiled.cost())?;
                number
            }
            None => {
                let compiled = self.compile(&watch.kind, &watch.filter)?;
                self.watches.check_session(session, compiled.cost())?;
                self.check_alike(&watch.kind, &compiled)?;
                self.begin_group(watch, compiled)?
            }
        };
        self.set_place((session, id), Place { group: number, told: 0, anew: true, waits: false });
        let touched = self.touch(number);
        self.watches.group_mut(&touched).watchers.insert((session, id));
        self.tell_soon(number);
        Ok(Some(Outcome::Watching(Watching {})))
    }

    pub(crate) fn unwatch(&mut self, slot: u32, unwatch: &Unwatch) -> Verdict {
        let session = self.users.session(slot).id;
        if !self.watches.places.contains_key(&(session, unwatch.watch)) {
            return Err(Refusal::new(
                Code::WatchUnknown,
                eco_format!("this session has no live search {}", unwatch.watch),
            ));
        }
        self.leave_group(session, unwatch.watch);
        Ok(Some(Outcome::Unwatched(Unwatched {})))
    }

    /// A client has what it was told: it may be told more.
    pub(crate) fn seen(&mut self, step: &mut Step<'_>, origin: &Origin, seen: &Seen) {
        let Some(server) = self.session_servers.speaker(origin) else { return };
        let Some(slot) = self.users.find(seen.session) else { return };
        if self.users.session(slot).binding != Some(server) {
            return step.illegal(Role::Session, &origin.server, "another server's live search");
        }
        let watcher = (seen.session, seen.watch);
        let Some(place) = self.watches.places.get(&watcher).copied() else { return };
        if !place.waits || place.told != seen.n {
            return; // Of what was told before its connection broke.
        }
        self.set_place(watcher, Place { waits: false, ..place });
        let number = place.group;
        let is_behind = place.told < self.watches.group(number).n;
        if is_behind {
            self.tell_soon(number);
        }
    }

    /// A session has a new connection: nobody knows how much the old one brought.
    pub(crate) fn watches_anew(&mut self, session: SessionId) {
        let all: Vec<(RequestId, u64)> =
            self.watches.of(session).map(|(watch, place)| (watch, place.group)).collect();
        for (watch, group) in all {
            self.set_place((session, watch), Place { group, told: 0, anew: true, waits: false });
            self.tell_soon(group);
        }
        for (watcher, Ended(refusal)) in self.take_ended(session) {
            self.told(&[watcher], &over(0, &refusal));
        }
    }

    /// A session is over, and its live searches with it.
    pub(crate) fn watches_over(&mut self, session: SessionId) {
        let all: Vec<RequestId> = self.watches.of(session).map(|(watch, _)| watch).collect();
        for watch in all {
            self.leave_group(session, watch);
        }
        self.take_ended(session);
    }

    /// Brings the sets up to date with what one command did to instances.
    pub(crate) fn watch_changes(&mut self) {
        for (kind, id) in self.directory.take_touched() {
            let at = self.directory.find(id).filter(|&at| self.directory.get(at).is_listed());
            let listed = at.map(|at| self.directory.row(at, &self.game_servers));
            let mut concerned = self.watches.knowing.get(&id).cloned().unwrap_or_default();
            if let Some(instance) = &listed {
                self.watches.concerned(&kind, instance, &mut concerned);
            }
            let mut changed = Vec::new();
            for number in concerned {
                let group = self.watches.group(number);
                let is_member =
                    listed.as_ref().is_some_and(|there| group.compiled.lets_through(there));
                if is_member || group.has(id) {
                    changed.push((number, is_member));
                }
            }
            for (number, is_member) in changed {
                let touched = self.touch(number);
                self.watches.group_mut(&touched).change(id, is_member);
                self.watches.knowing.entry(id).or_default().insert(number);
                self.bound_group(number);
            }
        }
    }

    /// Ends a group that grew too large, and has one told of its changes that did not.
    fn bound_group(&mut self, number: u64) {
        let group = self.watches.group(number);
        if group.members > 2 * MEMBERS_MAX {
            return self.end_group(number, &too_many());
        }
        if group.newest.len() - group.members > GONE_MAX {
            let newest = group.n;
            let watchers = group.watchers.clone();
            self.forget(number, newest);
            for watcher in watchers {
                let place = self.watches.places[&watcher];
                if place.told < newest && !place.anew {
                    self.set_place(watcher, Place { anew: true, ..place });
                }
            }
        }
        self.tell_soon(number);
    }

    /// The kinds' fields may have changed: filters are compiled anew, and a group whose filter has lost its field ends.
    pub(crate) fn watches_recompiled(&mut self, kind: &KindName) {
        let of_kind = self.watches.groups.iter().filter(|(_, group)| group.kind == *kind);
        let of_kind: Vec<u64> = of_kind.map(|(&number, _)| number).collect();
        for number in of_kind {
            let (kind, filter) = {
                let group = self.watches.group(number);
                (group.kind.clone(), group.filter.clone())
            };
            match self.compile(&kind, &filter) {
                Ok(compiled) => {
                    let touched = self.touch(number);
                    self.watches.unindex(number);
                    self.watches.group_mut(&touched).compiled = compiled;
                    self.watches.index(number);
                }
                Err(refusal) => self.end_group(number, &refusal),
            }
        }
    }

    /// Whether one more group with this filter may be compared with the changes that concern it.
    ///
    /// # Errors
    /// `Busy`: too many are already, and the text says what would help.
    fn check_alike(&self, kind: &KindName, compiled: &Compiled) -> Result<(), Refusal> {
        let wanted = wanted(kind, compiled);
        let there = self.watches.by_value.get(&wanted).map_or(0, |alike| alike.conditions);
        if there + compiled.cost() <= ALIKE_CONDITIONS_MAX {
            return Ok(());
        }
        let field = wanted
            .1
            .zip(self.directory.schema(kind))
            .map(|((field, _), schema)| schema.name(field));
        let text = match field {
            None => eco_format!(
                "too many live searches of this kind are under way that every change has to be compared with: say a \
                 value that a field must have (mode = …), other than true and false, or try again later"
            ),
            Some(field) => eco_format!(
                "too many live searches of this kind are under way that want the same {field}: begin the filter with \
                 a value that fewer instances have, or try again later"
            ),
        };
        Err(Refusal::new(Code::Busy, text))
    }

    fn begin_group(&mut self, watch: &Watch, compiled: Compiled) -> Result<u64, Refusal> {
        let members = self.first_members(watch)?;
        self.watches.last += 1;
        let number = self.watches.last;
        let mut group = Group {
            kind: watch.kind.clone(),
            filter: watch.filter.clone(),
            compiled,
            n: 0,
            newest: BTreeMap::new(),
            changes: BTreeMap::new(),
            members: 0,
            watchers: BTreeSet::new(),
            until_ms: NEVER,
            told_ms: 0,
        };
        for id in members {
            group.change(id, true);
            self.watches.knowing.entry(id).or_default().insert(number);
        }
        self.watches.by_filter.insert((watch.kind.clone(), watch.filter.clone()), number);
        let touched = self.touch(number);
        self.watches.groups.set(&touched, group);
        self.watches.index(number);
        self.directory.watch_shard(&watch.kind, true);
        Ok(number)
    }

    /// What the filter lets through now, by id.
    fn first_members(&self, watch: &Watch) -> Result<Vec<InstanceId>, Refusal> {
        let mut members = Vec::new();
        let mut search = Search {
            kind: watch.kind.clone(),
            filter: watch.filter.clone(),
            order: None,
            limit: LIMIT_MAX,
            cursor: None,
            explain: false,
        };
        loop {
            let found = self.found(&search)?;
            members.extend(found.instances.iter().map(|listed| listed.instance));
            if members.len() > MEMBERS_MAX {
                return Err(too_many());
            }
            match found.cursor {
                Some(cursor) => search.cursor = Some(cursor),
                None => return Ok(members),
            }
        }
    }

    fn leave_group(&mut self, session: SessionId, watch: RequestId) {
        let touched = self.touch((session, watch));
        let Some(place) = self.watches.places.remove(&touched) else { return };
        let touched = self.touch(place.group);
        let group = self.watches.group_mut(&touched);
        group.watchers.remove(&(session, watch));
        if group.watchers.is_empty() {
            self.remove_group(place.group);
        }
    }

    fn remove_group(&mut self, number: u64) {
        self.watches.unindex(number);
        let touched = self.touch(number);
        let mut group = self.watches.groups.remove(&touched).expect("a group is removed once");
        self.deadlines.set(&mut group.until_ms, NEVER, Due::Watch(number));
        for watcher in &group.watchers {
            let touched = self.touch(*watcher);
            self.watches.places.remove(&touched);
        }
        for id in group.newest.keys() {
            self.watches.unknow(*id, number);
        }
        let is_last = !self.watches.groups.values().any(|other| other.kind == group.kind);
        if is_last {
            self.directory.watch_shard(&group.kind, false);
        }
        self.watches.by_filter.remove(&(group.kind, group.filter));
    }

    /// Ends every live search of a group and says why.
    fn end_group(&mut self, number: u64, refusal: &Refusal) {
        let group = self.watches.group(number);
        let over = over(group.n + 1, refusal);
        let watchers: BTreeSet<(SessionId, RequestId)> = group.watchers.clone();
        let each: Vec<(SessionId, RequestId)> = watchers.iter().copied().collect();
        let told: BTreeSet<(SessionId, RequestId)> = self.told(&each, &over).into_iter().collect();
        for watcher in watchers.difference(&told) {
            let touched = self.touch(*watcher);
            self.watches.ended.set(&touched, Ended(refusal.clone()));
        }
        self.remove_group(number);
    }

    /// A group has something to tell, but not at once after it told something.
    fn tell_soon(&mut self, number: u64) {
        let now_ms = self.now_ms;
        let touched = self.touch(number);
        let group = self.watches.group_mut(&touched);
        let at_ms = now_ms.max(group.told_ms.saturating_add(PAUSE_MS)).min(group.until_ms);
        self.deadlines.set(&mut group.until_ms, at_ms, Due::Watch(number));
    }

    /// Tells a group's watchers what they don't know. Those at one place get the same bytes.
    pub(crate) fn tell(&mut self, number: u64) {
        let touched = self.touch(number);
        let group = self.watches.group_mut(&touched);
        self.deadlines.set(&mut group.until_ms, NEVER, Due::Watch(number));
        let mut by_place: BTreeMap<Place, Vec<(SessionId, RequestId)>> = BTreeMap::new();
        let group = self.watches.group(number);
        for watcher in &group.watchers {
            let place = self.watches.places[watcher];
            if self.is_bound(watcher.0) && !place.waits && (place.anew || place.told < group.n) {
                by_place.entry(place).or_default().push(*watcher);
            }
        }
        if !by_place.is_empty() {
            self.watches.group_mut(&touched).told_ms = self.now_ms;
        }
        let mut is_told = true;
        for (place, watchers) in by_place {
            let changes = self.changes_after(number, place);
            let told = self.told(&watchers, &changes);
            is_told &= told.len() == watchers.len();
            for watcher in told {
                let told = Place { group: number, told: changes.n, anew: false, waits: true };
                self.set_place(watcher, told);
            }
        }
        if !is_told {
            // Who has no connection is told with the next one; a session server that does not keep up, later.
            self.tell_soon(number);
        }
        let group = self.watches.group(number);
        let places = group.watchers.iter().map(|watcher| self.watches.places[watcher]);
        let told = places.filter(|place| !place.anew).map(|place| place.told).min();
        self.forget(number, told.unwrap_or(group.n));
    }

    fn set_place(&mut self, watcher: (SessionId, RequestId), place: Place) {
        let touched = self.touch(watcher);
        self.watches.places.set(&touched, place);
    }

    fn take_ended(&mut self, session: SessionId) -> Vec<((SessionId, RequestId), Ended)> {
        let all = (session, RequestId(0))..=(session, RequestId(u32::MAX));
        let keys: Vec<_> = self.watches.ended.range(all).map(|(key, _)| *key).collect();
        let taken = keys.into_iter().map(|key| {
            let touched = self.touch(key);
            Some((key, self.watches.ended.remove(&touched)?))
        });
        taken.flatten().collect()
    }

    /// Forgets who left a group's set up to this change.
    fn forget(&mut self, number: u64, told: u64) {
        let group = self.watches.group(number);
        if group.newest.len() == group.members {
            return;
        }
        let touched = self.touch(number);
        for id in self.watches.group_mut(&touched).forget(told) {
            self.watches.unknow(id, number);
        }
    }

    fn is_bound(&self, session: SessionId) -> bool {
        let slot = self.users.find(session).expect("a session that is over watches nothing");
        self.users.session(slot).binding.is_some()
    }

    /// Says what is wrong with the live searches, if anything is, and how many deadlines they have.
    pub(crate) fn audit_watches(&self) -> Result<usize, String> {
        let watches = &self.watches;
        let (mut deadlines, mut watchers, mut known) = (0, 0, 0);
        for (&number, group) in watches.groups.iter() {
            let is_due = group.until_ms != NEVER;
            deadlines += usize::from(is_due);
            if is_due && !self.deadlines.contains(group.until_ms, Due::Watch(number)) {
                return Err(format!("live search {number} has a deadline that is not kept"));
            }
            let mut members = 0;
            for (id, change) in &group.newest {
                known += 1;
                members += usize::from(change.is_member);
                let at = self.directory.find(*id).filter(|&at| self.directory.get(at).is_listed());
                let is_member = at.is_some_and(|at| self.lets_through(&group.compiled, at));
                if is_member != change.is_member
                    || group.changes.get(&change.n) != Some(id)
                    || !watches.knowing.get(id).is_some_and(|groups| groups.contains(&number))
                {
                    return Err(format!("live search {number} is wrong about instance {id}"));
                }
            }
            let there = self.directory.iter().filter(|(at, kind, instance)| {
                **kind == group.kind
                    && instance.is_listed()
                    && self.lets_through(&group.compiled, *at)
            });
            if there.count() != members || members != group.members {
                return Err(format!("live search {number} does not have every instance"));
            }
            let value = watches.value_of(number);
            let is_indexed =
                watches.by_value.get(&value).is_some_and(|alike| alike.groups.contains(&number));
            let filter = (group.kind.clone(), group.filter.clone());
            if !is_indexed || watches.by_filter.get(&filter) != Some(&number) {
                return Err(format!("live search {number} is not found"));
            }
            for watcher in &group.watchers {
                watchers += 1;
                let place = watches.places.get(watcher);
                let is_live = self.users.find(watcher.0).is_some();
                if !is_live || place.is_none_or(|place| place.group != number) {
                    return Err(format!("a watcher of live search {number} has no place"));
                }
            }
            if group.watchers.is_empty() || group.changes.len() != group.newest.len() {
                return Err(format!("live search {number} is left over"));
            }
        }
        for (wanted, Alike { groups, conditions }) in &watches.by_value {
            let there: usize =
                groups.iter().map(|&number| watches.group(number).compiled.cost()).sum();
            if there != *conditions {
                return Err(format!(
                    "the live searches for {wanted:?} have {there} conditions, not {conditions}"
                ));
            }
        }
        let held = [
            watches.places.len(),
            watches.knowing.values().map(BTreeSet::len).sum(),
            watches.by_filter.len(),
            watches.by_value.values().map(|alike| alike.groups.len()).sum(),
        ];
        let groups = watches.groups.len();
        if held == [watchers, known, groups, groups] {
            Ok(deadlines)
        } else {
            Err(format!("live searches hold {held:?} for {:?}", [watchers, known, groups, groups]))
        }
    }

    /// What comes after a place, as one message.
    fn changes_after(&self, number: u64, place: Place) -> Changes {
        let group = self.watches.group(number);
        let after = if place.anew { 0 } else { place.told };
        let mut rest = group.changes.range(after + 1..).peekable();
        let (mut instances, mut gone) = (Vec::new(), Vec::new());
        let (mut n, mut bytes) = (after, 0);
        while let Some(&(_, &id)) = rest.peek()
            && instances.len() + gone.len() < TOLD_MAX
            && bytes < TOLD_BYTES_MAX
        {
            let (&change, _) = rest.next().expect("it was looked at");
            n = change;
            if group.newest[&id].is_member {
                let at = self.directory.find(id).expect("a member of a live search is there");
                let listed = self.directory.listed_of(at);
                bytes += bytes_of(&listed);
                instances.push(listed);
            } else if !place.anew {
                gone.push(id);
            }
        }
        let more = rest.peek().is_some();
        let n = if more { n } else { group.n };
        Changes { n, anew: place.anew, more, instances, gone, ended: None }
    }

    /// Sends one message to the session servers of these watchers. Gives those that get it: who has no connection, or
    /// whose session server does not keep up, is told later.
    fn told(
        &mut self,
        watchers: &[(SessionId, RequestId)],
        changes: &Changes,
    ) -> Vec<(SessionId, RequestId)> {
        let mut by_server: BTreeMap<ServerName, (SessionSlot, Vec<Watcher>)> = BTreeMap::new();
        let mut told = Vec::new();
        for &(session, watch) in watchers {
            let slot = self.users.find(session).expect("a session that is over watches nothing");
            let record = self.users.session(slot);
            let Some(server) = record.binding else { continue };
            let peer = &self.session_servers.get(server).peer;
            if peer.out().len() >= self.settings.stream_max {
                continue;
            }
            let watcher = Watcher { session, generation: record.generation, watch };
            by_server.entry(peer.name.clone()).or_insert((server, Vec::new())).1.push(watcher);
            told.push((session, watch));
        }
        let encoded = Opaque::from(encode(changes));
        for (server, to) in by_server.into_values() {
            let changed = Changed { to, changes: encoded.clone() };
            self.tell_session(server, changed.into());
        }
        told
    }
}

/// A group in a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GroupRecord {
    number: u64,
    kind: KindName,
    filter: Filter,
    n: u64,
    /// The newest change of each instance, by number, and whether it is in the set.
    changes: Vec<(u64, InstanceId, bool)>,
    until_ms: u64,
    told_ms: u64,
}

/// A watcher in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlaceRecord {
    session: SessionId,
    watch: RequestId,
    place: Place,
}

impl State {
    pub(crate) fn restore_group(&mut self, record: GroupRecord) -> Result<(), String> {
        let GroupRecord { number, kind, filter, n, changes, until_ms, told_ms } = record;
        let schema = self.directory.schema(&kind);
        let schema = schema.ok_or_else(|| format!("live search {number} of an unknown kind"))?;
        let compiled = Compiled::compile(schema, &filter).map_err(|refusal| refusal.to_string())?;
        let watches = &mut self.watches;
        let mut group = Group {
            kind: kind.clone(),
            filter: filter.clone(),
            compiled,
            n,
            newest: BTreeMap::new(),
            changes: BTreeMap::new(),
            members: 0,
            watchers: BTreeSet::new(),
            until_ms,
            told_ms,
        };
        for (n, id, is_member) in changes {
            group.newest.insert(id, Change { n, is_member });
            group.changes.insert(n, id);
            group.members += usize::from(is_member);
            watches.knowing.entry(id).or_default().insert(number);
        }
        watches.by_filter.insert((kind.clone(), filter), number);
        let touched = self.touch(number);
        if self.watches.groups.set(&touched, group).is_some() {
            return Err(format!("live search {number} is there twice"));
        }
        self.watches.index(number);
        self.directory.watch_shard(&kind, true);
        self.restore_deadline(until_ms, Due::Watch(number));
        Ok(())
    }

    pub(crate) fn restore_place(&mut self, record: PlaceRecord) -> Result<(), String> {
        let PlaceRecord { session, watch, place } = record;
        if !self.watches.groups.contains_key(&place.group) {
            return Err(format!("session {session} watches nothing"));
        }
        let touched = self.touch(place.group);
        self.watches.group_mut(&touched).watchers.insert((session, watch));
        self.set_place((session, watch), place);
        Ok(())
    }

    pub(crate) fn restore_ended(&mut self, session: SessionId, watch: RequestId, refusal: Refusal) {
        let touched = self.touch((session, watch));
        self.watches.ended.set(&touched, Ended(refusal));
    }
}

impl GroupRecord {
    /// How many instances it says something of.
    pub(crate) fn len(&self) -> usize {
        self.changes.len()
    }
}

impl Watches {
    pub(crate) fn last(&self) -> u64 {
        self.last
    }
    pub(crate) fn set_last(&mut self, last: u64) {
        self.last = last;
    }
    pub(crate) fn group_record(&self, number: u64) -> Option<GroupRecord> {
        let group = self.groups.get(&number)?;
        let changes = group.changes.iter();
        Some(GroupRecord {
            number,
            kind: group.kind.clone(),
            filter: group.filter.clone(),
            n: group.n,
            changes: changes.map(|(&n, &id)| (n, id, group.newest[&id].is_member)).collect(),
            until_ms: group.until_ms,
            told_ms: group.told_ms,
        })
    }
    pub(crate) fn place_record(&self, session: SessionId, watch: RequestId) -> Option<PlaceRecord> {
        let place = *self.places.get(&(session, watch))?;
        Some(PlaceRecord { session, watch, place })
    }
    pub(crate) fn ended_record(&self, session: SessionId, watch: RequestId) -> Option<&Refusal> {
        self.ended.get(&(session, watch)).map(|Ended(refusal)| refusal)
    }
    /// The first group from this number on.
    pub(crate) fn group_from(&self, number: u64) -> Option<u64> {
        self.groups.range(number..).next().map(|(&number, _)| number)
    }
    /// The first watcher after this one, or of all.
    pub(crate) fn place_after(
        &self,
        after: Option<(SessionId, RequestId)>,
    ) -> Option<(SessionId, RequestId)> {
        after_in(&self.places, after)
    }
    /// The same of live searches that ended and whose sessions have not heard.
    pub(crate) fn ended_after(
        &self,
        after: Option<(SessionId, RequestId)>,
    ) -> Option<(SessionId, RequestId)> {
        after_in(&self.ended, after)
    }

    /// A session's live searches.
    pub(crate) fn of(&self, session: SessionId) -> impl Iterator<Item = (RequestId, &Place)> {
        let all = (session, RequestId(0))..=(session, RequestId(u32::MAX));
        self.places.range(all).map(|(&(_, watch), place)| (watch, place))
    }

    /// Whether a session may have one more live search with so many conditions.
    ///
    /// # Errors
    /// `WatchesMax`.
    fn check_session(&self, session: SessionId, cost: usize) -> Result<(), Refusal> {
        let there: usize =
            self.of(session).map(|(_, place)| self.group(place.group).compiled.cost()).sum();
        if there + cost <= SESSION_CONDITIONS_MAX {
            return Ok(());
        }
        Err(Refusal::new(
            Code::WatchesMax,
            eco_format!(
                "the live searches of a session have at most {SESSION_CONDITIONS_MAX} conditions in all; it has \
                 {there}, and this one has {cost}: end one first, or use fewer conditions"
            ),
        ))
    }

    fn group(&self, number: u64) -> &Group {
        self.groups.get(&number).expect("who watches is in a group that is there")
    }
    fn group_mut(&mut self, touched: &Touched<Group>) -> &mut Group {
        self.groups.get_mut(touched).expect("who watches is in a group that is there")
    }

    fn value_of(&self, number: u64) -> Wanted {
        let group = self.group(number);
        wanted(&group.kind, &group.compiled)
    }
    fn index(&mut self, number: u64) {
        let value = self.value_of(number);
        let cost = self.group(number).compiled.cost();
        let alike = self.by_value.entry(value).or_default();
        alike.groups.insert(number);
        alike.conditions += cost;
    }
    fn unindex(&mut self, number: u64) {
        let value = self.value_of(number);
        let cost = self.group(number).compiled.cost();
        if let Some(alike) = self.by_value.get_mut(&value) {
            alike.groups.remove(&number);
            alike.conditions -= cost;
            if alike.groups.is_empty() {
                self.by_value.remove(&value);
            }
        }
    }

    /// Adds the groups whose filter may let an instance of the kind through: those that want no certain value, and, for
    /// each field of which some want one, those that want the instance's. That is a look for each such field, however
    /// many groups and values there are.
    fn concerned(&self, kind: &KindName, instance: &impl Record, numbers: &mut BTreeSet<u64>) {
        let mut key = (kind.clone(), None);
        let groups =
            |key: &Wanted| self.by_value.get(key).into_iter().flat_map(|alike| &alike.groups);
        numbers.extend(groups(&key));
        loop {
            let next = self.by_value.range(&key..).find(|(there, _)| there.1.is_some());
            let Some(((of, Some((field, _))), _)) = next else { return };
            if of != kind {
                return;
            }
            let field = *field;
            if let Some(value) = instance.value(field) {
                key.1 = Some((field, value.to_value()));
                numbers.extend(groups(&key));
            }
            key.1 = Some((FieldId(field.0 + 1), Value::LEAST));
        }
    }

    fn unknow(&mut self, id: InstanceId, number: u64) {
        if let Some(groups) = self.knowing.get_mut(&id) {
            groups.remove(&number);
            if groups.is_empty() {
                self.knowing.remove(&id);
            }
        }
    }
}

fn after_in<T>(
    rows: &BTreeMap<(SessionId, RequestId), T>,
    after: Option<(SessionId, RequestId)>,
) -> Option<(SessionId, RequestId)> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    rows.range((from, Bound::Unbounded)).next().map(|(&key, _)| key)
}

/// What tells a group with this filter from others.
fn wanted(kind: &KindName, compiled: &Compiled) -> Wanted {
    let equality = compiled.equality();
    (kind.clone(), equality.map(|(field, value)| (field, value.clone())))
}

/// The last message of a live search.
fn over(n: u64, refusal: &Refusal) -> Changes {
    Changes {
        n,
        anew: false,
        more: false,
        instances: Vec::new(),
        gone: Vec::new(),
        ended: Some(refusal.clone()),
    }
}

/// About how many bytes an instance takes in a message.
fn bytes_of(listed: &Listed) -> usize {
    let value = |value: &MetaValue| match value {
        MetaValue::Bool(_) | MetaValue::Int(_) => 8,
        MetaValue::Text(text) => text.len(),
    };
    128 + listed.meta.iter().map(|(name, held)| 4 + name.len() + value(held)).sum::<usize>()
}

fn too_many() -> Refusal {
    Refusal::new(
        Code::TooBroad,
        eco_format!(
            "a live search follows up to {MEMBERS_MAX} instances, and its filter lets more through: narrow it"
        ),
    )
}
