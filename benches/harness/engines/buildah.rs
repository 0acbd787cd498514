//! buildah with a store of its own. Which runtime works here is found out by trying.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Build, Dialect, Engine, Network};
use crate::error::{BenchError, Doing as _, Result};
use crate::measure::{Invocation, Runner, find};
use crate::system::remove_tree;

struct Buildah {
    program: PathBuf,
    about: String,
    dir: PathBuf,
    isolation: Isolation,
}

/// How RUN steps are isolated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Isolation {
    flags: &'static [&'static str],
    /// This isolation knows no network but the host's.
    host_network: bool,
    about: &'static str,
}

const ISOLATIONS: [Isolation; 3] = [
    Isolation { flags: &[], host_network: false, about: "its default isolation" },
    Isolation {
        flags: &["--isolation=oci", "--runtime=runc"],
        host_network: false,
        about: "isolation by runc",
    },
    Isolation { flags: &["--isolation=chroot"], host_network: true, about: "isolation chroot, host network" },
];

pub(super) fn open(dir: &Path, runner: &Runner, probe: &Build<'_>) -> Result<Option<Box<dyn Engine>>> {
    let Some(program) = find("buildah") else { return Ok(None) };
    let version = runner.run(&Invocation::new(&program).arg("--version"))?;
    let mut buildah =
        Buildah { program, about: String::new(), dir: dir.to_owned(), isolation: ISOLATIONS[0] };
    let mut reasons = Vec::new();
    for isolation in ISOLATIONS {
        buildah.isolation = isolation;
        buildah.reset(runner)?;
        match runner.run(&buildah.build_command(probe)) {
            Ok(_) => {
                let driver = runner.run(&buildah.command().args([
                    "info",
                    "--format",
                    "{{.store.GraphDriverName}}",
                ]))?;
                let version = version.split(" (").next().unwrap_or_default().trim();
                buildah.about = format!("{version}, {}, storage driver {}", isolation.about, driver.trim());
                return Ok(Some(Box::new(buildah)));
            }
            Err(error @ BenchError::Tool { .. }) => reasons.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    buildah.close(runner)?;
    Err(BenchError::Other(format!("buildah cannot build here:\n{}", reasons.join("\n"))))
}

impl Buildah {
    fn command(&self) -> Invocation {
        Invocation::new(&self.program)
            .arg("--root")
            .arg(self.dir.join("root"))
            .arg("--runroot")
            .arg(self.dir.join("runroot"))
            .env("CONTAINERS_REGISTRIES_CONF", self.dir.join("registries.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.dir.join("storage.conf"))
    }

    fn build_command(&self, build: &Build<'_>) -> Invocation {
        // Without --jobs=0 stages would run one after the other.
        let mut command = self
            .command()
            .args(["build", "--layers", "--jobs=0", "--tls-verify=false"])
            .args(self.isolation.flags)
            .arg("-f")
            .arg(build.dockerfile);
        // Straight into the archive: faster than a build and a push.
        command = match &build.archive {
            Some(archive) => command
                .args(["--disable-compression=false", "-t"])
                .arg(format!("oci-archive:{}:latest", archive.display())),
            None => command.args(["-t", build.tag]),
        };
        let network = if self.isolation.host_network { Network::Host } else { build.network };
        if let Some(mode) = network.mode() {
            command = command.arg(format!("--network={mode}"));
        }
        if build.no_cache {
            command = command.arg("--no-cache");
        }
        command.arg(build.context)
    }

    fn configure(&self) -> Result<()> {
        fs::create_dir_all(&self.dir).doing("create", &self.dir)?;
        let registries = self.dir.join("registries.conf");
        fs::write(&registries, "unqualified-search-registries = []\n").doing("write", &registries)?;
        let storage = self.dir.join("storage.conf");
        let text = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            self.dir.join("root").display(),
            self.dir.join("runroot").display()
        );
        fs::write(&storage, text).doing("write", &storage)
    }
}

impl Engine for Buildah {
    fn name(&self) -> &'static str {
        "buildah"
    }

    fn about(&self) -> &str {
        &self.about
    }

    fn dialect(&self) -> Dialect {
        Dialect::Buildah
    }

    fn commands(&self, build: &Build<'_>) -> std::result::Result<Vec<Invocation>, String> {
        if build.cache_from.is_some() || build.cache_to.is_some() {
            return Err("buildah has no caches in directories".into());
        }
        Ok(vec![self.build_command(build)])
    }

    fn has_image(&self, tag: &str, runner: &Runner) -> Result<Option<bool>> {
        let list = runner.run(&self.command().args(["images", "--format", "{{.Name}}:{{.Tag}}"]))?;
        Ok(Some(list.contains(tag)))
    }

    fn reset(&mut self, runner: &Runner) -> Result<()> {
        remove_tree(&self.dir, runner)?;
        self.configure()
    }

    fn close(&mut self, runner: &Runner) -> Result<()> {
        remove_tree(&self.dir, runner)
    }
}
