//! Filters as people write them. `PROTOCOL.md` has the grammar; every filter that passes [`Filter::check`] has a text
//! that is read as the same filter again.

use std::fmt::{self, Write as _};

use ecow::EcoString;

use super::{
    FILTER_CONDITIONS_MAX, FILTER_DEPTH_MAX, FILTER_TEXT_BYTES_MAX, Filter, LIMIT_MAX, Order,
    is_field_name,
};
use crate::wire::client_session::MetaValue;

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

impl Query {
    /// Reads a search: a filter, then `order by FIELD`, then `limit N`, each of which may be left out.
    ///
    /// # Errors
    /// What was expected and where, or which bound the filter is over: what comes out passes [`Filter::check`].
    pub fn parse(text: &str) -> Result<Self, TextError> {
        let mut reader = Reader::new(text)?;
        let filter = reader.filter()?;
        let order = reader.order()?;
        let limit = reader.limit()?;
        reader.end(match (&order, limit) {
            (_, Some(_)) => "the end",
            (Some(_), None) => "\"limit\" or the end",
            (None, None) => "\"and\", \"or\", \"order by\", \"limit\" or the end",
        })?;
        Ok(Self { filter, order, limit })
    }
}

impl Filter {
    /// Reads a filter. The empty text lets everything through.
    ///
    /// # Errors
    /// As [`Query::parse`].
    pub fn parse(text: &str) -> Result<Self, TextError> {
        let mut reader = Reader::new(text)?;
        let filter = reader.filter()?;
        reader.end("\"and\", \"or\" or the end")?;
        Ok(filter)
    }
}

/// Parentheses and `not`s that are open at once, at most. More than [`FILTER_DEPTH_MAX`], since parentheses around
/// parentheses are no nesting of the filter, and so few that the reader's own stack is never in danger.
const OPEN_MAX: usize = 32;

/// Words that can't name a field where a condition begins, unless they stand in backticks.
const RESERVED: &[&str] = &["and", "or", "not", "true", "false", "order", "limit"];

