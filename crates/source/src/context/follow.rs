//! The paths a build asks for, and what they link to: a link inside the context brings along what it points to, also by
//! way of further links and wildcards. Nothing outside the context is looked at.

use std::collections::BTreeSet;
use std::io;

use rbuild_tree::{Glob, go_path, has_wildcard};
use rustix::fs::RawDir;

use super::root::{Root, is_gone};

/// More links than this are a circle.
const MAX_LINKS: usize = 10_000;

/// Patterns that show `paths` and everything they link to; `None` when that is the whole context.
pub(crate) fn follow(root: &Root, paths: &[String]) -> io::Result<Option<Vec<String>>> {
    let mut resolver = Resolver { root, found: BTreeSet::new(), left: MAX_LINKS };
    for path in paths {
        resolver.add(path)?;
    }
    if resolver.found.contains("") {
        return Ok(None);
    }
    let mut out: Vec<String> = Vec::new();
    for path in resolver.found {
        // What lies in a directory that is taken whole need not be named.
        let covered = out
            .last()
            .is_some_and(|last| path.strip_prefix(last.as_str()).is_some_and(|rest| rest.starts_with('/')));
        if !covered {
            out.push(path);
        }
    }
    Ok(Some(out))
}

struct Resolver<'a> {
    root: &'a Root,
    found: BTreeSet<String>,
    left: usize,
}

impl Resolver<'_> {
    fn add(&mut self, path: &str) -> io::Result<()> {
        // As seen from the root: `..` cannot leave it.
        let mut todo = vec![go_path::clean(&format!("/{path}"))];
        while let Some(path) = todo.pop() {
            self.add_one(&path, &mut todo)?;
        }
        Ok(())
    }

    /// Walks down `path` until it ends or a link leads elsewhere.
    fn add_one(&mut self, path: &str, todo: &mut Vec<String>) -> io::Result<()> {
        let components: Vec<&str> = path.split('/').filter(|component| !component.is_empty()).collect();
        if components.is_empty() {
            self.found.insert(String::new());
            return Ok(());
        }
        let mut current = String::new();
        for (n, component) in components.iter().enumerate() {
            let parent = current.clone();
            if !current.is_empty() {
                current.push('/');
            }
            current.push_str(component);
            let rest = &components[n + 1..];
            let targets = self.targets(&parent, component)?;
            if (rest.is_empty() || !targets.is_empty())
                && !self.found.insert(current.clone())
                && rest.is_empty()
            {
                return Ok(());
            }
            if !targets.is_empty() {
                for target in targets {
                    self.left = self.left.saturating_sub(1);
                    if self.left > 0 {
                        todo.push(go_path::clean(&format!("/{target}/{}", rest.join("/"))));
                    }
                }
                return Ok(());
            }
        }
        Ok(())
    }

    /// Where the links lead that `name` in `parent` matches, as paths from the root.
    fn targets(&self, parent: &str, name: &str) -> io::Result<Vec<String>> {
        let mut out = Vec::new();
        let mut one = |name: &str| -> io::Result<()> {
            let path = if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
            if let Some(target) = self.root.read_link(path.as_bytes())? {
                let target = String::from_utf8_lossy(&target).into_owned();
                out.push(if target.starts_with('/') { target } else { format!("{parent}/{target}") });
            }
            Ok(())
        };
        if !has_wildcard(name) {
            one(name)?;
            return Ok(out);
        }
        let Ok(glob) = Glob::new(name) else { return Ok(out) };
        for name in link_names(self.root, parent)? {
            if glob.matches(&name)
                && let Ok(name) = String::from_utf8(name)
            {
                one(&name)?;
            }
        }
        Ok(out)
    }
}

/// Names of entries that are, or may be, links; sorted.
fn link_names(root: &Root, dir: &str) -> io::Result<Vec<Vec<u8>>> {
    let fd = match root.open_dir(dir.as_bytes()) {
        Ok(fd) => fd,
        Err(error) if is_gone(&error) => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if matches!(entry.file_type(), rustix::fs::FileType::Symlink | rustix::fs::FileType::Unknown) {
            names.push(entry.file_name().to_bytes().to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}
