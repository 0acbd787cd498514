//! The scheduler against the index algebra, without any world: scripts that say which steps ran and why, and random graphs.

use std::collections::{BTreeMap, BTreeSet};

use rbuild_digest::Digest;
use rbuild_graph::{Edge, NodeId};
use rbuild_ports::fakes::MemoryIndex;
use rbuild_ports::{CacheIndex, KeyId, NewRecord, RecordKind, Snapshot, Timestamp};

use crate::{Command, DepSpec, Reply, Scheduler, StepKind, StepSpec, Why};

/// A step of a test: its text is its operation; what it makes depends on the text and the contents of its inputs.
#[derive(Clone, Debug)]
struct T {
    text: String,
    inputs: Vec<(usize, bool)>,
    kind: Kind,
    no_cache: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Image,
    Local,
    Work,
    /// Makes the same whatever its inputs are.
    Constant,
    /// Makes something else each time.
    Dice,
}

fn t(kind: Kind, text: &str, inputs: &[(usize, bool)]) -> T {
    T { text: text.to_owned(), inputs: inputs.to_vec(), kind, no_cache: false }
}

/// A world that lasts over several builds.
#[derive(Default)]
struct World {
    index: MemoryIndex,
    time: i64,
    /// Contents of results, by record description.
    contents: BTreeMap<String, String>,
}

struct Build<'a> {
    world: &'a mut World,
    steps: Vec<T>,
    content: Vec<Option<String>>,
    log: Vec<String>,
    runs: Vec<usize>,
    hashed: usize,
    losing: Option<Losing>,
}

/// Loses results that were hits, at random.
struct Losing {
    random: u64,
    left: usize,
    /// The record that each result came from.
    record: Vec<Option<i64>>,
    /// The losses when each result was asked for.
    made: Vec<u64>,
}

impl Losing {
    fn new(seed: u64, steps: usize) -> Self {
        Self { random: seed, left: 6, record: vec![None; steps], made: vec![0; steps] }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % sides
    }
}

