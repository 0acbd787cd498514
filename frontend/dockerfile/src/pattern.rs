//! The patterns of `${name#p}`, `${name%p}` and `${name/p/r}`: `*`, `?` and literals, no brackets. `*` and `?`
//! do not match a line break. Matching takes time in proportion to pattern × text, whatever the pattern.

/// How far `*` reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// As little as possible.
    Shortest,
    /// As much as possible.
    Longest,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Literal(char),
    One,
    Many,
}

/// A pattern that was understood.
#[derive(Debug)]
pub(crate) struct Pattern {
    tokens: Vec<Token>,
    reach: Reach,
}

impl Pattern {
    /// Reads `pattern`; the error says what is wrong with it.
    pub(crate) fn new(pattern: &str, reach: Reach) -> Result<Self, String> {
        // BuildKit's scanner drops a byte order mark in front.
        let pattern = pattern.strip_prefix('\u{feff}').unwrap_or(pattern);
        let mut tokens = Vec::with_capacity(pattern.len());
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            let token = match c {
                // Two stars in a row match what one matches.
                '*' if tokens.last() == Some(&Token::Many) => continue,
                '*' => Token::Many,
                '?' => Token::One,
                // `}` and `/` must be escaped because of where the pattern stands, not because of what they are.
                '\\' if matches!(chars.peek(), Some('}' | '/')) => continue,
                '\\' => match chars.next() {
                    Some(escaped @ ('*' | '?' | '\\')) => Token::Literal(escaped),
                    Some(other) => return Err(format!("invalid escape '\\{other}'")),
                    None => return Err("it ends in the middle of an escape".to_owned()),
                },
                other => Token::Literal(other),
            };
            tokens.push(token);
        }
        Ok(Self { tokens, reach })
    }

    /// How many bytes at the start of `text` match.
    pub(crate) fn prefix(&self, text: &str) -> Option<usize> {
        self.run(text, 0, true).map(|(_, end)| end)
    }

    /// The first match at or after `from`.
    pub(crate) fn find(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        self.run(text, from, false)
    }

    /// Walks all possibilities at once, the preferred ones first; a match cuts off what is less preferred.
    fn run(&self, text: &str, from: usize, anchored: bool) -> Option<(usize, usize)> {
        let mut found = None;
        let mut now = Threads::new(self.tokens.len() + 1);
        let mut next = Threads::new(self.tokens.len() + 1);
        if anchored {
            self.enter(&mut now, 0, from);
        }
        let mut chars = text.get(from..)?.char_indices();
        loop {
            let (at, c) = match chars.next() {
                Some((offset, c)) => (from + offset, Some(c)),
                None => (text.len(), None),
            };
            if !anchored && found.is_none() {
                self.enter(&mut now, 0, at);
            }
            if now.list.is_empty() {
                return found;
            }
            for &(state, start) in &now.list {
                let Some(&token) = self.tokens.get(state) else {
                    found = Some((start, at));
                    break;
                };
                match (token, c) {
                    (Token::Literal(wanted), Some(c)) if wanted == c => {
                        self.enter(&mut next, state + 1, start)
                    }
                    (Token::One, Some(c)) if c != '\n' => self.enter(&mut next, state + 1, start),
                    (Token::Many, Some(c)) if c != '\n' => self.enter(&mut next, state, start),
                    _ => {}
                }
            }
            if c.is_none() {
                return found;
            }
            std::mem::swap(&mut now, &mut next);
            next.clear();
        }
    }

    /// Adds a state; a star is also the state after it, before or after itself according to its reach.
    fn enter(&self, threads: &mut Threads, state: usize, start: usize) {
        match (self.tokens.get(state), self.reach) {
            (Some(Token::Many), Reach::Longest) => {
                threads.add(state, start);
                threads.add(state + 1, start);
            }
            (Some(Token::Many), Reach::Shortest) => {
                threads.add(state + 1, start);
                threads.add(state, start);
            }
            _ => threads.add(state, start),
        }
    }
}

/// States in order of preference, each once.
struct Threads {
    list: Vec<(usize, usize)>,
    present: Vec<bool>,
}

impl Threads {
    fn new(states: usize) -> Self {
        Self { list: Vec::new(), present: vec![false; states] }
    }

    fn add(&mut self, state: usize, start: usize) {
        if let Some(present) = self.present.get_mut(state)
            && !*present
        {
            *present = true;
            self.list.push((state, start));
        }
    }

    fn clear(&mut self) {
        for &(state, _) in &self.list {
            if let Some(present) = self.present.get_mut(state) {
                *present = false;
            }
        }
        self.list.clear();
    }
}

/// `value` without what `pattern` matches at its start.
pub(crate) fn trim_prefix(value: &str, pattern: &str, reach: Reach) -> Result<String, String> {
    let end = Pattern::new(pattern, reach)?.prefix(value).unwrap_or(0);
    Ok(value.get(end..).unwrap_or_default().to_owned())
}

/// `value` without what `pattern` matches at its end: both are read backwards.
pub(crate) fn trim_suffix(value: &str, pattern: &str, reach: Reach) -> Result<String, String> {
    let backwards: String = value.chars().rev().collect();
    let rest = trim_prefix(&backwards, &reversed_pattern(pattern), reach)?;
    Ok(rest.chars().rev().collect())
}

