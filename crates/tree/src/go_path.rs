//! Go's `path` functions on slash paths, where BuildKit's behaviour (and so its cache keys) rests on them.
//! Lexical only.

/// `path.Clean`: the shortest equal path; empty is `.`; `..` at the root goes away, elsewhere it stays.
#[must_use]
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// `path.Join`: the parts that are not empty with slashes between them, cleaned; no parts are the empty path.
#[must_use]
pub fn join(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { String::new() } else { clean(&parts.join("/")) }
}

/// `path.Base`: the last element without trailing slashes; empty is `.`, only slashes are `/`.
#[must_use]
pub fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    match path.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed.rsplit('/').next().unwrap_or(trimmed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_in_go() {
        for (path, want) in [
            ("", "."),
            ("abc//def//", "abc/def"),
            ("abc/./../def", "def"),
            ("../../abc", "../../abc"),
            ("abc/../../././../def", "../../def"),
            ("/../abc", "/abc"),
            ("/", "/"),
            ("/a/..", "/"),
            ("..", ".."),
        ] {
            assert_eq!(clean(path), want, "{path}");
        }
        for (path, want) in [("", "."), ("/", "/"), ("//", "/"), ("a/b/", "b"), ("/x", "x"), ("a", "a")] {
            assert_eq!(base(path), want, "{path}");
        }
        assert_eq!(join(&["/", "a/../b", ""]), "/b");
        assert_eq!(join(&["", ""]), "");
        assert_eq!(join(&["/", ""]), "/");
    }
}
