//! `WWW-Authenticate` headers.

/// One challenge of a `WWW-Authenticate` header.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Challenge {
    /// In lower case.
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads `Bearer realm="…",service="…", Basic realm="…"`. What makes no sense is left out.
pub(super) fn parse_challenges(header: &str) -> Vec<Challenge> {
    let mut out: Vec<Challenge> = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if let Some(value) = after.strip_prefix('=') {
            let (value, after) = parameter_value(value);
            if let Some(challenge) = out.last_mut() {
                challenge.parameters.push((word.to_lowercase(), value));
            }
            rest = after;
        } else {
            if !word.is_empty() {
                out.push(Challenge { scheme: word.to_lowercase(), parameters: vec![] });
            }
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    out
}

/// A quoted or plain value, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push", Basic realm=x"#;
        let challenges = parse_challenges(header);
        assert_eq!(challenges.len(), 2);
        assert_eq!(challenges[0].get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(challenges[0].get("scope"), Some("repository:a:pull,push"));
        assert_eq!((challenges[1].scheme.as_str(), challenges[1].get("realm")), ("basic", Some("x")));
        for strange in ["", ",,,", "=", "\"", "Bearer realm=\"unclosed", "a=b", "Bearer realm=\"a\\"] {
            let _ = parse_challenges(strange);
        }
    }
}
