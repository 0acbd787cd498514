//! Sources: what they resolved to, never where it came from.

use rbuild_digest::Digest;
use rbuild_graph::{GitSource, HttpSource, ImageSource, LocalSource, OciLayoutSource, SourceOp};
use rbuild_oci::{Platform, chain_ids};

use super::platform_fields;
use crate::doc::Doc;
use crate::{CacheMap, Facts, KeyError, OpDigest, Preimage};

const TYPE: &str = "buildkit.source.v0";

pub(super) fn cache_map(op: &SourceOp, platform: &Platform, facts: &Facts) -> Result<CacheMap, KeyError> {
    match op {
        SourceOp::Image(source) => {
            // Not in the key: the name, and the platform's manifest, which the digest and the platform decide.
            let ImageSource { reference: _, digest, manifest: _, diff_ids } = source;
            Ok(image(digest, diff_ids, platform))
        }
        SourceOp::OciLayout(source) => {
            // Not in the key: where the layout lies.
            let OciLayoutSource { store: _, path: _, digest, manifest: _, diff_ids } = source;
            Ok(image(digest, diff_ids, platform))
        }
        SourceOp::Local(source) => Ok(local(source, facts)),
        SourceOp::Git(source) => Ok(git(source)),
        SourceOp::Http(source) => http(source, facts),
    }
}

fn root(key: &str, doc: Doc) -> CacheMap {
    let preimage = Preimage { text: format!("{TYPE}:{key}"), ..doc.finish() };
    let digest = OpDigest::Fixed(preimage.digest());
    CacheMap { digest, extra_roots: Vec::new(), deps: Vec::new(), preimage }
}

fn image(digest: &Digest, diff_ids: &[Digest], platform: &Platform) -> CacheMap {
    let mut doc = Doc::new();
    doc.element("", |doc| {
        doc.string("Digest", &digest.to_string());
        platform_fields(doc, platform);
    });
    let json = doc.finish();
    let mut map = root(&json.digest().to_string(), Doc::new());
    map.preimage.fields = json.fields;
    // Images with the same layers are the same to steps that follow, whatever their configuration.
    if let Some(chain) = chain_ids(diff_ids).last() {
        map.extra_roots.push(Digest::of(format!("{TYPE}:{chain}")));
    }
    map
}

fn local(source: &LocalSource, facts: &Facts) -> CacheMap {
    let LocalSource { name, include, exclude, follow_paths } = source;
    let mut doc = Doc::new();
    doc.note("name", name);
    doc.element("", |doc| {
        doc.silent("SessionID", &facts.session);
        doc.strings_or_null("IncludePatterns", include);
        doc.strings_or_null("ExcludePatterns", exclude);
        doc.strings_or_null("FollowPaths", follow_paths);
    });
    let Preimage { text, fields } = doc.finish();
    let mut map = root(&format!("session:{name}:{}", Digest::of(text)), Doc::new());
    map.digest = OpDigest::Random(map.preimage.digest());
    map.preimage.fields = fields;
    map
}

fn git(source: &GitSource) -> CacheMap {
    // Not in the key: the address, which cannot change what a commit holds.
    let GitSource { url: _, reference, subdir, commit, keep_git_dir, skip_submodules } = source;
    let mut doc = Doc::new();
    let mut key = commit.clone();
    doc.note("commit", commit);
    if *keep_git_dir {
        key.push_str(".git");
        doc.note("keepGitDir", "true");
        if !reference.is_empty() {
            key.push('#');
            key.push_str(reference);
            doc.note("reference", reference);
        }
    }
    if !subdir.is_empty() {
        key.push(':');
        key.push_str(subdir);
        doc.note("subdir", subdir);
    }
    if *skip_submodules {
        key.push_str("(skip-submodules)");
        doc.note("skipSubmodules", "true");
    }
    root(&key, doc)
}

fn http(source: &HttpSource, facts: &Facts) -> Result<CacheMap, KeyError> {
    // Not in the key: the address; the content is.
    let HttpSource { url, filename, checksum, mode, uid, gid } = source;
    let known = facts.http.as_ref();
    let content = match (checksum, known) {
        (Some(pinned), _) => *pinned,
        (None, Some(http)) => http.content,
        (None, None) => return Err(KeyError::HttpContent { url: url.clone() }),
    };
    let modified = known.filter(|_| checksum.is_none()).and_then(|http| http.last_modified.as_deref());
    let mut doc = Doc::new();
    doc.element("", |doc| {
        doc.string("Filename", filename);
        doc.int("Perm", i64::from(*mode));
        doc.int("UID", i64::from(*uid));
        doc.int("GID", i64::from(*gid));
        doc.string("Checksum", &content.to_string());
        doc.text("LastModTime", modified.unwrap_or_default());
    });
    let json = doc.finish();
    let mut map = root(&json.digest().to_string(), Doc::new());
    map.preimage.fields = json.fields;
    Ok(map)
}
