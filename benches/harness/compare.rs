//! The comparison: makes workloads, lets the engines take turns, checks and collects samples. Everything it starts is
//! ended, and everything it writes removed, also on errors and interrupts; only base images stay where asked.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::base::{self, inspect_archive};
use crate::check::check;
use crate::context::{self, OnDisk};
use crate::engines::{self, Build, Engine, EngineOptions, Network};
use crate::error::{BenchError, Doing as _, Result, tail};
use crate::measure::{Runner, daemon_peak, reset_peak};
use crate::registry::Registry;
use crate::report::{Sample, headline, order, table};
use crate::system::{facts, remove_tree, settle, unmount_below};
use crate::workload::{Bases, Before, CacheUse, Project, Scale, Workload, edited, project};

/// What is compared, and how.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Engines asked for; `None` is all that are found.
    pub(crate) engines: Option<Vec<String>>,
    /// Workloads, in order.
    pub(crate) workloads: Vec<Workload>,
    /// Samples of each.
    pub(crate) runs: u64,
    /// Decides all contents.
    pub(crate) seed: u64,
    /// Sizes.
    pub(crate) scale: Scale,
    /// Network of RUN steps.
    pub(crate) network: Network,
    /// For the engines.
    pub(crate) engine: EngineOptions,
    /// A Debian rootfs, instead of making one.
    pub(crate) debian_tar: Option<PathBuf>,
    /// Where to work; its cache of base images stays.
    pub(crate) scratch: PathBuf,
    /// Leave stores and logs.
    pub(crate) keep: bool,
    /// Append samples here.
    pub(crate) json: Option<PathBuf>,
    /// The longest that one command may take.
    pub(crate) timeout: Duration,
}

/// Runs everything and prints the table. Whether all samples counted.
pub(crate) fn compare(options: &Options) -> Result<bool> {
    let runner = Runner::new(&options.scratch, options.timeout)?;
    let _lock = lock(&options.scratch)?;
    let mut engines: Vec<Box<dyn Engine>> = Vec::new();
    let result = with_engines(options, &runner, &mut engines);
    for mut engine in engines {
        if !options.keep
            && let Err(error) = engine.close(&runner)
        {
            eprintln!("cleaning up after {}: {error}", engine.name());
        }
    }
    clean_up(options, &runner)?;
    result
}

/// Two comparisons in one directory would remove each other's stores.
fn lock(scratch: &Path) -> Result<File> {
    let path = scratch.join("lock");
    let file = File::create(&path).doing("create", &path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => Err(BenchError::Other(format!("another comparison works in {}", scratch.display()))),
    }
}

fn clean_up(options: &Options, runner: &Runner) -> Result<()> {
    if options.keep {
        return Ok(());
    }
    unmount_below(&options.scratch);
    for folder in ["engines", "registry", "work", "home", "tmp", "logs"] {
        remove_tree(&options.scratch.join(folder), runner)?;
    }
    Ok(())
}

fn with_engines(options: &Options, runner: &Runner, engines: &mut Vec<Box<dyn Engine>>) -> Result<bool> {
    let registry = Registry::start(&options.scratch.join("registry"), runner)?;
    let bases = push_bases(options, runner, &registry)?;
    let probe = OnDisk::base(&options.scratch.join("work/probe"), &bases.busybox)?;
    open_engines(options, runner, &probe, engines)?;
    let names: Vec<&str> = engines.iter().map(|engine| engine.name()).collect();
    let mut bench = Bench { options, runner, bases: &bases, samples: Vec::new(), json: open_json(options)? };
    bench.head(engines)?;
    // What was measured before an error or an interrupt is worth showing.
    let done = options.workloads.iter().try_for_each(|workload| bench.workload(*workload, engines));
    println!("\n{}", table(&bench.samples, &names).trim_end());
    done.map(|()| bench.samples.iter().all(|sample| sample.error.is_none() || sample.unsupported))
}

