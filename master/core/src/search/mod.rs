//! Looking for records: what a filter means, which index answers it, and where the next page begins.
//!
//! A search reads the state as it is after the last command, and so sees every write that was acknowledged before. It
//! changes nothing, and it is bounded: past [`plan::examined_max`] records it is refused, and the refusal names the
//! field that would help.

mod cursor;
mod filter;
mod plan;
mod schema;
mod tables;

use ecow::{EcoString, eco_format};
use greenroom_protocol::search::{FieldInfo, Filter, LIMIT_MAX, Order};
use greenroom_protocol::wire::Opaque;
use greenroom_protocol::wire::admin_master::{Find, Row, Rows, Table as FindIn};
use greenroom_protocol::wire::client_session::{Found, Meta, Search};
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::Outcome;
use greenroom_protocol::{Code, KindName, Refusal};

use crate::directory::{At, Instances};
use crate::placement::unknown_kind;
use crate::servers::{GameSlot, Health};
use crate::state::{State, Step};
use cursor::Searched;
use plan::{Answer, Query, candidates, examined_max, expected};
use tables::{ServersTable, UsersTable};

pub(crate) use filter::Compiled;
pub(crate) use plan::{Column, Table};
pub(crate) use schema::{FieldId, Packed, Record, Said, Schema, Value, ValueRef};

/// A search, whoever asks and whatever is searched.
struct Asked<'a> {
    searched: Searched<'a>,
    limit: u16,
    cursor: Option<&'a Opaque>,
}

/// Every field that a record has.
fn fields(schema: &Schema, record: &impl Record) -> Meta {
    let named = |field| Some((schema.name(field).into(), record.value(field)?.to_meta()));
    schema.fields().filter_map(named).collect()
}

impl State {
    /// Instances of a kind that run, take new seats and are not private.
    pub fn search(&self, search: &Search) -> Outcome {
        self.found(search).map_or_else(Outcome::Refused, Outcome::Found)
    }

    /// The same, for who goes on with it.
    pub(crate) fn found(&self, search: &Search) -> Result<Found, Refusal> {
        let Search { kind, filter, order, limit, cursor, explain } = search;
        let table = self.instances_of(kind, false)?;
        let name = eco_format!("listed {kind}");
        let searched = Searched { table: &name, filter, order: order.as_ref() };
        let asked = Asked { searched, limit: *limit, cursor: cursor.as_ref() };
        let (answer, cursor) = self.answer(&table, &asked)?;
        let instances =
            (answer.slots.iter()).map(|&slot| self.directory.listed_of(table.at(slot))).collect();
        let explain = explain.then_some(answer.explain);
        Ok(Found { instances, cursor, explain })
    }

    /// Whatever an operator looks for: instances that are private, locked, granted or closing too.
    ///
    /// # Errors
    /// `KindUnknown`, `LimitInvalid`, `FieldUnknown`, `FieldMismatch`, `FilterTooDeep`, `FilterTooLarge`,
    /// `CursorInvalid`, `TooBroad`: what is wrong and what to do is in the text.
    pub fn find(&self, find: &Find) -> Result<Rows, Refusal> {
        let name = match &find.table {
            FindIn::Instances(kind) => eco_format!("all {kind}"),
            FindIn::Users => "users".into(),
            FindIn::Servers => "servers".into(),
        };
        let searched = Searched { table: &name, filter: &find.filter, order: find.order.as_ref() };
        let asked = Asked { searched, limit: find.limit, cursor: find.cursor.as_ref() };
        match &find.table {
            FindIn::Instances(kind) => self.rows(&self.instances_of(kind, true)?, &asked),
            FindIn::Users => self.rows(&UsersTable::new(self), &asked),
            FindIn::Servers => self.rows(&ServersTable::new(self), &asked),
        }
    }

    fn rows<T: Table>(&self, table: &T, asked: &Asked<'_>) -> Result<Rows, Refusal> {
        let (answer, cursor) = self.answer(table, asked)?;
        let row = |&slot: &u32| Row { fields: fields(table.schema(), &table.row(slot)) };
        let rows = answer.slots.iter().map(row).collect();
        Ok(Rows { rows, cursor, explain: answer.explain })
    }

    /// Every field of an instance.
    pub(crate) fn fields_of(&self, at: At) -> Meta {
        let schema =
            self.directory.schema(self.directory.kind(at)).expect("an instance has a kind");
        fields(schema, &self.directory.row(at, &self.game_servers))
    }

    fn answer<T: Table>(
        &self,
        table: &T,
        asked: &Asked<'_>,
    ) -> Result<(Answer, Option<Opaque>), Refusal> {
        let Asked { searched, limit, cursor } = asked;
        if !(1..=LIMIT_MAX).contains(limit) {
            return Err(Refusal::new(
                Code::LimitInvalid,
                eco_format!("a limit is 1 to {LIMIT_MAX}; this one is {limit}"),
            ));
        }
        let schema = table.schema();
        let filter = Compiled::compile(schema, searched.filter)?;
        let (order, descending) = match searched.order {
            Some(Order { field, descending }) => (filter::field(schema, field)?, *descending),
            None => (FieldId::ID, false),
        };
        let after = match cursor {
            Some(cursor) => Some(searched.read(&self.secret, schema, order, cursor)?),
            None => None,
        };
        let limit = usize::from(*limit);
        let answer = plan::run(table, &Query { filter: &filter, order, descending, limit, after })?;
        let cursor = answer.more.as_ref().map(|place| searched.write(&self.secret, place));
        Ok((answer, cursor))
    }

