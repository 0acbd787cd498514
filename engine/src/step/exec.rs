//! Commands: mounts are made from the inputs, the executor runs, outputs are committed.

use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_graph::{ExecOp, Mount, MountKind, Node, NodeId};
use rbuild_ports::{
    ActiveLayer, CacheMount, DeviceEdits, ErrorKind, ExecMount, ExecOutcome, ExecRequest, MountSource,
    OverlayDirs, PortError, SecretBytes, Snapshot, View,
};
use rbuild_tree::go_path;

use crate::progress::StepProgress;
use crate::step::{self, Made};
use crate::worker::{Shared, Trouble};
use crate::{Cause, SolveError, StepOutput};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// What must live as long as the command, and what becomes of it afterwards.
#[derive(Default)]
struct Held {
    /// Output, what it lies on, and the layer.
    outputs: Vec<(u32, Snapshot, Box<dyn ActiveLayer>)>,
    /// Writable copies whose changes are dropped.
    scratch: Vec<Box<dyn ActiveLayer>>,
    caches: Vec<Box<dyn CacheMount>>,
}

/// Runs the command.
pub(crate) fn run(
    shared: &Shared,
    id: NodeId,
    node: &Node,
    op: &ExecOp,
    progress: &StepProgress,
) -> Result<Made, Trouble> {
    let spec = &op.spec;
    let mut held = Held::default();
    let mut root = OverlayDirs::default();
    let mut root_readonly = false;
    let mut mounts = Vec::new();
    // Locked cache mounts are taken in one order everywhere, so that two steps cannot wait for each other.
    let mut order: Vec<&Mount> = spec.mounts.iter().collect();
    order.sort_by_key(|mount| match &mount.kind {
        MountKind::Cache { id, .. } => (1, id.as_str()),
        MountKind::Bind | MountKind::Tmpfs { .. } | MountKind::Secret { .. } | MountKind::Ssh { .. } => {
            (0, "")
        }
    });
    for mount in order {
        if mount.dest == "/" {
            root = layers(shared, node, mount, &mut held, progress)?;
            root_readonly = mount.readonly;
        } else if let Some(source) = source(shared, node, mount, &mut held, progress)? {
            let (dest, selector) = (below(&spec.cwd, &mount.dest), mount.selector.clone());
            mounts.push(ExecMount { dest, readonly: mount.readonly, selector, source });
        }
    }
    mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
    let request = ExecRequest {
        id: format!("s{}", COUNT.fetch_add(1, Ordering::Relaxed)),
        args: spec.args.clone(),
        env: spec.env.clone(),
        secret_env: secret_env(shared, op)?,
        proxy_env: op.hints.proxy_env.clone(),
        cwd: spec.cwd.clone(),
        user: spec.user.clone(),
        hostname: spec.hostname.clone(),
        extra_hosts: spec.extra_hosts.clone(),
        network: spec.network,
        security: spec.security,
        ulimits: spec.ulimits.clone(),
        cgroup_parent: spec.cgroup_parent.clone(),
        root,
        root_readonly,
        mounts,
        devices: if spec.cdi_devices.is_empty() {
            DeviceEdits::default()
        } else {
            shared.ports.devices.edits(&spec.cdi_devices)?
        },
    };
    let outcome = shared.ports.executor.run(&request, progress, &shared.cancel)?;
    check(id, op, outcome, shared)?;
    drop((held.caches, held.scratch));
    let mut outputs = Vec::with_capacity(held.outputs.len());
    for (output, parent, layer) in held.outputs {
        let committed = layer.commit()?;
        let name = committed.layer.clone();
        shared.materialiser.record_made(committed)?;
        outputs.push((output, StepOutput::Snapshot(parent.with(name))));
    }
    Ok(Made { outputs, keys: None })
}

fn check(id: NodeId, op: &ExecOp, outcome: ExecOutcome, shared: &Shared) -> Result<(), Trouble> {
    let (how, code) = match outcome {
        ExecOutcome::Exited(code) if code == 0 && op.spec.valid_exit_codes.is_empty() => return Ok(()),
        ExecOutcome::Exited(code) if op.spec.valid_exit_codes.contains(&code) => return Ok(()),
        ExecOutcome::Exited(code) => (format!("exit code: {code}"), Some(code)),
        ExecOutcome::Signaled(signal) => (format!("killed by signal {signal}"), None),
        ExecOutcome::OutOfMemory => ("killed for want of memory".to_owned(), None),
    };
    shared.cancel.check()?;
    let command = op.spec.args.join(" ");
    Err(Trouble::Failed(SolveError {
        step: Some(id),
        cause: Cause::Command { command, how, code },
        log_tail: vec![],
    }))
}

/// Where a mount goes. A relative path, which secrets and agents may have, begins in the working directory.
fn below(cwd: &str, dest: &str) -> String {
    if go_path::clean(dest).starts_with('/') {
        return dest.to_owned();
    }
    go_path::join(&["/", cwd, dest])
}