/// A piece of the text.
#[derive(Clone, Debug, PartialEq)]
enum Token<'a> {
    /// A field's name or a keyword.
    Word(&'a str),
    /// A field's name in backticks.
    Name(&'a str),
    Number(i64),
    Text(EcoString),
    Symbol(&'static str),
    End,
}

/// A filter, and how many `and`, `or` and `not` it has inside each other.
struct Nested {
    filter: Filter,
    depth: usize,
}

/// Reads a text from its beginning, one token ahead.
struct Reader<'a> {
    text: &'a str,
    /// The token that comes next.
    token: Token<'a>,
    /// Where it begins, in bytes.
    begin: usize,
    /// Where it ends, in bytes.
    end: usize,
    /// Parentheses and `not`s that are open.
    open: usize,
    /// Conditions so far.
    conditions: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Result<Self, TextError> {
        let mut reader = Self { text, token: Token::End, begin: 0, end: 0, open: 0, conditions: 0 };
        reader.advance()?;
        Ok(reader)
    }

    // What a search consists of.

    fn filter(&mut self) -> Result<Filter, TextError> {
        if self.token == Token::End || self.is("order") || self.is("limit") {
            return Ok(Filter::default());
        }
        Ok(self.either()?.filter)
    }

    fn order(&mut self) -> Result<Option<Order>, TextError> {
        if !self.skip("order")? {
            return Ok(None);
        }
        if !self.skip("by")? {
            return Err(self.expected("\"by\" after \"order\""));
        }
        let field = self.field("a field after \"order by\"")?;
        let descending = self.skip("desc")?;
        if !descending {
            self.skip("asc")?;
        }
        Ok(Some(Order { field, descending }))
    }

    fn limit(&mut self) -> Result<Option<u16>, TextError> {
        if !self.skip("limit")? {
            return Ok(None);
        }
        let limit = match self.token {
            Token::Number(number) => u16::try_from(number).ok(),
            Token::Word(_) | Token::Name(_) | Token::Text(_) | Token::Symbol(_) | Token::End => {
                None
            }
        };
        let Some(limit) = limit.filter(|limit| (1..=LIMIT_MAX).contains(limit)) else {
            return Err(self.expected(&format!("a number from 1 to {LIMIT_MAX} after \"limit\"")));
        };
        self.advance()?;
        Ok(Some(limit))
    }

    fn end(&self, expected: &str) -> Result<(), TextError> {
        if self.token == Token::End { Ok(()) } else { Err(self.expected(expected)) }
    }

    /// One or more, with `or` between them.
    fn either(&mut self) -> Result<Nested, TextError> {
        let begin = self.begin;
        let first = self.both()?;
        self.chain(begin, first, "or", Self::both, Filter::Or)
    }

    /// One or more, with `and` between them.
    fn both(&mut self) -> Result<Nested, TextError> {
        let begin = self.begin;
        let first = self.one()?;
        self.chain(begin, first, "and", Self::one, Filter::And)
    }

    fn chain(
        &mut self,
        begin: usize,
        first: Nested,
        between: &str,
        next: fn(&mut Self) -> Result<Nested, TextError>,
        join: fn(Vec<Filter>) -> Filter,
    ) -> Result<Nested, TextError> {
        if !self.is(between) {
            return Ok(first);
        }
        let (mut all, mut depth) = (vec![first.filter], first.depth);
        while self.skip(between)? {
            let other = next(self)?;
            depth = depth.max(other.depth);
            all.push(other.filter);
        }
        self.deeper(begin, depth, join(all))
    }

    /// A condition, with any number of `not`s before it.
    fn one(&mut self) -> Result<Nested, TextError> {
        let begin = self.begin;
        if self.is("not") {
            self.enter()?;
            self.advance()?;
            let not = self.one()?;
            self.open -= 1;
            return self.deeper(begin, not.depth, Filter::Not(Box::new(not.filter)));
        }
        if self.token == Token::Symbol("(") {
            return self.parentheses();
        }
        if self.skip("true")? {
            self.count(begin)?;
            return self.deeper(begin, 0, Filter::And(Vec::new()));
        }
        if self.skip("false")? {
            self.count(begin)?;
            return self.deeper(begin, 0, Filter::Or(Vec::new()));
        }
        // `all (a = 1)` is an `and` of one: programs make such filters, and every filter has a text.
        if self.text[self.end..].trim_start().starts_with('(') {
            let all = self.skip("all")?;
            if all || self.skip("any")? {
                let only = self.parentheses()?;
                let join = if all { Filter::And } else { Filter::Or };
                return self.deeper(begin, only.depth, join(vec![only.filter]));
            }
        }
        let field = self.field("a condition")?;
        self.condition(begin, field)
    }

    fn parentheses(&mut self) -> Result<Nested, TextError> {
        let begin = self.begin;
        self.enter()?;
        self.advance()?;
        let inner = self.either()?;
        if self.token != Token::Symbol(")") {
            let opened = self.character(begin);
            return Err(self.expected(&format!(
                "\"and\", \"or\" or \")\" for the \"(\" at character {opened}"
            )));
        }
        self.advance()?;
        self.open -= 1;
        Ok(inner)
    }

    /// What stands after a field's name that begins at `begin`.
    fn condition(&mut self, begin: usize, field: EcoString) -> Result<Nested, TextError> {
        let compare = match self.token {
            Token::Symbol("=") => Some(("=", Filter::Eq as fn(_, _) -> _)),
            Token::Symbol("!=") => Some(("!=", Filter::Ne as _)),
            Token::Symbol("<>") => Some(("<>", Filter::Ne as _)),
            Token::Symbol("<") => Some(("<", Filter::Lt as _)),
            Token::Symbol("<=") => Some(("<=", Filter::Le as _)),
            Token::Symbol(">") => Some((">", Filter::Gt as _)),
            Token::Symbol(">=") => Some((">=", Filter::Ge as _)),
            Token::Symbol(_)
            | Token::Word(_)
            | Token::Name(_)
            | Token::Number(_)
            | Token::Text(_)
            | Token::End => None,
        };
        if let Some((sign, compare)) = compare {
            self.advance()?;
            let value = self.value(&format!("a value after \"{sign}\""))?;
            self.count(begin)?;
            return Ok(Nested { filter: compare(field, value), depth: 0 });
        }
        let not = self.begin;
        let negated = self.skip("not")?;
        let filter = if self.skip("in")? {
            Filter::In(field, self.values(begin)?)
        } else if self.skip("between")? {
            let from = self.value("a value after \"between\"")?;
            if !self.skip("and")? {
                return Err(self.expected("\"and\" after the first value of \"between\""));
            }
            let to = self.value("a second value after \"and\"")?;
            self.count(begin)?;
            Filter::Between(field, from, to)
        } else if let Some(word) = self.beginning()? {
            let Token::Text(beginning) = &self.token else {
                return Err(self.expected(&format!("a text in quotes after \"{word}\"")));
            };
            let beginning = beginning.clone();
            self.advance()?;
            self.count(begin)?;
            Filter::Prefix(field, beginning)
        } else if negated {
            return Err(
                self.expected("\"in\", \"between\", \"prefix\" or \"starts with\" after \"not\"")
            );
        } else if self.may_follow_a_condition() {
            self.count(begin)?;
            Filter::Eq(field, MetaValue::Bool(true))
        } else {
            return Err(self.expected(&format!("an operator after \"{field}\"")));
        };
        if negated {
            return self.deeper(not, 0, Filter::Not(Box::new(filter)));
        }
        Ok(Nested { filter, depth: 0 })
    }

    /// `prefix` or `starts with`, as it was written.
    fn beginning(&mut self) -> Result<Option<&'static str>, TextError> {
        if self.skip("prefix")? {
            return Ok(Some("prefix"));
        }
        if !self.skip("starts")? {
            return Ok(None);
        }
        if !self.skip("with")? {
            return Err(self.expected("\"with\" after \"starts\""));
        }
        Ok(Some("starts with"))
    }

    /// The values of an `in`.
    fn values(&mut self, begin: usize) -> Result<Vec<MetaValue>, TextError> {
        if self.token != Token::Symbol("(") {
            return Err(self.expected("\"(\" after \"in\""));
        }
        self.advance()?;
        let mut values = Vec::new();
        if self.token == Token::Symbol(")") {
            self.count(begin)?;
        }
        while self.token != Token::Symbol(")") {
            if !values.is_empty() {
                if self.token != Token::Symbol(",") {
                    return Err(self.expected("\",\" or \")\" after a value of \"in\""));
                }
                self.advance()?;
            }
            let begin = self.begin;
            values.push(self.value("a value")?);
            self.count(begin)?;
        }
        self.advance()?;
        Ok(values)
    }

    fn value(&mut self, what: &str) -> Result<MetaValue, TextError> {
        let value = match &self.token {
            Token::Number(number) => MetaValue::Int(*number),
            Token::Text(text) => MetaValue::Text(text.clone()),
            Token::Word(word) if word.eq_ignore_ascii_case("true") => MetaValue::Bool(true),
            Token::Word(word) if word.eq_ignore_ascii_case("false") => MetaValue::Bool(false),
            Token::Word(_) => {
                let mut error = self.expected(what);
                error.message.push_str(" (a text stands in quotes)");
                return Err(error);
            }
            Token::Name(_) | Token::Symbol(_) | Token::End => return Err(self.expected(what)),
        };
        self.advance()?;
        Ok(value)
    }

    fn field(&mut self, what: &str) -> Result<EcoString, TextError> {
        let name = match self.token {
            Token::Word(word) if !RESERVED.iter().any(|taken| word.eq_ignore_ascii_case(taken)) => {
                word
            }
            Token::Name(name) => name,
            Token::Word(_) | Token::Number(_) | Token::Text(_) | Token::Symbol(_) | Token::End => {
                return Err(self.expected(what));
            }
        };
        if !is_field_name(name) {
            return Err(self.error(
                self.begin,
                format!(
                    "{} is no field's name: those have 1 to 64 small letters, digits and \"_\", and no digit first",
                    self.found()
                ),
            ));
        }
        self.advance()?;
        Ok(name.into())
    }

    // Bounds, while reading: nothing larger than what passes `Filter::check` is ever built.

    /// One more parenthesis or `not` is open.
    fn enter(&mut self) -> Result<(), TextError> {
        self.open += 1;
        if self.open > OPEN_MAX {
            let message = format!("more than {OPEN_MAX} parentheses and \"not\"s are open");
            return Err(self.error(self.begin, message));
        }
        Ok(())
    }

    /// One more condition, which begins at `begin`.
    fn count(&mut self, begin: usize) -> Result<(), TextError> {
        self.conditions += 1;
        if self.conditions > FILTER_CONDITIONS_MAX {
            let message = format!("the filter has more than {FILTER_CONDITIONS_MAX} conditions");
            return Err(self.error(begin, message));
        }
        Ok(())
    }

    /// An `and`, `or` or `not` that begins at `begin`, around what is `depth` deep.
    fn deeper(&self, begin: usize, depth: usize, filter: Filter) -> Result<Nested, TextError> {
        if depth == FILTER_DEPTH_MAX {
            let message =
                format!("\"and\", \"or\" and \"not\" are nested more than {FILTER_DEPTH_MAX} deep");
            return Err(self.error(begin, message));
        }
        Ok(Nested { filter, depth: depth + 1 })
    }

    // Tokens.

    /// Whether this keyword comes next, in any case.
    fn is(&self, keyword: &str) -> bool {
        matches!(self.token, Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// Takes this keyword if it comes next.
    fn skip(&mut self, keyword: &str) -> Result<bool, TextError> {
        let is_next = self.is(keyword);
        if is_next {
            self.advance()?;
        }
        Ok(is_next)
    }

    fn may_follow_a_condition(&self) -> bool {
        matches!(self.token, Token::End | Token::Symbol(")"))
            || ["and", "or", "order", "limit"].iter().any(|keyword| self.is(keyword))
    }

    /// Goes to the next token.
    fn advance(&mut self) -> Result<(), TextError> {
        let rest = &self.text[self.end..];
        let token = rest.trim_start();
        self.begin = self.end + (rest.len() - token.len());
        self.end = self.begin;
        let Some(first) = token.chars().next() else {
            self.token = Token::End;
            return Ok(());
        };
        let (read, bytes) = match first {
            'a'..='z' | 'A'..='Z' | '_' => {
                let bytes = length(token, |letter| letter.is_ascii_alphanumeric() || letter == '_');
                (Token::Word(&token[..bytes]), bytes)
            }
            '0'..='9' | '-' | '+' => self.number(token)?,
            '"' | '\'' => self.quoted(token, first)?,
            '`' => {
                let Some(bytes) = token[1..].find('`') else {
                    return Err(self.error(
                        self.begin,
                        "the name that begins here has no closing backtick".to_owned(),
                    ));
                };
                (Token::Name(&token[1..=bytes]), bytes + 2)
            }
            _ => {
                // Longer ones first.
                let symbols = ["!=", "<>", "<=", ">=", "=", "<", ">", "(", ")", ","];
                let Some(symbol) = symbols.into_iter().find(|symbol| token.starts_with(symbol))
                else {
                    let message = format!("{first:?} has no meaning here");
                    return Err(self.error(self.begin, message));
                };
                (Token::Symbol(symbol), symbol.len())
            }
        };
        self.token = read;
        self.end = self.begin + bytes;
        Ok(())
    }

    /// A whole number with or without its sign.
    fn number(&self, token: &str) -> Result<(Token<'a>, usize), TextError> {
        let sign = usize::from(token.starts_with(['-', '+']));
        let digits = length(&token[sign..], |letter| letter.is_ascii_digit());
        let bytes = sign + digits;
        if digits == 0 {
            let message = format!("expected digits after \"{}\"", &token[..sign]);
            return Err(self.error(self.begin + sign, message));
        }
        if token[bytes..].starts_with(|next: char| next.is_alphanumeric() || ".'_".contains(next)) {
            let message = "expected a whole number: it has a sign and digits, nothing else";
            return Err(self.error(self.begin + bytes, message.to_owned()));
        }
        match token[..bytes].parse() {
            Ok(number) => Ok((Token::Number(number), bytes)),
            Err(_) => {
                let message = format!(
                    "the number is out of range: {} to {} are possible",
                    i64::MIN,
                    i64::MAX
                );
                Err(self.error(self.begin, message))
            }
        }
    }

    /// A text in quotes of one kind or the other.
    fn quoted(&self, token: &str, quote: char) -> Result<(Token<'a>, usize), TextError> {
        let mut text = EcoString::new();
        let mut letters = token.char_indices().skip(1);
        while let Some((at, letter)) = letters.next() {
            match letter {
                letter if letter == quote => return Ok((Token::Text(text), at + 1)),
                '\\' => {
                    let rest = &token[at + 1..];
                    let Some((escaped, bytes)) = unescape(rest) else {
                        return Err(self.error(
                            self.begin + at,
                            "expected \\\", \\', \\\\, \\n, \\r, \\t or \\u{…} with a character's number".to_owned(),
                        ));
                    };
                    text.push(escaped);
                    // What stands after the backslash is ASCII: as many characters as bytes.
                    letters.nth(bytes - 1);
                }
                letter => text.push(letter),
            }
            if text.len() > FILTER_TEXT_BYTES_MAX {
                let message =
                    format!("the text has more than {FILTER_TEXT_BYTES_MAX} bytes in UTF-8");
                return Err(self.error(self.begin, message));
            }
        }
        Err(self.error(self.begin, "the text that begins here has no closing quote".to_owned()))
    }

    // What is wrong, and where.

    fn expected(&self, what: &str) -> TextError {
        let found = match self.token {
            Token::End => String::new(),
            Token::Word(_)
            | Token::Name(_)
            | Token::Number(_)
            | Token::Text(_)
            | Token::Symbol(_) => format!(", found {}", self.found()),
        };
        self.error(self.begin, format!("expected {what}{found}"))
    }

    /// The next token as it was written, cut where it is too long for a message.
    fn found(&self) -> String {
        const CHARACTERS_MAX: usize = 24;
        let written = &self.text[self.begin..self.end];
        let (shown, cut) = match written.char_indices().nth(CHARACTERS_MAX) {
            Some((bytes, _)) => (&written[..bytes], "…"),
            None => (written, ""),
        };
        match self.token {
            // These have quotes of their own.
            Token::Text(_) | Token::Name(_) => format!("{shown}{cut}"),
            Token::Word(_) | Token::Number(_) | Token::Symbol(_) | Token::End => {
                format!("\"{shown}{cut}\"")
            }
        }
    }

    fn error(&self, begin: usize, message: String) -> TextError {
        TextError { message, at: self.character(begin) }
    }

    /// The number of the character that begins at this byte.
    fn character(&self, begin: usize) -> usize {
        self.text[..begin].chars().count() + 1
    }
}

/// Bytes of the longest beginning whose characters are all such.
fn length(text: &str, is_such: fn(char) -> bool) -> usize {
    text.find(|letter| !is_such(letter)).unwrap_or(text.len())
}

/// The character that is meant by what stands after a backslash, and how many bytes that takes.
fn unescape(rest: &str) -> Option<(char, usize)> {
    let escaped = match rest.chars().next()? {
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        same @ ('"' | '\'' | '\\') => same,
        'u' => {
            let (digits, _) = rest.strip_prefix("u{")?.split_once('}')?;
            // Without this, the standard reader takes a sign, and any number of zeros.
            if digits.len() > 6 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            let letter = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
            return Some((letter, digits.len() + 3));
        }
        _ => return None,
    };
    Some((escaped, 1))
}

impl fmt::Display for Filter {
    /// As text that [`Filter::parse`] reads as the same filter, if the filter passes [`Filter::check`].
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() { Ok(()) } else { write_filter(self, Inside::Nothing, out) }
    }
}

impl fmt::Display for Query {
    /// As text that [`Query::parse`] reads as the same search.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        if !self.filter.is_empty() {
            write!(out, "{}", self.filter)?;
            between = " ";
        }
        if let Some(order) = &self.order {
            write!(out, "{between}order by ")?;
            write_name(&order.field, out)?;
            out.write_str(if order.descending { " desc" } else { "" })?;
            between = " ";
        }
        if let Some(limit) = self.limit {
            write!(out, "{between}limit {limit}")?;
        }
        Ok(())
    }
}