/// The pattern backwards, escapes kept in front of what they escape.
fn reversed_pattern(pattern: &str) -> String {
    let mut out = Vec::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => {
                out.extend(chars.next());
                out.push('\\');
            }
            (c, false) => out.push(c),
        }
    }
    out.iter().rev().collect()
}

/// `value` with the first match replaced, literally.
pub(crate) fn replace_first(value: &str, pattern: &str, replacement: &str) -> Result<String, String> {
    let pattern = Pattern::new(pattern, Reach::Longest)?;
    Ok(match pattern.find(value, 0) {
        Some((start, end)) => [&value[..start], replacement, &value[end..]].concat(),
        None => value.to_owned(),
    })
}

/// `value` with every match replaced; `$0` in `replacement` is the match, `$$` is `$`, other references are
/// empty, for BuildKit hands the replacement to a regular expression library as a template.
pub(crate) fn replace_all(
    value: &str,
    pattern: &str,
    replacement: &str,
    limit: usize,
) -> Result<String, String> {
    let pattern = Pattern::new(pattern, Reach::Longest)?;
    let mut out = String::with_capacity(value.len());
    let (mut last_end, mut search) = (0, 0);
    while let Some((start, end)) = pattern.find(value, search) {
        out.push_str(&value[last_end..start]);
        // No replacement for an empty match right behind another match.
        if end > last_end || start == 0 {
            push_template(&mut out, replacement, &value[start..end]);
        }
        if out.len() > limit {
            return Err("the result is too long".to_owned());
        }
        last_end = end;
        let step = value[search..].chars().next().map_or(1, char::len_utf8);
        search = end.max(search + step);
        if search > value.len() {
            break;
        }
    }
    out.push_str(&value[last_end..]);
    Ok(out)
}

fn push_template(out: &mut String, template: &str, matched: &str) {
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = reference(rest) {
            if name == "0" {
                out.push_str(matched);
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
}

/// The name of `name…` or `{name}…` and what follows it.
fn reference(text: &str) -> Option<(&str, &str)> {
    let (body, braced) = match text.strip_prefix('{') {
        Some(body) => (body, true),
        None => (text, false),
    };
    let end = body.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(body.len());
    let (name, after) = body.split_at(end);
    let after = if braced { after.strip_prefix('}')? } else { after };
    (!name.is_empty()).then_some((name, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trims_shortest_and_longest() {
        let cases = [
            ("a.b.c", "*.", Reach::Shortest, "b.c", "a.b.c"),
            ("a.b.c", "*.", Reach::Longest, "c", "a.b.c"),
            ("a.b.c", ".*", Reach::Shortest, "a.b.c", "a.b"),
            ("a.b.c", ".*", Reach::Longest, "a.b.c", "a"),
            ("x**", "\\**", Reach::Longest, "x**", "x"),
            ("x**", "\\*", Reach::Shortest, "x**", "x*"),
            ("éa", "?", Reach::Shortest, "a", "é"),
            ("a\nb", "*b", Reach::Longest, "a\nb", "a\n"),
            ("abc", "", Reach::Longest, "abc", "abc"),
            ("abc", "*", Reach::Shortest, "abc", "abc"),
            ("abc", "*", Reach::Longest, "", ""),
        ];
        for (value, pattern, reach, prefix, suffix) in cases {
            assert_eq!(trim_prefix(value, pattern, reach).as_deref(), Ok(prefix), "{value} # {pattern}");
            assert_eq!(trim_suffix(value, pattern, reach).as_deref(), Ok(suffix), "{value} % {pattern}");
        }
    }

    #[test]
    fn replaces() {
        let all = |value, pattern, replacement| replace_all(value, pattern, replacement, 100);
        assert_eq!(all("a/b/c", "\\/", "-").as_deref(), Ok("a-b-c"));
        assert_eq!(all("abcabc", "b", "[$0]").as_deref(), Ok("a[b]ca[b]c"));
        assert_eq!(all("abc", "b", "$1${x}$$$").as_deref(), Ok("a$$c"));
        assert_eq!(all("abc", "", "-").as_deref(), Ok("-a-b-c-"));
        assert_eq!(all("abc", "*", "-").as_deref(), Ok("-"));
        assert_eq!(all("aXbX", "?X", "-").as_deref(), Ok("--"));
        assert!(all("aaaa", "a", &"b".repeat(50)).is_err());
        assert_eq!(replace_first("abcabc", "b*c", "$0").as_deref(), Ok("a$0"));
        assert_eq!(replace_first("abc", "x", "y").as_deref(), Ok("abc"));
        assert_eq!(replace_first("abc", "\\a", "y"), Err("invalid escape '\\a'".to_owned()));
        assert!(replace_first("abc", "a\\", "y").is_err());
    }

    #[test]
    fn many_stars_do_not_explode() {
        let pattern = Pattern::new(&"a*".repeat(200), Reach::Shortest).unwrap();
        assert_eq!(pattern.prefix(&"a".repeat(199)), None);
        assert_eq!(pattern.prefix(&"a".repeat(400)), Some(200));
    }
}
