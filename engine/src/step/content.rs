//! Content keys: what an operation reads of an input, hashed as BuildKit hashes it. And sources that are fetched.

use std::sync::Arc;

use rbuild_cache_key::{ContentSpec, Facts, HttpFacts, cache_map, content_key as root_of_content};
use rbuild_digest::Digest;
use rbuild_graph::{Node, NodeId, SourceOp};
use rbuild_ports::{ErrorKind, KeyId, PortError, View};
use rbuild_tree::{NodeKind, RelPath, SelectError, TreeSource, select};

use crate::progress::StepProgress;
use crate::step::Made;
use crate::worker::{Shared, Trouble};
use crate::{Hashed, StepOutput};

/// The content key of `step`'s input at `position`.
pub(crate) fn content_key(
    shared: &Shared,
    step: NodeId,
    position: usize,
    progress: &StepProgress,
) -> Result<KeyId, Trouble> {
    let spec = shared
        .maps
        .get(step.index())
        .and_then(Option::as_ref)
        .and_then(|map| map.deps.get(position))
        .and_then(|dep| dep.content.as_ref());
    let (Some(spec), Some(edge)) = (spec, shared.graph.node(step).inputs.get(position)) else {
        return Err(PortError::new(
            ErrorKind::Internal,
            "the content of an input was asked for that has none",
        )
        .into());
    };
    let view = match shared.present(*edge, progress)? {
        StepOutput::Snapshot(snapshot) => shared.ports.snapshots.view(&snapshot)?,
        StepOutput::View(view) => view,
    };
    shared.cancel.check()?;
    let (digest, entries) = hash(&view, spec)?;
    let key = KeyId::root(&digest);
    shared.events.hashed(Hashed { step, input: position, key: key.clone(), view, entries });
    Ok(key)
}

/// The digest of what `spec` selects, and of each entry that counts.
fn hash(view: &Arc<dyn View>, spec: &ContentSpec) -> Result<(Digest, Vec<(RelPath, Digest)>), Trouble> {
    let tree = ViewTree(&**view);
    let mut entries = Vec::new();
    let mut digests = Vec::with_capacity(spec.selectors.len());
    for selector in &spec.selectors {
        let selection = select(&tree, &selector.path, &selector.options).map_err(|error| match error {
            SelectError::Source(error) => error,
            // It may be below the selected path: what is required there, or a link that leads nowhere.
            SelectError::NotFound(ref path) | SelectError::TooManyLinks(ref path) => {
                not_found(&tree, &format!("/{}", path.trim_matches('/')), &error)
            }
            error @ (SelectError::Pattern(_) | SelectError::Path(_)) => {
                PortError::new(ErrorKind::Invalid, error.to_string())
            }
        })?;
        let wanted: Vec<RelPath> = selection.needed().cloned().collect();
        // Asked for in the same order.
        let all = view.entry_digests(&wanted)?;
        let mut known = all.iter().copied();
        let gone = |path: &RelPath| {
            let message = format!("{} changed while it was read", path.as_path().display());
            PortError::new(ErrorKind::Invalid, message)
        };
        digests.push(selection.digest(|path| known.next().ok_or_else(|| gone(path)))?);
        entries.extend(wanted.into_iter().zip(all));
    }
    Ok((root_of_content(&digests), entries))
}

/// Names what is missing, and what is there instead.
fn not_found(tree: &ViewTree<'_>, path: &str, error: &dyn std::fmt::Display) -> PortError {
    let mut out = PortError::new(
        ErrorKind::NotFound,
        format!("{path:?}: {}", error.to_string().rsplit(": ").next().unwrap_or("not found")),
    );
    let trimmed = path.trim_matches('/');
    let (dir, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
    if let Ok(dir) = RelPath::clean(dir)
        && let Ok(children) = tree.0.children(&dir)
    {
        let names: Vec<String> =
            children.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        if names.iter().any(|other| other == name) {
            out.help = Some("it is a symbolic link that leads nowhere".to_owned());
        } else if let Some(similar) = rbuild_diag::nearest(name, names.iter().map(String::as_str)) {
            out.help = Some(format!("did you mean {similar:?}?"));
        } else if names.len() <= 20 && !names.is_empty() {
            out.help = Some(format!("there are: {}", names.join(", ")));
        }
    }
    out
}

/// A view for selecting.
struct ViewTree<'a>(&'a dyn View);

impl TreeSource for ViewTree<'_> {
    type Error = PortError;

    fn lookup(&self, path: &RelPath) -> Result<Option<NodeKind>, PortError> {
        Ok(self.0.lookup(path)?.map(|entry| rbuild_ports::node_kind(&entry)))
    }

    fn children(&self, dir: &RelPath) -> Result<Vec<(Vec<u8>, NodeKind)>, PortError> {
        self.0.list(dir)
    }
}

/// Sources that must be looked at to know their keys.
pub(crate) fn fetch(
    shared: &Shared,
    node: &Node,
    source: &SourceOp,
    progress: &StepProgress,
) -> Result<Made, Trouble> {
    match source {
        SourceOp::Http(http) => {
            let (view, content) = shared.ports.sources.http(http, progress, &shared.cancel)?;
            let facts = Facts { http: Some(HttpFacts { content, last_modified: None }), ..Facts::default() };
            let map = cache_map(node, &facts)
                .map_err(|error| PortError::new(ErrorKind::Invalid, error.to_string()))?;
            let keys = map.digest.record_key(0).map(|digest| KeyId::root(&digest)).into_iter().collect();
            Ok(Made { outputs: vec![(0, StepOutput::View(view))], keys: Some(keys) })
        }
        SourceOp::Git(_) | SourceOp::Image(_) | SourceOp::OciLayout(_) | SourceOp::Local(_) => {
            Err(PortError::new(ErrorKind::Internal, "a source that is known was to be fetched").into())
        }
    }
}
