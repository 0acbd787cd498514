//! Paths in Dockerfiles, lexically, as Go's `path` and BuildKit's `system` package treat them. The operating system
//! is the image's, never the host's.

/// Go's `path.Clean`.
pub(crate) fn clean(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut out: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if out.last().is_some_and(|last| *last != "..") {
                    out.pop();
                } else if !absolute {
                    out.push("..");
                }
            }
            part => out.push(part),
        }
    }
    let joined = out.join("/");
    match (absolute, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Go's `path.Join` of two.
pub(crate) fn join(a: &str, b: &str) -> String {
    match (a.is_empty(), b.is_empty()) {
        (true, true) => String::new(),
        (true, false) => clean(b),
        (false, true) => clean(a),
        (false, false) => clean(&format!("{a}/{b}")),
    }
}

/// Go's `path.Base`.
pub(crate) fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return "/";
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed)
}

/// `/`-separated, and without `C:` for Windows images.
///
/// # Errors
/// A Windows path on another drive, a UNC path, or a drive without a path.
pub(crate) fn system_path(path: &str, os: &str, keep_slash: bool) -> Result<String, &'static str> {
    if os != "windows" {
        return Ok(path.to_owned());
    }
    let path = path.replace('\\', "/");
    if path.len() == 2 && path.ends_with(':') {
        return Err("it names a drive and no path");
    }
    if path.starts_with("//") {
        return Err("UNC paths are not supported");
    }
    let rest = match path.split_once(':') {
        None => path.as_str(),
        Some((drive, rest)) if drive.eq_ignore_ascii_case("c") => rest,
        Some(_) => return Err("it is not on the system drive (C:)"),
    };
    let mut out = clean(rest);
    if keep_slash && out.len() > 1 && rest.ends_with('/') {
        out.push('/');
    }
    Ok(out)
}

/// `path` seen from `parent`, absolute. An absolute path is left as it is; the result of joining is clean. With
/// `keep_slash` a final `/` or `/.` of `path` survives.
///
/// # Errors
/// As [`system_path`].
pub(crate) fn normalize(
    parent: &str,
    path: &str,
    os: &str,
    keep_slash: bool,
) -> Result<String, &'static str> {
    let mut parent = system_path(if parent.is_empty() { "/" } else { parent }, os, keep_slash)?;
    if !parent.starts_with('/') {
        parent = join("/", &parent);
    }
    let written = if os == "windows" { path.replace('\\', "/") } else { path.to_owned() };
    let mut out = system_path(if written.is_empty() { &parent } else { &written }, os, keep_slash)?;
    if !out.starts_with('/') {
        out = join(&parent, &out);
    }
    if keep_slash {
        if written.ends_with('/') && !out.ends_with('/') {
            out.push('/');
        } else if written.ends_with("/.") {
            if out != "/" {
                out.push('/');
            }
            out.push('.');
        }
    }
    Ok(out)
}

/// What LLB's client does to a path of a file action: cleaned and absolute, a final `/` or `/.` kept on request.
pub(crate) fn action_path(path: &str, keep_slash: bool) -> String {
    let mut out = clean(path);
    if !out.starts_with('/') {
        out = join("/", &out);
    }
    if keep_slash {
        if path.ends_with('/') && !out.ends_with('/') {
            out.push('/');
        } else if path.ends_with("/.") {
            if out != "/" {
                out.push('/');
            }
            out.push('.');
        }
    }
    out
}

/// Whether a path has `*`, `?` or `[` that is not escaped.
pub(crate) fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => {
                chars.next();
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_as_go_does() {
        for (path, want) in [
            ("", "."),
            ("/", "/"),
            ("a/../..", ".."),
            ("/a/../..", "/"),
            ("a//b/./c/", "a/b/c"),
            ("/a/b/..", "/a"),
            ("../x", "../x"),
        ] {
            assert_eq!(clean(path), want, "{path}");
        }
        for (path, want) in [("", "."), ("/", "/"), ("a/b/", "b"), ("/x", "x"), ("x", "x")] {
            assert_eq!(base(path), want, "{path}");
        }
        assert_eq!(join("/", "../x"), "/x");
        assert_eq!(join("", "a"), "a");
    }

    #[test]
    fn joins_to_the_working_directory() {
        for (parent, path, keep, want) in [
            ("/app", "./", true, "/app/"),
            ("/app", "b/", true, "/app/b/"),
            ("/app", "b/.", true, "/app/b/."),
            ("/app", "b/", false, "/app/b"),
            ("", "b", false, "/b"),
            ("app", "app", false, "/app/app"),
            ("/app", "/x//y/", false, "/x//y/"),
            ("/app", "", false, "/app"),
        ] {
            assert_eq!(normalize(parent, path, "linux", keep).as_deref(), Ok(want), "{path}");
        }
        assert_eq!(normalize("C:\\app", "x\\y", "windows", false).as_deref(), Ok("/app/x/y"));
        assert!(normalize("/", "D:\\x", "windows", false).is_err());
        assert_eq!(action_path("/x//y/", true), "/x/y/");
        assert_eq!(action_path("/a/./.", true), "/a/.");
        assert_eq!(action_path("//", true), "/");
    }

    #[test]
    fn wildcards_can_be_escaped() {
        assert!(has_wildcards("a*") && has_wildcards("[x") && has_wildcards("a/?"));
        assert!(!has_wildcards("a\\*b") && !has_wildcards("plain"));
    }
}
