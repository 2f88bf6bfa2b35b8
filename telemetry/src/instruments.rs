//! What a server counts: each instrument once, with the name, unit and meaning that everybody outside sees.

use crate::histogram::Distribution;

/// How an instrument moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, from 0 at the start of the process.
    Counter,
    /// It goes up and down.
    Gauge,
    /// A distribution of spans of time.
    Histogram,
}

/// What is counted, in UCUM's letters where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things, named in the singular: `{frame}`.
    Of(&'static str),
    /// Bytes: `By`.
    Bytes,
    /// Seconds: `s`. What is kept in microseconds is told in seconds.
    Seconds,
}

impl Unit {
    /// As OpenTelemetry writes it.
    pub fn ucum(self) -> String {
        match self {
            Self::Of(thing) => format!("{{{thing}}}"),
            Self::Bytes => "By".to_owned(),
            Self::Seconds => "s".to_owned(),
        }
    }
}

/// An instrument, as everybody outside sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its name, with dots: `greenroom.game.ticks`.
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// What it counts.
    pub unit: Unit,
    /// What it means: a sentence.
    pub help: &'static str,
}

/// What an instrument held when it was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge that counts things or bytes.
    Whole(u64),
    /// Of a counter or a gauge in seconds.
    Micros(u64),
    /// Of a histogram.
    Distribution(Distribution),
}

/// Something that counts: the metrics of one server, or of the process.
pub trait Source: Send + Sync {
    /// Reads every instrument, in the order of their declaration.
    fn read(&self, each: &mut dyn FnMut(&'static Description, Value));
}

/// Declares the metrics of a server: a struct with an [`AtomicU64`](std::sync::atomic::AtomicU64) or a
/// [`Histogram`](crate::Histogram) for each instrument, and their descriptions. The doc comment of a field is what
/// people outside read of it.
///
/// A counter or a gauge says what it counts, in the singular, or `bytes`, or `micros` for spans of time that are kept
/// in microseconds. A histogram is of spans of time.
#[macro_export]
macro_rules! instruments {
    (
        $(#[$meta:meta])* $vis:vis struct $name:ident;
        $($(#[doc = $doc:literal])+ $kind:ident $field:ident = $otel:literal $(, $unit:tt)?;)*
    ) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $vis struct $name { $($(#[doc = $doc])+ pub $field: $crate::instruments!(@type $kind),)* }
        impl $name {
            /// Every instrument.
            $vis const DESCRIPTIONS: &'static [$crate::Description] = &[$($crate::Description {
                name: $otel,
                kind: $crate::instruments!(@kind $kind),
                unit: $crate::instruments!(@unit $kind $($unit)?),
                help: concat!($($doc),+).trim_ascii(),
            }),*];
        }
        impl $crate::Source for $name {
            fn read(&self, each: &mut dyn FnMut(&'static $crate::Description, $crate::Value)) {
                let mut descriptions = Self::DESCRIPTIONS.iter();
                $(if let Some(description) = descriptions.next() {
                    each(description, $crate::instruments!(@read $kind $($unit)?, self.$field));
                })*
            }
        }
    };
    (@type histogram) => { $crate::Histogram };
    (@type $kind:ident) => { ::std::sync::atomic::AtomicU64 };
    (@kind counter) => { $crate::Kind::Counter };
    (@kind gauge) => { $crate::Kind::Gauge };
    (@kind histogram) => { $crate::Kind::Histogram };
    (@unit histogram) => { $crate::Unit::Seconds };
    (@unit $kind:ident bytes) => { $crate::Unit::Bytes };
    (@unit $kind:ident micros) => { $crate::Unit::Seconds };
    (@unit $kind:ident $thing:literal) => { $crate::Unit::Of($thing) };
    (@read histogram, $field:expr) => { $crate::Value::Distribution($field.read()) };
    (@read $kind:ident micros, $field:expr) => {
        $crate::Value::Micros($field.load(::std::sync::atomic::Ordering::Relaxed))
    };
    (@read $kind:ident $unit:tt, $field:expr) => {
        $crate::Value::Whole($field.load(::std::sync::atomic::Ordering::Relaxed))
    };
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    crate::instruments! {
        /// Of a kettle.
        struct Kettle;
        /// Cups
        /// poured.
        counter cups = "kettle.cups", "cup";
        /// Water in it.
        gauge water = "kettle.water", bytes;
        /// Time that it was on.
        counter on = "kettle.on", micros;
        /// How long water takes to boil.
        histogram boiled = "kettle.boil.duration";
    }

    #[test]
    fn every_field_is_read_with_its_name_unit_and_first_words() {
        let kettle = Kettle::default();
        kettle.cups.store(3, Relaxed);
        kettle.on.store(1_500_000, Relaxed);
        kettle.boiled.record_us(7);
        let mut read = Vec::new();
        kettle.read(&mut |description, value| read.push((*description, value)));
        let names: Vec<_> = read.iter().map(|(of, _)| (of.name, of.unit.ucum())).collect();
        assert_eq!(
            names,
            [
                ("kettle.cups", "{cup}".to_owned()),
                ("kettle.water", "By".to_owned()),
                ("kettle.on", "s".to_owned()),
                ("kettle.boil.duration", "s".to_owned())
            ]
        );
        assert_eq!(read[0].0.help, "Cups poured.");
        assert_eq!((&read[0].1, &read[2].1), (&Value::Whole(3), &Value::Micros(1_500_000)));
        assert!(matches!(&read[3].1, Value::Distribution(spans) if spans.count() == 1));
    }
}
