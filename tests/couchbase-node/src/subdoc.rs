//! Parts of a document: paths, looking them up, and changing them.

use std::iter;

use bytes::{Buf, Bytes};
use serde_json::{Map, Value};

use crate::wire::{Status, opcode};

/// Paths of one request; a node refuses more.
pub(crate) const PATHS_MAX: usize = 16;

/// Bytes of a path; a node refuses longer ones.
const PATH_BYTES_MAX: usize = 1024;

/// The path is made as far as it is not there.
const FLAG_MAKE_PATH: u8 = 0x01;
/// The path leads into the document's extended attributes.
const FLAG_XATTR: u8 = 0x04;
/// The value may be a macro, such as `"${Mutation.CAS}"`.
const FLAG_MACRO: u8 = 0x10;

/// One lookup or one change of a request.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) code: u8,
    flags: u8,
    path: Bytes,
    value: Bytes,
}

impl Spec {
    /// Reads the specs of a request's value. Those that change something carry a value of their own.
    pub(crate) fn read_all(mut value: Bytes, with_values: bool) -> Result<Vec<Self>, Status> {
        let head = if with_values { 8 } else { 4 };
        let mut specs = Vec::new();
        while value.has_remaining() {
            if value.len() < head {
                return Err(Status::INVALID);
            }
            let (code, flags) = (value.get_u8(), value.get_u8());
            let path_bytes = usize::from(value.get_u16());
            let value_bytes = if with_values { value.get_u32() as usize } else { 0 };
            if path_bytes > PATH_BYTES_MAX {
                return Err(Status::PATH_TOO_BIG);
            }
            if path_bytes + value_bytes > value.len() {
                return Err(Status::INVALID);
            }
            let path = value.split_to(path_bytes);
            let value = value.split_to(value_bytes);
            specs.push(Self { code, flags, path, value });
        }
        if specs.is_empty() || specs.len() > PATHS_MAX {
            return Err(Status::INVALID_COMBINATION);
        }
        let first_of_the_body = specs.iter().position(|spec| !spec.is_xattr());
        let last_attribute = specs.iter().rposition(Self::is_xattr);
        if let (Some(body), Some(attribute)) = (first_of_the_body, last_attribute)
            && attribute > body
        {
            return Err(Status::XATTR_ORDER);
        }
        Ok(specs)
    }

    pub(crate) fn is_xattr(&self) -> bool {
        self.flags & FLAG_XATTR != 0
    }
}

/// What a lookup or a change works on.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// The body as stored.
    pub(crate) raw: Bytes,
    /// The body as JSON, if it is JSON.
    pub(crate) body: Option<Value>,
    pub(crate) xattrs: Map<String, Value>,
    /// What `$document` looks like.
    pub(crate) document: Value,
    /// What `$vbucket` looks like.
    pub(crate) vbucket: Value,
}

/// Looks one spec up.
pub(crate) fn look_up(subject: &Subject, spec: &Spec) -> Result<Vec<u8>, Status> {
    if spec.code == opcode::GET {
        return Ok(subject.raw.to_vec());
    }
    let path = parse_path(&spec.path)?;
    let found = if spec.is_xattr() {
        let (Some(Part::Key(name)), rest) = (path.first(), path.get(1..).unwrap_or_default())
        else {
            return Err(Status::PATH_INVALID);
        };
        let root = match name.as_str() {
            "$document" => &subject.document,
            "$vbucket" => &subject.vbucket,
            virtual_one if virtual_one.starts_with('$') => {
                return Err(Status::XATTR_UNKNOWN_VIRTUAL);
            }
            name => subject.xattrs.get(name).ok_or(Status::PATH_NOT_FOUND)?,
        };
        walk(root, rest)?
    } else {
        let body = subject.body.as_ref().ok_or(Status::NOT_JSON)?;
        walk(body, &path)?
    };
    match spec.code {
        opcode::SUBDOC_GET => Ok(json(found)),
        opcode::SUBDOC_EXISTS => Ok(Vec::new()),
        opcode::SUBDOC_GET_COUNT => match found {
            Value::Array(items) => Ok(items.len().to_string().into_bytes()),
            Value::Object(fields) => Ok(fields.len().to_string().into_bytes()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                Err(Status::PATH_MISMATCH)
            }
        },
        _ => Err(Status::INVALID_COMBINATION),
    }
}

