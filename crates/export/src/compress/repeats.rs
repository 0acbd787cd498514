//! Contents of files that were compressed already: their members are copied from the blob that has them. So a file that is in
//! a layer twice, or in the layers of several stages, is compressed once. Equal contents give equal members either way, so
//! this is never seen in the bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use libdeflater::crc32;
use rbuild_digest::Digest;
use rbuild_ports::ReadAt;

/// Members that are remembered at most; each takes about a hundred bytes.
const MEMBERS: usize = 1 << 17;

/// Where the members of contents are.
#[derive(Default)]
pub(super) struct Repeats {
    known: Mutex<HashMap<(i32, Digest), Member>>,
}

/// A member within a blob.
#[derive(Clone)]
pub(super) struct Member {
    /// The blob, of which all bytes of the member are in the file.
    pub(super) blob: Arc<dyn ReadAt>,
    pub(super) at: u64,
    pub(super) length: usize,
    pub(super) crc: u32,
}

impl Repeats {
    /// Replaces `out` by the member of `content`; false if there is none.
    pub(super) fn copy(&self, level: i32, content: &Digest, out: &mut Vec<u8>) -> bool {
        let member = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(&(level, *content)).cloned()
        };
        let Some(member) = member else { return false };
        out.resize(member.length, 0);
        member.blob.read_exact_at(out, member.at).is_ok() && crc32(out) == member.crc
    }

    /// Remembers where the member of `content` is.
    pub(super) fn add(&self, level: i32, content: Digest, member: Member) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MEMBERS {
            known.entry((level, content)).or_insert(member);
        }
    }
}
