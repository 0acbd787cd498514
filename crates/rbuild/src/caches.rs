//! The caches of a build: which imports are read beside it, what of its steps is exported whereto, and what they are called in
//! its progress.

use std::collections::HashMap;
use std::sync::Arc;

use rbuild_cache_key::{CacheMap, Facts, OpDigest, cache_map};
use rbuild_cache_transfer::{
    CacheFrom, CacheSource, CacheTarget, CacheTo, CombinedIndex, ExportGraph, ExportInput, ExportOutput,
    ExportStep, ImportedCache, Imports, LayoutSource, LayoutTarget, RegistrySource, RegistryTarget,
    RestoringSnapshots, inline_cache,
};
use rbuild_digest::Digest;
use rbuild_engine::{Ports, SolvedStep};
use rbuild_export::{BuiltImage, Exported, LayerDescriptor};
use rbuild_graph::{Graph, MountKind, Node, NodeId, Op};
use rbuild_oci::Platform;
use rbuild_ports::{CancelToken, ErrorKind, KeyId, PortError, Result, Snapshot};

use rbuild_source::Registry;

use crate::ahead::Queue;
use crate::history::Told;
use crate::vertices::Vertices;
use crate::{BuildRequest, Store};

/// What was solved for one platform.
pub(crate) struct Solve {
    pub(crate) image: BuiltImage,
    pub(crate) steps: Vec<SolvedStep>,
    /// The records that the image's file system came from.
    pub(crate) records: Vec<i64>,
    /// The cache mounts that its steps use.
    pub(crate) mounts: Vec<String>,
}

/// What the caches of one build work with.
pub(crate) struct Caches<'a> {
    pub(crate) request: &'a BuildRequest,
    pub(crate) store: &'a Store,
    pub(crate) registry: &'a Registry,
    pub(crate) ports: &'a Arc<Ports>,
    pub(crate) imports: Option<Arc<CombinedIndex>>,
    pub(crate) vertices: &'a Arc<Vertices>,
    pub(crate) cancel: &'a CancelToken,
}

