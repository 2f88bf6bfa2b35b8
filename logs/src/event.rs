//! What an event is: a struct of its own for each kind, which knows how to write itself as a line.

use std::time::Duration;

use ecow::EcoString;
use greenroom_protocol::{
    Epoch, Incarnation, InstanceId, Key, KindName, Seat, ServerName, SessionId, Tick, TraceContext,
    UserId,
};

/// Bytes of a text in an event, at most; the rest is cut off, and three dots say so.
pub const TEXT_BYTES_MAX: usize = 256;
/// Bytes of a line, at most: what is longer is no event.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Every detail.
    Debug,
    /// The course of things.
    Info,
    /// Unusual, but handled.
    Warn,
    /// Somebody must act.
    Error,
}

impl Severity {
    /// All of them, the least first.
    pub const ALL: [Self; 4] = [Self::Debug, Self::Info, Self::Warn, Self::Error];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// A kind of event, for the reference and for SQL.
#[derive(Debug)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Grows when a field changes its meaning or goes; a new field does not change it.
    pub version: u16,
    /// How much it matters.
    pub severity: Severity,
    /// What happened.
    pub doc: &'static str,
    /// Who and what it is about: columns of its own.
    pub about: &'static [&'static str],
    /// What else is known.
    pub fields: &'static [Field],
}

/// A field of a kind.
#[derive(Debug)]
pub struct Field {
    /// Its name; the unit is its end.
    pub name: &'static str,
    /// What it is.
    pub doc: &'static str,
    /// How it is written.
    pub form: Form,
    /// It may be missing.
    pub optional: bool,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A text of [`TEXT_BYTES_MAX`] bytes at most.
    Text,
    /// A whole number.
    Number,
    /// A number with a fraction.
    Real,
    /// `true` or `false`.
    Truth,
}

impl Form {
    /// Its name in the reference.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Number => "number",
            Self::Real => "real",
            Self::Truth => "truth",
        }
    }
}

/// Something that happened. The structs of [`crate::kinds`] are all there are.
pub trait Event {
    /// Which kind it is.
    const KIND: &'static Kind;
    /// Writes what it is about, and its fields.
    fn write(&self, line: &mut Line<'_>);
}

/// A line that is being written.
#[derive(Debug)]
pub struct Line<'a> {
    out: &'a mut Vec<u8>,
    has_field: bool,
}

impl<'a> Line<'a> {
    /// A line from its node on; id and time come before it, when it is queued. `node` is JSON already.
    pub(crate) fn begin(
        out: &'a mut Vec<u8>,
        node: &str,
        kind: &str,
        version: u16,
        severity: Severity,
    ) -> Self {
        out.extend_from_slice(node.as_bytes());
        out.extend_from_slice(b",\"kind\":");
        text(out, kind);
        out.extend_from_slice(b",\"v\":");
        number(out, u64::from(version));
        out.extend_from_slice(b",\"severity\":\"");
        out.extend_from_slice(severity.name().as_bytes());
        out.push(b'"');
        Self { out, has_field: false }
    }
    /// Who or what it is about.
    pub fn about(&mut self, name: &str, value: &impl Value) {
        if !value.is_absent() {
            self.out.extend_from_slice(b",\"");
            self.out.extend_from_slice(name.as_bytes());
            self.out.extend_from_slice(b"\":");
            value.write(self.out);
        }
    }
    /// After this come fields.
    pub fn fields(&mut self) {
        self.out.extend_from_slice(b",\"fields\":{");
    }
    /// A field.
    pub fn field(&mut self, name: &str, value: &impl Value) {
        if value.is_absent() {
            return;
        }
        if self.has_field {
            self.out.push(b',');
        }
        self.has_field = true;
        text(self.out, name);
        self.out.push(b':');
        value.write(self.out);
    }
    pub(crate) fn end(self) {
        self.out.extend_from_slice(b"}}\n");
    }
}

/// What a field may be. There is none for keys, tokens and passwords, so an event that had one would not compile:
///
/// ```compile_fail
/// use greenroom_logs::Value;
/// fn written<V: Value>(_: V) {}
/// written(greenroom_protocol::SessionKey([7; 16]));
/// ```
pub trait Value {
    /// How it is written.
    const FORM: Form;
    /// Whether it may be missing.
    const OPTIONAL: bool = false;
    /// Whether it is missing.
    fn is_absent(&self) -> bool {
        false
    }
    /// Writes it as JSON.
    fn write(&self, out: &mut Vec<u8>);
}

