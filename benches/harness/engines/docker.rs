//! Docker's engine with its BuildKit: a dockerd that is started for the purpose with directories of its own, or one that
//! was given. A client without buildx is used only if it is old enough to have a BuildKit client inside.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Build, Dialect, Engine, EngineOptions, Network, listener};
use crate::error::{BenchError, Doing as _, Result};
use crate::measure::{Daemon, Invocation, Runner, find, find_all};
use crate::system::{remove_tree, unmount_below};

struct Docker {
    client: PathBuf,
    buildx: bool,
    host: String,
    about: String,
    dir: PathBuf,
    /// The daemon, where it is ours.
    daemon: Option<Daemon>,
    allow_prune: bool,
    /// The daemon has no bridge, so the default network does not work.
    no_bridge: bool,
}

pub(super) fn open(options: &EngineOptions, dir: &Path, runner: &Runner) -> Result<Option<Box<dyn Engine>>> {
    let config = dir.join("config");
    std::fs::create_dir_all(&config).doing("create", &config)?;
    let Some((client, buildx)) = find_client(dir, runner) else { return Ok(None) };
    let mut docker = Docker {
        client,
        buildx,
        host: String::new(),
        about: String::new(),
        dir: dir.to_owned(),
        daemon: None,
        allow_prune: options.allow_prune,
        no_bridge: false,
    };
    match &options.docker_host {
        Some(host) => docker.host.clone_from(host),
        None => match find("dockerd").filter(|_| rustix::process::geteuid().is_root()) {
            Some(program) => docker.start(&program, runner)?,
            None => return Ok(None),
        },
    }
    let version = runner.run(&docker.command().args(["version", "--format", "{{.Server.Version}}"]))?;
    let driver = runner.run(&docker.command().args(["info", "--format", "{{.Driver}}"]))?;
    docker.about = format!(
        "dockerd {} (BuildKit inside, {} client), storage driver {}, {}",
        version.trim(),
        if docker.buildx { "buildx" } else { "built-in" },
        driver.trim(),
        if docker.daemon.is_some() { "started by the harness" } else { "as given" },
    );
    Ok(Some(Box::new(docker)))
}

/// The first client in `PATH` that can do BuildKit builds.
fn find_client(dir: &Path, runner: &Runner) -> Option<(PathBuf, bool)> {
    find_all("docker").into_iter().find_map(|client| {
        let base = || Invocation::new(&client).env("DOCKER_CONFIG", dir.join("config"));
        if runner.run(&base().args(["buildx", "version"])).is_ok() {
            return Some((client, true));
        }
        let version = runner.run(&base().arg("--version")).ok()?;
        (major(&version)? < 23).then_some((client, false))
    })
}

/// Of `Docker version 20.10.24, build 0123`.
fn major(version: &str) -> Option<u32> {
    version.trim().strip_prefix("Docker version ")?.split('.').next()?.parse().ok()
}

impl Docker {
    fn start(&mut self, program: &Path, runner: &Runner) -> Result<()> {
        self.host = format!("unix://{}", self.dir.join("sock").display());
        let flag = |name: &str, folder: &str| format!("--{name}={}", self.dir.join(folder).display());
        let invocation = Invocation::new(program)
            .args([flag("data-root", "data"), flag("exec-root", "exec"), flag("pidfile", "pid")])
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "-H", &self.host]);
        let mut daemon = runner.daemon(&invocation, "dockerd.log")?;
        let probe = self.command().arg("version");
        daemon.wait_until("dockerd", Duration::from_secs(60), || runner.run(&probe).is_ok())?;
        self.daemon = Some(daemon);
        self.no_bridge = true;
        Ok(())
    }

    fn command(&self) -> Invocation {
        Invocation::new(&self.client)
            .args(["-H", &self.host])
            .env("DOCKER_BUILDKIT", "1")
            .env("DOCKER_CONFIG", self.dir.join("config"))
    }
}

impl Engine for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn about(&self) -> &str {
        &self.about
    }

    fn dialect(&self) -> Dialect {
        Dialect::BuildKit
    }

    fn commands(&self, build: &Build<'_>) -> std::result::Result<Vec<Invocation>, String> {
        let words: &[&str] = if self.buildx { &["buildx", "build"] } else { &["build"] };
        let mut command = self
            .command()
            .args(words)
            .args(["--progress=plain", "-t", build.tag, "-f"])
            .arg(build.dockerfile);
        let network =
            if self.no_bridge && build.network == Network::Default { Network::Host } else { build.network };
        if let Some(mode) = network.mode() {
            command = command.arg(format!("--network={mode}"));
        }
        if build.no_cache {
            command = command.arg("--no-cache");
        }
        if !self.buildx && build.archive.is_some() {
            return Err("this dockerd's BuildKit cannot write OCI archives".into());
        }
        if !self.buildx && (build.cache_from.is_some() || build.cache_to.is_some()) {
            return Err("this dockerd's BuildKit has no caches in directories".into());
        }
        command = command.args(build.cache_flags());
        if let Some(archive) = &build.archive {
            command = command.arg("-o").arg(format!("type=oci,dest={}", archive.display()));
        }
        Ok(vec![command.arg(build.context)])
    }

    fn daemon(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid).or_else(|| listener(&self.host))
    }

    fn standalone(&self) -> bool {
        false
    }

    fn has_image(&self, tag: &str, runner: &Runner) -> Result<Option<bool>> {
        let list =
            runner.run(&self.command().args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]))?;
        Ok(Some(list.contains(tag)))
    }

    fn reset(&mut self, runner: &Runner) -> Result<()> {
        if self.daemon.is_none() && !self.allow_prune {
            return Err(BenchError::Other(
                "the given dockerd would have to be emptied; allow it with --allow-prune".into(),
            ));
        }
        runner.run(&self.command().args(["system", "prune", "-a", "-f"]))?;
        runner.run(&self.command().args(["builder", "prune", "-a", "-f"])).map(drop)
    }

    fn close(&mut self, runner: &Runner) -> Result<()> {
        if self.daemon.take().is_some() {
            unmount_below(&self.dir);
            return remove_tree(&self.dir, runner);
        }
        let list =
            runner.run(&self.command().args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]))?;
        let ours: Vec<&str> = list.lines().filter(|name| name.starts_with("bench-")).collect();
        if !ours.is_empty() {
            runner.run(&self.command().args(["image", "rm", "-f"]).args(&ours))?;
        }
        remove_tree(&self.dir, runner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(major("Docker version 20.10.24+dfsg1, build 297e128\n"), Some(20));
        assert_eq!(major("podman version 4.3.1"), None);
    }
}