/// Directories for a bind mount.
fn layers(
    shared: &Shared,
    node: &Node,
    mount: &Mount,
    held: &mut Held,
    progress: &StepProgress,
) -> Result<OverlayDirs, Trouble> {
    let snapshot = match mount.input.and_then(|input| node.inputs.get(input as usize)) {
        None => Snapshot::default(),
        // What is written to becomes a layer on top.
        Some(edge) if mount.output.is_some() => shared.snapshot(*edge, progress)?,
        Some(edge) => match shared.present(*edge, progress)? {
            StepOutput::Snapshot(snapshot) => snapshot,
            StepOutput::View(view) => return view_dirs(shared, mount, view, held, progress),
        },
    };
    match (mount.output, mount.readonly) {
        (_, true) => Ok(shared.ports.snapshots.lower_dirs(&snapshot)?),
        (output, false) => {
            let layer = shared.ports.snapshots.prepare(&snapshot)?;
            let dirs = layer.dirs();
            match output {
                Some(output) => held.outputs.push((output, snapshot, layer)),
                None => held.scratch.push(layer),
            }
            Ok(dirs)
        }
    }
}

/// A local directory is not mounted itself: what its filters let through is copied, so that a step sees neither ignored files nor
/// changes made meanwhile, and cannot write to the user's files.
fn view_dirs(
    shared: &Shared,
    mount: &Mount,
    view: std::sync::Arc<dyn View>,
    held: &mut Held,
    progress: &StepProgress,
) -> Result<OverlayDirs, Trouble> {
    let src = if mount.selector.is_empty() { "/" } else { &mount.selector };
    let (snapshot, _) = step::copy_of(shared, view, src, progress)?;
    let top = shared.ports.snapshots.prepare(&snapshot)?;
    let dirs = top.dirs();
    held.scratch.push(top);
    for layer in snapshot.layers {
        held.scratch.push(Box::new(Temporary { layer, snapshots: shared.ports.snapshots.clone() }));
    }
    Ok(dirs)
}

/// A layer that is removed after the step.
struct Temporary {
    layer: rbuild_ports::LayerId,
    snapshots: std::sync::Arc<dyn rbuild_ports::Snapshots>,
}

impl ActiveLayer for Temporary {
    fn dirs(&self) -> OverlayDirs {
        OverlayDirs::default()
    }

    fn commit(self: Box<Self>) -> rbuild_ports::Result<rbuild_ports::CommittedLayer> {
        Err(PortError::new(ErrorKind::Internal, "a temporary layer is not kept"))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed now is found by the next clean-up, since no row names it.
        drop(self.snapshots.remove(&self.layer));
    }
}

/// What a mount besides the root shows; `None` for an optional secret or agent that the user did not give.
fn source(
    shared: &Shared,
    node: &Node,
    mount: &Mount,
    held: &mut Held,
    progress: &StepProgress,
) -> Result<Option<MountSource>, Trouble> {
    match &mount.kind {
        MountKind::Bind => Ok(Some(MountSource::Layers(layers(shared, node, mount, held, progress)?))),
        MountKind::Tmpfs { size } => Ok(Some(MountSource::Tmpfs { size: u64::try_from(*size).unwrap_or(0) })),
        MountKind::Cache { id, sharing } => {
            let init = match mount.input.and_then(|input| node.inputs.get(input as usize)) {
                Some(edge) => Some(shared.snapshot(*edge, progress)?),
                None => None,
            };
            let cache = shared.ports.snapshots.cache_mount(id, *sharing, init.as_ref(), &shared.cancel)?;
            let dir = cache.path().to_owned();
            held.caches.push(cache);
            Ok(Some(MountSource::Dir(dir)))
        }
        MountKind::Secret { id, uid, gid, mode, optional } => match shared.ports.secrets.secret(id)? {
            Some(data) => Ok(Some(MountSource::Secret { data, uid: *uid, gid: *gid, mode: *mode })),
            None if *optional => Ok(None),
            None => Err(missing_secret(id)),
        },
        MountKind::Ssh { id, uid, gid, mode, optional } => {
            let id = if id.is_empty() { "default" } else { id };
            match shared.ports.secrets.ssh_agent(id)? {
                Some(socket) => Ok(Some(MountSource::SshAgent { socket, uid: *uid, gid: *gid, mode: *mode })),
                None if *optional => Ok(None),
                None => Err(PortError::new(
                    ErrorKind::Invalid,
                    format!("the step needs the ssh agent {id:?}, which was not given"),
                )
                .help(format!("start an agent and build with --ssh {id}"))
                .into()),
            }
        }
    }
}

fn missing_secret(id: &str) -> Trouble {
    PortError::new(ErrorKind::Invalid, format!("the step needs the secret {id:?}, which was not given"))
        .help(format!("build with --secret id={id},src=FILE or --secret id={id},env=NAME"))
        .into()
}

fn secret_env(shared: &Shared, op: &ExecOp) -> Result<Vec<(String, SecretBytes)>, Trouble> {
    let mut out = Vec::new();
    for secret in &op.spec.secret_env {
        match shared.ports.secrets.secret(&secret.id)? {
            Some(data) => out.push((secret.name.clone(), data)),
            None if secret.optional => {}
            None => return Err(missing_secret(&secret.id)),
        }
    }
    Ok(out)
}
