//! Expressions over documents, with SQL++'s two ways of not being there: missing and null.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Map, Number, Value, json};
use sqlparser::ast::{
    self, AccessExpr, BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments,
    InTarget, Subscript, UnaryOperator,
};

use super::Refusal;
use super::parse::{IS_MISSING, IS_VALUED};

/// A value, or nothing where it is missing.
pub(super) type Found = Option<Value>;

/// What the names of an expression stand for.
#[derive(Debug)]
pub(super) struct Names<'a> {
    pub(super) parameters: &'a BTreeMap<String, Value>,
    /// The name of the document, where there is one.
    pub(super) alias: Option<&'a str>,
    pub(super) document: &'a Value,
    pub(super) meta: &'a Value,
    /// What the select list has made so far.
    pub(super) columns: &'a Map<String, Value>,
}

impl Names<'_> {
    fn name(&self, name: &str) -> Found {
        if self.alias == Some(name) {
            return Some(self.document.clone());
        }
        let column = self.columns.get(name);
        column.or_else(|| self.document.get(name)).cloned()
    }

    fn path(&self, path: &[ast::Ident]) -> Found {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.name(&first.value)?, |at, step| at.get(&step.value).cloned())
    }
}

/// Whether a condition lets a row through: it must be true, and neither missing nor null.
pub(super) fn holds(expr: &Expr, names: &Names<'_>) -> Result<bool, Refusal> {
    Ok(evaluate(expr, names)? == Some(Value::Bool(true)))
}

/// What an expression is worth.
pub(super) fn evaluate(expr: &Expr, names: &Names<'_>) -> Result<Found, Refusal> {
    match expr {
        Expr::Identifier(ident) => Ok(names.name(&ident.value)),
        Expr::CompoundIdentifier(path) => Ok(names.path(path)),
        Expr::CompoundFieldAccess { root, access_chain } => {
            let root = evaluate(root, names)?;
            access_chain.iter().try_fold(root, |at, step| access(at, step, names))
        }
        Expr::Nested(inner) => evaluate(inner, names),
        Expr::Value(value) => literal(&value.value, names),
        Expr::Array(array) => {
            let elements: Result<Vec<Value>, Refusal> = (array.elem.iter())
                .map(|element| Ok(evaluate(element, names)?.unwrap_or_default()))
                .collect();
            Ok(Some(Value::Array(elements?)))
        }
        Expr::IsNull(inner) => Ok(evaluate(inner, names)?.map(|value| value.is_null().into())),
        Expr::IsNotNull(inner) => {
            Ok(evaluate(inner, names)?.map(|value| (!value.is_null()).into()))
        }
        Expr::Named { expr, name } if name.value == IS_MISSING => {
            Ok(Some(evaluate(expr, names)?.is_none().into()))
        }
        Expr::Named { expr, name } if name.value == IS_VALUED => {
            Ok(Some(evaluate(expr, names)?.is_some_and(|value| !value.is_null()).into()))
        }
        Expr::UnaryOp { op: UnaryOperator::Not, expr } => {
            Ok(evaluate(expr, names)?.map(|value| match value {
                Value::Null => Value::Null,
                other => (!is_true(&other)).into(),
            }))
        }
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => {
            arithmetic(&BinaryOperator::Minus, Some(json!(0)), evaluate(expr, names)?)
        }
        Expr::BinaryOp { left, op, right } => binary(op, left, right, names),
        Expr::Between { expr, negated, low, high } => {
            let value = evaluate(expr, names)?;
            let from = compare(&value, &evaluate(low, names)?, Ordering::is_ge);
            let to = compare(&value, &evaluate(high, names)?, Ordering::is_le);
            let between = and(from, to);
            Ok(if *negated { not(between) } else { between })
        }
        Expr::In { expr, target: InTarget::List(list), negated, .. } => {
            let value = evaluate(expr, names)?;
            let list: Result<Vec<Found>, Refusal> =
                list.iter().map(|item| evaluate(item, names)).collect();
            let is_in = contains(value, Some(list?.into_iter().flatten().collect()));
            Ok(if *negated { not(is_in) } else { is_in })
        }
        Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => {
            let value = evaluate(left, names)?;
            Ok(contains(value, evaluate(right, names)?))
        }
        Expr::Like { negated, any: false, expr, pattern, escape_char: None } => {
            let (value, pattern) = (evaluate(expr, names)?, evaluate(pattern, names)?);
            let is_like = match (value, pattern) {
                (None, _) | (_, None) => None,
                (Some(Value::String(text)), Some(Value::String(pattern))) => {
                    Some(like(&text, &pattern).into())
                }
                _ => Some(Value::Null),
            };
            Ok(if *negated { not(is_like) } else { is_like })
        }
        Expr::Case { operand: None, conditions, else_result, .. } => {
            for case in conditions {
                if holds(&case.condition, names)? {
                    return evaluate(&case.result, names);
                }
            }
            else_result.as_ref().map_or(Ok(Some(Value::Null)), |other| evaluate(other, names))
        }
        Expr::Floor { expr, .. } => {
            Ok(evaluate(expr, names)?.map(|value| match (value.as_i64(), value.as_f64()) {
                (Some(_), _) => value,
                (None, Some(float)) => number(float.floor()),
                (None, None) => Value::Null,
            }))
        }
        Expr::Function(function) => call(function, names),
        other => Err(Refusal::unknown(format!("the expression {other}"))),
    }
}

