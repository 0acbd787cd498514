//! The traversal of every operation. Each struct is taken apart without `..`: a new field does not compile until
//! somebody decides whether it is part of the key.

mod exec;
mod file;
mod layers;
mod source;

use rbuild_graph::{Node, Op};
use rbuild_oci::Platform;

use crate::doc::Doc;
use crate::{CacheMap, Dep, Facts, KeyError, OpDigest};

/// What the node contributes to its key. Its inputs' keys are not looked at.
///
/// # Errors
/// If the node is a web source whose content is not in `facts`, or an operation is not valid.
pub fn cache_map(node: &Node, facts: &Facts) -> Result<CacheMap, KeyError> {
    // Not in the key: `meta` is for people, and edges are links. The platform is in the keys of images and commands.
    let Node { op, inputs, platform, meta: _ } = node;
    let inputs = inputs.len();
    match op {
        Op::Source(source) => source::cache_map(source, platform, facts),
        Op::Exec(exec) => exec::cache_map(exec, platform, inputs),
        Op::File(file) => Ok(file::cache_map(file, inputs)),
        Op::Merge(merge) => Ok(layers::merge(merge, inputs)),
        Op::Diff(diff) => Ok(layers::diff(diff, inputs)),
    }
}

/// Hashes the document.
fn finish(doc: Doc, deps: Vec<Dep>) -> CacheMap {
    let preimage = doc.finish();
    CacheMap { digest: OpDigest::Fixed(preimage.digest()), extra_roots: Vec::new(), deps, preimage }
}

/// The platform as BuildKit writes it into keys.
fn platform_fields(doc: &mut Doc, platform: &Platform) {
    let Platform { architecture, os, os_version, os_features, variant } = platform;
    doc.string("OS", os);
    doc.string("Arch", architecture);
    doc.text("Variant", variant);
    doc.text("OSVersion", os_version);
    doc.strings("OSFeatures", os_features);
}
