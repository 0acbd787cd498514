//! What garbage collection removes, and in which order: a pure function of facts and options. Least worth first: what
//! was not used for long, is large, and was quick to make; never a layer under one that stays.

use std::cmp::Reverse;
use std::fmt;
use std::time::Duration;

use crate::facts::{Facts, Stack};
use crate::filter::Filters;
use crate::usage::{self, UsageKind, UsageRow};

/// Blobs of no layer up to this size are documents, which only `all` removes.
const DOCUMENT: u64 = 4 << 20;

/// What a cache mount counts as having taken to fill: nobody measures it.
const MOUNT_COST_MS: u64 = 10_000;

/// What to remove. Named images keep their layers in any case, and so does whatever a live build uses.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Also base images, documents of registries, and records whose layers stay for another reason.
    pub all: bool,
    /// Only what was not used for this long.
    pub unused_for: Option<Duration>,
    /// Only this kind.
    pub only: Option<UsageKind>,
    /// Only what these let through.
    pub filters: Filters,
    /// Stop at this many bytes, whatever the other two say.
    pub reserved_space: Option<u64>,
    /// Remove only as long as there is more than this.
    pub max_used_space: Option<u64>,
    /// Remove only as long as the file system has less free than this.
    pub min_free_space: Option<u64>,
    /// Remove nothing, but say what would go.
    pub dry_run: bool,
}

/// Why something was removed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reason {
    /// No record and no image has it.
    Orphan,
    /// A newer result of the same step is there.
    Superseded,
    /// It was not used for as long as was asked.
    Unused,
    /// The cache was larger than allowed, or the disk too full.
    OverLimit,
    /// All unused cache was to go.
    Requested,
}

impl Reason {
    /// In a few words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Orphan => "nothing refers to it",
            Self::Superseded => "a newer result is there",
            Self::Unused => "unused for long",
            Self::OverLimit => "over the limit",
            Self::Requested => "as requested",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What can be removed by itself; the numbers are indices into the facts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Unit {
    Stack(usize),
    Blob(usize),
    Mount(usize),
}

/// What goes, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) units: Vec<(Unit, Reason)>,
    /// Layers that go with them, and why.
    pub(crate) layers: Vec<(usize, Reason)>,
    /// How many units stay only because a live build uses them.
    pub(crate) in_use: usize,
}

/// A unit that may go, with what it is ranked by.
struct Candidate {
    unit: Unit,
    superseded: bool,
    last_used: i64,
    score: u128,
    depth: usize,
}

/// Decides what goes.
pub(crate) fn plan(facts: &Facts, options: &PruneOptions) -> Plan {
    let mut out = Plan::default();
    let mut holders: Vec<usize> = vec![0; facts.layers.len()];
    for layer in facts.stacks.iter().flat_map(|stack| &stack.layers) {
        holders[*layer] += 1;
    }
    let mut total = facts.total();
    let kind_matches = |kind| options.only.is_none_or(|only| only == kind);
    let rows = usage::layer_rows(facts);
    let admits = |row: Option<UsageRow>| row.is_none_or(|row| options.filters.admit(&row));
    if kind_matches(UsageKind::Layer) {
        for (at, layer) in facts.layers.iter().enumerate() {
            if holders[at] == 0 && admits(rows.get(at).cloned()) && layer.images.is_empty() && !layer.pinned {
                out.layers.push((at, Reason::Orphan));
                total = total.saturating_sub(layer.bytes);
            }
        }
    }
    let limit = limit(facts, options, total);
    for candidate in candidates(facts, options, &mut out.in_use) {
        let admitted = match candidate.unit {
            Unit::Stack(at) => admits(facts.stacks[at].layers.last().and_then(|top| rows.get(*top)).cloned()),
            Unit::Blob(at) => admits(usage::blob_row(facts, at)),
            Unit::Mount(at) => admits(usage::mount_row(facts, at)),
        };
        if !admitted {
            continue;
        }
        if limit.is_some_and(|limit| total <= limit) {
            break;
        }
        let reason = match candidate {
            Candidate { superseded: true, .. } => Reason::Superseded,
            _ if limit.is_some() => Reason::OverLimit,
            _ if options.unused_for.is_some() => Reason::Unused,
            _ => Reason::Requested,
        };
        let before = out.layers.len();
        let freed = match candidate.unit {
            Unit::Stack(at) => match free_stack(facts, at, &mut holders, reason, &mut out.layers) {
                freed if out.layers.len() > before || facts.stacks[at].layers.is_empty() => freed,
                // Its layers stay for others: forgetting it would only cost hits.
                _ if !options.all || limit.is_some() => {
                    facts.stacks[at].layers.iter().for_each(|layer| holders[*layer] += 1);
                    continue;
                }
                freed => freed,
            },
            Unit::Blob(at) => facts.blobs[at].0.size,
            Unit::Mount(at) => facts.mounts[at].bytes,
        };
        total = total.saturating_sub(freed);
        out.units.push((candidate.unit, reason));
    }
    out
}

