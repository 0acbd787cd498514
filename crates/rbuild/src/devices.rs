//! Devices of the machine, as the specs in some directories describe them: what the user allows a build of them, and the
//! port that steps ask.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use rbuild_cdi::{Grants, Registry, RegistryError};
use rbuild_diag::{Diagnostic, nearest};
use rbuild_graph::{CdiDevice, Edge, Node, Op};
use rbuild_lower::Lowered;
use rbuild_ports::{DeviceEdits, Devices, ErrorKind, PortError, Result};

use crate::{BuildError, BuildErrorKind, Entitlement, codes};

/// No spec is larger.
const MAX_BYTES: u64 = 16 << 20;

/// Directories with specs; later ones win.
pub(crate) struct SpecDirs(pub(crate) Vec<PathBuf>);

/// The devices, and what is wrong with the specs.
struct Found {
    registry: Registry,
    faults: Vec<String>,
}

impl SpecDirs {
    /// Reads what is there now. A spec that cannot be used is as one that is not there, but for the fault.
    fn read(&self) -> Found {
        let (mut specs, mut faults) = (Vec::new(), Vec::new());
        for (number, dir) in self.0.iter().enumerate() {
            let mut paths: Vec<PathBuf> = match std::fs::read_dir(dir) {
                Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    faults.push(format!("{}: {error}", dir.display()));
                    continue;
                }
            };
            paths.sort();
            for path in paths {
                let extension = path.extension().and_then(|extension| extension.to_str());
                if !matches!(extension, Some("json" | "yaml")) || path.is_dir() {
                    continue;
                }
                let spec = read(&path).and_then(|text| {
                    rbuild_cdi::parse(&text, extension == Some("json")).map_err(|error| error.to_string())
                });
                match spec {
                    Ok(spec) => specs.push((number, spec)),
                    Err(why) => faults.push(format!("the spec {} is not used: {why}", path.display())),
                }
            }
        }
        let (registry, conflicts) = Registry::new(specs);
        faults.extend(
            conflicts.iter().map(|name| format!("two specs of one directory have {name}, so it is not used")),
        );
        Found { registry, faults }
    }

    fn known(&self) -> String {
        self.0.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(" and ")
    }

    /// What went wrong, as advice too.
    fn advice(&self, error: &RegistryError, found: &Found) -> (Option<String>, Vec<String>) {
        match error {
            RegistryError::Unknown { name, known } => {
                let help = match nearest(name, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean {near}?"),
                    None if known.is_empty() => format!("no specs of devices are in {}", self.known()),
                    None => format!("this machine has {}", known.join(", ")),
                };
                (Some(help), found.faults.clone())
            }
            RegistryError::Denied(names) => {
                let allow = names.iter().map(|name| format!("--allow device={name}"));
                let allow = allow.collect::<Vec<_>>().join(" ");
                (
                    Some(format!(
                        "if you trust this Dockerfile, build with {allow}, or --allow device for all"
                    )),
                    vec![],
                )
            }
            RegistryError::Name(..) => (Some("write --device=vendor.com/class=name".to_owned()), vec![]),
            RegistryError::Edits(_) => (None, vec![]),
        }
    }
}

fn read(path: &Path) -> std::result::Result<String, String> {
    let failed = |error: std::io::Error| error.to_string();
    let file = std::fs::File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err("it is no regular file".to_owned());
    }
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err("it is larger than 16 MiB".to_owned());
    }
    Ok(text)
}

impl Devices for SpecDirs {
    fn edits(&self, devices: &[CdiDevice]) -> Result<DeviceEdits> {
        let found = self.read();
        found.registry.edits(devices).map_err(|error| {
            let (help, notes) = self.advice(&error, &found);
            let mut message = error.to_string();
            notes.iter().for_each(|note| message.push_str(&format!("; {note}")));
            let out = PortError::new(ErrorKind::Invalid, message);
            match help {
                Some(help) => out.help(help),
                None => out,
            }
        })
    }
}

/// The user's word on devices; `None` allows none by name.
fn grants(allowed: &[Entitlement]) -> Grants {
    let mut out = Grants { all: false, devices: BTreeMap::new() };
    for entitlement in allowed {
        match entitlement {
            Entitlement::Devices => out.all = true,
            Entitlement::Device { name, alias: None } => drop(out.devices.insert(name.clone(), None)),
            Entitlement::Device { name, alias: Some(alias) } => {
                out.devices.insert(alias.clone(), Some(name.clone()));
            }
            Entitlement::NetworkHost | Entitlement::SecurityInsecure => {}
        }
    }
    out
}

/// Puts the devices that are granted in place of those that were asked for.
///
/// # Errors
/// If one is not allowed, or is required and not there.
pub(crate) fn grant(
    plan: &mut Lowered,
    allowed: &[Entitlement],
    dirs: &SpecDirs,
) -> std::result::Result<(), BuildError> {
    let asks = |node: &Node| matches!(&node.op, Op::Exec(exec) if !exec.spec.cdi_devices.is_empty());
    if !plan.graph.nodes().any(|(_, node)| asks(node)) {
        return Ok(());
    }
    let grants = grants(allowed);
    let found = dirs.read();
    for (_, node) in plan.graph.nodes() {
        let Op::Exec(exec) = &node.op else { continue };
        if let Err(error) = found.registry.grant(&exec.spec.cdi_devices, &grants) {
            return Err(refused(&error, node, dirs, &found));
        }
    }
    let (graph, places) = plan
        .graph
        .map(|op| {
            if let Op::Exec(exec) = op
                && let Ok(granted) = found.registry.grant(&exec.spec.cdi_devices, &grants)
            {
                exec.spec.cdi_devices = granted;
            }
        })
        .map_err(|error| PortError::new(ErrorKind::Internal, error.to_string()))?;
    let edges = plan.target.iter_mut().chain(&mut plan.scan_context);
    for edge in edges.chain(plan.scan_stages.iter_mut().map(|(_, edge)| edge)) {
        if let Some(node) = places.get(edge.node.index()) {
            *edge = Edge { node: *node, output: edge.output };
        }
    }
    plan.graph = graph;
    Ok(())
}

fn refused(error: &RegistryError, node: &Node, dirs: &SpecDirs, found: &Found) -> BuildError {
    let mut diagnostic = Diagnostic::error(codes::DENIED, error.to_string());
    let (help, notes) = dirs.advice(error, found);
    if let Some(help) = help {
        diagnostic = diagnostic.help(help);
    }
    for note in notes {
        diagnostic = diagnostic.note(note);
    }
    if let Some(place) = &node.meta.place {
        diagnostic = diagnostic.at(&place.file, place.span);
    }
    BuildError::new(BuildErrorKind::User, diagnostic)
}
