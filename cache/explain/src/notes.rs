//! What an exported cache tells of its build, so that another machine can say what differs: the trace without what belongs to one run
//! or one machine, and the files of content keys.

use std::collections::BTreeSet;

use rbuild_digest::Digest;

use crate::manifest::{pull, push, take};
use crate::{Manifest, Outcome, StepKind, Trace};

const MAGIC: &[u8; 8] = b"rbnotes\x01";

/// Bytes of all manifests together; those beyond are left out.
const MOST_BYTES: usize = 16 << 20;

impl Trace {
    /// Replaces the values of arguments and variables whose name is `secret` by something that only says whether they are the same.
    /// A trace must be veiled to be compared with one that is.
    pub fn veil(&mut self, secret: impl Fn(&str) -> bool) {
        let args = self.args.iter_mut().map(|(name, value)| (&*name, value));
        let variables = self.variables.iter_mut().filter_map(|it| Some((&it.name, it.value.as_mut()?)));
        for (name, value) in args.chain(variables) {
            if secret(name) {
                *value = veiled(value);
            }
        }
        for (path, value) in self.steps.iter_mut().flat_map(|step| &mut step.fields) {
            if path.strip_prefix("env.").is_some_and(&secret) {
                *value = veiled(value);
            }
        }
    }
}

fn veiled(value: &str) -> String {
    format!("hidden:{}", Digest::of(value).hex().chars().take(8).collect::<String>())
}

/// A build as others see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// What was built.
    pub trace: Trace,
    /// Content keys and their files.
    pub manifests: Vec<(String, Manifest)>,
}

impl Notes {
    /// Of a build that succeeded; `secret` says of which arguments and variables others must not see the value, and `manifest`
    /// gives the files of content keys.
    #[must_use]
    pub fn of(
        trace: &Trace,
        secret: impl Fn(&str) -> bool,
        manifest: impl Fn(&str) -> Option<Manifest>,
    ) -> Self {
        let mut trace = Trace {
            build: String::new(),
            at: 0,
            context: None,
            imports: vec![],
            no_cache: false,
            imported: true,
            ..trace.clone()
        };
        trace.veil(secret);
        let mut keys = BTreeSet::new();
        for step in &mut trace.steps {
            step.causes.clear();
            step.preimage.clear();
            step.no_cache = false;
            if step.outcome != Outcome::NotNeeded {
                step.outcome = Outcome::Ran { why: String::new(), ms: 0 };
            }
            keys.extend(step.inputs.iter().filter_map(|input| input.content.clone()));
        }
        let mut left = MOST_BYTES;
        let mut manifests = vec![];
        for key in keys {
            let Some(files) = manifest(&key) else { continue };
            if let Some(rest) = left.checked_sub(files.to_bytes().len()) {
                left = rest;
                manifests.push((key, files));
            }
        }
        Self { trace, manifests }
    }

    /// The same for builds of the same steps on the same files.
    #[must_use]
    pub fn key(&self) -> String {
        let mut text = self.trace.platforms.join(" ");
        for step in &self.trace.steps {
            let local = step.kind == StepKind::Local;
            text.push_str(&format!("\n{} {}", step.text, if local { "" } else { &step.op }));
            let from = |at: usize| self.trace.steps.get(at).map(|from| from.kind);
            for input in step.inputs.iter().filter(|input| from(input.step) == Some(StepKind::Local)) {
                text.push_str(&format!(" {}", input.content.as_deref().unwrap_or_default()));
            }
        }
        Digest::of(text).hex().chars().take(16).collect()
    }

    /// As they are exported.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let mut part = |bytes: &[u8]| {
            push(&mut out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        };
        part(&self.trace.to_bytes());
        for (key, files) in &self.manifests {
            part(key.as_bytes());
            part(&files.to_bytes());
        }
        out
    }

    /// As they were exported; `None` when they are damaged.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
            let length = usize::try_from(pull(rest)?).ok()?;
            take(rest, length)
        }
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let mut trace = Trace::from_bytes(part(&mut rest)?)?;
        trace.imported = true;
        let mut manifests = vec![];
        while !rest.is_empty() {
            let key = String::from_utf8(part(&mut rest)?.to_vec()).ok()?;
            manifests.push((key, Manifest::from_bytes(part(&mut rest)?)?));
        }
        Some(Self { trace, manifests })
    }

    /// The files of a content key.
    #[must_use]
    pub fn manifest(&self, key: &str) -> Option<&Manifest> {
        self.manifests.iter().find(|(known, _)| known == key).map(|(_, files)| files)
    }
}
