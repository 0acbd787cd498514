//! What a git server's list of references says, and what of an address may be shown. Pure.

use rbuild_ports::ResolvedGit;

/// Whether the text is a whole object name (SHA-1 or SHA-256).
pub(super) fn is_object_name(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// What `reference` is in the output of `git ls-remote`: the full name below `refs/` first, then a branch, then a tag, as
/// `git checkout` and BuildKit choose.
pub(super) fn choose(listing: &str, reference: &str) -> Option<ResolvedGit> {
    let find = |name: &str| {
        listing.lines().find_map(|line| {
            let (object, listed) = line.split_once('\t')?;
            (listed == name && is_object_name(object)).then_some(object)
        })
    };
    let (name, object) = if reference.is_empty() {
        let branch = listing.lines().find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"));
        (branch.unwrap_or("HEAD").to_owned(), find("HEAD")?)
    } else {
        let under = |prefix: &str| format!("{prefix}{}", reference.strip_prefix(prefix).unwrap_or(reference));
        let (full, branch, tag) = (under("refs/"), under("refs/heads/"), under("refs/tags/"));
        [full, branch, tag].into_iter().find_map(|name| find(&name).map(|object| (name, object)))?
    };
    // An annotated tag is listed a second time, with the commit that it points to.
    let (commit, tag_object) = match find(&format!("{name}^{{}}")) {
        Some(commit) => (commit, Some(object.to_owned())),
        None => (object, None),
    };
    Some(ResolvedGit { name, commit: commit.to_owned(), tag_object })
}

/// The host of an address, with its port: `host` of `user@host:path` too.
pub(super) fn host(url: &str) -> &str {
    let (rest, scp) = match url.split_once("://") {
        Some((_, rest)) => (rest, false),
        None => (url, true),
    };
    let rest = rest.split('/').next().unwrap_or(rest);
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scp { host.split(':').next().unwrap_or(host) } else { host }
}

/// Whether ssh carries it.
pub(super) fn is_ssh(url: &str) -> bool {
    match url.split_once("://") {
        Some((scheme, _)) => scheme.eq_ignore_ascii_case("ssh"),
        None => true,
    }
}

/// The address without user, password and query.
pub(super) fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const C: &str = "cccccccccccccccccccccccccccccccccccccccc";

    #[test]
    fn references_are_chosen_as_git_does() {
        let listing = format!(
            "ref: refs/heads/main\tHEAD\n{A}\tHEAD\n{A}\trefs/heads/main\n{B}\trefs/heads/v1\n{C}\trefs/tags/v1\n\
             {C}\trefs/tags/v2\n{B}\trefs/tags/v2^{{}}\n{C}\trefs/heads/old/main\n{B}\trefs/pull/7/head\n"
        );
        for (reference, name, commit, tag) in [
            ("", "refs/heads/main", A, None),
            ("main", "refs/heads/main", A, None),
            ("refs/heads/main", "refs/heads/main", A, None),
            ("v1", "refs/heads/v1", B, None),
            ("tags/v1", "refs/tags/v1", C, None),
            ("refs/tags/v1", "refs/tags/v1", C, None),
            ("v2", "refs/tags/v2", B, Some(C)),
            ("refs/tags/v2", "refs/tags/v2", B, Some(C)),
            ("old/main", "refs/heads/old/main", C, None),
            ("refs/pull/7/head", "refs/pull/7/head", B, None),
            ("pull/7/head", "refs/pull/7/head", B, None),
        ] {
            let expected = ResolvedGit {
                name: name.to_owned(),
                commit: commit.to_owned(),
                tag_object: tag.map(str::to_owned),
            };
            assert_eq!(choose(&listing, reference), Some(expected), "{reference}");
        }
        for reference in ["mai", "MAIN", "v3", "7/head", A] {
            assert_eq!(choose(&listing, reference), None, "{reference}");
        }
        assert_eq!(choose("", ""), None);
    }

    #[test]
    fn addresses_are_shown_without_secrets() {
        for (url, host_is, shown_is) in [
            ("https://u:p@h.example:8443/a.git?x=y", "h.example:8443", "https://h.example:8443/a.git"),
            ("git@h.example:a/b.git", "h.example", "git@h.example:a/b.git"),
            ("ssh://git@h.example/a", "h.example", "ssh://h.example/a"),
            ("git://h/a", "h", "git://h/a"),
            ("https://h", "h", "https://h"),
        ] {
            assert_eq!(host(url), host_is);
            assert_eq!(shown(url), shown_is);
        }
        assert!(is_ssh("git@h:a") && is_ssh("ssh://h/a") && !is_ssh("https://h/a"));
    }
}
