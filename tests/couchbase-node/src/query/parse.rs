//! From the text of a statement to what it asks for.

use sqlparser::ast::{self, BinaryOperator, Expr, UnaryOperator};
use sqlparser::dialect::Dialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, Tokenizer};

use super::Refusal;

/// The names that `IS MISSING` and its like have among the expressions.
pub(super) const IS_MISSING: &str = "is missing";
pub(super) const IS_VALUED: &str = "is valued";

/// The statements that real clusters know and this node does not.
const ELSEWHERE: &[&str] = &[
    "ADVISE",
    "ALTER",
    "ANALYZE",
    "BEGIN",
    "COMMIT",
    "DELETE",
    "EXECUTE",
    "EXPLAIN",
    "GRANT",
    "INFER",
    "INSERT",
    "MERGE",
    "PREPARE",
    "REVOKE",
    "ROLLBACK",
    "SAVEPOINT",
    "SET",
    "START",
    "UPDATE",
    "UPSERT",
    "WITH",
];

/// SQL++ as far as its words differ from SQL's.
#[derive(Debug)]
struct SqlPlusPlus;

impl Dialect for SqlPlusPlus {
    fn is_identifier_start(&self, char: char) -> bool {
        char.is_ascii_alphabetic() || char == '_'
    }

    fn is_identifier_part(&self, char: char) -> bool {
        char.is_ascii_alphanumeric() || char == '_' || char == '$'
    }

    fn is_delimited_identifier_start(&self, char: char) -> bool {
        char == '`'
    }

    fn supports_dollar_placeholder(&self) -> bool {
        true
    }

    fn supports_string_literal_backslash_escape(&self) -> bool {
        true
    }

    /// `[1, 2]` is a list.
    fn parse_prefix(&self, parser: &mut Parser<'_>) -> Option<Result<Expr, ParserError>> {
        if !parser.consume_token(&Token::LBracket) {
            return None;
        }
        if parser.consume_token(&Token::RBracket) {
            return Some(Ok(Expr::Array(ast::Array { elem: Vec::new(), named: false })));
        }
        let elements = parser.parse_comma_separated(Parser::parse_expr).and_then(|elements| {
            parser.expect_token(&Token::RBracket)?;
            Ok(elements)
        });
        Some(elements.map(|elem| Expr::Array(ast::Array { elem, named: false })))
    }

    /// `IS MISSING`, `IS VALUED`, and `IN` before what is no list in parentheses.
    fn parse_infix(
        &self,
        parser: &mut Parser<'_>,
        expr: &Expr,
        precedence: u8,
    ) -> Option<Result<Expr, ParserError>> {
        let word = |parser: &Parser<'_>, at: usize| match parser.peek_nth_token(at).token {
            Token::Word(word) => word.value.to_ascii_uppercase(),
            _ => String::new(),
        };
        let not = |expr: Expr, is_negated: bool| {
            if is_negated {
                Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(expr) }
            } else {
                expr
            }
        };
        if word(parser, 0) == "IS" {
            let is_negated = word(parser, 1) == "NOT";
            let last = usize::from(is_negated) + 1;
            let name = match word(parser, last).as_str() {
                "MISSING" => IS_MISSING,
                "VALUED" => IS_VALUED,
                _ => return None,
            };
            for _ in 0..=last {
                parser.next_token();
            }
            let named = Expr::Named { expr: Box::new(expr.clone()), name: ast::Ident::new(name) };
            return Some(Ok(not(named, is_negated)));
        }
        let is_negated = word(parser, 0) == "NOT";
        let at = usize::from(is_negated);
        if word(parser, at) == "IN" && parser.peek_nth_token(at + 1).token != Token::LParen {
            for _ in 0..=at {
                parser.next_token();
            }
            let list = parser.parse_subexpr(precedence);
            return Some(list.map(|list| {
                let is_in = Expr::AnyOp {
                    left: Box::new(expr.clone()),
                    compare_op: BinaryOperator::Eq,
                    right: Box::new(list),
                    is_some: true,
                };
                not(is_in, is_negated)
            }));
        }
        None
    }
}

/// What a statement asks for.
#[derive(Debug)]
pub(super) enum Statement {
    Select(Box<ast::Query>),
    Index(Box<IndexChange>),
}