fn push_bases(options: &Options, runner: &Runner, registry: &Registry) -> Result<Bases> {
    let cache = options.scratch.join("cache");
    let wants = |workload| options.workloads.contains(&workload);
    let busybox = base::busybox(&cache, runner)?;
    registry.push(&busybox)?;
    let mut bases = Bases {
        busybox: registry.reference(&busybox),
        debian: registry.reference(&busybox),
        debian_bytes: busybox.copied,
        large: String::new(),
    };
    if wants(Workload::Gzip) && options.scale.debian {
        eprintln!("base image: debian");
        let debian = base::debian(&cache, runner, options.debian_tar.as_deref())?;
        registry.push(&debian)?;
        (bases.debian, bases.debian_bytes) = (registry.reference(&debian), debian.copied);
    }
    if wants(Workload::Pull) {
        eprintln!("base image: large");
        let large = base::large(&cache, runner, &options.scale, options.seed)?;
        registry.push(&large)?;
        bases.large = registry.reference(&large);
        println!(
            "large base       {} MB as gzip, {} MB as tar",
            large.compressed / 1_000_000,
            large.unpacked / 1_000_000
        );
    }
    Ok(bases)
}

fn open_engines(
    options: &Options,
    runner: &Runner,
    probe: &OnDisk,
    engines: &mut Vec<Box<dyn Engine>>,
) -> Result<()> {
    let asked = options.engines.as_deref();
    let names = asked.map_or_else(|| engines::NAMES.map(str::to_owned).to_vec(), <[String]>::to_vec);
    for name in &names {
        let build = probe.build("bench-probe", options);
        match engines::open(name, &options.engine, &options.scratch, runner, &build) {
            Ok(Some(engine)) => engines.push(engine),
            Ok(None) if asked.is_some() => {
                return Err(BenchError::Other(format!(
                    "{name} was not found, or cannot be used without its address"
                )));
            }
            Ok(None) => eprintln!("{name}: not found"),
            Err(error @ BenchError::Interrupted) => return Err(error),
            Err(error) if asked.is_some() => return Err(error),
            Err(error) => eprintln!("{name}: {error}"),
        }
    }
    if engines.is_empty() { Err(BenchError::Other("there is no engine to measure".into())) } else { Ok(()) }
}

fn open_json(options: &Options) -> Result<Option<File>> {
    let open = |path: &PathBuf| File::options().append(true).create(true).open(path).doing("open", path);
    options.json.as_ref().map(open).transpose()
}

impl OnDisk {
    /// A project that only makes an engine fetch and unpack `base`.
    fn base(dir: &Path, base: &str) -> Result<Self> {
        let on_disk = Self { context: dir.join("context"), dockerfile: dir.join("Dockerfile") };
        fs::create_dir_all(&on_disk.context).doing("create", &on_disk.context)?;
        let text = format!("FROM {base}\nRUN true\n");
        fs::write(&on_disk.dockerfile, text).doing("write", &on_disk.dockerfile)?;
        Ok(on_disk)
    }

    /// A build of it that only makes an image.
    fn build<'a>(&'a self, tag: &'a str, options: &Options) -> Build<'a> {
        Build {
            tag,
            dockerfile: &self.dockerfile,
            context: &self.context,
            no_cache: false,
            archive: None,
            cache_from: None,
            cache_to: None,
            network: options.network,
        }
    }
}

/// A comparison under way.
struct Bench<'a> {
    options: &'a Options,
    runner: &'a Runner,
    bases: &'a Bases,
    samples: Vec<Sample>,
    json: Option<File>,
}

