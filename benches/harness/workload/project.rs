//! A workload's Dockerfile and context as data: texts, and files as (path, texture, seed, length). Pure. Every RUN
//! prints a marker that the Dockerfile's own text does not contain, so a log tells which steps ran, whatever the engine.

use super::content::{Rng, Texture, fill};
use super::{Scale, Workload};

/// What every RUN prints, once.
pub(crate) const MARKER: &str = "ran-42";
/// How a RUN prints it.
const MARK: &str = "echo ran-$((40+2))";

/// RUN steps of the app.
pub(super) const APP_RUNS: usize = 15;
/// RUN steps of it that a changed source file must lead to.
pub(super) const APP_RUNS_AFTER_SOURCES: usize = 8;

/// A file of a context.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FileSpec {
    /// Relative to the context.
    pub(crate) path: String,
    /// What it is filled with.
    pub(crate) texture: Texture,
    /// Decides the content.
    pub(crate) seed: u64,
    /// Bytes.
    pub(crate) length: u64,
}

impl FileSpec {
    /// Writes its content.
    pub(crate) fn write(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        fill(out, self.texture, self.seed, self.length)
    }
}

/// A Dockerfile and its context.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Project {
    /// The Dockerfile's text.
    pub(crate) dockerfile: String,
    /// The context's files, by path.
    pub(crate) files: Vec<FileSpec>,
    /// How many files at the end of `files` are edited in turn.
    editable: usize,
}

/// References of the base images.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bases {
    /// A static busybox.
    pub(crate) busybox: String,
    /// A Debian rootfs (busybox at the quick scale).
    pub(crate) debian: String,
    /// Bytes of its `/usr` (busybox: of `/bin`).
    pub(crate) debian_bytes: u64,
    /// The large one.
    pub(crate) large: String,
}

/// The project of a workload. `round` matters only to those with a new context each round.
pub(crate) fn project(workload: Workload, scale: &Scale, seed: u64, round: u64, bases: &Bases) -> Project {
    match workload {
        Workload::Noop | Workload::Edit | Workload::Export | Workload::Import | Workload::Importedit => {
            app(scale, seed, &bases.busybox)
        }
        Workload::Run50 => plain(runs(scale, &bases.busybox)),
        Workload::Wide => plain(wide(scale, &bases.busybox)),
        Workload::Ctx => context(scale, Rng::fork(seed, 1000 + round).next(), &bases.busybox),
        Workload::Ctxnoop | Workload::Ctxedit => context(scale, seed, &bases.busybox),
        Workload::Pull => plain(format!("FROM {}\nRUN wc -c < /srv/sample > /size && {MARK}\n", bases.large)),
        Workload::Gzip => plain(gzip(scale, bases)),
    }
}

/// The file that is changed before round `round`, with its new content: as long as before.
pub(crate) fn edited(project: &Project, round: u64) -> Option<FileSpec> {
    let first = project.files.len().checked_sub(project.editable)?;
    // A stride that visits far-away files.
    let index = first + usize::try_from(round.wrapping_mul(7919) % (project.editable.max(1) as u64)).ok()?;
    let file = project.files.get(index)?;
    Some(FileSpec { seed: Rng::fork(file.seed, round + 1).next(), ..file.clone() })
}

fn plain(dockerfile: String) -> Project {
    Project { dockerfile, files: Vec::new(), editable: 0 }
}