/// A change of the indexes.
#[derive(Debug)]
pub(super) enum IndexChange {
    Create {
        name: String,
        on: Vec<String>,
        /// The indexed expressions; none for an index of all keys.
        keys: Vec<Expr>,
        /// Whether the first of them may be missing.
        with_missing: bool,
        condition: Option<Box<Expr>>,
        is_deferred: bool,
        may_exist: bool,
    },
    Build {
        on: Vec<String>,
        names: Vec<String>,
    },
    Drop {
        name: String,
        on: Vec<String>,
        may_be_missing: bool,
    },
}

fn tokens(text: &str) -> Result<Vec<Token>, Refusal> {
    // The namespace before the colon is all that `system:indexes` has of its own.
    let tokens = Tokenizer::new(&SqlPlusPlus, text).tokenize().map_err(Refusal::syntax)?;
    let mut joined: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut tokens = tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_)));
    while let Some(token) = tokens.next() {
        match (token, joined.last()) {
            (Token::Colon, Some(Token::Word(before)))
                if before.value.eq_ignore_ascii_case("system") =>
            {
                let Some(Token::Word(after)) = tokens.next() else {
                    return Err(Refusal::syntax("a name is missing behind system:"));
                };
                joined.pop();
                joined.push(Token::make_word(&format!("system:{}", after.value), Some('`')));
            }
            (Token::Colon, Some(Token::Word(before)))
                if before.value.eq_ignore_ascii_case("default") =>
            {
                joined.pop();
            }
            (token, _) => joined.push(token),
        }
    }
    Ok(joined)
}

/// Reads a statement.
pub(super) fn statement(text: &str) -> Result<Statement, Refusal> {
    let tokens = tokens(text)?;
    let word = |at: usize| match tokens.get(at) {
        Some(Token::Word(word)) => word.value.to_ascii_uppercase(),
        _ => String::new(),
    };
    let mut parser = Parser::new(&SqlPlusPlus).with_tokens(tokens.clone());
    let parsed = match (word(0).as_str(), word(1).as_str()) {
        ("SELECT", _) => parser.parse_query().map(Statement::Select).map_err(Refusal::syntax)?,
        ("CREATE", "INDEX") | ("CREATE", "PRIMARY") => {
            Statement::Index(Box::new(create(&mut parser)?))
        }
        ("BUILD", "INDEX") => Statement::Index(Box::new(build(&mut parser)?)),
        ("DROP", "INDEX") | ("DROP", "PRIMARY") => Statement::Index(Box::new(drop(&mut parser)?)),
        (first, _) if ELSEWHERE.contains(&first) => {
            return Err(Refusal::unknown(format!("the statement {first}")));
        }
        ("CREATE" | "DROP" | "BUILD", second) => {
            return Err(Refusal::unknown(format!("the statement {} {second}", word(0))));
        }
        (first, _) => return Err(Refusal::syntax(format!("at {first:?}"))),
    };
    match parser.peek_token().token {
        Token::EOF => Ok(parsed),
        other => Err(Refusal::syntax(format!("at {other}"))),
    }
}

/// Reads names with dots between them, in back-ticks or not.
pub(super) fn path(text: &str) -> Result<Vec<String>, Refusal> {
    let mut parser = Parser::new(&SqlPlusPlus).with_tokens(tokens(text)?);
    keyspace(&mut parser)
}

fn name(parser: &mut Parser<'_>) -> Result<String, Refusal> {
    match parser.next_token().token {
        Token::Word(word) => Ok(word.value),
        // The SDK calls the index of all keys by a name that needs its quotes.
        other => Err(Refusal::syntax(format!("a name was expected, not {other}"))),
    }
}

fn keyspace(parser: &mut Parser<'_>) -> Result<Vec<String>, Refusal> {
    let mut path = vec![name(parser)?];
    while parser.consume_token(&Token::Period) {
        path.push(name(parser)?);
    }
    Ok(path)
}

fn words(parser: &mut Parser<'_>, words: &[&str]) -> bool {
    let is_there = words.iter().enumerate().all(|(at, wanted)| {
        matches!(parser.peek_nth_token(at).token, Token::Word(word)
            if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted))
    });
    if is_there {
        for _ in words {
            parser.next_token();
        }
    }
    is_there
}

fn expect(parser: &mut Parser<'_>, token: &Token) -> Result<(), Refusal> {
    parser.expect_token(token).map(|_| ()).map_err(Refusal::syntax)
}

