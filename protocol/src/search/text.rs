//! Filters as people write them.

use std::fmt;

use super::{Filter, Order};

/// A search as text: `mode = "ranked" and rating between 1400 and 1600 order by created desc limit 20`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Which records.
    pub filter: Filter,
    /// In which order; without one, by id.
    pub order: Option<Order>,
    /// How many; without one, as many as who asks gives by default.
    pub limit: Option<u16>,
}

/// Why a text is no search: what was expected, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}, at character {at}")]
pub struct TextError {
    /// What is wrong.
    pub message: String,
    /// Where, in characters from 1.
    pub at: usize,
}

impl fmt::Display for Filter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, out)
    }
}
