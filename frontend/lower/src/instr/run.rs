//! `RUN`: command, mounts, network, security, devices → an exec operation.

use rbuild_diag::{Spanned, nearest};
use rbuild_dockerfile::{Command, Heredoc, RunInstr, expand_step_name, expand_words};
use rbuild_graph::{
    CdiDevice, ContentCache, Edge, ExecHints, ExecOp, ExecSpec, FileKind, MkdirAction, MkfileAction, Mount,
    MountKind, NetMode, Node, NodeMeta, Op, SecretEnv, SecurityMode,
};

use super::device;
use super::fileop::Actions;
use super::mount::{self, Kind, MountSpec};
use crate::codes;
use crate::ctx::{At, Ctx};
use crate::fault::Fault;
use crate::image::shell;
use crate::outline::OutlineMount;
use crate::paths;
use crate::stage::{Run, Stages, uppercase_keyword};
use crate::stages::Plan;

/// A mount and what it shows.
struct Source {
    input: Option<Edge>,
    mount: Mount,
}

/// `RUN`.
pub(crate) fn lower(
    ctx: &mut Ctx<'_>,
    plan: &Plan<'_>,
    stages: &Stages,
    run: &mut Run<'_>,
    at: At<'_>,
    instr: &RunInstr,
) -> Result<(), Fault> {
    let network = network(ctx, at, instr.network.as_ref())?;
    let security = security(at, instr.security.as_ref())?;
    let devices = read_devices(ctx, at, instr)?;
    let mounts = read_mounts(ctx, run, at, instr)?;
    note_outline(ctx, run, at, &mounts);
    let mut sources = Vec::with_capacity(mounts.len() + 2);
    let (words, shown) = command(ctx, run, at, instr, &mut sources);
    for mount in &mounts {
        if !matches!(mount.kind, Kind::Secret | Kind::Ssh) {
            sources.push(file_mount(ctx, plan, stages, run, at, mount)?);
        }
    }
    if ctx.options.shm_size > 0 {
        sources.push(Source {
            input: None,
            mount: plain_mount("/dev/shm", MountKind::Tmpfs { size: ctx.options.shm_size }),
        });
    }
    let title = title(ctx, run, &shown, &mounts);
    let (inputs, mut spec) = spec(ctx, run, &words, sources, &mounts);
    (spec.network, spec.security, spec.cdi_devices) = (network, security, devices);
    let history = history(run, &words);
    let op = Op::Exec(Box::new(ExecOp { spec, hints: ExecHints { proxy_env: ctx.proxy.clone() } }));
    let meta = run.meta(ctx, at, title, run.ignore_cache);
    run.state.rootfs = Some(ctx.draft.add(Node { op, inputs, platform: run.state.platform.clone(), meta }));
    run.state.image.commit(history, true, ctx.epoch);
    Ok(())
}

/// All mounts are read before the first mistake stops the instruction.
fn read_mounts(
    ctx: &mut Ctx<'_>,
    run: &Run<'_>,
    at: At<'_>,
    instr: &RunInstr,
) -> Result<Vec<MountSpec>, Fault> {
    let mut out = Vec::with_capacity(instr.mounts.len());
    for flag in &instr.mounts {
        match mount::parse(ctx, run, at, flag) {
            Ok(mount) => out.push(mount),
            Err(error) => ctx.fail(error),
        }
    }
    if out.len() == instr.mounts.len() { Ok(out) } else { Err(Fault::Known) }
}

/// As with mounts.
fn read_devices(ctx: &mut Ctx<'_>, at: At<'_>, instr: &RunInstr) -> Result<Vec<CdiDevice>, Fault> {
    let mut out = Vec::with_capacity(instr.devices.len());
    for flag in &instr.devices {
        match device::parse(at, flag) {
            Ok(device) => out.push(device),
            Err(error) => ctx.fail(error),
        }
    }
    if out.len() == instr.devices.len() { Ok(out) } else { Err(Fault::Known) }
}

/// Secrets and ssh agents are part of the outline.
fn note_outline(ctx: &mut Ctx<'_>, run: &Run<'_>, at: At<'_>, mounts: &[MountSpec]) {
    let span = ctx.place(at).span;
    for mount in mounts {
        let required = mount.required;
        match mount.kind {
            Kind::Secret => {
                ctx.outline.secret(run.index, OutlineMount { name: secret_id(mount), required, span });
            }
            Kind::Ssh => {
                let name = if mount.id.is_empty() { "default".to_owned() } else { mount.id.clone() };
                ctx.outline.ssh(run.index, OutlineMount { name, required, span });
            }
            Kind::Bind | Kind::Cache | Kind::Tmpfs => {}
        }
    }
}

