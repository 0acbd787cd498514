//! Sources of `ADD` that are not files of the context: web addresses and git repositories.

use rbuild_diag::{Span, Spanned};
use rbuild_dockerfile::CopyInstr;
use rbuild_graph::{CopyAction, Edge, Place};

use crate::codes;
use crate::ctx::{At, Ctx};
use crate::fault::Fault;
use crate::git::{self, GitUrl};
use crate::sources::http_file_name;

/// What a source's text names.
pub(crate) enum Kind {
    /// A path.
    Local,
    /// `http://`, `https://`.
    Http,
    /// A git repository.
    Git(GitUrl),
    /// A git repository that cannot be used.
    Bad(String),
}

/// A source that was looked at and found allowed.
pub(crate) enum Remote {
    /// It is a path.
    No,
    /// A web address with the digest its content must have.
    Http(String, Option<rbuild_digest::Digest>),
    /// A git repository.
    Git(GitUrl),
}

/// What `text` names. `known_git` says that a flag marks it as git.
pub(crate) fn kind(text: &str, known_git: bool) -> Kind {
    match git::parse(text, known_git) {
        git::Parsed::Yes(url) => Kind::Git(url),
        git::Parsed::Bad(reason) => Kind::Bad(reason),
        git::Parsed::No if git::is_http(text) => Kind::Http,
        git::Parsed::No => Kind::Local,
    }
}

/// Looks at a source and the flags that only some kinds take.
pub(crate) fn classify(
    at: At<'_>,
    instr: &CopyInstr,
    source: &Spanned<String>,
    add: bool,
    sources: usize,
    checksum: &Option<Spanned<String>>,
) -> Result<Remote, Fault> {
    let found = kind(&source.value, instr.keep_git_dir.is_some());
    if !add && !matches!(found, Kind::Local) {
        let what = if matches!(found, Kind::Http) { "web addresses" } else { "git repositories" };
        return Err(at
            .error(codes::REMOTE_COPY, source.span, format!("COPY does not take {what}"))
            .help("use ADD"));
    }
    if let Some(checksum) = checksum {
        if sources != 1 {
            return Err(at
                .error(codes::CHECKSUM, checksum.span, "--checksum needs exactly one source")
                .help("write one ADD for each source"));
        }
        if matches!(found, Kind::Local) {
            return Err(at
                .error(
                    codes::CHECKSUM,
                    checksum.span,
                    "--checksum is only for web addresses and git repositories",
                )
                .help("leave it out: files of the context are part of the cache key by their content"));
        }
    }
    match found {
        Kind::Local => Ok(Remote::No),
        Kind::Bad(reason) => Err(at.error(
            codes::GIT_URL,
            source.span,
            format!("git URL {:?} cannot be used: {reason}", source.value),
        )),
        Kind::Http => {
            let digest = checksum.as_ref().map(|sum| parse_digest(at, sum)).transpose()?;
            Ok(Remote::Http(source.value.clone(), digest))
        }
        Kind::Git(url) => Ok(Remote::Git(with_flags(at, instr, source, checksum, url)?)),
    }
}

fn parse_digest(at: At<'_>, sum: &Spanned<String>) -> Result<rbuild_digest::Digest, Fault> {
    sum.value.parse().map_err(|_| {
        at.error(codes::CHECKSUM, sum.span, format!("invalid --checksum {:?}", sum.value))
            .help("write sha256: and the 64 lower-case hexadecimal digits that sha256sum prints")
    })
}

/// Flags and the URL's query must agree.
fn with_flags(
    at: At<'_>,
    instr: &CopyInstr,
    source: &Spanned<String>,
    checksum: &Option<Spanned<String>>,
    mut url: GitUrl,
) -> Result<GitUrl, Fault> {
    let conflict = |span: Span, what: &str| {
        at.error(codes::GIT_URL, span, format!("--{what} and the query of {:?} disagree", source.value))
            .help("give it once")
    };
    if let Some(flag) = &instr.keep_git_dir {
        if url.keep_git_dir.is_some_and(|keep| keep != flag.value) {
            return Err(conflict(flag.span, "keep-git-dir"));
        }
        url.keep_git_dir = Some(flag.value);
    }
    if let Some(sum) = checksum {
        if !url.checksum.is_empty() && url.checksum != sum.value {
            return Err(conflict(sum.span, "checksum"));
        }
        url.checksum.clone_from(&sum.value);
    }
    Ok(url)
}

/// The source's operation and the action that copies from it.
pub(crate) fn copy(
    ctx: &mut Ctx<'_>,
    at: At<'_>,
    instr: &CopyInstr,
    remote: Remote,
    span: Span,
    title: &str,
    common: CopyAction,
) -> Result<(Option<Edge>, CopyAction), Fault> {
    let step: Place = ctx.place(at);
    match remote {
        Remote::No => Ok((None, common)),
        Remote::Http(url, checksum) => {
            let name = http_file_name(&url, "__unnamed__");
            let action = CopyAction {
                src: crate::paths::action_path(&name, false),
                attempt_unpack: instr.unpack.as_ref().is_some_and(|unpack| unpack.value),
                ..common
            };
            let edge = ctx.add_http(&url, name, checksum, title.to_owned(), Some(step));
            Ok((Some(edge), action))
        }
        Remote::Git(url) => {
            let edge = ctx.add_git(&url, title.to_owned(), Some(step), (at.file, span))?;
            Ok((Some(edge), CopyAction { src: "/".to_owned(), ..common }))
        }
    }
}
