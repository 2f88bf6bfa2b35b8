//! What strangers named, made fit for a page: in HTML, in an address, for the eye.

use std::fmt::Write as _;

/// A text as it is shown. What a reader could not see, or what would turn the text around it, is written out: control
/// characters and those that direct writing. HTML is escaped by who writes the page, not here.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        if is_unseen(char) {
            let written = write!(shown, "\\u{{{:x}}}", u32::from(char));
            written.expect("a String takes everything");
        } else {
            shown.push(char);
        }
    }
    shown
}

fn is_unseen(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' |
                '\u{fff9}'..='\u{fffb}'
        )
}

/// The beginning of a text for a narrow place, with a sign that there is more.
pub(crate) fn short(text: &str, chars_max: usize) -> String {
    let shown = shown(text);
    if shown.chars().count() <= chars_max {
        return shown;
    }
    let kept: String = shown.chars().take(chars_max.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// A text as a part of an address: everything but plain letters, digits, `-` and `_` is escaped.
pub(crate) fn in_url(text: &str) -> String {
    let escaped = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    escaped.collect()
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes from hexadecimal digits; nothing if the text is something else.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok());
    pairs.collect()
}

/// A number with spaces between its thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// A span of time as people say it, to the second.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_seen_is_written_out() {
        assert_eq!(shown("Ann \u{1b}[31m\u{202e}dne\u{0}"), "Ann \\u{1b}[31m\\u{202e}dne\\u{0}");
        assert_eq!(shown("Ünï 🦀 <b>"), "Ünï 🦀 <b>");
        assert_eq!(short("abcdef", 4), "abc…");
        assert_eq!(short("abcd", 4), "abcd");
    }

    #[test]
    fn bytes_survive_an_address() {
        let bytes = [0, 255, 16, 7];
        assert_eq!(unhex(&hex(&bytes)), Some(bytes.to_vec()));
        assert_eq!([unhex("0"), unhex("zz"), unhex("é0")], [None, None, None]);
        assert_eq!(in_url("a b/ä\"?"), "a%20b%2F%C3%A4%22%3F");
    }

    #[test]
    fn numbers_are_read_in_groups() {
        assert_eq!(grouped(1_234_567).replace('\u{202f}', " "), "1 234 567");
        assert_eq!([grouped(0), grouped(999)], ["0", "999"]);
        assert_eq!([span(1_500), span(180_000), span(90_000_000)], ["1 s", "3 min", "25 h"]);
    }
}
