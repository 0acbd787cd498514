//! BuildKit itself: `buildctl` with a buildkitd that runs already. It is emptied only where that was allowed.

use std::path::PathBuf;

use super::{Build, Dialect, Engine, EngineOptions, listener};
use crate::error::{BenchError, Result};
use crate::measure::{Invocation, Runner, find};

struct Buildctl {
    program: PathBuf,
    address: String,
    about: String,
    allow_prune: bool,
}

pub(super) fn open(options: &EngineOptions, runner: &Runner) -> Result<Option<Box<dyn Engine>>> {
    let Some(address) = options.buildctl_addr.clone() else { return Ok(None) };
    let Some(program) = find("buildctl") else {
        return Err(BenchError::Other(
            "an address for buildctl was given, but buildctl is not installed".into(),
        ));
    };
    let mut buildctl = Buildctl { program, address, about: String::new(), allow_prune: options.allow_prune };
    let version = runner.run(&Invocation::new(&buildctl.program).arg("--version"))?;
    runner.run(&buildctl.command().args(["debug", "workers"]))?;
    // Older daemons cannot be asked for their version.
    let daemon = runner.run(&buildctl.command().args(["debug", "info"])).unwrap_or_default();
    let daemon =
        daemon.lines().find_map(|line| line.strip_prefix("BuildKit:")).unwrap_or("of unknown version").trim();
    buildctl.about = format!("{}, buildkitd {daemon}", version.trim());
    Ok(Some(Box::new(buildctl)))
}

impl Buildctl {
    fn command(&self) -> Invocation {
        Invocation::new(&self.program).args(["--addr", &self.address])
    }
}

impl Engine for Buildctl {
    fn name(&self) -> &'static str {
        "buildctl"
    }

    fn about(&self) -> &str {
        &self.about
    }

    fn dialect(&self) -> Dialect {
        Dialect::BuildKit
    }

    fn commands(&self, build: &Build<'_>) -> std::result::Result<Vec<Invocation>, String> {
        let folder = build.dockerfile.parent().ok_or("the Dockerfile is in no directory")?;
        let file = build.dockerfile.file_name().ok_or("the Dockerfile has no name")?;
        let mut command = self
            .command()
            .args(["build", "--progress=plain", "--frontend=dockerfile.v0"])
            .arg("--local")
            .arg(format!("context={}", build.context.display()))
            .arg("--local")
            .arg(format!("dockerfile={}", folder.display()))
            .arg("--opt")
            .arg(format!("filename={}", file.to_string_lossy()));
        if let Some(mode) = build.network.mode() {
            command = command.arg("--opt").arg(format!("force-network-mode={mode}"));
            if mode == "host" {
                command = command.args(["--allow", "network.host"]);
            }
        }
        if build.no_cache {
            command = command.arg("--no-cache");
        }
        if let Some(dir) = &build.cache_from {
            command = command.arg("--import-cache").arg(format!("type=local,src={}", dir.display()));
        }
        if let Some(dir) = &build.cache_to {
            command =
                command.arg("--export-cache").arg(format!("type=local,dest={},mode=max", dir.display()));
        }
        if let Some(archive) = &build.archive {
            command = command.arg("--output").arg(format!("type=oci,dest={}", archive.display()));
        }
        Ok(vec![command])
    }

    fn daemon(&self) -> Option<u32> {
        listener(&self.address)
    }

    fn standalone(&self) -> bool {
        false
    }

    fn has_image(&self, _tag: &str, _runner: &Runner) -> Result<Option<bool>> {
        Ok(None)
    }

    fn reset(&mut self, runner: &Runner) -> Result<()> {
        if !self.allow_prune {
            return Err(BenchError::Other(
                "the given buildkitd would have to be emptied; allow it with --allow-prune".into(),
            ));
        }
        runner.run(&self.command().args(["prune", "--all"])).map(drop)
    }

    fn close(&mut self, _runner: &Runner) -> Result<()> {
        Ok(())
    }
}
