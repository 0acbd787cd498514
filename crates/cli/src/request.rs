//! Arguments and environment → `BuildRequest`. Wrong arguments are usage errors that name the flag and the value.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use rbuild::{
    BuildRequest, Context, Digests, DockerfileSource, Entitlement, HostIp, NamedContext, NamedContextSource,
    NetMode, NoCache, OutputSpec, Reference, Secret, SecretBytes, SecretSource, SshAgent, Ulimit,
};

use crate::args::{AttestArgs, BuildArgs, ForeignArgs, SourceArgs, parse_bool};

/// A build argument that is taken from the environment without being asked for, as buildx does.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// A wrong command line.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

/// What is kept as long as the build: a context that came on standard input.
pub(crate) struct Prepared {
    pub(crate) request: BuildRequest,
    pub(crate) temporary: Option<rbuild::ContextDir>,
}

type Result<T> = std::result::Result<T, Usage>;

fn usage<T>(message: impl Into<String>) -> Result<T> {
    Err(Usage(message.into()))
}

/// The request of `rbuild build`.
pub(crate) fn build(args: &BuildArgs, root: &Path) -> Result<Prepared> {
    attestations(&args.attest)?;
    if let Some(builder) = args.foreign.builder.as_ref().filter(|builder| *builder != "default") {
        return usage(format!(
            "--builder: there is no builder {builder:?}: rbuild builds by itself, without a daemon; leave the flag out"
        ));
    }
    let mut prepared = source(&args.source, root)?;
    let request = &mut prepared.request;
    for tag in &args.tag {
        let reference: Reference = tag.parse().map_err(|error| Usage(format!("invalid tag: {error}")))?;
        if reference.digest.is_some() {
            return usage(format!("invalid tag {tag:?}: a tag cannot have a digest"));
        }
        request.tags.push(reference.with_default_tag());
    }
    for output in &args.output {
        request.outputs.push(output.parse().map_err(|error: rbuild::OutputError| Usage(error.to_string()))?);
    }
    if args.push {
        push(&mut request.outputs)?;
    }
    if args.load {
        request
            .outputs
            .push("type=docker".parse().map_err(|error: rbuild::OutputError| Usage(error.to_string()))?);
    }
    caches(args, request)?;
    for annotation in &args.annotation {
        request
            .annotations
            .extend(rbuild::Annotation::parse_flag(annotation).map_err(|error| Usage(error.to_string()))?);
    }
    request.want = match (&args.metadata_file, &args.iidfile) {
        (Some(_), _) => Digests::Manifest,
        (None, iidfile) if iidfile.is_some() || args.quiet => Digests::Id,
        (None, _) => Digests::None,
    };
    Ok(prepared)
}

/// `--attest`, `--provenance`, `--sbom`: who asks for one must not get an image without it unawares.
fn attestations(args: &AttestArgs) -> Result<()> {
    for attest in &args.attest {
        let fields = || attest.split(',').map(|field| field.split_once('=').unwrap_or((field, "")));
        let Some((_, kind)) = fields().find(|(key, _)| *key == "type") else {
            return usage(format!("--attest: {attest:?} has no type; write type=provenance or type=sbom"));
        };
        if !matches!(kind, "provenance" | "sbom") {
            return usage(format!("--attest: unknown type {kind:?}; choose provenance or sbom"));
        }
        let off = fields().any(|(key, value)| key == "disabled" && matches!(parse_bool(value), Some(true)));
        if !off {
            return not_there("attest");
        }
    }
    for (flag, value) in [("provenance", &args.provenance), ("sbom", &args.sbom)] {
        let off = value.as_ref().is_none_or(|value| {
            parse_bool(value) == Some(false)
                || value.split(',').any(|field| {
                    field.strip_prefix("disabled=").is_some_and(|value| parse_bool(value) == Some(true))
                })
        });
        if !off {
            return not_there(flag);
        }
    }
    Ok(())
}

fn not_there(flag: &str) -> Result<()> {
    usage(format!(
        "--{flag}: attestations are not there yet; leave the flag out, or say --provenance=false and --sbom=false"
    ))
}

