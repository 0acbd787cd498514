//! Go's `path.Match` globs, as COPY and ADD use them: `*` and `?` stop at slashes, `[...]` classes, `\` escapes.
//! A glob is compiled once; whether it is well formed does not depend on what it is matched with.

use crate::go_path;

/// A compiled glob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    chunks: Vec<Chunk>,
}

/// A pattern with an unfinished class or escape, or an empty or reversed part in a class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid pattern {pattern:?}: {reason}")]
pub struct BadPattern {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// What follows a star, or the start, up to the next star.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chunk {
    star: bool,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    /// `?`
    One,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// Compiles `pattern`.
    ///
    /// # Errors
    /// If the pattern is malformed.
    pub fn new(pattern: &str) -> Result<Self, BadPattern> {
        compile(pattern).map_err(|reason| BadPattern { pattern: pattern.to_owned(), reason })
    }

    /// Whether all of `name` matches.
    #[must_use]
    pub fn matches(&self, name: impl AsRef<[u8]>) -> bool {
        let mut name = name.as_ref();
        let last = self.chunks.len().saturating_sub(1);
        for (i, chunk) in self.chunks.iter().enumerate() {
            if chunk.star && chunk.parts.is_empty() {
                return !name.contains(&b'/');
            }
            // The first place where the chunk fits counts, unless it is the last one: then it must reach the end.
            let fits = |rest: &&[u8]| i < last || rest.is_empty();
            let skips = name.iter().take_while(|c| chunk.star && **c != b'/').count();
            let found =
                (0..=skips).find_map(|skip| match_parts(&chunk.parts, name.get(skip..)?).filter(fits));
            match found {
                Some(rest) => name = rest,
                None => return false,
            }
        }
        name.is_empty()
    }
}

fn match_parts<'a>(parts: &[Part], mut name: &'a [u8]) -> Option<&'a [u8]> {
    for part in parts {
        name = match part {
            Part::Literal(literal) => name.strip_prefix(literal.as_slice())?,
            Part::One if name.first() == Some(&b'/') => return None,
            Part::One => decode(name)?.1,
            Part::Class { negated, ranges } => {
                let (c, rest) = decode(name)?;
                let inside = ranges.iter().any(|(low, high)| *low <= c && c <= *high);
                if inside == *negated {
                    return None;
                }
                rest
            }
        };
    }
    Some(name)
}

/// The first character and the rest, a byte that is no UTF-8 as U+FFFD; `None` if empty.
pub(crate) fn decode(bytes: &[u8]) -> Option<(char, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    if first.is_ascii() {
        return Some((char::from(*first), rest));
    }
    for length in 2..=4.min(bytes.len()) {
        let (head, tail) = bytes.split_at_checked(length)?;
        if let Some(c) = std::str::from_utf8(head).ok().and_then(|text| text.chars().next()) {
            return Some((c, tail));
        }
    }
    Some((char::REPLACEMENT_CHARACTER, rest))
}

fn compile(pattern: &str) -> Result<Glob, &'static str> {
    let mut chunks = vec![Chunk { star: false, parts: Vec::new() }];
    let mut chars = pattern.chars().peekable();
    let literal = |chunk: &mut Chunk, c: char| {
        let bytes = c.to_string().into_bytes();
        match chunk.parts.last_mut() {
            Some(Part::Literal(text)) => text.extend(bytes),
            _ => chunk.parts.push(Part::Literal(bytes)),
        }
    };
    while let Some(c) = chars.next() {
        let Some(chunk) = chunks.last_mut() else { break };
        match c {
            '*' if chunk.parts.is_empty() => chunk.star = true,
            '*' => chunks.push(Chunk { star: true, parts: Vec::new() }),
            '?' => chunk.parts.push(Part::One),
            '[' => chunk.parts.push(class(&mut chars)?),
            '\\' => literal(chunk, chars.next().ok_or("nothing follows the last \"\\\"")?),
            c => literal(chunk, c),
        }
    }
    Ok(Glob { chunks })
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Part, &'static str> {
    const OPEN: &str = "\"[\" without \"]\"";
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    let single = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next() {
        None => Err(OPEN),
        Some('-' | ']') => Err("\"-\" or \"]\" in \"[...]\" must be escaped with \"\\\""),
        Some('\\') => chars.next().ok_or(OPEN),
        Some(c) => Ok(c),
    };
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Ok(Part::Class { negated, ranges });
        }
        let low = single(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { single(chars)? } else { low };
        if chars.peek().is_none() {
            return Err(OPEN);
        }
        ranges.push((low, high));
    }
}

/// Whether `pattern` has an unescaped `*`, `?` or `[`: only then is it matched as a glob.
#[must_use]
pub fn has_wildcard(pattern: &str) -> bool {
    let mut bytes = pattern.bytes();
    while let Some(c) = bytes.next() {
        match c {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// The leading components without wildcards, and the rest from the first component with one. Absolute patterns
/// keep their slash in the first part.
#[must_use]
pub fn split_wildcards(pattern: &str) -> (String, String) {
    let cleaned = go_path::join(&[pattern]);
    let parts: Vec<&str> = cleaned.split('/').map(|part| if part.is_empty() { "/" } else { part }).collect();
    let at = parts.iter().position(|part| has_wildcard(part)).unwrap_or(parts.len());
    let (fixed, wild) = parts.split_at_checked(at).unwrap_or((&parts, &[]));
    (go_path::join(fixed), go_path::join(wild))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_path_match_of_go() {
        for (pattern, name, want) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[b-d]", "abc", true),
            ("ab[^b-d]", "abc", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[x\\-]", "-", true),
            ("[\\-x]", "a", false),
            ("*x", "xxx", true),
            ("**", "ab", true),
            ("a**b", "axb", true),
            ("", "", true),
            ("", "a", false),
            ("[^x]", "/", true),
            ("*[^x]*b", "q/b", false),
        ] {
            assert_eq!(Glob::new(pattern).unwrap().matches(name), want, "{pattern} {name}");
        }
        assert!(Glob::new("a?b").unwrap().matches(b"a\xffb"));
        assert!(!Glob::new("a?b").unwrap().matches(b"a\xff\xffb"));
    }

    #[test]
    fn bad_patterns() {
        for pattern in [
            "[]a]", "[-]", "[x-]", "[-x]", "\\", "[a-b-c]", "[", "[^", "[^bc", "a[", "[a", "[a-", "[a\\",
            "*\\", "x*[",
        ] {
            assert!(Glob::new(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn wildcards() {
        assert!(has_wildcard("a*") && has_wildcard("a?") && has_wildcard("[a]") && has_wildcard("\\\\*"));
        assert!(!has_wildcard("a") && !has_wildcard("\\*") && !has_wildcard("a\\[b"));
        for (pattern, fixed, wild) in [
            ("/a/b/*/c", "/a/b", "*/c"),
            ("/*.txt", "/", "*.txt"),
            ("a/b", "a/b", ""),
            ("/a/../b?", "/", "b?"),
            ("*", "", "*"),
        ] {
            assert_eq!(split_wildcards(pattern), (fixed.to_owned(), wild.to_owned()), "{pattern}");
        }
    }
}
