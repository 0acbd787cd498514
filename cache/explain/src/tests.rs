//! Traces and manifests as data: what is said of small builds, and that damaged files are no manifests.

use std::collections::HashMap;

use crate::*;

fn entry(text: &str) -> ManifestEntry {
    let parts: Vec<&str> = text.split(' ').collect();
    let mut digest = [0; 8];
    digest[0] = parts[3].parse().unwrap();
    ManifestEntry {
        path: parts[0].as_bytes().to_vec(),
        kind: parts[1].as_bytes()[0],
        mode: u32::from_str_radix(parts[2], 8).unwrap(),
        size: 1,
        digest,
    }
}

fn manifest(lines: &str) -> Manifest {
    Manifest::new(lines.split(", ").filter(|line| !line.is_empty()).map(entry).collect())
}

#[test]
fn manifests_come_back_and_damage_is_found() {
    for text in ["", "a f 644 1", "src d 755 1, src/main.rs f 644 2, src/main.rs.bak f 600 3, z l 777 4"] {
        let bytes = manifest(text).to_bytes();
        assert_eq!(Manifest::from_bytes(&bytes), Some(manifest(text)));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(Manifest::from_bytes(&damaged), None, "{text:?} byte {at}");
            assert_eq!(Manifest::from_bytes(&bytes[..at]), None, "{text:?} cut to {at}");
        }
    }
}

#[test]
fn changes_are_found_by_path() {
    let old = manifest("a f 644 1, b f 644 2, c f 644 3, d f 644 4, e f 644 5");
    let new = manifest("a f 644 1, b f 664 9, c d 755 7, d f 600 8, f f 644 5");
    let only_b = |was: &ManifestEntry, _: &ManifestEntry| was.path == b"b";
    let changes: Vec<String> = old.changes_to(&new, only_b).iter().map(ToString::to_string).collect();
    assert_eq!(
        changes,
        ["mode of b 644\u{2192}664", "c is of another kind", "d modified", "e removed", "f added"]
    );
}

#[derive(Default)]
struct Known {
    manifests: HashMap<String, Manifest>,
    removed: Option<Removed>,
    offered: String,
}

impl World for Known {
    fn offered(&self, op: &str) -> bool {
        self.offered == op
    }

    fn manifest(&self, content: &str) -> Option<Manifest> {
        self.manifests.get(content).cloned()
    }

    fn only_mode(&self, _: usize, _: usize, _: &ManifestEntry) -> bool {
        false
    }

    fn removed(&self, _: &str, _: &str) -> Option<Removed> {
        self.removed.clone()
    }
}

/// A build of a context and steps on it: `name|text|op|content|outcome`, each on the one before.
fn build(at: i64, steps: &str) -> Trace {
    let mut trace = Trace { at, dockerfile: "Dockerfile".to_owned(), ..Trace::default() };
    trace.steps.push(step("context", "context", StepKind::Local, "random", Outcome::NotNeeded));
    for (n, line) in steps.lines().enumerate() {
        let parts: Vec<&str> = line.split('|').collect();
        let outcome = match parts[4] {
            "hit" => Outcome::Hit(Found::default()),
            "failed" => Outcome::Failed,
            why => Outcome::Ran { why: why.to_owned(), ms: 1000 },
        };
        let mut new = step(parts[0], parts[1], StepKind::File, parts[2], outcome);
        new.ordinal = n;
        new.fields = parts[2].split(' ').filter_map(|it| it.split_once('=')).map(own).collect();
        let content = (!parts[3].is_empty()).then(|| parts[3].to_owned());
        new.inputs.push(Input { step: 0, content });
        if n > 0 {
            new.inputs.push(Input { step: n, content: None });
        }
        trace.steps.push(new);
    }
    trace
}