fn access(at: Found, step: &AccessExpr, names: &Names<'_>) -> Result<Found, Refusal> {
    let Some(at) = at else { return Ok(None) };
    match step {
        AccessExpr::Dot(Expr::Identifier(ident)) => Ok(at.get(&ident.value).cloned()),
        AccessExpr::Subscript(Subscript::Index { index }) => match evaluate(index, names)? {
            Some(Value::Number(number)) => Ok(number.as_i64().and_then(|index| {
                let list = at.as_array()?;
                let length = i64::try_from(list.len()).ok()?;
                let place = if index < 0 { length + index } else { index };
                list.get(usize::try_from(place).ok()?).cloned()
            })),
            Some(Value::String(name)) => Ok(at.get(&name).cloned()),
            _ => Ok(None),
        },
        AccessExpr::Dot(other) => Err(Refusal::unknown(format!("the step .{other}"))),
        AccessExpr::Subscript(other) => Err(Refusal::unknown(format!("the step [{other}]"))),
    }
}

fn literal(value: &ast::Value, names: &Names<'_>) -> Result<Found, Refusal> {
    Ok(Some(match value {
        ast::Value::Number(text, _) => {
            let read: Result<Number, _> = serde_json::from_str(text);
            Value::Number(read.map_err(|_| Refusal::syntax(format!("{text} is no number")))?)
        }
        ast::Value::SingleQuotedString(text) | ast::Value::DoubleQuotedString(text) => {
            text.clone().into()
        }
        ast::Value::Boolean(is_true) => (*is_true).into(),
        ast::Value::Null => Value::Null,
        ast::Value::Placeholder(name) => {
            let name = name.trim_start_matches('$');
            let value = names.parameters.get(name);
            let words = || format!("No value for named parameter: ${name}");
            value.cloned().ok_or_else(|| Refusal::evaluation(words()))?
        }
        other => return Err(Refusal::unknown(format!("the literal {other}"))),
    }))
}

fn binary(
    op: &BinaryOperator,
    left: &Expr,
    right: &Expr,
    names: &Names<'_>,
) -> Result<Found, Refusal> {
    let (left, right) = (evaluate(left, names)?, evaluate(right, names)?);
    Ok(match op {
        BinaryOperator::And => and(left, right),
        BinaryOperator::Or => not(and(not(left), not(right))),
        BinaryOperator::Eq => equal(&left, &right),
        BinaryOperator::NotEq => not(equal(&left, &right)),
        BinaryOperator::Lt => compare(&left, &right, Ordering::is_lt),
        BinaryOperator::LtEq => compare(&left, &right, Ordering::is_le),
        BinaryOperator::Gt => compare(&left, &right, Ordering::is_gt),
        BinaryOperator::GtEq => compare(&left, &right, Ordering::is_ge),
        BinaryOperator::StringConcat => match (left, right) {
            (None, _) | (_, None) => None,
            (Some(Value::String(left)), Some(Value::String(right))) => Some((left + &right).into()),
            _ => Some(Value::Null),
        },
        BinaryOperator::Plus
        | BinaryOperator::Minus
        | BinaryOperator::Multiply
        | BinaryOperator::Divide
        | BinaryOperator::Modulo => return arithmetic(op, left, right),
        other => return Err(Refusal::unknown(format!("the operator {other}"))),
    })
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is_true) => *is_true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// False beats missing, missing beats null, null beats true.
fn and(left: Found, right: Found) -> Found {
    let is_false =
        |value: &Found| value.as_ref().is_some_and(|value| !value.is_null() && !is_true(value));
    if is_false(&left) || is_false(&right) {
        return Some(false.into());
    }
    let (left, right) = (left?, right?);
    if left.is_null() || right.is_null() { Some(Value::Null) } else { Some(true.into()) }
}