/// Flags that change nothing although somebody may count on them.
pub(crate) fn ignored(args: &ForeignArgs) -> Vec<String> {
    let limits = [
        ("memory", &args.memory),
        ("memory-swap", &args.memory_swap),
        ("cpu-shares", &args.cpu_shares),
        ("cpu-period", &args.cpu_period),
        ("cpu-quota", &args.cpu_quota),
        ("cpuset-cpus", &args.cpuset_cpus),
        ("cpuset-mems", &args.cpuset_mems),
    ];
    let mut out: Vec<String> = limits
        .iter()
        .filter(|(_, value)| value.is_some())
        .map(|(flag, _)| format!("--{flag} is ignored, as by BuildKit: steps have no limit of that kind"))
        .collect();
    if args.isolation.as_ref().is_some_and(|isolation| !matches!(isolation.as_str(), "" | "default")) {
        out.push("--isolation is ignored: every step runs in a sandbox of its own".to_owned());
    }
    if args.security_opt.iter().any(|option| !option.is_empty()) {
        out.push("--security-opt is ignored: write RUN --security=insecure and allow it".to_owned());
    }
    if args.squash {
        out.push("--squash is ignored: a last stage with COPY --from gives one layer".to_owned());
    }
    out
}

/// `--cache-from`, `--cache-to`.
fn caches(args: &BuildArgs, request: &mut BuildRequest) -> Result<()> {
    for from in &args.cache_from {
        request.cache_from.extend(rbuild::CacheFrom::parse(from).map_err(|error| Usage(error.to_string()))?);
    }
    for to in &args.cache_to {
        let to: rbuild::CacheTo =
            to.parse().map_err(|error: rbuild::CacheSpecError| Usage(error.to_string()))?;
        if request.cache_to.contains(&to) {
            return usage("--cache-to: the same cache is exported twice");
        }
        request.cache_to.push(to);
    }
    // The older way to ask for it.
    let asked = request.build_args.iter().rev().find(|(name, _)| name == "BUILDKIT_INLINE_CACHE");
    let inline = asked.and_then(|(_, value)| parse_bool(value)) == Some(true);
    if inline && !request.cache_to.contains(&rbuild::CacheTo::Inline) {
        request.cache_to.push(rbuild::CacheTo::Inline);
    }
    Ok(())
}

/// `--push`: image outputs are pushed; without any, the image is.
fn push(outputs: &mut Vec<OutputSpec>) -> Result<()> {
    let mut any = false;
    for output in outputs.iter_mut() {
        if let OutputSpec::Image(image) = output {
            (image.push, any) = (true, true);
        }
    }
    if !any {
        outputs.push("type=registry".parse().map_err(|error: rbuild::OutputError| Usage(error.to_string()))?);
    }
    Ok(())
}

