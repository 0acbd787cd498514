//! Commands. The key holds what the command sees, apart from what it may read without being built from it: secret
//! values, addresses of hosts, proxies, contents of cache mounts, what a device is.

use rbuild_digest::Digest;
use rbuild_graph::{
    CacheSharing, CdiDevice, ContentCache, ExecOp, ExecSpec, HostIp, Mount, MountKind, NetMode, SecretEnv,
    SecurityMode, Ulimit,
};
use rbuild_oci::Platform;
use rbuild_tree::{SelectOptions, go_path};

use super::{finish, platform_fields};
use crate::doc::Doc;
use crate::{CacheMap, ContentSelector, ContentSpec, Dep, KeyError};

pub(super) fn cache_map(op: &ExecOp, platform: &Platform, inputs: usize) -> Result<CacheMap, KeyError> {
    let ExecOp { spec, hints: _ } = op;
    let mut doc = Doc::new();
    doc.element("", |doc| {
        doc.silent("Type", "buildkit.exec.v0");
        doc.object("Exec", "", |doc| exec(doc, spec));
        platform_fields(doc, platform);
    });
    let deps = deps(&spec.mounts, inputs, &mut doc)?;
    Ok(finish(doc, deps))
}

fn exec(doc: &mut Doc, spec: &ExecSpec) {
    let ExecSpec {
        args,
        env,
        cwd,
        user,
        extra_hosts,
        hostname,
        ulimits,
        cgroup_parent,
        remove_mount_stubs_recursive,
        valid_exit_codes,
        mounts,
        network,
        security,
        secret_env,
        cdi_devices,
    } = spec;
    doc.object("meta", "", |doc| {
        doc.strings("args", args);
        doc.variables("env", env);
        doc.text("cwd", cwd);
        doc.text("user", user);
        doc.array("extraHosts", extra_hosts, |doc, i, host| {
            // Not in the key: the address, which may differ from machine to machine.
            let HostIp { host, ip: _ } = host;
            doc.element(&format!("extraHosts[{i}]."), |doc| doc.text("Host", host));
        });
        doc.text("hostname", hostname);
        doc.array("ulimit", ulimits, |doc, i, limit| {
            let Ulimit { name, soft, hard } = limit;
            doc.element(&format!("ulimit[{i}]."), |doc| {
                doc.text("Name", name);
                doc.number("Soft", *soft);
                doc.number("Hard", *hard);
            });
        });
        doc.text("cgroupParent", cgroup_parent);
        doc.flag("removeMountStubsRecursive", *remove_mount_stubs_recursive);
        doc.numbers("validExitCodes", valid_exit_codes);
    });
    if !only_root(mounts) {
        doc.array("mounts", mounts, |doc, _, mount| mount_fields(doc, mount));
    }
    let (number, word) = match network {
        NetMode::Sandbox => (0, ""),
        NetMode::Host => (1, "host"),
        NetMode::None => (2, "none"),
    };
    doc.choice("network", number, word);
    let (number, word) = match security {
        SecurityMode::Sandbox => (0, ""),
        SecurityMode::Insecure => (1, "insecure"),
    };
    doc.choice("security", number, word);
    doc.array("secretenv", secret_env, |doc, i, secret| {
        let SecretEnv { id, name, optional } = secret;
        doc.element(&format!("secretenv[{i}]."), |doc| {
            doc.text("ID", id);
            doc.text("name", name);
            doc.flag("optional", *optional);
        });
    });
    doc.array("cdiDevices", cdi_devices, |doc, i, device| {
        let CdiDevice { name, optional } = device;
        doc.element(&format!("cdiDevices[{i}]."), |doc| {
            doc.text("name", name);
            doc.flag("optional", *optional);
        });
    });
}

/// The plain case of a command on a root file system is hashed without its mount, as old versions did.
fn only_root(mounts: &[Mount]) -> bool {
    match mounts {
        [Mount { input: _, selector: _, dest, output: _, readonly, kind, content_cache: _ }] => {
            dest == "/" && !readonly && *kind == MountKind::Bind
        }
        _ => false,
    }
}

fn mount_fields(doc: &mut Doc, mount: &Mount) {
    // Not here: the selector, which stands in the link to the input.
    let Mount { input, selector: _, dest, output, readonly, kind, content_cache } = mount;
    let prefix = format!("mount {dest} ");
    doc.element(&prefix, |doc| {
        doc.number("input", input.map_or(-1, i64::from));
        doc.text("dest", dest);
        doc.number(
            "output",
            match kind {
                // They never have an output; LLB leaves the field at 0.
                MountKind::Secret { .. } | MountKind::Ssh { .. } => 0,
                MountKind::Bind | MountKind::Cache { .. } | MountKind::Tmpfs { .. } => {
                    output.map_or(-1, i64::from)
                }
            },
        );
        doc.flag("readonly", *readonly);
        kind_fields(doc, dest, kind);
        let (number, word) = match content_cache {
            ContentCache::Default => (0, ""),
            ContentCache::On => (1, "on"),
            ContentCache::Off => (2, "off"),
        };
        doc.choice("contentCache", number, word);
    });
}

