//! The command line as clap reads it: buildx's words. Low-level: nothing is interpreted here.

use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

/// Exit codes, shown by `--help`.
const EXIT_CODES: &str = "Exit codes:
  0    done
  1    the build failed: the Dockerfile, a step, a registry, the machine
  2    the command line is wrong
  70   a bug in rbuild
  130  interrupted";

/// rbuild turns a Dockerfile into a container image.
#[derive(Parser, Debug)]
#[command(name = "rbuild", version, about = "Build container images from Dockerfiles: no daemon, no root needed", after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Directory of the store [default: /var/lib/rbuild for root, else $XDG_DATA_HOME/rbuild]
    #[arg(long, global = true, env = "RBUILD_ROOT", value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Build an image from a Dockerfile
    #[command(
        alias = "b",
        args_override_self = true,
        after_help = EXIT_CODES,
        override_usage = "rbuild build [OPTIONS] PATH|-",
        after_long_help = EXIT_CODES
    )]
    Build(Box<BuildArgs>),
    /// Show the stages and the graph of a build without running it
    #[command(args_override_self = true, override_usage = "rbuild plan [OPTIONS] PATH|-")]
    Plan(Box<PlanArgs>),
    /// Say why the steps of the last build ran, and where what was cached came from
    Why(WhyArgs),
    /// Look at the machinery
    #[command(subcommand)]
    Debug(DebugCommand),
    /// Explain a code of a message, or list all
    ExplainCode(ExplainCodeArgs),
    /// List the images of the store
    Images(ImagesArgs),
    /// Show what the store holds
    Du(DuArgs),
    /// Remove cache that nothing needs
    Prune(PruneArgs),
    /// Look for damage in the store
    #[command(after_help = "Exit codes: 0 nothing is damaged, or it was repaired; 1 damage was found")]
    Check(CheckArgs),
}

/// What `build` and `plan` share.
#[derive(Args, Debug)]
pub(crate) struct SourceArgs {
    /// The build context: a directory, or `-` for a Dockerfile or a tar archive on standard input
    #[arg(value_name = "PATH|-")]
    pub(crate) context: String,
    /// Name of the Dockerfile [default: PATH/Dockerfile]; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<String>,
    /// Stage to build
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// Set a build argument; without a value it is taken from the environment
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub(crate) build_arg: Vec<String>,
    /// Additional build context: NAME=PATH, docker-image://REF, oci-layout://DIR[:TAG|@DIGEST]
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) build_context: Vec<String>,
    /// Set a label of the image
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<String>,
    /// Platforms to build for
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',', env = "DOCKER_DEFAULT_PLATFORM")]
    pub(crate) platform: Vec<String>,
    /// Always ask registries for newer images
    #[arg(long, value_name = SWITCH)]
    pub(crate) pull: bool,
    /// Do not use the cache; cache mounts begin empty
    #[arg(long, value_name = SWITCH)]
    pub(crate) no_cache: bool,
    /// Do not use the cache for these stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(crate) no_cache_filter: Vec<String>,
    /// Network of RUN instructions
    #[arg(long, value_name = "MODE", default_value = "default")]
    pub(crate) network: String,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "HOST:IP")]
    pub(crate) add_host: Vec<String>,
    /// Allow what a sandbox does not: network.host, security.insecure, device[=NAME[,alias=ALIAS]]
    #[arg(long, value_name = "ENTITLEMENT")]
    pub(crate) allow: Vec<String>,
    /// Directory with specs of devices for RUN --device; later ones win [default: /etc/cdi and /var/run/cdi]
    #[arg(long, value_name = "DIR", value_delimiter = ',', env = "RBUILD_CDI_SPEC_DIR")]
    pub(crate) cdi_spec_dir: Vec<PathBuf>,
    /// Lend a secret: id=ID[,src=FILE|,env=NAME]
    #[arg(long, value_name = "SECRET")]
    pub(crate) secret: Vec<String>,
    /// Lend an ssh agent: default or ID[=SOCKET]
    #[arg(long, value_name = "ID[=SOCKET]")]
    pub(crate) ssh: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE")]
    pub(crate) shm_size: Option<String>,
    /// Resource limits: NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT")]
    pub(crate) ulimit: Vec<String>,
    /// Parent control group of RUN instructions
    #[arg(long, value_name = "GROUP", default_value = "")]
    pub(crate) cgroup_parent: String,
    /// How many steps run at a time [default: all that are ready]
    #[arg(short, long, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto, env = "BUILDKIT_PROGRESS")]
    pub(crate) progress: ProgressMode,
}

