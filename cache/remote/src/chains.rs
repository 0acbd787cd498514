//! Records and layers being gathered for an export: equal ones become one, whoever brings them, and what comes out is the
//! same for the same content, in whatever order it was added.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rbuild_digest::Digest;

use crate::config::{CacheConfig, Layer, Link, Record, RecordResult, ResultLayers};

/// A record that was added.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RecordId(usize);

/// An alternative of an input: a record, and which part of it.
type Alternative = (RecordId, Option<Digest>);
type Alternatives = BTreeSet<Alternative>;

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct Chains {
    records: Vec<Gathered>,
    /// By digest and an alternative of the first input.
    known: HashMap<(Digest, Option<Alternative>), Vec<usize>>,
}

#[derive(Clone, Debug)]
struct Gathered {
    digest: Digest,
    inputs: Vec<Alternatives>,
    /// Layers from the bottom up, and when they were made (0: not known).
    results: BTreeMap<Vec<Digest>, i64>,
}

impl Chains {
    /// Adds a record. One that is there already, with the same digest and a common alternative for every input, becomes
    /// the same. `None` when some input has no alternatives: nothing could lead to it.
    pub fn add(&mut self, digest: Digest, inputs: Vec<Vec<(RecordId, Option<Digest>)>>) -> Option<RecordId> {
        let inputs: Vec<Alternatives> = inputs.into_iter().map(|links| links.into_iter().collect()).collect();
        if inputs.iter().any(BTreeSet::is_empty) {
            return None;
        }
        let ways: Vec<Option<Alternative>> = match inputs.first() {
            Some(first) => first.iter().copied().map(Some).collect(),
            None => vec![None],
        };
        let alike = ways.iter().filter_map(|way| self.known.get(&(digest, *way)));
        let same = alike.flatten().copied().find(|at| {
            self.records.get(*at).is_some_and(|record| {
                record.inputs.len() == inputs.len()
                    && record.inputs.iter().zip(&inputs).all(|(ours, new)| !ours.is_disjoint(new))
            })
        });
        let at = same.unwrap_or(self.records.len());
        for way in ways {
            let places = self.known.entry((digest, way)).or_default();
            if !places.contains(&at) {
                places.push(at);
            }
        }
        if same.is_some() {
            self.join(at, inputs);
            return Some(RecordId(at));
        }
        self.records.push(Gathered { digest, inputs, results: BTreeMap::new() });
        Some(RecordId(at))
    }

    /// Adds alternatives to a record's inputs; not those that it leads to itself, so that there are never loops.
    fn join(&mut self, at: usize, inputs: Vec<Alternatives>) {
        for (input, alternatives) in inputs.into_iter().enumerate() {
            for (from, selector) in alternatives {
                let known = self.records[at].inputs[input].contains(&(from, selector));
                if !known && !self.leads(at, from.0) {
                    self.records[at].inputs[input].insert((from, selector));
                }
            }
        }
    }

    /// Whether `to` is `from`, or is reached from it.
    fn leads(&self, from: usize, to: usize) -> bool {
        let mut seen = BTreeSet::new();
        let mut left = vec![to];
        while let Some(at) = left.pop() {
            if at == from {
                return true;
            }
            if seen.insert(at) {
                left.extend(self.records[at].inputs.iter().flatten().map(|(id, _)| id.0));
            }
        }
        false
    }

    /// Adds a result: blobs from the bottom up. The same blobs again count once, as made when they were made last.
    pub fn add_result(&mut self, record: RecordId, blobs: Vec<Digest>, created: i64) {
        if let Some(record) = self.records.get_mut(record.0).filter(|_| !blobs.is_empty()) {
            let known = record.results.entry(blobs).or_insert(created);
            *known = created.max(*known);
        }
    }

    /// Whether the record has a result.
    #[must_use]
    pub fn has_result(&self, record: RecordId) -> bool {
        self.records.get(record.0).is_some_and(|record| !record.results.is_empty())
    }

    /// How many results there are.
    #[must_use]
    pub fn results(&self) -> usize {
        self.records.iter().map(|record| record.results.len()).sum()
    }

    /// All blobs of all results.
    #[must_use]
    pub fn blobs(&self) -> BTreeSet<Digest> {
        self.records.iter().flat_map(|record| record.results.keys().flatten().copied()).collect()
    }

    /// Adds what another config has: results that `keep` (given blobs and time) wants and whose record has none here, with the records
    /// that lead to them.
    pub fn merge(&mut self, other: &CacheConfig, keep: &dyn Fn(&[Digest], i64) -> bool) {
        let mut kept: Vec<Vec<(Vec<Digest>, i64)>> = vec![];
        let mut wanted = vec![false; other.records.len()];
        for (at, record) in other.records.iter().enumerate() {
            let results = record.results.iter().filter_map(|result| {
                other.blobs(result).filter(|blobs| keep(blobs, result.created)).map(|it| (it, result.created))
            });
            kept.push(results.collect());
            wanted[at] = !kept[at].is_empty();
        }
        let order = inputs_first(&other.records);
        for at in order.iter().rev() {
            if wanted[*at] {
                other.records[*at].inputs.iter().flatten().for_each(|link| wanted[link.record] = true);
            }
        }
        let mut ids: Vec<Option<RecordId>> = vec![None; other.records.len()];
        for at in order.into_iter().filter(|at| wanted[*at]) {
            let record = &other.records[at];
            let Some(digest) = record.digest else { continue };
            let links = |links: &Vec<Link>| {
                links.iter().filter_map(|link| Some((ids[link.record]?, link.selector))).collect()
            };
            ids[at] = self.add(digest, record.inputs.iter().map(links).collect());
        }
        for (id, results) in ids.into_iter().zip(kept) {
            let Some(id) = id.filter(|id| !self.has_result(*id)) else { continue };
            results.into_iter().for_each(|(blobs, created)| self.add_result(id, blobs, created));
        }
    }

