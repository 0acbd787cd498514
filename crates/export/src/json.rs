//! JSON with the bytes of Go's `encoding/json`, for documents whose digest counts: compact or indented by two spaces,
//! `<`, `>`, `&` and U+2028/2029 escaped. The order of fields is the caller's.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// As Go's `json.Marshal`.
pub(crate) fn compact(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    write(value, CompactFormatter)
}

/// As Go's `json.MarshalIndent` with two spaces.
pub(crate) fn indented(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    write(value, PrettyFormatter::with_indent(b"  "))
}

fn write(value: &impl Serialize, inner: impl Formatter) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = Vec::with_capacity(1024);
    value.serialize(&mut Serializer::with_formatter(&mut out, Go(inner)))?;
    Ok(out)
}

/// Another formatter's layout with Go's escapes.
struct Go<F>(F);

macro_rules! pass {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {$(
        fn $name<W: ?Sized + io::Write>(&mut self, out: &mut W $(, $arg: $type)*) -> io::Result<()> {
            self.0.$name(out $(, $arg)*)
        }
    )*};
}

impl<F: Formatter> Formatter for Go<F> {
    pass! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, out: &mut W, text: &str) -> io::Result<()> {
        let mut rest = text;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (before, from) = rest.split_at(at);
            let mut chars = from.chars();
            let code = chars.next().map_or(0, u32::from);
            write!(out, "{before}\\u{code:04x}")?;
            rest = chars.as_str();
        }
        out.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bytes_are_those_of_go() {
        let value = json!({"b": ["<a>&\u{2028}é\u{7f}\n\t\u{1}"], "a": {}, "n": [], "x": [1, null]});
        assert_eq!(
            String::from_utf8(compact(&value).unwrap()).unwrap(),
            "{\"b\":[\"\\u003ca\\u003e\\u0026\\u2028é\u{7f}\\n\\t\\u0001\"],\"a\":{},\"n\":[],\"x\":[1,null]}"
        );
        assert_eq!(
            String::from_utf8(indented(&json!({"a": {}, "b": [1, "&"], "c": []})).unwrap()).unwrap(),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    \"\\u0026\"\n  ],\n  \"c\": []\n}"
        );
    }
}