/// What a filter that is written stands in: whether it needs parentheses.
#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Nothing,
    Or,
    And,
    Not,
}

fn write_filter(filter: &Filter, inside: Inside, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    match filter {
        Filter::And(all) => {
            let bare = matches!(inside, Inside::Nothing | Inside::Or);
            write_chain(all, ["true", "all", " and "], Inside::And, bare, out)
        }
        Filter::Or(all) => {
            let bare = inside == Inside::Nothing;
            write_chain(all, ["false", "any", " or "], Inside::Or, bare, out)
        }
        Filter::Not(not) => match &**not {
            Filter::In(..) | Filter::Between(..) | Filter::Prefix(..) => {
                write_condition(not, "not ", out)
            }
            Filter::And(_)
            | Filter::Or(_)
            | Filter::Not(_)
            | Filter::Eq(..)
            | Filter::Ne(..)
            | Filter::Lt(..)
            | Filter::Le(..)
            | Filter::Gt(..)
            | Filter::Ge(..) => {
                out.write_str("not ")?;
                write_filter(not, Inside::Not, out)
            }
        },
        Filter::Eq(..)
        | Filter::Ne(..)
        | Filter::In(..)
        | Filter::Lt(..)
        | Filter::Le(..)
        | Filter::Gt(..)
        | Filter::Ge(..)
        | Filter::Between(..)
        | Filter::Prefix(..) => write_condition(filter, "", out),
    }
}

