//! Events of kinds that are games' own.

use greenroom_protocol::{InstanceId, UserId};
use serde_json::Value as Json;

use crate::{
    Form, Line, Value,
    event::{text, whole_number},
};

/// An event of a game's own. Its kind in the log is that of its instance, a point, and the game's word for it.
#[derive(Clone, Copy, Debug)]
pub struct OfGame<'a> {
    /// Where it happened.
    pub instance: InstanceId,
    /// Of which kind that is.
    pub instance_kind: &'a str,
    /// What happened, in the game's word.
    pub kind: &'a str,
    /// Version of that kind.
    pub version: u16,
    /// The user that it is about.
    pub user: Option<&'a UserId>,
    /// Its fields: an object of JSON. What is none has no fields.
    pub fields: &'a str,
}

impl OfGame<'_> {
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.instance_kind, self.kind)
    }

    pub(crate) fn write(&self, line: &mut Line<'_>) {
        line.about("user", &self.user.cloned());
        line.about("instance", &self.instance);
        line.fields();
        let fields: serde_json::Map<String, Json> =
            serde_json::from_str(self.fields).unwrap_or_default();
        for (name, value) in &fields {
            line.field(name, &Field(value));
        }
    }
}

/// A field of a game's own: written anew, so that its texts are cut and escaped as all are.
struct Field<'a>(&'a Json);

impl Value for Field<'_> {
    const FORM: Form = Form::Text;
    const OPTIONAL: bool = true;
    fn is_absent(&self) -> bool {
        self.0.is_null()
    }
    fn write(&self, out: &mut Vec<u8>) {
        match self.0 {
            Json::Null => out.extend_from_slice(b"null"),
            Json::Bool(is) => is.write(out),
            Json::Number(number) => whole_number(out, number),
            Json::String(value) => text(out, value),
            Json::Array(all) => {
                out.push(b'[');
                for (at, value) in all.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    Field(value).write(out);
                }
                out.push(b']');
            }
            Json::Object(all) => {
                out.push(b'{');
                for (at, (name, value)) in all.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    text(out, name);
                    out.push(b':');
                    Field(value).write(out);
                }
                out.push(b'}');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;

    fn written(fields: &str) -> String {
        let event = OfGame {
            instance: InstanceId(1),
            instance_kind: "duel",
            kind: "over",
            version: 3,
            user: None,
            fields,
        };
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out, "", &event.name(), event.version, Severity::Info);
        event.write(&mut line);
        line.end();
        let text = String::from_utf8(out).unwrap();
        text.split_once("\"fields\":").unwrap().1.trim_end().trim_end_matches('}').to_owned() + "}"
    }

    #[test]
    fn fields_are_written_as_they_are_and_their_texts_as_all_texts_are() {
        let plain = r#"{"a":-7,"b":1.5,"c":[true,null,{"d":"e"}]}"#;
        assert_eq!(
            serde_json::from_str::<Json>(&(written(plain))).unwrap(),
            serde_json::from_str::<Json>(plain).unwrap()
        );
        let nasty = serde_json::json!({ "<b>": "\u{1b}[31m\u{202e}", "long": "x".repeat(1_000), "none": null });
        let text = written(&nasty.to_string());
        assert!(!text.contains(['<', '\u{1b}', '\u{202e}']) && text.len() < 400, "{text}");
        assert!(text.contains("\\u003cb\\u003e") && !text.contains("none"), "{text}");
        assert_eq!(written("[1]"), "{}", "what is no object has no fields");
    }
}
