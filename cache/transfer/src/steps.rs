//! What a build's steps become in an exported cache: records by their keys, with the layers of their results.

use std::collections::{BTreeSet, HashMap};

use rbuild_cache_remote::{Chains, RecordId};
use rbuild_digest::Digest;
use rbuild_ports::{LayerId, Snapshot, Timestamp};

use crate::CacheMode;

/// The steps of one platform's build, those that others read before these.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExportGraph {
    /// The steps.
    pub steps: Vec<ExportStep>,
    /// The result.
    pub target: Snapshot,
    /// For which platform.
    pub platform: String,
    /// The ids of the cache mounts that its steps use.
    pub mounts: Vec<String>,
}

/// A step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportStep {
    /// The operation's digest; `None` for sources.
    pub op: Option<Digest>,
    /// Inputs by position.
    pub inputs: Vec<ExportInput>,
    /// The outputs that somebody uses.
    pub outputs: Vec<ExportOutput>,
}

/// How an input leads to a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInput {
    /// The position of the step it comes from, which is before this one.
    pub step: usize,
    /// Which output of it.
    pub output: u32,
    /// The selector of the links from its keys.
    pub selector: Option<Digest>,
    /// Its content keys.
    pub contents: Vec<Digest>,
}

/// An output of a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportOutput {
    /// Its number.
    pub output: u32,
    /// The keys of a source.
    pub roots: Vec<Digest>,
    /// The result, where there is one, and when it was made.
    pub result: Option<(Snapshot, Timestamp)>,
}

/// The layers that an export in this mode has, each once, those of results that come first in the build first.
#[must_use]
pub(crate) fn layers(graphs: &[ExportGraph], mode: CacheMode) -> Vec<LayerId> {
    let mut seen = BTreeSet::new();
    let results = graphs.iter().flat_map(|graph| {
        let all =
            graph.steps.iter().flat_map(|step| &step.outputs).filter_map(|output| output.result.as_ref());
        let all = all.filter(|_| mode == CacheMode::Max).map(|(snapshot, _)| snapshot);
        all.chain([&graph.target])
    });
    results.flat_map(|snapshot| &snapshot.layers).filter(|layer| seen.insert(*layer)).cloned().collect()
}

/// The records. `blobs` says what a result's layers are in the export; results that it does not know have none there.
pub(crate) fn records(graphs: &[ExportGraph], blobs: &dyn Fn(&Snapshot) -> Option<Vec<Digest>>) -> Chains {
    let mut chains = Chains::default();
    for graph in graphs {
        let mut known: HashMap<(usize, u32), Vec<RecordId>> = HashMap::new();
        for (at, step) in graph.steps.iter().enumerate() {
            for output in &step.outputs {
                let ids = match &step.op {
                    None => output.roots.iter().filter_map(|root| chains.add(*root, vec![])).collect(),
                    Some(op) => record(&mut chains, &known, step, op, output, blobs),
                };
                known.insert((at, output.output), ids);
            }
        }
    }
    chains
}

fn record(
    chains: &mut Chains,
    known: &HashMap<(usize, u32), Vec<RecordId>>,
    step: &ExportStep,
    op: &Digest,
    output: &ExportOutput,
    blobs: &dyn Fn(&Snapshot) -> Option<Vec<Digest>>,
) -> Vec<RecordId> {
    let mut inputs = Vec::with_capacity(step.inputs.len());
    for input in &step.inputs {
        let definitions = known.get(&(input.step, input.output)).into_iter().flatten();
        let mut alternatives: Vec<_> = definitions.map(|id| (*id, input.selector)).collect();
        for content in &input.contents {
            alternatives.extend(chains.add(*content, vec![]).map(|id| (id, None)));
        }
        inputs.push(alternatives);
    }
    let id = chains.add(record_digest(op, output.output), inputs);
    // As in BuildKit: what needs no input is made faster than it is fetched.
    if let (Some(id), Some((snapshot, created)), false) = (id, &output.result, step.inputs.is_empty())
        && let Some(blobs) = blobs(snapshot)
    {
        chains.add_result(id, blobs, created.0);
    }
    id.into_iter().collect()
}

/// The digest of a record: as BuildKit makes it.
pub(crate) fn record_digest(op: &Digest, output: u32) -> Digest {
    Digest::of(format!("{op}@{output}"))
}
