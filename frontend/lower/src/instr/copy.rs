//! `COPY` and `ADD`: one file operation, its actions chained; with `--link` on an empty file system that is merged
//! over the stage.

use rbuild_diag::{Span, Spanned};
use rbuild_dockerfile::{CopyInstr, CopySource, Heredoc, Word, expand_heredoc};
use rbuild_graph::{Chown, CopyAction, Edge, FileKind, MergeOp, Node, Op};

use super::fileop::{Actions, owner};
use super::remote::{self, Remote};
use super::run::{inline_file, inline_node};
use crate::codes;
use crate::ctx::{At, Ctx};
use crate::fault::Fault;
use crate::paths;
use crate::stage::{Run, Stages};
use crate::stages::Plan;

/// The flags, expanded.
struct Flags {
    chown: String,
    chmod: String,
    checksum: Option<Spanned<String>>,
    parents: bool,
    link: bool,
}

/// What applies to every file that is copied.
struct Common {
    dest: String,
    owner: Option<Chown>,
    mode: Option<u32>,
    mode_str: String,
    exclude: Vec<String>,
}

/// `COPY` or `ADD`.
pub(crate) fn lower(
    ctx: &mut Ctx<'_>,
    plan: &Plan<'_>,
    stages: &Stages,
    run: &mut Run<'_>,
    at: At<'_>,
    instr: &CopyInstr,
    add: bool,
) -> Result<(), Fault> {
    let flags = expand_flags(ctx, run, at, instr)?;
    let (sources, heredocs) = expand_sources(ctx, run, at, instr)?;
    let dest = run.expand(ctx, at, &instr.dest)?;
    // Separate from the stage's file system only where files are laid over it without looking at it.
    let linked = flags.link && flags.chmod.is_empty();
    let mut actions = Actions::new(run.state.rootfs.filter(|_| !linked));
    let common = common(run, at, instr, &flags, &dest, &actions)?;
    let origin = origin(ctx, plan, stages, run, at, instr, add, &sources)?;

    let display = run.display(ctx, at.instruction.original.trim());
    let env = run.state.env.clone();
    let title = run.title(ctx, &display, Some(&env));
    let mut created_by = describe(add, &flags);
    for source in &sources {
        created_by.push_str(&format!(" {}", source.value));
        let (edge, action) = match remote::classify(at, instr, source, add, sources.len(), &flags.checksum)? {
            Remote::No => (origin, local_copy(ctx, run, at, instr, add, &flags, &common, source)?),
            other => remote::copy(ctx, at, instr, other, source.span, &title, common.action())?,
        };
        actions.push(edge, FileKind::Copy(action));
    }
    for (name, content) in &heredocs {
        created_by.push_str(&format!(" <<{name}"));
        let mut file = Actions::new(None);
        file.push(None, inline_file(name, 0o644, content));
        let (op, inputs) = file.finish(ctx.epoch);
        let edge = inline_node(ctx, at, Op::File(op), inputs);
        let action = CopyAction { src: paths::action_path(name, false), ..common.action() };
        actions.push(Some(edge), FileKind::Copy(action));
    }
    created_by.push_str(&format!(" {dest} # buildkit"));
    finish(ctx, run, at, actions, title, linked.then_some(display.as_str()));
    run.state.image.commit(created_by, true, ctx.epoch);
    Ok(())
}

impl Common {
    /// An action that has what all have.
    fn action(&self) -> CopyAction {
        CopyAction {
            dest: self.dest.clone(),
            owner: self.owner.clone(),
            mode: self.mode,
            mode_str: self.mode_str.clone(),
            exclude: self.exclude.clone(),
            timestamp: None,
            create_dest_path: true,
            ..CopyAction::default()
        }
    }
}

fn expand_flags(ctx: &mut Ctx<'_>, run: &Run<'_>, at: At<'_>, instr: &CopyInstr) -> Result<Flags, Fault> {
    let mut expand = |word: &Option<Word>| match word {
        Some(word) => run.expand(ctx, at, word),
        None => Ok(String::new()),
    };
    let (chown, chmod) = (expand(&instr.chown)?, expand(&instr.chmod)?);
    let checksum = expand(&instr.checksum)?;
    let on = |flag: &Option<Spanned<bool>>| flag.as_ref().is_some_and(|flag| flag.value);
    Ok(Flags {
        chown,
        chmod,
        checksum: instr
            .checksum
            .as_ref()
            .map(|word| Spanned::new(checksum, word.span))
            .filter(|sum| !sum.value.is_empty()),
        parents: on(&instr.parents),
        link: on(&instr.link),
    })
}

type Sources = (Vec<Spanned<String>>, Vec<(String, String)>);