    /// The config: only records that have results or lead to some, in one order for the same content.
    #[must_use]
    pub fn config(&self) -> CacheConfig {
        let mut layers = Layers::default();
        let mut records: Vec<Record> = self
            .records
            .iter()
            .map(|record| Record {
                digest: Some(record.digest),
                results: vec![],
                inputs: record
                    .inputs
                    .iter()
                    .map(|links| {
                        links.iter().map(|(id, selector)| Link { record: id.0, selector: *selector })
                    })
                    .map(Iterator::collect)
                    .collect(),
            })
            .collect();
        let order = inputs_first(&records);
        let names = self.names(&records, &order);
        let mut live = vec![false; records.len()];
        for at in order.iter().rev() {
            live[*at] |= !self.records[*at].results.is_empty();
            if live[*at] {
                records[*at].inputs.iter().flatten().for_each(|link| live[link.record] = true);
            }
        }
        let mut sorted: Vec<usize> = (0..records.len()).filter(|at| live[*at]).collect();
        sorted.sort_by_key(|at| (records[*at].digest, records[*at].inputs.len(), names[*at]));
        let position: HashMap<usize, usize> =
            sorted.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let mut tops: Vec<Vec<(usize, i64)>> = vec![];
        for at in &sorted {
            let results = self.records[*at].results.iter();
            tops.push(results.map(|(blobs, created)| (layers.put(blobs), *created)).collect());
        }
        let (layers, moved) = layers.sorted();
        let records = sorted.iter().zip(tops).map(|(at, tops)| {
            let mut inputs = std::mem::take(&mut records[*at].inputs);
            for links in &mut inputs {
                links.retain_mut(|link| match position.get(&link.record) {
                    Some(new) => {
                        link.record = *new;
                        true
                    }
                    None => false,
                });
                links.sort_unstable();
            }
            let mut results: Vec<RecordResult> = tops
                .into_iter()
                .map(|(top, created)| RecordResult { layers: ResultLayers::Top(moved[top]), created })
                .collect();
            results.sort_by_key(|result| (std::cmp::Reverse(result.created), top(result)));
            Record { digest: records[*at].digest, results, inputs }
        });
        CacheConfig { records: records.collect(), layers }
    }

    /// A name for each record that depends on nothing but what it is and what leads to it.
    fn names(&self, records: &[Record], order: &[usize]) -> Vec<Digest> {
        let mut names = vec![Digest::of(""); records.len()];
        for at in order {
            let mut text = self.records[*at].digest.to_string();
            for links in &records[*at].inputs {
                let mut parts: Vec<String> = links
                    .iter()
                    .map(|link| {
                        format!(
                            "{} {}",
                            names[link.record],
                            link.selector.map_or_else(String::new, |s| s.to_string())
                        )
                    })
                    .collect();
                parts.sort_unstable();
                text.push_str("\n\n");
                text.push_str(&parts.join("\n"));
            }
            names[*at] = Digest::of(text);
        }
        names
    }
}

fn top(result: &RecordResult) -> usize {
    match &result.layers {
        ResultLayers::Top(top) => *top,
        ResultLayers::List(_) => 0,
    }
}

/// All positions, those that others lead to after these.
fn inputs_first(records: &[Record]) -> Vec<usize> {
    let mut seen = vec![false; records.len()];
    let mut out = Vec::with_capacity(records.len());
    for start in 0..records.len() {
        let mut path: Vec<(usize, bool)> = vec![(start, false)];
        while let Some((at, done)) = path.pop() {
            if done {
                out.push(at);
                continue;
            }
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            path.push((at, true));
            let links = records[at].inputs.iter().flatten();
            path.extend(links.map(|link| (link.record, false)).filter(|(to, _)| !seen[*to]));
        }
    }
    out
}

/// Layers by what they are and what is below them.
#[derive(Default)]
struct Layers {
    known: HashMap<(Digest, Option<usize>), usize>,
    layers: Vec<Layer>,
    /// Of the blobs from a layer down.
    names: Vec<Digest>,
}

impl Layers {
    /// The topmost of `blobs`, which are not empty.
    fn put(&mut self, blobs: &[Digest]) -> usize {
        let mut parent = None;
        for blob in blobs {
            let at = *self.known.entry((*blob, parent)).or_insert_with(|| {
                let below = parent.and_then(|at: usize| self.names.get(at));
                self.names.push(Digest::of(format!(
                    "{blob} {}",
                    below.map_or_else(String::new, ToString::to_string)
                )));
                self.layers.push(Layer { blob: Some(*blob), parent });
                self.layers.len() - 1
            });
            parent = Some(at);
        }
        parent.unwrap_or(0)
    }

    /// In the order of their blobs; and where each went.
    fn sorted(self) -> (Vec<Layer>, Vec<usize>) {
        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        order.sort_by_key(|at| (self.layers[*at].blob, self.layers[*at].parent.is_some(), self.names[*at]));
        let mut moved = vec![0; order.len()];
        order.iter().enumerate().for_each(|(new, old)| moved[*old] = new);
        let layers = order.iter().map(|at| {
            let Layer { blob, parent } = &self.layers[*at];
            Layer { blob: *blob, parent: parent.map(|parent| moved[parent]) }
        });
        (layers.collect(), moved)
    }
}