fn kind_fields(doc: &mut Doc, dest: &str, kind: &MountKind) {
    match kind {
        MountKind::Bind => {}
        MountKind::Secret { id, uid, gid, mode, optional } => {
            doc.choice("mountType", 1, "secret");
            doc.object("secretOpt", "", |doc| credential(doc, id, [*uid, *gid, *mode], *optional));
        }
        MountKind::Ssh { id, uid, gid, mode, optional } => {
            doc.choice("mountType", 2, "ssh");
            doc.object("SSHOpt", "", |doc| credential(doc, id, [*uid, *gid, *mode], *optional));
        }
        MountKind::Cache { id, sharing } => {
            doc.choice("mountType", 3, "cache");
            // Only the id that the frontend gives by default is in the key, so that it stays what it was.
            let default = id == dest || id.split_once('/').is_some_and(|(_, rest)| rest == dest);
            doc.object("cacheOpt", "", |doc| {
                if default && *sharing == CacheSharing::Shared {
                    doc.text("ID", id);
                }
            });
        }
        MountKind::Tmpfs { size } => {
            doc.choice("mountType", 4, "tmpfs");
            doc.object("TmpfsOpt", "", |doc| doc.number("size", *size));
        }
    }
}

fn credential(doc: &mut Doc, id: &str, [uid, gid, mode]: [u32; 3], optional: bool) {
    doc.text("ID", id);
    doc.number("uid", i64::from(uid));
    doc.number("gid", i64::from(gid));
    doc.number("mode", i64::from(mode));
    doc.flag("optional", optional);
}

fn deps(mounts: &[Mount], inputs: usize, doc: &mut Doc) -> Result<Vec<Dep>, KeyError> {
    let mut selectors: Vec<Vec<String>> = vec![Vec::new(); inputs];
    let mut by_content = vec![false; inputs];
    for mount in mounts {
        let Mount { input, selector, dest, output, readonly, kind, content_cache } = mount;
        let input = match (kind, input) {
            (MountKind::Bind | MountKind::Cache { .. }, Some(input)) => *input,
            _ => continue,
        };
        let path = go_path::join(&["/", selector]);
        // Safe where nothing that was not selected can reach a later step.
        let safe = output.is_none() || *readonly || path == "/";
        let content = match content_cache {
            ContentCache::Off => false,
            ContentCache::On if !safe => return Err(KeyError::ContentCache { dest: dest.clone() }),
            ContentCache::On => true,
            // The root file system is never worth it.
            ContentCache::Default => safe && dest != "/",
        };
        let place = input as usize;
        let (Some(paths), Some(decided)) = (selectors.get_mut(place), by_content.get_mut(place)) else {
            return Err(KeyError::NoSuchInput { input, inputs });
        };
        paths.push(path);
        // The last mount of an input decides, as in BuildKit.
        *decided = content;
    }
    let mut out = Vec::with_capacity(inputs);
    for (i, (paths, content)) in selectors.into_iter().zip(by_content).enumerate() {
        for path in paths.iter().filter(|path| *path != "/") {
            doc.note(&format!("input {i} path"), path);
        }
        let selector = if paths.is_empty() { None } else { Some(Digest::of(paths.join("\0"))) };
        let content = content.then(|| ContentSpec { selectors: content_selectors(paths) });
        out.push(Dep { selector, content });
    }
    Ok(out)
}

fn content_selectors(paths: Vec<String>) -> Vec<ContentSelector> {
    let paths = dedupe(paths);
    let whole = || ContentSelector { path: "/".to_owned(), options: SelectOptions::default() };
    if paths.is_empty() || paths.iter().any(|path| path == "/") {
        return vec![whole()];
    }
    let follow = SelectOptions { follow_links: true, ..SelectOptions::default() };
    paths.into_iter().map(|path| ContentSelector { path, options: follow.clone() }).collect()
}

/// Sorted, each once, without what lies in another one.
pub(super) fn dedupe(mut paths: Vec<String>) -> Vec<String> {
    if paths.len() <= 1 {
        return paths;
    }
    paths.sort();
    paths.dedup();
    let inside = |path: &str, dir: &str| {
        path != dir && path.strip_prefix(dir).is_some_and(|rest| dir.ends_with('/') || rest.starts_with('/'))
    };
    let all = paths.clone();
    paths.retain(|path| !all.iter().any(|other| inside(path, other)));
    paths
}
