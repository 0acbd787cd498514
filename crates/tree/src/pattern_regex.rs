//! The regular expressions that ignore patterns become, in the small part of Go's syntax that can occur: literals,
//! classes, `[...]*`, `.*` and `(.*/)?`. Their own engine, since patterns with odd classes (`[*]`, `[a&&b]`) must
//! mean what they mean in Go, and names need not be UTF-8. Time is bounded by pattern times name.

use crate::glob::decode;
use crate::pattern::is_below;

/// A compiled expression, anchored at both ends: a list of states, each with what it does with one character.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    states: Vec<State>,
    /// What every match starts and ends with: refuses most names at once.
    prefix: Vec<u8>,
    suffix: Vec<u8>,
}

#[derive(Clone, Debug)]
enum State {
    Char(char),
    One(Class),
    /// `[...]*`
    Many(Class),
    /// `.*`: no newline.
    All,
    /// `(.*/)?` before its first character; the state after it is its inside.
    Directories,
    /// `(.*/)?` after its first character.
    Inside,
    /// `^` inside: matches only at the start.
    Start,
}

#[derive(Clone, Debug, Default)]
struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    fn has(&self, c: char) -> bool {
        self.ranges.iter().any(|(low, high)| *low <= c && c <= *high) != self.negated
    }
}

impl Program {
    pub(crate) fn new(regex: &str) -> Result<Self, &'static str> {
        const MOST: usize = 4096;
        let states = Parser { rest: regex }.states()?;
        if states.len() > MOST {
            return Err("the pattern is too long");
        }
        let prefix: String = states.iter().map_while(State::literal).collect();
        let mut suffix: Vec<char> = states.iter().rev().map_while(State::literal).collect();
        suffix.reverse();
        let suffix: String = suffix.into_iter().collect();
        Ok(Self { states, prefix: prefix.into_bytes(), suffix: suffix.into_bytes() })
    }

    pub(crate) fn matches(&self, name: &[u8]) -> bool {
        if !name.starts_with(&self.prefix) || !name.ends_with(&self.suffix) {
            return false;
        }
        let mut now = Active::new(self.states.len() + 1);
        let mut next = Active::new(self.states.len() + 1);
        self.enter(0, true, &mut now);
        let mut rest = name;
        while let Some((c, after)) = decode(rest) {
            next.clear();
            for &state in &now.list {
                self.step(state, c, &mut next);
            }
            if next.list.is_empty() {
                return false;
            }
            std::mem::swap(&mut now, &mut next);
            rest = after;
        }
        now.has(self.states.len())
    }

    /// Marks `state` and all that follows it without a character.
    fn enter(&self, mut state: usize, at_start: bool, active: &mut Active) {
        while active.add(state) {
            state += match self.states.get(state) {
                Some(State::Many(_) | State::All) => 1,
                Some(State::Directories) => 2,
                Some(State::Start) if at_start => 1,
                _ => return,
            };
        }
    }

    fn step(&self, state: usize, c: char, next: &mut Active) {
        match self.states.get(state) {
            Some(State::Char(want)) if *want == c => self.enter(state + 1, false, next),
            Some(State::One(class)) if class.has(c) => self.enter(state + 1, false, next),
            Some(State::Many(class)) if class.has(c) => self.enter(state, false, next),
            Some(State::All) if c != '\n' => self.enter(state, false, next),
            Some(State::Directories) if c != '\n' => {
                self.enter(state + 1, false, next);
                if c == '/' {
                    self.enter(state + 2, false, next);
                }
            }
            Some(State::Inside) if c != '\n' => {
                self.enter(state, false, next);
                if c == '/' {
                    self.enter(state + 1, false, next);
                }
            }
            _ => {}
        }
    }

    /// Whether it can match something below `dir`; may say yes where it cannot.
    pub(crate) fn may_match_below(&self, dir: &[u8]) -> bool {
        let compatible = if self.prefix.len() <= dir.len() {
            dir.starts_with(&self.prefix)
        } else {
            is_below(&self.prefix, dir)
        };
        compatible && self.depth().is_none_or(|depth| depth > dir.iter().filter(|c| **c == b'/').count())
    }

    /// The number of slashes in all it matches, where that is fixed.
    fn depth(&self) -> Option<usize> {
        self.states.iter().try_fold(0, |depth, state| match state {
            State::Char(c) => Some(depth + usize::from(*c == '/')),
            State::One(class) | State::Many(class) if !class.has('/') => Some(depth),
            State::Start => Some(depth),
            State::One(_) | State::Many(_) | State::All | State::Directories | State::Inside => None,
        })
    }
}

impl State {
    fn literal(&self) -> Option<char> {
        match self {
            Self::Char(c) => Some(*c),
            _ => None,
        }
    }
}

/// A set of states that remembers the order of arrival.
struct Active {
    list: Vec<usize>,
    marks: Vec<bool>,
}

impl Active {
    fn new(states: usize) -> Self {
        Self { list: Vec::with_capacity(states.min(16)), marks: vec![false; states] }
    }

    /// Whether it was not there yet.
    fn add(&mut self, state: usize) -> bool {
        match self.marks.get_mut(state) {
            Some(mark) if !*mark => {
                *mark = true;
                self.list.push(state);
                true
            }
            _ => false,
        }
    }