impl Build<'_> {
    fn specs(&self) -> Vec<StepSpec> {
        let spec = |(i, step): (usize, &T)| StepSpec {
            node: NodeId(u32::try_from(i).unwrap()),
            inputs: step
                .inputs
                .iter()
                .map(|(n, _)| Edge { node: NodeId(u32::try_from(*n).unwrap()), output: 0 })
                .collect(),
            deps: step
                .inputs
                .iter()
                .map(|(_, content)| DepSpec { selector: Some(Digest::of("/")), content: *content })
                .collect(),
            kind: match step.kind {
                Kind::Image => StepKind::Known(vec![KeyId::root(&Digest::of(&step.text))]),
                Kind::Local => StepKind::Known(vec![]),
                Kind::Work | Kind::Constant | Kind::Dice => StepKind::Op(Digest::of(&step.text)),
            },
            ignore_cache: step.no_cache,
            outputs: vec![0],
            heavy: true,
        };
        self.steps.iter().enumerate().map(spec).collect()
    }

    /// As workers do: the reply when what a command reads is lost, or was made anew after the command was given.
    fn lost(&mut self, step: NodeId, inputs: &[usize], losses: u64) -> Option<NodeId> {
        let losing = self.losing.as_mut()?;
        for input in inputs {
            if losing.made[*input] > losses || self.content[*input].is_none() {
                return Some(node(*input));
            }
            let Some(record) = losing.record[*input] else { continue };
            if losing.left > 0 && losing.roll(3) == 0 {
                losing.left -= 1;
                self.content[*input] = None;
                losing.record[*input] = None;
                self.world.index.forget(record).unwrap();
                self.log.push(format!("n{} lost n{input}", step.0));
                return Some(node(*input));
            }
        }
        None
    }

    fn made(&mut self, i: usize, content: String, record: Option<i64>, losses: u64) {
        self.content[i] = Some(content);
        if let Some(losing) = &mut self.losing {
            (losing.record[i], losing.made[i]) = (record, losses);
        }
    }

    fn perform(&mut self, command: Command) -> Reply {
        match command {
            Command::Probe { step, queries, learn, losses } => {
                let keys = self.world.index.probe(&queries[0]).unwrap();
                let record = self.world.index.records(&keys).unwrap().into_iter().next();
                if let Some(record) = &record {
                    for query in &learn {
                        self.world.index.save(query, None).unwrap();
                    }
                    let content = self.world.contents[&record.description].clone();
                    self.made(step.index(), content, Some(record.id), losses);
                    self.log.push(format!("n{} hit", step.0));
                }
                Reply::Probed { step, keys: vec![keys], hit: record.is_some() }
            }
            Command::Hash { step, input, losses } => {
                self.hashed += 1;
                let (from, _) = self.steps[step.index()].inputs[input];
                if let Some(lost) = self.lost(step, &[from], losses) {
                    return Reply::Lost { step, input: Some(input), lost };
                }
                let content = self.content[from].clone().expect("the input has a result");
                Reply::Hashed { step, input, key: content_key(&content) }
            }
            Command::Run { step, queries, why, losses, .. } => {
                let i = step.index();
                let inputs: Vec<usize> = self.steps[i].inputs.iter().map(|(input, _)| *input).collect();
                if let Some(lost) = self.lost(step, &inputs, losses) {
                    return Reply::Lost { step, input: None, lost };
                }
                for (alternatives, input) in queries[0].inputs.iter().zip(&inputs) {
                    let hashed = alternatives.iter().find(|alternative| alternative.selector.is_none());
                    if let (Some(hashed), Some(content)) = (hashed, &self.content[*input]) {
                        assert_eq!(
                            hashed.key,
                            content_key(content),
                            "saved under the content of something else"
                        );
                    }
                }
                self.runs.push(i);
                let this = &self.steps[i];
                let mut made = this.text.clone();
                if this.kind != Kind::Constant {
                    for (input, _) in &this.inputs {
                        made = format!(
                            "{made}({})",
                            self.content[*input].as_ref().expect("ran before its inputs had results")
                        );
                    }
                }
                self.world.time += 1;
                if this.kind == Kind::Dice {
                    made = format!("{made} at {}", self.world.time);
                }
                let made = Digest::of(made).short();
                let text = this.text.clone();
                self.made(i, made.clone(), None, losses);
                let description = format!("{text} {}", self.world.time);
                self.world.contents.insert(description.clone(), made);
                let record = NewRecord {
                    snapshot: Snapshot::default(),
                    created: Timestamp(self.world.time),
                    description,
                    cost_ms: 1,
                    kind: RecordKind::Local,
                    preimage: String::new(),
                };
                let key = self.world.index.save(&queries[0], Some(&record)).unwrap();
                let why = match why {
                    Why::NotInCache => String::new(),
                    why => format!(" {why:?}"),
                };
                self.log.push(format!("n{} ran{why}", step.0));
                Reply::Ran { step, keys: vec![vec![key]] }
            }
        }
    }
}

fn node(i: usize) -> NodeId {
    NodeId(u32::try_from(i).unwrap())
}

fn content_key(content: &str) -> KeyId {
    KeyId::root(&Digest::of(format!("content {content}")))
}

/// Builds `target` with replies in an order that `seed` decides; returns what ran and what hit, sorted by node, and the content.
fn build(world: &mut World, steps: &[T], target: usize, seed: u64) -> (Vec<String>, String, usize) {
    let build = solve(world, steps, target, seed, None);
    let once: BTreeSet<usize> = build.runs.iter().copied().collect();
    assert_eq!(once.len(), build.runs.len(), "a step ran twice: {:?}", build.runs);
    let (mut log, hashed) = (build.log, build.hashed);
    let content = build.content[target].clone().unwrap();
    log.sort_by_key(|line| line[1..].split(' ').next().and_then(|n| n.parse::<usize>().ok()));
    (log, content, hashed)
}

