//! The exec form: is a text a JSON array of strings? Accepts exactly what Go's decoder accepts, because what it
//! refuses is not an error but the shell form.

use std::ops::Range;

/// Go's limit.
const MAX_DEPTH: usize = 10_000;

/// What a text is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Json {
    /// An array of strings, with the places of its elements.
    Strings(Vec<(String, Range<usize>)>),
    /// An array with something else in it, the first of these at this place.
    Other(Range<usize>),
    /// No valid array: the shell form.
    No,
}

/// Looks at `text`.
pub(crate) fn array(text: &str) -> Json {
    let start = text.len() - text.trim_start().len();
    if text.as_bytes().get(start) != Some(&b'[') {
        return Json::No;
    }
    Scanner { text, at: start + 1 }.array().unwrap_or(Json::No)
}

fn closing(bracket: u8) -> u8 {
    if bracket == b'[' { b']' } else { b'}' }
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl Scanner<'_> {
    /// Behind the opening bracket. `None` when it is not JSON.
    fn array(&mut self) -> Option<Json> {
        let mut strings = Vec::new();
        let mut other = None;
        self.blanks();
        if self.peek() == Some(b']') {
            self.at += 1;
        } else {
            loop {
                self.blanks();
                let start = self.at;
                if self.peek() == Some(b'"') {
                    let string = self.string()?;
                    strings.push((string, start..self.at));
                } else {
                    self.value()?;
                    other.get_or_insert(start..self.at);
                }
                self.blanks();
                match self.bump()? {
                    b',' => {}
                    b']' => break,
                    _ => return None,
                }
            }
        }
        self.blanks();
        if self.at < self.text.len() {
            return None;
        }
        Some(match other {
            Some(range) => Json::Other(range),
            None => Json::Strings(strings),
        })
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn bump(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// Any value, checked and thrown away; no recursion, for the depth is the user's.
    fn value(&mut self) -> Option<()> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.blanks();
            match self.peek()? {
                b'"' => drop(self.string()?),
                b'[' | b'{' => {
                    let bracket = self.bump()?;
                    if open.len() + 1 >= MAX_DEPTH {
                        return None;
                    }
                    open.push(bracket);
                    self.blanks();
                    if self.peek() != Some(closing(bracket)) {
                        self.key(bracket)?;
                        continue;
                    }
                }
                b't' => self.literal("true")?,
                b'f' => self.literal("false")?,
                b'n' => self.literal("null")?,
                _ => self.number()?,
            }
            // A value is complete; so may be what it is in.
            loop {
                let Some(&bracket) = open.last() else { return Some(()) };
                self.blanks();
                match self.bump()? {
                    b',' if self.peek_after_blanks() != Some(closing(bracket)) => {
                        self.key(bracket)?;
                        break;
                    }
                    byte if byte == closing(bracket) => {
                        open.pop();
                    }
                    _ => return None,
                }
            }
        }
    }

    fn peek_after_blanks(&mut self) -> Option<u8> {
        self.blanks();
        self.peek()
    }

    /// The `"key":` of an object's member; nothing in an array.
    fn key(&mut self, bracket: u8) -> Option<()> {
        if bracket == b'{' {
            self.blanks();
            self.string()?;
            self.blanks();
            return (self.bump()? == b':').then_some(());
        }
        Some(())
    }

    fn literal(&mut self, word: &str) -> Option<()> {
        self.text.get(self.at..)?.starts_with(word).then(|| self.at += word.len())
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    fn number(&mut self) -> Option<()> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        // A number that no float holds is refused as well.
        let number: f64 = self.text.get(start..self.at)?.parse().ok()?;
        number.is_finite().then_some(())
    }

    fn string(&mut self) -> Option<String> {
        if self.bump()? != b'"' {
            return None;
        }
        let mut out = String::new();
        loop {
            let rest = self.text.get(self.at..)?;
            let plain = rest.find(|c: char| c == '"' || c == '\\' || c < ' ')?;
            out.push_str(rest.get(..plain)?);
            self.at += plain;
            match self.bump()? {
                b'"' => return Some(out),
                b'\\' => out.push(self.escape()?),
                _ => return None,
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        Some(match self.bump()? {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => self.unicode()?,
            _ => return None,
        })
    }

    /// Behind `\u`. Half a surrogate pair becomes the replacement character.
    fn unicode(&mut self) -> Option<char> {
        let first = self.hex4()?;
        if let Some(c) = char::from_u32(first) {
            return Some(c);
        }
        let behind = self.at;
        if self.text.get(behind..)?.starts_with("\\u") {
            self.at += 2;
            let second = self.hex4()?;
            if (0xd800..0xdc00).contains(&first) && (0xdc00..0xe000).contains(&second) {
                return char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00));
            }
            self.at = behind;
        }
        Some(char::REPLACEMENT_CHARACTER)
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(text: &str) -> Vec<String> {
        match array(text) {
            Json::Strings(strings) => strings.into_iter().map(|(string, _)| string).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn arrays_of_strings() {
        assert_eq!(strings("[]"), [""; 0]);
        assert_eq!(strings(" [ ] "), [""; 0]);
        assert_eq!(
            array("[\"a\"  ,\"\"]"),
            Json::Strings(vec![("a".to_owned(), 1..4), (String::new(), 7..9)])
        );
        assert_eq!(strings("[\"a\" ,\t\"b c\"]"), ["a", "b c"]);
        assert_eq!(strings(r#"["\"\\\/\b\f\n\r\t\u00e9"]"#), ["\"\\/\x08\x0c\n\r\té"]);
        assert_eq!(strings(r#"["\ud83d\ude00\ud83dx\ude00\ud83d\u0041"]"#), ["😀\u{fffd}x\u{fffd}\u{fffd}A"]);
    }

    #[test]
    fn arrays_of_other_things() {
        for (text, range) in [
            ("[1]", 1..2),
            ("[\"a\", null, 2]", 6..10),
            ("[[\"a\"]]", 1..6),
            ("[{\"a\": [1, {}], \"b\": -1.5e+3}]", 1..29),
            ("[ true]", 2..6),
        ] {
            assert_eq!(array(text), Json::Other(range), "{text}");
        }
        assert!(matches!(array(&format!("{}{}", "[".repeat(9000), "]".repeat(9000))), Json::Other(_)));
    }

    #[test]
    fn everything_else_is_the_shell_form() {
        let deep = "[".repeat(100_000);
        for text in [
            "",
            "x",
            "[",
            "[\"a\"",
            "[\"a\",]",
            "['a']",
            "[\"a\"] && b",
            "[a]",
            "[\"a\" \"b\"]",
            "[\"\\x\"]",
            "[\"a\tb\"]",
            "[01]",
            "[1e999]",
            "[,]",
            "[{\"a\"}]",
            "[{\"a\":1,}]",
            "[[1,]]",
            "[\"\\u12\"]",
            "[\"\\u+123\"]",
            "[-]",
            "[1.]",
            "[tru]",
            &deep,
        ] {
            assert_eq!(array(text), Json::No, "{text}");
        }
    }

    #[test]
    fn agrees_with_another_decoder() {
        let pieces =
            ["[", "]", "\"", "a", "\\", "n", ",", " ", "1", "{", "}", ":", "null", "é", "-", "0", "."];
        let mut seed = 7u64;
        for _ in 0..200_000 {
            let mut text = String::from("[");
            for _ in 0..8 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push_str(pieces[(seed >> 33) as usize % pieces.len()]);
            }
            let theirs = match serde_json::from_str::<Vec<serde_json::Value>>(&text) {
                Err(_) => None,
                Ok(values) => {
                    Some(values.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>())
                }
            };
            let ours = match array(&text) {
                Json::No => None,
                Json::Other(_) => Some(None),
                Json::Strings(strings) => Some(Some(strings.into_iter().map(|(string, _)| string).collect())),
            };
            assert_eq!(ours, theirs, "{text}");
        }
    }
}