fn network(ctx: &Ctx<'_>, at: At<'_>, word: Option<&Spanned<String>>) -> Result<NetMode, Fault> {
    let Some(word) = word else { return Ok(ctx.options.network) };
    match word.value.as_str() {
        "default" => Ok(ctx.options.network),
        "none" => Ok(NetMode::None),
        "host" => Ok(NetMode::Host),
        other => Err(choice(at, codes::NETWORK, word, "network mode", other, &["default", "none", "host"])),
    }
}

fn security(at: At<'_>, word: Option<&Spanned<String>>) -> Result<SecurityMode, Fault> {
    match word.map(|word| (word, word.value.as_str())) {
        None | Some((_, "sandbox")) => Ok(SecurityMode::Sandbox),
        Some((_, "insecure")) => Ok(SecurityMode::Insecure),
        Some((word, other)) => {
            Err(choice(at, codes::SECURITY, word, "security mode", other, &["sandbox", "insecure"]))
        }
    }
}

fn choice(
    at: At<'_>,
    code: &'static str,
    word: &Spanned<String>,
    what: &str,
    given: &str,
    all: &[&str],
) -> Fault {
    let error = at.error(code, word.span, format!("there is no {what} {given:?}"));
    match nearest(given, all.iter().copied()) {
        Some(near) => error.help(format!("did you mean {near}?")),
        None => error.help(format!("it must be one of {}", all.join(", "))),
    }
}

/// The words to run, and the text for the step's name. A heredoc with `#!` becomes a mounted file.
fn command(
    ctx: &mut Ctx<'_>,
    run: &Run<'_>,
    at: At<'_>,
    instr: &RunInstr,
    sources: &mut Vec<Source>,
) -> (Vec<String>, String) {
    let mut shown = at.instruction.original.trim().to_owned();
    let config = run.state.image.config();
    let text = match &instr.command {
        Command::Exec(words) => return (words.value.clone(), shown),
        Command::Shell(text) => &text.value,
    };
    let mut words = shell(config);
    match instr.heredocs.as_slice() {
        [] => words.push(text.clone()),
        [only, ..] if is_lone_opener(text) => {
            shown.push_str(&format!(" ({})", summary(&only.content)));
            // With the tabs that `<<-` takes away it is no script to BuildKit.
            if config.os != "windows" && only.raw.starts_with("#!") {
                // The shell starts it: the path is its one word.
                words.push(paths::join("/dev/pipes", &only.name));
                sources.push(script(ctx, at, only));
            } else {
                words.push(only.content.clone());
            }
        }
        heredocs => {
            let mut whole = text.clone();
            for heredoc in heredocs {
                whole.push('\n');
                whole.push_str(&heredoc.raw);
                whole.push_str(&heredoc.name);
            }
            words.push(whole);
        }
    }
    (words, shown)
}

/// Whether the text is nothing but one opener of a heredoc.
fn is_lone_opener(text: &str) -> bool {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let Some(rest) = rest.strip_prefix("<<") else { return false };
    let rest = rest.strip_prefix('-').unwrap_or(rest).trim_start();
    !rest.is_empty()
        && !rest.contains('<')
        && expand_words(rest, '\\', &|_| None).is_ok_and(|words| words.len() == 1)
}

fn summary(body: &str) -> String {
    let body = body.trim();
    match body.split_once('\n') {
        Some((first, _)) => format!("{}...", first.trim_end_matches('\r')),
        None => body.to_owned(),
    }
}

/// A heredoc with `#!`, as a file in a mount of its own.
fn script(ctx: &mut Ctx<'_>, at: At<'_>, heredoc: &Heredoc) -> Source {
    let mut actions = Actions::new(None);
    actions.push(None, inline_file(&heredoc.name, 0o755, &heredoc.content));
    let (op, inputs) = actions.finish(ctx.epoch);
    let edge = inline_node(ctx, at, Op::File(op), inputs);
    let mut mount = plain_mount("/dev/pipes/", MountKind::Bind);
    mount.selector = "/".to_owned();
    mount.readonly = true;
    Source { input: Some(edge), mount }
}

/// A file that stands in the Dockerfile.
pub(crate) fn inline_file(name: &str, mode: u32, content: &str) -> FileKind {
    FileKind::Mkfile(MkfileAction {
        path: paths::action_path(name, false),
        mode,
        data: content.as_bytes().to_vec(),
        owner: None,
        timestamp: None,
    })
}

