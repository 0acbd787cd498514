//! Cached builds of all kinds: random Dockerfiles give the same files clean, cached and imported; platforms share a cache.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use rbuild::{BuildRequest, Filters, PruneOptions, PruneReport, UsageKind};
use rbuild_testkit::fixture::make_tree;
use rbuild_testkit::images::append;
use rbuild_testkit::normalize::Times;
use rbuild_testkit::registry::TestRegistry;
use rbuild_testkit::space::Space;

use crate::caches::{TREE, layers_read, to, to_dir};
use crate::common::{
    Built, assert_same_lines, build, builder, image_of, output, request, require_root, require_sandbox,
};
use crate::imports::{from, local};

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % sides
    }
}

/// A Dockerfile of a few stages that read files of the context and each other; with commands where steps can run.
fn any_dockerfile(dice: &mut Dice, runs: bool) -> String {
    let mut text = String::new();
    // Which stages have a shell.
    let mut shells: Vec<bool> = vec![];
    for stage in 0..=dice.roll(4) {
        let (base, shell) = match dice.roll(3) {
            0 if stage > 0 => {
                let from = dice.roll(stage);
                (format!("s{from}"), shells[from])
            }
            1 => ("BASE".to_owned(), true),
            _ => ("scratch".to_owned(), false),
        };
        shells.push(shell);
        // Whoever copies from it finds at least this.
        text.push_str(&format!("FROM {base} AS s{stage}\nCOPY src/a /x/first\n"));
        for step in 0..dice.roll(4) {
            let line = if runs && shell && dice.roll(2) == 0 {
                any_command(dice, stage, step)
            } else {
                any_copy(dice, stage, step)
            };
            text.push_str(&line);
        }
    }
    text
}

/// An instruction that runs no command.
fn any_copy(dice: &mut Dice, stage: usize, step: usize) -> String {
    let file = ["src", "src/a", "src/b", "note", "src/*"][dice.roll(5)];
    match dice.roll(7) {
        0 => format!("COPY {file} /d{step}/\n"),
        1 => format!("COPY --link {file} /l{step}/\n"),
        2 if stage > 0 => format!("COPY --from=s{} /x /from{step}\n", dice.roll(stage)),
        3 => format!("WORKDIR /w{step}\n"),
        4 => format!("ENV E{step}={}\n", dice.roll(3)),
        5 => format!("COPY --chmod=7{}5 {file} /m{step}/\n", dice.roll(8)),
        _ => format!("COPY <<E /h{step}\nhere {}\nE\n", dice.roll(3)),
    }
}

/// A command whose result hangs on nothing but its inputs.
fn any_command(dice: &mut Dice, stage: usize, step: usize) -> String {
    match dice.roll(8) {
        0 => "RUN true\n".to_owned(),
        1 => format!("RUN cp -r /x /r{step} && echo {} >> /log\n", dice.roll(3)),
        2 => "RUN rm -rf /x/first /l0 && mkdir -p /x\n".to_owned(),
        3 => format!("RUN --mount=type=bind,source=src,target=/b cat /b/* > /all{step}\n"),
        4 if stage > 0 => {
            format!("RUN --mount=type=bind,from=s{},target=/b cp -r /b/x /bound{step}\n", dice.roll(stage))
        }
        5 => format!("RUN --mount=type=cache,target=/c echo {} > /c/f && cp /c/f /k{step}\n", dice.roll(3)),
        6 => format!("RUN --mount=type=tmpfs,target=/t cp -r /x /t && ls /t/x > /tmpfs{step}\n"),
        _ => format!("RUN rm -rf /x && mkdir /x && ln -s ../log /x/link{step}\n"),
    }
}

/// A garbage collection of some kind, of a store that holds `total` bytes.
fn any_prune(dice: &mut Dice, total: u64) -> PruneOptions {
    let part = total / 100 * u64::try_from(dice.roll(100)).unwrap_or(0);
    let filters = [
        &["type=regular"][..],
        &["type=internal"],
        &["type=exec.cachemount"],
        &["description~=COPY"],
        &["description~=RUN|WORKDIR"],
        &["description~=s0", "shared=false"],
        &["description~=^.s[1-3]", "inuse=false"],
    ][dice.roll(7)];
    let all = dice.roll(2) == 0;
    let plain = PruneOptions { all, ..PruneOptions::default() };
    match dice.roll(6) {
        0 => plain,
        1 => PruneOptions { max_used_space: Some(part), ..plain },
        2 => PruneOptions { reserved_space: Some(part), min_free_space: Some(u64::MAX), ..plain },
        3 => PruneOptions { unused_for: Some(Duration::from_millis(dice.roll(150) as u64)), ..plain },
        4 => PruneOptions { only: Some(UsageKind::Layer), max_used_space: Some(part), ..plain },
        _ => PruneOptions { filters: Filters::parse(filters, &|_| None).expect("filters"), ..plain },
    }
}

