//! Following symbolic links inside a tree, as if the tree were the whole file system: absolute targets start at its
//! root, and `..` stops there. What does not exist is taken literally. Knows trees only by a look-up.

use std::collections::VecDeque;

use rbuild_ports::{ErrorKind, PortError, Result};
use rbuild_tree::{Kind, RelPath};

/// As many links as BuildKit and the kernel's callers allow.
const MOST_LINKS: u32 = 255;

/// What is at a path, links not followed.
pub(crate) type Lookup<'a> = dyn Fn(&RelPath) -> Result<Option<Kind>> + 'a;

/// The place that `path` leads to. The last component is followed too if `follow_last`.
pub(crate) fn resolve(path: &[u8], follow_last: bool, lookup: &Lookup<'_>) -> Result<RelPath> {
    let mut rest: VecDeque<Vec<u8>> = components(path).collect();
    let mut place = RelPath::root();
    let mut links = 0;
    let mut missing = false;
    while let Some(component) = rest.pop_front() {
        if component == b".." {
            place = place.parent().unwrap_or_default();
            missing = false;
            continue;
        }
        let next = place.child(&component).map_err(|e| PortError::new(ErrorKind::Invalid, e.to_string()))?;
        let last = rest.is_empty();
        if missing || (last && !follow_last) {
            place = next;
            continue;
        }
        match lookup(&next)? {
            Some(Kind::Symlink { target }) => {
                links += 1;
                if links > MOST_LINKS {
                    let shown = String::from_utf8_lossy(path);
                    return Err(PortError::new(
                        ErrorKind::Invalid,
                        format!("{shown}: too many levels of symbolic links"),
                    ));
                }
                if target.starts_with(b"/") {
                    place = RelPath::root();
                }
                for part in components(&target).rev() {
                    rest.push_front(part);
                }
            }
            found => {
                missing = found.is_none();
                place = next;
            }
        }
    }
    Ok(place)
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|c| *c == b'/').filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside() {
        let links = [
            ("lib", "usr/lib"),
            ("abs", "/usr/bin"),
            ("up", "../../../../etc"),
            ("usr/self", ".."),
            ("loop", "loop2"),
            ("loop2", "loop"),
            ("dangling", "no/such"),
        ];
        let dirs = ["usr", "usr/lib", "usr/bin", "etc"];
        let lookup = |path: &RelPath| {
            let text = String::from_utf8_lossy(path.as_bytes()).into_owned();
            let link = links.iter().find(|(name, _)| *name == text);
            let dir = dirs.contains(&text.as_str()).then_some(Kind::Dir);
            Ok(link.map(|(_, target)| Kind::Symlink { target: target.as_bytes().to_vec() }).or(dir))
        };
        for (path, follow, want) in [
            ("lib/x", true, "/usr/lib/x"),
            ("/abs/sh", true, "/usr/bin/sh"),
            ("up/passwd", true, "/etc/passwd"),
            ("usr/self/lib/y", true, "/usr/lib/y"),
            ("lib", false, "/lib"),
            ("lib/", true, "/usr/lib"),
            ("../../x", true, "/x"),
            ("dangling/f", true, "/no/such/f"),
            ("nothing/../lib/z", true, "/usr/lib/z"),
            ("/", true, "/"),
        ] {
            assert_eq!(resolve(path.as_bytes(), follow, &lookup).unwrap().to_string(), want, "{path}");
        }
        assert_eq!(resolve(b"loop/x", true, &lookup).unwrap_err().kind, ErrorKind::Invalid);
    }
}
