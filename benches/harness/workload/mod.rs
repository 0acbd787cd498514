//! The workloads: their names, what each is, and the sizes of the two scales. Pure; making them from a seed is in
//! `project`, `content` and `rootfs`.

mod content;
mod project;
mod rootfs;

pub(crate) use content::{Texture, fill};
pub(crate) use project::{Bases, FileSpec, MARKER, Project, edited, project};
pub(crate) use rootfs::rootfs;

/// One thing that is measured.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Workload {
    /// The app, nothing changed.
    Noop,
    /// The app, one source file changed.
    Edit,
    /// Trivial RUNs.
    Run50,
    /// Stages that sleep.
    Wide,
    /// A large context, first time.
    Ctx,
    /// The same, unchanged.
    Ctxnoop,
    /// The same, one file changed.
    Ctxedit,
    /// A large base image into an empty store.
    Pull,
    /// A large layer into an OCI archive.
    Gzip,
    /// The app's cache into a directory.
    Export,
    /// The app from that cache, with an empty store.
    Import,
    /// The same, one source file changed.
    Importedit,
}

/// What an engine's store holds before each sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Before {
    /// The result of one build of the same before the first sample; later samples find what earlier ones left.
    Built,
    /// The base image; later samples find what earlier ones left, and are told not to use it.
    Base,
    /// The base image and nothing else.
    OnlyBase,
    /// Nothing.
    Empty,
    /// The result of one build of the same and nothing else.
    OnlyBuilt,
}

/// What a build does with a cache in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CacheUse {
    /// Exports it.
    Export,
    /// Imports what the same engine exported.
    Import,
}

/// What must be in a sample's output for it to count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Expect {
    /// How many RUN steps ran, as told by what they print.
    pub(crate) ran: usize,
    /// The least number of steps that the engine calls cached.
    pub(crate) cached_min: usize,
    /// The most.
    pub(crate) cached_max: usize,
}

/// Sizes of the workloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Scale {
    /// Source files of the app.
    pub(crate) app_files: u64,
    /// RUN steps of `run50`.
    pub(crate) runs: usize,
    /// Stages of `wide`.
    pub(crate) stages: usize,
    /// What each of them sleeps.
    pub(crate) sleep: &'static str,
    /// Files of the large context.
    pub(crate) context_files: u64,
    /// Bytes of each.
    pub(crate) context_file: u64,
    /// Bytes of the large base image, unpacked.
    pub(crate) base_bytes: u64,
    /// Bytes that `gzip` writes, at least.
    pub(crate) layer_bytes: u64,
    /// `gzip` runs on a Debian rootfs, else on busybox.
    pub(crate) debian: bool,
    /// Stands in names of cached files.
    pub(crate) name: &'static str,
}

impl Scale {
    /// What is published.
    pub(crate) const FULL: Self = Self {
        app_files: 200,
        runs: 50,
        stages: 16,
        sleep: "1",
        context_files: 20_000,
        context_file: 4096,
        base_bytes: 585_000_000,
        layer_bytes: 900_000_000,
        debian: true,
        name: "full",
    };
    /// To see that all works.
    pub(crate) const QUICK: Self = Self {
        app_files: 20,
        runs: 3,
        stages: 3,
        sleep: "0.2",
        context_files: 200,
        context_file: 4096,
        base_bytes: 3_000_000,
        layer_bytes: 8_000_000,
        debian: false,
        name: "quick",
    };
}