/// What a build did and made.
struct Outcome {
    built: Built,
    files: String,
}

impl Outcome {
    /// Names of the steps that ran.
    fn ran(&self) -> BTreeSet<&str> {
        self.built.steps.iter().filter_map(|step| Some(step.split_once(": ran, ")?.0)).collect()
    }
}

/// One random Dockerfile, and the places it is built in.
struct Case {
    seed: u64,
    text: String,
    /// The files that a build without a cache gives.
    clean: String,
}

impl Case {
    fn request(&self, space: &Space) -> BuildRequest {
        make_tree(&space.context(), TREE);
        request(space, &self.text)
    }

    /// Builds, and compares the files.
    fn build(&self, space: &Space, request: BuildRequest, what: &str) -> Outcome {
        let (built, image) = image_of(space, request);
        let shown = format!("seed {}, {what}:\n{}\n{}", self.seed, built.text(), self.text);
        let Ok(_) = &built.result else { panic!("{shown}\n{}", built.error()) };
        let files = image.expect("it was built").rootfs().listing(Times::Hidden);
        if !self.clean.is_empty() {
            assert_same_lines(&self.clean, &files, &shown);
        }
        Outcome { built, files }
    }

    /// Builds, and nothing must run.
    fn all_cached(&self, space: &Space, request: BuildRequest, what: &str) {
        let outcome = self.build(space, request, what);
        assert!(
            outcome.ran().is_empty(),
            "seed {}, {what}:\n{}\n{}",
            self.seed,
            outcome.built.text(),
            self.text
        );
    }

    /// Collects some garbage, and builds. If the store is `complete`, has records of all steps, only those run whose records
    /// went.
    fn collected(&self, space: &Space, dice: &mut Dice, what: &str, complete: bool) {
        let request = self.request(space);
        let store = builder(space);
        let total = store.store().usage().expect("usage").iter().map(|row| row.size).sum();
        let options = any_prune(dice, total);
        let what = format!("{what}, after {options:?}");
        let would = store.store().prune(&PruneOptions { dry_run: true, ..options.clone() }).expect("a plan");
        let report = store.store().prune(&options).expect("garbage collection");
        drop(store);
        let names = |report: &PruneReport| -> BTreeSet<String> {
            report.removed.iter().map(|row| row.row.id.clone()).collect()
        };
        // What is old enough only since then may go, too.
        if options.unused_for.is_none() {
            assert_eq!(names(&would), names(&report), "seed {}, {what}", self.seed);
        }
        let outcome = self.build(space, request.clone(), &what);
        let shown = format!("seed {}, {what}:\n{}\n{}", self.seed, outcome.built.text(), self.text);
        let ran = if complete { outcome.ran() } else { BTreeSet::new() };
        assert!(ran.len() <= report.records, "{} records went, {shown}", report.records);
        let layers = report.removed.iter().filter(|row| row.row.kind == UsageKind::Layer);
        let named = layers.map(|row| row.row.description.as_str()).filter(|name| !name.is_empty());
        let named: Vec<&str> = named.collect();
        if named.len() == report.records {
            assert!(ran.iter().all(|step| named.contains(step)), "{named:?} went, {shown}");
        }
        self.all_cached(space, request, &format!("again, {what}"));
    }
}

/// Seeds to try: `RBUILD_SEEDS=100..400`, or a few.
fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("RBUILD_SEEDS") else { return 0..6 };
    let (from, to) = text.split_once("..").expect("RBUILD_SEEDS is FROM..TO");
    from.parse().expect("a number")..to.parse().expect("a number")
}

