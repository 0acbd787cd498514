//! `WORKDIR`: a setting, and a directory that is made.

use rbuild_diag::Span;
use rbuild_dockerfile::Word;
use rbuild_graph::{FileKind, MkdirAction, Node, Op};

use super::fileop::{Actions, owner};
use crate::codes;
use crate::ctx::{At, Ctx};
use crate::fault::Fault;
use crate::lint;
use crate::paths;
use crate::stage::Run;

/// `WORKDIR path`.
pub(crate) fn lower(ctx: &mut Ctx<'_>, run: &mut Run<'_>, at: At<'_>, word: &Word) -> Result<(), Fault> {
    let path = run.expand(ctx, at, word)?;
    let os = run.state.platform.os.clone();
    let absolute = paths::system_path(&path, &os, false).is_ok_and(|path| path.starts_with('/'));
    if !run.state.workdir_set && !absolute {
        let message = format!("the relative WORKDIR {path:?} depends on the base image");
        ctx.warn(lint::WORKDIR_RELATIVE, at, word.span, message, Some("make it absolute".to_owned()));
    }
    run.state.workdir_set = true;
    enter(run, at, word.span, &path)?;
    let cwd = run.state.cwd.clone();
    let layer = cwd != "/";
    if layer {
        let env = run.state.env.clone();
        let display = run.display(ctx, &at.instruction.original);
        let title = run.title(ctx, &display, Some(&env));
        let mut actions = Actions::new(run.state.rootfs);
        let user = &run.state.image.config().config.user;
        let owner = match user.is_empty() {
            true => None,
            false => Some(owner(user, actions.base()).map_err(|name| {
                at.error(codes::OWNER, word.span, format!("cannot make the directory for user {name:?}"))
                    .note("the stage is empty, so there is no /etc/passwd to look the name up in")
                    .help("give USER a numeric id, or copy /etc/passwd before WORKDIR")
            })?),
        };
        let mkdir = MkdirAction {
            path: paths::action_path(&cwd, false),
            mode: 0o755,
            make_parents: true,
            owner,
            // SOURCE_DATE_EPOCH is the time of directories that WORKDIR makes, and of no other files.
            timestamp: ctx.epoch.and_then(|seconds| seconds.checked_mul(1_000_000_000)),
        };
        actions.push(None, FileKind::Mkdir(mkdir));
        let (op, inputs) = actions.finish(ctx.epoch);
        let meta = run.meta(ctx, at, title, false);
        let node = Node { op: Op::File(op), inputs, platform: ctx.any_platform(), meta };
        run.state.rootfs = Some(ctx.draft.add(node));
    }
    run.state.image.commit(format!("WORKDIR {cwd}"), layer, ctx.epoch);
    Ok(())
}

/// Sets the working directory without making it.
pub(crate) fn enter(run: &mut Run<'_>, at: At<'_>, span: Span, path: &str) -> Result<(), Fault> {
    let os = run.state.platform.os.clone();
    let current = run.state.image.config().config.working_dir.clone();
    let cwd = paths::normalize(&current, path, &os, false).map_err(|reason| {
        at.error(codes::PATH, span, format!("the working directory {path:?} cannot be used: {reason}"))
    })?;
    let kept = if os == "windows" { cwd.replace('/', "\\") } else { cwd.clone() };
    if run.state.image.config().config.working_dir != kept {
        run.state.image.edit().working_dir = kept;
    }
    run.state.cwd = cwd;
    Ok(())
}