/// `rbuild build`.
#[derive(Args, Debug)]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Name of the image
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub(crate) tag: Vec<String>,
    /// Where the result goes: DIR, -, or type=image|oci|docker|local|tar|registry,dest=…
    #[arg(short, long, value_name = "OUTPUT")]
    pub(crate) output: Vec<String>,
    /// Push to the registry: --output=type=registry
    #[arg(long, value_name = SWITCH)]
    pub(crate) push: bool,
    /// Load into Docker or podman: --output=type=docker
    #[arg(long, value_name = SWITCH)]
    pub(crate) load: bool,
    /// Use a cache that was exported before, or an image with an inline cache: REF, type=registry,ref=…, type=local,src=…
    #[arg(long, value_name = "CACHE")]
    pub(crate) cache_from: Vec<String>,
    /// Export the cache: type=registry,ref=…, type=local,dest=…, type=inline; mode=min|max
    #[arg(long, value_name = "CACHE")]
    pub(crate) cache_to: Vec<String>,
    /// Set an annotation of the image
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) annotation: Vec<String>,
    /// What to do with the Dockerfile: build it, check it, or list what it takes and has (build, check, outline, targets)
    #[arg(long, value_name = "METHOD[,format=json]", default_value = "build")]
    pub(crate) call: String,
    /// Run the build checks only: --call=check
    #[arg(long, conflicts_with = "call", value_name = SWITCH)]
    pub(crate) check: bool,
    /// How errors and findings are shown: as text, or as JSON, one a line, on standard error
    #[arg(long, value_enum, default_value_t = MessageFormat::Text)]
    pub(crate) format: MessageFormat,
    /// Write the image id to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<PathBuf>,
    /// Write what was built to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
    /// Print nothing but the image id
    #[arg(short, long, value_name = SWITCH)]
    pub(crate) quiet: bool,
    /// Say why each step ran, and where what was cached came from
    #[arg(long)]
    pub(crate) explain: bool,
    #[command(flatten)]
    pub(crate) gc: GcArgs,
    #[command(flatten)]
    pub(crate) attest: AttestArgs,
    #[command(flatten)]
    pub(crate) foreign: ForeignArgs,
}

/// Attestations: only their absence can be asked for yet.
#[derive(Args, Debug)]
pub(crate) struct AttestArgs {
    /// Attestations of the image; not there yet, so only type=…,disabled=true
    #[arg(long, value_name = "ATTESTATION")]
    pub(crate) attest: Vec<String>,
    /// Short for --attest=type=provenance; only false yet
    #[arg(long, value_name = "BOOL")]
    pub(crate) provenance: Option<String>,
    /// Short for --attest=type=sbom; only false yet
    #[arg(long, value_name = "BOOL")]
    pub(crate) sbom: Option<String>,
}