/// What a change of a whole body asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Changed {
    /// Parts were changed.
    Parts,
    /// The body is these bytes.
    Body(Bytes),
    /// The document is removed.
    Removed,
}

/// Applies one spec. `macros` says what the macros stand for. Gives the value that the answer carries, if any.
pub(crate) fn change(
    subject: &mut Subject,
    spec: &Spec,
    macros: &dyn Fn(&str) -> Option<Value>,
) -> Result<(Changed, Option<Vec<u8>>), Status> {
    match spec.code {
        opcode::SET | opcode::ADD => return Ok((Changed::Body(spec.value.clone()), None)),
        opcode::DELETE => return Ok((Changed::Removed, None)),
        _ => {}
    }
    let path = parse_path(&spec.path)?;
    if spec.code == opcode::SUBDOC_REPLACE_BODY_WITH_XATTR {
        let Some((Part::Key(name), rest)) = path.split_first() else {
            return Err(Status::PATH_INVALID);
        };
        let root = subject.xattrs.get(name).ok_or(Status::PATH_NOT_FOUND)?;
        return Ok((Changed::Body(json(walk(root, rest)?).into()), None));
    }
    let may_make = spec.flags & FLAG_MAKE_PATH != 0;
    let value = || -> Result<Value, Status> {
        let value: Value =
            serde_json::from_slice(&spec.value).map_err(|_| Status::CANNOT_INSERT)?;
        if spec.flags & FLAG_MACRO != 0
            && let Some(text) = value.as_str()
        {
            return macros(text).ok_or(Status::XATTR_UNKNOWN_MACRO);
        }
        Ok(value)
    };
    let answer = if spec.is_xattr() {
        let Some((Part::Key(name), _)) = path.split_first() else {
            return Err(Status::PATH_INVALID);
        };
        if name.starts_with('$') {
            return Err(Status::XATTR_READ_ONLY);
        }
        let mut root = Value::Object(std::mem::take(&mut subject.xattrs));
        // A whole attribute counts as made on demand, as if the path had been asked for.
        let outcome = alter(&mut root, &path, spec, may_make, &value);
        if let Value::Object(fields) = root {
            subject.xattrs = fields;
        }
        outcome?
    } else {
        let body = subject.body.as_mut().ok_or(Status::NOT_JSON)?;
        alter(body, &path, spec, may_make, &value)?
    };
    Ok((Changed::Parts, answer))
}