/// Commands are performed when their reply is due, or as soon as they are given: a reply may be old when it comes.
fn solve<'a>(
    world: &'a mut World,
    steps: &[T],
    target: usize,
    seed: u64,
    losing: Option<Losing>,
) -> Build<'a> {
    let mut content = vec![None; steps.len()];
    for (i, step) in steps.iter().enumerate() {
        if matches!(step.kind, Kind::Image | Kind::Local) {
            content[i] = Some(Digest::of(&step.text).short());
        }
    }
    let mut build =
        Build { world, steps: steps.to_vec(), content, log: vec![], runs: vec![], hashed: 0, losing };
    let mut scheduler = Scheduler::new(build.specs(), &[node(target)], 3);
    let mut waiting: Vec<Result<Command, Reply>> = vec![];
    let mut random = seed;
    let mut roll = |sides: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % sides
    };
    while !scheduler.finished() {
        for command in scheduler.poll() {
            waiting.push(if build.losing.is_some() && roll(2) == 0 {
                Err(build.perform(command))
            } else {
                Ok(command)
            });
        }
        if waiting.is_empty() {
            assert!(scheduler.finished(), "nothing to do, and not finished");
            break;
        }
        let reply = match waiting.swap_remove(roll(waiting.len())) {
            Ok(command) => build.perform(command),
            Err(reply) => reply,
        };
        scheduler.on(reply);
    }
    assert!(scheduler.succeeded());
    build
}

/// base, context, `COPY` of the context, `RUN` on it, final stage with `COPY --from`.
fn app(source: &str) -> Vec<T> {
    vec![
        t(Kind::Image, "base", &[]),
        t(Kind::Local, source, &[]),
        t(Kind::Work, "copy", &[(0, false), (1, true)]),
        t(Kind::Work, "make", &[(2, false)]),
        t(Kind::Work, "copy-from", &[(0, false), (3, true)]),
        t(Kind::Work, "run-final", &[(4, false)]),
    ]
}

#[test]
fn nothing_changed_is_all_hits_and_only_the_context_is_hashed() {
    let mut world = World::default();
    let (log, first, _) = build(&mut world, &app("a"), 5, 1);
    assert_eq!(log, ["n2 ran", "n3 ran", "n4 ran", "n5 ran"]);
    let (log, second, hashed) = build(&mut world, &app("a"), 5, 2);
    assert_eq!(log, ["n2 hit", "n3 hit", "n4 hit", "n5 hit"]);
    assert_eq!((first, hashed), (second, 1));
}

#[test]
fn a_changed_source_runs_what_depends_on_it() {
    let mut world = World::default();
    build(&mut world, &app("a"), 5, 1);
    assert_eq!(build(&mut world, &app("b"), 5, 1).0, ["n2 ran", "n3 ran", "n4 ran", "n5 ran"]);
    assert_eq!(build(&mut world, &app("a"), 5, 1).0, ["n2 hit", "n3 hit", "n4 hit", "n5 hit"]);
}

#[test]
fn equal_output_of_a_step_that_ran_cuts_the_build_off() {
    let mut world = World::default();
    let steps = |source| {
        let mut steps = app(source);
        steps[3].kind = Kind::Constant;
        steps
    };
    build(&mut world, &steps("a"), 5, 1);
    assert_eq!(build(&mut world, &steps("b"), 5, 1).0, ["n2 ran", "n3 ran", "n4 hit", "n5 hit"]);
    // The equivalence was learned: now by definition.
    let (log, _, hashed) = build(&mut world, &steps("b"), 5, 1);
    assert_eq!((log.len(), log.iter().all(|line| line.ends_with("hit")), hashed), (4, true, 1));
}

#[test]
fn a_pruned_record_runs_only_when_it_is_needed() {
    let mut world = World::default();
    build(&mut world, &app("a"), 5, 1);
    world.index.prune(|description| description.starts_with("make"));
    assert_eq!(build(&mut world, &app("a"), 5, 1).0, ["n2 hit", "n4 hit", "n5 hit"]);
    world
        .index
        .prune(|description| description.starts_with("copy-from") || description.starts_with("run-final"));
    assert_eq!(
        build(&mut world, &app("a"), 5, 1).0,
        ["n2 hit", "n3 ran Pruned", "n4 ran Pruned", "n5 ran Pruned"]
    );
}