/// Takes a stack away from its layers; those that nobody else holds go too. Returns their bytes.
fn free_stack(
    facts: &Facts,
    at: usize,
    holders: &mut [usize],
    reason: Reason,
    gone: &mut Vec<(usize, Reason)>,
) -> u64 {
    let mut freed: u64 = 0;
    for index in &facts.stacks[at].layers {
        holders[*index] -= 1;
        let layer = &facts.layers[*index];
        if holders[*index] == 0 && layer.images.is_empty() && !layer.pinned {
            gone.push((*index, reason));
            freed = freed.saturating_add(layer.bytes);
        }
    }
    freed
}

/// Down to how many bytes to go; none when everything that matches is to go.
fn limit(facts: &Facts, options: &PruneOptions, total: u64) -> Option<u64> {
    let PruneOptions { reserved_space, max_used_space, min_free_space, .. } = options;
    if reserved_space.is_none() && max_used_space.is_none() && min_free_space.is_none() {
        return None;
    }
    // What orphans free is free already.
    let free = facts.free.saturating_add(facts.total().saturating_sub(total));
    let for_space = min_free_space.map(|wanted| total.saturating_sub(wanted.saturating_sub(free)));
    let keep = match (max_used_space, for_space) {
        (None, None) => 0,
        (Some(most), None) => *most,
        (None, Some(for_space)) => for_space,
        (Some(most), Some(for_space)) => for_space.min(*most),
    };
    Some(keep.max(reserved_space.unwrap_or(0)))
}

/// What may go, least worth first.
fn candidates(facts: &Facts, options: &PruneOptions, in_use: &mut usize) -> Vec<Candidate> {
    let kind_matches = |kind| options.only.is_none_or(|only| only == kind);
    let mut found = vec![];
    if kind_matches(UsageKind::Layer) {
        let ranked = rank_stacks(facts);
        for (at, (stack, ranked)) in facts.stacks.iter().zip(ranked).enumerate() {
            let top_pinned = stack.layers.last().is_some_and(|top| facts.layers[*top].pinned);
            if top_pinned || stack.records.iter().any(|record| record.pinned) {
                *in_use += 1;
            } else if options.all || !stack.is_base(&facts.layers) {
                found.push(Candidate { unit: Unit::Stack(at), ..ranked });
            }
        }
    }
    if kind_matches(UsageKind::Blob) {
        for (at, (blob, pinned)) in facts.blobs.iter().enumerate() {
            if *pinned {
                *in_use += 1;
            } else if options.all || blob.size > DOCUMENT {
                found.push(plain(facts, Unit::Blob(at), blob.used.0, blob.size));
            }
        }
    }
    if kind_matches(UsageKind::CacheMount) {
        for (at, mount) in facts.mounts.iter().enumerate() {
            if mount.in_use {
                *in_use += 1;
            } else {
                found.push(plain(facts, Unit::Mount(at), mount.last_used.0, mount.bytes));
            }
        }
    }
    if let Some(unused_for) = options.unused_for {
        let nanos = i64::try_from(unused_for.as_nanos()).unwrap_or(i64::MAX);
        found.retain(|candidate| facts.now.saturating_sub(candidate.last_used) >= nanos);
    }
    found.sort_by_key(|it| (Reverse((it.superseded, it.score, it.depth)), it.unit));
    found
}

fn plain(facts: &Facts, unit: Unit, last_used: i64, bytes: u64) -> Candidate {
    Candidate {
        unit,
        superseded: false,
        last_used,
        score: score(facts.now, last_used, bytes, MOUNT_COST_MS),
        depth: 0,
    }
}

/// How little something is worth: bytes times seconds unused, over the time it took to make.
fn score(now: i64, last_used: i64, bytes: u64, cost_ms: u64) -> u128 {
    let age = u64::try_from(now.saturating_sub(last_used) / 1_000_000_000).unwrap_or(0);
    let cost = u128::from(cost_ms) + 100;
    u128::from(age + 1) * u128::from(bytes.max(4096)) * 1000 / cost
}

/// Ranks the stacks. One that is under others is used whenever they are and worth at least as much as any of them, so
/// it comes after them.
fn rank_stacks(facts: &Facts) -> Vec<Candidate> {
    let own: Vec<Candidate> = facts.stacks.iter().map(|stack| rank(facts, stack)).collect();
    let mut top: Vec<Option<(bool, i64, u128)>> = vec![None; facts.layers.len()];
    for (stack, own) in facts.stacks.iter().zip(&own) {
        for layer in &stack.layers {
            top[*layer] = Some(match top[*layer] {
                None => (own.superseded, own.last_used, own.score),
                Some((superseded, last_used, score)) => {
                    (superseded && own.superseded, last_used.max(own.last_used), score.min(own.score))
                }
            });
        }
    }
    let with_those_above =
        |(stack, own): (&Stack, Candidate)| match stack.layers.last().and_then(|at| top[*at]) {
            Some((superseded, last_used, score)) => Candidate { superseded, last_used, score, ..own },
            None => own,
        };
    facts.stacks.iter().zip(own).map(with_those_above).collect()
}

fn rank(facts: &Facts, stack: &Stack) -> Candidate {
    let bytes = stack.layers.last().map_or(0, |top| facts.layers[*top].bytes);
    Candidate {
        unit: Unit::Stack(0),
        superseded: stack.records.iter().all(|record| record.superseded),
        last_used: stack.last_used(),
        score: score(facts.now, stack.last_used(), bytes, stack.cost_ms()),
        depth: stack.layers.len(),
    }
}