impl Caches<'_> {
    /// An export failed: whether that was because a cached layer cannot be had from where it was. Then the records are
    /// forgotten, and solving again makes it anew.
    pub(crate) fn forget_gone(&self, solves: &[Solve], error: &PortError) -> Result<bool> {
        if !matches!(
            error.kind,
            ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::Network | ErrorKind::Auth
        ) {
            return Ok(false);
        }
        let mut any = false;
        for solve in solves.iter().filter(|solve| !solve.records.is_empty()) {
            if self.is_gone(&solve.image.snapshot, error.kind == ErrorKind::Corrupt)? {
                solve.records.iter().try_for_each(|record| self.ports.index.forget(*record))?;
                any = true;
            }
        }
        if any {
            self.vertices.warn(format!("{}; the steps that made it run again", error.message));
        }
        Ok(any)
    }

    /// Whether some layer is not here, and cannot be fetched (or was fetched and is `damaged`).
    fn is_gone(&self, snapshot: &Snapshot, damaged: bool) -> Result<bool> {
        for layer in &snapshot.layers {
            if self.ports.snapshots.present(layer) {
                continue;
            }
            let Some(row) = self.ports.index.layer(layer)? else { return Ok(true) };
            let fetched = |remote: &_| self.ports.sources.fetch_blob(remote, self.cancel).is_ok();
            if row.blobs.is_empty() && (damaged || !row.remotes.iter().any(fetched)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Tells of exports that cannot do what was meant.
    pub(crate) fn warn(&self, exported: &Exported) {
        let pushed = exported.outputs.iter().any(|output| output.kind == "registry");
        for to in &self.request.cache_to {
            match to {
                CacheTo::Inline if exported.descriptor.is_none() => self.vertices.warn(
                    "the inline cache was not written: it is part of an image that is exported, as with --push",
                ),
                CacheTo::Registry { reference, .. }
                    if pushed && exported.names.contains(&reference.to_string()) =>
                {
                    self.vertices.warn(format!(
                        "the cache takes the place of the image that was pushed as {reference}: give it a tag of its own, or use type=inline"
                    ));
                }
                _ => {}
            }
        }
    }

    /// Gives what the imported caches tell.
    pub(crate) fn told(&self) -> Box<dyn FnOnce() -> Told + Send> {
        let (imports, ports, cancel) = (self.imports.clone(), self.ports.clone(), self.cancel.clone());
        Box::new(move || {
            imports.map_or_else(Told::default, |imports| Told {
                notes: imports.notes(&*ports.sources, &cancel),
                operations: imports.operations(),
            })
        })
    }

    /// What an exported cache says of the steps.
    pub(crate) fn graphs(&self, solves: &[Solve]) -> Result<Vec<ExportGraph>> {
        solves.iter().map(|solve| self.graph(solve)).collect()
    }

    /// The inline cache of an image.
    pub(crate) fn inline(
        &self,
        solves: &[Solve],
        image: &BuiltImage,
        layers: &[LayerDescriptor],
    ) -> Result<Option<String>> {
        let Some(solve) = solves.iter().find(|solve| solve.image.platform == image.platform) else {
            return Ok(None);
        };
        Ok(inline_cache(&self.graph(solve)?, layers))
    }

    /// Where a cache is exported to.
    pub(crate) fn target(&self, to: &CacheTo) -> Result<Box<dyn CacheTarget>> {
        match to {
            CacheTo::Registry { reference, .. } => {
                Ok(Box::new(RegistryTarget { registry: self.registry.clone(), reference: reference.clone() }))
            }
            CacheTo::Local { dest, tag, .. } => Ok(Box::new(LayoutTarget::open(dest, tag, self.cancel)?)),
            CacheTo::Inline => {
                Err(PortError::new(ErrorKind::Internal, "an inline cache has no place of its own"))
            }
        }
    }

    fn graph(&self, solve: &Solve) -> Result<ExportGraph> {
        let position: HashMap<NodeId, usize> =
            solve.steps.iter().enumerate().map(|(at, step)| (step.node, at)).collect();
        let steps = solve.steps.iter().map(|step| self.step(step, &position)).collect::<Result<_>>()?;
        Ok(ExportGraph {
            steps,
            target: solve.image.snapshot.clone(),
            platform: solve.image.platform.to_string(),
            mounts: solve.mounts.clone(),
        })
    }

    fn step(&self, step: &SolvedStep, position: &HashMap<NodeId, usize>) -> Result<ExportStep> {
        let mut outputs = Vec::with_capacity(step.outputs.len());
        for (output, keys) in &step.outputs {
            let (roots, result) = match step.op {
                None => (keys.iter().filter_map(|key| key.0.parse().ok()).collect(), None),
                Some(_) => {
                    let newest = self.ports.index.records(keys)?.into_iter().next();
                    (vec![], newest.map(|record| (record.snapshot, record.created)))
                }
            };
            outputs.push(ExportOutput { output: *output, roots, result });
        }
        let mut inputs = Vec::with_capacity(step.inputs.len());
        for (number, input) in step.inputs.iter().enumerate() {
            let mut contents: Vec<Digest> =
                input.content.iter().filter_map(|content| content.0.parse().ok()).collect();
            if let (Some(op), true, true) = (&step.op, input.by_content, contents.is_empty()) {
                contents = self.known_contents(step, op, number)?;
            }
            inputs.push(ExportInput {
                step: position.get(&input.edge.node).copied().unwrap_or(usize::MAX),
                output: input.edge.output,
                selector: input.selector,
                contents,
            });
        }
        Ok(ExportStep { op: step.op, inputs, outputs })
    }

    /// The content of an input that did not have to be hashed this time.
    fn known_contents(&self, step: &SolvedStep, op: &Digest, input: usize) -> Result<Vec<Digest>> {
        let number = u32::try_from(input).unwrap_or(u32::MAX);
        let mut out = vec![];
        for key in step.outputs.iter().flat_map(|(_, keys)| keys) {
            out.extend(self.store.content_links(&self.local_key(key)?, op, number)?);
        }
        out.sort_unstable();
        out.dedup();
        Ok(out)
    }

    fn local_key(&self, key: &KeyId) -> Result<KeyId> {
        self.imports.as_ref().map_or_else(|| Ok(key.clone()), |imports| imports.local_key(key))
    }
}

/// Tells the imports what the steps of `graph` are for.
pub(crate) fn describe_steps(imports: &CombinedIndex, graph: &Graph) {
    let step = |node: &Node| match cache_map(node, &Facts::default()) {
        Ok(CacheMap { digest: OpDigest::Fixed(op), preimage, .. }) => {
            Some((op, node.meta.name.clone(), preimage.text))
        }
        Ok(_) | Err(_) => None,
    };
    imports.describe(graph.nodes().filter_map(|(_, node)| step(node)));
}

/// The ids of the cache mounts that `steps` use.
pub(crate) fn mounts(graph: &Graph, steps: &[SolvedStep]) -> Vec<String> {
    let mut out: Vec<String> = vec![];
    for step in steps {
        let Op::Exec(exec) = &graph.node(step.node).op else { continue };
        out.extend(exec.spec.mounts.iter().filter_map(|mount| match &mount.kind {
            MountKind::Cache { id, .. } => Some(id.clone()),
            _ => None,
        }));
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// As BuildKit names the vertex.
pub(crate) fn describe(to: &CacheTo) -> &'static str {
    match to {
        CacheTo::Registry { .. } => "exporting cache to registry",
        CacheTo::Local { .. } => "exporting cache to client directory",
        CacheTo::Inline => "exporting cache to image",
    }
}

/// A failure that does not fail the build.
pub(crate) fn not_exported(to: &CacheTo, error: &PortError) -> String {
    let place = match to {
        CacheTo::Registry { reference, .. } => reference.to_string(),
        CacheTo::Local { dest, .. } => dest.display().to_string(),
        CacheTo::Inline => "the image".to_owned(),
    };
    format!("the cache was not exported to {place}: {error}; ignore-error=false makes this fail the build")
}

/// A source that shows up in the progress when it is read.
struct Shown<S> {
    source: S,
    vertices: Arc<Vertices>,
}

impl<S: CacheSource> CacheSource for Shown<S> {
    fn name(&self) -> String {
        self.source.name()
    }

    fn read(&self, cancel: &CancelToken) -> Result<Vec<ImportedCache>> {
        let task = self.vertices.task(&format!("importing cache manifest from {}", self.name()));
        task.finish(self.source.read(cancel))
    }
}

/// Starts to read the imports of `request`, and makes them part of the index of `ports`, which tells `ahead` of results.
pub(crate) fn import(
    request: &BuildRequest,
    registry: &Registry,
    ports: &mut Ports,
    vertices: &Arc<Vertices>,
    ahead: Option<&Queue>,
    cancel: &CancelToken,
) -> Option<Arc<CombinedIndex>> {
    if request.cache_from.is_empty() && ahead.is_none() {
        return None;
    }
    let sources = request.cache_from.iter().map(|from| -> Arc<dyn CacheSource> {
        let vertices = vertices.clone();
        match from.clone() {
            CacheFrom::Registry { reference, .. } => {
                let registry = registry.clone();
                Arc::new(Shown { source: RegistrySource { registry, reference }, vertices })
            }
            CacheFrom::Local { src: dir, tag, digest } => {
                Arc::new(Shown { source: LayoutSource { dir, tag, digest }, vertices })
            }
        }
    });
    let imports = Imports::start(sources.collect(), cancel);
    let combined = CombinedIndex::new(ports.index.clone(), imports, ports.clock.clone());
    let combined = Arc::new(match ahead {
        Some(queue) => combined.watched(queue.watch()),
        None => combined,
    });
    ports.index = combined.clone();
    if request.cache_from.is_empty() {
        return Some(combined);
    }
    let platforms = match request.platforms.as_slice() {
        [] => vec![Platform::host().to_string()],
        some => some.iter().map(ToString::to_string).collect(),
    };
    let warn = vertices.clone();
    ports.snapshots = Arc::new(RestoringSnapshots::new(
        ports.snapshots.clone(),
        ports.sources.clone(),
        combined.clone(),
        platforms,
        Arc::new(move |message| warn.warn(message)),
    ));
    Some(combined)
}