fn alter(
    root: &mut Value,
    path: &[Part],
    spec: &Spec,
    may_make: bool,
    value: &dyn Fn() -> Result<Value, Status>,
) -> Result<Option<Vec<u8>>, Status> {
    match spec.code {
        opcode::SUBDOC_DICT_ADD | opcode::SUBDOC_DICT_SET => {
            let (parent, last) = parent(root, path, may_make)?;
            let (Value::Object(fields), Part::Key(name)) = (parent, last) else {
                return Err(Status::PATH_MISMATCH);
            };
            if spec.code == opcode::SUBDOC_DICT_ADD && fields.contains_key(name) {
                return Err(Status::PATH_EXISTS);
            }
            fields.insert(name.clone(), value()?);
        }
        opcode::SUBDOC_REPLACE => {
            *walk_mut(root, path)? = value()?;
        }
        opcode::SUBDOC_DELETE => {
            let (parent, last) = parent(root, path, false)?;
            match (parent, last) {
                (Value::Object(fields), Part::Key(name)) => {
                    fields.remove(name).ok_or(Status::PATH_NOT_FOUND)?;
                }
                (Value::Array(items), Part::Index(index)) => {
                    let at = position(*index, items.len()).ok_or(Status::PATH_NOT_FOUND)?;
                    items.remove(at);
                }
                _ => return Err(Status::PATH_MISMATCH),
            }
        }
        opcode::SUBDOC_ARRAY_PUSH_LAST | opcode::SUBDOC_ARRAY_PUSH_FIRST => {
            let items = array(root, path, may_make)?;
            let at = if spec.code == opcode::SUBDOC_ARRAY_PUSH_LAST { items.len() } else { 0 };
            items.splice(at..at, several(&spec.value)?);
        }
        opcode::SUBDOC_ARRAY_INSERT => {
            let (parent, last) = parent(root, path, false)?;
            let (Value::Array(items), Part::Index(index)) = (parent, last) else {
                return Err(Status::PATH_MISMATCH);
            };
            let at = usize::try_from(*index).map_err(|_| Status::PATH_INVALID)?;
            if at > items.len() {
                return Err(Status::PATH_NOT_FOUND);
            }
            items.splice(at..at, several(&spec.value)?);
        }
        opcode::SUBDOC_ARRAY_ADD_UNIQUE => {
            let new = value()?;
            if new.is_object() || new.is_array() {
                return Err(Status::CANNOT_INSERT);
            }
            let items = array(root, path, may_make)?;
            if items.iter().any(|item| item.is_object() || item.is_array()) {
                return Err(Status::PATH_MISMATCH);
            }
            if items.contains(&new) {
                return Err(Status::PATH_EXISTS);
            }
            items.push(new);
        }
        opcode::SUBDOC_COUNTER => {
            let delta = value()?.as_i64().filter(|delta| *delta != 0);
            let delta = delta.ok_or(Status::SUBDOC_BAD_DELTA)?;
            let is_there = walk(root, path).is_ok();
            let slot = if is_there {
                walk_mut(root, path)?
            } else {
                let (parent, last) = parent(root, path, may_make)?;
                let (Value::Object(fields), Part::Key(name)) = (parent, last) else {
                    return Err(Status::PATH_MISMATCH);
                };
                fields.entry(name.clone()).or_insert(Value::from(0))
            };
            let old = slot.as_i64().ok_or(Status::PATH_MISMATCH)?;
            let new = old.checked_add(delta).ok_or(Status::BAD_RANGE)?;
            *slot = Value::from(new);
            return Ok(Some(new.to_string().into_bytes()));
        }
        _ => return Err(Status::INVALID_COMBINATION),
    }
    Ok(None)
}

/// The values of an array operation: JSON values with commas between them.
fn several(value: &[u8]) -> Result<Vec<Value>, Status> {
    let whole: Vec<u8> =
        iter::once(b'[').chain(value.iter().copied()).chain(iter::once(b']')).collect();
    let values: Vec<Value> = serde_json::from_slice(&whole).map_err(|_| Status::CANNOT_INSERT)?;
    if values.is_empty() { Err(Status::CANNOT_INSERT) } else { Ok(values) }
}

/// The array that the path leads to, made if it may be.
fn array<'a>(
    root: &'a mut Value,
    path: &[Part],
    may_make: bool,
) -> Result<&'a mut Vec<Value>, Status> {
    if path.is_empty() {
        return root.as_array_mut().ok_or(Status::PATH_MISMATCH);
    }
    if walk(root, path).is_err() && may_make {
        let (parent, last) = parent(root, path, true)?;
        if let (Value::Object(fields), Part::Key(name)) = (parent, last) {
            fields.entry(name.clone()).or_insert_with(|| Value::Array(Vec::new()));
        }
    }
    walk_mut(root, path)?.as_array_mut().ok_or(Status::PATH_MISMATCH)
}

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Key(String),
    /// From the front, or from the back with -1.
    Index(i64),
}

