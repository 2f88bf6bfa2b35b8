//! Metadata: a flat struct of the game, as the directory keeps it.

use greenroom_protocol::wire::client_session::{Meta, MetaValue};
use serde::{Deserialize, Serialize};

use crate::payload::encode;

/// A field may be missing: the directory then has no value.
#[derive(Deserialize)]
#[serde(untagged)]
enum Field {
    Value(MetaValue),
    Missing(()),
}

/// What the game's struct says, or why it can't be metadata.
pub(crate) fn flatten<M: Serialize>(meta: &M) -> Result<Meta, String> {
    let mut bytes = Vec::new();
    encode(meta, &mut bytes)?;
    if bytes == [0xc0] {
        return Ok(Meta::new()); // `()`: nothing to say.
    }
    let fields: std::collections::BTreeMap<ecow::EcoString, Field> = rmp_serde::from_slice(&bytes)
        .map_err(|_| {
            "metadata is a flat struct of booleans, whole numbers and texts; this is something else"
        })?;
    let value = |(name, field)| match field {
        Field::Value(value) => Some((name, value)),
        Field::Missing(()) => None,
    };
    Ok(fields.into_iter().filter_map(value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Flat {
        ranked: bool,
        rating: i32,
        map: &'static str,
        host: Option<String>,
    }

    #[test]
    fn a_flat_struct_is_metadata_and_a_missing_field_is_left_out() {
        let meta = flatten(&Flat { ranked: true, rating: -3, map: "dust", host: None }).unwrap();
        let expected = [
            ("map", MetaValue::Text("dust".into())),
            ("ranked", MetaValue::Bool(true)),
            ("rating", MetaValue::Int(-3)),
        ];
        assert!(meta.iter().map(|(name, value)| (name.as_str(), value.clone())).eq(expected));
        assert_eq!(flatten(&()), Ok(Meta::new()));
    }

    #[test]
    fn a_nested_struct_is_no_metadata() {
        #[derive(Serialize)]
        struct Nested {
            inner: Flat,
        }
        let inner = Flat { ranked: true, rating: 0, map: "", host: None };
        assert!(flatten(&Nested { inner }).unwrap_err().contains("flat struct"));
        assert!(flatten(&[1, 2]).is_err());
    }
}
