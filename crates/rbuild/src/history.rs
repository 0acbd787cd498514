//! Writes a build down to explain it: takes note of what happens while it runs, keeps the files of content keys and compares
//! with earlier builds on a thread of its own, so that the build does not wait. Nothing depends on it: failing only means
//! that less can be explained.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use rbuild_cache_explain::{Manifest, ManifestEntry, Notes, Removed, StepKind, Trace, World, explain};
use rbuild_cache_index::Index;
use rbuild_cache_key::record_key;
use rbuild_cache_transfer::CacheNotes;
use rbuild_digest::Digest;
use rbuild_engine::Hashed;
use rbuild_graph::NodeId;
use rbuild_lower::is_secret_name;
use rbuild_ports::{Timestamp, View};
use rbuild_store::History;
use rbuild_tree::{Kind, RelPath, entry_hasher};

/// Selections of more entries are not kept.
const MOST_ENTRIES: usize = 500_000;

/// Earlier builds that are compared with.
const COMPARED: usize = 5;

/// Bytes read and files looked at to tell a change of permissions from others.
const READ_BYTES: u64 = 64 << 20;
const READ_FILES: usize = 200;

/// Preimages of removed records looked through.
const PREIMAGES: usize = 100;

/// What the thread is told. Graphs are numbered by platform.
enum Job {
    Hashed { graph: usize, hashed: Hashed },
    Finish(Box<Finish>),
}

/// What to explain, and graph and node of each of its steps.
pub(crate) type Written = (Trace, Vec<(usize, NodeId)>);

/// A build that ended.
pub(crate) struct Finish {
    /// Writes it down.
    pub(crate) write: Box<dyn FnOnce() -> Written + Send>,
    /// Dockerfile and context, in letters and digits.
    pub(crate) what: String,
    /// Asked when nothing is known here.
    pub(crate) told: Box<dyn FnOnce() -> Told + Send>,
}

/// What imported caches tell.
#[derive(Default)]
pub(crate) struct Told {
    /// Of the builds that exported them.
    pub(crate) notes: Vec<Vec<u8>>,
    /// The names of their records.
    pub(crate) operations: HashSet<Digest>,
}

/// Takes notes for one build.
pub(crate) struct Historian {
    /// What the build is called, and when it began.
    pub(crate) build: (String, Timestamp),
    jobs: Mutex<Option<Sender<Job>>>,
    /// It gives the explained trace.
    thread: Mutex<Option<JoinHandle<Option<Trace>>>>,
    /// What the thread gave.
    explained: OnceLock<Option<Trace>>,
    history: Arc<History>,
}

impl Historian {
    pub(crate) fn start(history: Arc<History>, index: Arc<Index>, build: (String, Timestamp)) -> Arc<Self> {
        let (send, receive) = channel();
        let kept = history.clone();
        let work = move || work(&receive, &kept, &index);
        let thread = std::thread::Builder::new().name("history".to_owned()).spawn(work).ok();
        let (jobs, thread) = (Mutex::new(Some(send)), Mutex::new(thread));
        Arc::new(Self { build, jobs, thread, explained: OnceLock::new(), history })
    }

    pub(crate) fn hashed(&self, graph: usize, hashed: Hashed) {
        self.send(Job::Hashed { graph, hashed });
    }

    /// The build ended: what remains is done while its result is exported.
    pub(crate) fn finish(&self, finish: Finish) {
        self.send(Job::Finish(Box::new(finish)));
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits for the explained trace.
    pub(crate) fn trace(&self) -> Option<&Trace> {
        let join = || {
            self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            thread.join().ok().flatten()
        };
        self.explained.get_or_init(join).as_ref()
    }

    /// What an exported cache tells of the build.
    pub(crate) fn notes(&self) -> Option<CacheNotes> {
        let manifest = |key: &str| Manifest::from_bytes(&self.history.manifest(key)?);
        let notes = Notes::of(self.trace()?, is_secret_name, manifest);
        Some(CacheNotes { key: notes.key(), bytes: notes.to_bytes() })
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &*self.jobs.lock().unwrap_or_else(PoisonError::into_inner) {
            // Without a thread nothing is explained.
            drop(jobs.send(job));
        }
    }
}

fn work(jobs: &Receiver<Job>, history: &History, index: &Index) -> Option<Trace> {
    let mut views = HashMap::new();
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Hashed { graph, hashed } => {
                let Hashed { step, input, key, view, entries } = hashed;
                if entries.len() <= MOST_ENTRIES && !history.has_manifest(&key.0) {
                    let manifest = manifest_of(&*view, &entries);
                    drop(history.keep_manifest(&key.0, &manifest.to_bytes()));
                }
                views.insert((graph, step, input), view);
            }
            Job::Finish(finish) => return Some(settle(*finish, &views, history, index)),
        }
    }
    None
}

type Views = HashMap<(usize, NodeId, usize), Arc<dyn View>>;

