//! What the library must be told of the environment: where the store is, registries, proxies, engines.

use std::path::PathBuf;

use rbuild::{EngineAccess, ProxyOptions, Store, StoreOptions};

use crate::args::Cli;
use crate::error::Failure;
use crate::render::eprint;
use crate::request::Usage;

/// Enters a user namespace when not root, and opens the store. Must be the first thing a command does: threads come later.
pub(crate) fn open_store(cli: &Cli) -> Result<Store, Failure> {
    let root = store_root(cli)?;
    rbuild::raise_descriptor_limit();
    let rootless = rbuild::enter_user_namespace()?;
    if let rbuild::Rootless::SingleUser { reason } = &rootless {
        eprint(&format!("WARNING: building with one user id only, so all files belong to it: {reason}"));
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let either = |name: &str| variable(&name.to_lowercase()).or_else(|| variable(name));
    let mut options = StoreOptions::new(root);
    options.rootless = rootless;
    options.credential_files = credential_files();
    options.proxy = ProxyOptions {
        http: either("HTTP_PROXY"),
        https: either("HTTPS_PROXY"),
        no_proxy: either("NO_PROXY"),
    };
    options.certificate_files = variable("SSL_CERT_FILE").into_iter().map(PathBuf::from).collect();
    options.certificate_dirs = variable("SSL_CERT_DIR").iter().flat_map(std::env::split_paths).collect();
    options.plain_http = variable("RBUILD_PLAIN_HTTP")
        .iter()
        .flat_map(|hosts| hosts.split(','))
        .map(|host| host.trim().to_owned())
        .collect();
    options.engine = EngineAccess { docker_socket: docker_socket(), podman: find_program("podman") };
    Ok(Store::open(options).map_err(|error| match error.help {
        Some(_) => error,
        None => error.help("this is about the store; --root DIR or RBUILD_ROOT puts it elsewhere"),
    })?)
}

/// `--root`, `RBUILD_ROOT`, or the system's data directory for root and the user's otherwise.
pub(crate) fn store_root(cli: &Cli) -> Result<PathBuf, Failure> {
    if let Some(root) = &cli.root {
        return Ok(std::path::absolute(root).map_err(|error| Usage(format!("--root: {error}")))?);
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/rbuild"));
    }
    let data = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    match data.or_else(|| home().map(|home| home.join(".local/share"))) {
        Some(data) => Ok(data.join("rbuild")),
        None => {
            Err(Usage("neither HOME nor XDG_DATA_HOME is set: say where the store is with --root".to_owned())
                .into())
        }
    }
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

/// Docker's configuration, then podman's.
fn credential_files() -> Vec<PathBuf> {
    let dir = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let docker = dir("DOCKER_CONFIG").or_else(|| home().map(|home| home.join(".docker")));
    let podman = dir("REGISTRY_AUTH_FILE")
        .or_else(|| dir("XDG_RUNTIME_DIR").map(|run| run.join("containers/auth.json")));
    docker.map(|dir| dir.join("config.json")).into_iter().chain(podman).collect()
}

fn docker_socket() -> Option<PathBuf> {
    match std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()) {
        Some(host) => host.strip_prefix("unix://").map(PathBuf::from),
        None => Some(PathBuf::from("/var/run/docker.sock")),
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}