    fn has(&self, state: usize) -> bool {
        self.marks.get(state) == Some(&true)
    }

    fn clear(&mut self) {
        for state in self.list.drain(..) {
            if let Some(mark) = self.marks.get_mut(state) {
                *mark = false;
            }
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn states(&mut self) -> Result<Vec<State>, &'static str> {
        let mut states = Vec::new();
        while let Some(c) = self.next() {
            let state = match c {
                '^' => State::Start,
                '(' if self.eat(".*/)?") => {
                    states.push(State::Directories);
                    State::Inside
                }
                '.' if self.eat("*") => State::All,
                '[' => {
                    let class = self.class()?;
                    if self.eat("*") { State::Many(class) } else { State::One(class) }
                }
                '\\' => match self.escape()? {
                    Escape::Char(c) => State::Char(c),
                    Escape::Class(class) => State::One(class),
                },
                c => State::Char(c),
            };
            states.push(state);
        }
        Ok(states)
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = self.rest.get(c.len_utf8()..).unwrap_or_default();
        Some(c)
    }

    fn eat(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn class(&mut self) -> Result<Class, &'static str> {
        const OPEN: &str = "\"[\" without \"]\"";
        let mut class = Class { negated: self.eat("^"), ranges: Vec::new() };
        let mut first = true;
        loop {
            if !first && self.eat("]") {
                return Ok(class);
            }
            first = false;
            if let Some(after) = self.rest.strip_prefix("[:")
                && let Some((name, rest)) = after.split_once(":]")
            {
                let (negated, name) = name.strip_prefix('^').map_or((false, name), |name| (true, name));
                let ranges = posix(name).ok_or("unknown class \"[:name:]\"")?;
                self.rest = rest;
                class.ranges.extend(if negated { complement(ranges) } else { ranges.to_vec() });
                continue;
            }
            let low = match self.class_char(OPEN)? {
                Escape::Char(c) => c,
                Escape::Class(inner) => {
                    class.ranges.extend(if inner.negated { complement(&inner.ranges) } else { inner.ranges });
                    continue;
                }
            };
            let ranged = self.rest.starts_with('-') && self.rest.len() > 1 && !self.rest.starts_with("-]");
            let high = if ranged {
                self.next();
                match self.class_char(OPEN)? {
                    Escape::Char(c) => c,
                    Escape::Class(_) => return Err("a range in \"[...]\" ends with a class"),
                }
            } else {
                low
            };
            if high < low {
                return Err("a range in \"[...]\" is reversed");
            }
            class.ranges.push((low, high));
        }
    }

    fn class_char(&mut self, open: &'static str) -> Result<Escape, &'static str> {
        match self.next() {
            None => Err(open),
            Some('\\') => self.escape(),
            Some(c) => Ok(Escape::Char(c)),
        }
    }

    /// Letters have meanings in Go's expressions, and so they have in moby's patterns.
    fn escape(&mut self) -> Result<Escape, &'static str> {
        let class =
            |negated, ranges: &[(char, char)]| Escape::Class(Class { negated, ranges: ranges.to_vec() });
        Ok(match self.next() {
            None => return Err("nothing follows the last \"\\\""),
            Some(c @ ('d' | 'D')) => class(c == 'D', DIGIT),
            Some(c @ ('s' | 'S')) => class(c == 'S', PERL_SPACE),
            Some(c @ ('w' | 'W')) => class(c == 'W', WORD),
            Some('a') => Escape::Char('\x07'),
            Some('f') => Escape::Char('\x0c'),
            Some('n') => Escape::Char('\n'),
            Some('r') => Escape::Char('\r'),
            Some('t') => Escape::Char('\t'),
            Some('v') => Escape::Char('\x0b'),
            Some(c) if c.is_ascii_alphanumeric() => return Err("letters and digits need no \"\\\""),
            Some(c) => Escape::Char(c),
        })
    }
}

enum Escape {
    Char(char),
    Class(Class),
}

const DIGIT: &[(char, char)] = &[('0', '9')];
const PERL_SPACE: &[(char, char)] = &[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')];
const WORD: &[(char, char)] = &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];

fn posix(name: &str) -> Option<&'static [(char, char)]> {
    Some(match name {
        "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
        "alpha" => &[('A', 'Z'), ('a', 'z')],
        "ascii" => &[('\0', '\x7f')],
        "blank" => &[('\t', '\t'), (' ', ' ')],
        "cntrl" => &[('\0', '\x1f'), ('\x7f', '\x7f')],
        "digit" => DIGIT,
        "graph" => &[('!', '~')],
        "lower" => &[('a', 'z')],
        "print" => &[(' ', '~')],
        "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
        "space" => &[('\t', '\r'), (' ', ' ')],
        "upper" => &[('A', 'Z')],
        "word" => WORD,
        "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
        _ => return None,
    })
}

/// All characters but these, which ascend.
fn complement(ranges: &[(char, char)]) -> Vec<(char, char)> {
    let mut out = Vec::new();
    let mut next = Some('\0');
    for (low, high) in ranges {
        if let Some(start) = next
            && start < *low
            && let Some(before) = (start..*low).next_back()
        {
            out.push((start, before));
        }
        next = (*high..=char::MAX).nth(1);
    }
    out.extend(next.map(|start| (start, char::MAX)));
    out
}
