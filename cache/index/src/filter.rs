//! Filters of usage rows, in buildx's words: `type=exec.cachemount`, `description~=^RUN`, `inuse`, `shared!=true`, `until=24h`.
//! All filters must hold; those of one name with `=` are alternatives.

use std::collections::BTreeMap;
use std::time::Duration;

use regex::{Regex, RegexBuilder};

use crate::usage::{UsageKind, UsageRow};

/// A regular expression takes no more memory than this.
const REGEX_BYTES: usize = 1 << 20;

const NAMES: [&str; 10] = [
    "id",
    "type",
    "description",
    "inuse",
    "shared",
    "private",
    "mutable",
    "immutable",
    "until",
    "unused-for",
];

/// What a filter's text says wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No such field.
    #[error(
        "unknown filter {0:?}; there are id, type, description, inuse, shared, private, mutable, immutable and until"
    )]
    Name(String),
    /// No such value.
    #[error("{value:?} is no value of the filter {name}; {expected}")]
    Value {
        /// The field.
        name: String,
        /// What was given.
        value: String,
        /// What may be.
        expected: &'static str,
    },
    /// Not a regular expression.
    #[error("{0:?} is no regular expression")]
    Regex(String),
}

#[derive(Clone, Debug)]
enum Test {
    Is(String),
    IsNot(String),
    Matches(Regex),
}

/// Filters that all must hold.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    tests: BTreeMap<String, Vec<Test>>,
    /// `until`: only what was not used for this long.
    pub unused_for: Option<Duration>,
}

impl Filters {
    /// Reads filters as given on a command line. `duration` reads `24h`.
    ///
    /// # Errors
    /// What is wrong with the first bad one.
    pub fn parse<S: AsRef<str>>(
        texts: &[S],
        duration: &dyn Fn(&str) -> Option<Duration>,
    ) -> Result<Self, FilterError> {
        let mut out = Self::default();
        for text in texts.iter().map(AsRef::as_ref) {
            let (name, test) = split(text)?;
            if !NAMES.contains(&name) {
                return Err(FilterError::Name(name.to_owned()));
            }
            match (name, test) {
                ("until" | "unused-for", Test::Is(value)) => {
                    let bad = || FilterError::Value {
                        name: name.to_owned(),
                        value: value.clone(),
                        expected: "write 24h, 30m or 1h30m",
                    };
                    out.unused_for = Some(duration(&value).ok_or_else(bad)?);
                }
                ("type", Test::Is(value) | Test::IsNot(value)) if kind_name(&value).is_none() => {
                    let expected = "choose regular, internal, exec.cachemount, source.local or frontend";
                    return Err(FilterError::Value { name: name.to_owned(), value, expected });
                }
                (name, test) => out.tests.entry(name.to_owned()).or_default().push(test),
            }
        }
        Ok(out)
    }

    /// Whether they let a row through; `until` is not asked here.
    #[must_use]
    pub fn admit(&self, row: &UsageRow) -> bool {
        self.tests.iter().all(|(name, tests)| {
            let value = value(row, name);
            let holds = |test: &Test| match test {
                Test::Is(wanted) => same(name, &value, wanted),
                Test::IsNot(other) => !same(name, &value, other),
                Test::Matches(regex) => regex.is_match(&value),
            };
            let (any, all): (Vec<&Test>, Vec<&Test>) =
                tests.iter().partition(|test| matches!(test, Test::Is(_)));
            all.into_iter().all(holds) && (any.is_empty() || any.into_iter().any(holds))
        })
    }
}

/// `name`, `name=value`, `name==value`, `name!=value`, `name~=value`.
fn split(text: &str) -> Result<(&str, Test), FilterError> {
    let Some(at) = text.find(['=', '!', '~']) else { return Ok((text, Test::Is("true".to_owned()))) };
    let (name, rest) = text.split_at(at);
    let test = if let Some(value) = rest.strip_prefix("!=") {
        Test::IsNot(value.to_owned())
    } else if let Some(value) = rest.strip_prefix("~=") {
        let regex = RegexBuilder::new(value).size_limit(REGEX_BYTES).build();
        Test::Matches(regex.map_err(|_| FilterError::Regex(value.to_owned()))?)
    } else if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
        Test::Is(value.to_owned())
    } else {
        return Err(FilterError::Name(text.to_owned()));
    };
    Ok((name, test))
}

