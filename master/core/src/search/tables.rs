//! Users and servers as tables: what operators search beside instances.

use std::sync::LazyLock;

use greenroom_protocol::search::{SERVER_FIELDS, USER_FIELDS};

use super::plan::{Column, Table};
use super::schema::{FieldId, Record, Schema, Value, ValueRef};
use crate::directory::slot_of;
use crate::state::State;
use crate::users::User;

/// The fields of users, by number.
mod user {
    use super::FieldId;

    pub(super) const NAME: FieldId = FieldId(1);
    pub(super) const SESSION_SERVER: FieldId = FieldId(2);
    pub(super) const GENERATION: FieldId = FieldId(3);
    pub(super) const SEATS: FieldId = FieldId(4);
    pub(super) const INSTANCE: FieldId = FieldId(5);
    pub(super) const ONLINE: FieldId = FieldId(6);
}

static USERS: LazyLock<Schema> =
    LazyLock::new(|| Schema::new("users".into(), USER_FIELDS, &[user::INSTANCE]));
static SERVERS: LazyLock<Schema> =
    LazyLock::new(|| Schema::new("servers".into(), SERVER_FIELDS, &[]));

/// The users that have a session.
pub(super) struct UsersTable<'a> {
    state: &'a State,
}

impl<'a> UsersTable<'a> {
    pub(super) fn new(state: &'a State) -> Self {
        Self { state }
    }
}

/// A user as a filter sees it.
pub(super) struct UserRow<'a> {
    state: &'a State,
    user: &'a User,
}

impl Record for UserRow<'_> {
    fn value(&self, field: FieldId) -> Option<ValueRef<'_>> {
        let session = self.state.users.session(self.user.session);
        Some(match field {
            FieldId::ID => ValueRef::Text(self.user.id.as_str().as_bytes()),
            user::NAME => ValueRef::Text(self.user.name.as_bytes()),
            user::SESSION_SERVER => {
                let name = self.state.session_server_name(session.binding?);
                ValueRef::Text(name.as_str().as_bytes())
            }
            user::GENERATION => ValueRef::Int(session.generation.0.into()),
            user::SEATS => ValueRef::Int(slot_of(session.seats.len()).into()),
            user::INSTANCE => {
                let (at, _) = session.seats.first()?;
                ValueRef::Id(self.state.directory.get(*at).id)
            }
            user::ONLINE => ValueRef::Bool(session.binding.is_some()),
            FieldId(_) => return None,
        })
    }
}

impl Table for UsersTable<'_> {
    type Row<'r>
        = UserRow<'r>
    where
        Self: 'r;

    fn schema(&self) -> &Schema {
        &USERS
    }
    fn len(&self) -> usize {
        self.state.users.len()
    }
    fn row(&self, slot: u32) -> UserRow<'_> {
        UserRow { state: self.state, user: self.state.users.user(slot) }
    }
    fn columns(&self, field: FieldId) -> Vec<Column<'_>> {
        let present = match field {
            FieldId::ID => self.state.users.ids(),
            user::NAME => self.state.users.names(),
            FieldId(_) => return Vec::new(),
        };
        vec![Column { present, absent: None, numbered: None }]
    }
    fn slots(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        Box::new(self.state.users.ids().iter_from(0).map(|entry| entry.slot))
    }
}

/// The servers of both roles. They are few: each search reads them all.
pub(super) struct ServersTable {
    rows: Vec<ServerRow>,
}

/// A server as a filter sees it: its values by field, none for what its role does not have.
#[derive(Clone)]
pub(super) struct ServerRow {
    values: [Option<Value>; SERVER_FIELDS.len()],
}

impl ServersTable {
    pub(super) fn new(state: &State) -> Self {
        let int = |number: u64| Some(Value::Int(i64::try_from(number).unwrap_or(i64::MAX)));
        let text = |text: &str| Some(Value::Text(text.into()));
        let sessions = state.session_servers.iter().map(|(_, server)| ServerRow {
            values: [
                text(server.peer.name.as_str()),
                text("session"),
                text(server.peer.health.text(server.is_draining())),
                text(&server.peer.build),
                int(server.load.connections.into()),
                int(server.connections_max.into()),
                int(server.load.busy_permille.into()),
                int(server.peer.reported_shown_ms()),
                None,
            ],
        });
        let games = state.game_servers.iter().map(|(_, server)| ServerRow {
            values: [
                text(server.peer.name.as_str()),
                text("game"),
                text(server.peer.health.text(server.is_draining())),
                text(&server.peer.build),
                int(server.used),
                int(server.capacity.into()),
                int(server.load.busy_permille.into()),
                int(server.peer.reported_shown_ms()),
                text(&server.labels.join(",")),
            ],
        });
        Self { rows: sessions.chain(games).collect() }
    }
}

impl Record for ServerRow {
    fn value(&self, field: FieldId) -> Option<ValueRef<'_>> {
        self.values.get(usize::from(field.0))?.as_ref().map(Value::as_ref)
    }
}

impl Record for &ServerRow {
    fn value(&self, field: FieldId) -> Option<ValueRef<'_>> {
        (**self).value(field)
    }
}

impl Table for ServersTable {
    type Row<'r> = &'r ServerRow;

    fn schema(&self) -> &Schema {
        &SERVERS
    }
    fn len(&self) -> usize {
        self.rows.len()
    }
    fn row(&self, slot: u32) -> &ServerRow {
        &self.rows[slot as usize]
    }
    fn columns(&self, _: FieldId) -> Vec<Column<'_>> {
        Vec::new()
    }
    fn slots(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        Box::new(0..slot_of(self.rows.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::field;
    use greenroom_protocol::search::INSTANCE_FIELDS;

    #[test]
    fn fields_have_the_numbers_by_which_rows_know_them() {
        let instances = Schema::new("instances".into(), INSTANCE_FIELDS, &[]);
        let of = |schema: &Schema, name: &str| schema.find(name).unwrap();
        for (name, number) in [
            ("id", FieldId::ID),
            ("created", field::CREATED),
            ("seats_free", field::SEATS_FREE),
            ("seats_taken", field::SEATS_TAKEN),
            ("seats_max", field::SEATS_MAX),
            ("owner", field::OWNER),
            ("key", field::KEY),
            ("server", field::SERVER),
            ("state", field::STATE),
            ("open", field::OPEN),
            ("private", field::PRIVATE),
        ] {
            assert_eq!(of(&instances, name), number, "{name}");
        }
        for (name, number) in [
            ("id", FieldId::ID),
            ("name", user::NAME),
            ("session_server", user::SESSION_SERVER),
            ("generation", user::GENERATION),
            ("seats", user::SEATS),
            ("instance", user::INSTANCE),
            ("online", user::ONLINE),
        ] {
            assert_eq!(of(&USERS, name), number, "{name}");
        }
        assert_eq!(SERVERS.find("last_report"), Some(FieldId(7)));
        assert_eq!(SERVERS.find("labels"), Some(FieldId(8)));
    }
}