impl<V: Value> Value for Option<V> {
    const FORM: Form = V::FORM;
    const OPTIONAL: bool = true;
    fn is_absent(&self) -> bool {
        self.is_none()
    }
    fn write(&self, out: &mut Vec<u8>) {
        if let Some(value) = self {
            value.write(out);
        }
    }
}

macro_rules! values {
    (text: $($text:ty),*; shown: $($shown:ty),*; numbers: $($number:ty),*;) => {
        $(impl Value for $text {
            const FORM: Form = Form::Text;
            fn write(&self, out: &mut Vec<u8>) { text(out, self.as_str()); }
        })*
        // What these print is letters and digits.
        $(impl Value for $shown {
            const FORM: Form = Form::Text;
            fn write(&self, out: &mut Vec<u8>) { shown(out, format_args!("\"{self}\"")); }
        })*
        $(impl Value for $number {
            const FORM: Form = Form::Number;
            fn write(&self, out: &mut Vec<u8>) { number(out, u64::from(*self)); }
        })*
    };
}
values! {
    text: String, EcoString, ServerName, UserId, KindName, Key;
    shown: InstanceId, SessionId, Incarnation, Epoch, std::net::IpAddr;
    numbers: u8, u16, u32, u64;
}

impl Value for &'static str {
    const FORM: Form = Form::Text;
    fn write(&self, out: &mut Vec<u8>) {
        text(out, self);
    }
}
impl Value for i64 {
    const FORM: Form = Form::Number;
    fn write(&self, out: &mut Vec<u8>) {
        if *self < 0 {
            out.push(b'-');
        }
        number(out, self.unsigned_abs());
    }
}
impl Value for bool {
    const FORM: Form = Form::Truth;
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if *self { b"true" } else { b"false" });
    }
}
impl Value for Seat {
    const FORM: Form = Form::Number;
    fn write(&self, out: &mut Vec<u8>) {
        number(out, u64::from(self.0));
    }
}
impl Value for Tick {
    const FORM: Form = Form::Number;
    fn write(&self, out: &mut Vec<u8>) {
        number(out, self.0);
    }
}
/// In milliseconds, with microseconds behind the point: names of such fields end in `_ms`.
impl Value for Duration {
    const FORM: Form = Form::Real;
    fn write(&self, out: &mut Vec<u8>) {
        let micros = u64::try_from(self.as_micros()).unwrap_or(u64::MAX);
        number(out, micros / 1_000);
        shown(out, format_args!(".{:03}", micros % 1_000));
    }
}
/// The number of a trace, as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace(pub u128);
impl From<TraceContext> for Trace {
    fn from(context: TraceContext) -> Self {
        Self(u128::from_be_bytes(context.trace))
    }
}
impl Value for Trace {
    const FORM: Form = Form::Text;
    fn write(&self, out: &mut Vec<u8>) {
        shown(out, format_args!("\"{:032x}\"", self.0));
    }
}

fn shown(out: &mut Vec<u8>, what: std::fmt::Arguments<'_>) {
    std::io::Write::write_fmt(out, what).expect("writing to memory does not fail");
}

/// Writes a number of JSON's, which is one already.
pub(crate) fn whole_number(out: &mut Vec<u8>, value: &serde_json::Number) {
    shown(out, format_args!("{value}"));
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789"[usize::try_from(value % 10).unwrap_or_default()];
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Writes a text as JSON, cut to [`TEXT_BYTES_MAX`].
pub(crate) fn text(out: &mut Vec<u8>, text: &str) {
    if text.len() <= TEXT_BYTES_MAX {
        return whole_text(out, text);
    }
    whole_text(out, &text[..text.floor_char_boundary(TEXT_BYTES_MAX - 3)]);
    out.pop();
    out.extend_from_slice(b"...\"");
}

/// Writes a text as JSON. Besides what JSON wants, everything is escaped that a terminal or a page could take for more
/// than text: control characters of every sort, marks that turn the direction, `<`, `>`, `&`.
pub(crate) fn whole_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let is_plain = |byte: u8| {
        matches!(byte, 0x20..=0x7E) && !matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&')
    };
    if text.bytes().all(is_plain) {
        out.extend_from_slice(text.as_bytes());
    } else {
        let mut buffer = [0; 4];
        for letter in text.chars() {
            match letter {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                letter if is_control(letter) || matches!(letter, '<' | '>' | '&') => {
                    shown(out, format_args!("\\u{:04x}", u32::from(letter)));
                }
                letter => out.extend_from_slice(letter.encode_utf8(&mut buffer).as_bytes()),
            }
        }
    }
    out.push(b'"');
}