/// Adds an operation that prepares a file that stands in the Dockerfile.
pub(crate) fn inline_node(ctx: &mut Ctx<'_>, at: At<'_>, op: Op, inputs: Vec<Edge>) -> Edge {
    let name = "[internal] preparing inline document".to_owned();
    let meta = NodeMeta { name, place: Some(ctx.place(at)), ..NodeMeta::default() };
    let platform = ctx.any_platform();
    ctx.draft.add(Node { op, inputs, platform, meta })
}

fn plain_mount(dest: &str, kind: MountKind) -> Mount {
    Mount {
        input: None,
        selector: String::new(),
        dest: dest.to_owned(),
        output: None,
        readonly: false,
        kind,
        content_cache: ContentCache::Default,
    }
}

/// A bind, cache or tmpfs mount.
fn file_mount(
    ctx: &mut Ctx<'_>,
    plan: &Plan<'_>,
    stages: &Stages,
    run: &Run<'_>,
    at: At<'_>,
    spec: &MountSpec,
) -> Result<Source, Fault> {
    let dest = target(run, at, spec)?;
    let mut input = match (&spec.from, spec.kind) {
        (_, Kind::Tmpfs) | (None, Kind::Cache) => None,
        (Some(from), _) => stages.source(ctx, plan, run, at, from, true)?,
        (None, _) => Some(ctx.main_context((at.file, spec.span))?),
    };
    let kind = match spec.kind {
        Kind::Cache => {
            let id = if spec.id.is_empty() { paths::clean(&spec.target) } else { spec.id.clone() };
            MountKind::Cache { id: format!("{}/{id}", ctx.cache_namespace), sharing: spec.sharing }
        }
        Kind::Tmpfs => MountKind::Tmpfs { size: spec.size },
        Kind::Bind | Kind::Secret | Kind::Ssh => MountKind::Bind,
    };
    let mut mount = plain_mount(&dest, kind);
    mount.readonly = spec.readonly;
    let source = paths::join("/", &spec.source);
    if source != "/" {
        mount.selector = source;
    } else if spec.uid.is_some() || spec.gid.is_some() || spec.mode.is_some() {
        input = Some(cache_directory(ctx, input, spec));
        mount.selector = "/cache".to_owned();
    }
    Ok(Source { input, mount })
}

fn target(run: &Run<'_>, at: At<'_>, spec: &MountSpec) -> Result<String, Fault> {
    let dest = if paths::clean(&spec.target).starts_with('/') {
        spec.target.clone()
    } else {
        paths::join("/", &paths::join(&run.state.cwd, &spec.target))
    };
    if paths::clean(&dest) == "/" {
        let fault = if spec.target.starts_with('/') {
            let message = format!("the target {:?} of a mount cannot be the root directory", spec.target);
            at.error(codes::MOUNT_TARGET, spec.span, message)
        } else {
            let message = "the mount has no target, and the working directory is /";
            at.error(codes::NO_MOUNT_TARGET, spec.span, message)
        };
        return Err(fault.help("write target=/path"));
    }
    Ok(dest)
}

/// A cache mount with owner or mode starts from a directory that has them.
fn cache_directory(ctx: &mut Ctx<'_>, base: Option<Edge>, spec: &MountSpec) -> Edge {
    let id = |id: Option<u32>| Some(rbuild_graph::UserRef::Id(id.unwrap_or(0)));
    let mut actions = Actions::new(base);
    actions.push(
        None,
        FileKind::Mkdir(MkdirAction {
            path: "/cache".to_owned(),
            mode: spec.mode.unwrap_or(0o755) & 0o777,
            make_parents: false,
            owner: Some(rbuild_graph::Chown { user: id(spec.uid), group: id(spec.gid) }),
            timestamp: None,
        }),
    );
    let (op, inputs) = actions.finish(ctx.epoch);
    let name = "[internal] setting cache mount permissions".to_owned();
    let platform = ctx.any_platform();
    let meta = NodeMeta { name, ..NodeMeta::default() };
    ctx.draft.add(Node { op: Op::File(op), inputs, platform, meta })
}

/// The step's name: variables that are set are shown, secrets as stars.
fn title(ctx: &Ctx<'_>, run: &mut Run<'_>, shown: &str, mounts: &[MountSpec]) -> String {
    let env = run.state.env.clone();
    let secret = |name: &str| {
        mounts.iter().any(|mount| mount.kind == Kind::Secret && mount.env.as_deref() == Some(name))
    };
    let lookup = |name: &str| {
        if secret(name) { Some("****".to_owned()) } else { env.get(name).map(str::to_owned) }
    };
    let text = match shown.contains(['$', '\\', '`']) {
        true => expand_step_name(shown, ctx.parsed.directives.escape, &lookup)
            .unwrap_or_else(|_| shown.to_owned()),
        false => shown.to_owned(),
    };
    run.title(ctx, &uppercase_keyword(&text), Some(&env))
}

