//! The scheduler alone, on a wide graph, every reply given at once: what it costs beside the work itself.

use std::hint::black_box;

use rbuild_digest::Digest;
use rbuild_engine::{Command, DepSpec, Reply, Scheduler, StepKind, StepSpec};
use rbuild_graph::{Edge, NodeId};
use rbuild_ports::KeyId;

use super::{Micro, Size};

const STEPS: usize = 10_000;
const WIDTH: usize = 50;

/// Columns of steps; each uses the step above it and one of the next column.
fn specs(size: Size) -> Result<Vec<StepSpec>, String> {
    let count = (STEPS / size.shrink).max(WIDTH * 2);
    let id = |n: usize| u32::try_from(n).map(NodeId).map_err(|error| error.to_string());
    let mut out = Vec::with_capacity(count);
    for n in 0..count {
        let mut inputs = Vec::new();
        if n >= WIDTH {
            let above = n - WIDTH;
            let neighbour = above - above % WIDTH + (above + 1) % WIDTH;
            for node in [above, neighbour] {
                inputs.push(Edge { node: id(node)?, output: 0 });
            }
        }
        let digest = Digest::of(format!("step {n}"));
        let kind = if inputs.is_empty() {
            StepKind::Known(vec![KeyId::root(&digest)])
        } else {
            StepKind::Op(digest)
        };
        let deps = vec![DepSpec { selector: None, content: false }; inputs.len()];
        out.push(StepSpec {
            node: id(n)?,
            inputs,
            deps,
            kind,
            ignore_cache: false,
            outputs: vec![0],
            heavy: true,
        });
    }
    Ok(out)
}

fn micro(size: Size, hit: bool) -> Result<Micro, String> {
    let specs = specs(size)?;
    let amount = specs.len();
    let targets: Vec<NodeId> = specs.iter().rev().take(WIDTH).map(|spec| spec.node).collect();
    if !drive(specs.clone(), &targets, hit) {
        return Err("the scheduler did not finish".into());
    }
    Ok(Micro {
        run: Box::new(move || {
            black_box(drive(specs.clone(), &targets, hit));
        }),
        amount,
        unit: "step",
    })
}

fn drive(specs: Vec<StepSpec>, targets: &[NodeId], hit: bool) -> bool {
    let mut scheduler = Scheduler::new(specs, targets, 8);
    let key = |step: NodeId| KeyId::root(&Digest::from_bytes([step.0.to_le_bytes()[0]; 32]));
    while !scheduler.finished() {
        let commands = scheduler.poll();
        if commands.is_empty() && !scheduler.finished() {
            return false;
        }
        for command in commands {
            scheduler.on(match command {
                Command::Probe { step, .. } => {
                    let keys = if hit { vec![vec![key(step)]] } else { vec![vec![]] };
                    Reply::Probed { step, keys, hit }
                }
                Command::Hash { step, input, .. } => Reply::Hashed { step, input, key: key(step) },
                Command::Run { step, .. } => Reply::Ran { step, keys: vec![vec![key(step)]] },
            });
        }
    }
    scheduler.succeeded()
}

/// Everything is a hit.
pub(super) fn cached(size: Size) -> Result<Micro, String> {
    micro(size, true)
}

/// Nothing is.
pub(super) fn run(size: Size) -> Result<Micro, String> {
    micro(size, false)
}