fn create(parser: &mut Parser<'_>) -> Result<IndexChange, Refusal> {
    words(parser, &["CREATE"]);
    let is_of_all_keys = words(parser, &["PRIMARY"]);
    words(parser, &["INDEX"]);
    let mut may_exist = words(parser, &["IF", "NOT", "EXISTS"]);
    let is_named = !words(parser, &["ON"]);
    let index = if is_named { name(parser)? } else { "#primary".to_owned() };
    if is_named {
        may_exist |= words(parser, &["IF", "NOT", "EXISTS"]);
        if !words(parser, &["ON"]) {
            return Err(Refusal::syntax("ON was expected"));
        }
    }
    let on = keyspace(parser)?;
    let mut keys = Vec::new();
    let mut with_missing = false;
    if !is_of_all_keys {
        expect(parser, &Token::LParen)?;
        loop {
            keys.push(parser.parse_expr().map_err(Refusal::syntax)?);
            if words(parser, &["INCLUDE", "MISSING"]) {
                if keys.len() > 1 {
                    return Err(Refusal::syntax("INCLUDE MISSING is for the first key alone"));
                }
                with_missing = true;
            }
            if words(parser, &["DESC"]) || words(parser, &["ASC"]) {
                // The order of an index changes how fast it answers, not what.
            }
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        expect(parser, &Token::RParen)?;
    }
    let condition = if parser.parse_keyword(Keyword::WHERE) {
        Some(Box::new(parser.parse_expr().map_err(Refusal::syntax)?))
    } else {
        None
    };
    words(parser, &["USING", "GSI"]);
    let is_deferred = if words(parser, &["WITH"]) { deferred(parser)? } else { false };
    Ok(IndexChange::Create {
        name: index,
        on,
        keys,
        with_missing,
        condition,
        is_deferred,
        may_exist,
    })
}

/// Reads `{"defer_build": true, "num_replica": 1}`.
fn deferred(parser: &mut Parser<'_>) -> Result<bool, Refusal> {
    expect(parser, &Token::LBrace)?;
    let mut is_deferred = false;
    loop {
        let setting = match parser.next_token().token {
            Token::DoubleQuotedString(text) | Token::SingleQuotedString(text) => text,
            Token::RBrace => return Ok(is_deferred),
            other => return Err(Refusal::syntax(format!("a setting was expected, not {other}"))),
        };
        expect(parser, &Token::Colon)?;
        let value = parser.next_token().token;
        match (setting.as_str(), value) {
            ("defer_build", Token::Word(word)) => {
                is_deferred = word.value.eq_ignore_ascii_case("true");
            }
            // Copies of an index change how safe it is, not what it answers.
            ("num_replica", Token::Number(..)) => {}
            (other, value) => {
                return Err(Refusal::unknown(format!(
                    "the setting {other:?}: {value} of an index"
                )));
            }
        }
        if !parser.consume_token(&Token::Comma) {
            expect(parser, &Token::RBrace)?;
            return Ok(is_deferred);
        }
    }
}

fn build(parser: &mut Parser<'_>) -> Result<IndexChange, Refusal> {
    if !words(parser, &["BUILD", "INDEX", "ON"]) {
        return Err(Refusal::syntax("BUILD INDEX ON was expected"));
    }
    let on = keyspace(parser)?;
    expect(parser, &Token::LParen)?;
    let mut names = vec![name(parser)?];
    while parser.consume_token(&Token::Comma) {
        names.push(name(parser)?);
    }
    expect(parser, &Token::RParen)?;
    words(parser, &["USING", "GSI"]);
    Ok(IndexChange::Build { on, names })
}

fn drop(parser: &mut Parser<'_>) -> Result<IndexChange, Refusal> {
    words(parser, &["DROP"]);
    let is_of_all_keys = words(parser, &["PRIMARY"]);
    words(parser, &["INDEX"]);
    let may_be_missing = words(parser, &["IF", "EXISTS"]);
    if is_of_all_keys {
        if !words(parser, &["ON"]) {
            return Err(Refusal::syntax("ON was expected"));
        }
        let on = keyspace(parser)?;
        return Ok(IndexChange::Drop { name: "#primary".to_owned(), on, may_be_missing });
    }
    // `index ON keyspace`, or `keyspace.index` as it was before there were collections.
    let mut path = keyspace(parser)?;
    let (name, on) = if words(parser, &["ON"]) {
        (path.remove(0), keyspace(parser)?)
    } else {
        let name = path.pop().expect("a path has a name");
        (name, path)
    };
    Ok(IndexChange::Drop { name, on, may_be_missing })
}