impl Workload {
    /// All, in the order they are run and shown.
    pub(crate) const ALL: [Self; 12] = [
        Self::Noop,
        Self::Edit,
        Self::Run50,
        Self::Wide,
        Self::Ctx,
        Self::Ctxnoop,
        Self::Ctxedit,
        Self::Pull,
        Self::Gzip,
        Self::Export,
        Self::Import,
        Self::Importedit,
    ];

    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Noop => "noop",
            Self::Edit => "edit",
            Self::Run50 => "run50",
            Self::Wide => "wide",
            Self::Ctx => "ctx",
            Self::Ctxnoop => "ctxnoop",
            Self::Ctxedit => "ctxedit",
            Self::Pull => "pull",
            Self::Gzip => "gzip",
            Self::Export => "export",
            Self::Import => "import",
            Self::Importedit => "importedit",
        }
    }

    /// For people.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Noop => "four stages, 20 steps, 200 source files; nothing changed since the last build",
            Self::Edit => "the same; one of the 200 source files changed before each run",
            Self::Run50 => "50 trivial RUN steps, no cache",
            Self::Wide => "16 stages of `sleep 1` and a stage that copies from all of them, no cache",
            Self::Ctx => "COPY of 20,000 new files of 4 KiB into a base, no cache",
            Self::Ctxnoop => "the same; unchanged since the last build",
            Self::Ctxedit => "the same; one of the 20,000 files changed before each run",
            Self::Pull => {
                "FROM a base of 585 MB in one layer (258 MB gzip) and one RUN, empty store, loopback registry"
            }
            Self::Gzip => {
                "RUN that writes 0.9 GB on a Debian base, exported as an OCI archive with gzip layers, no cache"
            }
            Self::Export => {
                "the app of noop, just built; its cache of all steps into an empty directory (mode=max)"
            }
            Self::Import => "the app from the cache that the engine exported, empty store",
            Self::Importedit => "the same; one of the 200 source files changed before each run",
        }
    }

    /// By its name.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|workload| workload.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|workload| workload.name()).collect();
            format!("there is no workload {name:?}; there are {}", names.join(", "))
        })
    }

    pub(crate) fn before(self) -> Before {
        match self {
            Self::Noop | Self::Edit | Self::Ctxnoop | Self::Ctxedit => Before::Built,
            Self::Run50 | Self::Wide | Self::Ctx => Before::Base,
            Self::Gzip => Before::OnlyBase,
            Self::Pull | Self::Import | Self::Importedit => Before::Empty,
            Self::Export => Before::OnlyBuilt,
        }
    }

    /// Whether the engine is told not to use its cache.
    pub(crate) fn no_cache(self) -> bool {
        matches!(self.before(), Before::Base | Before::OnlyBase)
    }

    /// Whether a file is changed before each round.
    pub(crate) fn edits(self) -> bool {
        matches!(self, Self::Edit | Self::Ctxedit | Self::Importedit)
    }

    /// Whether each round has a context of its own.
    pub(crate) fn new_context_each_round(self) -> bool {
        self == Self::Ctx
    }

    /// Whether the result is written as an OCI archive.
    pub(crate) fn archive(self) -> bool {
        self == Self::Gzip
    }

    /// What is done with a cache in a directory.
    pub(crate) fn cache(self) -> Option<CacheUse> {
        match self {
            Self::Export => Some(CacheUse::Export),
            Self::Import | Self::Importedit => Some(CacheUse::Import),
            _ => None,
        }
    }

    pub(crate) fn expect(self, scale: &Scale) -> Expect {
        let nothing_cached = |ran| Expect { ran, cached_min: 0, cached_max: 0 };
        match self {
            Self::Noop | Self::Export | Self::Import => {
                Expect { ran: 0, cached_min: project::APP_RUNS, cached_max: usize::MAX }
            }
            Self::Edit | Self::Importedit => Expect {
                ran: project::APP_RUNS_AFTER_SOURCES,
                cached_min: project::APP_RUNS - project::APP_RUNS_AFTER_SOURCES,
                cached_max: usize::MAX,
            },
            Self::Run50 => nothing_cached(scale.runs),
            Self::Wide => nothing_cached(scale.stages),
            Self::Ctx | Self::Ctxedit => nothing_cached(0),
            Self::Ctxnoop => Expect { ran: 0, cached_min: 1, cached_max: usize::MAX },
            Self::Pull | Self::Gzip => nothing_cached(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for workload in Workload::ALL {
            assert_eq!(Workload::parse(workload.name()), Ok(workload));
        }
        let message = Workload::parse("nope").unwrap_err();
        assert!(message.contains("nope") && message.contains("ctxedit"), "{message}");
    }
}