/// What `build` and `plan` share.
pub(crate) fn source(args: &SourceArgs, root: &Path) -> Result<Prepared> {
    let (context, dockerfile, temporary) = inputs(args, root)?;
    let mut request = BuildRequest::new("");
    request.context = context;
    request.dockerfile = dockerfile;
    request.target = args.target.clone();
    for arg in &args.build_arg {
        match arg.split_once('=') {
            Some(("", _)) => return usage(format!("--build-arg: {arg:?} has no name; write NAME=VALUE")),
            Some((key, value)) => request.build_args.push((key.to_owned(), value.to_owned())),
            // Without a value it is passed on from the environment, and left out when it is not there.
            None => request.build_args.extend(std::env::var(arg).ok().map(|value| (arg.clone(), value))),
        }
    }
    if request.build_args.iter().all(|(name, _)| name != EPOCH) {
        let epoch = std::env::var(EPOCH).ok().filter(|epoch| !epoch.is_empty());
        request.build_args.extend(epoch.map(|epoch| (EPOCH.to_owned(), epoch)));
    }
    for label in &args.label {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        if key.is_empty() {
            return usage(format!("--label: {label:?} has no name; write NAME=VALUE"));
        }
        request.labels.push((key.to_owned(), value.to_owned()));
    }
    for platform in args.platform.iter().filter(|platform| !platform.is_empty()) {
        let platform = platform.parse().map_err(|error| Usage(format!("--platform: {error}")))?;
        if !request.platforms.contains(&platform) {
            request.platforms.push(platform);
        }
    }
    for context in &args.build_context {
        request.named_contexts.push(named_context(context)?);
    }
    request.no_cache = match (args.no_cache, args.no_cache_filter.is_empty()) {
        (true, _) => NoCache::All,
        (false, false) => NoCache::Stages(args.no_cache_filter.clone()),
        (false, true) => NoCache::None,
    };
    request.pull = args.pull;
    request.network = match args.network.as_str() {
        "default" | "" | "sandbox" => NetMode::Sandbox,
        "host" => NetMode::Host,
        "none" => NetMode::None,
        other => return usage(format!("--network: unknown mode {other:?}; choose default, host or none")),
    };
    for host in &args.add_host {
        request.extra_hosts.push(extra_host(host)?);
    }
    for entitlements in &args.allow {
        // The fields of a device have commas of their own.
        let one = entitlements.starts_with("device=");
        let parts = if one { vec![entitlements.as_str()] } else { entitlements.split(',').collect() };
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            request.allow.push(Entitlement::parse(part).map_err(|why| Usage(format!("--allow: {why}")))?);
        }
    }
    if !args.cdi_spec_dir.is_empty() {
        request.cdi_spec_dirs.clone_from(&args.cdi_spec_dir);
    }
    if request.network == NetMode::Host {
        // Asked for on the command line is allowed on the command line.
        request.allow.push(Entitlement::NetworkHost);
    }
    for secret in &args.secret {
        request.secrets.push(self::secret(secret)?);
    }
    for ssh in &args.ssh {
        request.ssh.push(ssh_agent(ssh)?);
    }
    if let Some(size) = &args.shm_size {
        request.shm_size =
            i64::try_from(size_bytes(size).map_err(|error| Usage(format!("--shm-size: {}", error.0)))?)
                .unwrap_or(i64::MAX);
    }
    request.ulimits = ulimits(&args.ulimit)?;
    request.cgroup_parent.clone_from(&args.cgroup_parent);
    if args.jobs == Some(0) {
        return usage("--jobs: at least one step must run at a time");
    }
    request.jobs = args.jobs;
    Ok(Prepared { request, temporary })
}

/// Context and Dockerfile. `-` as context is a tar archive, or a Dockerfile without context.
fn inputs(args: &SourceArgs, root: &Path) -> Result<(Context, DockerfileSource, Option<rbuild::ContextDir>)> {
    let from_stdin = args.file.as_deref() == Some("-");
    if args.context == "-" {
        if from_stdin {
            return usage("-f - and the context - cannot both come from standard input");
        }
        let bytes_or_tar = rbuild::read_context_stream(stdin()?, root)
            .map_err(|error| Usage(format!("cannot read the context from standard input: {error}")))?;
        return Ok(match bytes_or_tar {
            rbuild::ContextStream::Dockerfile(text) => {
                (Context::None, DockerfileSource::Text { name: "Dockerfile".to_owned(), text }, None)
            }
            rbuild::ContextStream::Archive(dir) => {
                let file = in_archive(dir.path(), args.file.as_deref())?;
                (Context::Dir(dir.path().to_owned()), file, Some(dir))
            }
        });
    }
    let dockerfile = || match args.file.as_deref() {
        None => Ok(DockerfileSource::Default),
        Some("-") => dockerfile_from_stdin(),
        Some(file) => Ok(DockerfileSource::File(PathBuf::from(file))),
    };
    let dir = PathBuf::from(&args.context);
    if !dir.is_dir() {
        let remote = match rbuild::remote_context(&args.context) {
            Some(rbuild::MainContext::Git(address)) => Some(Context::Git(address)),
            Some(rbuild::MainContext::Http(address)) => Some(Context::Http(address)),
            _ => None,
        };
        return match remote {
            Some(context) => Ok((context, dockerfile()?, None)),
            None => usage(format!(
                "the build context {:?} is not a directory; give the directory that holds your files, often .",
                args.context
            )),
        };
    }
    Ok((Context::Dir(dir), dockerfile()?, None))
}

