//! Ordered indexes: sequences of small entries that know their ranks.