#[test]
fn no_cache_runs_a_step_and_does_not_trust_old_records_on_it() {
    let mut world = World::default();
    build(&mut world, &app("a"), 5, 1);
    let mut steps = app("a");
    steps[3].no_cache = true;
    // Its content is what it was, so the final stage is a hit by content.
    assert_eq!(build(&mut world, &steps, 5, 1).0, ["n2 hit", "n3 ran NoCache", "n4 hit", "n5 hit"]);
    let mut steps = app("a");
    steps[2].no_cache = true;
    assert_eq!(build(&mut world, &steps, 5, 1).0, ["n2 ran NoCache", "n3 ran", "n4 hit", "n5 hit"]);
    for step in &mut steps {
        step.no_cache = true;
    }
    assert_eq!(
        build(&mut world, &steps, 5, 1).0,
        ["n2 ran NoCache", "n3 ran NoCache", "n4 ran NoCache", "n5 ran NoCache"]
    );
    assert_eq!(build(&mut world, &app("a"), 5, 1).0, ["n2 hit", "n3 hit", "n4 hit", "n5 hit"]);
}

#[test]
fn a_failure_starts_nothing_more_and_ends() {
    let steps = app("a");
    let world = &mut World::default();
    let build = Build { world, steps, content: vec![], log: vec![], runs: vec![], hashed: 0, losing: None };
    let mut scheduler = Scheduler::new(build.specs(), &[NodeId(5)], 1);
    let mut commands = scheduler.poll();
    let Some(Command::Hash { step, input, .. }) = commands.pop() else {
        panic!("the context is hashed first")
    };
    scheduler.on(Reply::Hashed { step, input, key: KeyId::root(&Digest::of("x")) });
    assert!(matches!(scheduler.poll().as_slice(), [Command::Probe { .. }]));
    scheduler.on(Reply::Failed { step });
    assert!(scheduler.poll().is_empty() && scheduler.finished() && !scheduler.succeeded());
}

#[test]
fn a_lost_result_is_made_again() {
    let mut world = World::default();
    build(&mut world, &app("a"), 5, 1);
    world.index.prune(|description| description.starts_with("run-final"));
    let mut content = vec![None; 6];
    (content[0], content[1]) = (Some(Digest::of("base").short()), Some(Digest::of("a").short()));
    let mut build = Build {
        world: &mut world,
        steps: app("a"),
        content,
        log: vec![],
        runs: vec![],
        hashed: 0,
        losing: None,
    };
    let mut scheduler = Scheduler::new(build.specs(), &[NodeId(5)], 1);
    let (mut lost, mut ran) = (false, vec![]);
    while !scheduler.finished() {
        for command in scheduler.poll() {
            let reply = match command {
                Command::Run { step: NodeId(5), .. } if !lost => {
                    lost = true;
                    Reply::Lost { step: NodeId(5), input: None, lost: NodeId(4) }
                }
                command => {
                    if let Command::Run { step, why, .. } = &command {
                        ran.push((step.0, *why));
                    }
                    build.perform(command)
                }
            };
            scheduler.on(reply);
        }
    }
    assert_eq!(ran, [(4, Why::Lost), (5, Why::Pruned)]);
}

/// A step that was pruned ran again on a `--no-cache` input after its user had looked at its keys; these did not count any more
/// then, and the user asked the index with an input that had no keys at all.
#[test]
fn a_pruned_step_that_runs_again_keeps_the_trust_of_its_users() {
    let mut steps = vec![
        t(Kind::Image, "base", &[]),
        t(Kind::Work, "fresh", &[(0, false)]),
        t(Kind::Work, "pruned", &[(1, true)]),
        t(Kind::Local, "context", &[]),
        t(Kind::Work, "user", &[(2, false), (3, true)]),
        t(Kind::Work, "needs", &[(2, false)]),
        t(Kind::Work, "last", &[(4, false), (5, false)]),
    ];
    (steps[1].no_cache, steps[5].no_cache) = (true, true);
    for seed in 0..64 {
        let mut world = World::default();
        build(&mut world, &steps, 6, seed);
        world.index.prune(|description| description.starts_with("pruned") || description.starts_with("last"));
        let log = build(&mut world, &steps, 6, seed).0;
        assert_eq!(
            log,
            ["n1 ran NoCache", "n2 ran Pruned", "n4 hit", "n5 ran NoCache", "n6 ran"],
            "seed {seed}"
        );
    }
}

mod random {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [Kind; 4] = [Kind::Image, Kind::Local, Kind::Work, Kind::Constant];

