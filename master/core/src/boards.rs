//! Rank boards: who is how good at what, by name.