/// Paths first, heredocs after them, each in the order written.
fn expand_sources(ctx: &mut Ctx<'_>, run: &Run<'_>, at: At<'_>, instr: &CopyInstr) -> Result<Sources, Fault> {
    let (mut sources, mut heredocs) = (Vec::new(), Vec::new());
    for source in &instr.sources {
        match source {
            CopySource::Path(word) => {
                sources.push(Spanned::new(run.expand(ctx, at, word)?, word.span));
            }
            CopySource::Heredoc(index) => {
                if let Some(heredoc) = instr.heredocs.get(*index) {
                    heredocs.push((heredoc.name.clone(), expand_body(ctx, run, at, heredoc)?));
                }
            }
        }
    }
    Ok((sources, heredocs))
}

fn expand_body(ctx: &mut Ctx<'_>, run: &Run<'_>, at: At<'_>, heredoc: &Heredoc) -> Result<String, Fault> {
    if !heredoc.expand {
        return Ok(heredoc.content.clone());
    }
    let env = run.state.env.clone();
    let expanded =
        expand_heredoc(&heredoc.content, &|name| env.get(name).map(str::to_owned)).map_err(|error| {
            at.error(
                codes::EXPANSION,
                heredoc.span,
                format!("cannot expand the heredoc {}: {}", heredoc.name, error.message),
            )
            .help(format!("write <<'{}' to have nothing expanded in it", heredoc.name))
        })?;
    let declared = |name: &str| run.declared(name);
    ctx.report_unset(&env, &declared, at, heredoc.span, &expanded.unmatched);
    Ok(expanded.value)
}

fn common(
    run: &Run<'_>,
    at: At<'_>,
    instr: &CopyInstr,
    flags: &Flags,
    dest: &str,
    actions: &Actions,
) -> Result<Common, Fault> {
    let os = &run.state.platform.os;
    let relative = if matches!(dest, "" | ".") { "./" } else { dest };
    let absolute = paths::normalize(&run.state.cwd, relative, os, true).map_err(|reason| {
        at.error(codes::PATH, instr.dest.span, format!("the destination {dest:?} cannot be used: {reason}"))
    })?;
    let span = |word: &Option<Word>| word.as_ref().map_or(at.instruction.span, |word| word.span);
    let (mode, mode_str) = parse_mode(&flags.chmod).ok_or_else(|| {
        at.error(codes::MODE, span(&instr.chmod), format!("invalid --chmod {:?}", flags.chmod))
            .help("write permission bits in octal up to 07777, or symbolic such as u=rwX,go=rX or +x")
    })?;
    let owner = match flags.chown.as_str() {
        "" => None,
        text => {
            Some(owner(text, actions.base()).map_err(|name| no_names(at, span(&instr.chown), &name, flags))?)
        }
    };
    Ok(Common {
        dest: paths::action_path(&absolute, true),
        owner,
        mode,
        mode_str,
        exclude: instr.exclude.iter().map(|pattern| pattern.value.clone()).collect(),
    })
}

fn no_names(at: At<'_>, span: Span, name: &str, flags: &Flags) -> Fault {
    let why = if flags.link {
        "--link copies without looking at the stage, so there is no /etc/passwd to look the name up in"
    } else {
        "the stage is empty, so there is no /etc/passwd to look the name up in"
    };
    at.error(codes::OWNER, span, format!("cannot look up --chown {name:?}"))
        .note(why)
        .help("give a numeric id, such as --chown=1000:1000")
}

/// Octal bits, or a checked symbolic mode.
fn parse_mode(text: &str) -> Option<(Option<u32>, String)> {
    if text.is_empty() {
        return Some((None, String::new()));
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)?;
        return Some((Some(mode), String::new()));
    }
    text.split(',').all(is_mode_clause).then(|| (None, text.to_owned()))
}

/// `[ugoa]*([-+=][rwxXstugo]*)+`.
fn is_mode_clause(clause: &str) -> bool {
    let rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    rest.starts_with(['-', '+', '=']) && rest.chars().all(|c| "-+=rwxXstugo".contains(c))
}

/// Where the local paths come from; asked for only if there are any.
#[expect(clippy::too_many_arguments, reason = "all of them are the context of one instruction")]
fn origin(
    ctx: &mut Ctx<'_>,
    plan: &Plan<'_>,
    stages: &Stages,
    run: &Run<'_>,
    at: At<'_>,
    instr: &CopyInstr,
    add: bool,
    sources: &[Spanned<String>],
) -> Result<Option<Edge>, Fault> {
    if let Some(from) = instr.from.as_ref().filter(|from| !from.value.is_empty()) {
        return stages.source(ctx, plan, run, at, from, false);
    }
    let local = |source: &&Spanned<String>| {
        let known = instr.keep_git_dir.is_some();
        !add || matches!(remote::kind(&source.value, known), remote::Kind::Local)
    };
    match sources.iter().find(local) {
        None => Ok(None),
        Some(source) => ctx.main_context((at.file, source.span)).map(Some),
    }
}

