//! What devices add to a step: the edits of their specs and their own, as the executor takes them. What it cannot do is
//! an error that says so.

use std::path::PathBuf;

use rbuild_ports::{DeviceEdits, DeviceKind, DeviceNode, HostMount};

use crate::spec::{Edits, Mount, Node, Number};

/// What of a device cannot be done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EditsError {
    /// A program of the host that should run as the step starts.
    #[error("the device {device} needs the {hook} hook {path}, and hooks of devices are not run")]
    Hook {
        /// Of the device, or of its spec.
        device: String,
        /// When it should run.
        hook: String,
        /// The program.
        path: String,
    },
    /// A field that has no effect here.
    #[error("the device {device} needs {field}, which steps cannot have")]
    Field {
        /// The device.
        device: String,
        /// The field.
        field: &'static str,
    },
    /// A mount that cannot be made.
    #[error("the device {device} needs {path} mounted with {what:?}, which steps cannot have")]
    Mount {
        /// The device.
        device: String,
        /// The path in the step.
        path: String,
        /// Its type, or an option.
        what: String,
    },
}

/// Adds `edits`, which belong to `device`.
pub(crate) fn add(out: &mut DeviceEdits, edits: &Edits, device: &str) -> Result<(), EditsError> {
    let Edits { env, device_nodes, net_devices, hooks, mounts, intel_rdt, additional_gids } = edits;
    let device = || device.to_owned();
    if let Some(hook) = hooks.first() {
        let (hook, path) = (hook.hook_name.clone(), hook.path.clone());
        return Err(EditsError::Hook { device: device(), hook, path });
    }
    if !net_devices.is_empty() {
        return Err(EditsError::Field { device: device(), field: "netDevices" });
    }
    if intel_rdt.is_some() {
        return Err(EditsError::Field { device: device(), field: "intelRdt" });
    }
    out.env.extend(env.iter().cloned());
    for node in device_nodes.iter().map(node) {
        out.nodes.retain(|other| other.path != node.path);
        out.nodes.push(node);
    }
    for given in mounts {
        let mount = mount(given).map_err(|what| EditsError::Mount {
            device: device(),
            path: given.container_path.clone(),
            what,
        })?;
        out.mounts.retain(|other| other.dest != mount.dest);
        out.mounts.push(mount);
    }
    out.groups.extend(additional_gids.iter().map(|gid| gid.0).filter(|gid| *gid != 0));
    Ok(())
}

fn node(node: &Node) -> DeviceNode {
    let number = |number: &Option<Number>| number.map(|number| number.0);
    DeviceNode {
        path: node.path.clone(),
        host_path: PathBuf::from(if node.host_path.is_empty() { &node.path } else { &node.host_path }),
        kind: match node.kind.as_str() {
            "b" => Some(DeviceKind::Block),
            "c" | "u" => Some(DeviceKind::Character),
            "p" => Some(DeviceKind::Pipe),
            _ => None,
        },
        // 0 is not known, as in runtimes.
        number: number(&node.major)
            .filter(|major| *major != 0)
            .map(|m| (m, number(&node.minor).unwrap_or(0))),
        mode: number(&node.file_mode),
        uid: number(&node.uid),
        gid: number(&node.gid),
        permissions: node.permissions.clone(),
    }
}

/// What of it cannot be done is the error.
fn mount(mount: &Mount) -> Result<HostMount, String> {
    if !["", "bind", "none"].contains(&mount.kind.as_str()) {
        return Err(mount.kind.clone());
    }
    let mut out = HostMount {
        source: PathBuf::from(&mount.host_path),
        dest: mount.container_path.clone(),
        recursive: false,
        readonly: false,
        nosuid: false,
        nodev: false,
        noexec: false,
    };
    for option in &mount.options {
        match option.as_str() {
            "bind" | "defaults" | "private" | "rprivate" | "slave" | "rslave" | "" => {}
            "rbind" => out.recursive = true,
            "ro" => out.readonly = true,
            "rw" => out.readonly = false,
            "nosuid" => out.nosuid = true,
            "suid" => out.nosuid = false,
            "nodev" => out.nodev = true,
            "dev" => out.nodev = false,
            "noexec" => out.noexec = true,
            "exec" => out.noexec = false,
            other => return Err(other.to_owned()),
        }
    }
    Ok(out)
}