    /// Works out a filter of a client over instances of a kind.
    ///
    /// # Errors
    /// `KindUnknown`, and as [`Compiled::compile`].
    pub(crate) fn compile(&self, kind: &KindName, filter: &Filter) -> Result<Compiled, Refusal> {
        Compiled::compile(self.instances_of(kind, false)?.schema(), filter)
    }

    /// Whether a filter lets an instance through.
    pub(crate) fn lets_through(&self, filter: &Compiled, at: At) -> bool {
        filter.lets_through(&self.directory.row(at, &self.game_servers))
    }

    /// The fullest instance with room that clients may find, that the filter lets through and that has room for whom it
    /// is looked for.
    ///
    /// # Errors
    /// `TooBroad`: looking at as many as may be looked at did not decide it.
    pub(crate) fn open_matching(
        &self,
        kind: &KindName,
        filter: &Compiled,
        has_room: impl Fn(&At) -> bool,
    ) -> Result<Option<At>, Refusal> {
        let Some(table) = self.directory.table(kind, &self.game_servers, false) else {
            return Ok(None);
        };
        let is_match = |slot: u32| {
            let at = table.at(slot);
            self.directory.get(at).is_listed() && self.lets_through(filter, at) && has_room(&at)
        };
        let examined_max = examined_max(filter);
        let candidates = candidates(&table, filter);
        let all = table.len();
        let expected = expected(1, all, &candidates);
        let narrow = candidates.into_iter().next();
        let narrowed = narrow.as_ref().map_or(all, |narrow| narrow.entries);
        if let Some(narrow) = &narrow
            && narrowed <= expected.min(examined_max)
        {
            return Ok(self.fullest(&table, narrow.slots().filter(|&slot| is_match(slot))));
        }
        let open = table.open_slots();
        // Where the narrow way is possible, this one may cost as much before it is given up.
        let budget = match examined_max.checked_sub(narrowed) {
            Some(left) if narrow.is_some() => left.min(narrowed),
            Some(_) | None => examined_max,
        };
        let is_whole = open.len() <= budget;
        if let Some(slot) = open.take(budget).find(|&slot| is_match(slot)) {
            return Ok(Some(table.at(slot)));
        }
        match narrow {
            _ if is_whole => Ok(None),
            Some(narrow) if narrowed + budget <= examined_max => {
                Ok(self.fullest(&table, narrow.slots().filter(|&slot| is_match(slot))))
            }
            Some(_) | None => Err(plan::too_broad(&table, filter, FieldId::ID)),
        }
    }

    fn fullest(&self, table: &Instances<'_>, slots: impl Iterator<Item = u32>) -> Option<At> {
        let open = slots.filter_map(|slot| {
            let at = table.at(slot);
            Some((std::cmp::Reverse(table.open_taken(slot)?), self.directory.get(at).id, slot))
        });
        open.min().map(|(_, _, slot)| table.at(slot))
    }

    /// Declares the kinds of a game server that reports, as the newest version says of each among the servers that
    /// are there: while a game is rolled out, or rolled back, an older server that reports changes nothing.
    pub(crate) fn declare_kinds(&mut self, step: &mut Step<'_>, slot: GameSlot) {
        let kinds: Vec<KindName> = self.game_servers.get(slot).kinds.keys().cloned().collect();
        for kind in kinds {
            let there =
                self.game_servers.iter().filter(|(_, server)| server.peer.health != Health::Down);
            let known = there.filter_map(|(at, server)| Some((at, server.kinds.get(&kind)?)));
            let newest = known.max_by_key(|(at, info)| (info.version, *at == slot));
            let Some((_, info)) = newest else { continue };
            let fields = info.fields.clone();
            match self.declare(&kind, &fields) {
                Ok(true) => self.watches_recompiled(&kind),
                Ok(false) => {}
                Err(what) => {
                    step.illegal(Role::Game, &self.game_servers.get(slot).peer.name, what);
                }
            }
        }
    }

    /// Says what instances of a kind say of themselves. False if that is nothing new.
    ///
    /// # Errors
    /// What is wrong with the declaration: then nothing has changed.
    pub(crate) fn declare(
        &mut self,
        kind: &KindName,
        fields: &[FieldInfo],
    ) -> Result<bool, EcoString> {
        if self.directory.is_declared(kind, fields) {
            return Ok(false);
        }
        let touched = self.touch_all(kind);
        self.directory.declare(&touched, kind, fields).map(|()| true)
    }

    fn instances_of(&self, kind: &KindName, is_all: bool) -> Result<Instances<'_>, Refusal> {
        let is_known = self.game_servers.iter().any(|(_, server)| {
            server.peer.health != Health::Down && server.kinds.contains_key(kind)
        });
        let table = self.directory.table(kind, &self.game_servers, is_all);
        let table = table.filter(|table| is_known || !table.is_empty());
        table.ok_or_else(|| Refusal::new(Code::KindUnknown, unknown_kind(&self.game_servers, kind)))
    }
}
