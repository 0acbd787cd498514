//! One traversal, two readers: whatever an operation writes into a `Doc` goes into the JSON that is hashed and
//! into the list of fields that people compare, so that the two cannot disagree.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rbuild_digest::{Digest, canon};

/// What a digest was made from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Preimage {
    /// The text whose SHA-256 is the digest.
    pub text: String,
    /// The decided fields in order, those of the inputs' selectors after those of the operation.
    pub fields: Vec<Field>,
}

/// A field that makes two operations differ. Fields with their default value are absent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Field {
    /// `args[2]`, `env.PATH`, `mount /src readonly`, …
    pub path: String,
    /// As text.
    pub value: String,
}

/// Writes JSON objects as Go does, and notes the fields.
#[derive(Default)]
pub(crate) struct Doc {
    json: String,
    fields: Vec<Field>,
    prefix: String,
}

impl Doc {
    /// A document that starts as an object.
    pub(crate) fn new() -> Self {
        Self { json: String::with_capacity(512), fields: Vec::with_capacity(32), prefix: String::new() }
    }

    /// An object in `name`; its fields are noted with `prefix` before them.
    pub(crate) fn object(&mut self, name: &str, prefix: &str, write: impl FnOnce(&mut Self)) {
        self.name(name);
        self.element(prefix, write);
    }

    /// An array in `name`, left out when there are no items.
    pub(crate) fn array<T>(&mut self, name: &str, items: &[T], mut write: impl FnMut(&mut Self, usize, &T)) {
        if items.is_empty() {
            return;
        }
        self.name(name);
        self.json.push('[');
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.json.push(',');
            }
            write(self, i, item);
        }
        self.json.push(']');
    }

    /// An object without a name: the document itself, or an array's item.
    pub(crate) fn element(&mut self, prefix: &str, write: impl FnOnce(&mut Self)) {
        let length = self.prefix.len();
        self.prefix.push_str(prefix);
        self.json.push('{');
        write(self);
        self.json.push('}');
        self.prefix.truncate(length);
    }

    /// An array's item: what `write` writes, as a JSON text in base64 (Go's `[]byte`).
    pub(crate) fn encoded(&mut self, prefix: &str, write: impl FnOnce(&mut Self)) {
        let outer = std::mem::take(&mut self.json);
        self.element(prefix, write);
        let inner = std::mem::replace(&mut self.json, outer);
        self.json.push('"');
        STANDARD.encode_string(inner, &mut self.json);
        self.json.push('"');
    }

    /// A string that is always there.
    pub(crate) fn string(&mut self, name: &str, value: &str) {
        self.silent(name, value);
        self.note(name, value);
    }

    /// A string that is left out when empty.
    pub(crate) fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.string(name, value);
        }
    }

    /// A string that no field tells of.
    pub(crate) fn silent(&mut self, name: &str, value: &str) {
        self.name(name);
        canon::push_string(&mut self.json, value);
    }

    /// A number that is always there.
    pub(crate) fn int(&mut self, name: &str, value: i64) {
        self.name(name);
        let _ = write!(self.json, "{value}");
        self.note(name, &value.to_string());
    }

    /// A number that is left out when 0.
    pub(crate) fn number(&mut self, name: &str, value: i64) {
        if value != 0 {
            self.int(name, value);
        }
    }

    /// A number that no field tells of, left out when 0.
    pub(crate) fn silent_number(&mut self, name: &str, value: i64) {
        if value != 0 {
            self.name(name);
            let _ = write!(self.json, "{value}");
        }
    }

    /// An enumeration: its number is written, its name noted; left out when 0.
    pub(crate) fn choice(&mut self, name: &str, number: i64, word: &str) {
        if number != 0 {
            self.silent_number(name, number);
            self.note(name, word);
        }
    }

    /// `true`, left out when false.
    pub(crate) fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.name(name);
            self.json.push_str("true");
            self.note(name, "true");
        }
    }

    /// Strings, left out when there are none.
    pub(crate) fn strings(&mut self, name: &str, values: &[String]) {
        self.array(name, values, |doc, i, value| {
            canon::push_string(&mut doc.json, value);
            doc.note(&format!("{name}[{i}]"), value);
        });
    }

    /// As `strings`, but `null` when there are none (Go's nil slice without `omitempty`).
    pub(crate) fn strings_or_null(&mut self, name: &str, values: &[String]) {
        if values.is_empty() {
            self.raw(name, "null");
        } else {
            self.strings(name, values);
        }
    }

    /// `NAME=value` strings, noted by name.
    pub(crate) fn variables(&mut self, name: &str, values: &[String]) {
        self.array(name, values, |doc, _, value| {
            canon::push_string(&mut doc.json, value);
            let (variable, value) = value.split_once('=').unwrap_or((value, ""));
            doc.note(&format!("{name}.{variable}"), value);
        });
    }

    /// Numbers, left out when there are none.
    pub(crate) fn numbers(&mut self, name: &str, values: &[i32]) {
        self.array(name, values, |doc, i, value| {
            let _ = write!(doc.json, "{value}");
            doc.note(&format!("{name}[{i}]"), &value.to_string());
        });
    }

    /// Bytes in base64, left out when there are none; the field tells only size and digest.
    pub(crate) fn bytes(&mut self, name: &str, value: &[u8]) {
        if !value.is_empty() {
            self.name(name);
            self.json.push('"');
            STANDARD.encode_string(value, &mut self.json);
            self.json.push('"');
            self.note(name, &format!("{} bytes {}", value.len(), Digest::of(value)));
        }
    }

    /// Finished JSON that no field tells of.
    pub(crate) fn raw(&mut self, name: &str, json: &str) {
        self.name(name);
        self.json.push_str(json);
    }

    /// An array's item as finished JSON, noted as `name`.
    pub(crate) fn item(&mut self, name: &str, json: &str) {
        self.json.push_str(json);
        self.note(name, json);
    }

    /// Notes a field that is not in the JSON.
    pub(crate) fn note(&mut self, name: &str, value: &str) {
        let mut path = String::with_capacity(self.prefix.len() + name.len());
        path.push_str(&self.prefix);
        path.push_str(name);
        self.fields.push(Field { path, value: value.to_owned() });
    }

    /// The JSON and the fields.
    pub(crate) fn finish(self) -> Preimage {
        Preimage { text: self.json, fields: self.fields }
    }

    fn name(&mut self, name: &str) {
        if !self.json.ends_with('{') {
            self.json.push(',');
        }
        canon::push_string(&mut self.json, name);
        self.json.push(':');
    }
}

impl Preimage {
    /// The digest of the text.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.text)
    }
}