fn not(value: Found) -> Found {
    value.map(|value| if value.is_null() { value } else { (!is_true(&value)).into() })
}

fn equal(left: &Found, right: &Found) -> Found {
    let (left, right) = (left.as_ref()?, right.as_ref()?);
    if left.is_null() || right.is_null() {
        return Some(Value::Null);
    }
    Some((collate(Some(left), Some(right)) == Ordering::Equal).into())
}

fn compare(left: &Found, right: &Found, is: fn(Ordering) -> bool) -> Found {
    let (left, right) = (left.as_ref()?, right.as_ref()?);
    if left.is_null() || right.is_null() {
        return Some(Value::Null);
    }
    Some(is(collate(Some(left), Some(right))).into())
}

fn contains(value: Found, list: Found) -> Found {
    let (value, list) = (value?, list?);
    let Value::Array(list) = list else { return Some(Value::Null) };
    let is_in = list.iter().any(|item| collate(Some(item), Some(&value)) == Ordering::Equal);
    Some(is_in.into())
}

/// The order of values of every kind: missing, null, false, true, numbers, texts, lists, objects.
pub(super) fn collate(left: Option<&Value>, right: Option<&Value>) -> Ordering {
    let rank = |value: Option<&Value>| match value {
        None => 0,
        Some(Value::Null) => 1,
        Some(Value::Bool(false)) => 2,
        Some(Value::Bool(true)) => 3,
        Some(Value::Number(_)) => 4,
        Some(Value::String(_)) => 5,
        Some(Value::Array(_)) => 6,
        Some(Value::Object(_)) => 7,
    };
    match (left, right) {
        (Some(Value::Number(left)), Some(Value::Number(right))) => {
            match (left.as_i64(), right.as_i64()) {
                (Some(left), Some(right)) => left.cmp(&right),
                _ => {
                    let float = |number: &Number| number.as_f64().unwrap_or(f64::NAN);
                    float(left).total_cmp(&float(right))
                }
            }
        }
        (Some(Value::String(left)), Some(Value::String(right))) => left.cmp(right),
        (Some(Value::Array(left)), Some(Value::Array(right))) => {
            let pairs = left.iter().zip(right);
            let first = pairs.map(|(left, right)| collate(Some(left), Some(right)));
            first.fold(Ordering::Equal, Ordering::then).then(left.len().cmp(&right.len()))
        }
        (Some(Value::Object(left)), Some(Value::Object(right))) => {
            let pairs = left.iter().zip(right);
            let by_length = left.len().cmp(&right.len());
            pairs.fold(by_length, |so_far, ((name, value), (other_name, other))| {
                so_far
                    .then_with(|| name.cmp(other_name))
                    .then_with(|| collate(Some(value), Some(other)))
            })
        }
        _ => rank(left).cmp(&rank(right)),
    }
}

fn number(float: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "it is compared with what it came from")]
    let whole = float as i64;
    #[expect(clippy::cast_precision_loss, reason = "it is compared with what it came from")]
    let is_whole = whole as f64 == float;
    if is_whole { whole.into() } else { Number::from_f64(float).map_or(Value::Null, Value::Number) }
}

fn arithmetic(op: &BinaryOperator, left: Found, right: Found) -> Result<Found, Refusal> {
    let (Some(left), Some(right)) = (left, right) else { return Ok(None) };
    let (Some(left), Some(right)) = (left.as_f64(), right.as_f64()) else {
        return Ok(Some(Value::Null));
    };
    Ok(Some(match op {
        BinaryOperator::Plus => number(left + right),
        BinaryOperator::Minus => number(left - right),
        BinaryOperator::Multiply => number(left * right),
        BinaryOperator::Divide if right != 0.0 => number(left / right),
        BinaryOperator::Modulo if right != 0.0 => number(left % right),
        BinaryOperator::Divide | BinaryOperator::Modulo => Value::Null,
        other => return Err(Refusal::unknown(format!("the operator {other}"))),
    }))
}