fn value(row: &UsageRow, name: &str) -> String {
    let mutable = row.kind == UsageKind::CacheMount;
    match name {
        "id" => row.id.clone(),
        "type" => kind_word(row.kind).to_owned(),
        "description" => row.description.clone(),
        "inuse" => row.in_use.to_string(),
        "shared" => row.shared.to_string(),
        "private" => (!row.shared).to_string(),
        "mutable" => mutable.to_string(),
        "immutable" => (!mutable).to_string(),
        _ => String::new(),
    }
}

fn same(name: &str, value: &str, wanted: &str) -> bool {
    match name {
        "type" => kind_name(wanted) == Some(value),
        // As people copy them: an id may be cut short, a digest come without its algorithm.
        "id" => {
            value == wanted
                || (wanted.len() >= 8
                    && (value.starts_with(wanted)
                        || value.strip_prefix("sha256:").is_some_and(|hex| hex.starts_with(wanted))))
        }
        "inuse" | "shared" | "private" | "mutable" | "immutable" => {
            value == if wanted == "1" || wanted.is_empty() { "true" } else { wanted }
        }
        _ => value == wanted,
    }
}

/// BuildKit's word for a kind.
#[must_use]
pub(crate) fn kind_word(kind: UsageKind) -> &'static str {
    match kind {
        UsageKind::Layer => "regular",
        UsageKind::Blob => "internal",
        UsageKind::CacheMount => "exec.cachemount",
    }
}

/// A kind by BuildKit's word or by that of the listings. What there never is matches nothing.
fn kind_name(text: &str) -> Option<&'static str> {
    Some(match text {
        "regular" | "layer" => "regular",
        "internal" | "blob" => "internal",
        "exec.cachemount" | "cache mount" | "cachemount" => "exec.cachemount",
        "source.local" => "source.local",
        "source.git.checkout" => "source.git.checkout",
        "frontend" => "frontend",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, kind: UsageKind, description: &str) -> UsageRow {
        UsageRow {
            id: id.to_owned(),
            kind,
            description: description.to_owned(),
            size: 1,
            shared: description.contains("shared"),
            created: None,
            last_used: None,
            use_count: 0,
            in_use: description.contains("busy"),
        }
    }

    fn hours(text: &str) -> Option<Duration> {
        Some(Duration::from_secs(text.strip_suffix('h')?.parse::<u64>().ok()? * 3600))
    }

    #[test]
    fn rows_are_let_through() {
        let rows = [
            row("labcdefghij", UsageKind::Layer, "RUN make busy"),
            row("sha256:0123456789", UsageKind::Blob, "blob"),
            row("go", UsageKind::CacheMount, "cache mount go shared"),
        ];
        for (texts, expected) in [
            (vec![], "labcdefghij sha256:0123456789 go"),
            (vec!["type=regular"], "labcdefghij"),
            (vec!["type=regular", "type=exec.cachemount"], "labcdefghij go"),
            (vec!["type!=regular", "type!=internal"], "go"),
            (vec!["inuse"], "labcdefghij"),
            (vec!["inuse=false", "shared=true"], "go"),
            (vec!["private"], "labcdefghij sha256:0123456789"),
            (vec!["mutable"], "go"),
            (vec!["description~=^RUN"], "labcdefghij"),
            (vec!["description~=b(l|u)"], "labcdefghij sha256:0123456789"),
            (vec!["id=01234567"], "sha256:0123456789"),
            (vec!["id==go"], "go"),
            (vec!["id=labc"], ""),
            (vec!["type=frontend"], ""),
            (vec!["until=24h"], "labcdefghij sha256:0123456789 go"),
        ] {
            let filters = Filters::parse(&texts, &hours).unwrap();
            let found: Vec<&str> =
                rows.iter().filter(|row| filters.admit(row)).map(|row| row.id.as_str()).collect();
            assert_eq!(found.join(" "), expected, "{texts:?}");
        }
        let until = Filters::parse(&["until=24h"], &hours).unwrap();
        assert_eq!(until.unused_for, Some(Duration::from_secs(86_400)));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("size=3", "unknown filter \"size\""),
            ("type=layers", "choose regular"),
            ("until=soon", "24h"),
            ("description~=(", "regular expression"),
            ("x!y", "unknown filter"),
        ] {
            let error = Filters::parse(&[text], &hours).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