fn app(scale: &Scale, seed: u64, base: &str) -> Project {
    let dockerfile = format!(
        "\
FROM {base} AS tools
WORKDIR /tools
RUN echo cc > cc && {MARK}
RUN echo ld > ld && {MARK}
RUN cat cc ld > all && {MARK}
RUN chmod 755 cc ld && {MARK}

FROM tools AS deps
COPY packages.txt /deps/
RUN sort /deps/packages.txt > /deps/sorted && {MARK}
RUN wc -l < /deps/sorted > /deps/count && {MARK}
RUN sha256sum /deps/sorted > /deps/lock && {MARK}

FROM deps AS build
COPY src /app/src
RUN mkdir /app/obj && cat /app/src/*/* > /app/obj/all && {MARK}
RUN wc -c < /app/obj/all > /app/obj/size && {MARK}
RUN sha256sum < /app/obj/all > /app/obj/sum && {MARK}
RUN head -c 100000 /app/obj/all > /app/obj/head && {MARK}
RUN tail -c 100000 /app/obj/all > /app/obj/tail && {MARK}
RUN mkdir /app/out && cp /app/obj/sum /app/obj/head /app/obj/tail /app/out/ && {MARK}

FROM {base} AS final
COPY settings.conf /etc/app.conf
COPY --from=build /app/out /app
RUN cat /etc/app.conf /app/sum > /app/about && {MARK}
RUN chmod 644 /app/about && {MARK}
CMD [\"cat\", \"/app/about\"]
"
    );
    let mut rng = Rng::fork(seed, 1);
    let mut file = |path: String, low, high| FileSpec {
        path,
        texture: Texture::Text,
        seed: rng.next(),
        length: rng.between(low, high),
    };
    let mut files = vec![file("packages.txt".into(), 2000, 3000), file("settings.conf".into(), 500, 1000)];
    files.extend((0..scale.app_files).map(|n| file(format!("src/{:02}/{n:03}.c", n / 20), 500, 8000)));
    Project { dockerfile, files, editable: usize::try_from(scale.app_files).unwrap_or(0) }
}

fn runs(scale: &Scale, base: &str) -> String {
    let mut out = format!("FROM {base}\n");
    for n in 0..scale.runs {
        out.push_str(&format!("RUN echo {n} > /step && {MARK}\n"));
    }
    out
}

fn wide(scale: &Scale, base: &str) -> String {
    let mut out = String::new();
    for n in 0..scale.stages {
        out.push_str(&format!(
            "FROM {base} AS part{n}\nRUN sleep {} && echo {n} > /part && {MARK}\n\n",
            scale.sleep
        ));
    }
    out.push_str(&format!("FROM {base}\n"));
    for n in 0..scale.stages {
        out.push_str(&format!("COPY --from=part{n} /part /parts/{n}\n"));
    }
    out
}

fn context(scale: &Scale, seed: u64, base: &str) -> Project {
    let file = |n: u64| FileSpec {
        path: format!("data/{:03}/{:05}.txt", n / 100, n),
        texture: Texture::Text,
        seed: Rng::fork(seed, n).next(),
        length: scale.context_file,
    };
    let files: Vec<FileSpec> = (0..scale.context_files).map(file).collect();
    Project { dockerfile: format!("FROM {base}\nCOPY data /data\n"), editable: files.len(), files }
}

fn gzip(scale: &Scale, bases: &Bases) -> String {
    let source = if scale.debian { "/usr" } else { "/bin" };
    let copies = scale.layer_bytes.div_ceil(bases.debian_bytes.max(1));
    let names: Vec<String> = (1..=copies).map(|n| n.to_string()).collect();
    format!(
        "FROM {}\nRUN mkdir /copies && for n in {}; do cp -a {source} /copies/$n || exit 1; done && {MARK}\n",
        bases.debian,
        names.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases() -> Bases {
        Bases {
            busybox: "r/busybox".into(),
            debian: "r/debian".into(),
            debian_bytes: 200_000_000,
            large: "r/large".into(),
        }
    }

    fn make(workload: Workload, seed: u64, round: u64) -> Project {
        project(workload, &Scale::FULL, seed, round, &bases())
    }

    #[test]
    fn a_seed_decides_everything() {
        for workload in Workload::ALL {
            assert_eq!(make(workload, 1, 0), make(workload, 1, 0), "{}", workload.name());
        }
        assert_ne!(make(Workload::Edit, 1, 0), make(Workload::Edit, 2, 0));
        assert_ne!(make(Workload::Ctx, 1, 0), make(Workload::Ctx, 1, 1));
        assert_eq!(make(Workload::Ctxnoop, 1, 0), make(Workload::Ctxnoop, 1, 1));
    }

    #[test]
    fn the_app_is_what_it_says() {
        let app = make(Workload::Noop, 1, 0);
        let count = |word: &str| app.dockerfile.lines().filter(|line| line.starts_with(word)).count();
        assert_eq!(count("FROM"), 4);
        assert_eq!(count("RUN") + count("COPY") + count("WORKDIR"), 20);
        assert_eq!(count("RUN"), APP_RUNS);
        let after = app.dockerfile.split("COPY src").nth(1).unwrap();
        assert_eq!(after.matches("\nRUN").count(), APP_RUNS_AFTER_SOURCES);
        assert_eq!(app.files.iter().filter(|file| file.path.starts_with("src/")).count(), 200);
    }

    #[test]
    fn sizes_are_as_published() {
        let runs = make(Workload::Run50, 1, 0).dockerfile;
        assert_eq!(runs.matches("\nRUN").count(), 50);
        let wide = make(Workload::Wide, 1, 0).dockerfile;
        assert_eq!((wide.matches("sleep 1 ").count(), wide.matches("COPY --from").count()), (16, 16));
        let context = make(Workload::Ctx, 1, 0);
        assert_eq!(context.files.len(), 20_000);
        assert!(context.files.iter().all(|file| file.length == 4096));
        assert!(make(Workload::Gzip, 1, 0).dockerfile.contains("for n in 1 2 3 4 5; do"));
    }

    #[test]
    fn markers_are_printed_and_not_written() {
        for workload in Workload::ALL {
            let text = make(workload, 1, 0).dockerfile;
            assert!(!text.contains(MARKER));
            assert_eq!(
                text.lines().filter(|line| line.starts_with("RUN")).count(),
                text.matches(MARK).count()
            );
        }
    }

    #[test]
    fn an_edit_changes_one_source_and_no_size() {
        for workload in [Workload::Edit, Workload::Ctxedit] {
            let project = make(workload, 1, 0);
            let mut paths = Vec::new();
            for round in 0..5 {
                let new = edited(&project, round).unwrap();
                let old = project.files.iter().find(|file| file.path == new.path).unwrap();
                assert_ne!(old.seed, new.seed);
                assert_eq!(old.length, new.length);
                assert!(new.path.starts_with("src/") || new.path.starts_with("data/"), "{}", new.path);
                paths.push(new.path);
            }
            paths.dedup();
            assert_eq!(paths.len(), 5);
        }
        assert_eq!(edited(&make(Workload::Run50, 1, 0), 0), None);
    }
}