#[test]
fn a_cached_build_equals_a_clean_build() {
    if !require_root() {
        return;
    }
    let runs = require_sandbox();
    for seed in seeds() {
        let dice = &mut Dice(seed);
        let mut case = Case { seed, text: any_dockerfile(dice, runs), clean: String::new() };
        let (cold, warm) = (Space::new(), Space::new());
        let dir = cold.path("cache");
        let mode = ["min", "max"][usize::from(seed % 3 > 0)];
        let exporting =
            BuildRequest { cache_to: to_dir(&dir, &format!(",mode={mode}")), ..case.request(&cold) };
        case.clean = case.build(&cold, exporting, "clean").files;
        case.all_cached(&cold, case.request(&cold), "again");
        let importing = || BuildRequest { cache_from: local(&dir), ..case.request(&warm) };
        case.all_cached(&warm, importing(), "imported");
        case.all_cached(&warm, case.request(&warm), "after the import");
        for round in 0..3 {
            case.collected(&cold, dice, &format!("round {round}"), round == 0);
        }
        // What an import gave goes like everything else, and comes back from there.
        case.collected(&warm, dice, "imported before", false);
        drop(builder(&warm).store().prune(&any_prune(dice, 1 << 20)).expect("garbage collection"));
        case.all_cached(&warm, importing(), &format!("imported again, {mode}"));
        // Other files beneath what is left of the records.
        drop(builder(&cold).store().prune(&any_prune(dice, 1 << 20)).expect("garbage collection"));
        for file in ["src/b", "src/a"] {
            let clean = Space::new();
            let changed = |space: &Space| {
                let request = case.request(space);
                space.write(file, "changed");
                request
            };
            let other = Case { clean: String::new(), text: case.text.clone(), seed };
            let files = other.build(&clean, changed(&clean), "changed, clean").files;
            let other = Case { clean: files, ..other };
            other.build(&cold, changed(&cold), &format!("{file} changed"));
            other.build(
                &warm,
                BuildRequest { cache_from: local(&dir), ..changed(&warm) },
                &format!("{file} changed, with an import"),
            );
        }
    }
}

/// A base for two platforms, whose layers differ.
fn two_platforms(registry: &TestRegistry) {
    let layer = |text: &str| {
        let mut tar = tar::Builder::new(vec![]);
        append(&mut tar, "arch", 0o644, tar::EntryType::Regular, text.as_bytes(), None);
        tar.into_inner().expect("a tar in memory")
    };
    let amd64 = registry.put_image("base", "amd64", "amd64", &[layer("amd64")]);
    let arm64 = registry.put_image("base", "arm64", "arm64", &[layer("arm64")]);
    registry.put_index("base", "latest", &[("linux/amd64", &amd64), ("linux/arm64", &arm64)]);
}

#[test]
fn platforms_share_a_cache() {
    if !require_root() {
        return;
    }
    let registry = TestRegistry::start();
    two_platforms(&registry);
    let on = |space: &Space, platforms: &[&str]| {
        make_tree(&space.context(), TREE);
        let dockerfile = format!("FROM {}/base\nCOPY src /src\nCOPY note /note\n", registry.host());
        let mut request = request(space, &dockerfile);
        request.platforms = platforms.iter().map(|it| it.parse().expect("a platform")).collect();
        request
    };
    let (amd64, arm64) = (["linux/amd64"], ["linux/arm64"]);
    // One after the other into the same place, from machines that know nothing of each other.
    for platform in [&amd64, &arm64] {
        let space = Space::new();
        let mut request = on(&space, platform);
        request.cache_to = to(&format!("type=registry,ref={}/app:cache", registry.host()));
        build(&space, &request).ok();
    }
    // And both at once inside an image.
    let space = Space::new();
    let mut request = on(&space, &["linux/amd64", "linux/arm64"]);
    request.cache_to = to("type=inline");
    request.outputs = vec![output(&format!("type=registry,name={}/app:image", registry.host()))];
    build(&space, &request).ok();
    registry.clear_log();
    for tag in ["cache", "image"] {
        let space = Space::new();
        let mut request = on(&space, &["linux/amd64", "linux/arm64"]);
        request.cache_from = from(&format!("{}/app:{tag}", registry.host()));
        let built = build(&space, &request);
        assert_eq!((built.ok().ran, built.ok().cached), (0, 4), "{tag}:\n{}", built.text());
        assert_eq!(layers_read(&registry, "app").len(), 0);
    }
}
