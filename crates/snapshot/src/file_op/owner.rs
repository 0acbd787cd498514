//! Who owns what is made: numbers, or names looked up in the tree's own `/etc/passwd` and `/etc/group`. As BuildKit,
//! a name that is not there is 0; a user brings its primary group.

use std::io::Read;

use rbuild_graph::{Chown, UserRef};
use rbuild_ports::{ErrorKind, PortError, Result, View};
use rbuild_tree::Kind;

use crate::meta::failed;
use crate::resolve::resolve;

/// Larger databases are refused: they are read whole.
const MOST: u64 = 10 << 20;

/// User and group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The owner that `chown` asks for; `tree` opens the tree with an index as in a file action.
pub(crate) fn owner(
    chown: Option<&Chown>,
    tree: &dyn Fn(Option<u32>) -> Result<std::sync::Arc<dyn View>>,
) -> Result<Option<Owner>> {
    let Some(Chown { user, group }) = chown else { return Ok(None) };
    let mut owner = Owner { uid: 0, gid: 0 };
    match user {
        None => {}
        Some(UserRef::Id(id)) => owner = Owner { uid: *id, gid: *id },
        Some(UserRef::Name { name, input }) => {
            let text = database(&*tree(*input)?, b"/etc/passwd")?;
            if let Some((uid, rest)) = find(&text, name) {
                owner = Owner { uid, gid: rest.and_then(number).unwrap_or(0) };
            }
        }
    }
    match group {
        None => {}
        Some(UserRef::Id(id)) => owner.gid = *id,
        Some(UserRef::Name { name, input }) => {
            let text = database(&*tree(*input)?, b"/etc/group")?;
            if let Some((gid, _)) = find(&text, name) {
                owner.gid = gid;
            }
        }
    }
    Ok(Some(owner))
}

/// The third and the fourth field of the first line whose first field is `name`.
fn find<'a>(text: &'a [u8], name: &str) -> Option<(u32, Option<&'a [u8]>)> {
    text.split(|c| *c == b'\n').find_map(|line| {
        let mut fields = line.trim_ascii().split(|c| *c == b':');
        if fields.next()? != name.as_bytes() {
            return None;
        }
        Some((number(fields.nth(1)?)?, fields.next()))
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.trim().parse().ok()
}

/// The content of a database; empty when there is none.
fn database(tree: &dyn View, path: &[u8]) -> Result<Vec<u8>> {
    let place = resolve(path, true, &|path| Ok(tree.lookup(path)?.map(|entry| entry.kind)))?;
    let size = match tree.lookup(&place)?.map(|entry| entry.kind) {
        None => return Ok(Vec::new()),
        Some(Kind::File { size }) if size <= MOST => size,
        Some(Kind::File { size }) => {
            let message =
                format!("{place} has {size} bytes, more than the {MOST} that a user database may have");
            return Err(PortError::new(ErrorKind::Invalid, message));
        }
        Some(_) => {
            let message = format!("{place} is no regular file, so owners cannot be looked up by name in it");
            return Err(PortError::new(ErrorKind::Invalid, message));
        }
    };
    let mut text = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    let file = tree.open(&place)?;
    file.take(MOST).read_to_end(&mut text).map_err(|e| failed("read", &place, e))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_their_first_field() {
        let text = b"# comment\nroot:x:0:0::/root:/bin/sh\nbob:x:1001:1002:Bob\nbad:x:nan:1\nbig:x:4294967296:1\nshort:x\n";
        assert_eq!(find(text, "bob"), Some((1001, Some(&b"1002"[..]))));
        for name in ["bad", "big", "short", "nobody", "ro"] {
            assert_eq!(find(text, name), None, "{name}");
        }
        assert_eq!(find(b"g:x:7:bob,eve", "g").map(|(gid, _)| gid), Some(7));
    }
}
