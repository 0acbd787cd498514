//! The cache config: layers as a forest, records as a graph. Reading is total: what cannot be understood is left out, what
//! points nowhere is cut, and nothing in the bytes makes it panic or grow beyond their size.

use rbuild_digest::Digest;
use rbuild_oci::rfc3339;
use serde::{Deserialize, Serialize};

/// The largest config that is read, in bytes. (BuildKit reads 1 MiB.)
pub const MAX_CONFIG: u64 = 64 << 20;
/// Records of a config; more are refused.
const MAX_RECORDS: usize = 1_000_000;
/// Layers under each other; a result with more is left out. No file system stacks as many.
const MAX_DEPTH: usize = 4096;
/// How Go writes a time that was never set.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Why bytes are no cache config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON of the expected shape.
    #[error("malformed cache config: {0}")]
    Json(#[from] serde_json::Error),
    /// Not base64.
    #[error("malformed inline cache: {0}")]
    Base64(#[from] base64::DecodeError),
    /// More than is reasonable.
    #[error("the cache config has {found} records, more than the {MAX_RECORDS} allowed")]
    TooMany {
        /// How many.
        found: usize,
    },
}

/// What an exported cache knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CacheConfig {
    /// Layers, each on its parent.
    pub layers: Vec<Layer>,
    /// Records by position; links between them have no loops.
    pub records: Vec<Record>,
}

/// A layer in its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layer {
    /// Its blob. `None` for one whose digest cannot be read.
    pub blob: Option<Digest>,
    /// The layer below it, by position.
    pub parent: Option<usize>,
}

/// A key, how it is reached, and what its result was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// `sha256(<operation>@<output>)`. `None` for one that cannot be read.
    pub digest: Option<Digest>,
    /// Results; none for a record that only leads on.
    pub results: Vec<RecordResult>,
    /// For each input its alternatives. A record with an input without alternatives is never reached.
    pub inputs: Vec<Vec<Link>>,
}

/// A link to a record of the same config.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Link {
    /// Its position.
    pub record: usize,
    /// Which part of it.
    pub selector: Option<Digest>,
}

/// A result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordResult {
    /// Its layers.
    pub layers: ResultLayers,
    /// When it was made, in nanoseconds since 1970; 0 when that is not known.
    pub created: i64,
}

/// The layers of a result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ResultLayers {
    /// This layer and those below it.
    Top(usize),
    /// These, from the bottom up.
    List(Vec<usize>),
}

impl CacheConfig {
    /// Reads a config.
    ///
    /// # Errors
    /// If it is not JSON of that shape, or has far too many records.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let wire: WireConfig = serde_json::from_slice(bytes)?;
        let layers = wire.layers.unwrap_or_default();
        let count = layers.len();
        let layers = layers.into_iter().map(|layer| layer.read(count)).collect();
        Ok(Self { layers, records: read_records(wire.records.unwrap_or_default())? })
    }

    /// The blobs of a result from the bottom up; `None` when its layers make no sense, or there are none.
    #[must_use]
    pub fn blobs(&self, result: &RecordResult) -> Option<Vec<Digest>> {
        let positions = match &result.layers {
            ResultLayers::Top(top) => self.chain(*top)?,
            ResultLayers::List(list) => list.clone(),
        };
        if positions.is_empty() || positions.len() > MAX_DEPTH {
            return None;
        }
        positions.iter().map(|at| self.layers.get(*at)?.blob).collect()
    }

    /// A layer and all below it, from the bottom up.
    fn chain(&self, top: usize) -> Option<Vec<usize>> {
        let mut out = vec![];
        let mut next = Some(top);
        while let Some(at) = next {
            if out.len() >= MAX_DEPTH.min(self.layers.len()) {
                return None;
            }
            out.push(at);
            next = self.layers.get(at)?.parent;
        }
        out.reverse();
        Some(out)
    }

    /// The bytes, as BuildKit writes and reads them.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let wire = WireConfig {
            layers: Some(self.layers.iter().map(WireLayer::write).collect()),
            records: Some(self.records.iter().map(WireRecord::write).collect()),
        };
        serde_json::to_vec(&wire).unwrap_or_default()
    }
}

/// Records alone, as image configs have them.
pub(crate) fn parse_records(bytes: &[u8]) -> Result<Vec<Record>, ConfigError> {
    let wire: Option<Vec<WireRecord>> = serde_json::from_slice(bytes)?;
    read_records(wire.unwrap_or_default())
}

pub(crate) fn records_json(records: &[Record]) -> Vec<u8> {
    let wire: Vec<WireRecord> = records.iter().map(WireRecord::write).collect();
    serde_json::to_vec(&wire).unwrap_or_default()
}

fn read_records(wire: Vec<WireRecord>) -> Result<Vec<Record>, ConfigError> {
    if wire.len() > MAX_RECORDS {
        return Err(ConfigError::TooMany { found: wire.len() });
    }
    let count = wire.len();
    let mut records: Vec<Record> = wire.into_iter().map(|record| record.read(count)).collect();
    cut_loops(&mut records);
    Ok(records)
}