#[expect(clippy::too_many_arguments, reason = "all of them are the context of one instruction")]
fn local_copy(
    ctx: &mut Ctx<'_>,
    run: &Run<'_>,
    at: At<'_>,
    instr: &CopyInstr,
    add: bool,
    flags: &Flags,
    common: &Common,
    source: &Spanned<String>,
) -> Result<CopyAction, Fault> {
    if instr.from.as_ref().is_none_or(|from| from.value.is_empty()) {
        crate::ignore::check(ctx, at, source, add);
    }
    let os = &run.state.platform.os;
    let bad = |reason: &str| {
        at.error(codes::PATH, source.span, format!("the path {:?} cannot be used: {reason}", source.value))
    };
    let normal = |path: &str| paths::normalize("/", path, os, false).map_err(bad);
    let mut path = source.value.as_str();
    let (mut include, mut required) = (vec![], vec![]);
    if flags.parents {
        // What stands before /./ is not kept.
        let (pivot, pattern) = path.split_once("/./").unwrap_or(("/", path));
        let kept = normal(pattern)?;
        if !paths::has_wildcards(pivot) && !paths::has_wildcards(&kept) {
            required.push(normal(&paths::join(pivot, &kept))?);
        }
        include.push(kept.strip_prefix('/').unwrap_or(&kept).to_owned());
        path = pivot;
    }
    Ok(CopyAction {
        src: paths::action_path(&normal(path)?, false),
        follow_symlink: true,
        dir_copy_contents: true,
        attempt_unpack: instr.unpack.as_ref().map_or(add, |unpack| unpack.value),
        allow_wildcard: true,
        allow_empty_wildcard: true,
        include,
        required_paths: required,
        ..common.action()
    })
}

/// The start of the history entry. Flags that change what is copied are not all shown, as in BuildKit.
fn describe(add: bool, flags: &Flags) -> String {
    let mut out = String::from(if add { "ADD" } else { "COPY" });
    if flags.parents {
        out.push_str(" --parents");
    }
    if !flags.chown.is_empty() {
        out.push_str(&format!(" --chown={}", flags.chown));
    }
    if !flags.chmod.is_empty() {
        out.push_str(&format!(" --chmod={}", flags.chmod));
    }
    out
}

/// Adds the operation; `link` is the text of the step when its result is merged over the stage.
fn finish(
    ctx: &mut Ctx<'_>,
    run: &mut Run<'_>,
    at: At<'_>,
    actions: Actions,
    title: String,
    link: Option<&str>,
) {
    let (op, inputs) = actions.finish(ctx.epoch);
    let group = link.map(|_| title.clone());
    let mut meta = run.meta(ctx, at, title, run.ignore_cache);
    meta.progress_group.clone_from(&group);
    let platform = ctx.any_platform();
    let copied = ctx.draft.add(Node { op: Op::File(op), inputs, platform: platform.clone(), meta });
    run.state.rootfs = Some(match (link, run.state.rootfs) {
        (Some(text), Some(below)) => {
            let env = run.state.env.clone();
            let name = run.same_title(ctx, &format!("LINK {text}"), Some(&env));
            let mut meta = run.meta(ctx, at, name, run.ignore_cache);
            meta.progress_group = group;
            let op = Op::Merge(MergeOp { inputs: vec![0, 1] });
            ctx.draft.add(Node { op, inputs: vec![below, copied], platform, meta })
        }
        _ => copied,
    });
}

#[cfg(test)]
mod tests {
    use super::parse_mode;

    #[test]
    fn modes_are_octal_or_symbolic() {
        let octal = |mode| Some((Some(mode), String::new()));
        assert_eq!(parse_mode("755"), octal(0o755));
        assert_eq!(parse_mode("07777"), octal(0o7777));
        assert_eq!(parse_mode(""), Some((None, String::new())));
        for good in ["+x", "u=rwX,go=rX", "a-w", "u+x,g-w", "ug=o", "u=", "=r"] {
            assert_eq!(parse_mode(good), Some((None, good.to_owned())), "{good}");
        }
        for bad in ["888", "10000", "0o755", "rwx", "u", "u+q", "u=r,", "x+u", "755,u+x"] {
            assert_eq!(parse_mode(bad), None, "{bad}");
        }
    }
}