impl Bench<'_> {
    fn head(&mut self, engines: &[Box<dyn Engine>]) -> Result<()> {
        let facts = facts(&self.options.scratch);
        for (name, value) in &facts {
            println!("{name:<16} {value}");
        }
        let network = format!("{:?}", self.options.network).to_lowercase();
        println!("{:<16} {network}", "RUN network");
        println!(
            "{:<16} {} of each, {} sizes, seed {}",
            "samples", self.options.runs, self.options.scale.name, self.options.seed
        );
        for engine in engines {
            println!("{:<16} {}", engine.name(), engine.about());
        }
        println!(
            "{:<16} {}",
            "peak memory",
            if self.runner.knows_memory() {
                "commands: largest process among the command and its descendants (wait4, by GNU time); daemons: VmHWM of the daemon, reset before each sample"
            } else {
                "of daemons only (GNU time is not installed): VmHWM of the daemon, reset before each sample"
            }
        );
        let line = json!({
            "kind": "run",
            "machine": facts.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect::<serde_json::Map<_, _>>(),
            "engines": engines.iter().map(|engine| (engine.name().to_owned(), json!(engine.about()))).collect::<serde_json::Map<_, _>>(),
            "scale": self.options.scale.name,
            "seed": self.options.seed,
            "network": network,
        });
        self.line(&line.to_string())
    }

    fn line(&mut self, text: &str) -> Result<()> {
        match (&mut self.json, &self.options.json) {
            (Some(file), Some(path)) => writeln!(file, "{text}").doing("write", path),
            _ => Ok(()),
        }
    }

    fn add(&mut self, sample: Sample) -> Result<()> {
        let what = sample.error.as_deref().map_or_else(|| format!("{:.3} s", sample.seconds), headline);
        eprintln!("{:<10} {:<2} {:<9} {what}", sample.workload.name(), sample.round + 1, sample.engine);
        self.line(&sample.json().to_string())?;
        self.samples.push(sample);
        Ok(())
    }

    fn workload(&mut self, workload: Workload, engines: &mut [Box<dyn Engine>]) -> Result<()> {
        let work = self.options.scratch.join("work").join(workload.name());
        remove_tree(&work, self.runner)?;
        let make = |round| project(workload, &self.options.scale, self.options.seed, round, self.bases);
        let mut current: Project = make(0);
        let mut on_disk = context::write(&current, &work.join("0"))?;
        let base = OnDisk::base(&work.join("base"), self.base_of(workload))?;
        let mut usable = Vec::new();
        for (position, engine) in engines.iter_mut().enumerate() {
            if let Err(reason) = self.supports(workload, engine.as_ref(), &on_disk) {
                let reason = BenchError::Other(reason);
                self.add(Sample { unsupported: true, ..failed(workload, engine.name(), 0, &reason) })?;
                continue;
            }
            match self.prepare(workload, engine.as_mut(), &on_disk, &base) {
                Ok(()) => usable.push(position),
                Err(error @ BenchError::Interrupted) => return Err(error),
                Err(error) => self.add(failed(workload, engine.name(), 0, &error))?,
            }
        }
        for round in 0..self.options.runs {
            if workload.new_context_each_round() && round > 0 {
                remove_tree(&work.join((round - 1).to_string()), self.runner)?;
                current = make(round);
                on_disk = context::write(&current, &work.join(round.to_string()))?;
            }
            if workload.edits()
                && let Some(file) = edited(&current, round)
            {
                context::replace(&on_disk, &file)?;
            }
            for turn in order(usable.len(), round) {
                let engine = engines[usable[turn]].as_mut();
                let sample = match self.sample(workload, engine, round, &on_disk, &base) {
                    Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                    Err(error) => failed(workload, engine.name(), round, &error),
                    Ok(sample) => sample,
                };
                self.add(sample)?;
            }
        }
        remove_tree(&work, self.runner)
    }

    fn base_of(&self, workload: Workload) -> &str {
        match workload {
            Workload::Gzip => &self.bases.debian,
            _ => &self.bases.busybox,
        }
    }

    fn supports(
        &self,
        workload: Workload,
        engine: &dyn Engine,
        project: &OnDisk,
    ) -> std::result::Result<(), String> {
        engine.commands(&self.build(workload, engine, "bench", project)).map(drop)
    }

    /// Brings a store to where the first sample may start.
    fn prepare(
        &self,
        workload: Workload,
        engine: &mut dyn Engine,
        project: &OnDisk,
        base: &OnDisk,
    ) -> Result<()> {
        let tag = tag(workload, 0);
        // A daemon that may not be emptied keeps what it has; only an empty store cannot be done without.
        let reset = engine.reset(self.runner);
        match workload.before() {
            Before::Built => self.untimed(engine, &project.build(&tag, self.options)),
            Before::Base => self.untimed(engine, &base.build("bench-base", self.options)),
            Before::OnlyBase | Before::OnlyBuilt => Ok(()),
            Before::Empty => reset,
        }?;
        match workload.cache() {
            None => Ok(()),
            Some(use_of) => {
                let dir = self.cache_dir(engine);
                remove_tree(&dir, self.runner)?;
                if use_of == CacheUse::Export {
                    return Ok(());
                }
                let export = Build { cache_to: Some(dir), ..project.build(&tag, self.options) };
                self.untimed(engine, &export)
            }
        }
    }

    /// The timed build.
    fn build<'a>(
        &self,
        workload: Workload,
        engine: &dyn Engine,
        tag: &'a str,
        project: &'a OnDisk,
    ) -> Build<'a> {
        let cache = |of| (workload.cache() == Some(of)).then(|| self.cache_dir(engine));
        Build {
            no_cache: workload.no_cache(),
            archive: workload.archive().then(|| self.options.scratch.join("work/archive.tar")),
            cache_from: cache(CacheUse::Import),
            cache_to: cache(CacheUse::Export),
            ..project.build(tag, self.options)
        }
    }

    /// Where an engine's cache is exported to and imported from.
    fn cache_dir(&self, engine: &dyn Engine) -> PathBuf {
        self.options.scratch.join("work").join(format!("cache-{}", engine.name()))
    }

    fn untimed(&self, engine: &dyn Engine, build: &Build<'_>) -> Result<()> {
        for command in engine.commands(build).map_err(BenchError::Other)? {
            self.runner.run(&command)?;
        }
        Ok(())
    }

    fn sample(
        &self,
        workload: Workload,
        engine: &mut dyn Engine,
        round: u64,
        project: &OnDisk,
        base: &OnDisk,
    ) -> Result<Sample> {
        match workload.before() {
            Before::Built | Before::Base => {}
            Before::Empty => engine.reset(self.runner)?,
            Before::OnlyBase => {
                drop(engine.reset(self.runner));
                self.untimed(engine, &base.build("bench-base", self.options))?;
            }
            Before::OnlyBuilt => {
                engine.reset(self.runner)?;
                self.untimed(engine, &project.build("bench-before", self.options))?;
            }
        }
        let tag = tag(workload, round);
        let build = self.build(workload, engine, &tag, project);
        if let Some(dir) = &build.cache_to {
            remove_tree(dir, self.runner)?;
        }
        let commands = engine.commands(&build).map_err(BenchError::Other)?;
        settle();
        let daemon = engine.daemon();
        let reset = daemon.is_some_and(reset_peak);
        let outcome = self.runner.timed(&commands)?;
        let (peak_kib, peak_of) = match (engine.standalone(), reset) {
            (true, _) => (outcome.peak_kib, "largest process of the command"),
            (false, true) => (daemon.and_then(daemon_peak), "daemon"),
            (false, false) => (daemon.and_then(daemon_peak), "daemon since its start"),
        };
        let mut sample = Sample {
            workload,
            engine: engine.name().to_owned(),
            round,
            seconds: outcome.seconds,
            peak_kib,
            peak_of,
            archive_bytes: None,
            error: None,
            unsupported: false,
        };
        sample.error = match outcome.failure {
            Some(status) => Some(format!("{status}: {}", tail(outcome.log.trim_end(), 6))),
            None => check(&workload.expect(&self.options.scale), engine.dialect(), &outcome.log),
        };
        if sample.error.is_none() {
            self.check_result(engine, &build, &mut sample)?;
        }
        if let Some(archive) = &build.archive {
            drop(fs::remove_file(archive));
        }
        Ok(sample)
    }

    /// The image or the archive must be there.
    fn check_result(&self, engine: &dyn Engine, build: &Build<'_>, sample: &mut Sample) -> Result<()> {
        if let Some(dir) = build.cache_to.as_ref().filter(|dir| !dir.join("index.json").is_file()) {
            sample.error = Some(format!("there is no cache in {}", dir.display()));
        }
        if let Some(archive) = &build.archive {
            match inspect_archive(archive) {
                Ok(facts) if facts.other_layers > 0 => {
                    sample.error = Some(format!("{} layers of the archive are not gzip", facts.other_layers));
                }
                Ok(facts) => sample.archive_bytes = Some(facts.gzip_bytes),
                Err(error) => sample.error = Some(error.to_string()),
            }
        } else if engine.has_image(build.tag, self.runner)? == Some(false) {
            sample.error = Some(format!("there is no image {}", build.tag));
        }
        Ok(())
    }
}

/// Unchanged builds make the same image under the same name; others a new one, so that its existence proves something.
fn tag(workload: Workload, round: u64) -> String {
    match workload {
        Workload::Noop | Workload::Ctxnoop => format!("bench-{}", workload.name()),
        _ => format!("bench-{}-r{round:03}", workload.name()),
    }
}

fn failed(workload: Workload, engine: &str, round: u64, error: &BenchError) -> Sample {
    Sample {
        workload,
        engine: engine.to_owned(),
        round,
        seconds: 0.0,
        peak_kib: None,
        peak_of: "nothing",
        archive_bytes: None,
        error: Some(error.to_string()),
        unsupported: false,
    }
}
