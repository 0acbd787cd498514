//! JSON with the bytes that Go's `encoding/json` writes: no spaces, `<`, `>` and `&` escaped as `\u003c`,
//! `\u003e`, `\u0026`, U+2028/2029 escaped, control characters short (`\b \f \n \r \t`) or `\u00xx`.
//! BuildKit hashes such bytes, so nothing here may change. Fields are written in the order of the calls.

/// Writes one JSON object; the caller decides which fields are omitted.
#[derive(Debug)]
pub struct Object {
    out: String,
    first: bool,
}

impl Default for Object {
    fn default() -> Self {
        Self::new()
    }
}

impl Object {
    /// An object without fields.
    #[must_use]
    pub fn new() -> Self {
        Self { out: String::from("{"), first: true }
    }

    fn name(&mut self, name: &str) {
        if !self.first {
            self.out.push(',');
        }
        self.first = false;
        push_string(&mut self.out, name);
        self.out.push(':');
    }

    /// `"name":<json>` with `json` taken as it is.
    pub fn raw(&mut self, name: &str, json: &str) -> &mut Self {
        self.name(name);
        self.out.push_str(json);
        self
    }

    /// A string field.
    pub fn string(&mut self, name: &str, value: &str) -> &mut Self {
        self.name(name);
        push_string(&mut self.out, value);
        self
    }

    /// A string field that is left out when empty (Go's `omitempty`).
    pub fn string_nonempty(&mut self, name: &str, value: &str) -> &mut Self {
        if value.is_empty() { self } else { self.string(name, value) }
    }

    /// An integer field.
    pub fn int(&mut self, name: &str, value: i64) -> &mut Self {
        self.raw(name, &value.to_string())
    }

    /// An integer field that is left out when 0.
    pub fn int_nonzero(&mut self, name: &str, value: i64) -> &mut Self {
        if value == 0 { self } else { self.int(name, value) }
    }

    /// `"name":true`, left out when false.
    pub fn flag(&mut self, name: &str, value: bool) -> &mut Self {
        if value { self.raw(name, "true") } else { self }
    }

    /// An array of strings, left out when empty.
    pub fn strings_nonempty<S: AsRef<str>>(&mut self, name: &str, values: &[S]) -> &mut Self {
        if values.is_empty() { self } else { self.raw(name, &strings(values)) }
    }

    /// The finished text.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.out.push('}');
        self.out
    }
}

/// A JSON array of strings.
#[must_use]
pub fn strings<S: AsRef<str>>(values: &[S]) -> String {
    array(values.iter().map(|value| string(value.as_ref())))
}

/// A JSON array of finished JSON texts.
#[must_use]
pub fn array(values: impl IntoIterator<Item = String>) -> String {
    let mut out = String::from("[");
    for (i, value) in values.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(&value);
    }
    out.push(']');
    out
}

/// A JSON string.
#[must_use]
pub fn string(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    push_string(&mut out, value);
    out
}

/// Appends a JSON string.
pub fn push_string(out: &mut String, value: &str) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_go_does() {
        let text = "a\"\\\u{8}\u{c}\n\r\t\u{1}\u{7f}<&>\u{2028}\u{2029}é";
        assert_eq!(
            string(text),
            "\"a\\\"\\\\\\b\\f\\n\\r\\t\\u0001\u{7f}\\u003c\\u0026\\u003e\\u2028\\u2029é\""
        );
    }

    #[test]
    fn objects_keep_order_and_omit() {
        let mut object = Object::new();
        object.string("b", "x").string_nonempty("e", "").int("n", -1).int_nonzero("z", 0);
        object.flag("no", false).flag("yes", true).strings_nonempty("s", &["1", "2"]);
        assert_eq!(object.finish(), r#"{"b":"x","n":-1,"yes":true,"s":["1","2"]}"#);
        assert_eq!(Object::new().finish(), "{}");
    }
}