    fn graphs(kinds: &'static [Kind]) -> impl Strategy<Value = Vec<T>> {
        let step = (
            0..kinds.len(),
            0..6u8,
            prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..4),
            0..8u8,
        );
        prop::collection::vec(step, 2..24).prop_map(move |raw| {
            let mut steps: Vec<T> = vec![];
            for (i, (kind, text, inputs, no_cache)) in raw.into_iter().enumerate() {
                let kind = kinds[kind];
                let source = i == 0 || matches!(kind, Kind::Image | Kind::Local);
                let kind = if i == 0 { Kind::Image } else { kind };
                let inputs = if source {
                    vec![]
                } else {
                    inputs.iter().map(|(n, content)| (n.index(i), *content)).collect()
                };
                // Distinct operations, since equal nodes are one in a graph; a local context only counts by content.
                let text = format!("{i} {text}");
                let mut step = T { text, inputs, kind, no_cache: no_cache == 0 && !source };
                for (input, content) in &mut step.inputs {
                    *content |= steps[*input].kind == Kind::Local;
                }
                steps.push(step);
            }
            steps
        })
    }

    /// What a build without any cache makes.
    fn naive(steps: &[T], i: usize) -> String {
        let step = &steps[i];
        let mut made = step.text.clone();
        if step.kind == Kind::Work {
            for (input, _) in &step.inputs {
                made = format!("{made}({})", naive(steps, *input));
            }
        }
        Digest::of(made).short()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// Cold, warm, changed, pruned: whatever the order of replies, the result is what a naive build makes, and no step runs twice.
        #[test]
        fn cached_equals_naive(steps in graphs(&KINDS), changed in any::<prop::sample::Index>(), seeds in any::<[u64; 4]>()) {
            let target = steps.len() - 1;
            let mut world = World::default();
            prop_assert_eq!(build(&mut world, &steps, target, seeds[0]).1, naive(&steps, target));
            prop_assert_eq!(build(&mut world, &steps, target, seeds[1]).1, naive(&steps, target));
            let mut other = steps.clone();
            other[changed.index(steps.len())].text += "!";
            prop_assert_eq!(build(&mut world, &other, target, seeds[2]).1, naive(&other, target));
            world.index.prune(|description| description.len() % 2 == 0);
            prop_assert_eq!(build(&mut world, &steps, target, seeds[3]).1, naive(&steps, target));
        }

        /// Results that were found get lost while others read them: what is made is right nevertheless, and no other step runs twice.
        #[test]
        fn lost_results_are_made_again(
            steps in graphs(&KINDS),
            changed in any::<[prop::sample::Index; 4]>(),
            seeds in any::<[u64; 4]>(),
        ) {
            rounds(steps, &changed, &seeds, |steps, build| {
                let target = steps.len() - 1;
                assert_eq!(build.content[target].clone().expect("a result"), naive(steps, target));
                let once: BTreeSet<usize> = build.runs.iter().copied().collect();
                assert_eq!(once.len(), build.runs.len(), "{:?}", build.log);
            });
        }

        /// The same with steps that never make the same twice: no record gets under the content key of something else.
        #[test]
        fn lost_results_that_come_out_otherwise_mislead_nobody(
            steps in graphs(&[Kind::Image, Kind::Local, Kind::Work, Kind::Dice, Kind::Dice]),
            changed in any::<[prop::sample::Index; 4]>(),
            seeds in any::<[u64; 4]>(),
        ) {
            rounds(steps, &changed, &seeds, |_, _| {});
        }
    }

    /// Builds again and again, with a step changed and records pruned each time, while results get lost.
    fn rounds(
        mut steps: Vec<T>,
        changed: &[prop::sample::Index],
        seeds: &[u64],
        check: impl Fn(&[T], &Build<'_>),
    ) {
        let target = steps.len() - 1;
        let mut world = World::default();
        build(&mut world, &steps, target, seeds[0]);
        for (changed, seed) in changed.iter().zip(seeds) {
            let i = changed.index(steps.len());
            steps[i].text += "!";
            world.index.prune(|description| (description.len() as u64 + seed).is_multiple_of(3));
            let losing = Losing::new(seed.rotate_left(32), steps.len());
            check(&steps, &solve(&mut world, &steps, target, *seed, Some(losing)));
        }
    }
}