/// Flags that scripts for buildx and for older Docker have. They change nothing, and where that may matter it is said.
#[derive(Args, Debug)]
pub(crate) struct ForeignArgs {
    /// buildx's choice of a daemon.
    #[arg(long, hide = true)]
    pub(crate) builder: Option<String>,
    /// buildx's own debug messages.
    #[arg(short = 'D', long, hide = true, value_name = SWITCH)]
    pub(crate) debug: bool,
    /// How the context was sent.
    #[arg(long, hide = true, value_name = SWITCH)]
    pub(crate) compress: bool,
    /// What became of intermediate containers.
    #[arg(long, hide = true, value_name = SWITCH)]
    pub(crate) rm: bool,
    /// The same after a failure.
    #[arg(long, hide = true, value_name = SWITCH)]
    pub(crate) force_rm: bool,
    /// One layer in the end.
    #[arg(long, hide = true, value_name = SWITCH)]
    pub(crate) squash: bool,
    /// Kind of container.
    #[arg(long, hide = true)]
    pub(crate) isolation: Option<String>,
    /// Options of container security.
    #[arg(long, hide = true)]
    pub(crate) security_opt: Vec<String>,
    /// Limit of memory.
    #[arg(short, long, hide = true)]
    pub(crate) memory: Option<String>,
    /// Limit of memory and swap.
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Weight of processor time.
    #[arg(short = 'c', long, hide = true)]
    pub(crate) cpu_shares: Option<String>,
    /// Period of the processor quota.
    #[arg(long, hide = true)]
    pub(crate) cpu_period: Option<String>,
    /// Processor quota.
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<String>,
    /// Processors.
    #[arg(long, hide = true)]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes.
    #[arg(long, hide = true)]
    pub(crate) cpuset_mems: Option<String>,
}

/// The value of flags that may have one: `--pull`, `--pull=false`.
const SWITCH: &str = "BOOL";

/// The arguments of this process; what is wrong with them ends it, as `--help` does.
pub(crate) fn parse() -> Cli {
    let mut command = Cli::command();
    for name in ["build", "plan"] {
        command = command.mut_subcommand(name, |command| command.mut_args(switch));
    }
    let parsed = Cli::from_arg_matches(&command.clone().get_matches());
    parsed.unwrap_or_else(|error| error.format(&mut command).exit())
}

/// Lets a flag whose value is called so have one.
fn switch(arg: clap::Arg) -> clap::Arg {
    let named = arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.as_str() == SWITCH));
    if !named || !matches!(arg.get_action(), ArgAction::SetTrue) {
        return arg;
    }
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_value("false")
        .hide_default_value(true)
        .default_missing_value("true")
        .value_parser(go_bool)
}

/// Booleans as Go's flags take them.
fn go_bool(text: &str) -> Result<bool, String> {
    parse_bool(text).ok_or_else(|| "it must be true or false".to_owned())
}

/// `true`, `false` and the short forms of Go.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `rbuild plan`.
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Text for people, dot for Graphviz, or JSON (of messages too)
    #[arg(long, value_enum, default_value_t = PlanFormat::Text)]
    pub(crate) format: PlanFormat,
}

/// `rbuild explain-code`.
#[derive(Args, Debug)]
pub(crate) struct ExplainCodeArgs {
    /// A code such as RB1006, or the name of a build check; without it all are listed
    #[arg(value_name = "CODE")]
    pub(crate) code: Option<String>,
    /// Text for people, or JSON
    #[arg(long, value_enum, default_value_t = MessageFormat::Text)]
    pub(crate) format: MessageFormat,
}

/// Forms of messages.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum MessageFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Forms of a plan.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum PlanFormat {
    /// Stages and nodes as text.
    Text,
    /// Graphviz.
    Dot,
    /// For programs.
    Json,
}

/// Forms of progress.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum ProgressMode {
    /// tty on a terminal, else plain.
    Auto,
    /// Lines as they come.
    Plain,
    /// A live view.
    Tty,
    /// Nothing.
    Quiet,
    /// Nothing (the same).
    None,
    /// JSON lines.
    Rawjson,
}

