//! Git URLs as Dockerfiles and contexts write them: which texts are git at all, and what their fragment
//! (`#ref:subdir`) or query (`?branch=…`) asks for. Fetches nothing.

use rbuild_graph::GitSource;

use crate::{GitFacts, GitQuery, MainContext};

/// A git repository and what is wanted of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GitUrl {
    /// The repository, without fragment and query.
    pub(crate) remote: String,
    /// Branch, tag or commit; empty is the default branch.
    pub(crate) reference: String,
    /// Directory inside; empty is the root.
    pub(crate) subdir: String,
    /// The commit it must be, or a prefix of it.
    pub(crate) checksum: String,
    /// `keep-git-dir`.
    pub(crate) keep_git_dir: Option<bool>,
    /// `submodules`.
    pub(crate) submodules: Option<bool>,
}

/// What a text is.
pub(crate) enum Parsed {
    /// No git URL.
    No,
    /// A git URL.
    Yes(GitUrl),
    /// A git URL that asks for something impossible.
    Bad(String),
}

/// Reads a source of `ADD`. `known` says that a flag marks it as git, so that an HTTP URL needs no `.git`.
pub(crate) fn parse(text: &str, known: bool) -> Parsed {
    if text.starts_with("./") || text.starts_with("../") {
        return Parsed::No;
    }
    let (remote, query, fragment) = match text.split_once("://") {
        Some((scheme, _)) if is_scheme(scheme) => {
            let scheme = scheme.to_ascii_lowercase();
            if !matches!(scheme.as_str(), "http" | "https" | "ssh" | "git") {
                return Parsed::No;
            }
            let (rest, fragment) = cut(text, '#');
            let (remote, query) = cut(rest, '?');
            if scheme.starts_with("http") && !known && !remote.ends_with(".git") {
                return Parsed::No;
            }
            (remote, query, fragment)
        }
        Some(_) => return Parsed::No,
        None => {
            let (remote, fragment) = cut(text, '#');
            if !is_scp_style(remote) {
                return Parsed::No;
            }
            let (remote, query) = cut(remote, '?');
            (remote, query, fragment)
        }
    };
    let mut out = GitUrl { remote: remote.to_owned(), ..GitUrl::default() };
    if let Some((reference, subdir)) = fragment.split_once(':') {
        out.reference = percent_decode(reference);
        out.subdir = percent_decode(subdir);
    } else {
        out.reference = percent_decode(fragment);
    }
    match load_query(&mut out, query) {
        Ok(()) => Parsed::Yes(out),
        Err(reason) => Parsed::Bad(reason),
    }
}

impl GitUrl {
    /// What must be known of it.
    pub(crate) fn query(&self, committed: bool) -> GitQuery {
        GitQuery { url: self.remote.clone(), reference: self.reference.clone(), committed }
    }

    /// An error if the reference is not what the address pins.
    pub(crate) fn check(&self, facts: &GitFacts) -> Result<(), String> {
        let matches = |id: &str| id.starts_with(&self.checksum);
        if matches(&facts.commit) || facts.tag_object.as_deref().is_some_and(matches) {
            return Ok(());
        }
        Err(format!("the commit of {} is {}, not {}", self.remote, facts.commit, self.checksum))
    }

    /// The source, once it is known what the reference means.
    pub(crate) fn source(&self, facts: &GitFacts) -> GitSource {
        let keep_git_dir = self.keep_git_dir.unwrap_or(false);
        // Who keeps `.git` gets the tag, not only what it points to.
        let tag = facts.tag_object.as_ref().filter(|_| keep_git_dir);
        GitSource {
            url: self.remote.clone(),
            reference: facts.name.clone(),
            subdir: self.subdir.clone(),
            commit: tag.unwrap_or(&facts.commit).clone(),
            keep_git_dir,
            skip_submodules: self.submodules == Some(false),
        }
    }
}

/// A main context in a git repository, for who must read the Dockerfile in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitContext(GitUrl);

impl GitContext {
    /// Reads the address of a context; `keep_git_dir` where it does not say itself whether to keep `.git`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, keep_git_dir: bool) -> Result<Self, String> {
        match parse(text, true) {
            Parsed::Yes(mut url) => {
                url.keep_git_dir.get_or_insert(keep_git_dir);
                Ok(Self(url))
            }
            Parsed::No => Err("it is no git address".to_owned()),
            Parsed::Bad(reason) => Err(reason),
        }
    }

    /// What must be known.
    #[must_use]
    pub fn query(&self) -> GitQuery {
        self.0.query(false)
    }

    /// The source that lowering will use.
    ///
    /// # Errors
    /// If the reference is not the commit that the address pins.
    pub fn source(&self, facts: &GitFacts) -> Result<GitSource, String> {
        self.0.check(facts)?;
        Ok(self.0.source(facts))
    }
}

/// What the address of a context means, by its form: a git repository or something on the web; `None` is a local path.
#[must_use]
pub fn remote_context(text: &str) -> Option<MainContext> {
    // The form that early Docker clients had.
    if text.starts_with("github.com/") {
        return Some(MainContext::Git(format!("https://{text}")));
    }
    match parse(text, false) {
        Parsed::No if is_http(text) => Some(MainContext::Http(text.to_owned())),
        Parsed::No => None,
        Parsed::Yes(_) | Parsed::Bad(_) => Some(MainContext::Git(text.to_owned())),
    }
}

/// Whether `ADD` takes the text from the web: `http://` or `https://`, and not git.
pub(crate) fn is_http(text: &str) -> bool {
    (text.starts_with("http://") || text.starts_with("https://")) && matches!(parse(text, false), Parsed::No)
}