fn dockerfile_from_stdin() -> Result<DockerfileSource> {
    let mut text = Vec::new();
    stdin()?
        .take(64 << 20)
        .read_to_end(&mut text)
        .map_err(|error| Usage(format!("cannot read the Dockerfile from standard input: {error}")))?;
    Ok(DockerfileSource::Text { name: "Dockerfile".to_owned(), text })
}

/// The Dockerfile of a context that came as an archive, under the name that it has in there.
fn in_archive(dir: &Path, file: Option<&str>) -> Result<DockerfileSource> {
    let name = file.unwrap_or("Dockerfile");
    let path = dir.join(name);
    let beside = dir.join(format!("{name}.dockerignore"));
    if path.is_file() && !beside.exists() {
        let text = std::fs::read(&path).map_err(|error| {
            Usage(format!("cannot read {name:?} of the archive on standard input: {error}"))
        })?;
        return Ok(DockerfileSource::Text { name: name.to_owned(), text });
    }
    match file {
        _ if path.is_file() => Ok(DockerfileSource::File(path)),
        None if dir.join("dockerfile").is_file() => Ok(DockerfileSource::Default),
        _ => usage(format!("the archive on standard input has no {name:?}; name its Dockerfile with -f")),
    }
}

fn stdin() -> Result<std::io::Stdin> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return usage("standard input is a terminal; pipe a Dockerfile or a tar archive into rbuild");
    }
    Ok(stdin)
}

fn named_context(text: &str) -> Result<NamedContext> {
    let Some((name, value)) = text.split_once('=') else {
        return usage(format!("--build-context: {text:?} has no value; write NAME=VALUE"));
    };
    let (name, platform) = match name.split_once("::") {
        Some((name, platform)) => {
            (name, Some(platform.parse().map_err(|error| Usage(format!("--build-context: {error}")))?))
        }
        None => (name, None),
    };
    let value = if let Some(image) = value.strip_prefix("docker-image://") {
        let reference: Reference =
            image.parse().map_err(|error| Usage(format!("--build-context: {error}")))?;
        NamedContextSource::Image(reference.with_default_tag())
    } else if let Some(layout) = value.strip_prefix("oci-layout://") {
        oci_layout(layout)
    } else if Path::new(value).is_dir() {
        NamedContextSource::Dir(PathBuf::from(value))
    } else if let Some(rbuild::MainContext::Git(address)) = rbuild::remote_context(value) {
        NamedContextSource::Git(address)
    } else if let Some(rbuild::MainContext::Http(address)) = rbuild::remote_context(value) {
        NamedContextSource::Http(address)
    } else {
        return usage(format!(
            "--build-context: {value:?} is neither a directory nor docker-image://, oci-layout://, git or http"
        ));
    };
    Ok(NamedContext { name: name.to_lowercase(), platform, value })
}

/// `DIR[:TAG][@DIGEST]`
fn oci_layout(text: &str) -> NamedContextSource {
    let (rest, digest) = match text.split_once("@sha256:") {
        Some((rest, hex)) => (rest, Some(format!("sha256:{hex}"))),
        None => (text, None),
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
        _ => (rest, None),
    };
    NamedContextSource::OciLayout { path: PathBuf::from(path), reference: digest.or(tag).unwrap_or_default() }
}

fn extra_host(text: &str) -> Result<HostIp> {
    let parts = text.split_once('=').or_else(|| text.split_once(':'));
    match parts {
        Some((host, ip)) if !host.is_empty() => {
            let bare = ip.trim_start_matches('[').trim_end_matches(']');
            if bare != "host-gateway" && bare.parse::<std::net::IpAddr>().is_err() {
                return usage(format!("--add-host: {ip:?} is not an address"));
            }
            Ok(HostIp { host: host.to_owned(), ip: bare.to_owned() })
        }
        _ => usage(format!("--add-host: {text:?} is not HOST:IP")),
    }
}

