//! Walks a snapshot for exports of files: directories before what is in them, by name, and every further name of a
//! file as a hard link to the first.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

use rbuild_oci::Platform;
use rbuild_ports::{CancelToken, ErrorKind, PortError, Result, View};
use rbuild_tree::{Entry, Kind, RelPath};

/// Calls `visit` for everything but the root; regular files come open.
pub(crate) fn walk(
    view: &dyn View,
    cancel: &CancelToken,
    visit: &mut dyn FnMut(Entry, Option<File>) -> Result<()>,
) -> Result<()> {
    let mut links: HashMap<(u64, u64), RelPath> = HashMap::new();
    let mut todo = vec![];
    push_children(view, &RelPath::root(), &mut todo)?;
    while let Some(path) = todo.pop() {
        cancel.check()?;
        let mut entry = view.lookup(&path)?.ok_or_else(|| {
            PortError::new(ErrorKind::NotFound, format!("{path} vanished from the image while it was read"))
        })?;
        let mut content = None;
        if let Kind::File { .. } = entry.kind {
            let file = view.open(&path)?;
            let meta = file.metadata().map_err(|error| PortError::io("read", path.as_path(), error))?;
            match links.get(&(meta.dev(), meta.ino())) {
                Some(first) => entry.kind = Kind::Hardlink { target: first.clone() },
                None => {
                    if meta.nlink() > 1 {
                        links.insert((meta.dev(), meta.ino()), path.clone());
                    }
                    content = Some(file);
                }
            }
        }
        let is_dir = entry.is_dir();
        visit(entry, content)?;
        if is_dir {
            push_children(view, &path, &mut todo)?;
        }
    }
    Ok(())
}

fn push_children(view: &dyn View, dir: &RelPath, todo: &mut Vec<RelPath>) -> Result<()> {
    for name in view.children(dir)?.into_iter().rev() {
        let child = dir.child(&name).map_err(|error| {
            PortError::new(ErrorKind::Corrupt, format!("the image has a name that no file can have: {error}"))
        })?;
        todo.push(child);
    }
    Ok(())
}

/// The directory of a platform in outputs of several: `linux_arm_v7`. Whatever a platform is made of, it is one
/// harmless name.
pub(crate) fn platform_dir(platform: &Platform) -> String {
    let text = platform.to_string();
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let name: String = text.chars().map(|c| if safe(c) { c } else { '_' }).collect();
    if name.starts_with('.') { format!("_{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_harmless_names() {
        let arm: Platform = "linux/arm/v7".parse().unwrap();
        assert_eq!(platform_dir(&arm), "linux_arm_v7");
        let evil = Platform { os: "../..".into(), architecture: "x/../y\n".into(), ..Platform::default() };
        assert_eq!(platform_dir(&evil), "_.._.._x_.._y_");
    }
}