fn settle(finish: Finish, views: &Views, history: &History, index: &Index) -> Trace {
    let Finish { write, what, told } = finish;
    let (mut trace, nodes) = write();
    if trace.steps.iter().any(|step| step.ran() && !step.kind.is_source()) {
        let mut old: Vec<Trace> =
            history.traces(&what).iter().take(COMPARED).filter_map(|it| Trace::from_bytes(it)).collect();
        let (mut notes, mut offered) = (vec![], HashSet::new());
        if old.is_empty() {
            // This machine has not built it; others have.
            let told = told();
            offered = told.operations;
            notes = told.notes.iter().filter_map(|it| Notes::from_bytes(it)).collect();
            old = notes.iter().map(|it: &Notes| it.trace.clone()).collect();
        }
        if old.is_empty() {
            // Another Dockerfile may share its steps.
            let others = history.latest(COMPARED);
            let shares = |it: &Trace| it.steps.iter().any(|step| is_of(step, &trace));
            old = others.iter().filter_map(|it| Trace::from_bytes(it)).filter(shares).collect();
        }
        let world = Known { nodes, views, history, index, notes: &notes, offered, read: Mutex::new((0, 0)) };
        if notes.is_empty() {
            explain(&mut trace, &old, &world);
        } else {
            let mut veiled = trace.clone();
            veiled.veil(is_secret_name);
            explain(&mut veiled, &old, &world);
            for (step, explained) in trace.steps.iter_mut().zip(veiled.steps) {
                step.causes = explained.causes;
            }
        }
    }
    let kept = history.keep_trace(&what, trace.at, &trace.to_bytes());
    // One build in some dozens tidies.
    if kept.is_ok() && trace.at.rem_euclid(32) == 0 {
        drop(history.tidy());
    }
    trace
}

/// Whether a step of another Dockerfile is one of this trace.
fn is_of(step: &rbuild_cache_explain::Step, trace: &Trace) -> bool {
    step.kind != StepKind::Image && trace.steps.iter().any(|it| it.op == step.op)
}

/// The entries with what else is told of them.
pub(crate) fn manifest_of(view: &dyn View, entries: &[(RelPath, Digest)]) -> Manifest {
    let look = |(path, digest): &(RelPath, Digest)| {
        let entry = view.lookup(path).ok().flatten()?;
        let kind = match entry.kind {
            Kind::File { .. } | Kind::Hardlink { .. } => b'f',
            Kind::Dir => b'd',
            Kind::Symlink { .. } => b'l',
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => b'n',
        };
        Some(ManifestEntry {
            path: path.as_bytes().to_vec(),
            kind,
            mode: entry.mode & 0o7777,
            size: entry.content_size(),
            digest: prefix(digest),
        })
    };
    Manifest::new(entries.iter().filter_map(look).collect())
}

fn prefix(digest: &Digest) -> [u8; 8] {
    let mut out = [0; 8];
    out.iter_mut().zip(digest.as_bytes()).for_each(|(to, from)| *to = *from);
    out
}

/// What a comparison asks for.
struct Known<'a> {
    nodes: Vec<(usize, NodeId)>,
    views: &'a Views,
    history: &'a History,
    index: &'a Index,
    notes: &'a [Notes],
    offered: HashSet<Digest>,
    /// Files and bytes read so far.
    read: Mutex<(usize, u64)>,
}

impl World for Known<'_> {
    fn manifest(&self, content: &str) -> Option<Manifest> {
        let told = || self.notes.iter().find_map(|notes| notes.manifest(content)).cloned();
        self.history.manifest(content).and_then(|bytes| Manifest::from_bytes(&bytes)).or_else(told)
    }

    fn offered(&self, op: &str) -> bool {
        op.parse().is_ok_and(|op| self.offered.contains(&record_key(&op, 0)))
    }

    fn only_mode(&self, step: usize, position: usize, old: &ManifestEntry) -> bool {
        self.digest_with_mode(step, position, old).is_some_and(|digest| prefix(&digest) == old.digest)
    }

    fn removed(&self, name: &str, preimage: &str) -> Option<Removed> {
        let known = self.index.preimages(name, PREIMAGES).ok()?;
        let (at, reason) =
            known.into_iter().find(|it| it.text == preimage && it.removed.is_some())?.removed?;
        Some(Removed { at: at.0, reason })
    }
}

impl Known<'_> {
    fn digest_with_mode(&self, step: usize, position: usize, old: &ManifestEntry) -> Option<Digest> {
        let (graph, node) = *self.nodes.get(step)?;
        let view = self.views.get(&(graph, node, position))?;
        {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            *read = (read.0 + 1, read.1.saturating_add(old.size));
            if read.0 > READ_FILES || read.1 > READ_BYTES {
                return None;
            }
        }
        let path = RelPath::parse(&old.path).ok()?;
        let mut entry = view.lookup(&path).ok()??;
        entry.mode = old.mode;
        let mut hasher = entry_hasher(&entry);
        if let Kind::File { size } = entry.kind {
            let mut file = view.open(&path).ok()?.take(size);
            let mut buffer = vec![0; 64 << 10];
            loop {
                match file.read(&mut buffer).ok()? {
                    0 => break,
                    n => hasher.update(buffer.get(..n)?),
                }
            }
        }
        Some(hasher.finish())
    }
}

/// Names Dockerfile and context for the history. Platforms and targets are not part of it.
pub(crate) fn what(dockerfile: &Path, context: Option<&Path>) -> String {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let context = context.map(real).unwrap_or_default();
    let text =
        [real(dockerfile).as_os_str().as_encoded_bytes(), context.as_os_str().as_encoded_bytes()].join(&0);
    Digest::of(text).hex().chars().take(32).collect()
}