/// `%` stands for any text, `_` for one character, and a backslash takes both their meaning.
fn like(text: &str, pattern: &str) -> bool {
    fn go(text: &[char], pattern: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('%', rest)) => (0..=text.len()).any(|at| go(&text[at..], rest)),
            Some(('\\', rest)) if !rest.is_empty() => {
                text.first() == rest.first() && go(&text[1..], &rest[1..])
            }
            Some(('_', rest)) => !text.is_empty() && go(&text[1..], rest),
            Some((char, rest)) => text.first() == Some(char) && go(&text[1..], rest),
        }
    }
    let chars = |text: &str| text.chars().collect::<Vec<char>>();
    go(&chars(text), &chars(pattern))
}

/// The name of a function in capitals, and its arguments.
pub(super) fn arguments(function: &ast::Function) -> Result<(String, Vec<&Expr>), Refusal> {
    let name = function.name.to_string().to_ascii_uppercase();
    let FunctionArguments::List(list) = &function.args else {
        return Err(Refusal::unknown(format!("the form of {function}")));
    };
    let args: Result<Vec<&Expr>, Refusal> = (list.args.iter())
        .filter(|arg| !matches!(arg, FunctionArg::Unnamed(FunctionArgExpr::Wildcard)))
        .map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Ok(expr),
            other => Err(Refusal::unknown(format!("the argument {other}"))),
        })
        .collect();
    Ok((name, args?))
}

fn call(function: &ast::Function, names: &Names<'_>) -> Result<Found, Refusal> {
    let (name, args) = arguments(function)?;
    if name == "META" {
        return Ok(Some(names.meta.clone()));
    }
    let values: Result<Vec<Found>, Refusal> = args.iter().map(|arg| evaluate(arg, names)).collect();
    let values = values?;
    let one = |values: &[Found]| values.first().cloned().flatten();
    let is = |check: fn(&Value) -> bool| {
        one(&values).map(|value| if value.is_null() { value } else { check(&value).into() })
    };
    let text = |change: fn(&str) -> Value| {
        one(&values).map(|value| value.as_str().map_or(Value::Null, change))
    };
    Ok(match (name.as_str(), values.len()) {
        ("ISNUMBER" | "IS_NUMBER", 1) => is(Value::is_number),
        ("ISSTRING" | "IS_STRING", 1) => is(Value::is_string),
        ("ISBOOLEAN" | "IS_BOOLEAN" | "ISBOOL" | "IS_BOOL", 1) => is(Value::is_boolean),
        ("ISARRAY" | "IS_ARRAY", 1) => is(Value::is_array),
        ("ISOBJECT" | "IS_OBJECT" | "ISOBJ" | "IS_OBJ", 1) => is(Value::is_object),
        ("TYPE", 1) => Some(
            match one(&values) {
                None => "missing",
                Some(Value::Null) => "null",
                Some(Value::Bool(_)) => "boolean",
                Some(Value::Number(_)) => "number",
                Some(Value::String(_)) => "string",
                Some(Value::Array(_)) => "array",
                Some(Value::Object(_)) => "object",
            }
            .into(),
        ),
        ("LOWER", 1) => text(|text| text.to_lowercase().into()),
        ("UPPER", 1) => text(|text| text.to_uppercase().into()),
        ("LENGTH", 1) => text(|text| text.len().into()),
        ("TOSTRING" | "TO_STRING", 1) => one(&values).map(|value| match value {
            Value::Null | Value::String(_) => value,
            Value::Bool(_) | Value::Number(_) => value.to_string().into(),
            Value::Array(_) | Value::Object(_) => Value::Null,
        }),
        ("FLOOR", 1) => one(&values).map(|value| match (value.as_i64(), value.as_f64()) {
            (None, Some(float)) => number(float.floor()),
            (Some(_), _) => value,
            (None, None) => Value::Null,
        }),
        ("ARRAY_CONTAINS", 2) => contains(values[1].clone(), values[0].clone()),
        ("ARRAY_LENGTH", 1) => {
            one(&values).map(|value| value.as_array().map_or(Value::Null, |list| list.len().into()))
        }
        ("IFMISSING", 1..) => values.into_iter().flatten().next(),
        ("IFMISSINGORNULL" | "COALESCE", 1..) => {
            let first = values.into_iter().flatten().find(|value| !value.is_null());
            Some(first.unwrap_or_default())
        }
        (name, count) => {
            return Err(Refusal::unknown(format!("the function {name} with {count} arguments")));
        }
    })
}
