//! Quoting and expansion: `$VAR`, `${VAR:-x}` and its kin, with BuildKit's rules and none of its own. Variables
//! come through a function; which ones exist is not known here.

use std::collections::BTreeSet;

use crate::pattern::{Reach, replace_all, replace_first, trim_prefix, trim_suffix};

/// `${a:-${b:-…}}` may be nested this deep.
const MAX_DEPTH: usize = 200;
/// Variables may bring in this much.
const MAX_LENGTH: usize = 16 << 20;

/// What a word became.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The text.
    pub value: String,
    /// Names that were asked for and unset, each once, in the order of first use.
    pub unmatched: Vec<String>,
    /// Names that were asked for and set, each once, in the order of first use.
    pub used: Vec<String>,
}

/// Why a word cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExpandError {
    /// Byte offset in the raw word.
    pub offset: usize,
    /// What is wrong.
    pub message: String,
}

/// Looks a variable up.
type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands a word and removes its quotes.
pub fn expand_word(
    raw: &str,
    escape: char,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Expanded, ExpandError> {
    Lexer::new(raw, Mode::word(escape), env).text()
}

/// Expands a text and splits the result into words at blanks that are not quoted.
pub fn expand_words(
    raw: &str,
    escape: char,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, ExpandError> {
    Lexer::new(raw, Mode::word(escape), env).words()
}

/// Expands the body of a heredoc: quotes are text; `\` escapes the next character whatever `# escape=` says.
pub fn expand_heredoc(raw: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Expanded, ExpandError> {
    Lexer::new(raw, Mode { quotes: Quotes::Text, ..Mode::word('\\') }, env).text()
}

/// Expands a text for display: quotes stay, and variables that are unset stay as written.
pub fn expand_step_name(
    raw: &str,
    escape: char,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let mode = Mode { quotes: Quotes::Kept, keep_unset: true, ..Mode::word(escape) };
    Lexer::new(raw, mode, env).text().map(|expanded| expanded.value)
}

/// The words of an instruction as a shell would see them, nothing removed; heredocs are looked for in them.
pub(crate) fn shell_words(line: &str) -> Result<Vec<String>, ExpandError> {
    let mode = Mode { quotes: Quotes::Kept, keep_escapes: true, keep_unset: true, escape: '\\' };
    Lexer::new(line, mode, &|_| None).words()
}

/// The words of a heredoc's delimiter, with or without their quotes.
pub(crate) fn delimiter_words(text: &str, with_quotes: bool) -> Result<Vec<String>, ExpandError> {
    let quotes = if with_quotes { Quotes::Kept } else { Quotes::Removed };
    Lexer::new(text, Mode { quotes, keep_unset: true, ..Mode::word('\\') }, &|_| None).words()
}

/// What happens to quotes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    /// They quote and vanish.
    Removed,
    /// They quote and stay.
    Kept,
    /// They are characters like others.
    Text,
}

#[derive(Clone, Copy)]
struct Mode {
    escape: char,
    quotes: Quotes,
    keep_escapes: bool,
    keep_unset: bool,
}

impl Mode {
    fn word(escape: char) -> Self {
        Self { escape, quotes: Quotes::Removed, keep_escapes: false, keep_unset: false }
    }
}

/// Collects words while the text is expanded: what comes out of a variable is split, what was quoted is not.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: String,
}

impl Words {
    fn split(&mut self, text: &str) {
        for c in text.chars() {
            if !c.is_whitespace() {
                self.current.push(c);
            } else if !self.current.is_empty() {
                self.done.push(std::mem::take(&mut self.current));
            }
        }
    }

    fn whole(&mut self, text: &str) {
        self.current.push_str(text);
    }

    fn finish(mut self) -> Vec<String> {
        if !self.current.is_empty() {
            self.done.push(self.current);
        }
        self.done
    }
}

/// Names, each once, in the order of first use.
#[derive(Default)]
struct Names {
    order: Vec<String>,
    known: BTreeSet<String>,
}

impl Names {
    fn add(&mut self, name: &str) {
        if !name.is_empty() && !self.known.contains(name) {
            self.known.insert(name.to_owned());
            self.order.push(name.to_owned());
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    mode: Mode,
    env: Env<'a>,
    depth: usize,
    /// How many bytes variables have brought in.
    substituted: usize,
    unmatched: Names,
    used: Names,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str, mode: Mode, env: Env<'a>) -> Self {
        // BuildKit's scanner drops a byte order mark in front.
        let at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        Self {
            text,
            at,
            mode,
            env,
            depth: 0,
            substituted: 0,
            unmatched: Names::default(),
            used: Names::default(),
        }
    }

    fn text(mut self) -> Result<Expanded, ExpandError> {
        let rest = self.rest();
        let special = |c| matches!(c, '$' | '\'' | '"') || c == self.mode.escape;
        let value = if rest.contains(special) { self.until(None, None)? } else { rest.to_owned() };
        Ok(Expanded { value, unmatched: self.unmatched.order, used: self.used.order })
    }

    fn words(mut self) -> Result<Vec<String>, ExpandError> {
        let mut words = Words::default();
        self.until(None, Some(&mut words))?;
        Ok(words.finish())
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn error(&self, offset: usize, message: impl Into<String>) -> ExpandError {
        ExpandError { offset, message: message.into() }
    }

    /// Expands up to `stop`, which is consumed, or up to the end when there is none.
    fn until(&mut self, stop: Option<char>, mut words: Option<&mut Words>) -> Result<String, ExpandError> {
        let start = self.at;
        let mut out = String::new();
        let mut buffer = [0; 4];
        while let Some(c) = self.peek() {
            if stop == Some(c) {
                self.next();
                return Ok(out);
            }
            let (piece, splits): (&str, bool) = match c {
                '$' => (&self.dollar()?, true),
                '\'' if self.mode.quotes != Quotes::Text => (&self.single_quoted()?, false),
                '"' if self.mode.quotes != Quotes::Text => (&self.double_quoted()?, false),
                '<' => (self.angle(), false),
                _ if c == self.mode.escape => {
                    self.next();
                    let from = if self.mode.keep_escapes { self.at - c.len_utf8() } else { self.at };
                    self.next();
                    (self.text.get(from..self.at).unwrap_or_default(), false)
                }
                _ => {
                    self.next();
                    (c.encode_utf8(&mut buffer), true)
                }
            };
            out.push_str(piece);
            if let Some(words) = words.as_deref_mut() {
                if splits { words.split(piece) } else { words.whole(piece) }
            }
        }
        match stop {
            None => Ok(out),
            Some(stop) => {
                Err(self
                    .error(start, format!("unexpected end of statement while looking for matching {stop}")))
            }
        }
    }

    /// `<<` takes the blanks behind it into its word, so that `<< EOF` is one.
    fn angle(&mut self) -> &'a str {
        let start = self.at;
        self.next();
        if self.peek() == Some('<') {
            self.next();
            while matches!(self.peek(), Some(' ' | '\t' | '\r')) {
                self.next();
            }
        }
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        let start = self.at;
        self.next();
        let Some(length) = self.rest().find('\'') else {
            self.at = self.text.len();
            let message = "unexpected end of statement while looking for matching single-quote";
            return Err(self.error(start, message));
        };
        let inner = self.rest().get(..length).unwrap_or_default();
        self.at += length + 1;
        Ok(if self.mode.quotes == Quotes::Kept { format!("'{inner}'") } else { inner.to_owned() })
    }

    fn double_quoted(&mut self) -> Result<String, ExpandError> {
        let start = self.at;
        self.next();
        let keep = self.mode.quotes == Quotes::Kept;
        let mut out = String::new();
        if keep {
            out.push('"');
        }
        loop {
            match self.peek() {
                None => {
                    let message = "unexpected end of statement while looking for matching double-quote";
                    return Err(self.error(start, message));
                }
                Some('"') => {
                    self.next();
                    if keep {
                        out.push('"');
                    }
                    return Ok(out);
                }
                Some('$') => out.push_str(&self.dollar()?),
                Some(c) => {
                    self.next();
                    if c != self.mode.escape {
                        out.push(c);
                        continue;
                    }
                    if self.mode.keep_escapes {
                        out.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(escaped) if matches!(escaped, '"' | '$') || escaped == c => {
                            self.next();
                            out.push(escaped);
                        }
                        // Nothing that needs escaping: the escape character stands for itself.
                        Some(_) => out.push(c),
                    }
                }
            }
        }
    }

    /// A variable, with or without braces. What all of them bring in is bounded, for chains of variables that
    /// hold variables grow exponentially.
    fn dollar(&mut self) -> Result<String, ExpandError> {
        let start = self.at;
        self.next();
        let value = if self.peek() == Some('{') {
            self.next();
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(self.error(start, format!("substitutions are nested deeper than {MAX_DEPTH}")));
            }
            let value = self.braced(start)?;
            self.depth -= 1;
            value
        } else {
            match self.name() {
                "" => "$".to_owned(),
                name => match self.look_up(name) {
                    None if self.mode.keep_unset => format!("${name}"),
                    value => value.unwrap_or_default(),
                },
            }
        };
        self.substituted += value.len();
        if self.substituted > MAX_LENGTH {
            return Err(self.error(start, format!("the expansion is longer than {MAX_LENGTH} bytes")));
        }
        Ok(value)
    }

    /// Behind `${`.
    fn braced(&mut self, start: usize) -> Result<String, ExpandError> {
        match self.peek() {
            None => return Err(self.error(start, "syntax error: missing '}'")),
            Some('{' | '}' | ':') => return Err(self.error(start, "syntax error: bad substitution")),
            Some(_) => {}
        }
        let name = self.name();
        let Some(operator) = self.next() else {
            return Err(self.error(start, "syntax error: missing '}'"));
        };
        match operator {
            '}' => Ok(match self.look_up(name) {
                None if self.mode.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            '+' | '-' | '?' | '#' | '%' => self.modified(start, name, operator, false),
            ':' => match self.next() {
                None => Err(self.error(start, "syntax error: missing '}'")),
                Some(operator) => self.modified(start, name, operator, true),
            },
            '/' => self.replaced(start, name),
            other => Err(self.unsupported(start, &other.to_string())),
        }
    }

    fn unsupported(&self, start: usize, modifier: &str) -> ExpandError {
        self.error(start, format!("unsupported modifier ({modifier}) in substitution"))
    }

    /// Behind `${name-`; with `colon` behind `${name:-`.
    fn modified(
        &mut self,
        start: usize,
        name: &str,
        operator: char,
        colon: bool,
    ) -> Result<String, ExpandError> {
        let modifier = if colon { format!(":{operator}") } else { operator.to_string() };
        let trims = matches!(operator, '#' | '%');
        if colon && trims {
            return Err(self.unsupported(start, &modifier));
        }
        let word = self.part(start, '}', trims, "syntax error: missing '}'")?;
        let value = self.look_up(name);
        if value.is_none() && self.mode.keep_unset {
            return Ok(format!("${{{name}{modifier}{word}}}"));
        }
        // With a colon, empty counts as unset.
        let usable = value.as_deref().filter(|value| !(colon && value.is_empty()));
        match operator {
            '-' => Ok(usable.map_or(word, str::to_owned)),
            '+' => Ok(if usable.is_some() { word } else { String::new() }),
            '?' => match usable {
                Some(value) => Ok(value.to_owned()),
                None if !word.is_empty() => Err(self.error(start, format!("{name}: {word}"))),
                None => {
                    let state = if value.is_none() { "unset" } else { "empty" };
                    Err(self.error(start, format!("{name}: is not allowed to be {state}")))
                }
            },
            '#' | '%' => {
                let (pattern, reach) = match word.strip_prefix(operator) {
                    Some(pattern) => (pattern, Reach::Longest),
                    None => (word.as_str(), Reach::Shortest),
                };
                let trim = if operator == '#' { trim_prefix } else { trim_suffix };
                trim(value.as_deref().unwrap_or_default(), pattern, reach)
                    .map_err(|why| self.invalid_pattern(start, pattern, &why))
            }
            _ => Err(self.unsupported(start, &modifier)),
        }
    }

    /// Behind `${name/`.
    fn replaced(&mut self, start: usize, name: &str) -> Result<String, ExpandError> {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let pattern = self.part(start, '/', true, "syntax error: missing '/' in ${}")?;
        let replacement = self.part(start, '}', true, "syntax error: missing '}'")?;
        let value = self.look_up(name);
        if value.is_none() && self.mode.keep_unset {
            // With one slash even when two were written, as BuildKit has it.
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let value = value.unwrap_or_default();
        let replaced = if all {
            replace_all(&value, &pattern, &replacement, MAX_LENGTH)
        } else {
            replace_first(&value, &pattern, &replacement)
        };
        replaced.map_err(|why| self.invalid_pattern(start, &pattern, &why))
    }

    fn invalid_pattern(&self, start: usize, pattern: &str, why: &str) -> ExpandError {
        self.error(start, format!("invalid pattern ({pattern}) in substitution: {why}"))
    }

    /// The text up to `stop`, with or without its escapes; `missing` is the error when the end comes first.
    fn part(
        &mut self,
        start: usize,
        stop: char,
        keep_escapes: bool,
        missing: &str,
    ) -> Result<String, ExpandError> {
        let before = std::mem::replace(&mut self.mode.keep_escapes, keep_escapes);
        let part = self.until(Some(stop), None);
        self.mode.keep_escapes = before;
        part.map_err(|error| {
            let too_much = self.depth > MAX_DEPTH || self.substituted > MAX_LENGTH;
            if self.peek().is_none() && !too_much { self.error(start, missing) } else { error }
        })
    }

    /// A name: digits, one special character, or letters, digits and `_`. Empty when there is none.
    fn name(&mut self) -> &'a str {
        let rest = self.rest();
        let length = match rest.chars().next() {
            Some(c) if is_digit(c) => rest.find(|c| !is_digit(c)).unwrap_or(rest.len()),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => 1,
            _ => rest.find(|c: char| !c.is_alphabetic() && !is_digit(c) && c != '_').unwrap_or(rest.len()),
        };
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }

    fn look_up(&mut self, name: &str) -> Option<String> {
        let value = (self.env)(name);
        let names = if value.is_some() { &mut self.used } else { &mut self.unmatched };
        names.add(name);
        value
    }
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && c.is_numeric())
}
