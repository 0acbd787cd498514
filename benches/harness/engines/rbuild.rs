//! rbuild by its command line, with a store of its own.

use std::path::{Path, PathBuf};

use super::{Build, Dialect, Engine, EngineOptions};
use crate::error::{BenchError, Result};
use crate::measure::{Invocation, Runner, find};
use crate::system::remove_tree;

struct Rbuild {
    program: PathBuf,
    about: String,
    store: PathBuf,
}

pub(super) fn open(options: &EngineOptions, dir: &Path, runner: &Runner) -> Result<Option<Box<dyn Engine>>> {
    let program = match &options.rbuild {
        Some(given) => std::path::absolute(given)
            .map_err(|source| BenchError::Io { doing: format!("cannot use {}", given.display()), source })?,
        None => match beside_this_program().or_else(|| find("rbuild")) {
            Some(found) => found,
            None => return Ok(None),
        },
    };
    let version = runner.run(&Invocation::new(&program).arg("--version"))?;
    let about = format!("{} (own store, no daemon)", version.trim());
    Ok(Some(Box::new(Rbuild { program, about, store: dir.join("store") })))
}

fn beside_this_program() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.parent()?.join("rbuild");
    path.is_file().then_some(path)
}

impl Rbuild {
    fn command(&self) -> Invocation {
        Invocation::new(&self.program).arg("--root").arg(&self.store)
    }
}

impl Engine for Rbuild {
    fn name(&self) -> &'static str {
        "rbuild"
    }

    fn about(&self) -> &str {
        &self.about
    }

    fn dialect(&self) -> Dialect {
        Dialect::BuildKit
    }

    fn commands(&self, build: &Build<'_>) -> std::result::Result<Vec<Invocation>, String> {
        let mut command =
            self.command().args(["build", "--progress=plain", "-t", build.tag, "-f"]).arg(build.dockerfile);
        if let Some(mode) = build.network.mode() {
            command = command.arg(format!("--network={mode}"));
            if mode == "host" {
                command = command.arg("--allow=network.host");
            }
        }
        if build.no_cache {
            command = command.arg("--no-cache");
        }
        command = command.args(build.cache_flags());
        if let Some(archive) = &build.archive {
            command = command.arg("-o").arg(format!("type=oci,dest={}", archive.display()));
        }
        Ok(vec![command.arg(build.context)])
    }

    fn has_image(&self, tag: &str, runner: &Runner) -> Result<Option<bool>> {
        let list = runner.run(&self.command().args(["images", "--format", "json"]))?;
        Ok(Some(list.contains(tag)))
    }

    fn reset(&mut self, runner: &Runner) -> Result<()> {
        remove_tree(&self.store, runner)
    }

    fn close(&mut self, runner: &Runner) -> Result<()> {
        remove_tree(&self.store, runner)
    }
}