fn own((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn step(name: &str, text: &str, kind: StepKind, op: &str, outcome: Outcome) -> Step {
    Step {
        name: name.to_owned(),
        stage: "s".to_owned(),
        ordinal: 0,
        platform: "linux/amd64".to_owned(),
        target: "linux/amd64".to_owned(),
        kind,
        line: None,
        text: text.to_owned(),
        op: op.to_owned(),
        preimage: op.to_owned(),
        fields: vec![],
        inputs: vec![],
        secrets: vec![],
        no_cache: false,
        outcome,
        causes: vec![],
    }
}

/// The roots as lines: `cause: steps > dependants`.
fn told(old: &[Trace], mut new: Trace, world: &Known) -> String {
    explain(&mut new, old, world);
    let names =
        |list: &[usize]| list.iter().map(|at| new.steps[*at].name.as_str()).collect::<Vec<_>>().join(" ");
    let line = |root: &Root| {
        let causes: Vec<String> = root.causes.iter().map(ToString::to_string).collect();
        format!("{}: {} > {}\n", causes.join(" and "), names(&root.steps), names(&root.dependants))
    };
    explanation(&new).roots.iter().map(line).collect()
}

const FIRST: &str = "1|COPY a|dest=/a|k1|ran\n2|RUN b|user=x|c|ran";

#[test]
fn causes() {
    let files =
        HashMap::from([("k1".to_owned(), manifest("a f 644 1")), ("k2".to_owned(), manifest("a f 644 2"))]);
    let world = Known { manifests: files, ..Known::default() };
    for (new, said) in [
        (
            "1|COPY a|dest=/a|k2|ran\n2|RUN b|user=x|c|ran",
            "a file changed in the build context: a modified: 1 > 2\n",
        ),
        (
            "1|COPY a|dest=/a|k3|ran\n2|RUN b|user=x|c|ran",
            "what it reads of the build context changed (its files of then are not known here): 1 > 2\n",
        ),
        ("1|COPY a|dest=/a|k1|hit\n2|RUN b|user=y|c|ran", "the user changed from \"x\" to \"y\": 2 > \n"),
        (
            "1|COPY a|dest=/a|k1|lost\n2|RUN b|user=x|c|hit",
            "the data of its record was lost or damaged: 1 > \n",
        ),
        (
            "1|COPY a|dest=/a|k1|hit\n2|RUN b|user=x|c|ran",
            "nothing changed, but this store has no record of it any more: 2 > \n",
        ),
        (
            "1|COPY a|dest=/a|k1|hit\n2|RUN new|user=z|c|failed",
            "the instruction changed: was \"RUN b\", is \"RUN new\" and the user changed from \"x\" to \"z\": 2 > \n",
        ),
    ] {
        assert_eq!(told(&[build(1, FIRST)], build(2, new), &world), said, "{new}");
    }
    assert_eq!(told(&[], build(1, FIRST), &world), "never built before: 1 > 2\n");
    let pruned = Known { removed: Some(Removed { at: 5, reason: "over the limit".to_owned() }), ..world };
    let again = build(9, "1|COPY a|dest=/a|k1|hit\n2|RUN b|user=x|c|ran");
    assert_eq!(
        told(&[build(1, FIRST)], again.clone(), &pruned),
        "its record was pruned on 1970-01-01 00:00 UTC (over the limit): 2 > \n"
    );
    // Pruned before the earlier build made it anew: that is not why.
    assert!(told(&[build(7, FIRST)], again, &pruned).starts_with("nothing changed"));
}

#[test]
fn traces_come_back_and_wrong_ones_do_not() {
    let trace = build(3, FIRST);
    let bytes = trace.to_bytes();
    let back = Trace::from_bytes(&bytes).unwrap();
    assert_eq!(back.steps, trace.steps);
    assert_eq!(Trace::from_bytes(&bytes[1..]), None);
    let mut wrong = trace;
    wrong.steps[1].inputs[0].step = 1;
    assert_eq!(Trace::from_bytes(&wrong.to_bytes()), None, "an input comes before its user");
}

/// Two steps: files of the context, and a command on them.
fn build_of(version: &str, files: &str) -> Trace {
    let step = |kind, text: &str, op: &str, inputs: Vec<Input>| Step {
        name: format!("[1/2] {text}"),
        stage: "app".to_owned(),
        ordinal: inputs.len(),
        platform: "linux/amd64".to_owned(),
        target: "linux/amd64".to_owned(),
        kind,
        line: Some(3),
        text: text.to_owned(),
        op: op.to_owned(),
        preimage: "a secret place".to_owned(),
        fields: vec![],
        inputs,
        secrets: vec![],
        no_cache: false,
        outcome: Outcome::Ran { why: "not-in-cache".to_owned(), ms: 7 },
        causes: vec![],
    };
    let input = |step, content: Option<&str>| Input { step, content: content.map(str::to_owned) };
    let mut run = step(StepKind::Exec, "RUN make $V", version, vec![input(1, None)]);
    (run.ordinal, run.fields) = (2, vec![("env.V".to_owned(), version.to_owned())]);
    Trace {
        version: 1,
        build: "b".to_owned(),
        at: 5,
        dockerfile: "Dockerfile".to_owned(),
        context: Some("/home/me".to_owned()),
        args: vec![("V".to_owned(), version.to_owned())],
        variables: vec![Variable { name: "V".to_owned(), arg: true, line: 2, value: None }],
        steps: vec![
            step(StepKind::Local, "context", "random", vec![]),
            step(StepKind::File, "COPY . /", "copy", vec![input(0, Some(files))]),
            run,
        ],
        ..Trace::default()
    }
}

#[test]
fn notes_come_back_without_what_is_of_one_machine_and_explain_elsewhere() {
    let files: HashMap<String, Manifest> = [("one", "a f 644 1"), ("two", "a f 644 2")]
        .map(|(key, text)| (key.to_owned(), manifest(text)))
        .into();
    let notes = Notes::of(&build_of("1", "one"), |_| false, |key| files.get(key).cloned());
    let bytes = notes.to_bytes();
    assert_eq!(Notes::from_bytes(&bytes).as_ref(), Some(&notes));
    let text = String::from_utf8_lossy(&bytes);
    assert!(!text.contains("/home/me") && !text.contains("a secret place"));
    for at in 0..bytes.len() {
        assert!(Notes::from_bytes(&bytes[..at]).is_none_or(|cut| cut.manifests.is_empty()), "cut to {at}");
    }
    // When it was built, and how it ended, does not make it another build; its arguments and files do.
    let again = Trace { at: 9, ..build_of("1", "one") };
    assert_eq!(Notes::of(&again, |_| false, |_| None).key(), notes.key());
    for other in [build_of("2", "one"), build_of("1", "two")] {
        assert_ne!(Notes::of(&other, |_| false, |_| None).key(), notes.key());
    }
    let causes = |mut new: Trace| {
        new.imports = vec!["cache".to_owned()];
        let world = Known { manifests: files.clone(), ..Known::default() };
        explain(&mut new, std::slice::from_ref(&notes.trace), &world);
        new.steps.into_iter().flat_map(|step| step.causes).map(|cause| cause.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        causes(build_of("1", "two")),
        ["a file changed in the build context: a modified", "a step before it ran"]
    );
    assert_eq!(
        causes(build_of("2", "one"))[1..],
        ["build argument V changed from \"1\" to \"2\" (Dockerfile:2)"]
    );
    // No notes: what the import has of the step tells more than that it missed.
    let first = |world: &Known, why: &str| {
        let mut new = Trace { imports: vec!["cache".to_owned()], ..build_of("1", "one") };
        new.steps[1].outcome = Outcome::Ran { why: why.to_owned(), ms: 1 };
        explain(&mut new, &[], world);
        new.steps[1].causes[0].to_string()
    };
    let world = Known { offered: "copy".to_owned(), ..Known::default() };
    assert_eq!(
        [first(&world, "not-in-cache"), first(&world, "pruned"), first(&Known::default(), "not-in-cache")],
        [
            "never built here, and cache offered it for other files or after other steps only",
            "never built here, and cache has it without its result (mode=min leaves out build stages)",
            "never built here, and cache did not offer it",
        ]
    );
    // Nothing differs, so the cache left it out.
    assert_eq!(causes(build_of("1", "one"))[0], "never built here, and cache did not offer it");
}

#[test]
fn notes_do_not_tell_values_of_what_is_named_like_a_secret() {
    let named = |value: &str| {
        let mut trace = build_of(value, "one");
        trace.args[0].0 = "TOKEN".to_owned();
        trace.variables[0] =
            Variable { name: "TOKEN".to_owned(), arg: true, line: 2, value: Some("default".to_owned()) };
        for (path, _) in trace.steps.iter_mut().flat_map(|step| &mut step.fields) {
            *path = path.replace("env.V", "env.TOKEN");
        }
        for step in &mut trace.steps {
            step.op = rbuild_digest::Digest::of(&step.op).hex();
        }
        trace
    };
    let secret = |name: &str| name == "TOKEN";
    let notes = Notes::of(&named("hush-1"), secret, |_| None);
    let bytes = notes.to_bytes();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("TOKEN") && !text.contains("hush") && !text.contains("default"), "{text}");
    let causes = |value: &str| {
        let mut new = named(value);
        new.veil(secret);
        explain(&mut new, std::slice::from_ref(&notes.trace), &Known::default());
        new.steps.into_iter().flat_map(|step| step.causes).map(|cause| cause.to_string()).collect::<Vec<_>>()
    };
    assert!(!causes("hush-1").iter().any(|cause| cause.contains("TOKEN")));
    let changed = causes("hush-2").join("; ");
    assert!(changed.contains("build argument TOKEN changed") && !changed.contains("hush"), "{changed}");
}