/// `id=…[,src=…|,env=…][,type=file|env]`; an id alone is looked up as variable, then as file.
fn secret(text: &str) -> Result<Secret> {
    let (mut id, mut src, mut env, mut kind) = (None, None, None, None);
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match key.to_lowercase().as_str() {
            "id" => id = Some(value.to_owned()),
            "src" | "source" => src = Some(value.to_owned()),
            "env" => env = Some(value.to_owned()),
            "type" if value == "file" || value == "env" => kind = Some(value.to_owned()),
            "type" => return usage(format!("--secret: unknown type {value:?}; choose file or env")),
            other => {
                return usage(format!(
                    "--secret: unknown field {other:?} in {text:?}; write id=ID,src=FILE or id=ID,env=NAME"
                ));
            }
        }
    }
    let Some(id) = id.filter(|id| !id.is_empty()) else {
        return usage(format!("--secret: {text:?} has no id; write id=ID,src=FILE or id=ID,env=NAME"));
    };
    if kind.as_deref() == Some("env") && env.is_none() {
        env = src.take();
    }
    let variable = |name: &str| std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec);
    let source = match (src, env) {
        (_, Some(name)) => match variable(&name) {
            Some(value) => SecretSource::Bytes(SecretBytes(value)),
            None => return usage(format!("--secret: the variable {name:?} is not set")),
        },
        (Some(path), None) => SecretSource::File(existing(PathBuf::from(path))?),
        (None, None) => match (kind.as_deref(), variable(&id)) {
            (None | Some("env"), Some(value)) => SecretSource::Bytes(SecretBytes(value)),
            _ => SecretSource::File(existing(PathBuf::from(&id))?),
        },
    };
    Ok(Secret { id, source })
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_file() => Ok(path),
        Ok(_) => usage(format!("--secret: {} is not a file", path.display())),
        Err(error) => usage(format!("--secret: cannot read {}: {error}", path.display())),
    }
}

fn ssh_agent(text: &str) -> Result<SshAgent> {
    let (id, socket) = match text.split_once('=') {
        Some((id, socket)) => (id, Some(PathBuf::from(socket))),
        None => (text, None),
    };
    let socket = match socket {
        Some(socket) => socket,
        None => match std::env::var_os("SSH_AUTH_SOCK") {
            Some(socket) => PathBuf::from(socket),
            None => {
                return usage(
                    "--ssh: no agent runs (SSH_AUTH_SOCK is not set); start one with `eval $(ssh-agent)` and ssh-add",
                );
            }
        },
    };
    use std::os::unix::fs::FileTypeExt as _;
    match std::fs::metadata(&socket) {
        Ok(meta) if meta.file_type().is_socket() => Ok(SshAgent { id: id.to_owned(), socket }),
        Ok(_) => usage(format!(
            "--ssh: {} is not the socket of an agent; key files are not supported yet: add the key to an agent",
            socket.display()
        )),
        Err(error) => usage(format!("--ssh: cannot use {}: {error}", socket.display())),
    }
}

/// One limit a name, the last one said, by name: their order is part of the keys of commands.
fn ulimits(texts: &[String]) -> Result<Vec<Ulimit>> {
    let mut limits = BTreeMap::new();
    for text in texts {
        let limit = ulimit(text)?;
        limits.insert(limit.name.clone(), limit);
    }
    Ok(limits.into_values().collect())
}

fn ulimit(text: &str) -> Result<Ulimit> {
    let bad = || Usage(format!("--ulimit: {text:?} is not NAME=SOFT[:HARD]"));
    let (name, limits) = text.split_once('=').ok_or_else(bad)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    if !LIMITS.contains(&name) {
        return usage(format!("--ulimit: there is no limit {name:?}; choose {}", LIMITS.join(", ")));
    }
    let number = |text: &str| match text {
        "unlimited" => Ok(-1),
        _ => text.parse::<i64>().ok().filter(|number| *number >= -1).ok_or_else(bad),
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return usage(format!("--ulimit: {text:?} has a soft limit above its hard limit"));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

/// The names of Docker's limits.
const LIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// `512`, `64k`, `10MB`, `1.5g`: powers of 1024, as Docker reads sizes.
pub(crate) fn size_bytes(text: &str) -> Result<u64> {
    let lower = text.trim().to_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower[digits.len()..].trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return usage(format!("{text:?} is not a size; write 512, 64k, 10m or 2g")),
    };
    match digits.trim().parse::<f64>() {
        Ok(number) if (0.0..1e15).contains(&number) => {
            #[expect(clippy::cast_precision_loss, reason = "powers of two are exact")]
            let scale = (1u64 << shift) as f64;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "not negative, and too large ones saturate"
            )]
            let bytes = (number * scale) as u64;
            Ok(bytes)
        }
        _ => usage(format!("{text:?} is not a size; write 512, 64k, 10m or 2g")),
    }
}