/// Reads a path such as `a.b[0].c`; a step with dots or brackets in it stands in back-ticks.
pub(crate) fn parse_path(path: &[u8]) -> Result<Vec<Part>, Status> {
    let text = std::str::from_utf8(path).map_err(|_| Status::PATH_INVALID)?;
    let mut parts = Vec::new();
    let mut chars = text.chars().peekable();
    let mut step = String::new();
    let mut is_open = false;
    while let Some(char) = chars.next() {
        match char {
            '`' => {
                is_open = true;
                loop {
                    match chars.next().ok_or(Status::PATH_INVALID)? {
                        '`' if chars.peek() == Some(&'`') => {
                            chars.next();
                            step.push('`');
                        }
                        '`' => break,
                        other => step.push(other),
                    }
                }
            }
            '.' => {
                if is_open {
                    parts.push(Part::Key(std::mem::take(&mut step)));
                } else if !matches!(parts.last(), Some(Part::Index(_))) {
                    return Err(Status::PATH_INVALID);
                }
                is_open = false;
                if chars.peek().is_none() {
                    return Err(Status::PATH_INVALID);
                }
            }
            '[' => {
                if is_open {
                    parts.push(Part::Key(std::mem::take(&mut step)));
                    is_open = false;
                }
                let mut index = String::new();
                loop {
                    match chars.next().ok_or(Status::PATH_INVALID)? {
                        ']' => break,
                        digit => index.push(digit),
                    }
                }
                let index: i64 = index.parse().map_err(|_| Status::PATH_INVALID)?;
                if index < -1 {
                    return Err(Status::PATH_INVALID);
                }
                parts.push(Part::Index(index));
            }
            other => {
                is_open = true;
                step.push(other);
            }
        }
    }
    if is_open {
        parts.push(Part::Key(step));
    }
    Ok(parts)
}

/// The place of an index in an array of that length; -1 is the last.
fn position(index: i64, length: usize) -> Option<usize> {
    let at = if index == -1 { length.checked_sub(1)? } else { usize::try_from(index).ok()? };
    (at < length).then_some(at)
}

/// Where the path leads.
pub(crate) fn walk<'a>(root: &'a Value, path: &[Part]) -> Result<&'a Value, Status> {
    path.iter().try_fold(root, |at, part| match (at, part) {
        (Value::Object(fields), Part::Key(name)) => fields.get(name).ok_or(Status::PATH_NOT_FOUND),
        (Value::Array(items), Part::Index(index)) => {
            position(*index, items.len()).map(|at| &items[at]).ok_or(Status::PATH_NOT_FOUND)
        }
        _ => Err(Status::PATH_MISMATCH),
    })
}

fn walk_mut<'a>(root: &'a mut Value, path: &[Part]) -> Result<&'a mut Value, Status> {
    if path.is_empty() {
        return Err(Status::PATH_INVALID);
    }
    path.iter().try_fold(root, |at, part| match (at, part) {
        (Value::Object(fields), Part::Key(name)) => {
            fields.get_mut(name).ok_or(Status::PATH_NOT_FOUND)
        }
        (Value::Array(items), Part::Index(index)) => {
            let at = position(*index, items.len()).ok_or(Status::PATH_NOT_FOUND)?;
            Ok(&mut items[at])
        }
        _ => Err(Status::PATH_MISMATCH),
    })
}

/// What holds the last step of the path, and that step. Objects on the way are made if they may be.
fn parent<'a, 'p>(
    root: &'a mut Value,
    path: &'p [Part],
    may_make: bool,
) -> Result<(&'a mut Value, &'p Part), Status> {
    let (last, way) = path.split_last().ok_or(Status::PATH_INVALID)?;
    let mut at = root;
    for part in way {
        if may_make
            && let (Value::Object(fields), Part::Key(name)) = (&mut *at, part)
            && !fields.contains_key(name)
        {
            fields.insert(name.clone(), Value::Object(Map::new()));
        }
        at = walk_mut(at, std::slice::from_ref(part))?;
    }
    Ok((at, last))
}

