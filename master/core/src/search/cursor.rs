//! Where a search goes on: the place of the last record that was found, and not a count, so that nothing that comes
//! or goes meanwhile moves it.

use ecow::eco_format;
use greenroom_protocol::search::{Filter, Order};
use greenroom_protocol::wire::Opaque;
use greenroom_protocol::wire::client_session::MetaValue;
use greenroom_protocol::{Code, Limits, Refusal, decode, encode};
use serde::{Deserialize, Serialize};

use super::plan::Place;
use super::schema::{FieldId, Schema, Value};
use crate::mint::ClusterSecret;

/// Bytes of the keyed hash that a cursor begins with: it tells one search from another, and lets nobody write one.
const HASH_BYTES: usize = 8;

/// A place, as it travels.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    /// The value of the field of the order; none if the record does not have it.
    value: Option<MetaValue>,
    /// The record's id.
    id: MetaValue,
}

/// The search that a cursor belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Searched<'a> {
    /// What is searched: a kind, or a table of an operator's.
    pub(crate) table: &'a str,
    pub(crate) filter: &'a Filter,
    pub(crate) order: Option<&'a Order>,
}

impl Searched<'_> {
    /// The cursor after a place.
    pub(crate) fn write(&self, secret: &ClusterSecret, place: &Place) -> Opaque {
        let written = Written {
            value: place.value.as_ref().map(|value| value.as_ref().to_meta()),
            id: place.id.as_ref().to_meta(),
        };
        let place = encode(&written);
        Opaque::from([&self.hash(secret, &place)[..], &place].concat())
    }

    /// The place that a cursor stands for.
    ///
    /// # Errors
    /// `CursorInvalid` for one of another search, and for anything else.
    pub(crate) fn read(
        &self,
        secret: &ClusterSecret,
        schema: &Schema,
        order: FieldId,
        cursor: &[u8],
    ) -> Result<Place, Refusal> {
        self.place(secret, schema, order, cursor).ok_or_else(|| {
            Refusal::new(
                Code::CursorInvalid,
                eco_format!(
                    "the cursor is not from this search of {}: kind, filter and order have to be the same; \
                     begin without one",
                    schema.records
                ),
            )
        })
    }

    fn place(
        &self,
        secret: &ClusterSecret,
        schema: &Schema,
        order: FieldId,
        cursor: &[u8],
    ) -> Option<Place> {
        let (hash, place) = cursor.split_at_checked(HASH_BYTES)?;
        if hash != self.hash(secret, place) {
            return None;
        }
        let Written { value, id } = decode(place, Limits::CLIENT).ok()?;
        let value = match value {
            Some(value) => Some(value_of(schema, order, &value)?),
            None => None,
        };
        Some(Place { value, id: value_of(schema, FieldId::ID, &id)? })
    }

    fn hash(&self, secret: &ClusterSecret, place: &[u8]) -> [u8; HASH_BYTES] {
        let mut bytes = encode(&(self.table, self.filter, self.order));
        bytes.extend_from_slice(place);
        let mut hash = [0; HASH_BYTES];
        hash.copy_from_slice(&secret.keyed(&bytes)[..HASH_BYTES]);
        hash
    }
}

/// The value of a field, if the field can hold it: a kind's fields may have changed since the cursor was written.
fn value_of(schema: &Schema, field: FieldId, value: &MetaValue) -> Option<Value> {
    if !schema.can_hold(field, value) {
        return None;
    }
    match value {
        MetaValue::Text(text) if schema.holds_instances(field) => text.parse().ok().map(Value::Id),
        MetaValue::Text(_) | MetaValue::Int(_) | MetaValue::Bool(_) => Some(Value::from(value)),
    }
}