/// A text as a terminal may have it: what it would take for more than text is spelt out.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match is_control(letter) {
            true => out.extend(letter.escape_unicode()),
            false => out.push(letter),
        }
    }
    out
}

/// Whether a letter is none: it does something, or turns the direction of others.
fn is_control(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{2028}' | '\u{2029}' | '\u{FEFF}' | '\u{200E}' | '\u{200F}')
        || matches!(letter, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Declares kinds of events: a struct for each, and the list of all.
macro_rules! events { ($(
    $(#[doc = $doc:literal])+
    $name:ident = $kind:literal, $version:literal, $severity:ident, about { $($about:ident: $of:ty),* } {
        $($(#[doc = $field_doc:literal])+ $field:ident: $type:ty,)*
    }
)*) => {
    $(
        $(#[doc = $doc])+
        #[derive(Clone, Debug)]
        pub struct $name {
            $(#[doc = concat!("The ", stringify!($about), " that it is about.")] pub $about: $of,)*
            $($(#[doc = $field_doc])+ pub $field: $type,)*
        }
        impl $crate::Event for $name {
            const KIND: &'static $crate::Kind = &$crate::Kind {
                name: $kind,
                version: $version,
                severity: $crate::Severity::$severity,
                doc: concat!($($doc),+),
                about: &[$(stringify!($about)),*],
                fields: &[$($crate::Field {
                    name: stringify!($field),
                    doc: concat!($($field_doc),+),
                    form: <$type as $crate::Value>::FORM,
                    optional: <$type as $crate::Value>::OPTIONAL,
                }),*],
            };
            fn write(&self, line: &mut $crate::Line<'_>) {
                $(line.about(stringify!($about), &self.$about);)*
                line.fields();
                $(line.field(stringify!($field), &self.$field);)*
            }
        }
    )*
    /// Every kind that servers emit, in the order of the reference. Games have their own besides.
    pub const KINDS: &[&$crate::Kind] = &[$(<$name as $crate::Event>::KIND),*];
} }
pub(crate) use events;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(value: &str) -> Vec<u8> {
        let mut out = Vec::new();
        text(&mut out, value);
        out
    }

    proptest! {
        #[test]
        fn any_text_is_json_that_nobody_can_mistake_for_more(value in any::<String>()) {
            let json = String::from_utf8(written(&value)).unwrap();
            let back: String = serde_json::from_str(&json).unwrap();
            prop_assert!(back.len() <= TEXT_BYTES_MAX);
            prop_assert!(back == value || back.ends_with("...") && value.starts_with(&back[..back.len() - 3]));
            prop_assert!(!json.contains(['<', '>', '&']) && !json.chars().any(char::is_control));
        }
        #[test]
        fn numbers_are_those_that_they_were(value: u64, signed: i64) {
            let mut out = Vec::new();
            number(&mut out, value);
            prop_assert_eq!(String::from_utf8(std::mem::take(&mut out)).unwrap(), value.to_string());
            signed.write(&mut out);
            prop_assert_eq!(String::from_utf8(out).unwrap(), signed.to_string());
        }
    }

    #[test]
    fn a_long_text_is_cut_between_its_letters() {
        let json = written(&"ä".repeat(1_000));
        let back: String = serde_json::from_slice(&json).unwrap();
        assert!(back.len() <= TEXT_BYTES_MAX && back.ends_with("ä..."), "{back}");
    }

    #[test]
    fn control_characters_and_markup_are_escaped() {
        let json = String::from_utf8(written("<b>\u{1b}[31m\u{202e}&\u{85}\"\\")).unwrap();
        assert_eq!(json, r#""\u003cb\u003e\u001b[31m\u202e\u0026\u0085\"\\""#);
    }
}