fn json(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("a value of JSON is written as JSON")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Part {
        Part::Key(name.to_owned())
    }

    #[test]
    fn paths_have_keys_indexes_and_quoted_steps() {
        assert_eq!(parse_path(b"").unwrap(), []);
        assert_eq!(
            parse_path(b"a.b[0].c").unwrap(),
            [key("a"), key("b"), Part::Index(0), key("c")]
        );
        assert_eq!(parse_path(b"[-1][2]").unwrap(), [Part::Index(-1), Part::Index(2)]);
        assert_eq!(parse_path(b"`a.b`.`c``d`").unwrap(), [key("a.b"), key("c`d")]);
        for bad in [&b"a."[..], b".a", b"a[x]", b"a[0", b"a[-2]", b"`a"] {
            assert_eq!(parse_path(bad), Err(Status::PATH_INVALID), "{bad:?}");
        }
    }

    fn changed(
        body: &Value,
        code: u8,
        flags: u8,
        path: &str,
        value: &str,
    ) -> Result<Value, Status> {
        let mut subject = Subject {
            raw: Bytes::new(),
            body: Some(body.clone()),
            xattrs: Map::new(),
            document: Value::Null,
            vbucket: Value::Null,
        };
        let spec = Spec {
            code,
            flags,
            path: Bytes::copy_from_slice(path.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        };
        change(&mut subject, &spec, &|_| None)?;
        Ok(subject.body.unwrap())
    }

    #[test]
    fn each_operation_changes_what_it_says() {
        let body = json!({"n": 1, "list": [1, 2], "deep": {"x": true}});
        let with = |code, path, value| changed(&body, code, 0, path, value);
        assert_eq!(with(opcode::SUBDOC_DICT_ADD, "n", "2"), Err(Status::PATH_EXISTS));
        assert_eq!(with(opcode::SUBDOC_DICT_SET, "n", "2").unwrap()["n"], 2);
        assert_eq!(with(opcode::SUBDOC_DICT_SET, "a.b", "2"), Err(Status::PATH_NOT_FOUND));
        let made = changed(&body, opcode::SUBDOC_DICT_SET, FLAG_MAKE_PATH, "a.b", "2").unwrap();
        assert_eq!(made["a"]["b"], 2);
        assert_eq!(with(opcode::SUBDOC_REPLACE, "m", "2"), Err(Status::PATH_NOT_FOUND));
        assert_eq!(with(opcode::SUBDOC_REPLACE, "list[-1]", "7").unwrap()["list"], json!([1, 7]));
        assert_eq!(with(opcode::SUBDOC_DELETE, "list[0]", "").unwrap()["list"], json!([2]));
        assert_eq!(
            with(opcode::SUBDOC_ARRAY_PUSH_LAST, "list", "3,4").unwrap()["list"],
            json!([1, 2, 3, 4])
        );
        assert_eq!(
            with(opcode::SUBDOC_ARRAY_PUSH_FIRST, "list", "0").unwrap()["list"],
            json!([0, 1, 2])
        );
        assert_eq!(
            with(opcode::SUBDOC_ARRAY_INSERT, "list[1]", "9").unwrap()["list"],
            json!([1, 9, 2])
        );
        assert_eq!(with(opcode::SUBDOC_ARRAY_ADD_UNIQUE, "list", "2"), Err(Status::PATH_EXISTS));
        assert_eq!(with(opcode::SUBDOC_COUNTER, "n", "-3").unwrap()["n"], -2);
        assert_eq!(with(opcode::SUBDOC_COUNTER, "fresh", "5").unwrap()["fresh"], 5);
        assert_eq!(with(opcode::SUBDOC_COUNTER, "deep", "5"), Err(Status::PATH_MISMATCH));
        assert_eq!(with(opcode::SUBDOC_COUNTER, "n", "0"), Err(Status::SUBDOC_BAD_DELTA));
        assert_eq!(with(opcode::SUBDOC_DICT_SET, "n", "{"), Err(Status::CANNOT_INSERT));
    }
}