/// Which build, and which of its steps.
#[derive(Args, Debug)]
pub(crate) struct StepArgs {
    /// Only steps of this number, stage or line (:12), or with this in their name
    #[arg(value_name = "STEP")]
    pub(crate) step: Option<String>,
    /// The build's context
    #[arg(short = 'C', long, value_name = "DIR", default_value = ".")]
    pub(crate) context: PathBuf,
    /// The build's Dockerfile [default: DIR/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// text or json
    #[arg(long, value_enum, default_value_t = TextFormat::Text)]
    pub(crate) format: TextFormat,
}

/// `rbuild why`.
#[derive(Args, Debug)]
pub(crate) struct WhyArgs {
    #[command(flatten)]
    pub(crate) step: StepArgs,
}

/// `rbuild debug`.
#[derive(Subcommand, Debug)]
pub(crate) enum DebugCommand {
    /// Print what the keys of the last build's steps were made from
    Key(StepArgs),
}

/// Text for people, or JSON for programs.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum TextFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `rbuild images`.
#[derive(Args, Debug)]
pub(crate) struct ImagesArgs {
    /// table or json
    #[arg(long, default_value = "table")]
    pub(crate) format: String,
}

/// How large the cache may become.
#[derive(Args, Debug)]
#[command(next_help_heading = "Cache size, kept after each build")]
pub(crate) struct GcArgs {
    /// Collect unused cache after the build: true or false
    #[arg(long, value_name = "BOOL", default_value = "true", env = "RBUILD_GC")]
    pub(crate) gc: String,
    /// What is never collected: 5g or 10% [default: 10% of the disk, at most 10 GB]
    #[arg(long, value_name = "SIZE", env = "RBUILD_GC_RESERVED_SPACE")]
    pub(crate) gc_reserved_space: Option<String>,
    /// The most that the cache takes [default: 80% of the disk, at most 100 GB]
    #[arg(long, value_name = "SIZE", env = "RBUILD_GC_MAX_USED_SPACE")]
    pub(crate) gc_max_used_space: Option<String>,
    /// What the disk keeps free [default: 20%]
    #[arg(long, value_name = "SIZE", env = "RBUILD_GC_MIN_FREE_SPACE")]
    pub(crate) gc_min_free_space: Option<String>,
}

/// `rbuild du`.
#[derive(Args, Debug)]
pub(crate) struct DuArgs {
    /// Only what matches: type=exec.cachemount, inuse, shared!=true, description~=REGEX, id=ID, until=24h
    #[arg(long, value_name = "FILTER")]
    pub(crate) filter: Vec<String>,
    /// table or json
    #[arg(long, default_value = "table")]
    pub(crate) format: String,
    /// Show what each entry is for
    #[arg(long)]
    pub(crate) verbose: bool,
}

/// `rbuild check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// Also read all blobs and layers and compare their bytes
    #[arg(long)]
    pub(crate) read_data: bool,
    /// Drop what is damaged, so that the next build makes it again, and remove leftovers
    #[arg(long)]
    pub(crate) repair: bool,
    /// text or json
    #[arg(long, value_enum, default_value_t = TextFormat::Text)]
    pub(crate) format: TextFormat,
}

/// `rbuild prune`.
#[derive(Args, Debug)]
pub(crate) struct PruneArgs {
    /// Also what named images are made of, and base images
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only what matches: until=24h, type=exec.cachemount, inuse, shared!=true, description~=REGEX, id=ID
    #[arg(long, value_name = "FILTER")]
    pub(crate) filter: Vec<String>,
    /// Keep this much, whatever the other limits say
    #[arg(long, value_name = "SIZE", alias = "keep-storage")]
    pub(crate) reserved_space: Option<String>,
    /// Remove only as long as there is more than this
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_used_space: Option<String>,
    /// Remove only as long as the disk has less free than this
    #[arg(long, value_name = "SIZE")]
    pub(crate) min_free_space: Option<String>,
    /// Say what each entry is for
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Say what would go, and why
    #[arg(long)]
    pub(crate) dry_run: bool,
}
