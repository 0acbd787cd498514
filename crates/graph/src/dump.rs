//! The graph as stable text, and as Graphviz dot.

use std::fmt::Write as _;

use crate::{Chown, FileAction, FileKind, Graph, Mount, MountKind, Node, Op, SourceOp, UserRef};

/// One line a node, then one a file action; stable, for goldens and `rbuild plan`.
#[must_use]
pub fn dump(graph: &Graph) -> String {
    let mut out = String::new();
    for (id, node) in graph.nodes() {
        let inputs: Vec<String> =
            node.inputs
                .iter()
                .map(|e| {
                    if e.output == 0 {
                        format!("n{}", e.node.0)
                    } else {
                        format!("n{}.{}", e.node.0, e.output)
                    }
                })
                .collect();
        let _ = write!(out, "n{} {}", id.0, head(&node.op));
        if !inputs.is_empty() {
            let _ = write!(out, " ({})", inputs.join(" "));
        }
        if node.meta.ignore_cache {
            out.push_str(" ignore-cache");
        }
        out.push_str(&details(node));
        out.push('\n');
    }
    out
}

/// For Graphviz.
#[must_use]
pub fn dot(graph: &Graph) -> String {
    let mut out = String::from("digraph build {\n  rankdir=BT;\n  node [shape=box, fontname=monospace];\n");
    for (id, node) in graph.nodes() {
        let label = if node.meta.name.is_empty() { head(&node.op) } else { node.meta.name.clone() };
        let _ = writeln!(
            out,
            "  n{} [label=\"{}\"];",
            id.0,
            label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
        );
        for edge in &node.inputs {
            let _ = writeln!(out, "  n{} -> n{};", id.0, edge.node.0);
        }
    }
    out.push_str("}\n");
    out
}

fn head(op: &Op) -> String {
    match op {
        Op::Source(source) => match source {
            SourceOp::Image(_) => format!("image {}", source.describe()),
            SourceOp::Local(local) => format!("local {}", local.name),
            SourceOp::OciLayout(_) | SourceOp::Git(_) | SourceOp::Http(_) => {
                format!("source {}", source.describe())
            }
        },
        Op::Exec(exec) => format!("exec {:?}", exec.spec.args),
        Op::File(_) => "file".to_owned(),
        Op::Merge(_) => "merge".to_owned(),
        Op::Diff(_) => "diff".to_owned(),
    }
}

fn details(node: &Node) -> String {
    let mut out = String::new();
    match &node.op {
        Op::Source(SourceOp::Local(local)) => {
            for (name, list) in
                [("include", &local.include), ("exclude", &local.exclude), ("follow", &local.follow_paths)]
            {
                if !list.is_empty() {
                    let _ = write!(out, " {name}={list:?}");
                }
            }
        }
        Op::Source(_) | Op::Merge(_) | Op::Diff(_) => {}
        Op::Exec(exec) => {
            let spec = &exec.spec;
            let _ = write!(out, " cwd={} env={:?}", spec.cwd, spec.env);
            if !spec.user.is_empty() {
                let _ = write!(out, " user={:?}", spec.user);
            }
            if spec.network != crate::NetMode::Sandbox {
                let _ = write!(out, " network={:?}", spec.network);
            }
            if spec.security != crate::SecurityMode::Sandbox {
                let _ = write!(out, " security={:?}", spec.security);
            }
            for secret in &spec.secret_env {
                let _ =
                    write!(out, "\n   secret-env {}={} optional={}", secret.name, secret.id, secret.optional);
            }
            for mount in &spec.mounts {
                let _ = write!(out, "\n   mount {}", mount_text(mount));
            }
            for device in &spec.cdi_devices {
                let _ = write!(out, "\n   device {} optional={}", device.name, device.optional);
            }
        }
        Op::File(file) => {
            for action in &file.actions {
                let _ = write!(out, "\n   {}", action_text(action));
            }
        }
    }
    out
}

fn index(i: Option<u32>) -> String {
    i.map_or_else(|| "-".to_owned(), |i| i.to_string())
}

fn mount_text(mount: &Mount) -> String {
    let kind = match &mount.kind {
        MountKind::Bind => "bind".to_owned(),
        MountKind::Cache { id, sharing } => format!("cache id={id} sharing={sharing:?}"),
        MountKind::Tmpfs { size } => format!("tmpfs size={size}"),
        MountKind::Secret { id, uid, gid, mode, optional } => {
            format!("secret id={id} {uid}:{gid} {mode:04o} optional={optional}")
        }
        MountKind::Ssh { id, uid, gid, mode, optional } => {
            format!("ssh id={id} {uid}:{gid} {mode:04o} optional={optional}")
        }
    };
    let mut out = format!("{} {kind} in={} out={}", mount.dest, index(mount.input), index(mount.output));
    if !mount.selector.is_empty() {
        let _ = write!(out, " selector={}", mount.selector);
    }
    if mount.readonly {
        out.push_str(" ro");
    }
    out
}

fn action_text(action: &FileAction) -> String {
    let from = format!(
        "in={} from={} out={}",
        index(action.input),
        index(action.secondary_input),
        index(action.output)
    );
    match &action.kind {
        FileKind::Copy(copy) => {
            let mut out = format!("copy {from} {:?} -> {:?}", copy.src, copy.dest);
            if let Some(mode) = copy.mode {
                let _ = write!(out, " mode={mode:04o}");
            }
            if !copy.mode_str.is_empty() {
                let _ = write!(out, " mode={}", copy.mode_str);
            }
            out.push_str(&owner_text(copy.owner.as_ref()));
            for (name, on) in [
                ("follow", copy.follow_symlink),
                ("contents", copy.dir_copy_contents),
                ("unpack", copy.attempt_unpack),
                ("parents", copy.create_dest_path),
                ("wildcard", copy.allow_wildcard),
                ("empty-ok", copy.allow_empty_wildcard),
            ] {
                if on {
                    let _ = write!(out, " {name}");
                }
            }
            for (name, list) in
                [("include", &copy.include), ("exclude", &copy.exclude), ("required", &copy.required_paths)]
            {
                if !list.is_empty() {
                    let _ = write!(out, " {name}={list:?}");
                }
            }
            if let Some(time) = copy.timestamp {
                let _ = write!(out, " time={time}");
            }
            out
        }
        FileKind::Mkfile(file) => {
            format!(
                "mkfile {from} {:?} {:04o} {} bytes{}",
                file.path,
                file.mode,
                file.data.len(),
                owner_text(file.owner.as_ref())
            )
        }
        FileKind::Mkdir(dir) => format!(
            "mkdir {from} {:?} {:04o}{}{}{}",
            dir.path,
            dir.mode,
            if dir.make_parents { " parents" } else { "" },
            owner_text(dir.owner.as_ref()),
            dir.timestamp.map_or_else(String::new, |t| format!(" time={t}"))
        ),
        FileKind::Rm(rm) => format!("rm {from} {:?}", rm.path),
        FileKind::Symlink(link) => format!("symlink {from} {:?} -> {:?}", link.newpath, link.oldpath),
    }
}

fn owner_text(owner: Option<&Chown>) -> String {
    let Some(owner) = owner else { return String::new() };
    let one = |user: &Option<UserRef>| match user {
        None => "0".to_owned(),
        Some(UserRef::Id(id)) => id.to_string(),
        Some(UserRef::Name { name, input }) => format!("{name}@{}", index(*input)),
    };
    format!(" owner={}:{}", one(&owner.user), one(&owner.group))
}