fn cut(text: &str, at: char) -> (&str, &str) {
    text.split_once(at).unwrap_or((text, ""))
}

fn is_scheme(scheme: &str) -> bool {
    !scheme.is_empty()
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '+')
}

/// `user@host:path`, the form of ssh.
fn is_scp_style(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else { return false };
    let Some((host, path)) = rest.split_once(':') else { return false };
    let name = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    name(user) && name(host) && !path.is_empty()
}

fn load_query(out: &mut GitUrl, query: &str) -> Result<(), String> {
    let (mut tag, mut branch) = (String::new(), String::new());
    let mut seen: Vec<String> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (percent_decode(key), percent_decode(value));
        if seen.contains(&key) {
            return Err(format!("its query gives {key:?} more than once"));
        }
        if value.is_empty() && !matches!(key.as_str(), "submodules" | "keep-git-dir") {
            return Err(format!("its query gives {key:?} no value"));
        }
        let flag = |value: &str| {
            if value.is_empty() { Some(true) } else { crate::gotext::parse_bool(value) }
        };
        match key.as_str() {
            "ref" => agree("ref", &mut out.reference, &value)?,
            "subdir" => agree("subdir", &mut out.subdir, &value)?,
            "tag" => tag.clone_from(&value),
            "branch" => branch.clone_from(&value),
            "checksum" | "commit" => out.checksum.clone_from(&value),
            "keep-git-dir" => {
                out.keep_git_dir =
                    Some(flag(&value).ok_or_else(|| format!("invalid keep-git-dir value {value:?}"))?);
            }
            "submodules" => {
                out.submodules =
                    Some(flag(&value).ok_or_else(|| format!("invalid submodules value {value:?}"))?);
            }
            "mtime" if value == "checkout" => {}
            "mtime" | "fetch-by-commit" => {
                return Err(format!("its query asks for {key:?}, which is not supported"));
            }
            _ => return Err(format!("its query has an unknown key {key:?}")),
        }
        seen.push(key);
    }
    if !tag.is_empty() && !branch.is_empty() {
        return Err("its query gives both a branch and a tag".to_owned());
    }
    if !tag.is_empty() {
        agree("ref", &mut out.reference, &prefixed("refs/tags/", &tag))?;
    }
    if !branch.is_empty() {
        agree("ref", &mut out.reference, &prefixed("refs/heads/", &branch))?;
    }
    if out.reference.is_empty() {
        out.reference.clone_from(&out.checksum);
    }
    Ok(())
}

fn agree(what: &str, slot: &mut String, value: &str) -> Result<(), String> {
    if !slot.is_empty() && slot != value {
        return Err(format!("it gives two {what}s: {slot:?} and {value:?}"));
    }
    value.clone_into(slot);
    Ok(())
}

fn prefixed(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

/// `%2F` → `/`; what is no escape stays.
pub(crate) fn percent_decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(byte) = bytes.get(i) {
        let decoded = (*byte == b'%')
            .then(|| text.get(i + 1..i + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok()))
            .flatten();
        out.push(decoded.unwrap_or(*byte));
        i += if decoded.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        match parse(text, false) {
            Parsed::No => "no".to_owned(),
            Parsed::Bad(reason) => format!("bad: {reason}"),
            Parsed::Yes(url) => {
                let mut out = format!("{} ref={} dir={}", url.remote, url.reference, url.subdir);
                for (name, value) in [("keep", url.keep_git_dir), ("submodules", url.submodules)] {
                    if let Some(value) = value {
                        out.push_str(&format!(" {name}={value}"));
                    }
                }
                if !url.checksum.is_empty() {
                    out.push_str(&format!(" checksum={}", url.checksum));
                }
                out
            }
        }
    }

    #[test]
    fn tells_git_from_everything_else() {
        for (text, want) in [
            ("https://h/o/r.git", "https://h/o/r.git ref= dir="),
            ("https://h/o/r.git#main:a/b", "https://h/o/r.git ref=main dir=a/b"),
            ("https://h/o/r.git?branch=dev&subdir=x", "https://h/o/r.git ref=refs/heads/dev dir=x"),
            ("https://h/r.git?tag=v1&keep-git-dir", "https://h/r.git ref=refs/tags/v1 dir= keep=true"),
            (
                "https://h/r.git?commit=abc&submodules=0",
                "https://h/r.git ref=abc dir= submodules=false checksum=abc",
            ),
            ("git@h:o/r.git#v1", "git@h:o/r.git ref=v1 dir="),
            ("ssh://git@h/o/r", "ssh://git@h/o/r ref= dir="),
            ("git://h/r#:sub", "git://h/r ref= dir=sub"),
            ("https://h/o/r.tar.gz", "no"),
            ("https://h/o/r", "no"),
            ("./a@b:c", "no"),
            ("a/b@c", "no"),
            ("github.com/o/r", "no"),
            ("https://h/r.git?tag=a&branch=b", "bad: its query gives both a branch and a tag"),
            ("https://h/r.git?x=1", "bad: its query has an unknown key \"x\""),
            ("https://h/r.git?ref=a&ref=b", "bad: its query gives \"ref\" more than once"),
            ("https://h/r.git?ref=a#b", "bad: it gives two refs: \"b\" and \"a\""),
        ] {
            assert_eq!(show(text), want, "{text}");
        }
        assert!(is_http("https://h/a.tar") && !is_http("https://h/a.git") && !is_http("a"));
        assert!(matches!(parse("https://h/o/r", true), Parsed::Yes(_)));
    }
}