/// Filters with a word between them; other words say that there is none, or only one.
fn write_chain(
    all: &[Filter],
    [none, one, between]: [&str; 3],
    inside: Inside,
    bare: bool,
    out: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    match all {
        [] => out.write_str(none),
        [only] => {
            write!(out, "{one} (")?;
            write_filter(only, Inside::Nothing, out)?;
            out.write_str(")")
        }
        [first, others @ ..] => {
            out.write_str(if bare { "" } else { "(" })?;
            write_filter(first, inside, out)?;
            for other in others {
                out.write_str(between)?;
                write_filter(other, inside, out)?;
            }
            out.write_str(if bare { "" } else { ")" })
        }
    }
}

/// A condition; `not` stands before an operator that is a word.
fn write_condition(filter: &Filter, not: &str, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut compare = |field: &str, sign: &str, value: &MetaValue| {
        write_name(field, out)?;
        write!(out, " {sign} ")?;
        write_value(value, out)
    };
    match filter {
        Filter::Eq(field, value) => compare(field, "=", value),
        Filter::Ne(field, value) => compare(field, "!=", value),
        Filter::Lt(field, value) => compare(field, "<", value),
        Filter::Le(field, value) => compare(field, "<=", value),
        Filter::Gt(field, value) => compare(field, ">", value),
        Filter::Ge(field, value) => compare(field, ">=", value),
        Filter::In(field, values) => {
            write_name(field, out)?;
            write!(out, " {not}in (")?;
            for (place, value) in values.iter().enumerate() {
                out.write_str(if place == 0 { "" } else { ", " })?;
                write_value(value, out)?;
            }
            out.write_str(")")
        }
        Filter::Between(field, from, to) => {
            write_name(field, out)?;
            write!(out, " {not}between ")?;
            write_value(from, out)?;
            out.write_str(" and ")?;
            write_value(to, out)
        }
        Filter::Prefix(field, beginning) => {
            write_name(field, out)?;
            write!(out, " {not}prefix ")?;
            write_text(beginning, out)
        }
        Filter::And(_) | Filter::Or(_) | Filter::Not(_) => write_filter(filter, Inside::Not, out),
    }
}

fn write_name(name: &str, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let quote = if RESERVED.contains(&name) { "`" } else { "" };
    write!(out, "{quote}{name}{quote}")
}

fn write_value(value: &MetaValue, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    match value {
        MetaValue::Bool(value) => write!(out, "{value}"),
        MetaValue::Int(number) => write!(out, "{number}"),
        MetaValue::Text(text) => write_text(text, out),
    }
}

fn write_text(text: &str, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    out.write_char('"')?;
    for letter in text.chars() {
        match letter {
            '"' | '\\' => write!(out, "\\{letter}")?,
            '\n' => out.write_str("\\n")?,
            control if control.is_control() => write!(out, "\\u{{{:x}}}", u32::from(control))?,
            letter => out.write_char(letter)?,
        }
    }
    out.write_char('"')
}

#[cfg(test)]
mod tests;