/// `24h`, `30m`, `90s`, `1h30m`, `2d`.
pub(crate) fn duration_secs(text: &str) -> Result<u64> {
    let mut total = 0u64;
    let mut digits = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return usage(format!("{text:?} is not a duration; write 24h, 30m or 1h30m")),
        };
        let number: u64 = digits
            .parse()
            .map_err(|_| Usage(format!("{text:?} is not a duration; write 24h, 30m or 1h30m")))?;
        total = total.saturating_add(number.saturating_mul(unit));
        digits.clear();
    }
    if digits.is_empty() && total > 0 {
        Ok(total)
    } else {
        usage(format!("{text:?} is not a duration; write 24h, 30m or 1h30m"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations() {
        for (text, want) in [
            ("512", 512),
            ("64k", 65_536),
            ("1.5MB", 1_572_864),
            ("2g", 2 << 30),
            ("1KiB", 1024),
            ("1t", 1 << 40),
        ] {
            assert_eq!(size_bytes(text).map_err(|e| e.0), Ok(want), "{text}");
        }
        for (text, want) in [("24h", 86_400), ("1h30m", 5400), ("2d", 172_800)] {
            assert_eq!(duration_secs(text).map_err(|e| e.0), Ok(want), "{text}");
        }
        for bad in ["", "x", "5x", "m", "-1"] {
            assert!(size_bytes(bad).is_err() && duration_secs(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_have_one_order() {
        let said = ["nofile=1:2", "core=0", "nofile=3"].map(str::to_owned);
        let limits: Vec<_> =
            ulimits(&said).unwrap().into_iter().map(|limit| (limit.name, limit.soft, limit.hard)).collect();
        assert_eq!(limits, [("core".to_owned(), 0, 0), ("nofile".to_owned(), 3, 3)]);
    }

    #[test]
    fn named_contexts_and_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("Base::linux/arm64={}", dir.path().display());
        let named = named_context(&text).unwrap();
        assert_eq!(
            (named.name.as_str(), named.platform.unwrap().to_string().as_str()),
            ("base", "linux/arm64")
        );
        assert!(matches!(named_context("a=docker-image://x").unwrap().value, NamedContextSource::Image(_)));
        let NamedContextSource::OciLayout { path, reference } =
            named_context("a=oci-layout://./l:v1").unwrap().value
        else {
            panic!()
        };
        assert_eq!((path, reference.as_str()), (PathBuf::from("./l"), "v1"));
        assert!(named_context("a").is_err() && named_context("a=/does/not/exist").is_err());
        assert_eq!(extra_host("h:1.2.3.4").unwrap().ip, "1.2.3.4");
        assert_eq!(extra_host("h=[::1]").unwrap().ip, "::1");
        assert!(extra_host("h").is_err() && extra_host("h:x").is_err());
    }

    #[test]
    fn secrets_name_what_is_missing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("id=a,src={}", file.path().display());
        assert!(matches!(secret(&text).unwrap().source, SecretSource::File(_)));
        for (bad, part) in [
            ("src=x", "no id"),
            ("id=a,src=/nope", "/nope"),
            ("id=a,env=RBUILD_NO_SUCH", "RBUILD_NO_SUCH"),
            ("id=a,foo=b", "foo"),
        ] {
            let message = secret(bad).unwrap_err().0;
            assert!(message.contains(part), "{message}");
        }
    }
}