/// Takes away the links that lead back, in the order of the records.
fn cut_loops(records: &mut [Record]) {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Never,
        Open,
        Closed,
    }
    let mut seen = vec![Seen::Never; records.len()];
    let mut cut: Vec<(usize, usize, usize)> = vec![];
    for start in 0..records.len() {
        if seen[start] != Seen::Never {
            continue;
        }
        seen[start] = Seen::Open;
        // Where in its links each record on the path is.
        let mut path: Vec<(usize, usize, usize)> = vec![(start, 0, 0)];
        while let Some((at, input, alternative)) = path.pop() {
            let Some(links) = records[at].inputs.get(input) else {
                seen[at] = Seen::Closed;
                continue;
            };
            let Some(link) = links.get(alternative) else {
                path.push((at, input + 1, 0));
                continue;
            };
            let to = link.record;
            path.push((at, input, alternative + 1));
            match seen.get(to) {
                Some(Seen::Never) => {
                    seen[to] = Seen::Open;
                    path.push((to, 0, 0));
                }
                Some(Seen::Open) | None => cut.push((at, input, alternative)),
                Some(Seen::Closed) => {}
            }
        }
    }
    cut.sort_unstable();
    for (at, input, alternative) in cut.into_iter().rev() {
        records[at].inputs[input].remove(alternative);
    }
}

/// Nanoseconds since 1970; 0 for what is no time, or one that does not fit.
pub(crate) fn nanos(text: &str) -> i64 {
    rfc3339::parse(text).and_then(|nanos| i64::try_from(nanos).ok()).unwrap_or(0)
}

fn time_text(nanos: i64) -> String {
    if nanos == 0 { ZERO_TIME.to_owned() } else { rfc3339::format_nanos(nanos) }
}

#[derive(Serialize, Deserialize)]
struct WireConfig {
    layers: Option<Vec<WireLayer>>,
    records: Option<Vec<WireRecord>>,
}

#[derive(Serialize, Deserialize)]
struct WireLayer {
    #[serde(default)]
    blob: String,
    /// 0 is left out, and none is -1.
    #[serde(default, skip_serializing_if = "is_zero")]
    parent: i64,
}

#[derive(Serialize, Deserialize)]
struct WireRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<WireResult>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chains: Option<Vec<WireChain>>,
    #[serde(default)]
    digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inputs: Option<Vec<Option<Vec<WireLink>>>>,
}

#[derive(Serialize, Deserialize)]
struct WireResult {
    #[serde(default)]
    layer: i64,
    #[serde(default, rename = "createdAt")]
    created_at: String,
}

#[derive(Serialize, Deserialize)]
struct WireChain {
    #[serde(default)]
    layers: Option<Vec<i64>>,
    #[serde(default, rename = "createdAt")]
    created_at: String,
}

#[derive(Serialize, Deserialize)]
struct WireLink {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    selector: String,
    #[serde(default)]
    link: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

fn number(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

impl WireLayer {
    fn read(self, count: usize) -> Layer {
        let blob = self.blob.parse().ok();
        match usize::try_from(self.parent) {
            Ok(parent) if parent < count => Layer { blob, parent: Some(parent) },
            // Below it should be something that is not there: it cannot be used.
            Ok(_) => Layer { blob: None, parent: None },
            Err(_) => Layer { blob, parent: None },
        }
    }

    fn write(layer: &Layer) -> Self {
        Self {
            blob: layer.blob.map(|blob| blob.to_string()).unwrap_or_default(),
            parent: layer.parent.map_or(-1, number),
        }
    }
}

impl WireRecord {
    fn read(self, count: usize) -> Record {
        let tops = self.layers.unwrap_or_default().into_iter().filter_map(|result| {
            let layers = ResultLayers::Top(usize::try_from(result.layer).ok()?);
            Some(RecordResult { layers, created: nanos(&result.created_at) })
        });
        let chains = self.chains.unwrap_or_default().into_iter().filter_map(|chain| {
            let layers = chain.layers.unwrap_or_default().into_iter().map(usize::try_from);
            let layers = ResultLayers::List(layers.collect::<Result<_, _>>().ok()?);
            Some(RecordResult { layers, created: nanos(&chain.created_at) })
        });
        let link = |link: WireLink| {
            let record = usize::try_from(link.link).ok().filter(|record| *record < count)?;
            let selector = match link.selector.as_str() {
                "" => None,
                text => Some(text.parse().ok()?),
            };
            Some(Link { record, selector })
        };
        let inputs = self.inputs.unwrap_or_default().into_iter();
        Record {
            digest: self.digest.parse().ok(),
            results: tops.chain(chains).collect(),
            inputs: inputs
                .map(|links| links.unwrap_or_default().into_iter().filter_map(link).collect())
                .collect(),
        }
    }

    fn write(record: &Record) -> Self {
        let (mut layers, mut chains) = (vec![], vec![]);
        for result in &record.results {
            let created_at = time_text(result.created);
            match &result.layers {
                ResultLayers::Top(top) => layers.push(WireResult { layer: number(*top), created_at }),
                ResultLayers::List(list) => {
                    let list = list.iter().map(|at| number(*at)).collect();
                    chains.push(WireChain { layers: Some(list), created_at });
                }
            }
        }
        let link = |link: &Link| WireLink {
            selector: link.selector.map(|selector| selector.to_string()).unwrap_or_default(),
            link: number(link.record),
        };
        let inputs: Vec<_> =
            record.inputs.iter().map(|links| Some(links.iter().map(link).collect())).collect();
        Self {
            layers: (!layers.is_empty()).then_some(layers),
            chains: (!chains.is_empty()).then_some(chains),
            digest: record.digest.map(|digest| digest.to_string()).unwrap_or_default(),
            inputs: (!inputs.is_empty()).then_some(inputs),
        }
    }
}