fn spec(
    ctx: &Ctx<'_>,
    run: &Run<'_>,
    words: &[String],
    mut sources: Vec<Source>,
    mounts: &[MountSpec],
) -> (Vec<Edge>, ExecSpec) {
    let mut env = run.state.env.to_list();
    let mut root = plain_mount("/", MountKind::Bind);
    root.output = Some(0);
    sources.insert(0, Source { input: run.state.rootfs, mount: root });
    sources.sort_by(|a, b| a.mount.dest.cmp(&b.mount.dest));
    let mut inputs: Vec<Edge> = Vec::new();
    let mut all = Vec::with_capacity(sources.len());
    for Source { input, mut mount } in sources {
        mount.input = input.map(|edge| {
            let position = inputs.iter().position(|known| *known == edge).unwrap_or_else(|| {
                inputs.push(edge);
                inputs.len() - 1
            });
            u32::try_from(position).unwrap_or(u32::MAX)
        });
        all.push(mount);
    }
    let secrets = || mounts.iter().filter(|mount| mount.kind == Kind::Secret);
    all.extend(secrets().filter_map(secret_mount));
    let secret_env = secrets().filter_map(|mount| {
        let name = mount.env.clone()?;
        Some(SecretEnv { id: secret_id(mount), name, optional: !mount.required })
    });
    let ssh = mounts.iter().filter(|mount| mount.kind == Kind::Ssh).enumerate();
    let ssh: Vec<Mount> = ssh.map(|(number, mount)| ssh_mount(number, mount)).collect();
    if let Some(first) = ssh.first()
        && run.state.env.get("SSH_AUTH_SOCK").is_none()
    {
        env.push(format!("SSH_AUTH_SOCK={}", first.dest));
    }
    all.extend(ssh);
    let spec = ExecSpec {
        args: words.to_vec(),
        env,
        cwd: run.state.cwd.clone(),
        user: run.state.user.clone(),
        extra_hosts: ctx.options.extra_hosts.clone(),
        hostname: ctx.hostname.clone(),
        ulimits: ctx.options.ulimits.clone(),
        cgroup_parent: ctx.options.cgroup_parent.clone(),
        remove_mount_stubs_recursive: true,
        valid_exit_codes: vec![],
        secret_env: secret_env.collect(),
        mounts: all,
        network: NetMode::default(),
        security: SecurityMode::default(),
        cdi_devices: vec![],
    };
    (inputs, spec)
}

fn secret_id(mount: &MountSpec) -> String {
    let id = if mount.source.is_empty() { &mount.id } else { &mount.source };
    if id.is_empty() { paths::base(&mount.target).to_owned() } else { id.clone() }
}

/// A secret as a file: not when it is only wanted as a variable.
fn secret_mount(spec: &MountSpec) -> Option<Mount> {
    let id = secret_id(spec);
    let dest = match (&spec.env, spec.target.is_empty()) {
        (_, false) => spec.target.clone(),
        (None, true) => format!("/run/secrets/{}", paths::base(&id)),
        (Some(_), true) => return None,
    };
    let kind = MountKind::Secret {
        id,
        uid: spec.uid.unwrap_or(0),
        gid: spec.gid.unwrap_or(0),
        mode: spec.mode.unwrap_or(0o400),
        optional: !spec.required,
    };
    Some(plain_mount(&dest, kind))
}

fn ssh_mount(number: usize, spec: &MountSpec) -> Mount {
    let dest = match spec.target.is_empty() {
        true => format!("/run/buildkit/ssh_agent.{number}"),
        false => spec.target.clone(),
    };
    let kind = MountKind::Ssh {
        id: spec.id.clone(),
        uid: spec.uid.unwrap_or(0),
        gid: spec.gid.unwrap_or(0),
        mode: spec.mode.unwrap_or(0o600),
        optional: !spec.required,
    };
    plain_mount(&dest, kind)
}

/// `RUN |2 A=1 B=2 /bin/sh -c make # buildkit`.
fn history(run: &Run<'_>, words: &[String]) -> String {
    let args = &run.state.build_args;
    let mut out = String::from("RUN ");
    if !args.is_empty() {
        out.push_str(&format!("|{} ", args.len()));
        for (name, value) in args.iter() {
            let value = run.state.env.get(name).or(value.as_deref()).unwrap_or_default();
            out.push_str(&format!("{name}={value} "));
        }
    }
    out.push_str(&words.join(" "));
    out.push_str(" # buildkit");
    out
}
